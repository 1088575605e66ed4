"""Faults on purpose: each kills, damages or starves a real process, and judges what is left.

A fault holds if it ends in one of two ways. Either the same command, run once more, ends bit for
bit like a run that nothing disturbed. Or it ends in one line and exit code 1, and every file that
was good is as it was.
"""

import concurrent.futures
import dataclasses
import json
import os
import pathlib
import queue
import random
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping

import h5py
import jax
import numpy as np
from faults import damage
from faults.commands import ROOT, Command, Ended, FileStep, Moment, Server

EQUAL, ONE_LINE = "equal", "one line"

_MAIN = (
    "--config=hopper:smoke",
    "--config.dataset=data.npz",
    "--config.horizon=3",
    "--config.world_model.denoiser=residual_mlp",
    "--config.td3_bc.hidden=(8,)",
    "--workdir=run",
)
_NAMES = {
    "collect": ("dawm_jax.collect.__main__", "test/hopper/collected-v0"),
    "generate": ("dawm_jax.generate", "test/hopper/generated-v0"),
}
_DATASET_ARGUMENTS = {
    "collect": ("--env=Hopper-v5", "--tier=medium", "--steps=600"),
    "generate": ("--workdir=run", "--transitions=300", "--batch=64"),
}
_EPISODES = 6  # of the bundled data, which the runs are trained on
_KILLED_TWICE = 0.3  # share of the runs that are killed again when they are resumed
_BY_STEPS = 0.7  # share of the kills of `collect` and `generate` at a change of files
_SHORT_S = 0.05  # a save takes about so long
_TRIES = 4  # to hit a process before it ends
# Stages of the program, and what its output says when one begins.
_BEGINS = {
    "start": b"workdir:",
    "world_model": b"world_model: compiling",
    "inverse_dynamics": b"inverse_dynamics: compiling",
    "agent": b"agent: compiling",
    "results": b"update 40:",
}
_MODELS = ("world_model", "inverse_dynamics")
_RESULTS = ("results.json", "returns.npz", "curves.png")
_LOG_LINE = re.compile(r"\d\d:\d\d:\d\d  .*")


@dataclasses.dataclass(frozen=True)
class Fault:
    """One fault and how it ended.

    Attributes:
      kind: what was done.
      place: where.
      seed: of its random choices.
      ending: EQUAL, ONE_LINE, or what was wrong.
    """

    kind: str
    place: str
    seed: int
    ending: str

    @property
    def held(self) -> bool:
        return self.ending in (EQUAL, ONE_LINE)


