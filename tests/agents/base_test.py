"""What every registered agent must do, whatever its algorithm."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import pytest

from dawm_jax.agents.base import AGENTS, AgentTask, Loosens
from dawm_jax.runtime import settings
from dawm_jax.types import Expansion, Transition, UserError

S, A, B, H = 4, 2, 8, 3


def make_agent(spec, rows):
    values = settings.defaults(spec.settings, "smoke")
    task = AgentTask(
        state_size=S,
        action_size=A,
        discount=0.9,
        total_updates=100,
        return_range=jnp.float32(50.0),
        rows=rows,
    )
    return spec.make(settings.build(spec.settings, values, name=f"config.{spec.name}"), task)


def make_batches(spec, rows, num_batches):
    steps = (num_batches, B, H) if rows is Expansion else (num_batches, B)
    counted = {"steps": jnp.full((num_batches, B), H, jnp.int32)} if rows is Expansion else {}
    batches = rows(
        observation=jnp.ones((num_batches, B, S)),
        action=jnp.zeros((num_batches, B, A)),
        reward=jnp.ones(steps),
        terminated=jnp.zeros(steps),
        next_observation=jnp.ones((*steps, S)),
        **counted,
    )
    if spec.needs_next_action:
        batches = batches._replace(
            next_action=jnp.zeros((num_batches, B, A)),
            next_action_known=jnp.ones((num_batches, B)),
        )
    return batches


def test_agents_that_ship_with_the_package():
    assert AGENTS.names() == ["bc", "iql", "rebrac", "rlpd", "td3_bc"]


def test_unknown_agent():
    with pytest.raises(UserError, match=r"config\.agent: expected one of bc, .*, got 'sac'"):
        AGENTS.get("sac")


every_row_type = pytest.mark.parametrize(
    "name, rows", [(spec.name, rows) for spec in AGENTS for rows in spec.learns_from]
)


@every_row_type
def test_update_keeps_the_state_and_has_the_plotted_metric(name, rows):
    """The structure, shapes and types of a state are those of a fresh one: scan needs that."""
    spec = AGENTS.get(name)
    agent = make_agent(spec, rows)
    fresh = jax.eval_shape(agent.init, jax.random.key(0))
    batches = make_batches(spec, rows, agent.batches_per_update)
    after, metrics = jax.eval_shape(agent.update, fresh, batches, jax.random.key(0))
    chex.assert_trees_all_equal_shapes_and_dtypes(after, fresh)
    assert spec.curve in metrics
    assert all(metric.shape == () for metric in metrics.values())


@pytest.mark.parametrize("name", AGENTS.names())
def test_act_keeps_leading_axes(name):
    agent = make_agent(AGENTS.get(name), Transition)
    state = jax.eval_shape(agent.init, jax.random.key(0))
    for leading in ((), (5,), (5, 3)):
        action = jax.eval_shape(agent.act, state, jnp.zeros((*leading, S)))
        assert action.shape == (*leading, A)


@pytest.mark.parametrize("name", AGENTS.names())
def test_spec_knows_the_minibatches_of_an_update(name):
    spec = AGENTS.get(name)
    values = settings.defaults(spec.settings, "smoke")
    built = settings.build(spec.settings, values, name="config.agent")
    assert spec.batches_per_update(built) == make_agent(spec, Transition).batches_per_update


@pytest.mark.parametrize(
    "name, field, value",
    [
        ("td3_bc", "tau", 0.0),
        ("td3_bc", "tau", 1.1),
        ("td3_bc", "alpha", -0.1),
        ("td3_bc", "policy_delay", 0),
        ("td3_bc", "policy_noise", -0.1),
        ("td3_bc", "noise_clip", -0.1),
        ("td3_bc", "return_lambda", 1.1),
        ("rebrac", "actor_penalty", -0.1),
        ("rebrac", "critic_penalty", -0.1),
        ("rebrac", "hidden", ()),
        ("iql", "tau", 0.0),
        ("iql", "expectile", 0.0),
        ("iql", "expectile", 1.0),
        ("iql", "beta", -0.1),
        ("iql", "max_weight", 0.0),
        ("iql", "return_lambda", -0.1),
        ("rlpd", "critics", 0),
        ("rlpd", "target_critics", 0),
        ("rlpd", "policy_delay", 0),
        ("bc", "learning_rate", 0.0),
        ("bc", "hidden", (16, 0)),
    ],
)
def test_values_out_of_range(name, field, value):
    section = AGENTS.get(name).settings
    values = {**settings.defaults(section), field: value}
    with pytest.raises(UserError, match=rf"^config\.{name}\.{field}: expected .*, got "):
        settings.build(section, values, name=f"config.{name}")


@pytest.mark.parametrize("name", AGENTS.names())
def test_spec_names_the_policys_part_of_a_state(name):
    """What acts follows from these fields alone."""
    spec = AGENTS.get(name)
    agent = make_agent(spec, Transition)
    state, other = agent.init(jax.random.key(0)), agent.init(jax.random.key(1))
    mixed = dataclasses.replace(other, **{field: getattr(state, field) for field in spec.policy})
    observation = jnp.ones((3, S))
    chex.assert_trees_all_equal(agent.act(mixed, observation), agent.act(state, observation))


# Agents whose pull can weaken, and the settings that a pull of 0.25 stands for.
@pytest.mark.parametrize(
    "name, changes",
    [
        ("td3_bc", {"alpha": 2.5 / 0.25}),
        ("iql", {"beta": 3.0 / 0.25}),
        ("rebrac", {"actor_penalty": 0.01 * 0.25, "critic_penalty": 0.01 * 0.25}),
    ],
)
def test_a_weaker_pull_is_another_weight(name, changes):
    spec = AGENTS.get(name)
    agent = make_agent(spec, Transition)
    assert isinstance(agent, Loosens)
    changed = dataclasses.replace(agent, settings=dataclasses.replace(agent.settings, **changes))
    batches = make_batches(spec, Transition, agent.batches_per_update)
    batches = batches._replace(action=0.5 * jnp.ones_like(batches.action))
    state, key = agent.init(jax.random.key(0)), jax.random.key(1)

    def loosened(state, batches, key, pull):
        return agent.loosened(pull).update(state, batches, key)

    found = jax.jit(loosened)(state, batches, key, jnp.float32(0.25))
    chex.assert_trees_all_close(found, jax.jit(changed.update)(state, batches, key), rtol=1e-4)


def test_agents_without_a_pull_have_none():
    for name in ("bc", "rlpd"):
        assert not isinstance(make_agent(AGENTS.get(name), Transition), Loosens)


def test_agents_are_hashable():
    """jit hashes a bound method by its agent, also where the reward scale is an array."""
    agent = make_agent(AGENTS.get("iql"), Transition)
    assert isinstance(agent.reward_scale, jax.Array)
    assert hash(agent.update) == hash(agent.update)
