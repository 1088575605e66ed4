"""Many trainings from one file: on this machine, or as a SLURM array.

python launch/sweep.py GRID.toml --dry_run          the commands, and what is already done
python launch/sweep.py GRID.toml                    one after the other
python launch/sweep.py GRID.toml --jobs=4           four beside each other
python launch/sweep.py GRID.toml --gpus=0,1,2,3     a GPU each
python launch/sweep.py GRID.toml --slurm            one array; further arguments go to sbatch
python launch/sweep.py GRID.toml --summary          the table of results, at any time

The file names a folder (relative paths are the repository's), and the flags of dawm_jax.main
with the values to combine:

    folder = "runs/sweep"
    [grid]
    config = ["configs/hopper.py:quick", "configs/walker2d.py:quick"]
    "config.agent" = ["td3_bc", "iql"]
    "config.seed" = [0, 1, 2]

Every combination is a run in a folder of its own, named by its values. A run with results is
skipped, one that was stopped goes on: the same command again finishes a sweep.
"""

import argparse
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
from typing import Any, NamedTuple

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_POLL_SECONDS = 0.2


class Run(NamedTuple):
    """One combination: the values that vary, its folder, and its arguments."""

    values: dict[str, Any]
    folder: pathlib.Path
    arguments: list[str]

    @property
    def results(self) -> dict[str, Any] | None:
        """What results.json holds, None before the run is done."""
        path = self.folder / "results.json"
        return json.loads(path.read_text()) if path.is_file() else None


def read(path: pathlib.Path) -> list[Run]:
    """The runs of a grid file, the last flag varying fastest.

    Raises:
      ValueError: the file does not say which runs, in one line.
    """
    try:
        content = tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"{path}: not a readable TOML file ({error})") from error
    grid, folder = content.get("grid"), content.get("folder")
    if not isinstance(folder, str) or not isinstance(grid, dict) or "config" not in grid:
        raise ValueError(f'{path}: expected folder = "..." and a [grid] with config = [...]')
    flags = {name: value if isinstance(value, list) else [value] for name, value in grid.items()}
    empty = [name for name, values in flags.items() if not values]
    if empty or "workdir" in flags:
        raise ValueError(
            f"{path}: {empty[0]} has no values" if empty else f"{path}: workdir is chosen by folder"
        )
    runs = [
        _run(pathlib.Path(folder), dict(zip(flags, values, strict=True)), flags)
        for values in itertools.product(*flags.values())
    ]
    if len({run.folder for run in runs}) < len(runs):
        raise ValueError(f"{path}: two combinations have the same name; a value is there twice")
    return runs


def _run(folder: pathlib.Path, values: dict[str, Any], flags: dict[str, list]) -> Run:
    varying = {name: value for name, value in values.items() if len(flags[name]) > 1}
    # hopper-quick-agent=iql-seed=1
    parts = [pathlib.Path(str(values["config"])).name.replace(".py", "")]
    parts += [
        f"{name.split('.')[-1]}={value}" for name, value in varying.items() if name != "config"
    ]
    workdir = folder / re.sub(r"[^\w.=-]+", "-", "-".join(parts))
    arguments = [f"--{name}={value}" for name, value in values.items()]
    return Run(varying, workdir, [*arguments, f"--workdir={workdir}"])


def command(run: Run) -> list[str]:
    """What trains a run on this machine."""
    return [sys.executable, "-m", "dawm_jax.main", *run.arguments]


def run_here(runs: list[Run], *, jobs: int, gpus: list[str]) -> int:
    """Trains on this machine, `jobs` at a time or one a GPU; the number that failed.

    SIGTERM, SIGINT and SIGUSR1 go on to the trainings, which save and stop.
    """
    free = list(gpus) or [""] * jobs
    waiting, running, failed = list(runs), {}, 0
    stopped = False

    def stop(number, frame):
        nonlocal stopped
        stopped = True
        for process in list(running):
            process.send_signal(signal.SIGTERM)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, stop)
    while running or (waiting and not stopped):
        while waiting and free and not stopped:
            run, gpu = waiting.pop(0), free.pop(0)
            running[_start(run, gpu)] = run, gpu
        for process in [p for p in running if p.poll() is not None]:
            run, gpu = running.pop(process)
            free.append(gpu)
            failed += process.returncode != 0
            print(f"{run.folder}: {'done' if process.returncode == 0 else 'failed, see log.txt'}")
        time.sleep(_POLL_SECONDS)
    return failed + len(waiting)


