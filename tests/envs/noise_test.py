"""The noise of observations and actions: its moments, its bounds, and none of it at level 0."""

import numpy as np
from scipy import stats

from dawm_jax.envs.noise import Noise, NoisyPolicy

EPISODES, SIZE, ACTIONS = 400, 3, 2
LOW, HIGH = np.array([-1.0, -3.0], np.float32), np.array([1.0, 3.0], np.float32)


class Recorder:
    """A policy that keeps what it sees and acts the same everywhere."""

    def __init__(self, action):
        self.seen, self._action = [], np.asarray(action, np.float32)

    def __call__(self, observations, /):
        self.seen.append(observations)
        return np.broadcast_to(self._action, (*observations.shape[:-1], ACTIONS))


def noise(observation, action):
    """Conditions with these deviations in every dimension."""
    return Noise(
        np.outer(observation, np.ones(SIZE)), np.outer(action, np.ones(ACTIONS)), LOW, HIGH
    )


def steps(recorder, deviations, count=50, seed=3):
    policy = NoisyPolicy(recorder, deviations, seed=seed)
    shape = (2, len(deviations.observation) * EPISODES, SIZE)
    return np.stack([policy(np.full(shape, 0.25, np.float32)) for _ in range(count)])


def test_observation_noise_is_normal_with_the_given_deviation():
    recorder = Recorder([0.0, 0.0])
    actions = steps(recorder, noise([0.0, 0.5], [0.0, 0.0]))
    seen = np.stack(recorder.seen)
    assert seen.dtype == np.float32
    np.testing.assert_array_equal(seen[:, :, :EPISODES], 0.25)
    drawn = (seen[:, :, EPISODES:] - 0.25) / 0.5
    sample = drawn[::7, :, ::5].ravel()
    assert stats.kstest(sample, "norm").pvalue > 0.01
    np.testing.assert_allclose(drawn.std(), 1.0, atol=0.01)
    # Steps, policies, episodes and dimensions are independent of each other.
    for one, other in ((drawn[1:], drawn[:-1]), (drawn[:, 1:], drawn[:, :-1])):
        assert abs((one * other).mean()) < 0.02
    assert abs((drawn[:, :, 1:] * drawn[:, :, :-1]).mean()) < 0.02
    assert abs((drawn[..., 1:] * drawn[..., :-1]).mean()) < 0.02
    np.testing.assert_array_equal(actions, 0.0)


def test_action_noise_is_clipped_and_silent_at_level_zero():
    """An action outside the bounds passes where there is no noise: the simulator clips it."""
    actions = steps(Recorder([0.9, 5.0]), noise([0.0, 0.0], [0.0, 0.2]))
    assert (actions[:, :, :EPISODES] == np.float32([0.9, 5.0])).all()
    noisy = actions[:, :, EPISODES:]
    assert (noisy[..., 1] == 3.0).all() and noisy[..., 0].max() == 1.0
    # The median of the clipped noise is that of the noise, and 0.9 + 0.2 z < 1 for z < 0.5.
    np.testing.assert_allclose(np.median(noisy[..., 0]), 0.9, atol=0.01)
    np.testing.assert_allclose((noisy[..., 0] < 1.0).mean(), stats.norm.cdf(0.5), atol=0.01)


def test_conditions_share_their_numbers_and_seeds_do_not():
    recorder = Recorder([0.0, 0.0])
    steps(recorder, noise([0.1, 0.4], [0.0, 0.0]), count=1)
    steps(recorder, noise([0.4], [0.0]), count=1)
    steps(recorder, noise([0.4], [0.0]), count=1, seed=4)
    both, alone, other = (seen - 0.25 for seen in recorder.seen)
    np.testing.assert_allclose(both[:, EPISODES:], 4 * both[:, :EPISODES], atol=1e-6)
    np.testing.assert_array_equal(both[:, EPISODES:], alone)  # whatever else is in the batch
    assert (other != alone).all()
