"""Every stage is compiled and called, and its operations are counted."""

import numpy as np
import pytest

from dawm_jax.benchmark import jax_side
from dawm_jax.config import schema
from dawm_jax.types import UserError


@pytest.mark.parametrize("stage", jax_side.STAGES)
def test_a_stage_can_be_called_again(stage, problem):
    compiled = jax_side.compile_stage(stage, problem, units=4)
    compiled.call()
    compiled.call()
    windows = problem.config.rollout.windows_per_round
    assert compiled.units == {"sampling": 4 * windows, "pipeline": 1}.get(stage, 4)
    assert compiled.flops > 0


def test_the_flops_of_a_td3_bc_update_by_hand(problem):
    states, actions, hidden, batch = 11, 3, 16, 16
    layers = lambda size, out: np.array([size * hidden, hidden * hidden, hidden * out])
    actor, critic = layers(states, actions), layers(states + actions, 1)
    forward = lambda network: network.sum()
    weights = lambda network: network.sum()
    inputs = lambda network: network[1:].sum()  # no gradient of the first layer's input
    of_critics = forward(actor) + 2 * forward(critic)  # the target
    of_critics += 2 * (forward(critic) + weights(critic) + inputs(critic))
    of_actor = forward(actor) + weights(actor) + inputs(actor)
    of_actor += 2 * forward(critic)  # forward, and backward to the action
    expected = 2 * batch * (of_critics + of_actor / 2)  # the policy moves every other update
    compiled = jax_side.compile_stage("td3_bc", problem, units=4)
    np.testing.assert_allclose(compiled.flops, expected)


def test_updates_that_would_be_counted_but_not_made_are_refused(problem):
    with pytest.raises(ValueError, match="25 updates are not whole"):
        jax_side.compile_stage("td3_bc", problem, units=25)


def test_more_seeds_are_more_units_of_the_same_cost(problem):
    one = jax_side.compile_stage("td3_bc", problem, units=4)
    three = jax_side.compile_stage("td3_bc", problem, units=4, seeds=3)
    three.call()
    assert (one.units, three.units) == (4, 12)
    np.testing.assert_allclose(one.flops, three.flops)


def test_another_method_has_other_stages(config):
    with pytest.raises(UserError, match=r"config\.method: expected dawm.*got 'dwm'"):
        jax_side.check(schema.replace(config, {"method": "dwm"}))
