"""What `build_replay` tells and refuses before anything is trained."""

import dataclasses
import types
import typing

import gymnasium as gym
import numpy as np
import pytest
import tiny_data as tiny
from small_run import small_config

from dawm_jax.agents.base import AGENTS
from dawm_jax.config import schema
from dawm_jax.data.flat_arrays import from_flat_arrays
from dawm_jax.data.load import load_dataset
from dawm_jax.envs import scores
from dawm_jax.envs.recorded import Recorded
from dawm_jax.envs.tasks import References
from dawm_jax.training import setup
from dawm_jax.types import UserError

ENVIRONMENT = "DawmRoom-v0"


class Room(gym.Env):
    """Never stepped: its spaces and its keyword arguments count."""

    def __init__(self, size: int = tiny.STATE_SIZE, low: float = -1.0, gravity: float = 9.8):
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (size,), np.float32)
        self.action_space = gym.spaces.Box(low, 1, (tiny.ACTION_SIZE,), np.float32)


@pytest.fixture(autouse=True)
def _room(register):
    register(ENVIRONMENT, Room, max_episode_steps=4)


def config(**changes):
    values = schema.parse(schema.get_config("smoke", environment=ENVIRONMENT))
    return schema.replace(values, {name.replace("__", "."): x for name, x in changes.items()})


def dataset(**changes):
    arrays = tiny.d4rl_arrays(tiny.make_episodes())
    found = from_flat_arrays("tiny", **{k: x for k, x in {**arrays, **changes}.items()})
    return found


def build(data, caplog, **changes):
    caplog.clear()
    replay, normalizer = setup.build_replay(config(**changes), data)
    messages = [record.getMessage() for record in caplog.records]
    assert not any("\n" in message for message in messages)
    return replay, normalizer, messages


def test_usual_data_are_built_without_a_word(caplog):
    replay, _, messages = build(dataset(), caplog)
    assert len(replay) == 12 and replay.num_train < 12
    assert messages == []


# --- where the data come from -------------------------------------------------------------


def origin(environment=ENVIRONMENT, kwargs=(), wrappers=(), limit=4):
    return {
        "environment": environment,
        "recorded": Recorded(dict(kwargs), tuple(wrappers), limit),
    }


@pytest.mark.parametrize("name", [ENVIRONMENT, f"customenvs:{ENVIRONMENT}"])
def test_the_module_to_import_does_not_make_another_environment(caplog, name):
    data = dataclasses.replace(dataset(), **origin(name))
    assert build(data, caplog)[2] == []


def test_another_environment_is_told(caplog):
    data = dataclasses.replace(dataset(), environment="Other-v0")
    (message,) = build(data, caplog)[2]
    assert "recorded in Other-v0 and will be evaluated in DawmRoom-v0" in message


@pytest.mark.parametrize(
    ("recorded", "told"),
    [
        ({"kwargs": {"gravity": 1.6}}, ["recorded with gravity=1.6"]),
        ({"kwargs": {"gravity": 9.8}}, []),
        ({"limit": 50}, ["recorded with a time limit of 50 steps"]),
        ({"limit": None}, ["recorded with no time limit"]),
        ({"wrappers": ["FlattenObservation"]}, ["the wrappers FlattenObservation"]),
        (
            {"kwargs": {"gravity": 1.6}, "limit": 50, "wrappers": ["Odd"]},
            ["recorded with gravity=1.6", "a time limit of 50 steps", "the wrappers Odd"],
        ),
    ],
)
def test_each_difference_is_told_in_one_line(caplog, recorded, told):
    data = dataclasses.replace(dataset(), **origin(**recorded))
    messages = build(data, caplog)[2]
    assert len(messages) == len(told)
    for message, part in zip(messages, told, strict=True):
        assert part in message


def test_keyword_arguments_of_the_configuration_make_them_equal(caplog):
    data = dataclasses.replace(dataset(), **origin(kwargs={"gravity": 1.6}, limit=50))
    text = '{"gravity": 1.6, "max_episode_steps": 50}'
    assert build(data, caplog, environment_kwargs=text)[2] == []


def test_keyword_arguments_set_sizes_and_bounds(caplog):
    wide = dataset(observations=np.zeros((12, 5)), next_observations=None)
    _, normalizer, _ = build(wide, caplog, environment_kwargs='{"size": 5, "low": -3.0}')
    np.testing.assert_array_equal(normalizer.action_low, -3.0)


def test_unknown_keyword_arguments_are_refused():
    with pytest.raises(UserError, match=r"cannot be made .*environment_kwargs"):
        setup.build_replay(config(environment_kwargs='{"wind": 1}'), dataset())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "set --config.environment to the dataset's environment, or"),
        ({"environment": "Other-v0"}, "recorded in Other-v0: set --config.environment to it"),
        (origin(kwargs={"size": 5}), "--config.environment_kwargs='{\"size\": 5}'"),
        (origin(wrappers=["TimeAware"]), "with the wrappers TimeAware: register an environment"),
    ],
)
def test_other_sizes_are_refused_with_what_can_help(data, message):
    wide = dataset(observations=np.zeros((12, 5)), next_observations=None)
    with pytest.raises(UserError) as error:
        setup.build_replay(config(), dataclasses.replace(wide, **data))
    tiny.assert_one_line(error, "5 observation dimensions, DawmRoom-v0 3", message)


