"""Trains every combination of a grid of settings, on this machine or as a SLURM array.

python launch/sweep.py GRID.toml --dry_run          prints the commands and what is done
python launch/sweep.py GRID.toml                    one training after another
python launch/sweep.py GRID.toml --jobs=4           four trainings at a time
python launch/sweep.py GRID.toml --gpus=0,1,2,3     one training at a time on each GPU
python launch/sweep.py GRID.toml --slurm            one SLURM array
python launch/sweep.py GRID.toml --slurm -- --time=4:00:00    options of sbatch follow --
python launch/sweep.py GRID.toml --summary          writes the table of results only

The file names a folder, relative to the repository, and the values of any flags of
dawm_jax.main:

    folder = "runs/sweep"
    [grid]
    config = ["configs/hopper.py:quick", "configs/walker2d.py:quick"]
    "config.agent" = ["td3_bc", "iql"]
    "config.seed" = [0, 1, 2]

Every combination is a run in its own folder, which is named after its values of the flags that have
several: a second value for a flag that had one gives all runs new folders. The command skips
runs with results and resumes stopped ones. Its table is summary.md in the sweep's folder.
"""

import dataclasses
import itertools
import json
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Mapping
from types import FrameType

from _command import ROOT, Parser
from _done import is_done

_POLL_SECONDS = 0.2
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
MAX_JOBS = 1_000
# A value of CUDA_VISIBLE_DEVICES for one GPU.
_GPU = re.compile(r"\d{1,3}|(GPU|MIG)-[\w/-]+", re.ASCII)


@dataclasses.dataclass(frozen=True)
class Run:
    """One combination.

    Attributes:
      values: the flags that vary over the sweep, with this run's values.
      folder: the run's folder.
      arguments: of dawm_jax.main.
      after: folder of a run that must be done before, or None.
    """

    values: Mapping[str, object]
    folder: pathlib.Path
    arguments: tuple[str, ...]
    after: pathlib.Path | None = None

    @property
    def is_done(self) -> bool:
        """Whether the run has results, and the files beside them."""
        return is_done(self.folder)

    @property
    def is_ready(self) -> bool:
        """Whether the run that must be done before is done."""
        return self.after is None or is_done(self.after)


@dataclasses.dataclass(frozen=True)
class Slot:
    """Where one training at a time runs.

    Attributes:
      gpu: value of CUDA_VISIBLE_DEVICES, "" leaves it.
      cpus: the CPUs that the training may use; None leaves them.
    """

    gpu: str = ""
    cpus: frozenset[int] | None = None


def read(path: pathlib.Path) -> list[Run]:
    """The runs of a grid file; the last flag varies fastest.

    Raises:
      ValueError: the file is not a grid; the message is one line.
    """
    try:
        content = tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"{path}: not a readable TOML file ({error})") from error
    grid, folder = content.get("grid"), content.get("folder")
    if not isinstance(folder, str) or not isinstance(grid, dict) or "config" not in grid:
        raise ValueError(f'{path}: expected folder = "..." and a [grid] with config = [...]')
    flags = {name: value if isinstance(value, list) else [value] for name, value in grid.items()}
    for name, values in flags.items():
        _check_flag(path, name, values)
    runs = [
        _run(pathlib.Path(folder), dict(zip(flags, values, strict=True)), flags)
        for values in itertools.product(*flags.values())
    ]
    named: dict[pathlib.Path, Run] = {}
    for run in runs:
        if (other := named.setdefault(run.folder, run)) is not run:
            both = " and ".join(shlex.join(each.arguments[:-1]) for each in (other, run))
            raise ValueError(f"{path}: {both} have the same folder, {run.folder}; leave one out")
    return runs


def _check_flag(path: pathlib.Path, name: str, values: list[object]) -> None:
    if not values:
        raise ValueError(f"{path}: {name} has no values")
    if name == "workdir":
        raise ValueError(f"{path}: workdir is chosen by folder")
    # A line break would end the line of a SLURM task.
    unprintable = [text for text in (name, *map(str, values)) if not text.isprintable()]
    if unprintable:
        raise ValueError(f"{path}: {unprintable[0]!r} holds a control character")


