"""Scores of returns: D4RL's normalised score, and confidence intervals over seeds."""

import numpy as np

from dawm_jax.envs.tasks import References, find_task


def reference_returns(environment: str, of_data: References | None = None) -> References | None:
    """The (random, expert) returns of a Gymnasium id's task.

    Args:
      environment: Gymnasium id.
      of_data: what a dataset's metadata name, for an id whose task has no references of its own.

    Returns:
      The task's references, else those of the data, else None.
    """
    task = find_task(environment)
    return of_data if task is None or task.references is None else task.references


def normalised_score(
    environment: str, returns: np.ndarray, of_data: References | None = None
) -> np.ndarray | None:
    """100 (R - random) / (expert - random) of every return R (D4RL, 2004.07219).

    Args:
      environment: Gymnasium id.
      returns: undiscounted returns of episodes, any shape.
      of_data: see `reference_returns`.

    Returns:
      Scores of the shape of `returns`, or None without reference returns.
    """
    references = reference_returns(environment, of_data)
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


def mean_height(values: np.ndarray, at: np.ndarray) -> np.ndarray:
    """The area below curves by the trapezoidal rule, divided by its width.

    Args:
      values: [n, ...] along the curves.
      at: [n] positions, increasing; of one position the height is its value.

    Returns:
      [...].
    """
    if len(at) == 1:
        return np.asarray(values[0])
    return np.asarray(np.trapezoid(values, at, axis=0) / (at[-1] - at[0]))
