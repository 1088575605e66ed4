"""Episodes of behaviour policies: what the environment does, the same from the same seed."""

import gymnasium as gym
import jax
import numpy as np

from dawm_jax.collect import episodes as episodes_lib
from dawm_jax.collect import sac
from dawm_jax.collect.episodes import episodes
from dawm_jax.collect.policies import make_sampler
from dawm_jax.envs import simulate


def make_actor(seed):
    networks = sac.make_networks((8,), 3)
    return networks.actor.init(jax.random.key(seed), np.zeros((1, 11)))


def test_episodes_are_what_the_environment_does():
    """Every episode again, in Gymnasium, from its start and with its actions."""
    env = gym.make("Hopper-v5").unwrapped
    count = 0
    for episode in episodes("Hopper-v5", make_actor(0), steps=300, seed=3):
        first = episode.observations[0]
        env.reset(seed=0)
        env.set_state(np.concatenate([[0.0], first[:5]]), first[5:])
        for t, action in enumerate(episode.actions):
            observation, reward, terminated, _, _ = env.step(action)
            # From the same full state, so to rounding: x differs by its initial noise.
            np.testing.assert_allclose(observation, episode.observations[t + 1], atol=1e-8)
            np.testing.assert_allclose(reward, episode.rewards[t], atol=1e-8)
            assert terminated == episode.terminations[t]
        assert episode.observations.shape == (len(episode.actions) + 1, 11)
        assert episode.terminations[-1] != episode.truncations[-1]
        count += 1
    env.close()
    assert count > 5


def test_actions_are_the_policys_on_what_it_saw():
    actor, seed = make_actor(0), 4
    space = gym.spaces.Box(-1, 1, (3,))
    sampler, key = make_sampler(space), jax.random.key(seed)
    # 300 steps are one copy: its steps are numbered through all of its episodes.
    step = 0
    for episode in episodes("Hopper-v5", actor, steps=300, seed=seed):
        for t, action in enumerate(episode.actions):
            seen = episode.observations[t][None].astype(np.float32)
            expected = sampler(actor, seen, jax.random.fold_in(key, step))[0]
            np.testing.assert_array_equal(action, expected)
            step += 1


def test_time_outs_are_truncations(monkeypatch):
    make = simulate.make_simulator

    def short(environment, num, **options):
        simulator = make(environment, num, **options)
        simulator._limit = 7
        return simulator

    monkeypatch.setattr(simulate, "make_simulator", short)
    made = list(episodes("HalfCheetah-v5", None, steps=40, seed=0))
    assert [len(e.rewards) for e in made] == [7] * 6  # the first whole episode past 40 steps
    assert all(e.truncations[-1] and not e.terminations.any() for e in made)


def test_copies_share_the_steps_and_threads_change_nothing(monkeypatch):
    monkeypatch.setattr(episodes_lib, "STEPS_PER_COPY", 100)
    one, two = (
        list(episodes("Hopper-v5", make_actor(1), steps=500, seed=1, threads=threads))
        for threads in (1, 2)
    )
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        jax.tree.map(np.testing.assert_array_equal, a, b)
    total = sum(len(e.rewards) for e in one)
    longest = max(len(e.rewards) for e in one)
    assert 500 <= total < 500 + 5 * longest
    starts = {e.observations[0].tobytes() for e in one}
    assert len(starts) == len(one)
