"""Pure metrics of transitions, without models or simulators.

Errors are squared errors, means over dimensions, in units of the data's standard deviations, as
PolyGRAD, GTA and SynthER report them. Windows have leading axes [B, H]; `valid` [B, H] marks the
steps that exist, which are those up to the window's first termination.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import stats

from dawm_jax.data import normalizer as normalizing
from dawm_jax.models import networks, optim
from dawm_jax.quality.types import (
    LinearFit,
    PrecisionRecall,
    Quantiles,
    Summary,
    SummaryByStep,
    TerminationTiming,
    TwoSampleAuc,
)
from dawm_jax.quality.windows import Steps
from dawm_jax.types import Params

_CLASSIFIER_UPDATES = 600
_CLASSIFIER_BATCH = 256


class Scales(NamedTuple):
    """Mean and standard deviation of a dataset's columns, raw units."""

    observation_mean: np.ndarray  # [S]
    observation_std: np.ndarray  # [S], > 0
    action_mean: np.ndarray  # [A]
    action_std: np.ndarray  # [A], > 0
    reward_mean: float
    reward_std: float  # > 0

    @property
    def state_size(self) -> int:
        """S."""
        return len(self.observation_mean)

    @property
    def action_size(self) -> int:
        """A."""
        return len(self.action_mean)


def fit_scales(observations: np.ndarray, actions: np.ndarray, rewards: np.ndarray) -> Scales:
    """Scales of [N, S] observations, [N, A] actions and [N] rewards; of constant columns 1."""

    mean = lambda x: x.mean(0, dtype=np.float64)

    std = lambda x: normalizing.column_scales(x, constant=x.min(0) == x.max(0))
    return Scales(
        observation_mean=mean(observations),
        observation_std=std(observations),
        action_mean=mean(actions),
        action_std=std(actions),
        reward_mean=mean(rewards),
        reward_std=float(std(rewards)),
    )


def columns(steps: Steps, scales: Scales) -> np.ndarray:
    """Steps [N] as standardised columns (s, a, r, s'), [N, 2 S + A + 1] float64."""
    standardise = lambda x: (x - scales.observation_mean) / scales.observation_std
    return np.concatenate(
        [
            standardise(steps.observation),
            (steps.action - scales.action_mean) / scales.action_std,
            (steps.reward[:, None] - scales.reward_mean) / scales.reward_std,
            standardise(steps.next_observation),
        ],
        axis=1,
    )


def step_size(table: np.ndarray, state_size: int) -> float:
    """Mean of (s' - s)^2 over rows and dimensions.

    A sampler of few steps loses small changes first, and with them the variety of actions: a
    step size below the real one tells that data are smoothed.

    Args:
      table: [N, 2 S + A + 1] of `columns`.
      state_size: S.
    """
    return float(np.square(table[:, -state_size:] - table[:, :state_size]).mean())


def clipped(observations: np.ndarray) -> np.ndarray:
    """Rows with a value at a bound that its column reaches more than once: [N, S] -> [N] bool.

    Continuous values repeat their minimum or maximum only if the environment clips them.
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


def summary(values: np.ndarray) -> Summary:
    """Mean and median of [n] values."""
    if not values.size:
        return Summary(None, None)
    return Summary(float(values.mean()), float(np.median(values)))


def by_step(values: np.ndarray, valid: np.ndarray) -> SummaryByStep:
    """Mean and median of [B, H] values at each step, over the windows that have the step."""
    steps = [summary(values[valid[:, k], k]) for k in range(values.shape[1])]
    return SummaryByStep(tuple(s.mean for s in steps), tuple(s.median for s in steps))


def quantiles(values: np.ndarray) -> Quantiles:
    """Quantiles of [n] values."""
    return Quantiles(*(float(np.quantile(values, share / 100)) for share in (10, 50, 90)))


# --- distributions ------------------------------------------------------------------------


def ks_statistics(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Two-sample Kolmogorov-Smirnov statistic of every column: [N, D], [M, D] -> [D].

    The statistic is the largest distance between the two empirical distribution functions,
    sup_x |F(x) - G(x)|, 0 to 1.
    """

    def statistic(x: np.ndarray, y: np.ndarray) -> float:
        x, y = np.sort(x), np.sort(y)
        points = np.concatenate([x, y])
        cdf = lambda sample: np.searchsorted(sample, points, side="right") / len(sample)
        return np.abs(cdf(x) - cdf(y)).max()

    return np.array([statistic(x, y) for x, y in zip(first.T, second.T, strict=True)])