class Lab:
    """What all faults share: compiled programs, data, and runs that nothing disturbed.

    Args:
      root: an empty folder.
      servers: processes that start commands, as many as faults at a time.
    """

    def __init__(self, root: pathlib.Path, *, servers: int = 1):
        self.root = root
        self._servers: queue.Queue[Server] = queue.Queue()
        self._comparing = threading.Lock()
        self.pairing = threading.Lock()  # a pair of processes at a time
        self.started = [Server(root) for _ in range(servers)]
        for server in self.started:
            self._servers.put(server)
        self._count = iter(range(1_000_000))
        self.finished = self._finished()
        self.seconds = self._time_stages()
        self.stopped = self._stopped()
        self.learnt = _learnt(self.finished / "run")
        self.datasets = {name: self._dataset(name) for name in _NAMES}

    def close(self) -> None:
        """Ends the processes that start commands."""
        for server in self.started:
            server.close()

    def folder(self, source: pathlib.Path | None = None) -> pathlib.Path:
        """A new folder with the data, or a copy of another folder."""
        new = self.root / f"{next(self._count)}"
        if source is None:
            new.mkdir()
            shutil.copy(self.root / "data.npz", new / "data.npz")
        else:
            shutil.copytree(source, new)
        return new

    def run(
        self,
        command: Command,
        *,
        kill: FileStep | Moment | None = None,
        largest_file: int | None = None,
    ) -> Ended:
        """See `commands.Server.run`; waits for a server that is free."""
        server = self._servers.get()
        try:
            return server.run(command, kill=kill, largest_file=largest_file)
        finally:
            self._servers.put(server)

    # --- what nothing disturbed -------------------------------------------------------------

    def _finished(self) -> pathlib.Path:
        _write_data(self.root / "data.npz")
        folder = self.folder()
        _need(self.run(main(folder)))
        return folder

    def _time_stages(self) -> dict[str, float]:
        """Seconds of each stage; a second run, which finds its programs compiled."""
        seen: dict[str, float] = {}

        def look(output: bytes) -> bool:
            for name, text in _BEGINS.items():
                if text in output:
                    seen.setdefault(name, time.monotonic())
            return False

        ended = self.run(main(self.folder()), kill=Moment(look, 0.0))
        _need(ended)
        times = [*seen.values(), time.monotonic()]
        return {name: times[i + 1] - times[i] for i, name in enumerate(seen)}

    def _stopped(self) -> pathlib.Path:
        """A run that was killed before it saved its last checkpoint."""
        folder = self.before("agent")
        killed = self.run(main(folder), kill=FileStep(0, ("agent/40",)))
        assert killed.was_killed, killed
        return folder

    def _dataset(self, name: str) -> dict[str, np.ndarray]:
        folder = self.folder(self.finished)
        _need(self.run(dataset_command(name, folder)))
        found = read_dataset(name, folder)
        assert found is not None
        return found

    def before(self, stage: str) -> pathlib.Path:
        """A new folder, which a run left when a stage began."""
        folder = self.folder()
        if stage not in (*_MODELS[1:], "agent", "results"):
            return folder
        names = [*_MODELS, "agent"]
        done = names if stage == "results" else names[: names.index(stage)]
        old, new = self.finished / "run", folder / "run"
        new.mkdir()
        for name in ("config.json", "dataset.json"):
            shutil.copy(old / name, new / name)
        for name in done:
            shutil.copytree(old / "checkpoints" / name, new / "checkpoints" / name)
        lines = (old / "metrics.jsonl").read_text().splitlines(keepends=True)
        (new / "metrics.jsonl").write_text(
            "".join(line for line in lines if json.loads(line)["stage"] in done)
        )
        return folder

    # --- judging ----------------------------------------------------------------------------

    def difference(self, folder: pathlib.Path) -> str | None:
        """What of a run differs from the undisturbed one; None if it is equal bit for bit."""
        run, whole = folder / "run", self.finished / "run"
        for name, read in (("results.json", read_json), ("metrics.jsonl", read_lines)):
            if not (run / name).exists():
                return f"{name} is missing"
            try:
                if read(run / name) != read(whole / name):
                    return f"{name} differs"
            except ValueError:
                return f"{name} is damaged"
        if not damage.is_whole_archive(run / "returns.npz"):
            return "returns.npz is damaged"
        if not damage.is_whole_picture(run / "curves.png"):
            return "curves.png is damaged"
        with np.load(run / "returns.npz") as got, np.load(whole / "returns.npz") as want:
            if {k: v.tolist() for k, v in got.items()} != {k: v.tolist() for k, v in want.items()}:
                return "returns.npz differs"
        with self._comparing:
            try:
                got = _learnt(run)
            except Exception as error:
                return f"load_run: {error}"
        if jax.tree.structure(got) != jax.tree.structure(self.learnt):
            return "the trees of the checkpoints differ"
        equal = jax.tree.map(np.array_equal, got, self.learnt)
        return None if all(jax.tree.leaves(equal)) else "arrays of the checkpoints differ"


def main(folder: pathlib.Path) -> Command:
    """The training, in a folder that holds data.npz."""
    return Command("dawm_jax.main", _MAIN, folder)


def dataset_command(name: str, folder: pathlib.Path, *more: str) -> Command:
    """`collect` or `generate`."""
    module, dataset_id = _NAMES[name]
    arguments = (*_DATASET_ARGUMENTS[name], f"--dataset_id={dataset_id}", *more)
    return Command(module, arguments, folder)


def _write_data(path: pathlib.Path) -> None:
    from dawm_jax.data.load import load_dataset

    data = load_dataset("bundled/hopper/medium-v0")
    size = int(data.episode_ends[_EPISODES - 1]) + 1
    np.savez(
        path,
        observations=data.observations[:size],
        actions=data.actions[:size],
        rewards=data.rewards[:size],
        next_observations=data.next_observations[:size],
        terminals=data.terminations[:size],
        timeouts=data.truncations[:size],
    )


