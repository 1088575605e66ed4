"""All levels in one batch against each level alone."""

import types

import numpy as np
import pytest

from dawm_jax.config import schema
from dawm_jax.envs import rollouts
from dawm_jax.envs.perturbed import Physics
from dawm_jax.robustness import play, run
from dawm_jax.robustness.play import Policies
from dawm_jax.robustness.sweeps import Level
from dawm_jax.runtime.stopping import Interrupted, StopFlag
from dawm_jax.types import UserError

LEVELS = (
    Level(),
    Level(Physics(gravity=2.0)),
    Level(observation_noise=0.1),
    Level(action_noise=0.2),
)


def act(observations, /):
    """Two policies, elementwise so that batching cannot change their rounding."""
    return np.sin(np.array([4.0, 9.0], np.float32)[:, None, None] * observations[..., 2:5])


def policies(environment="Hopper-v5"):
    return Policies(
        act=act,
        num_seeds=2,
        root_seed=1,
        environment=environment,
        environment_kwargs={},
        max_steps=40,
        observation_std=np.linspace(0.5, 1.5, 11),
        action_low=-np.ones(3, np.float32),
        action_high=np.ones(3, np.float32),
    )


def returns(levels, stop=None):
    return play.play(
        policies(),
        levels,
        episodes=3,
        seed=5,
        stop=stop or StopFlag(),
        report=lambda step, limit, running: None,
    )


def test_constant_columns_get_no_noise():
    """The normalizer scales them by 1, and their standard deviation in the data is 0."""
    low, high = np.array([0.0, 3.0, -1.0]), np.array([2.0, 3.0, 1.0])
    constants = types.SimpleNamespace(
        observation_std=np.array([0.5, 1.0, 0.25]),
        observation_low=low,
        observation_high=high,
        action_low=-np.ones(1),
        action_high=np.ones(1),
    )
    loaded = types.SimpleNamespace(
        config=schema.parse(schema.get_config("smoke")), normalizer=constants, act=act
    )
    np.testing.assert_array_equal(run._policies(loaded).observation_std, [0.5, 0.0, 0.25])


def test_one_batch_equals_each_level_alone_and_the_first_an_evaluation():
    together = returns(LEVELS)
    assert together.shape == (4, 2, 3)
    for level, own in zip(LEVELS, together, strict=True):
        np.testing.assert_array_equal(returns([level])[0], own)
    seeds = rollouts.reset_seeds(5, 1, 0, num_policies=2, num_episodes=3)
    plain = rollouts.run_episodes(act, "Hopper-v5", seeds=seeds, max_steps=40).returns
    np.testing.assert_array_equal(together[0], plain)
    for changed in together[1:]:
        assert (changed != plain).all()


def test_it_stops_between_steps():
    stop = StopFlag()
    stop.signal = 15
    with pytest.raises(Interrupted):
        returns(LEVELS, stop)


def test_physics_need_a_model_and_noise_does_not():
    play.check(policies("Pendulum-v1"), [Level(), Level(action_noise=0.1)])
    with pytest.raises(UserError, match="Pendulum-v1 has no MuJoCo model"):
        play.check(policies("Pendulum-v1"), LEVELS)
