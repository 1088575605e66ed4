"""Trains what docs/protocol.md compares, on this machine; the command can be stopped and resumed.

python launch/experiments.py FOLDER --dry_run           prints the commands that are left
python launch/experiments.py FOLDER                     one training after another
python launch/experiments.py FOLDER --jobs=2            two at a time, on half of the CPUs each
python launch/experiments.py FOLDER --gpus=0,1          one at a time on each GPU
python launch/experiments.py FOLDER --parts=main,few    some parts of the protocol

With --jobs, trainings share a GPU. Every run is a folder PART/NAME below FOLDER; docs/protocol.md
says what the parts are. Runs that are done are skipped. Models that several runs train alike are
trained once and copied: a run that copies models starts after the run that trains them, which for
runs of the parts rivals, studies, volume, targets and online may be one of the part main. The
command ends with reports of the runs that are done: of each part in PART/report, and of the part
main also in report-developed-on and report-untouched.
"""

import dataclasses
import os
import pathlib
import shlex
import subprocess
import sys
from collections.abc import Iterator

from _command import ROOT, Parser
from _done import is_done
from sweep import MAX_JOBS, Run, command, parse_gpus, run_here, slots

# The tasks, those that the package was developed on first.
DEVELOPED_ON = ("hopper/medium", "walker2d/medium")
UNTOUCHED = (
    "halfcheetah/medium",
    "hopper/medium-replay",
    "walker2d/medium-replay",
    "halfcheetah/medium-replay",
    "hopper/medium-expert",
    "walker2d/medium-expert",
    "halfcheetah/medium-expert",
)
# Tasks of the rivals.
FOUR = (*DEVELOPED_ON, "halfcheetah/medium", "walker2d/medium-replay")
VARIANTS = ("", "quick", "smoke")
AGENTS = ("td3_bc", "iql")
EPISODES = (5, 20, 80)
HORIZONS = (1, 3, 15)  # 7 is the default, which the other parts run
# The protocol's values that differ from the defaults of "quick".
OF_THE_PROTOCOL = (
    "--config.rollout.prefill_transitions=20000",
    "--config.rollout.buffer_capacity=100000",
)


@dataclasses.dataclass(frozen=True)
class Completion:
    """Which generated transitions a run of the study of completed actions learns from.

    Attributes:
      starts: windows of a round.
      steps: of each window that are kept: 7, or 1, whose action is real.
      flags: of the run. With `real_actions_only` a round has windows_per_round x 7 windows.
    """

    starts: int
    steps: int
    flags: tuple[str, ...]


COMPLETION = {
    "56-starts-completed": Completion(
        56, 7, ("--config.rollout.windows_per_round=56", *OF_THE_PROTOCOL)
    ),
    "56-starts-first-steps": Completion(
        56,
        1,
        (
            "--config.rollout.real_actions_only=True",
            "--config.rollout.windows_per_round=8",
            "--config.rollout.prefill_transitions=2857",
            "--config.rollout.buffer_capacity=14286",
        ),
    ),
    "392-starts-first-steps": Completion(
        392,
        1,
        (
            "--config.rollout.real_actions_only=True",
            "--config.rollout.windows_per_round=56",
            *OF_THE_PROTOCOL,
        ),
    ),
}
# As many generated transitions before the first update as the data have, and room for twice as
# many; returns over as many steps as a window has.
VOLUME = (
    "--config.rollout.prefill_transitions=200000",
    "--config.rollout.buffer_capacity=400000",
)
RETURNS = ("--config.training.return_steps=7",)
ONE_STEP_REAL = ("--config.training.real_return_steps=1",)
# The part few: the defaults of "quick".
FEW = (
    "--config.rollout.prefill_transitions=200000",
    "--config.rollout.buffer_capacity=300000",
)
# The part online.
ONLINE = ("--config.online.steps=50000",)
LOOSENED = ("--config.online.cloning_decay=0.1",)
HALF_ONLINE = (
    "--config.online.offline_fraction=0.5",
    "--config.online.generated_fraction=0",
)
# Without offline training: one round of updates, whose agents are thrown away.
RLPD = (
    "--config.training.updates=100",
    "--config.online.fresh_agent=True",
    "--config.online.envs=1",
    "--config.online.updates_per_step=20",
)


