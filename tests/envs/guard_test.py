"""What an environment may do wrong is one line with its name, the step and the seed."""

import gymnasium as gym
import numpy as np
import pytest

from dawm_jax.envs import guard, rollouts, simulate
from dawm_jax.types import UserError


class _Faulty(gym.Env):
    """Does something wrong in the reset or at its third step."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,))
    action_space = gym.spaces.Box(-1, 1, (1,))

    def __init__(self, fault):
        self._fault = fault

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._clock = 0
        if self._fault == "raise in reset":
            raise RuntimeError("the simulator\nis gone")
        return np.full(2, np.nan if self._fault == "nan in reset" else 0.0), {}

    def step(self, action):
        self._clock += 1
        observation, reward = np.zeros(2), 1.0
        if self._clock == 3:
            if self._fault == "raise":
                raise ZeroDivisionError("division by zero")
            if self._fault == "nan observation":
                observation = np.array([0.0, np.nan])
            if self._fault == "other size":
                observation = np.zeros(3)
            reward = {"nan reward": np.nan, "inf reward": np.inf}.get(self._fault, 1.0)
            reward = {"two rewards": np.ones(2), "none": None}.get(self._fault, reward)
        return observation, reward, False, False, {}


def _register(register, fault):
    # Gymnasium's own checker would refuse some of the faults in its words.
    return register(
        "DawmFaulty-v0",
        lambda: _Faulty(fault),
        max_episode_steps=5,
        disable_env_checker=True,
    )


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("raise in reset", "raised RuntimeError: the simulator in the reset with seed 7"),
        ("nan in reset", "got the observation with nan in the reset with seed 7"),
        ("raise", "raised ZeroDivisionError: division by zero at step 3 .* seed of 7 to 8"),
        ("nan observation", "got the observation with nan at step 3 .* reset with seed 7"),
        ("nan reward", "got the reward with nan at step 3 .* reset with seed 7"),
        ("inf reward", "got the reward with inf at step 3"),
        ("other size", r"expected an observation of shape \[2\], got \[3\] at step 3"),
        ("two rewards", r"expected a reward of shape \[\], got \[2\] at step 3"),
        ("none", "got the reward with nan at step 3"),
    ],
)
def test_a_faulty_environment_is_told_in_one_line(register, fault, message):
    name = _register(register, fault)
    with pytest.raises(UserError, match=f"environment DawmFaulty-v0.*{message}") as error:
        rollouts.run_episodes(
            lambda observations: np.zeros((1, 2, 1)), name, seeds=np.array([[7, 8]])
        )
    assert "\n" not in str(error.value)


def test_an_action_that_is_not_finite_is_the_policys_fault(register):
    name = _register(register, "")
    with pytest.raises(UserError, match="the action, which the policy chose, with nan at step 1"):
        rollouts.run_episodes(
            lambda observations: np.full((1, 1, 1), np.nan),
            name,
            seeds=np.zeros((1, 1), int),
        )


@pytest.mark.parametrize("environment", ["Hopper-v5", "DawmGood-v0"])
def test_a_guarded_simulator_changes_no_number(register, environment):
    class Good(_Faulty):
        def __init__(self):
            super().__init__("")

        def step(self, action):
            return np.array([0.5, action[0]]), np.array([action[0]]), False, False, {}

    register("DawmGood-v0", Good, max_episode_steps=5, disable_env_checker=True)
    plain = simulate.make_simulator(environment, 2)
    guarded = guard.GuardedSimulator(simulate.make_simulator(environment, 2), environment)
    for index in range(2):
        np.testing.assert_array_equal(plain.reset(index, 3), guarded.reset(index, 3))
    actions = np.full((2, 3 if environment == "Hopper-v5" else 1), 0.25)
    expected, got = (simulator.step(np.arange(2), actions) for simulator in (plain, guarded))
    assert got.rewards.shape == (2,)
    for a, b in zip(expected[:4], got[:4], strict=True):
        np.testing.assert_array_equal(a.ravel(), b.ravel())
    assert expected.succeeded is None and got.succeeded is None
    plain.close()
    guarded.close()
