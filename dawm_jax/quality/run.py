"""Evaluations from beginning to end: load, measure, write the files."""

import dataclasses
import json
import logging
import pathlib
from collections.abc import Callable

from dawm_jax.data.dataset import OfflineDataset
from dawm_jax.data.load import load_dataset
from dawm_jax.quality import evaluate, figures, generation, report, sampler_ablation
from dawm_jax.quality import reference as real_data
from dawm_jax.quality.evaluate import Evaluation
from dawm_jax.quality.generation import GeneratingRun
from dawm_jax.quality.reference import Reference, SampleSizes
from dawm_jax.quality.sampler_ablation import Grid
from dawm_jax.quality.types import AblationReport, About, QualityReport, SyntheticMeasures
from dawm_jax.quality.windows import dataset_windows
from dawm_jax.runtime import provenance
from dawm_jax.runtime.markdown import shorten_path
from dawm_jax.types import UserError

_log = logging.getLogger(__name__)
# Share of the real data's episodes that is held out if there is no run that says it.
_HELD_OUT_FRACTION = 0.05


@dataclasses.dataclass(frozen=True)
class Request:
    """What to evaluate.

    Attributes:
      out: folder to write to.
      workdir: a finished run. Its data are the real data; without `dataset_id`, what it
        generates is evaluated.
      dataset_id: name of the dataset to evaluate.
      reference: name of the real data, without `workdir`.
      environment: Gymnasium id of the simulator, which is made without keyword arguments; None
        takes the run's, with its `environment_kwargs`, or the real data's.
      transitions: number of transitions to evaluate.
      seed: seed of samples and generation.
      ablation: measures several values of each sampler setting instead of the run's own.
      sizes: sizes of the samples.
      grid: values of the ablation.
    """

    out: pathlib.Path
    workdir: str | None = None
    dataset_id: str | None = None
    reference: str | None = None
    environment: str | None = None
    transitions: int = 14_336
    seed: int = 0
    ablation: bool = False
    sizes: SampleSizes = dataclasses.field(default_factory=SampleSizes)
    grid: Grid = dataclasses.field(default_factory=Grid)


def make_report(request: Request) -> str:
    """Evaluates, writes a JSON, a Markdown and a PNG file to `request.out`, returns the Markdown.

    Raises:
      UserError: the run, a dataset or the folder cannot be used.
    """
    run = _load_run(request)
    _make_folder(request.out)
    real = load_dataset(run.dataset if run else str(request.reference))
    if run:
        run.check_data(real)
    other = load_dataset(request.dataset_id) if request.dataset_id else None
    environment = _environment(request, run, real, other)
    _log.info("replaying real steps of %s in %s", real.name, environment)
    reference = real_data.prepare(
        real,
        environment,
        # Those of the run are keyword arguments of its own environment.
        environment_kwargs=run.environment_kwargs if run and not request.environment else None,
        held_out_fraction=run.held_out_fraction if run else _HELD_OUT_FRACTION,
        seed=request.seed,
        sizes=request.sizes,
    )
    if other:
        return _report_dataset(request, reference, other)
    if run is None:
        raise UserError("nothing to evaluate: name a run or a dataset")
    return (_report_ablation if request.ablation else _report_run)(request, reference, run)


def _report_dataset(request: Request, reference: Reference, dataset: OfflineDataset) -> str:
    windows = dataset_windows(dataset, limit=request.transitions, seed=request.seed)
    evaluation = evaluate.evaluate_windows(windows, reference)
    about = _about(request, reference, shorten_path(dataset.name), None)
    return _write_quality(request.out, about, reference, evaluation)


def _report_run(request: Request, reference: Reference, run: GeneratingRun) -> str:
    evaluation = evaluate.evaluate_run(
        run, reference, num_windows=_num_windows(request, run), seed=request.seed
    )
    return _write_quality(request.out, _about_run(request, reference, run), reference, evaluation)


