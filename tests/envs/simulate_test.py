"""Simulators against Gymnasium itself, bit for bit; replay against a plain loop."""

import gymnasium as gym
import mujoco
import numpy as np
import pytest

from dawm_jax.envs import simulate
from dawm_jax.envs.tasks import TASKS, Task, find_task
from dawm_jax.types import UserError

ENVIRONMENTS = [task.environment for task in TASKS if task.batch_physics is not None]


def test_the_registered_tasks_have_the_batch_engine():
    assert ENVIRONMENTS == ["HalfCheetah-v5", "Hopper-v5", "Walker2d-v5"]
    for environment in ENVIRONMENTS:
        simulator = simulate.make_simulator(environment, 1)
        assert isinstance(simulator, simulate._BatchSimulator)
        simulator.close()


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_the_batch_engine_equals_gymnasium_bit_for_bit(environment):
    """Random subsets of copies, random actions, episodes that end and start again."""
    num, steps = 4, 240
    batch = simulate.make_simulator(environment, num)
    plain = [gym.make(environment, max_episode_steps=25) for _ in range(num)]
    batch._limit = 25  # a time-out within the test
    rng = np.random.default_rng(0)
    for i in range(num):
        np.testing.assert_array_equal(batch.reset(i, seed=i), plain[i].reset(seed=i)[0])
    low, high = plain[0].action_space.low, plain[0].action_space.high
    ends = {"terminated": 0, "truncated": 0}
    for t in range(steps):
        indices = np.sort(rng.choice(num, 3, replace=False))
        actions = rng.uniform(low, high, (3, len(low))).astype(np.float32) * 0.3
        got = batch.step(indices, actions)
        for row, i in enumerate(indices):
            observation, reward, terminated, truncated, _ = plain[i].step(actions[row])
            np.testing.assert_array_equal(got.observations[row], observation)
            assert got.rewards[row] == reward
            assert (got.terminated[row], got.truncated[row]) == (terminated, truncated)
            ends["terminated"] += terminated
            ends["truncated"] += truncated
            if terminated or truncated:
                seed = 1000 + t * num + int(i)
                np.testing.assert_array_equal(
                    batch.reset(i, seed=seed), plain[i].reset(seed=seed)[0]
                )
    batch.close()
    # Otherwise an end was never compared.
    assert ends["terminated"] > 0 or environment == "HalfCheetah-v5"
    assert ends["truncated"] > 0


def test_hopper_and_walker_end_where_gymnasium_says():
    """States on both sides of every limit of health."""
    rng = np.random.default_rng(1)
    for environment, size in (("Hopper-v5", 6), ("Walker2d-v5", 9)):
        env = gym.make(environment).unwrapped
        qpos = rng.uniform(-1, 1, (300, size))
        qpos[:, 1] = rng.uniform(0.5, 2.3, 300)
        qpos[:, 2] = rng.uniform(-0.3, 0.3, 300) * (1 if environment == "Hopper-v5" else 5)
        qvel = rng.uniform(-1, 1, (300, size)) * rng.choice([1, 150], (300, 1), p=[0.8, 0.2])
        expected = []
        for position, velocity in zip(qpos, qvel, strict=True):
            env.data.qpos[:], env.data.qvel[:] = position, velocity
            expected.append(bool(env.is_healthy))
        got = find_task(environment).batch_physics.healthy(qpos, qvel)
        np.testing.assert_array_equal(got, expected)
        assert 20 < got.sum() < 280
        env.close()


