"""Evaluation: scores by hand, intervals by SciPy, episodes by a plain Gymnasium loop."""

import gymnasium as gym
import numpy as np
import pytest
from scipy import stats

from dawm_jax.envs import evaluate


@pytest.mark.parametrize(
    ("environment", "low", "high"),
    # D4RL's infos.py, REF_MIN_SCORE and REF_MAX_SCORE.
    [
        ("Hopper-v5", -20.272305, 3234.3),
        ("HalfCheetah-v5", -280.178953, 12135.0),
        ("Walker2d-v4", 1.629008, 4592.3),
        ("Ant-v5", -325.6, 3879.7),
    ],
)
def test_normalised_score_ends_at_d4rls_references(environment, low, high):
    returns = np.array([low, high, (low + high) / 2])
    # Doubles of a few thousand: absolute rounding of 1e-12, a hundred of them is 1e-10.
    np.testing.assert_allclose(
        evaluate.normalised_score(environment, returns), [0.0, 100.0, 50.0], atol=1e-10
    )


def test_normalised_score_by_hand():
    # 100 * (1500 + 20.272305) / (3234.3 + 20.272305)
    score = evaluate.normalised_score("Hopper-v5", np.array([[1500.0]]))
    np.testing.assert_allclose(score, [[46.711892148]], rtol=1e-10)


def test_no_score_without_references():
    assert evaluate.normalised_score("Pendulum-v1", np.zeros(3)) is None
    assert evaluate.reference_returns("HopperLike-v0") is None


@pytest.mark.parametrize("count", [2, 5, 30])
def test_confidence_interval_is_scipys(count):
    values = np.random.default_rng(count).normal(50.0, 10.0, count)
    expected = stats.t.interval(
        0.95, df=count - 1, loc=values.mean(), scale=stats.sem(values, ddof=1)
    )
    np.testing.assert_allclose(evaluate.confidence_interval(values), expected, rtol=1e-12)


def test_no_interval_from_one_seed():
    assert evaluate.confidence_interval(np.array([3.0])) is None


# --- episodes -----------------------------------------------------------------------------

# Policies of Hopper (S = 11, A = 3) that fall after different numbers of steps.
_WEIGHTS = np.random.default_rng(0).normal(scale=0.5, size=(2, 11, 3))


def _act(index: int, observation: np.ndarray) -> np.ndarray:
    """One policy on one observation, so that batching cannot change its rounding."""
    assert observation.dtype == np.float32
    return np.tanh((observation[:, None] * _WEIGHTS[index]).sum(axis=0)).astype(np.float32)


def test_run_episodes_equals_a_plain_loop():
    seed, num_episodes = 100, 3
    expected = np.zeros((2, num_episodes))
    lengths = np.zeros((2, num_episodes), int)
    env = gym.make("Hopper-v5")
    for policy, episode in np.ndindex(expected.shape):
        observation, _ = env.reset(seed=seed + episode)
        over = False
        while not over:
            action = _act(policy, observation.astype(np.float32))
            observation, reward, terminated, truncated, _ = env.step(action)
            expected[policy, episode] += reward
            lengths[policy, episode] += 1
            over = terminated or truncated
    env.close()
    # Otherwise the test would not see an episode that goes on after its end.
    assert len(np.unique(lengths)) > 3

    calls = 0

    def policies(observations):
        nonlocal calls
        calls += 1
        assert observations.shape == (2, num_episodes, 11)
        return np.stack([[_act(p, row) for row in rows] for p, rows in enumerate(observations)])

    returns = evaluate.run_episodes(
        policies, "Hopper-v5", num_policies=2, num_episodes=num_episodes, seed=seed
    )
    np.testing.assert_array_equal(returns, expected)
    assert calls == lengths.max()  # one batched call a step


class _Count(gym.Env):
    """Pays 1 a step, sees the clock, ends at `last`; a time limit is the wrapper's."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,))
    action_space = gym.spaces.Box(-1, 1, (1,))

    def __init__(self, last=10):
        self._last = last

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._clock = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self._clock += 1
        state = np.full(1, self._clock, np.float32)
        return state, 1.0, self._clock >= self._last, False, {}


@pytest.mark.parametrize(("limit", "expected"), [(4, 4.0), (20, 10.0)])
def test_terminations_and_time_outs_both_end_an_episode(register, limit, expected):
    name = register("DawmCount-v0", _Count, max_episode_steps=limit)
    returns = evaluate.run_episodes(
        lambda observations: np.zeros((1, 2, 1)), name, num_policies=1, num_episodes=2, seed=0
    )
    np.testing.assert_array_equal(returns, [[expected, expected]])


# --- what cannot be evaluated -------------------------------------------------------------


def test_environments_are_closed_when_a_policy_fails(register):
    closed = []

    class Closing(_Count):
        def close(self):
            closed.append(self)

    name = register("DawmClosing-v0", Closing)

    def fail(observations):
        raise RuntimeError("a broken policy")

    with pytest.raises(RuntimeError, match="a broken policy"):
        evaluate.run_episodes(fail, name, num_policies=2, num_episodes=2, seed=0)
    assert len(closed) == 4