def _need(ended: Ended) -> None:
    if ended.code:
        raise RuntimeError(f"a command that nothing disturbs failed:\n{ended.output}")


def _learnt(run: pathlib.Path) -> list[np.ndarray]:
    from dawm_jax.training.load_run import load_run

    found = load_run(run)
    return jax.device_get((found.policies, found.models, found.normalizer))


def _without_times(value: object) -> object:
    if isinstance(value, Mapping):
        items = value.items()
        return {
            k: _without_times(v)
            for k, v in items
            if not re.search("second|commit|crc|results_digest", k)
        }
    return [_without_times(item) for item in value] if isinstance(value, list) else value


def read_json(path: pathlib.Path) -> object:
    """A JSON file without what depends on the clock."""
    return _without_times(json.loads(path.read_bytes()))


def read_lines(path: pathlib.Path) -> list[object]:
    """metrics.jsonl without what depends on the clock, by stage and step.

    A stage that is trained again is recorded behind the later stages.
    """
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    lines.sort(key=lambda line: (line["stage"], line["step"], line["kind"]))
    return [_without_times(line) for line in lines]


def read_dataset(name: str, folder: pathlib.Path) -> dict[str, np.ndarray] | None:
    """All arrays of the dataset that `collect` or `generate` made; None if there is none.

    Raises:
      OSError, ValueError: it is not complete.
    """
    data = folder / "minari" / _NAMES[name][1]
    if not data.exists():
        return None
    arrays: dict[str, np.ndarray] = {}

    def keep(path: str, item: h5py.Dataset | h5py.Group) -> None:
        if isinstance(item, h5py.Dataset):
            arrays[path] = item[()]

    with h5py.File(data / "data" / "main_data.hdf5") as file:
        file.visititems(keep)
    metadata = json.loads((data / "data" / "metadata.json").read_text())
    steps = sum(len(array) for path, array in arrays.items() if path.endswith("/rewards"))
    if metadata["total_steps"] != steps:
        raise ValueError(f"expected {metadata['total_steps']} steps, got {steps}")
    return arrays


def _equal_arrays(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[k], other[k]) for k in one)


def refusal(ended: Ended) -> str | None:
    """What is wrong with the way in which a command refused; None for one clear line."""
    lines = [line for line in ended.output.splitlines() if not _LOG_LINE.fullmatch(line)]
    if ended.code != 1:
        return f"exit code {ended.code}: {' / '.join(lines[-3:])}"
    if len(lines) != 1 or not lines[0].startswith("dawm_jax: "):
        return f"{len(lines)} lines: {' / '.join(lines[-3:])}"
    return f"unexpected: {lines[0]}" if "unexpected error" in lines[0] else None


# --- kill -9 ------------------------------------------------------------------------------


def kill_main(lab: Lab, place: str, rng: random.Random) -> str:
    """Kills the training at a random moment of a stage, and runs the same command to its end."""
    for _ in range(_TRIES):
        folder = lab.before(place)
        if lab.run(main(folder), kill=_moment(lab, place, folder, rng)).was_killed:
            break
    else:
        return "the process was never hit"
    if rng.random() < _KILLED_TWICE:
        seconds = sum(lab.seconds.values())
        again = Moment(lambda output: _BEGINS["start"] in output, rng.uniform(0, seconds / 2))
        lab.run(main(folder), kill=again)
    return _ended_equal(lab, folder, lab.run(main(folder)))


def _ended_equal(lab: Lab, folder: pathlib.Path, ended: Ended) -> str:
    if ended.code:
        return f"the same command fails: {ended.output.splitlines()[-1]}"
    found = lab.difference(folder) or EQUAL
    if found == EQUAL:
        shutil.rmtree(folder)
    return found


