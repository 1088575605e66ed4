"""Scores of returns: D4RL's normalised score, and confidence intervals over seeds."""

import numpy as np

from dawm_jax.envs.tasks import References, find_task


def reference_returns(environment: str) -> References | None:
    """The (random, expert) returns of a Gymnasium id's task, or None if it has none."""
    task = find_task(environment)
    return None if task is None else task.references


def normalised_score(environment: str, returns: np.ndarray) -> np.ndarray | None:
    """100 (R - random) / (expert - random) of every return R (D4RL, 2004.07219).

    Args:
      environment: Gymnasium id.
      returns: undiscounted returns of episodes, any shape.

    Returns:
      Scores of the shape of `returns`, or None if the task has no reference returns.
    """
    references = reference_returns(environment)
    if references is None:
        return None
    low, high = references
    return 100.0 * (np.asarray(returns) - low) / (high - low)


def confidence_interval(values: np.ndarray) -> tuple[float, float] | None:
    """The 95 % interval of the mean by Student's t.

    Args:
      values: one number per seed, [seeds].

    Returns:
      (low, high), or None for fewer than two values.
    """
    from scipy import stats

    values = np.asarray(values, np.float64)
    if len(values) < 2:
        return None
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)