@dataclasses.dataclass(frozen=True)
class Protocol:
    """What all runs have in common.

    Attributes:
      variant: of the configuration, behind the tier: "quick", or "" for full size.
      flags: of every run.
    """

    variant: str
    flags: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One run of a part.

    Attributes:
      task: TASK/TIER.
      name: of the method, agent and share of real data.
      flags: that make it this run.
      models: name of the run on the same task whose models it copies, behind PART/ in another
        part; "" to train its own.
      suffix: of the folder's name, which runs that share models in a part have in common.
    """

    task: str
    name: str
    flags: tuple[str, ...]
    models: str = ""
    suffix: str = ""

    def folder(self, part: pathlib.Path, name: str) -> pathlib.Path:
        """The folder of the run `name`, or PART/name, on this task."""
        task = self.task.replace("/", "-")
        if "/" in name:
            other, name = name.split("/")
            return part.parent / other / f"{task}-{name}"
        return part / "-".join(filter(None, (task, name, self.suffix)))

    def run(self, part: pathlib.Path, protocol: Protocol) -> Run:
        """The run in its folder below the part's."""
        task, tier = self.task.split("/")
        variant = ",".join(filter(None, (tier, protocol.variant)))
        folder = self.folder(part, self.name)
        source = self.folder(part, self.models) if self.models else None
        arguments = (
            f"--config=configs/{task}.py:{variant}",
            *protocol.flags,
            *self.flags,
            f"--workdir={folder}",
            *([f"--models_from={source}"] if source else []),
        )
        return Run({}, folder, arguments, after=source)


# --- the parts ----------------------------------------------------------------------------


def _row(method: str, agent: str, real: float) -> tuple[str, tuple[str, ...]]:
    """Name and flags of a method and agent with a share of real data; 1.0 has no method."""
    share = f"--config.training.real_fraction={real:g}"
    if real == 1.0:
        return f"real-{agent}", (f"--config.agent={agent}", share)
    form = "" if real == 0.5 else "-alone"
    flags = (f"--config.method={method}", f"--config.agent={agent}", share)
    return f"{method}{form}-{agent}", flags


def _rows(
    task: str,
    rows: list[tuple[str, float]],
    *,
    models: dict[str, str],
    flags: tuple[str, ...] = (),
    suffix: str = "",
) -> Iterator[Experiment]:
    """Rows (method, share of real data) with both agents.

    Args:
      task: TASK/TIER.
      rows: methods and shares.
      models: method -> name of the run that trains its models.
      flags: more flags of every row.
      suffix: see `Experiment`.
    """
    for agent in AGENTS:
        for method, real in rows:
            name, own = _row(method, agent, real)
            source = "" if real == 1.0 or models[method] == name else models[method]
            yield Experiment(task, name, (*flags, *own), source, suffix)


_MODELS = {
    "dawm": "dawm-td3_bc",
    "dwm": "dawm-td3_bc",
    "joint": "joint-td3_bc",
    "one_step": "one_step-alone-td3_bc",
}


def main_part() -> Iterator[Experiment]:
    """DAWM and DWM with half real data, and the agents on real data, on all nine tasks."""
    for task in (*DEVELOPED_ON, *UNTOUCHED):
        yield from _rows(task, [("dawm", 0.5), ("dwm", 0.5), ("", 1.0)], models=_MODELS)