def _moment(lab: Lab, place: str, folder: pathlib.Path, rng: random.Random) -> FileStep | Moment:
    """A random moment of a stage; half of those in a save and in the results by file steps."""
    if place == "checkpoint save":
        if rng.random() < 0.5:
            return FileStep(rng.randrange(120), ("checkpoints/",))
        stage, step = rng.choice([("world_model", 10), ("inverse_dynamics", 20), ("agent", 24)])
        saving = folder / "run" / "checkpoints" / stage / f"{step}.orbax-checkpoint-tmp"
        return Moment(lambda output: saving.exists(), rng.uniform(0, _SHORT_S))
    if place == "results" and rng.random() < 0.5:
        return FileStep(rng.randrange(12), (*_RESULTS, "dataset.json"))
    if place == "results":  # the stages are done: what follows the start are the results
        seen = lambda output: b"agent: resumed" in output
        return Moment(seen, rng.uniform(0, lab.seconds[place]))
    begins = _BEGINS[place]
    return Moment(lambda output: begins in output, rng.uniform(0, lab.seconds[place]))


def kill_dataset(lab: Lab, place: str, rng: random.Random) -> str:
    """Kills `collect` or `generate`: a complete dataset or none, and then the right one."""
    name, _, how = place.partition(", ")
    folder = lab.folder(lab.finished)
    old: dict[str, np.ndarray] | None = None
    flags = ["--overwrite"] if how == "overwriting" else []
    if flags:
        _need(lab.run(dataset_command(name, folder, "--seed=1")))
        old = read_dataset(name, folder)
    command = dataset_command(name, folder, *flags)
    hidden = f"{_NAMES[name][1].replace('hopper/', 'hopper/.')}.partial"
    staging = folder / "minari" / hidden
    for _ in range(_TRIES):
        kill: FileStep | Moment = Moment(lambda output: staging.exists(), rng.uniform(0, 2.0))
        if rng.random() < _BY_STEPS:
            kill = FileStep(rng.randrange(26), ("minari/", "/.lock", "/main_data", "/metadata"))
        if lab.run(command, kill=kill).was_killed:
            break
        if not flags:
            shutil.rmtree(folder / "minari")
    else:
        return "the process was never hit"
    try:
        left = read_dataset(name, folder)
    except (OSError, ValueError, LookupError) as error:
        return f"half a dataset is visible: {error}"
    wanted = lab.datasets[name]
    if old is not None and left is None:
        return "neither the old nor the new dataset is visible"
    if left is not None and not any(_equal_arrays(left, w) for w in (wanted, old or wanted)):
        return "the dataset differs"
    ended = lab.run(command)
    if left is not None and not flags:
        if wrong := refusal(ended):
            return f"the same command, after the dataset was complete: {wrong}"
    elif ended.code:
        return f"the same command fails: {ended.output.splitlines()[-1]}"
    found = read_dataset(name, folder)
    if found is None or not _equal_arrays(found, wanted):
        return "the dataset that the same command makes differs"
    if ended.code == 0 and staging.exists():
        return f"{hidden} is left"
    shutil.rmtree(folder)
    return EQUAL


# --- damage -------------------------------------------------------------------------------


def damage_file(lab: Lab, place: str, rng: random.Random) -> str:
    """Damages a file of a finished or stopped run, and runs the same command."""
    state, kind = place.split(": ")
    folder = lab.folder(lab.finished if state == "finished" else lab.stopped)
    run = folder / "run"
    path = damage.choose(run, kind, rng)
    assert path is not None, place
    how = rng.choice(damage.DAMAGES)
    damage.damage(path, how, rng)
    before = damage.digests(run)
    ended = lab.run(main(folder))
    what = f"{how}, {path.relative_to(run)}"
    if ended.code == 0:
        found = lab.difference(folder)
        if found is None:
            shutil.rmtree(folder)
        return EQUAL if found is None else f"{what}: exit code 0 and {found}"
    after = damage.digests(run)
    after.setdefault("results.json", after.get("results_former.json", ""))
    changed = [
        name
        for name, digest in before.items()
        if name != str(path.relative_to(run)) and after.get(name) != digest
    ]
    if wrong := refusal(ended):
        return f"{what}: {wrong}"
    if changed:
        return f"{what}: {changed[0]} was overwritten"
    shutil.rmtree(folder)
    return ONE_LINE


# --- full disks ---------------------------------------------------------------------------