def correlation_similarity(first: np.ndarray, second: np.ndarray) -> float:
    """Mean over pairs of columns of 1 - |difference of correlations| / 2; 1 is equal.

    This is CorrelationSimilarity of SDV, which SynthER reports. The correlation of a constant
    column with any other is taken as 0.

    Args:
      first: [N, D].
      second: [M, D].
    """
    pairs = np.triu_indices(first.shape[1], 1)
    difference = (_correlations(first) - _correlations(second))[pairs]
    return float(1.0 - np.abs(difference).mean() / 2.0)


def _correlations(values: np.ndarray) -> np.ndarray:
    centred = values - values.mean(0)
    std = centred.std(0)
    unit = np.divide(centred, std, out=np.zeros_like(centred), where=std > 0)
    return unit.T @ unit / len(values)


def two_sample_auc(
    first: np.ndarray, second: np.ndarray, *, state_size: int, num_keys: int
) -> TwoSampleAuc:
    """How well a classifier tells the rows of two tables apart, on rows it was not fitted to.

    The classifier two-sample test (Lopez-Paz & Oquab 2017), measured by the area under the ROC
    curve: 0.5 if the classifier cannot tell the tables apart, 1 if it always can. Its inputs are
    (s, a, r, s' - s), with s' - s in units of the second table's standard deviations. The last
    third of each table is held out, not a random third, so that the steps of one window are
    either all fitted to or all held out.

    The classifier is fitted once per key: the key draws its initial parameters and its
    minibatches. The spread over keys does not contain the spread of the rows themselves, which
    are the same for all keys.

    Args:
      first: [N, 2 S + A + 1] of `columns`.
      second: [M, 2 S + A + 1]; only the first min(N, M) rows of each table are used.
      state_size: S.
      num_keys: number of fits; fit i has the key `jax.random.key(i)`.
    """
    size = min(len(first), len(second))
    steps = lambda table: table[:size, -state_size:] - table[:size, :state_size]
    scale = steps(second).std(axis=0) + normalizing.STD_FLOOR
    rows = np.stack(
        [np.hstack([table[:size, :-state_size], steps(table) / scale]) for table in (first, second)]
    ).astype(np.float32)
    held_out = max(size // 3, 1)
    fitted = jnp.asarray(rows[:, : max(size - held_out, 1)])
    by_key = []
    for index in range(num_keys):
        params = _fit_classifier(fitted, jax.random.key(index))
        by_key.append(_auc(*np.asarray(_logits(params, jnp.asarray(rows[:, -held_out:])))))
    std = float(np.std(by_key, ddof=1)) if num_keys > 1 else None
    return TwoSampleAuc(float(np.mean(by_key)), std, tuple(by_key))


def _auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Area under the ROC curve of scores [n] and [m], by the Mann-Whitney statistic."""
    n, m = len(positive), len(negative)
    ranks = stats.rankdata(np.concatenate([positive, negative]))[:n]
    return float((ranks.sum() - n * (n + 1) / 2) / (n * m))


_CLASSIFIER = networks.Mlp((256, 256), 1)


def _logits(params: Params, x: jax.Array) -> jax.Array:
    """Log-odds that rows [..., D] are from the first table, [...]."""
    return _CLASSIFIER.apply(params, x)[..., 0]


@jax.jit
def _fit_classifier(rows: jax.Array, key: jax.Array) -> Params:
    """Parameters that give high logits to rows[0] and low ones to rows[1], both [N, D]."""
    optimizer = optax.adamw(1e-3, weight_decay=1e-2)

    def loss(params: Params, batch: jax.Array) -> jax.Array:
        positive, negative = _logits(params, batch)
        return (jax.nn.softplus(-positive) + jax.nn.softplus(negative)).mean()

    def update(
        state: tuple[Params, optax.OptState], key: jax.Array
    ) -> tuple[tuple[Params, optax.OptState], None]:
        params, moments = state
        drawn = jax.random.randint(key, (_CLASSIFIER_BATCH,), 0, rows.shape[1])
        params, moments, _ = optim.gradient_step(
            lambda params: (loss(params, rows[:, drawn]), {}), params, moments, optimizer
        )
        return (params, moments), None

    key_init, key_updates = jax.random.split(key)
    params = _CLASSIFIER.init(key_init, rows[0, :1])
    keys = jax.random.split(key_updates, _CLASSIFIER_UPDATES)
    return jax.lax.scan(update, (params, optimizer.init(params)), keys)[0][0]


def nearest_distances(queries: np.ndarray, points: np.ndarray, *, chunk: int = 256) -> np.ndarray:
    """Euclidean distance from each query to its nearest point: [N, D], [M, D] -> [N].

    The nearest point minimises |y|^2 - 2 x y, one matrix product per chunk of queries. Its
    distance is then computed from the difference x - y, because |x|^2 - 2 x y + |y|^2 cancels
    for points that nearly coincide.
    """
    points = np.asarray(points, np.float32)
    queries = np.asarray(queries, np.float32)
    padded = np.resize(queries, (-(-len(queries) // chunk) * chunk, queries.shape[1]))
    rows = _nearest_rows(jnp.asarray(padded), jnp.asarray(points), chunk=chunk)
    return np.linalg.norm(queries - points[np.asarray(rows)[: len(queries)]], axis=1)


@functools.partial(jax.jit, static_argnames="chunk")
def _nearest_rows(queries: jax.Array, points: jax.Array, *, chunk: int) -> jax.Array:
    norms = jnp.square(points).sum(1)

    def nearest(chunk_of_queries: jax.Array) -> jax.Array:
        products = jnp.matmul(chunk_of_queries, points.T, precision=jax.lax.Precision.HIGHEST)
        return jnp.argmin(norms[None] - 2.0 * products, axis=1)

    chunks = queries.reshape(-1, chunk, queries.shape[1])
    return jax.lax.map(nearest, chunks).reshape(-1)


# --- terminations -------------------------------------------------------------------------


def until_first(marked: np.ndarray) -> np.ndarray:
    """Mask of the steps up to each window's first marked step, inclusive: [B, H] -> [B, H]."""
    return np.cumsum(marked, axis=1) - marked == 0


def precision_recall(claimed: np.ndarray, truth: np.ndarray) -> PrecisionRecall:
    """Precision and recall of claimed terminations, [n] bool both."""
    hits = int((claimed & truth).sum())
    return PrecisionRecall(
        claimed=int(claimed.sum()),
        true=int(truth.sum()),
        precision=hits / int(claimed.sum()) if claimed.any() else None,
        recall=hits / int(truth.sum()) if truth.any() else None,
    )


def termination_timing(claimed: np.ndarray, truth: np.ndarray) -> TerminationTiming:
    """Delay of the first claimed termination of each window, [B, H] bool both."""
    ends, should = claimed.any(1), truth.any(1)
    late = (claimed.argmax(1) - truth.argmax(1))[ends & should]
    delays, counts = np.unique(late, return_counts=True)
    return TerminationTiming(
        windows=len(claimed),
        steps_late={int(k): int(n) for k, n in zip(delays, counts, strict=True)},
        mean_late=float(late.mean()) if late.size else None,
        missed=int((should & ~ends).sum()),
        false=int((ends & ~should).sum()),
    )


# --- returns ------------------------------------------------------------------------------


def discounted_returns(rewards: np.ndarray, valid: np.ndarray, discount: float) -> np.ndarray:
    """Discounted sums of the valid rewards of windows, [B, H] -> [B]."""
    return (np.where(valid, rewards, 0.0) * discount ** np.arange(rewards.shape[1])).sum(1)


def linear_fit(x: np.ndarray, y: np.ndarray) -> LinearFit:
    """Correlation and least-squares slope of [n] pairs.

    The correlation is None if x or y is constant, and the slope is None if x is.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.size < 2 or not x.std():
        return LinearFit(None, None)
    if not y.std():
        return LinearFit(None, 0.0)
    covariance = ((x - x.mean()) * (y - y.mean())).mean()
    return LinearFit(
        correlation=float(covariance / (x.std() * y.std())), slope=float(covariance / x.var())
    )