def _run(folder: pathlib.Path, values: dict[str, object], flags: dict[str, list[object]]) -> Run:
    varying = {name: value for name, value in values.items() if len(flags[name]) > 1}
    # hopper-quick-agent=iql-seed=1
    parts = [pathlib.Path(str(values["config"])).name.replace(".py", "")]
    parts += [
        f"{name.split('.')[-1]}={value}" for name, value in varying.items() if name != "config"
    ]
    workdir = folder / re.sub(r"[^\w.=-]+", "-", "-".join(parts))
    arguments = [f"--{name}={value}" for name, value in values.items()]
    return Run(varying, workdir, (*arguments, f"--workdir={workdir}"))


def command(run: Run) -> list[str]:
    """The command that trains a run on this machine."""
    return [sys.executable, "-m", "dawm_jax.main", *run.arguments]


def parse_gpus(parser: Parser, text: str | None) -> list[str]:
    """The GPUs of the flag --gpus; the command ends with one line unless they are different ones.

    Args:
      parser: of the command line.
      text: value of the flag, None without it.
    """
    gpus = text.split(",") if text is not None else []
    if [gpu for gpu in gpus if not _GPU.fullmatch(gpu)] or len(set(gpus)) < len(gpus):
        parser.error(f"--gpus: expected different GPUs, as in 0,1, got {text!r}")
    return gpus


def slots(*, jobs: int, gpus: list[str]) -> list[Slot]:
    """One slot for each GPU, or `jobs` slots that share the CPUs evenly.

    Trainings that share all CPUs wait for each other's threads. Where there are fewer CPUs than
    jobs, or the system cannot bind processes, no training is bound.
    """
    if gpus:
        return [Slot(gpu=gpu) for gpu in gpus]
    cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if jobs == 1 or len(cpus) < jobs:
        return [Slot()] * jobs
    return [Slot(cpus=frozenset(cpus[index::jobs])) for index in range(jobs)]


def run_here(runs: list[Run], free: list[Slot]) -> int:
    """Trains on this machine.

    SIGTERM, SIGINT and SIGUSR1 are passed on as SIGTERM: the trainings save and stop.

    Args:
      runs: to train, in this order, but each only after the run that must be done before.
      free: where trainings run.

    Returns:
      The number of runs that failed or did not start.
    """
    free, waiting = list(free), list(runs)
    running: dict[subprocess.Popen[bytes], tuple[Run, Slot]] = {}
    failed, stopped = 0, False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopped
        stopped = True
        for process in list(running):
            process.send_signal(signal.SIGTERM)

    before = {number: signal.signal(number, stop) for number in _SIGNALS}
    while not stopped or running:
        ready = [run for run in waiting if run.is_ready]
        while ready and free and not stopped:
            run, slot = ready.pop(0), free.pop(0)
            waiting.remove(run)
            running[_start(run, slot)] = run, slot
        if not running:
            break  # all are done, or what the others wait for is not trained here
        for process in [p for p in running if p.poll() is not None]:
            run, slot = running.pop(process)
            free.append(slot)
            failed += process.returncode != 0
            ended = "stopped" if stopped else "failed, see log.txt"
            print(f"{run.folder}: {'done' if process.returncode == 0 else ended}", flush=True)
        time.sleep(_POLL_SECONDS)
    for number, handler in before.items():
        signal.signal(number, handler)
    if not stopped:
        for run in waiting:
            print(f"{run.folder}: not started, it needs {run.after}, which is not done")
    return failed + len(waiting)


def _start(run: Run, slot: Slot) -> subprocess.Popen[bytes]:
    run.folder.mkdir(parents=True, exist_ok=True)
    environment = dict(os.environ)
    if slot.gpu:
        environment["CUDA_VISIBLE_DEVICES"] = slot.gpu
    if slot.cpus is not None:
        # A GPU is shared too: JAX would reserve three quarters of its memory for each training.
        environment.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    print(shlex.join(command(run)), flush=True)
    with (run.folder / "log.txt").open("a") as log:
        process = subprocess.Popen(
            command(run),
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches the trainings through `stop` only
        )
    if slot.cpus is not None:
        # Python is still starting: JAX makes its threads later, and they inherit the CPUs.
        os.sched_setaffinity(process.pid, slot.cpus)
    return process