def full_disk(lab: Lab, place: str, rng: random.Random) -> str:
    """Lets writing fail; the command ends in one line, and the same command with room equals."""
    command, _, limit = place.partition(", ")
    judge = _small_disk if limit == "small disk" else _limited_files
    for attempt in range(_TRIES):
        found = judge(lab, command, rng, 4**-attempt)
        if found is not None:
            return found
    return "the limit was never reached"


def _limited_files(lab: Lab, name: str, rng: random.Random, scale: float) -> str | None:
    """A limit on the length of files; None if it was not reached."""
    size = int(scale * 10 ** rng.uniform(1.5, 5.0))
    if name == "main":
        folder = lab.before(rng.choice(["start", "inverse_dynamics", "agent", "results"]))
        command = main(folder)
    else:
        folder = lab.folder(lab.finished)
        command = dataset_command(name, folder)
    ended = lab.run(command, largest_file=size)
    if not ended.code:
        return None
    if wrong := refusal(ended):
        return f"{size} bytes: {wrong}"
    if name != "main" and read_dataset(name, folder) is not None:
        return f"{size} bytes: a dataset is visible after a failure"
    ended = lab.run(command)
    if name == "main":
        return _ended_equal(lab, folder, ended)
    return EQUAL if _is_collected(lab, folder) else f"the dataset differs: {ended.output[-200:]}"


def _is_collected(lab: Lab, folder: pathlib.Path) -> bool:
    found = read_dataset("collect", folder)
    return found is not None and _equal_arrays(found, lab.datasets["collect"])


def can_mount() -> bool:
    """Whether this process may make small disks."""
    return os.geteuid() == 0 and shutil.which("mount") is not None


