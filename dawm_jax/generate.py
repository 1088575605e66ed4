"""Synthetic data of a finished run as a Minari dataset, for any offline algorithm.

Draws states, actions and returns-to-go uniformly from the steps that the run's models were
trained on, generates a window from each as in the training of its agents, and writes every
window as one episode in the environment's units: it ends with the first generated
termination, or is truncated after its last step.

Examples:
  python -m dawm_jax.generate --workdir=runs/a --dataset_id=local/hopper/synthetic-v0
  python -m dawm_jax.generate --workdir=runs/a --dataset_id=local/hopper/synthetic-v0 \\
      --transitions=5000000 --seed=1 --guidance=2.0 --overwrite

The dataset appears under MINARI_DATASETS_PATH (default ~/.minari/datasets) when it is
complete: minari.load_dataset("local/hopper/synthetic-v0"), or --config.dataset of a run.
The same flags give the same episodes. What made them is in its metadata, under "dawm_jax".
"""

import itertools
import json
import math
import pathlib
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import flags

from dawm_jax import cli

if TYPE_CHECKING:
    import jax

    from dawm_jax.export import DatasetWriter
    from dawm_jax.types import Transition

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run", required=True)
_DATASET_ID = flags.DEFINE_string(
    "dataset_id", None, "Minari id of the new dataset: local/hopper/synthetic-v0", required=True
)
_TRANSITIONS = flags.DEFINE_integer("transitions", 1_000_000, "To write", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Of the starts and the noise")
_BATCH = flags.DEFINE_integer("batch", 1_024, "Windows generated together", lower_bound=1)
_OVERWRITE = flags.DEFINE_boolean("overwrite", False, "Replace a dataset of this id")
# Unset ones are the run's own; the names are those of config.rollout.
_ROLLOUT = (
    flags.DEFINE_float("guidance", None, "Instead of the run's config.rollout.guidance"),
    flags.DEFINE_integer("sampling_steps", None, "Instead of config.rollout.sampling_steps"),
    flags.DEFINE_float("temperature", None, "Instead of config.rollout.temperature"),
    flags.DEFINE_string("target_rule", None, "Instead of config.rollout.target_rule"),
    flags.DEFINE_float("target_factor", None, "Instead of config.rollout.target_factor"),
)


def main() -> None:
    """Generates what the flags ask for; see the module's text."""
    generate(
        _WORKDIR.value,
        _DATASET_ID.value,
        transitions=_TRANSITIONS.value,
        seed=_SEED.value,
        batch=_BATCH.value,
        overwrite=_OVERWRITE.value,
        rollout={flag.name: flag.value for flag in _ROLLOUT if flag.value is not None},
    )


def run() -> None:
    """Entry point of the console script."""
    cli.run(main, __doc__)


def generate(
    workdir: str | pathlib.Path,
    dataset_id: str,
    *,
    transitions: int,
    seed: int = 0,
    batch: int = 1_024,
    overwrite: bool = False,
    rollout: dict[str, Any] | None = None,
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
    import jax

    from dawm_jax import export, loading, tiers
    from dawm_jax.types import UserError

    learnt = loading.load_run(workdir).with_rollout(**(rollout or {}))
    config = learnt.config
    if dataset_id == config.dataset or tiers.recipe_of(dataset_id):
        raise UserError(f"--dataset_id {dataset_id} names real data; choose another id")
    provenance = _provenance(config, transitions=transitions, seed=seed, batch=batch)
    with export.DatasetWriter(
        dataset_id,
        environment=config.environment,
        metadata=_metadata(config, provenance),
        overwrite=overwrite,
    ) as writer:
        replay = _training_data(learnt)
        cli.log.info("compiling the generation of %s windows at a time", f"{batch:,}")
        generator = learnt.generator(replay, batch)
        generation, writing = _write_batches(
            generator, writer, transitions=transitions, key=jax.random.key(seed)
        )
        provenance["transitions_per_second"] = {"generation": generation, "writing": writing}
    cli.log.info(
        "%s: %s transitions in %s episodes; generation %s/s, writing %s/s",
        dataset_id,
        *(f"{x:,.0f}" for x in (writer.steps, writer.episodes, generation, writing)),
    )


def _training_data(learnt):
    """The run's data on the device, which must still be what its models were trained on."""
    import jax

    from dawm_jax import assembly, data, tiers
    from dawm_jax.types import UserError

    tiers.ensure(learnt.config.dataset)
    dataset = data.load_dataset(learnt.config.dataset)
    cli.log.info("%s", data.describe(dataset))
    replay, statistics = assembly.build_replay(learnt.config, dataset)
    same = lambda a, b: np.shape(a) == np.shape(b) and np.allclose(a, b, rtol=1e-4, atol=1e-6)
    if not jax.tree.all(jax.tree.map(same, statistics, learnt.statistics)):
        raise UserError(
            f"dataset {dataset.name} is not what the run was trained on: its statistics differ; "
            "restore it, or train a new run"
        )
    return replay


def _write_batches(
    generator: Callable[["jax.Array"], tuple["Transition", "jax.Array"]],
    writer: "DatasetWriter",
    *,
    transitions: int,
    key: "jax.Array",
) -> tuple[float, float]:
    """Generates and writes until there are enough.

    The device generates the next batch while this one is written.

    Returns:
      Transitions a second of the generation and of the writing, each by itself.
    """
    import jax

    from dawm_jax.metrics import Progress

    progress = Progress("generate", transitions, "transitions")
    # Later batches may have waited for the writing: the quickest, such as the first, did not.
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
    writer: "DatasetWriter", windows: "Transition", valid: np.ndarray, *, limit: int
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
        observation, action, reward, terminated, following = (
            np.asarray(field[window, :steps]) for field in windows
        )
        terminations = terminated.astype(bool)
        truncations = np.zeros_like(terminations)
        truncations[-1] = not terminations[-1]
        observations = np.concatenate([observation, following[-1:]])
        writer.add(observations, action, reward, terminations, truncations)


def _provenance(config: Any, **settings: Any) -> dict[str, Any]:
    """What made the data: everything that is needed to make it again."""
    from dawm_jax import parallel, results

    return {
        "trained_on": config.dataset,
        "generation": {
            **settings,
            **{flag.name: config.rollout[flag.name] for flag in _ROLLOUT},
        },
        "config": json.loads(config.to_json()),
        "commit": results.commit(),
        "versions": results.versions(),
        "device": parallel.describe_devices(),
    }


def _metadata(config: Any, provenance: dict[str, Any]) -> dict[str, Any]:
    """In Minari's fields; `provenance` may be completed later."""
    return {
        "author": ["dawm_jax"],
        "algorithm_name": "DAWM: diffusion world model and inverse dynamics model",
        "description": (
            f"Synthetic: windows of up to {config.horizon} steps, each an episode, generated "
            f"from states of {config.dataset} by models trained on it"
        ),
        "dawm_jax": provenance,
    }


if __name__ == "__main__":
    run()
