"""Changed physics: the model against NumPy, the simulators against each other and unchanged."""

import gymnasium as gym
import mujoco
import numpy as np
import pytest

from dawm_jax.envs import perturbed, rollouts, simulate
from dawm_jax.envs.perturbed import Physics
from dawm_jax.types import UserError

ALL = Physics(gravity=1.2, friction=0.5, mass=1.5, damping=2.0, actuator=0.8)
TASKS = ("Hopper-v5", "HalfCheetah-v5", "Walker2d-v5")


def model_of(environment):
    env = gym.make(environment)
    model = env.unwrapped.model
    env.close()
    return model


def weight(model):
    """The force of gravity on all bodies, from the generalised forces at rest without contacts."""
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    return data.qfrc_bias[1]  # of the vertical slide


def test_every_factor_multiplies_its_constants_alone():
    fields = {
        "gravity": (lambda m: m.opt.gravity,),
        "friction": (lambda m: m.geom_friction,),
        "mass": (lambda m: m.body_mass, lambda m: m.body_inertia),
        "damping": (lambda m: m.dof_damping,),
        "actuator": (lambda m: m.actuator_ctrlrange,),
    }
    assert tuple(fields) == perturbed.NAMES
    for changed in fields:
        before, after = model_of("Hopper-v5"), model_of("Hopper-v5")
        perturbed.change_model(after, Physics(**{changed: 1.7}))
        for name, getters in fields.items():
            for get in getters:
                factor = 1.7 if name == changed else 1.0
                np.testing.assert_array_equal(get(after), factor * get(before))
                assert np.abs(get(before)).max() > 0  # otherwise a factor would not be seen


@pytest.mark.parametrize("name", ["gravity", "mass"])
def test_weight_follows_gravity_and_mass(name):
    """Newton: the weight is mass times gravity."""
    before, after = model_of("Hopper-v5"), model_of("Hopper-v5")
    perturbed.change_model(after, Physics(**{name: 1.3}))
    expected = 9.81 * before.body_mass.sum()
    np.testing.assert_allclose(weight(before), expected, rtol=1e-12)
    np.testing.assert_allclose(weight(after), 1.3 * expected, rtol=1e-12)


def test_derived_constants_follow_the_mass():
    """The inverse of an inertia divides by its factor; the armature adds to the inertia."""
    before, after = model_of("Hopper-v5"), model_of("Hopper-v5")
    for model in (before, after):
        model.dof_armature[:] = 0.0
        mujoco.mj_setConst(model, mujoco.MjData(model))
    perturbed.change_model(after, Physics(mass=4.0))
    np.testing.assert_allclose(after.dof_invweight0, before.dof_invweight0 / 4.0, rtol=1e-9)
    np.testing.assert_allclose(after.body_subtreemass, before.body_subtreemass * 4.0, rtol=1e-12)


def test_a_smaller_actuator_range_clips_the_action():
    """The motor's force is its gear times the clipped control."""
    model = model_of("Hopper-v5")
    perturbed.change_model(model, Physics(actuator=0.6))
    data = mujoco.MjData(model)
    data.ctrl[:] = 1.0, 0.5, -1.0
    mujoco.mj_forward(model, data)
    np.testing.assert_allclose(
        data.qfrc_actuator[3:], np.array([0.6, 0.5, -0.6]) * model.actuator_gear[:, 0]
    )


def random_actions(environment, num, steps):
    env = gym.make(environment)
    space = env.action_space
    env.close()
    return np.random.default_rng(0).uniform(space.low, space.high, (steps, num, *space.shape))


@pytest.mark.parametrize("environment", TASKS)
def test_the_batch_engine_equals_a_changed_gymnasium_bit_for_bit(environment):
    """Copies of several physics in one batch; the first and last are unchanged."""
    copies = [Physics(), ALL, Physics(gravity=5.0), ALL, Physics()]
    batch = simulate.make_simulator(environment, len(copies), physics=copies)
    plain = [gym.make(environment) for _ in copies]
    for env, physics in zip(plain, copies, strict=True):
        perturbed.change_model(env.unwrapped.model, physics)
    for i, env in enumerate(plain):
        np.testing.assert_array_equal(batch.reset(i, seed=7), env.reset(seed=7)[0])
    over = np.zeros(len(copies), bool)
    for actions in random_actions(environment, len(copies), 60).astype(np.float32):
        active = np.flatnonzero(~over)
        got = batch.step(active, actions[active])
        for row, i in enumerate(active):
            observation, reward, terminated, *_ = plain[i].step(actions[i])
            np.testing.assert_array_equal(got.observations[row], observation)
            assert (got.rewards[row], got.terminated[row]) == (reward, terminated)
            over[i] = terminated
    batch.close()
    for env in plain:
        env.close()


@pytest.mark.parametrize("kwargs", [None, {"reset_noise_scale": 5e-3}], ids=["batch", "gymnasium"])
def test_level_one_gives_the_episodes_of_the_unchanged_simulator(kwargs):
    """Bit for bit, beside changed episodes that differ."""

    def policy(observations, /):
        return np.sin(5.0 * observations[..., :3])

    seeds = np.array([[3, 4], [5, 6]])
    unchanged = rollouts.run_episodes(
        policy, "Hopper-v5", seeds=seeds, environment_kwargs=kwargs, max_steps=60
    )
    columns = [Physics(), Physics(), ALL, ALL]
    both = rollouts.run_episodes(
        policy,
        "Hopper-v5",
        seeds=np.tile(seeds, (1, 2)),
        environment_kwargs=kwargs,
        physics=columns,
        max_steps=60,
    )
    np.testing.assert_array_equal(both.returns[:, :2], unchanged.returns)
    assert (both.returns[:, 2:] != unchanged.returns).all()


# --- as text ------------------------------------------------------------------------------


@pytest.mark.parametrize("physics", [ALL, Physics(gravity=0.1), Physics(damping=1 / 3)])
def test_text_is_read_back(physics):
    assert perturbed.parse(str(physics)) == physics
    assert perturbed.from_metadata(physics.changed()) == physics


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected factors such as"),
        ("gravity", "expected factors such as"),
        ("gravity=", "expected factors such as"),
        ("gravity=heavy", "got gravity=heavy"),
        ("gravity=nan", "got gravity=nan"),
        ("gravity=1,gravity=2", "each name once"),
        ("wind=2", "of gravity, friction, mass, damping, actuator"),
        ("gravity=0", "above 0 and at most 100 for gravity, got 0"),
        ("mass=-1", "for mass, got -1"),
        ("friction=inf", "for friction, got inf"),
        ("gravity=1.2;friction=2", "got gravity=1.2;friction=2"),
    ],
)
def test_wrong_text_is_one_line(text, message):
    with pytest.raises(UserError, match=message) as error:
        perturbed.parse(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "value",
    [
        None,
        "gravity",
        ["gravity"],
        {},
        {"wind": 2.0},
        {"mass": "heavy"},
        {"mass": -1.0},
        {"mass": 1e9},
    ],
)
def test_metadata_of_others_are_unchanged_physics(value):
    assert perturbed.from_metadata(value) == perturbed.UNCHANGED


def test_an_environment_without_a_model_is_refused_in_one_line():
    with pytest.raises(UserError, match=r"Pendulum-v1 has no MuJoCo model") as error:
        simulate.make_simulator("Pendulum-v1", 1, physics=[ALL])
    assert "\n" not in str(error.value)
    simulate.make_simulator("Pendulum-v1", 1, physics=[perturbed.UNCHANGED]).close()