def _small_disk(lab: Lab, name: str, rng: random.Random, scale: float) -> str | None:
    """A disk with room for a part of what is left to write; None if it sufficed."""
    assert name == "main"
    source = lab.before(rng.choice(["start", "inverse_dynamics", "agent", "results"]))
    folder = lab.folder()
    pages = [-(-path.stat().st_size // 4096) for path in source.rglob("*") if path.is_file()]
    size = 4096 * sum(pages) + int(scale * rng.randrange(1 << 14, 1 << 20))
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        return "no small disk can be mounted"
    try:
        shutil.copytree(source, folder, dirs_exist_ok=True)
        ended = lab.run(main(folder))
        if not ended.code:
            return None
        if wrong := refusal(ended):
            return f"{size} bytes: {wrong}"
        subprocess.run(["mount", "-o", "remount,size=64m", str(folder)], check=True)
        ended = lab.run(main(folder))
        if ended.code:
            return f"{size} bytes: with room, the same command fails: {ended.output[-200:]}"
        return lab.difference(folder) or EQUAL
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


# --- two processes ------------------------------------------------------------------------


def kill_one_of_two(lab: Lab, place: str, rng: random.Random) -> str:
    """Kills one of two processes; the other ends in one line, and both are resumed."""
    with lab.pairing:
        return _kill_one_of_two(lab, place, rng)


def _kill_one_of_two(lab: Lab, place: str, rng: random.Random) -> str:
    from runtime import distributed_test as pair

    jax.config.update("jax_compilation_cache_dir", str(lab.root / "compiled"))
    real = "--config.training.real_fraction=1.0"
    reference = lab.root / "pair"
    if not reference.exists():
        codes, outputs = pair._finish(pair._start_all(reference, 2, real))
        assert codes == [0, 0], outputs
    dying = int(place.removesuffix(" of two").removeprefix("process "))
    folder = lab.folder() / "run"
    step = rng.choice([8, 16, 24, 32])
    codes, outputs = pair._finish(
        pair._start_all(folder, 2, real, dying=dying, die_at=f"agent,{step},9")
    )
    if codes[dying] != -9:
        return f"the process was not killed: {codes}"
    survivor = outputs[1 - dying].splitlines()
    own = [x for x in survivor if not _LOG_LINE.fullmatch(x) and not x.startswith("[Gloo]")]
    wrong = None
    if codes[1 - dying] != 1:
        wrong = f"the survivor's exit code is {codes[1 - dying]}"
    elif not own or not own[-1].startswith("dawm_jax"):
        wrong = f"the survivor's last line is {own[-1:]}"
    elif dying and len(own) > 1:  # without process 0, JAX adds lines of its own
        wrong = f"the survivor says {len(own)} lines: {' / '.join(own)[:300]}"
    codes, outputs = pair._finish(pair._start_all(folder, 2, real))
    if codes != [0, 0]:
        return f"not resumed: {outputs[0][-300:]}"
    try:
        pair._assert_same_run(folder, reference)
    except AssertionError as error:
        return f"resumed to other numbers: {str(error)[:200]}"
    return wrong or EQUAL


# --- all of them --------------------------------------------------------------------------

Experiment = Callable[[Lab, str, random.Random], str]

_STOPPED = [kind for kind in damage.FILES if kind not in _RESULTS]
KINDS: dict[str, tuple[Experiment, tuple[str, ...]]] = {
    "kill -9 of main": (
        kill_main,
        ("start", "world_model", "inverse_dynamics", "agent", "checkpoint save", "results"),
    ),
    "kill -9 of collect and generate": (
        kill_dataset,
        ("collect", "generate", "collect, overwriting", "generate, overwriting"),
    ),
    "damaged file": (
        damage_file,
        (
            *(f"finished: {kind}" for kind in damage.FILES),
            *(f"stopped: {kind}" for kind in _STOPPED),
        ),
    ),
    "full disk": (full_disk, ("main, limited files", "collect, limited files", "main, small disk")),
    "kill -9 of one of two": (kill_one_of_two, ("process 0 of two", "process 1 of two")),
}


def try_fault(lab: Lab, kind: str, place: str, seed: int) -> Fault:
    """Makes one fault and judges it."""
    experiment, _ = KINDS[kind]
    rng = random.Random(f"{kind} {place} {seed}")
    try:
        ending = experiment(lab, place, rng)
    except Exception as error:
        ending = f"{type(error).__name__}: {error}"
    return Fault(kind, place, seed, ending)


def places(kind: str) -> tuple[str, ...]:
    """Where faults of a kind can be made on this machine."""
    found = KINDS[kind][1]
    return found if can_mount() else tuple(place for place in found if "small disk" not in place)


def try_all(
    lab: Lab, plan: list[tuple[str, str, int]], *, jobs: int, deadline: float
) -> Iterator[Fault]:
    """Makes the faults of a plan, several at a time; begins none after the deadline.

    Args:
      lab: its servers are at least as many as `jobs`.
      plan: kind, place and seed of each.
      jobs: at a time.
      deadline: on the clock of `time.monotonic`.
    """

    def work(item: tuple[str, str, int]) -> Fault | None:
        return try_fault(lab, *item) if time.monotonic() < deadline else None

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        for fault in pool.map(work, plan):
            if fault is not None:
                yield fault


# --- wrong values and random inputs -------------------------------------------------------


def _count_wrong_values() -> int:
    import wrong_values_test as tests

    texts = sum(len(tests.wrong_texts(spec)) for spec in tests._FIELDS.values())
    return texts + sum(map(len, tests.WRONG.values()))


def _count_wrong_settings() -> int:
    from config import schema_test as tests

    return sum(len(tests.wrong_values(spec)) for spec in tests.FIELDS.values())


def _count_examples() -> int:
    from data import fuzz_test as tests

    given = [test for test in vars(tests).values() if hasattr(test, "hypothesis")]
    return len(given) * tests.FUZZ.max_examples


# Name, the file, and how many inputs its tests try.
SUITES: dict[str, tuple[str, Callable[[], int]]] = {
    "wrong values of settings and flags": ("tests/wrong_values_test.py", _count_wrong_values),
    "wrong settings in Python": ("tests/config/schema_test.py", _count_wrong_settings),
    "random data, whole and damaged": ("tests/data/fuzz_test.py", _count_examples),
}


def count_suite(path: str) -> dict[str, int]:
    """Runs a file of tests; how many were made and how many passed."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider"]
    result = subprocess.run([*command, path], cwd=ROOT, capture_output=True, text=True)
    summary = result.stdout.splitlines()[-1] if result.stdout else ""
    counts = {word: int(number) for number, word in re.findall(r"(\d+) ([a-z]+)", summary)}
    passed = counts.get("passed", 0)
    failed = sum(counts.get(word, 0) for word in ("failed", "error", "errors"))
    return {"tried": passed + failed, "held": passed}