def rivals() -> Iterator[Experiment]:
    """The other methods, on four tasks; DAWM's and DWM's models are those of the main part."""
    real = "--config.training.real_fraction=1"
    models = {**_MODELS, "dawm": "main/dawm-td3_bc", "dwm": "main/dawm-td3_bc"}
    for task in FOUR:
        rows = [("dawm", 0.0), ("dwm", 0.0), ("joint", 0.5), ("one_step", 0.0)]
        yield from _rows(task, rows, models=models)
        for name, share in (("bc", 1.0), ("bc-0.1", 0.1)):
            flags = ("--config.agent=bc", real, f"--config.top_fraction={share:g}")
            yield Experiment(task, f"real-{name}", flags)
        planner = ("--config.method=decision_diffuser",)
        yield Experiment(task, "decision_diffuser", planner)


def second_models() -> Iterator[Experiment]:
    """A second world model of DAWM and DWM on the tasks that were developed on."""
    for task in DEVELOPED_ON:
        rows = [("dawm", 0.5), ("dwm", 0.5), ("", 1.0)]
        yield from _rows(task, rows, models=_MODELS, flags=("--config.seed=1",), suffix="seed-1")


def few_episodes() -> Iterator[Experiment]:
    """Little data: 5, 20 and 80 episodes of the tasks that were developed on."""
    rows = [("dawm", 0.5), ("dawm", 0.0), ("dwm", 0.5), ("joint", 0.5), ("", 1.0)]
    for task in DEVELOPED_ON:
        for count in EPISODES:
            flags = (*FEW, f"--config.episodes={count}")
            suffix = f"{count}-episodes"
            yield from _rows(task, rows, models=_MODELS, flags=flags, suffix=suffix)


def studies() -> Iterator[Experiment]:
    """Horizons, and completed actions against more real starts, on generated data alone."""
    name, alone = _row("dawm", "td3_bc", 0.0)
    for task in DEVELOPED_ON:
        for horizon in HORIZONS:
            flags = (*alone, f"--config.horizon={horizon}")
            yield Experiment(task, name, flags, suffix=f"horizon-{horizon}")
        for form, completion in COMPLETION.items():
            flags = (*alone, *completion.flags)
            yield Experiment(task, name, flags, "main/dawm-td3_bc", form)


def volume() -> Iterator[Experiment]:
    """DAWM with more generated transitions, DAWM and real data with returns over seven steps."""
    for task in (*DEVELOPED_ON, *UNTOUCHED):
        for agent in AGENTS:
            name, dawm = _row("dawm", agent, 0.5)
            real_name, real = _row("", agent, 1.0)
            models = "main/dawm-td3_bc"
            yield Experiment(task, name, (*dawm, *VOLUME), models, "volume")
            yield Experiment(task, name, (*dawm, *VOLUME, *RETURNS), models, "volume-returns")
            yield Experiment(task, real_name, (*real, *RETURNS), "", "returns")


def targets() -> Iterator[Experiment]:
    """DAWM whose generated rows alone have returns over seven steps."""
    for task in (*DEVELOPED_ON, *UNTOUCHED):
        for agent in AGENTS:
            name, dawm = _row("dawm", agent, 0.5)
            models = "main/dawm-td3_bc"
            flags = (*dawm, *RETURNS, *ONE_STEP_REAL)
            yield Experiment(task, name, (*flags, *VOLUME), models, "generated-returns")
            first = (*flags, "--config.rollout.real_actions_only=True")
            yield Experiment(task, name, first, models, "expansions")


def online() -> Iterator[Experiment]:
    """Fine-tuning in the environment, and RLPD, on the tasks that were developed on."""
    for task in DEVELOPED_ON:
        name, dawm = _row("dawm", "td3_bc", 0.5)
        yield Experiment(task, name, (*dawm, *ONLINE, *LOOSENED), "main/dawm-td3_bc", "online")
        name, real = _row("", "td3_bc", 1.0)
        yield Experiment(task, name, (*real, *ONLINE, *LOOSENED, *HALF_ONLINE), "", "online")
        name, rlpd = _row("", "rlpd", 1.0)
        yield Experiment(task, name, (*rlpd, *ONLINE, *HALF_ONLINE, *RLPD), "", "online")


PARTS = {
    "main": main_part,
    "few": few_episodes,
    "rivals": rivals,
    "second": second_models,
    "studies": studies,
    "volume": volume,
    "targets": targets,
    "online": online,
}


