"""What a run's folder holds before the run starts: finished, stopped, damaged, or on other data."""

import dataclasses
import logging
import pathlib

from dawm_jax.config.schema import Config
from dawm_jax.methods.base import METHODS
from dawm_jax.runtime import checkpoint, distributed, results, run_folder
from dawm_jax.runtime.metrics import MetricsFile
from dawm_jax.runtime.results import Results
from dawm_jax.runtime.run_folder import DatasetRecord
from dawm_jax.training import artifacts

_log = logging.getLogger(__name__)

_FORMER = "results_former.json"


@dataclasses.dataclass(frozen=True)
class Earlier:
    """What earlier calls left in a run's folder.

    Attributes:
      results: of a finished run; None without results.json, and in all processes but the first.
      is_finished: whether nothing is left to do.
    """

    results: Results | None
    is_finished: bool


def look_up(
    config: Config, workdir: pathlib.Path, log: MetricsFile, dataset: DatasetRecord
) -> Earlier:
    """Finds out what an earlier call left, and checks that it belongs to the data at hand.

    Results of a finished run stay as they are. If a finished run lacks a last checkpoint, its
    results.json is renamed: the run goes on from the checkpoint before.

    Args:
      config: the run's settings, which are those of the folder.
      workdir: the run's folder, owned by this process.
      log: its metrics.jsonl.
      dataset: the data at hand.

    Raises:
      UserError: the data are not what the run was trained on, results.json holds what
        metrics.jsonl does not, or metrics.jsonl is damaged.
    """
    if not distributed.is_first():
        return Earlier(None, is_finished=False)
    knows_data = run_folder.check_dataset(workdir, dataset)
    found = artifacts.read_results(workdir)
    if found is None:
        log.check()
        return Earlier(None, is_finished=False)
    artifacts.check_recorded(found, workdir, log)
    log.check()
    has_checkpoints = (workdir / "checkpoints").is_dir()
    if has_checkpoints and (lacks := _what_lacks(config, workdir)):
        _log.warning("%s: the run goes on from there; its former results are in %s", lacks, _FORMER)
        (workdir / results.FILE).replace(workdir / _FORMER)
        return Earlier(None, is_finished=False)
    # Without a record of the data, the statistics in the checkpoints are compared.
    return Earlier(found, is_finished=knows_data or not has_checkpoints)


def last_steps(config: Config) -> dict[str, int]:
    """Number of steps of every stage of a run that has checkpoints."""
    method = METHODS.get(config.method)
    trained = method.sections if method.trains_models(config) else {}
    steps = {stage: config.fit_settings(name).steps for stage, name in trained.items()}
    if method.plans:
        return steps
    steps["agent"] = config.training.updates
    return {**steps, "online": config.online.steps} if config.online.steps else steps


def _what_lacks(config: Config, workdir: pathlib.Path) -> str | None:
    """The first stage without its last checkpoint, in words; None if all are complete."""
    for stage, total in last_steps(config).items():
        folder = workdir / "checkpoints" / stage
        step = checkpoint.newest_step(folder)
        if step is None or step < total:
            return f"the newest checkpoint of {stage} is at {step or 0:,} of {total:,}"
        if found := checkpoint.damage(folder / str(step)):
            return f"{folder}/{step} is damaged ({found})"
    return None
