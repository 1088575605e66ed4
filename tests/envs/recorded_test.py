"""How an environment differs from the one that data were recorded in."""

import gymnasium as gym
import pytest

from dawm_jax.envs.perturbed import Physics
from dawm_jax.envs.recorded import Recorded, advice, differences, parse_kwargs, recorded
from dawm_jax.types import UserError


def make(**kwargs):
    env = gym.make("Hopper-v5", **kwargs)
    env.close()
    return env


def test_the_same_environment_does_not_differ():
    env = make()
    assert differences(recorded(env.spec), env) == []
    assert advice(recorded(env.spec), env) == ""


@pytest.mark.parametrize(
    "kwargs",
    [
        {"render_mode": "rgb_array", "width": 64, "height": 64},  # pictures alone
        {"terminate_when_unhealthy": True, "healthy_angle_range": (-0.2, 0.2)},  # the defaults
    ],
)
def test_what_changes_no_transition_does_not_differ(kwargs):
    env = gym.wrappers.RecordEpisodeStatistics(make(**kwargs))
    assert differences(recorded(env.spec), make()) == []


def test_keyword_arguments_differ_with_the_flag_that_helps():
    data = recorded(make(terminate_when_unhealthy=False, forward_reward_weight=2).spec)
    (line,) = differences(data, make())
    assert "recorded with terminate_when_unhealthy=False, forward_reward_weight=2 and" in line
    assert "evaluated with terminate_when_unhealthy=True, forward_reward_weight=1.0;" in line
    flag = "--config.environment_kwargs="
    text = '{"terminate_when_unhealthy": false, "forward_reward_weight": 2}'
    assert f"{flag}'{text}' evaluates as recorded" in line
    assert differences(data, make(**parse_kwargs(text))) == []
    # Also where the evaluation has an argument that the data had not.
    (line,) = differences(recorded(make().spec), make(reset_noise_scale=0.5))
    assert "recorded with reset_noise_scale=0.005 and" in line


def test_the_time_limit_differs_with_the_flag_that_helps():
    data = recorded(make(max_episode_steps=50).spec)
    (line,) = differences(data, make())
    assert "recorded with a time limit of 50 steps and" in line
    assert "one of 1,000" in line or "a time limit of 1,000 steps" in line
    assert advice(data, make()) == "--config.environment_kwargs='{\"max_episode_steps\": 50}'"
    assert differences(data, make(max_episode_steps=50)) == []


def test_a_flag_keeps_what_does_not_differ():
    data = recorded(make(max_episode_steps=50, reset_noise_scale=0.1).spec)
    flag = advice(data, make(reset_noise_scale=0.1))
    assert parse_kwargs(flag.partition("=")[2].strip("'")) == {
        "reset_noise_scale": 0.1,
        "max_episode_steps": 50,
    }


def test_wrappers_differ():
    env = gym.wrappers.TimeAwareObservation(make())
    (line,) = differences(recorded(env.spec), make())
    assert "recorded with the wrappers TimeAwareObservation and" in line
    assert "evaluated with no wrappers" in line


def test_all_lines_are_lines():
    data = Recorded({"unknown": "a\nb"}, ("Odd",), None)
    lines = differences(data, make())
    assert len(lines) == 3
    assert not any("\n" in line for line in lines)


@pytest.mark.parametrize(
    ("text", "found"),
    [("", {}), ("{}", {}), ('{"a": false, "b": [1, null]}', {"a": False, "b": [1, None]})],
)
def test_keyword_arguments_are_a_json_object(text, found):
    assert parse_kwargs(text) == found


@pytest.mark.parametrize("text", ["[1]", "3", "null", "a=1", "{'a': 1}", "{", " ", "[" * 100_000])
def test_what_is_no_json_object_is_refused(text):
    with pytest.raises(UserError, match="environment_kwargs: expected a JSON object") as error:
        parse_kwargs(text)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_changed_physics_differ_in_one_line():
    data = recorded(make().spec, Physics(gravity=1.2, friction=0.5))
    (line,) = differences(data, make())
    assert "recorded in changed physics (gravity=1.2,friction=0.5) and will be evaluated" in line
    assert "\n" not in line and advice(data, make()) == ""