# --- the command --------------------------------------------------------------------------


def runs_of(part: str, folder: pathlib.Path, protocol: Protocol) -> list[Run]:
    """The runs of a part, in the order in which they are trained."""
    return [experiment.run(folder / part, protocol) for experiment in PARTS[part]()]


def reports_of(part: str, folder: pathlib.Path) -> dict[pathlib.Path, list[pathlib.Path]]:
    """Folder of each report of a part -> folders of the runs that it reads.

    The part main is also reported for the tasks that were developed on and for the others. The
    parts second, volume and targets have the part main's runs on their tasks beside their own.
    """
    tasks: dict[pathlib.Path, str] = {}
    for name in ("main", part) if part in ("second", "volume", "targets") else (part,):
        for experiment in PARTS[name]():
            tasks[experiment.folder(folder / name, experiment.name)] = experiment.task
    chosen = lambda names: [run for run, task in tasks.items() if task in names]
    out = folder / part
    if part == "main":
        return {
            out / "report": list(tasks),
            out / "report-developed-on": chosen(DEVELOPED_ON),
            out / "report-untouched": chosen(UNTOUCHED),
        }
    return {out / "report": chosen(DEVELOPED_ON) if part == "second" else list(tasks)}


def _report(out: pathlib.Path, runs: list[pathlib.Path]) -> int:
    """Writes the report of the runs that are done, if any is; returns the exit code."""
    done = [str(run) for run in runs if is_done(run)]
    if not done:
        return 0
    return subprocess.run(
        [sys.executable, "-m", "dawm_jax.report", *done, f"--out={out}"]
    ).returncode


def _parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("folder", type=pathlib.Path, help="of the runs")
    parser.add_argument("--dry_run", action="store_true", help="print, do nothing")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument(
        "--variant", default="quick", choices=VARIANTS, help='"" is the unshortened one, for a GPU'
    )
    parser.add_argument("--seeds", type=int, default=5, help="agents of a run")
    parser.add_argument(
        "--updates", type=int, help="of the agents; default: 30000 with quick, else the variant's"
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    where.add_argument("--gpus", help="GPUs, one training each: 0,1")
    return parser


def main() -> int:
    """Runs the command line; returns the exit code."""
    parser = _parser()
    arguments = parser.parse_args()
    parts = list(dict.fromkeys(arguments.parts.split(",")))
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        parser.error(f"--parts: expected some of {', '.join(PARTS)}, got {unknown[0]!r}")
    for name, least, most in (
        ("jobs", 1, MAX_JOBS),
        ("seeds", 1, 10_000),
        ("updates", 1, 10_000_000),
    ):
        value = getattr(arguments, name)
        if value is not None and not least <= value <= most:
            parser.error(f"--{name}: expected {least} to {most:,}, got {value:,}")
    gpus = parse_gpus(parser, arguments.gpus)
    folder = arguments.folder.absolute()
    if folder.is_relative_to(ROOT):
        folder = folder.relative_to(ROOT)  # results name the folder of copied models
    os.chdir(ROOT)
    flags = [f"--config.num_seeds={arguments.seeds}"]
    updates = arguments.updates or (30_000 if arguments.variant == "quick" else None)
    if updates is not None:
        flags.append(f"--config.training.updates={updates}")
    if arguments.variant == "quick":
        flags += OF_THE_PROTOCOL
    protocol = Protocol(arguments.variant, tuple(flags))
    runs = [run for part in parts for run in runs_of(part, folder, protocol)]
    todo = [run for run in runs if not run.is_done]
    print(f"{len(runs)} runs, {len(runs) - len(todo)} done")
    if arguments.dry_run:
        print("\n".join(shlex.join(command(run)) for run in todo))
        return 0
    failed = run_here(todo, slots(jobs=arguments.jobs, gpus=gpus)) if todo else 0
    for part in parts:
        for out, reported in reports_of(part, folder).items():
            failed += _report(out, reported) != 0
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
