"""Whole episodes against a plain Gymnasium loop."""

import gymnasium as gym
import numpy as np
import pytest

from dawm_jax.envs import rollouts

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
    # Otherwise the test would not see an episode that is stepped after its end.
    assert len(np.unique(lengths)) > 3

    calls = 0

    def policies(observations):
        nonlocal calls
        calls += 1
        assert observations.shape == (2, num_episodes, 11)
        return np.stack([[_act(p, row) for row in rows] for p, rows in enumerate(observations)])

    returns = rollouts.run_episodes(
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
    returns = rollouts.run_episodes(
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
        rollouts.run_episodes(fail, name, num_policies=2, num_episodes=2, seed=0)
    assert len(closed) == 4