class _Clock(gym.Env):
    """Sees the clock and its seed; pays the action."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,))
    action_space = gym.spaces.Box(-1, 1, (1,))

    def __init__(self, last=3):
        self._last = last

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._clock, self._seed = 0, seed
        return np.array([0, seed], np.float32), {}

    def step(self, action):
        self._clock += 1
        state = np.array([self._clock, self._seed], np.float32)
        return state, float(action[0]), self._clock >= self._last, False, {}


def test_other_environments_are_stepped_by_gymnasium(register):
    name = register("DawmClock-v0", _Clock, max_episode_steps=2)
    simulator = simulate.make_simulator(name, 3)
    for i in range(3):
        np.testing.assert_array_equal(simulator.reset(i, seed=5 + i), [0, 5 + i])
    steps = simulator.step(np.array([0, 2]), np.array([[0.5], [-1.0]]))
    np.testing.assert_array_equal(steps.observations, [[1, 5], [1, 7]])
    np.testing.assert_array_equal(steps.rewards, [0.5, -1.0])
    steps = simulator.step(np.array([2]), np.array([[0.25]]))
    np.testing.assert_array_equal(steps.observations, [[2, 7]])
    assert (steps.terminated[0], steps.truncated[0]) == (False, True)
    simulator.close()


# --- one-step replay ----------------------------------------------------------------------


@pytest.mark.parametrize("environment", [*ENVIRONMENTS, "Ant-v5", "Humanoid-v5", "Swimmer-v5"])
def test_replay_repeats_what_the_simulator_did(environment):
    env = gym.make(environment)
    rng = np.random.default_rng(2)
    steps = []
    observation, _ = env.reset(seed=0)
    for _ in range(60):
        action = rng.uniform(-0.3, 0.3, env.action_space.shape)
        next_observation, reward, terminated, _, _ = env.step(action)
        steps.append((observation, action, next_observation, reward, terminated))
        observation = env.reset(seed=1)[0] if terminated else next_observation
    env.close()
    observations, actions, next_observations, rewards, terminations = (
        np.array(column) for column in zip(*steps, strict=True)
    )
    # Walker2d's and Hopper's observed velocities are clipped at 10: such a state is lost.
    clipped = environment in ("Hopper-v5", "Walker2d-v5")
    known = (np.abs(observations) < 10.0).all(1) | (not clipped)
    assert known.sum() >= 20
    got = simulate.replay(environment, observations[known], actions[known])
    np.testing.assert_allclose(got[0], next_observations[known], rtol=1e-5, atol=1e-4)
    # Ant and Humanoid reward the distance that the body moves from where it was one substep before
    # the observation. Their velocities change by less than 0.02 and 0.001 in a substep here.
    atol = {"Ant-v5": 0.02, "Humanoid-v5": 1e-3}.get(environment, 1e-4)
    np.testing.assert_allclose(got[1], rewards[known], atol=atol)
    np.testing.assert_array_equal(got[2], terminations[known])


@pytest.mark.parametrize("environment", ["Ant-v5", "Humanoid-v5"])
def test_registered_state_columns_are_the_positions_and_velocities(environment):
    env = gym.make(environment)
    structure = env.unwrapped.observation_structure
    assert simulate.state_columns(env).size == structure["qpos"] + structure["qvel"]
    assert find_task(environment).state_columns == structure["qpos"] + structure["qvel"]
    env.close()


def test_no_state_columns_where_observations_do_not_hold_the_state():
    for environment in ("Pendulum-v1", "Reacher-v5"):
        env = gym.make(environment)
        assert simulate.state_columns(env) is None
        env.close()


def test_replay_with_other_margins_differs_for_hopper_in_contact():
    env = gym.make("Hopper-v5")
    observation, _ = env.reset(seed=0)
    observations = []
    for _ in range(30):
        observations.append(observation)
        observation = env.step(np.zeros(3))[0]
    env.close()
    observations, actions = np.array(observations), np.zeros((30, 3))
    added = simulate.replay("Hopper-v5", observations, actions)[0]
    largest = simulate.replay("Hopper-v5", observations, actions, margin_scale=0.5)[0]
    assert np.abs(added - largest).max() > 1e-3
    # Before the foot touches the ground, nothing differs.
    np.testing.assert_array_equal(added[0], largest[0])


@pytest.mark.parametrize(
    ("environment", "size", "message"),
    [
        ("Reacher-v5", 10, "cannot be rebuilt"),
        ("Pendulum-v1", 3, "cannot be rebuilt"),
        ("Hopper-v5", 17, "has 11 observation dimensions, the data 17"),
    ],
)
def test_what_cannot_be_replayed(environment, size, message):
    with pytest.raises(UserError, match=message):
        simulate.replay(environment, np.zeros((1, size)), np.zeros((1, 3)))


# --- environments -------------------------------------------------------------------------


class _Odd(_Clock):
    def __init__(self, action_space, observation_space=_Clock.observation_space):
        super().__init__()
        self.action_space, self.observation_space = action_space, observation_space


def test_keyword_arguments_are_gymnasiums(register):
    """The batch engine knows one set of them; any other is stepped by Gymnasium."""
    kwargs = {"forward_reward_weight": 3.0, "terminate_when_unhealthy": False}
    simulator = simulate.make_simulator("Hopper-v5", 2, kwargs=kwargs)
    assert isinstance(simulator, simulate._GymnasiumSimulator)
    assert isinstance(simulate.make_simulator("Hopper-v5", 2, kwargs={}), simulate._BatchSimulator)
    plain = gym.make("Hopper-v5", **kwargs)
    np.testing.assert_array_equal(simulator.reset(1, 5), plain.reset(seed=5)[0])
    action = np.full(3, 0.5, np.float32)
    steps = simulator.step(np.array([1]), action[None])
    observation, reward, *_ = plain.step(action)
    np.testing.assert_array_equal(steps.observations[0], observation)
    assert steps.rewards[0] == reward
    simulator.close()
    plain.close()


def test_keyword_arguments_that_an_environment_does_not_take():
    with pytest.raises(UserError, match=r"cannot be made .*environment_kwargs \(wind\)") as error:
        simulate.make_environment("Hopper-v5", {"wind": 3})
    assert "\n" not in str(error.value)


_WIDE = gym.spaces.Box(np.linspace(-9, -1, 60), np.linspace(1, 9, 60), dtype=np.float64)
_FLAT = gym.spaces.Box(-1, 1, (1,))


@pytest.mark.parametrize(
    ("spaces", "message"),
    [
        ((gym.spaces.Box(-1, 1, (2, 2)),), "flat Box space of actions"),
        ((gym.spaces.Box(-np.inf, 1, (2,)),), "bounded actions"),
        ((gym.spaces.Box(-1, 1, (2,), np.int64),), "continuous actions of floats, got int64"),
        ((gym.spaces.Box(1, 1, (2,)),), "low bound is below the high one"),
        ((_FLAT, gym.spaces.Dict(kind=gym.spaces.Discrete(60))), "flat Box space of observations"),
        ((_FLAT, gym.spaces.Box(0, 255, (8, 8, 3), np.uint8)), "flat Box space of observations"),
    ],
    ids=["matrix", "unbounded", "integers", "no range", "dict", "image"],
)
def test_other_spaces(register, spaces, message):
    name = register("DawmOdd-v0", lambda: _Odd(*spaces), disable_env_checker=True)
    with pytest.raises(UserError, match=message) as error:
        simulate.make_environment(name)
    assert "DawmOdd-v0" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_registered_task_is_named_with_its_package():
    TASKS.register(Task(name="foo", environment="no_such_package:Foo-v0"))
    try:
        with pytest.raises(UserError, match=r"name it no_such_package:Foo-v0$"):
            simulate.make_environment("Foo-v0")
        with pytest.raises(UserError, match="install the package no_such_package, with the extra"):
            simulate.make_environment("no_such_package:Foo-v0")
    finally:
        TASKS.unregister("foo")


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ("CartPole-v1", "flat Box space of actions"),
        ("NoSuchTask-v0", "cannot be made"),
        ("Hopper-v99", "cannot be made"),
        ("no_such_package:Task-v0", "install the package no_such_package$"),
        ("not an id", "cannot be made"),
    ],
)
def test_unusable_environments(environment, message):
    with pytest.raises(UserError, match=message) as error:
        simulate.make_environment(environment)
    assert environment in str(error.value)
    assert "\n" not in str(error.value)


def test_the_warning_of_gymnasiums_own_model_is_not_shown(capfd, caplog, tmp_path, monkeypatch):
    """Neither on the terminal nor in a file; the user's own handler is in force afterwards."""
    monkeypatch.chdir(tmp_path)
    seen = []
    mujoco.set_mju_user_warning(seen.append)
    try:
        simulate.make_environment("HalfCheetah-v5").close()
        assert not seen and not caplog.text
        gym.make("HalfCheetah-v5").close()
        assert ["settotalmass" in text for text in seen] == [True]  # MuJoCo does warn of it
    finally:
        mujoco.set_mju_user_warning(None)
    assert not any(capfd.readouterr()) and not list(tmp_path.iterdir())


def test_other_warnings_of_models_are_logged(caplog):
    with simulate._warnings_of_models():
        mujoco.get_mju_user_warning()("mass of a body is 0")
    assert "MuJoCo: mass of a body is 0" in caplog.text