def _report_ablation(request: Request, reference: Reference, run: GeneratingRun) -> str:
    num_windows = _num_windows(request, run)

    def measure(run: GeneratingRun, *, seed: int) -> SyntheticMeasures:
        return evaluate.evaluate_run(run, reference, num_windows=num_windows, seed=seed).measures

    repeats, series = sampler_ablation.run_ablation(
        run, measure, grid=request.grid, seed=request.seed
    )
    about = _about_run(request, reference, run)
    return write_ablation(request.out, AblationReport(about, num_windows, repeats, series))


def _num_windows(request: Request, run: GeneratingRun) -> int:
    return -(-request.transitions // run.horizon)


def _about_run(request: Request, reference: Reference, run: GeneratingRun) -> About:
    name = f"what a run on {shorten_path(reference.dataset.name)} generates"
    return _about(request, reference, name, run)


def _about(
    request: Request, reference: Reference, synthetic: str, run: GeneratingRun | None
) -> About:
    return About(
        synthetic=synthetic,
        reference=shorten_path(reference.dataset.name),
        environment=reference.environment,
        commit=provenance.commit(),
        versions=provenance.versions(),
        seed=request.seed,
        notes=reference.notes,
        settings=run.settings if run else None,
    )


def _load_run(request: Request) -> GeneratingRun | None:
    if request.workdir is None:
        return None
    run = generation.load(request.workdir)
    if not run.has_models and request.dataset_id is None:
        raise UserError(
            f"{request.workdir} was trained on real data only: it has no models to evaluate; "
            "name a dataset with --dataset_id"
        )
    return run


def _environment(
    request: Request,
    run: GeneratingRun | None,
    real: OfflineDataset,
    other: OfflineDataset | None,
) -> str:
    """The simulator's Gymnasium id.

    Raises:
      UserError: the datasets have other dimensions than each other, or none is known.
    """
    sizes = lambda dataset: (dataset.observations.shape[1], dataset.actions.shape[1])
    if other and sizes(other) != sizes(real):
        raise UserError(
            f"{other.name} has {sizes(other)} observation and action dimensions, "
            f"{real.name} {sizes(real)}: evaluate it against data of its own environment"
        )
    environment = request.environment or (run.environment if run else real.environment)
    if environment is None:
        raise UserError(
            f"{real.name} does not say which environment it is from: name it, for instance "
            "--environment=Hopper-v5"
        )
    return environment


# --- files --------------------------------------------------------------------------------


def read_quality(path: pathlib.Path) -> QualityReport:
    """The report in a quality.json.

    Raises:
      UserError: the file does not hold a report.
    """
    return QualityReport.from_json(json.loads(path.read_text()))


def write_ablation(out: pathlib.Path, ablation: AblationReport) -> str:
    """Writes ablation.json, .md and .png to the folder `out`; returns the Markdown."""
    text = report.ablation_markdown(ablation)
    _write_files(
        out / "ablation",
        ablation.to_json(),
        text,
        lambda path: figures.plot_ablation(path, ablation),
    )
    return text


def _write_quality(
    out: pathlib.Path, about: About, reference: Reference, evaluation: Evaluation
) -> str:
    """Writes quality.json, .md and .png to the folder `out`; returns the Markdown."""
    quality = QualityReport(about, real=reference.measures, synthetic=evaluation.measures)
    text = report.quality_markdown(quality)

    def plot(path: pathlib.Path) -> None:
        figures.plot_quality(
            path,
            quality,
            distances=evaluation.distances,
            real_distances=reference.held_out_distances,
            returns=evaluation.returns,
        )

    _write_files(out / "quality", quality.to_json(), text, plot)
    return text


def _make_folder(path: pathlib.Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--out {path} cannot be written ({error.strerror}); choose another folder"
        ) from error


def _write_files(
    stem: pathlib.Path, content: object, text: str, plot: Callable[[pathlib.Path], None]
) -> None:
    """Writes stem.png, stem.md and stem.json, each of which appears only when complete."""
    with provenance.whole_file(stem.with_suffix(".png")) as path:
        plot(path)
    provenance.write_atomically(stem.with_suffix(".md"), text)
    rounded = json.dumps(_rounded(content), indent=2)
    provenance.write_atomically(stem.with_suffix(".json"), rounded + "\n")


def _rounded(value: object) -> object:
    """JSON with floats of six significant digits: more digits are not reproducible."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
