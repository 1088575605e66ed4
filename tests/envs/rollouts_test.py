"""Whole episodes against a plain Gymnasium loop."""

import gymnasium as gym
import numpy as np
import pytest

from dawm_jax.envs import rollouts
from dawm_jax.runtime.stopping import Interrupted, StopFlag
from dawm_jax.types import UserError

_TWO = np.array([[0, 1]])  # resets of two episodes of one policy

# Policies of Hopper (S = 11, A = 3) that fall after different numbers of steps.
_WEIGHTS = np.random.default_rng(0).normal(scale=0.5, size=(2, 11, 3))


def _act(index: int, observation: np.ndarray) -> np.ndarray:
    """One policy on one observation, so that batching cannot change its rounding."""
    assert observation.dtype == np.float32
    return np.tanh((observation[:, None] * _WEIGHTS[index]).sum(axis=0)).astype(np.float32)


def test_run_episodes_equals_a_plain_loop():
    num_episodes = 3
    seeds = np.array([[100, 101, 102], [7, 8, 9]])
    expected = np.zeros((2, num_episodes))
    lengths = np.zeros((2, num_episodes), int)
    env = gym.make("Hopper-v5")
    for policy, episode in np.ndindex(expected.shape):
        observation, _ = env.reset(seed=int(seeds[policy, episode]))
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

    outcome = rollouts.run_episodes(policies, "Hopper-v5", seeds=seeds)
    np.testing.assert_array_equal(outcome.returns, expected)
    assert outcome.succeeded is None
    assert calls == lengths.max()  # one batched call a step


# --- start states -------------------------------------------------------------------------


def _resets(seed=10_000, run_seed=0, evaluation=2_000, num_policies=5, num_episodes=10):
    return rollouts.reset_seeds(
        seed, run_seed, evaluation, num_policies=num_policies, num_episodes=num_episodes
    )


def test_reset_seeds_are_those_of_numpys_seed_sequence():
    """One sequence for each policy, whose words are the episodes' seeds."""
    expected = np.random.SeedSequence((10_000, 3, 40, 2)).generate_state(10)
    np.testing.assert_array_equal(_resets(run_seed=3, evaluation=40)[2], expected)


def test_every_seed_and_evaluation_has_its_own_start_states():
    several = [
        _resets(),
        _resets(evaluation=4_000),
        _resets(evaluation=0),
        _resets(run_seed=1),
        _resets(seed=10_001),
    ]
    assert len(np.unique(several)) == len(several) * 5 * 10
    env = gym.make("Hopper-v5")
    states = [env.reset(seed=int(seed))[0] for seed in _resets(num_policies=2).flat]
    env.close()
    assert len(np.unique(states, axis=0)) == 20


def test_start_states_do_not_depend_on_the_number_of_seeds_or_episodes():
    np.testing.assert_array_equal(_resets(num_policies=2, num_episodes=3), _resets()[:2, :3])


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
    outcome = rollouts.run_episodes(lambda observations: np.zeros((1, 2, 1)), name, seeds=_TWO)
    np.testing.assert_array_equal(outcome.returns, [[expected, expected]])


class _Goal(_Count):
    """A step succeeds where the action is above the seed's last digit; then fails again."""

    def reset(self, *, seed=None, options=None):
        self._needed = (seed % 10) / 10
        return super().reset(seed=seed)

    def step(self, action):
        state, reward, terminated, truncated, _ = super().step(action)
        succeeds = self._clock == 2 and float(action[0]) > self._needed
        return state, reward, terminated, truncated, {self.key: succeeds}


@pytest.mark.parametrize("key", ["success", "is_success"])
def test_an_episode_succeeds_if_any_of_its_steps_does(register, key):
    name = register("DawmGoal-v0", type("Goal", (_Goal,), {"key": key}), max_episode_steps=4)
    seeds = np.array([[11, 13], [17, 12]])
    outcome = rollouts.run_episodes(lambda _: np.full((2, 2, 1), 0.25), name, seeds=seeds)
    np.testing.assert_array_equal(outcome.succeeded, [[True, False], [False, True]])
    np.testing.assert_array_equal(outcome.returns, np.full((2, 2), 4.0))


class _Late(_Count):
    """Says whether it succeeded in its last step alone; episodes differ in length."""

    def reset(self, *, seed=None, options=None):
        self._last = seed % 10
        return super().reset(seed=seed)

    def step(self, action):
        state, reward, over, truncated, info = super().step(action)
        return state, reward, over, truncated, {"is_success": np.array([True])} if over else info


def test_a_success_that_is_told_at_the_end_alone(register):
    name = register("DawmLate-v0", _Late, max_episode_steps=4, disable_env_checker=True)
    seeds = np.array([[12, 13], [14, 19]])  # the last episode is cut before its end
    outcome = rollouts.run_episodes(lambda _: np.zeros((2, 2, 1)), name, seeds=seeds)
    np.testing.assert_array_equal(outcome.succeeded, [[True, True], [True, False]])


# --- what cannot be evaluated -------------------------------------------------------------


def test_environments_are_closed_when_a_policy_fails(register):
    closed = []

    class Closing(_Count):
        def close(self):
            closed.append(self)

    name = register("DawmClosing-v0", Closing, max_episode_steps=5)

    def fail(observations):
        raise RuntimeError("a broken policy")

    with pytest.raises(RuntimeError, match="a broken policy"):
        rollouts.run_episodes(fail, name, seeds=np.zeros((2, 2), int))
    assert len(closed) == 4 + 1  # and the one whose time limit was read


# --- stopping, and how far it is ----------------------------------------------------------


def _still(observations):
    return np.zeros((1, 2, 1))


def test_a_stop_flag_ends_an_evaluation_at_the_next_step(register):
    name, stop, seen = register("DawmCount-v0", _Count, max_episode_steps=8), StopFlag(), []

    def policy(observations):
        seen.append(observations)
        if len(seen) == 3:
            stop.signal = 15
        return _still(observations)

    with pytest.raises(Interrupted, match="an evaluation at step 3"):
        rollouts.run_episodes(policy, name, seeds=_TWO, stop=stop)
    assert len(seen) == 3


def test_every_step_is_reported(register):
    name, reports = register("DawmCount-v0", _Count, max_episode_steps=3), []
    rollouts.run_episodes(_still, name, seeds=_TWO, report=lambda *report: reports.append(report))
    assert reports == [(1, 3, 2), (2, 3, 2), (3, 3, 0)]


# --- time limits --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "max_steps", "expected"), [(None, 4, 4.0), (6, 4, 4.0), (3, 4, 3.0), (None, 40, 10.0)]
)
def test_episodes_are_cut(register, own, max_steps, expected):
    name = register("DawmCount-v0", _Count, max_episode_steps=own)
    outcome = rollouts.run_episodes(_still, name, seeds=_TWO, max_steps=max_steps)
    np.testing.assert_array_equal(outcome.returns, [[expected, expected]])


@pytest.mark.parametrize("kwargs", [None, {"max_episode_steps": -1}])
def test_an_environment_without_a_time_limit_is_refused(register, kwargs):
    name = register("DawmCount-v0", _Count)
    with pytest.raises(UserError, match=r"DawmCount-v0: expected a time limit.*max_steps"):
        rollouts.run_episodes(_still, name, seeds=_TWO, environment_kwargs=kwargs)