class Robot(Room):
    """Its observation is a position, a velocity and what follows from them."""

    model = types.SimpleNamespace(nq=1, nv=1)
    observation_structure: typing.ClassVar = {"qpos": 1, "qvel": 1, "forces": tiny.STATE_SIZE - 2}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (1, "expected 2, the positions and velocities in an observation of DawmRobot-v0"),
        (4, "expected 0 to 3, the observation columns of DawmRobot-v0, got 4; 0 generates all"),
    ],
)
def test_other_state_columns_than_the_environments_are_refused(register, columns, message):
    register("DawmRobot-v0", Robot, max_episode_steps=4)
    with pytest.raises(UserError) as error:
        changed = config(environment="DawmRobot-v0", world_model__state_columns=columns)
        setup.build_replay(changed, dataset())
    tiny.assert_one_line(error, "config.world_model.state_columns", message)


def test_columns_that_could_be_inferred_are_told(caplog, register):
    register("DawmRobot-v0", Robot, max_episode_steps=4)
    told = lambda **changes: build(dataset(), caplog, environment="DawmRobot-v0", **changes)[2]
    (message,) = told()
    assert "columns 2 to 2 of DawmRobot-v0 follow from the others" in message
    assert "--config.world_model.state_columns=2 infers them" in message
    for columns in (2, 3):  # 3 says that all are to be generated
        assert told(world_model__state_columns=columns) == []
    # Agents on real data alone train no models.
    assert told(training__real_fraction=1.0) == []


def test_another_number_of_actions_is_refused():
    with pytest.raises(UserError) as error:
        setup.build_replay(config(), dataset(actions=np.zeros((12, 3))))
    tiny.assert_one_line(error, "3 action dimensions, DawmRoom-v0 2", "--config.environment")


def test_episodes_beyond_the_time_limit_are_told(caplog):
    arrays = {"timeouts": None, "next_observations": None, "terminals": np.arange(12) == 11}
    message = build(dataset(**arrays), caplog)[2][0]
    assert "1 of 1 episodes are longer than DawmRoom-v0's limit of 4 steps" in message
    assert "the longest has 12" in message


# --- numbers ------------------------------------------------------------------------------


def test_actions_beyond_the_bounds(caplog):
    actions = np.zeros((12, 2))
    actions[3] = 1.05
    with pytest.raises(UserError, match=r"at 1 of 12 steps; --config\.clip_actions=True"):
        setup.build_replay(config(), dataset(actions=actions))
    replay, _, messages = build(dataset(actions=actions), caplog, clip_actions=True)
    np.testing.assert_array_equal(replay.transitions.action[3], 1.0)
    assert len(messages) == 1 and "these are clipped" in messages[0]


def scaled(factor, offset=0.0):
    """Observations whose column 1 is multiplied and moved."""
    arrays = tiny.d4rl_arrays(tiny.make_episodes())
    return {
        name: np.stack([x[:, 0], x[:, 1] * factor + offset, x[:, 2]], axis=1)
        for name, x in arrays.items()
        if name.endswith("observations")
    }


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (scaled(1e-5), "observation columns 1 have a standard deviation near or below 0.001"),
        (scaled(0.0, 2.5), "observation columns 1 are constant"),
        (scaled(0.1), None),
        ({"rewards": np.linspace(0, 1e-6, 12)}, "the rewards' standard deviation of 3e-07"),
        ({"rewards": np.linspace(0, 1, 12)}, None),
        ({"rewards": np.zeros(12)}, None),
    ],
)
def test_scales_that_networks_cannot_see_are_told(caplog, changes, told):
    messages = build(dataset(**changes), caplog)[2]
    assert len(messages) == (told is not None)
    assert told is None or told in messages[0]


def test_one_episode_holds_nothing_out(caplog):
    """Twelve steps within a limit of twenty: one episode, and the models have no held-out data."""
    arrays = tiny.d4rl_arrays(tiny.make_episodes())
    single = from_flat_arrays(
        "one",
        arrays["observations"],
        arrays["actions"],
        arrays["rewards"],
        np.arange(12) == 11,
        timeouts=np.zeros(12),
    )
    options = {"environment_kwargs": '{"max_episode_steps": 20}'}
    (message,) = build(single, caplog, **options)[2]
    assert "no episode is held out (there is only one)" in message
    # Agents on real data alone train no models.
    assert build(single, caplog, training__real_fraction=1.0, **options)[2] == []


# --- scores -------------------------------------------------------------------------------


def test_references_of_the_data_score_other_tasks():
    own = References(10.0, 30.0)
    returns = np.array([10.0, 20.0, 30.0])
    np.testing.assert_array_equal(scores.normalised_score(ENVIRONMENT, returns, own), [0, 50, 100])
    # A registered task's own references win; an id that only begins like it has none.
    hopper = scores.normalised_score("Hopper-v5", returns)
    np.testing.assert_array_equal(scores.normalised_score("Hopper-v5", returns, own), hopper)
    assert scores.normalised_score("Hopper-Custom-v0", returns) is None


def test_scores_with_keyword_arguments_are_called_relative(caplog):
    arrays = {"observations": np.random.default_rng(0).normal(size=(12, 11))}
    data = dataset(**arrays, next_observations=None, actions=np.zeros((12, 3)))
    changes = {"environment": "Hopper-v5", "environment_kwargs": '{"reset_noise_scale": 0.1}'}
    messages = build(data, caplog, **changes)[2]
    assert any("scores are relative to returns of Hopper-v5 without" in x for x in messages)


def test_an_agent_and_its_spec_agree_on_the_minibatches_of_an_update(monkeypatch):
    """The check of the configuration reads the spec, the training reads the agent."""
    spec = dataclasses.replace(AGENTS.get("td3_bc"), batches_per_update=lambda settings: 4)
    monkeypatch.setattr(AGENTS, "get", lambda name: spec)
    config = small_config()
    _, normalizer = setup.build_replay(config, load_dataset(config.dataset))
    message = (
        "expected batches_per_update of its AgentSpec and of the agent to be equal, got 4 and 2"
    )
    with pytest.raises(UserError, match=message):
        setup.make(config, normalizer)