def _start(run: Run, gpu: str) -> subprocess.Popen:
    run.folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": gpu} if gpu else None
    print(shlex.join(command(run)))
    with (run.folder / "log.txt").open("a") as log:
        return subprocess.Popen(
            command(run),
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches them through `stop` alone
        )


def submit(runs: list[Run], options: list[str], *, dry_run: bool) -> int:
    """Submits a SLURM array over `runs`; the exit code of sbatch."""
    folder = runs[0].folder.parent
    # A file for each submission: a task reads its line only when it starts.
    path = folder / f"commands-{time.strftime('%Y%m%d-%H%M%S')}.txt"
    sbatch = ["sbatch", f"--array=0-{len(runs) - 1}", *options, "launch/slurm.sbatch", str(path)]
    print(shlex.join(sbatch))
    if dry_run:
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(shlex.join(run.arguments) + "\n" for run in runs))
    return subprocess.run(sbatch).returncode


def summary(runs: list[Run]) -> str:
    """A Markdown table: a row a run, with its final and best evaluation."""
    names = list(runs[0].values)
    lines = ["| " + " | ".join([*names, "score", "best score", "return", "training s"]) + " |"]
    lines.append("|---" * (len(names) + 4) + "|")
    for run in runs:
        cells = [str(value) for value in run.values.values()]
        lines.append("| " + " | ".join([*cells, *_scores(run)]) + " |")
    return "\n".join(lines) + "\n"


def _scores(run: Run) -> list[str]:
    results = run.results
    if results is None:
        state = "stopped or running" if (run.folder / "config.json").is_file() else "not started"
        return [state, "", "", ""]
    final, best = results["final"], results["best"]
    score = lambda point: f"{point['score_mean']:.1f}" if "score_mean" in point else ""
    interval = ""
    if final.get("score_interval"):
        interval = " ({:.1f} to {:.1f})".format(*final["score_interval"])
    seconds = sum(stage["seconds"] for stage in results["stages"].values())
    return [score(final) + interval, score(best), f"{final['return_mean']:.0f}", f"{seconds:.0f}"]


def main() -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("grid", type=pathlib.Path)
    parser.add_argument("--dry_run", action="store_true", help="print, do nothing")
    parser.add_argument("--jobs", type=int, default=1, help="trainings beside each other")
    parser.add_argument("--gpus", default="", help="GPUs to give one training each: 0,1")
    parser.add_argument("--slurm", action="store_true", help="submit an array")
    parser.add_argument("--summary", action="store_true", help="only write the table")
    arguments, options = parser.parse_known_args()
    if options and not arguments.slurm:
        parser.error(f"unknown argument {options[0]}")
    if arguments.jobs < 1:
        parser.error(f"--jobs: expected at least 1, got {arguments.jobs}")
    try:
        runs = read(arguments.grid.absolute())
    except ValueError as error:
        parser.exit(1, f"sweep: {error}\n")
    os.chdir(_ROOT)  # what the trainings' flags and folders are relative to
    todo = [run for run in runs if run.results is None]
    print(f"{len(runs)} runs, {len(runs) - len(todo)} done")
    failed = 0
    if todo and not arguments.summary:
        if arguments.slurm:
            return submit(todo, options, dry_run=arguments.dry_run)
        if arguments.dry_run:
            print("\n".join(shlex.join(command(run)) for run in todo))
            return 0
        gpus = [gpu for gpu in arguments.gpus.split(",") if gpu]
        failed = run_here(todo, jobs=arguments.jobs, gpus=gpus)
    table = summary(runs)
    print(table, end="")
    if not arguments.dry_run:
        runs[0].folder.parent.mkdir(parents=True, exist_ok=True)
        (runs[0].folder.parent / "summary.md").write_text(table)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
