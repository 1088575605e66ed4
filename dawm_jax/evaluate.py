"""Episodes in Gymnasium with the deterministic policy, and D4RL's normalised score."""

from collections.abc import Callable
from typing import Any

import numpy as np

from dawm_jax.types import UserError, first_line, one_line

# Returns of a random and an expert policy, by task: D4RL's infos.py, all versions.
_REFERENCE_RETURNS = {
    "hopper": (-20.272305, 3234.3),
    "halfcheetah": (-280.178953, 12135.0),
    "walker2d": (1.629008, 4592.3),
    "ant": (-325.6, 3879.7),
}

# standardised or raw observations [policies, episodes, S] -> actions [policies, episodes, A]
PolicyFn = Callable[[np.ndarray], np.ndarray]


def reference_returns(environment: str) -> tuple[float, float] | None:
    """D4RL's (random, expert) returns of a Gymnasium id's task, or None if it has none."""
    return _REFERENCE_RETURNS.get(environment.split("-")[0].lower())


def normalised_score(environment: str, returns: np.ndarray) -> np.ndarray | None:
    """100 (R - random) / (expert - random), or None where D4RL has no references."""
    references = reference_returns(environment)
    if references is None:
        return None
    low, high = references
    return 100.0 * (np.asarray(returns) - low) / (high - low)


def make_environment(environment: str) -> Any:
    """A Gymnasium environment with flat Box observations and bounded Box actions.

    Raises:
      UserError: it is unknown, cannot be built, or has other spaces.
    """
    import gymnasium as gym

    try:
        env = gym.make(environment)
    except Exception as error:
        raise UserError(
            f"environment {environment!r} cannot be made ({first_line(error)}); "
            "check config.environment and that gymnasium[mujoco] is installed"
        ) from error
    for kind, space in (("actions", env.action_space), ("observations", env.observation_space)):
        if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1:
            env.close()
            raise UserError(
                f"environment {environment}: expected a flat Box space of {kind}, got "
                f"{one_line(space)}; only continuous control from vectors is supported"
            )
    actions: Any = env.action_space
    if not np.isfinite([actions.low, actions.high]).all():
        env.close()
        raise UserError(f"environment {environment}: expected bounded actions")
    return env


def run_episodes(
    policy: PolicyFn, environment: str, *, num_policies: int, num_episodes: int, seed: int
) -> np.ndarray:
    """Undiscounted returns of whole episodes, every policy and episode in step.

    Policies see one batch a step; only unfinished episodes step their simulator. Episode
    i of every policy starts from the same state.

    Args:
      policy: raw observations [policies, episodes, S] -> actions in environment units.
      environment: Gymnasium id.
      num_policies: leading axis of the policy's batch.
      num_episodes: a policy.
      seed: episode i resets with seed + i.

    Returns:
      [num_policies, num_episodes] float64.
    """
    shape = (num_policies, num_episodes)
    environments = [make_environment(environment) for _ in range(num_policies * num_episodes)]
    try:
        observations = np.stack(
            [env.reset(seed=seed + i % num_episodes)[0] for i, env in enumerate(environments)]
        ).astype(np.float32)
        returns = np.zeros(len(environments))
        alive = list(range(len(environments)))
        while alive:
            actions = np.asarray(policy(observations.reshape(*shape, -1)))
            actions = actions.reshape(len(environments), -1)
            still_alive = []
            for i in alive:
                observation, reward, terminated, truncated, _ = environments[i].step(actions[i])
                observations[i] = observation
                returns[i] += reward
                if not (terminated or truncated):
                    still_alive.append(i)
            alive = still_alive
    finally:
        for env in environments:
            env.close()
    return returns.reshape(shape)


def confidence_interval(values: np.ndarray) -> tuple[float, float] | None:
    """95 % interval of the mean by Student's t over seeds, or None for one seed."""
    from scipy import stats

    values = np.asarray(values, np.float64)
    if len(values) < 2:
        return None
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)
