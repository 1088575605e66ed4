"""What scripts and notebooks call; `import dawm_jax` shows these functions."""

import pathlib

import ml_collections
import numpy as np

from dawm_jax.config import by_name, schema
from dawm_jax.config.schema import Config
from dawm_jax.envs import rollouts
from dawm_jax.runtime import cli
from dawm_jax.training import train as training
from dawm_jax.training.load_run import LoadedRun, load_run
from dawm_jax.types import UserError


def get_config(name: str) -> ml_collections.ConfigDict:
    """The configuration of a task that ships with the package, to be changed and trained.

    Args:
      name: "hopper" for the full protocol, or with a variant: "hopper:quick".

    Raises:
      ValueError: an unknown task or variant.
    """
    return by_name.get_config(name)


def train(config: ml_collections.ConfigDict | Config, workdir: str | pathlib.Path) -> LoadedRun:
    """Trains a configuration, resuming what `workdir` already holds, and loads the result.

    Progress is logged as by the command; results.json in `workdir` has the scores.

    Args:
      config: as `get_config` or a configuration file makes it.
      workdir: the run's folder, made when absent.

    Raises:
      UserError: a mistake in the settings, the data or the folder.
    """
    cli.set_up_logging()
    typed = config if isinstance(config, Config) else schema.parse(config)
    workdir = pathlib.Path(workdir).expanduser()
    training.run(typed, workdir)
    return load_run(workdir)


def evaluate(
    run: LoadedRun, *, episodes: int = 10, seed: int = 10_000, environment: str = ""
) -> np.ndarray:
    """Returns of whole episodes of every seed's agent.

    Args:
      run: a loaded run.
      episodes: of each seed.
      seed: episode i resets with seed + i.
      environment: Gymnasium id; "" takes the run's.

    Returns:
      Undiscounted returns, [seeds, episodes]. `envs.scores.normalised_score` scores them.

    Raises:
      UserError: `episodes` is below 1, or the environment cannot be made.
    """
    if episodes < 1:
        raise UserError(f"episodes: expected at least 1, got {episodes}")
    num_seeds = run.config.num_seeds

    def policy(observations: np.ndarray, /) -> np.ndarray:
        return np.stack([run.policy(observations[i], seed=i) for i in range(num_seeds)])

    return rollouts.run_episodes(
        policy,
        environment or run.config.environment,
        num_policies=num_seeds,
        num_episodes=episodes,
        seed=seed,
    )
