"""The sweeps: every one holds the unchanged level, and names are told apart."""

import pytest

from dawm_jax.envs import perturbed
from dawm_jax.envs.perturbed import Physics
from dawm_jax.robustness import sweeps
from dawm_jax.robustness.sweeps import SWEEPS, Level
from dawm_jax.types import UserError


def test_every_sweep_ascends_and_holds_the_unchanged_level_once():
    for sweep in SWEEPS:
        assert list(sweep.values) == sorted(set(sweep.values))
        assert sweep.levels.count(Level()) == 1
        assert sweep.levels[sweep.values.index(sweep.unchanged)] == Level()


def test_factors_of_the_literature_are_there():
    values = {sweep.change: set(sweep.values) for sweep in SWEEPS}
    assert {0.1, 0.5, 2.0, 5.0} <= values["gravity"] & values["friction"]
    assert set(values) == {*perturbed.NAMES, "observation", "action"}


def test_a_level_changes_what_its_sweep_names():
    (gravity, action) = sweeps.parse("action, gravity")  # in the order of SWEEPS
    assert gravity.levels[0] == Level(Physics(gravity=0.1))
    assert action.levels[1] == Level(action_noise=0.05)
    (observation,) = sweeps.parse("observation")
    assert observation.levels[-1] == Level(observation_noise=0.2)


def test_all_levels_have_different_keys_and_the_unchanged_one_is_shared():
    levels = sweeps.distinct_levels(SWEEPS)
    assert levels[0] == Level() and levels[0].key == "unchanged"
    assert len({level.key for level in levels}) == len(levels)
    assert len(levels) == 1 + sum(len(sweep.values) - 1 for sweep in SWEEPS)
    assert Level(Physics(gravity=0.5), 0.1).key == "gravity=0.5,observation=0.1"


@pytest.mark.parametrize("text", ["", "wind", "gravity,wind", "gravity,gravity", "gravity=2"])
def test_unknown_changes_are_one_line(text):
    with pytest.raises(UserError, match="--changes: expected different ones of gravity, ") as error:
        sweeps.parse(text)
    assert "\n" not in str(error.value)
