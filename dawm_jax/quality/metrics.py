"""How close transitions are to the truth: pure metrics, without models or simulators.

Squared errors are means over dimensions in units of the data's standard deviations, as
PolyGRAD, GTA and SynthER report them. Windows have leading axes [B, H]; `valid` [B, H] marks
the steps that count: those up to the window's first termination.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import stats

from dawm_jax.models import networks
from dawm_jax.types import Transition

# As in the models' normaliser: constant dimensions stay finite.
_STD_FLOOR = 1e-3
_DISCRIMINATOR_STEPS = 600


class Scales(NamedTuple):
    """Mean and standard deviation of a dataset's columns, raw units."""

    observation_mean: np.ndarray  # [S]
    observation_std: np.ndarray  # [S], never 0
    action_mean: np.ndarray  # [A]
    action_std: np.ndarray  # [A], never 0
    reward_mean: float
    reward_std: float  # never 0


def fit_scales(observations: np.ndarray, actions: np.ndarray, rewards: np.ndarray) -> Scales:
    """Scales of [N, S] observations, [N, A] actions and [N] rewards."""
    fit = lambda x: (x.mean(0, dtype=np.float64), x.std(0, dtype=np.float64) + _STD_FLOOR)
    return Scales(*fit(observations), *fit(actions), *fit(rewards))


def columns(transitions: Transition, scales: Scales) -> np.ndarray:
    """Transitions [N] as standardised columns (s, a, r, s'), [N, 2 S + A + 1] float64."""
    observe = lambda x: (x - scales.observation_mean) / scales.observation_std
    return np.concatenate(
        [
            observe(transitions.observation),
            (transitions.action - scales.action_mean) / scales.action_std,
            (np.asarray(transitions.reward)[:, None] - scales.reward_mean) / scales.reward_std,
            observe(transitions.next_observation),
        ],
        axis=1,
    )


def step_size(table: np.ndarray, state_size: int) -> float:
    """Mean of (s' - s)^2 over rows and dimensions of `columns`.

    Small changes are what a sampler of few steps loses first, and with them the variety of
    actions: less than the real one tells of data that has been smoothed.
    """
    return float(np.square(table[:, -state_size:] - table[:, :state_size]).mean())


def clipped(observations: np.ndarray) -> np.ndarray:
    """Rows with a value at a bound that its column reaches repeatedly: [N, S] -> [N] bool.

    Continuous values do not repeat their extremes unless something cut them there.
    """
    low, high = observations.min(0), observations.max(0)
    marked = np.zeros(len(observations), bool)
    for bound in (low, high):
        at_bound = observations == bound
        repeated = (at_bound.sum(0) > 1) & (low < high)
        marked |= at_bound[:, repeated].any(1)
    return marked


# --- errors -------------------------------------------------------------------------------


def dynamics_error(next_observations: np.ndarray, truth: np.ndarray, scales: Scales) -> np.ndarray:
    """Squared error of the next observation, mean over dimensions: [..., S] -> [...]."""
    return np.square((next_observations - truth) / scales.observation_std).mean(-1)


def reward_error(rewards: np.ndarray, truth: np.ndarray, scales: Scales) -> np.ndarray:
    """Squared error of the reward, [...]."""
    return np.square((rewards - truth) / scales.reward_std)


def summary(values: np.ndarray) -> dict[str, float | None]:
    """Mean and median of [n] values; None where there are none."""
    if not values.size:
        return {"mean": None, "median": None}
    return {"mean": float(values.mean()), "median": float(np.median(values))}


def by_step(values: np.ndarray, valid: np.ndarray) -> dict[str, list[Any]]:
    """Mean and median of [B, H] values over the windows that reach each step, [H] each."""
    steps = [summary(values[valid[:, k], k]) for k in range(values.shape[1])]
    return {name: [step[name] for step in steps] for name in ("mean", "median")}


# --- distributions ------------------------------------------------------------------------


