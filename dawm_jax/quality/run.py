"""A quality report from beginning to end: load, judge, write the files."""

import functools
import json
import logging
import os
import pathlib
from typing import Any, NamedTuple

from dawm_jax.collect import tiers
from dawm_jax.data import dataset as data
from dawm_jax.data.dataset import OfflineDataset
from dawm_jax.quality import evaluate as judge
from dawm_jax.quality import report as quality_report
from dawm_jax.quality import sampler_ablation as study
from dawm_jax.training import load_run as loading
from dawm_jax.training import results
from dawm_jax.training.load_run import LoadedRun
from dawm_jax.types import UserError

_log = logging.getLogger(__name__)
_HELD_OUT = 0.05  # share of the reference's episodes, where no run says what it held out


class Request(NamedTuple):
    """What to judge.

    Attributes:
      workdir: a finished run: its data is the reference, and without `dataset_id` what it
        generates is judged.
      dataset_id: judge this dataset.
      reference: real data, where there is no `workdir`.
      environment: Gymnasium id of the simulator; by default the run's or the reference's.
      out: folder to write to.
      transitions: how many to judge.
      seed: of samples and generation.
      study: vary the settings of the generation instead.
    """

    workdir: str | None
    dataset_id: str | None
    reference: str | None
    environment: str | None
    out: pathlib.Path
    transitions: int
    seed: int
    study: bool


def make_report(request: Request) -> str:
    """Measures, writes the files to `request.out`, and returns the Markdown.

    Raises:
      UserError: the run, a dataset or the folder cannot be used.
    """
    run = _load_run(request)
    _make_folder(request.out)
    source = run.config.dataset if run else str(request.reference)
    tiers.ensure(source)
    real = data.load_dataset(source)
    other = data.load_dataset(request.dataset_id) if request.dataset_id else None
    environment = _environment(request, run, real, other)
    _log.info("replaying real steps of %s in %s", real.name, environment)
    reference = judge.prepare(
        real,
        environment,
        held_out_fraction=run.config.held_out_fraction if run else _HELD_OUT,
        seed=request.seed,
    )
    numbers: dict[str, Any] = {
        "judged": _public(other.name) if other else f"what a run on {_public(real.name)} generates",
        "reference": _public(real.name),
        "environment": environment,
        "commit": results.commit(),
        "versions": results.versions(),
        "seed": request.seed,
        "notes": reference.notes,
    }
    if other:
        windows = judge.dataset_windows(other, limit=request.transitions, seed=request.seed)
        measured = judge.measure(windows, reference)
    elif run is None:
        raise UserError("nothing to judge: name a run or a dataset")
    else:
        sizes = {"num_windows": -(-request.transitions // run.config.horizon), "seed": request.seed}
        if request.study:
            numbers |= study.run_study(run, reference, **sizes)
            draw = functools.partial(quality_report.plot_study, study=numbers)
            return _write(request.out, "study", numbers, quality_report.study_markdown, draw)
        numbers["settings"] = run.config.rollout.to_dict()
        measured = judge.measure_run(run, reference, **sizes)
    numbers |= {"floor": reference.floor, **measured.numbers}
    draw = functools.partial(quality_report.plot_quality, numbers=numbers, arrays=measured.arrays)
    return _write(request.out, "quality", numbers, quality_report.quality_markdown, draw)


def _load_run(request: Request) -> LoadedRun | None:
    if request.workdir is None:
        return None
    run = loading.load_run(request.workdir)
    if run.models is None and request.dataset_id is None:
        raise UserError(
            f"{request.workdir} was trained on real data only: it has no models to judge; "
            "name a dataset with --dataset_id"
        )
    return run


def _environment(
    request: Request, run: LoadedRun | None, real: OfflineDataset, other: OfflineDataset | None
) -> str:
    """The simulator's Gymnasium id; refuses datasets that do not fit each other."""
    sizes = lambda dataset: (dataset.observations.shape[1], dataset.actions.shape[1])
    if other and sizes(other) != sizes(real):
        raise UserError(
            f"{other.name} has {sizes(other)} observation and action dimensions, "
            f"{real.name} {sizes(real)}: judge it against data of its own environment"
        )
    environment = request.environment or (run.config.environment if run else real.environment)
    if environment is None:
        raise UserError(
            f"{real.name} does not say which environment it is from: name it, for instance "
            "--environment=Hopper-v5"
        )
    return environment


def _public(name: str) -> str:
    """A dataset's name without the folders of whoever ran this."""
    is_path = name.startswith(os.sep) or name.endswith((".hdf5", ".h5"))
    return pathlib.Path(name).name if is_path else name


# --- files --------------------------------------------------------------------------------


def _make_folder(path: pathlib.Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--out {path} cannot be written ({error.strerror}); choose another folder"
        ) from error


def _write(out: pathlib.Path, name: str, numbers: dict[str, Any], describe, draw) -> str:
    """Writes out/name.json, .md and .png, each whole or not at all; returns the Markdown."""
    text = describe(numbers)
    temporary = out / f".{name}.png"
    draw(temporary)
    temporary.replace(out / f"{name}.png")
    results.write_atomically(out / f"{name}.md", text)
    rounded = json.dumps(_rounded(numbers), indent=2)
    results.write_atomically(out / f"{name}.json", rounded + "\n")
    return text


def _rounded(value: Any) -> Any:
    """Floats to six digits: more would only be noise in a file under version control."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
