"""A finished run's models as a source of data: windows written as a Minari dataset."""

import itertools
import logging
import math
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from dawm_jax.collect import tiers
from dawm_jax.config import schema
from dawm_jax.config.schema import Config
from dawm_jax.data.minari_writer import DatasetWriter
from dawm_jax.methods.base import METHODS
from dawm_jax.runtime import provenance, sharding
from dawm_jax.runtime.metrics import Progress
from dawm_jax.training.load_run import Generator, load_run
from dawm_jax.types import Transition, UserError

_log = logging.getLogger(__name__)

# Fields of `config.rollout` that a dataset may set for itself.
ROLLOUT_FIELDS = ("guidance", "sampling_steps", "temperature", "target_rule", "target_factor")


def generate(
    workdir: str | pathlib.Path,
    dataset_id: str,
    *,
    transitions: int,
    seed: int = 0,
    batch: int = 1_024,
    overwrite: bool = False,
    rollout: Mapping[str, Any] | None = None,
) -> None:
    """Writes `transitions` synthetic transitions of a run as a Minari dataset.

    Args:
      workdir: the run's folder.
      dataset_id: of the new dataset.
      transitions: written exactly; the last window may be cut for it.
      seed: of the starts and the noise.
      batch: windows generated together; part of what decides the numbers drawn.
      overwrite: replace a dataset of this id.
      rollout: fields of the run's `config.rollout` to change.

    Raises:
      UserError: no finished run with models, its data is not there or has changed, the
        dataset cannot be written, or the models generate numbers that are not finite.
    """
    run = load_run(workdir).with_rollout(**(rollout or {}))
    config = run.config
    if dataset_id == config.dataset or tiers.recipe_of(dataset_id):
        raise UserError(f"--dataset_id {dataset_id} names real data; choose another id")
    origin = _origin(config, transitions=transitions, seed=seed, batch=batch)
    with DatasetWriter(
        dataset_id,
        environment=config.environment,
        metadata=_metadata(config, origin),
        overwrite=overwrite,
        environment_kwargs=config.environment_arguments,
    ) as writer:
        replay = run.training_data()
        _log.info("compiling the generation of %s windows at a time", f"{batch:,}")
        generator = run.generator(replay, batch)
        generation, writing = _write_batches(
            generator, writer, transitions=transitions, key=jax.random.key(seed)
        )
        origin["transitions_per_second"] = {"generation": generation, "writing": writing}
    _log.info(
        "%s: %s transitions in %s episodes; generation %s/s, writing %s/s",
        dataset_id,
        *(f"{x:,.0f}" for x in (writer.steps, writer.episodes, generation, writing)),
    )


def _write_batches(
    generator: Generator,
    writer: DatasetWriter,
    *,
    transitions: int,
    key: jax.Array,
) -> tuple[float, float]:
    """Generates and writes until the dataset has `transitions` steps.

    The device generates the next batch while the host writes this one.

    Returns:
      Transitions a second of the generation and of the writing, each by itself.
    """
    progress = Progress("generate", transitions, "transitions")
    # The time of a batch may include the writing of the one before; that of the quickest batch,
    # such as the first, does not.
    seconds_each, writing_seconds = math.inf, 0.0
    dispatched = time.monotonic()
    pending = generator(jax.random.fold_in(key, 0))
    for index in itertools.count(1):
        windows, valid = jax.device_get(pending)
        ready = time.monotonic()
        count = int(valid.sum())
        seconds_each = min(seconds_each, (ready - dispatched) / count)
        enough = writer.steps + count >= transitions
        if not enough:
            dispatched = ready
            pending = generator(jax.random.fold_in(key, index))
        write_windows(writer, windows, valid, limit=transitions)
        writing_seconds += time.monotonic() - ready
        progress.report(writer.steps, {})
        if enough:
            break
    progress.close()
    return 1 / seconds_each, writer.steps / writing_seconds


def write_windows(
    writer: DatasetWriter, windows: Transition, valid: np.ndarray, *, limit: int
) -> None:
    """Adds each window as an episode, until the writer holds `limit` steps.

    Args:
      writer: of the dataset.
      windows: [B, H, ...] on the host, in the environment's units.
      valid: [B, H] bool: steps up to and including the first generated termination.
      limit: the last episode is cut to it.
    """
    for window, length in enumerate(valid.sum(axis=1)):
        steps = min(int(length), limit - writer.steps)
        if steps == 0:
            return
        episode = jax.tree.map(lambda leaf, w=window, n=steps: np.asarray(leaf[w, :n]), windows)
        terminations = episode.terminated.astype(bool)
        truncations = np.zeros_like(terminations)
        truncations[-1] = not terminations[-1]
        observations = np.concatenate([episode.observation, episode.next_observation[-1:]])
        writer.add(observations, episode.action, episode.reward, terminations, truncations)


def _origin(config: Config, **settings: int) -> dict[str, Any]:
    """What made the data: all that is needed to make it with the same numbers."""
    values = schema.to_dict(config)
    return {
        "trained_on": config.dataset,
        "generation": {**settings, **{name: values["rollout"][name] for name in ROLLOUT_FIELDS}},
        "config": values,
        "commit": provenance.commit(),
        "versions": provenance.versions(),
        "device": sharding.describe_devices(),
    }


def _metadata(config: Config, origin: dict[str, Any]) -> dict[str, Any]:
    """In Minari's fields; `origin` may be completed later."""
    return {
        "author": ["dawm_jax"],
        "algorithm_name": f"{METHODS.get(config.method).label}, by dawm_jax",
        "description": (
            f"Synthetic: windows of up to {config.horizon} steps, each an episode, generated "
            f"from states of {config.dataset} by models trained on it"
        ),
        "dawm_jax": origin,
    }
