"""Episodes in Gymnasium with the deterministic policy, and D4RL's normalised score."""

from collections.abc import Callable

import numpy as np

from dawm_jax.envs.simulate import make_simulator

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
    total = num_policies * num_episodes
    simulator = make_simulator(environment, total)
    try:
        observations = np.stack(
            [simulator.reset(i, seed + i % num_episodes) for i in range(total)]
        ).astype(np.float32)
        returns = np.zeros(total)
        alive = np.arange(total)
        while len(alive):
            actions = np.asarray(policy(observations.reshape(*shape, -1))).reshape(total, -1)
            steps = simulator.step(alive, actions[alive])
            observations[alive] = steps.observations
            returns[alive] += steps.rewards
            alive = alive[~(steps.terminated | steps.truncated)]
    finally:
        simulator.close()
    return returns.reshape(shape)


def confidence_interval(values: np.ndarray) -> tuple[float, float] | None:
    """95 % interval of the mean by Student's t over seeds, or None for one seed."""
    from scipy import stats

    values = np.asarray(values, np.float64)
    if len(values) < 2:
        return None
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)