def submit(runs: list[Run], options: list[str], *, dry_run: bool) -> int:
    """Submits a SLURM array over `runs`.

    Args:
      runs: one task of the array each.
      options: of sbatch.
      dry_run: print the command of sbatch and do nothing.

    Returns:
      The exit code of sbatch.
    """
    folder = runs[0].folder.parent
    # Each submission has its own file, because a task reads its line only when it starts.
    path = folder / f"commands-{time.strftime('%Y%m%d-%H%M%S')}.txt"
    sbatch = ["sbatch", f"--array=0-{len(runs) - 1}", *options, "launch/slurm.sbatch", str(path)]
    print(shlex.join(sbatch))
    if dry_run:
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    with path.open("x") as file:
        file.writelines(shlex.join(run.arguments) + "\n" for run in runs)
    return subprocess.run(sbatch).returncode


def summary(runs: list[Run]) -> str:
    """A Markdown table with one row per run: its final and its best evaluation."""
    names = list(runs[0].values)
    lines = ["| " + " | ".join([*names, "score", "best score", "return", "training s"]) + " |"]
    lines.append("|---" * (len(names) + 4) + "|")
    for run in runs:
        cells = [str(value) for value in run.values.values()]
        lines.append("| " + " | ".join([*cells, *_scores(run)]) + " |")
    return "\n".join(lines) + "\n"


def _scores(run: Run) -> list[str]:
    path = run.folder / "results.json"
    if not run.is_done:
        started = (run.folder / "config.json").is_file()
        state = "stopped or running" if started else "not started"
        return ["damaged results" if path.exists() else state, "", "", ""]
    try:
        results = json.loads(path.read_text())
        final, best = results["final"], results["best"]
        interval = final.get("score_interval")
        seconds = sum(stage["seconds"] for stage in results["stages"].values())
        return [
            _score(final) + (" ({:.1f} to {:.1f})".format(*interval) if interval else ""),
            _score(best),
            f"{final['return_mean']:.0f}",
            f"{seconds:.0f}",
        ]
    except (ValueError, LookupError, TypeError, AttributeError):
        return ["damaged results", "", "", ""]


def _score(point: Mapping[str, float]) -> str:
    return f"{point['score_mean']:.1f}" if "score_mean" in point else ""


def _parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("grid", type=pathlib.Path, help="the TOML file")
    parser.add_argument("--dry_run", action="store_true", help="print, do nothing")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    where.add_argument("--gpus", help="GPUs, one training each: 0,1")
    where.add_argument("--slurm", action="store_true", help="submit a SLURM array")
    parser.add_argument("--summary", action="store_true", help="only write the table")
    return parser


def main() -> int:
    """Runs the command line; returns the exit code."""
    words = sys.argv[1:]
    split = words.index("--") if "--" in words else len(words)
    parser, options = _parser(), words[split + 1 :]
    arguments = parser.parse_args(words[:split])
    if options and not arguments.slurm:
        parser.error(f"unexpected {options[0]}: options of sbatch need --slurm")
    if not 1 <= arguments.jobs <= MAX_JOBS:
        parser.error(f"--jobs: expected 1 to {MAX_JOBS}, got {arguments.jobs}")
    gpus = parse_gpus(parser, arguments.gpus)
    try:
        runs = read(arguments.grid.absolute())
        os.chdir(ROOT)  # flags and folders of the trainings are relative to the repository
        todo = [run for run in runs if not run.is_done]
        print(f"{len(runs)} runs, {len(runs) - len(todo)} done")
        failed = 0
        if todo and not arguments.summary:
            if arguments.slurm:
                return submit(todo, options, dry_run=arguments.dry_run)
            if arguments.dry_run:
                print("\n".join(shlex.join(command(run)) for run in todo))
                return 0
            failed = run_here(todo, slots(jobs=arguments.jobs, gpus=gpus))
        table = summary(runs)
    except ValueError as error:
        parser.fail(str(error))
    print(table, end="")
    if not arguments.dry_run:
        runs[0].folder.parent.mkdir(parents=True, exist_ok=True)
        (runs[0].folder.parent / "summary.md").write_text(table)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
