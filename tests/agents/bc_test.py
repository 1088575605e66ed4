"""Behaviour cloning against NumPy, in float64."""

import chex
import jax
import numpy as np
import numpy_reference as reference
import pytest

from dawm_jax.agents import bc
from dawm_jax.agents.base import AgentTask
from dawm_jax.types import Transition

S, A, B, RATE = 3, 2, 8, 0.01


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def make_agent():
    task = AgentTask(
        state_size=S,
        action_size=A,
        discount=0.9,
        total_updates=100,
        return_range=1.0,
        rows=Transition,
    )
    return bc.make(bc.Settings(hidden=(6, 5), learning_rate=RATE), task)


def make_state():
    shapes = jax.eval_shape(make_agent().init, jax.random.key(0))
    return reference.in_training(shapes, count=7, seed=0)


def policy(actor, observation):
    return np.tanh(reference.mlp(actor["params"]["Mlp_0"], observation))


def test_update_equals_numpy():
    """One Adam step on the mean squared error; rewards and successors play no part."""
    rng = np.random.default_rng(0)
    state, observation, action = make_state(), rng.normal(size=(B, S)), rng.uniform(-1, 1, (B, A))
    nan = np.full((1, B), np.nan)
    batches = Transition(observation[None], action[None], nan, nan, np.full((1, B, S), np.nan))
    after, metrics = reference.jit(make_agent().update)(state, batches, jax.random.key(0))
    loss = lambda p: ((policy(p, observation) - action) ** 2).mean()
    actor, actor_opt = reference.adam_step(
        reference.gradient(loss, state.actor), state.actor, state.actor_opt, RATE
    )
    expected = state.replace(actor=actor, actor_opt=actor_opt)
    chex.assert_trees_all_close(after, expected, **reference.TOLERANCE)
    np.testing.assert_allclose(metrics["cloning_mse"], loss(state.actor), rtol=1e-10)


def test_act_is_the_policy_within_bounds():
    state = make_state()
    observation = np.random.default_rng(1).normal(size=(50, S)) * 10.0
    action = make_agent().act(state, observation)
    np.testing.assert_allclose(action, policy(state.actor, observation), rtol=1e-9)
    assert 0.9 < np.abs(action).max() <= 1.0
