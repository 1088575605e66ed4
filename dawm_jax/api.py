"""What scripts and notebooks call; `import dawm_jax` shows these functions."""

import logging
import pathlib
from collections.abc import Mapping

import ml_collections
import numpy as np
from numpy.typing import ArrayLike

from dawm_jax.config import by_name, schema
from dawm_jax.config.schema import Config
from dawm_jax.data.dataset import OfflineDataset
from dawm_jax.data.load import dataset_from_mapping
from dawm_jax.envs import rollouts
from dawm_jax.runtime import backend, cli, paths
from dawm_jax.training import train as training
from dawm_jax.training.load_run import LoadedRun, load_run
from dawm_jax.types import UserError


def get_config(name: str) -> ml_collections.ConfigDict:
    """The configuration of a task of the package or of a run, to be changed and trained.

    Args:
      name: "hopper" for full size, or with a variant: "hopper:quick"; or "FOLDER/config.json" of a
        run.

    Raises:
      ValueError: an unknown task or variant.
      UserError: config.json is missing or damaged, or this version refuses one of its settings.
    """
    return by_name.get_config(name)


def train(
    config: ml_collections.ConfigDict | Config,
    workdir: str | pathlib.Path,
    dataset: OfflineDataset | Mapping[str, ArrayLike] | None = None,
    *,
    models_from: str | pathlib.Path | None = None,
) -> LoadedRun:
    """Trains a configuration, resuming what `workdir` already holds, and loads the result.

    Progress is logged as by the command; results.json in `workdir` has the scores.

    Args:
      config: as `get_config` or a configuration file makes it.
      workdir: the run's folder, made when absent.
      dataset: what to train on in place of `config.dataset`: what `dataset_from_arrays` or
        `load_dataset` returns, or a dictionary of `dataset_from_arrays`'s arrays. The run stores
        its name alone: a call that resumes the run, and `load_run` before it generates, need
        arrays again.
      models_from: folder of a run whose trained models are copied; they must be those that this
        run would train.

    Raises:
      UserError: a mistake in the settings, the data or the folder.
      Interrupted: a signal asked to stop; the same call resumes.
    """
    # The caller's own handlers show this package's lines as they show others.
    if not logging.getLogger().handlers:
        cli.set_up_logging()
    typed = config if isinstance(config, Config) else schema.parse(config)
    backend.check()
    workdir = paths.expand(str(workdir), "workdir")
    if isinstance(dataset, Mapping):
        dataset = dataset_from_mapping(dataset)
    if dataset is not None:
        typed = schema.replace(typed, {"dataset": dataset.name})
    source = None if models_from is None else paths.expand(str(models_from), "models_from")
    training.run(typed, workdir, dataset, models_from=source)
    return load_run(workdir, dataset)


def evaluate(
    run: LoadedRun, *, episodes: int = 10, seed: int = 10_000, environment: str = ""
) -> np.ndarray:
    """Returns of whole episodes of every seed's agent.

    Args:
      run: a loaded run.
      episodes: of each seed.
      seed: of the start states; each episode of each seed's agent has its own.
      environment: Gymnasium id; "" takes the run's.

    Returns:
      Undiscounted returns, [seeds, episodes]. `envs.scores.normalised_score` scores them.

    Raises:
      UserError: `episodes` is below 1 or `seed` below 0, or the environment cannot be made.
    """
    if episodes < 1:
        raise UserError(f"episodes: expected at least 1, got {episodes}")
    if seed < 0:
        raise UserError(f"seed: expected at least 0, got {seed}")
    num_seeds = run.config.num_seeds
    outcome = rollouts.run_episodes(
        run.in_episodes(),
        environment or run.config.environment,
        seeds=rollouts.reset_seeds(
            seed, run.config.seed, 0, num_policies=num_seeds, num_episodes=episodes
        ),
        # Those of the run are keyword arguments of its own environment.
        environment_kwargs=None if environment else run.config.environment_arguments,
        max_steps=run.config.evaluation.max_steps,
    )
    return outcome.returns
