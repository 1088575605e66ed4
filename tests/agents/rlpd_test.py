"""RLPD's target and losses against NumPy, and what its update moves."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dawm_jax.agents import rlpd, soft
from dawm_jax.agents.base import AgentTask, Explores
from dawm_jax.models import squashed_gaussian
from dawm_jax.runtime import settings
from dawm_jax.types import Expansion, Transition

S, A, B, DISCOUNT = 3, 2, 6, 0.9


def make_agent(**changes):
    values = {**settings.defaults(rlpd.Settings, "smoke"), **changes}
    section = settings.build(rlpd.Settings, values, name="config.rlpd")
    return rlpd.make(section, AgentTask(S, A, DISCOUNT, 100, 1.0, Transition))


def make_batch(seed=0, leading=(B,)):
    rng = np.random.default_rng(seed)
    normal = lambda *shape: jnp.asarray(rng.normal(size=(*leading, *shape)), jnp.float32)
    return Transition(
        observation=normal(S),
        action=jnp.tanh(normal(A)),
        reward=normal(),
        terminated=jnp.asarray(rng.random(leading) < 0.3, jnp.float32),
        next_observation=normal(S),
    )


@pytest.mark.parametrize("bonus", [True, False])
def test_the_target_is_the_smallest_of_the_drawn_critics(bonus):
    """With as many target critics as there are, the draw is of all of them."""
    agent = make_agent(target_critics=3, entropy_bonus=bonus)
    state = dataclasses.replace(agent.init(jax.random.key(0)), log_temperature=jnp.float32(-0.7))
    batch, key = make_batch(), jax.random.key(4)
    noise = jax.random.normal(jax.random.split(key)[0], batch.action.shape)
    output = agent.networks.actor.apply(state.actor, batch.next_observation)
    action, log_prob = squashed_gaussian.sample(output, noise)
    q = agent.networks.critics.apply(state.target_critics, batch.next_observation, action)
    value = np.asarray(q).min(0) - bonus * np.exp(-0.7) * np.asarray(log_prob)
    expected = batch.reward + DISCOUNT * (1 - np.asarray(batch.terminated)) * value
    np.testing.assert_allclose(agent.critic_target(state, batch, key), expected, rtol=1e-5)


def test_each_target_draws_its_critics():
    agent = make_agent(critics=10, target_critics=1, entropy_bonus=False, policy_delay=1)
    state, batch = agent.init(jax.random.key(0)), make_batch()
    # The members differ by constants alone: a target tells which one it took.
    head = jax.tree_util.tree_map_with_path(
        lambda path, leaf: (
            jnp.arange(10.0)[:, None]
            if "Dense_2" in str(path) and leaf.ndim == 2
            else jnp.zeros_like(leaf)
        ),
        state.target_critics,
    )
    state = dataclasses.replace(state, target_critics=head)
    live = batch._replace(terminated=jnp.zeros(B), reward=jnp.zeros(B))
    members = {
        round(float(agent.critic_target(state, live, jax.random.key(seed))[0]) / DISCOUNT)
        for seed in range(60)
    }
    assert members == set(range(10))


def test_the_policy_climbs_the_mean_of_all_critics():
    agent = make_agent()
    state, batch = agent.init(jax.random.key(0)), make_batch()
    noise = jax.random.normal(jax.random.key(1), (B, A))
    state = dataclasses.replace(state, log_temperature=jnp.float32(-1.0))
    loss, metrics = soft.actor_loss(
        state.actor,
        state,
        batch.observation,
        noise,
        networks=agent.networks,
        pool=agent.pool,
    )
    output = agent.networks.actor.apply(state.actor, batch.observation)
    action, log_prob = squashed_gaussian.sample(output, noise)
    q = np.asarray(agent.networks.critics.apply(state.critics, batch.observation, action))
    expected = (np.exp(-1.0) * np.asarray(log_prob) - q.mean(0)).mean()
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["entropy"], -np.asarray(log_prob).mean(), rtol=1e-5)


@pytest.mark.parametrize("target, sign", [(100.0, 1.0), (-100.0, -1.0)])
def test_the_temperature_rises_where_entropy_lacks(target, sign):
    agent = make_agent(target_entropy=target)
    state = agent.init(jax.random.key(0))
    batches = make_batch(leading=(agent.batches_per_update, B))
    after, _ = jax.jit(agent.update)(state, batches, jax.random.key(1))
    # Adam's first step has the size of its rate.
    np.testing.assert_allclose(after.log_temperature, sign * 3e-4, rtol=1e-4)


def test_exploration_draws_from_the_policy():
    agent = make_agent()
    state, observation = agent.init(jax.random.key(0)), make_batch().observation
    assert isinstance(agent, Explores)
    found = agent.explore(state, observation, jax.random.key(2))
    output = agent.networks.actor.apply(state.actor, observation)
    mean, log_std = squashed_gaussian.distribution(output)
    noise = jax.random.normal(jax.random.key(2), (B, A))
    np.testing.assert_allclose(found, np.tanh(mean + np.exp(log_std) * noise), rtol=1e-5)


def test_expansions_are_refused():
    agent = make_agent()
    rows = Expansion(*(jnp.zeros(1) for _ in Expansion._fields))
    with pytest.raises(TypeError, match="expected Transition, got Expansion"):
        agent.critic_target(agent.init(jax.random.key(0)), rows, jax.random.key(0))
