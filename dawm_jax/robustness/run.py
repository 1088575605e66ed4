"""A robustness report from beginning to end: load, play, write the files."""

import dataclasses
import logging
from collections.abc import Sequence

import numpy as np

from dawm_jax.report import runs
from dawm_jax.report.runs import Run
from dawm_jax.robustness import curves as curves_lib
from dawm_jax.robustness import figures, play, report, store, sweeps
from dawm_jax.robustness.play import Policies
from dawm_jax.robustness.store import EpisodeProtocol, Record
from dawm_jax.robustness.sweeps import Level, Sweep
from dawm_jax.runtime import paths, provenance
from dawm_jax.runtime.markdown import shorten_path
from dawm_jax.runtime.metrics import Progress
from dawm_jax.runtime.stopping import Interrupted, StopFlag
from dawm_jax.training.load_run import LoadedRun, load_run
from dawm_jax.types import UserError

_log = logging.getLogger(__name__)
_REPORTS = 20  # lines of progress of a run


@dataclasses.dataclass(frozen=True)
class Request:
    """What to evaluate.

    Attributes:
      folders: runs, as `report.runs.load` takes them.
      out: folder to write to.
      sweeps: the changes.
      protocol: of the episodes.
    """

    folders: tuple[str, ...]
    out: str
    sweeps: tuple[Sweep, ...]
    protocol: EpisodeProtocol


def make_report(request: Request, stop: StopFlag) -> str:
    """Plays what robustness.json lacks, writes robustness.json, .md and .png, returns the Markdown.

    The file keeps every level that was ever played with its protocol; table and figure show the
    runs and changes that were asked for.

    Args:
      request: what to evaluate.
      stop: looked at before every time step.

    Raises:
      UserError: a run without a policy, an environment that cannot be changed, or a folder that
        cannot be written.
      Interrupted: `stop` was set; the runs that were complete are kept.
    """
    pooled = runs.pooled(runs.latest(runs.load(request.folders)))
    found = [run for members in pooled.values() for run in members]
    for run in found:
        if run.results.updates == 0:
            raise UserError(
                f"{run.path} has no policy: {run.label} plans every action, which takes a "
                "diffusion each; leave it out"
            )
    levels = sweeps.distinct_levels(request.sweeps)
    policies = {run: _policies(load_run(run.path)) for run in found}
    for own in policies.values():
        play.check(own, levels)
    path = paths.make_folder(request.out, "--out") / "robustness.json"
    records = store.read(path, request.protocol)
    digests = {run: store.digest_of(run.path) for run in found}
    for run, own in policies.items():
        record = records.get(digests[run]) or _empty(run)
        missing = [level for level in levels if level.key not in record.returns]
        if missing:
            fresh = _play(run, own, missing, request.protocol, stop)
            records[digests[run]] = dataclasses.replace(record, returns={**record.returns, **fresh})
            store.write(path, request.protocol, records)
    returns = {run: records[digests[run]].returns for run in found}
    drawn = curves_lib.curves(found, returns, request.sweeps)
    text = report.report(drawn, request.protocol)
    provenance.write_atomically(path.with_suffix(".md"), text)
    with provenance.whole_file(path.with_suffix(".png")) as part:
        figures.plot(drawn, part)
    return text


def _empty(run: Run) -> Record:
    return Record(
        run=shorten_path(str(run.path)),
        label=run.label,
        environment=run.results.environment,
        dataset=shorten_path(run.results.dataset),
        returns={},
    )


def _policies(run: LoadedRun) -> Policies:
    config, normalizer = run.config, run.normalizer
    # The normalizer's scale of a constant column is 1, its standard deviation 0.
    varies = normalizer.observation_low < normalizer.observation_high
    std = np.where(varies, normalizer.observation_std, 0.0).astype(np.float64)
    return Policies(
        act=run.act,
        num_seeds=config.num_seeds,
        root_seed=config.seed,
        environment=config.environment,
        environment_kwargs=config.environment_arguments,
        max_steps=config.evaluation.max_steps,
        observation_std=std,
        action_low=np.asarray(normalizer.action_low),
        action_high=np.asarray(normalizer.action_high),
    )


def _play(
    run: Run, policies: Policies, levels: Sequence[Level], protocol: EpisodeProtocol, stop: StopFlag
) -> dict[str, np.ndarray]:
    """Returns [seeds, episodes] of each level by its key."""
    total = len(levels) * policies.num_seeds * protocol.episodes
    _log.info("%s: %s episodes of %s", shorten_path(str(run.path)), f"{total:,}", run.label)
    progress: Progress | None = None

    def show(step: int, limit: int, running: int, /) -> None:
        nonlocal progress
        progress = progress or Progress("episodes", limit, "step")
        if step % max(1, limit // _REPORTS) == 0 or not running:
            progress.report(step, {"running": running})

    try:
        returns = play.play(
            policies,
            levels,
            episodes=protocol.episodes,
            seed=protocol.seed,
            stop=stop,
            report=show,
        )
    except Interrupted as interruption:
        raise Interrupted(f"{interruption} of {shorten_path(str(run.path))}") from interruption
    finally:
        if progress is not None:
            progress.close()
    return {level.key: own for level, own in zip(levels, returns, strict=True)}
