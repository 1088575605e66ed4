"""Copies of environments against a plain loop of Gymnasium, stopped and resumed."""

import gymnasium as gym
import numpy as np
import pytest

from dawm_jax.envs import copies as copying
from dawm_jax.envs.copies import Copies

CASES = [("Pendulum-v1", 1, 0), ("Hopper-v5", 3, 0), ("Pendulum-v1", 1, 7)]


def actions_of(environment, num_steps, num, size, seed=0):
    scale = 2.0 if environment == "Pendulum-v1" else 1.0
    rng = np.random.default_rng(seed)
    return (scale * rng.uniform(-1, 1, (num_steps, num, size))).astype(np.float32)


def gymnasium_loop(environment, actions, *, seed, max_steps):
    """(next observation, reward, terminated, ended) of every step of every copy."""
    found = []
    for copy in range(actions.shape[1]):
        env, episode, elapsed, rows = gym.make(environment), 0, 0, []
        env.reset(seed=copying.reset_seed(seed, copy, episode))
        for action in actions[:, copy]:
            observation, reward, terminated, truncated, _ = env.step(action)
            elapsed += 1
            ended = terminated or truncated or elapsed == max_steps
            rows.append((observation.astype(np.float32), float(reward), terminated, ended))
            if ended:
                episode, elapsed = episode + 1, 0
                env.reset(seed=copying.reset_seed(seed, copy, episode))
        env.close()
        found.append(rows)
    return found


@pytest.mark.parametrize("environment, size, max_steps", CASES)
def test_steps_are_those_of_a_plain_loop(environment, size, max_steps):
    actions = actions_of(environment, 90, 2, size)
    expected = gymnasium_loop(environment, actions, seed=5, max_steps=max_steps)
    copies = Copies(environment, 2, seed=5, max_steps=max_steps)
    copies.begin(size)
    returns, running = [], np.zeros(2)
    for turn, action in enumerate(actions):
        lived = copies.step(action)
        for copy in range(2):
            observation, reward, terminated, ended = expected[copy][turn]
            np.testing.assert_array_equal(lived.next_observation[copy], observation)
            assert lived.reward[copy] == reward
            assert lived.terminated[copy] == terminated
            assert lived.ended[copy] == ended
        running += lived.reward
        returns += running[lived.ended].tolist()
        np.testing.assert_allclose(lived.returns, running[lived.ended])
        running[lived.ended] = 0.0
    assert bool(returns) == (environment == "Hopper-v5" or bool(max_steps))
    copies.close()


@pytest.mark.parametrize("environment, size, max_steps", CASES)
def test_resumed_copies_go_on_bit_for_bit(environment, size, max_steps):
    actions = actions_of(environment, 50, 3, size, seed=1)
    copies = Copies(environment, 3, seed=2, max_steps=max_steps)
    copies.begin(size)
    for action in actions[:31]:
        copies.step(action)
    kept = copies.state
    others = Copies(environment, 3, seed=2, max_steps=max_steps)
    others.resume(kept)
    for action in actions[31:]:
        for mine, theirs in zip(copies.step(action), others.step(action), strict=True):
            np.testing.assert_array_equal(mine, theirs)
    for mine, theirs in zip(copies.state, others.state, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    copies.close()
    others.close()


class Unrepeatable(gym.Env):
    """Its states are new ones in every episode, whatever the seed."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
    count = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        type(self).count += 1
        self._here = float(self.count)
        return np.array([self._here], np.float32), {}

    def step(self, action):
        self._here += 0.5
        return np.array([self._here], np.float32), 0.0, False, False, {}


def test_what_cannot_be_resumed_is_told_and_begins_anew(register, caplog):
    name = register("Unrepeatable-v0", Unrepeatable, max_episode_steps=10)
    assert not copying.is_repeatable(name)
    copies = Copies(name, 2, seed=0)
    copies.begin(1)
    copies.step(np.zeros((2, 1), np.float32))
    kept = copies.state
    copies.resume(kept)
    assert "2 of 2 copies cannot be resumed" in caplog.text
    np.testing.assert_array_equal(copies.state.episode, kept.episode + 1)
    np.testing.assert_array_equal(copies.state.elapsed, 0)
    copies.close()


@pytest.mark.parametrize("environment", ["Pendulum-v1", "Hopper-v5"])
def test_environments_of_gymnasium_are_repeatable(environment):
    assert copying.is_repeatable(environment)


def test_every_episode_has_a_reset_of_its_own():
    seeds = {
        copying.reset_seed(seed, copy, episode)
        for seed in range(3)
        for copy in range(4)
        for episode in range(5)
    }
    assert len(seeds) == 60