def ks_statistics(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Two-sample Kolmogorov-Smirnov statistic of every column: [N, D], [M, D] -> [D].

    The largest distance between the two empirical distribution functions, 0 to 1.
    """

    def one(x, y):
        x, y = np.sort(x), np.sort(y)
        points = np.concatenate([x, y])
        share = lambda sample: np.searchsorted(sample, points, side="right") / len(sample)
        return np.abs(share(x) - share(y)).max()

    return np.array([one(x, y) for x, y in zip(first.T, second.T, strict=True)])


def correlation_similarity(first: np.ndarray, second: np.ndarray) -> float:
    """1 - |difference of correlations| / 2, mean over pairs of columns; 1 is equal.

    [N, D], [M, D]; SDV's CorrelationSimilarity, which SynthER reports. A constant column has
    correlation 0 with every other.
    """
    pairs = np.triu_indices(first.shape[1], 1)
    difference = (_correlations(first) - _correlations(second))[pairs]
    return float(1.0 - np.abs(difference).mean() / 2.0)


def _correlations(values: np.ndarray) -> np.ndarray:
    centred = values - values.mean(0)
    std = centred.std(0)
    unit = np.divide(centred, std, out=np.zeros_like(centred), where=std > 0)
    return unit.T @ unit / len(values)


def discriminator_auc(first: np.ndarray, second: np.ndarray, *, state_size: int) -> float:
    """How well a classifier tells the rows of two tables apart, on rows it was not trained on.

    The classifier two-sample test (Lopez-Paz & Oquab 2017), by the area under the ROC curve: 0.5
    if nothing tells them apart, 1 if everything does. It sees s' as the step from s, in units of
    the second table's steps. The last third of each table is held out, so that the steps of one
    window are on one side.

    Args:
      first: [N, D] of `columns`.
      second: [M, D]; only as many rows as the smaller table has are used of each.
      state_size: S.
    """
    size = min(len(first), len(second))
    steps = lambda table: table[:size, -state_size:] - table[:size, :state_size]
    scale = steps(second).std(axis=0) + _STD_FLOOR
    rows = np.stack(
        [np.hstack([table[:size, :-state_size], steps(table) / scale]) for table in (first, second)]
    ).astype(np.float32)
    held_out = max(size // 3, 1)
    score = _fit_discriminator(jnp.asarray(rows[:, : max(size - held_out, 1)]))
    mine, others = np.asarray(score(jnp.asarray(rows[:, -held_out:])))
    ranks = stats.rankdata(np.concatenate([mine, others]))[: len(mine)]
    return float((ranks.sum() - len(mine) * (len(mine) + 1) / 2) / (len(mine) * len(others)))


def _fit_discriminator(rows: jax.Array) -> Callable[[jax.Array], jax.Array]:
    """A score that is high for rows[0] and low for rows[1], both [N, D]; x [..., D] -> [...]."""
    network = networks.Mlp((256, 256), 1)
    optimizer = optax.adamw(1e-3, weight_decay=1e-2)
    logits = lambda params, x: network.apply(params, x)[..., 0]

    def loss(params, batch):
        mine, others = logits(params, batch)
        return (jax.nn.softplus(-mine) + jax.nn.softplus(others)).mean()

    @jax.jit
    def fit(rows):
        def step(state, key):
            params, moments = state
            drawn = jax.random.randint(key, (256,), 0, rows.shape[1])
            slope = jax.grad(loss)(params, rows[:, drawn])
            updates, moments = optimizer.update(slope, moments, params)
            return (optax.apply_updates(params, updates), moments), None

        key_init, key_steps = jax.random.split(jax.random.key(0))
        params = network.init(key_init, rows[0, :1])
        keys = jax.random.split(key_steps, _DISCRIMINATOR_STEPS)
        return jax.lax.scan(step, (params, optimizer.init(params)), keys)[0][0]

    params = fit(rows)
    return lambda x: logits(params, x)


def nearest_distances(queries: np.ndarray, points: np.ndarray, *, chunk: int = 256) -> np.ndarray:
    """Euclidean distance from each query to its nearest point: [N, D], [M, D] -> [N].

    One matrix product a chunk finds the nearest point, |x|^2 - 2 x y + |y|^2; its distance is
    then taken exactly, since that sum cancels for points that nearly coincide.
    """
    points = np.asarray(points, np.float32)
    queries = np.asarray(queries, np.float32)
    padded = np.resize(queries, (-(-len(queries) // chunk) * chunk, queries.shape[1]))
    rows = _nearest_rows(jnp.asarray(padded), jnp.asarray(points), chunk=chunk)
    return np.linalg.norm(queries - points[np.asarray(rows)[: len(queries)]], axis=1)


@functools.partial(jax.jit, static_argnames="chunk")
def _nearest_rows(queries: jax.Array, points: jax.Array, *, chunk: int) -> jax.Array:
    norms = jnp.square(points).sum(1)

    def one_chunk(some):
        products = jnp.matmul(some, points.T, precision=jax.lax.Precision.HIGHEST)
        return jnp.argmin(norms[None] - 2.0 * products, axis=1)

    chunks = queries.reshape(-1, chunk, queries.shape[1])
    return jax.lax.map(one_chunk, chunks).reshape(-1)


# --- terminations -------------------------------------------------------------------------


def until_first(marked: np.ndarray) -> np.ndarray:
    """The steps up to and with each window's first marked one: [B, H] bool, both."""
    return np.cumsum(marked, axis=1) - marked == 0


def agreement(claimed: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    """Precision and recall of claimed terminations [n] bool; None where undefined."""
    hits = int((claimed & truth).sum())
    return {
        "claimed": int(claimed.sum()),
        "true": int(truth.sum()),
        "precision": hits / int(claimed.sum()) if claimed.any() else None,
        "recall": hits / int(truth.sum()) if truth.any() else None,
    }


def termination_timing(claimed: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    """When windows end, against when they should: [B, H] bool both.

    Only the first step of each that is marked counts, in windows marked by either.

    Returns:
      `steps_late` {steps: windows}, negative is early; `mean_late` over them; `missed`
      windows that should end and do not; `false` ones that end and should not.
    """
    ends, should = claimed.any(1), truth.any(1)
    late = (claimed.argmax(1) - truth.argmax(1))[ends & should]
    steps, counts = np.unique(late, return_counts=True)
    return {
        "steps_late": {str(k): int(n) for k, n in zip(steps, counts, strict=True)},
        "mean_late": float(late.mean()) if late.size else None,
        "missed": int((should & ~ends).sum()),
        "false": int((ends & ~should).sum()),
    }


# --- returns ------------------------------------------------------------------------------


def discounted_returns(rewards: np.ndarray, valid: np.ndarray, discount: float) -> np.ndarray:
    """Discounted sums of the valid rewards of windows, [B, H] -> [B]."""
    return (np.where(valid, rewards, 0.0) * discount ** np.arange(rewards.shape[1])).sum(1)


def line(x: np.ndarray, y: np.ndarray) -> dict[str, float | None]:
    """Correlation of [n] pairs, and the least-squares slope of y on x; None if x is constant."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.size < 2 or not x.std() or not y.std():
        return {"correlation": None, "slope": 0.0 if x.size > 1 and x.std() else None}
    covariance = ((x - x.mean()) * (y - y.mean())).mean()
    return {
        "correlation": float(covariance / (x.std() * y.std())),
        "slope": float(covariance / x.var()),
    }
