"""Targets against NumPy loops over horizons, and both agents on value expansions."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import numpy_reference as reference
import pytest

from dawm_jax.agents import iql, td, td3_bc
from dawm_jax.agents.base import AGENTS, AgentTask
from dawm_jax.methods import synthetic
from dawm_jax.types import Expansion, Transition

S, A, B, H = 3, 2, 6, 4
DISCOUNT, SCALE = 0.9, 2.5


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def make_expansions(seed=0, leading=(B,), horizon=H):
    rng = np.random.default_rng(seed)
    terminated = np.zeros((*leading, horizon))
    # Of every six rows one ends at once, one in the middle, one at the last step; one says
    # twice that it ended, and what follows an end is rubbish that must not count.
    rows = terminated.reshape(-1, 6, horizon)
    rows[:, 1, 0] = rows[:, 2, horizon // 2] = rows[:, 3, -1] = 1.0
    rows[:, 4, horizon // 2 :] = 1.0
    return Expansion(
        observation=rng.normal(size=(*leading, S)),
        action=rng.uniform(-1, 1, (*leading, A)),
        reward=rng.normal(size=(*leading, horizon)),
        terminated=terminated,
        next_observation=rng.normal(size=(*leading, horizon, S)),
        steps=np.full(leading, horizon, np.int32),
    )


def state_value(observation):
    return observation[..., 0] - 0.5 * observation[..., 1] ** 2


def n_step_return(row, n, value):
    """Step by step, as an environment would pay."""
    total, weight = 0.0, 1.0
    for step in range(n):
        total += weight * SCALE * row.reward[step]
        weight *= DISCOUNT
        if row.terminated[step]:
            return total
    return total + weight * value(row.next_observation[n - 1])


def expected_target(batch, value, return_lambda):
    """(1 - lambda) sum lambda^(n-1) G_n + lambda^(N-1) G_N of N = `steps`, literally."""
    targets = []
    for index in range(len(batch.reward)):
        row = Expansion(*(leaf[index] for leaf in batch))
        total = return_lambda ** (row.steps - 1) * n_step_return(row, row.steps, value)
        for n in range(1, row.steps):
            total += (1 - return_lambda) * return_lambda ** (n - 1) * n_step_return(row, n, value)
        targets.append(total)
    return np.array(targets)


@pytest.mark.parametrize("return_lambda", [0.0, 0.6, 0.95, 1.0])
@pytest.mark.parametrize("horizon", [1, 2, H])
def test_expansion_target_equals_numpy_loop(return_lambda, horizon):
    batch = make_expansions(horizon=horizon)
    actual = td.expansion_target(
        jax.tree.map(jnp.asarray, batch),
        state_value,
        discount=DISCOUNT,
        return_lambda=return_lambda,
        reward_scale=SCALE,
    )
    np.testing.assert_allclose(
        actual, expected_target(batch, state_value, return_lambda), rtol=1e-12
    )


@pytest.mark.parametrize("return_lambda", [0.0, 0.6, 0.95, 1.0])
def test_rows_of_fewer_steps_than_the_horizon(return_lambda):
    """Every number of steps with every kind of end, in one batch; what follows is rubbish."""
    batch = make_expansions(leading=(H * B,))
    steps = np.repeat(np.arange(1, H + 1, dtype=np.int32), B)
    bound = {"discount": DISCOUNT, "return_lambda": return_lambda, "reward_scale": SCALE}
    target = lambda batch: np.asarray(
        td.expansion_target(jax.tree.map(jnp.asarray, batch), state_value, **bound)
    )
    few = batch._replace(steps=steps)
    np.testing.assert_allclose(
        target(few), expected_target(few, state_value, return_lambda), rtol=1e-12
    )
    # With lambda = 0 every number of steps has the one-step target. Otherwise the steps that do
    # not count would have changed the target of each row that goes on after those that count.
    ended = np.array([row[:n].any() for row, n in zip(batch.terminated, steps, strict=True)])
    matters = (steps < H) & ~ended & (return_lambda > 0)
    assert matters.sum() == (return_lambda > 0) * (5 + 5 + 3)
    np.testing.assert_array_equal(np.abs(target(few) - target(batch)) > 1e-6, matters)
    beyond = np.arange(H) >= steps[:, None]
    for rubbish in (1e6, np.nan):
        other = few._replace(
            reward=np.where(beyond, rubbish, batch.reward),
            terminated=np.where(beyond, rubbish, batch.terminated),
            next_observation=np.where(beyond[..., None], rubbish, batch.next_observation),
        )
        np.testing.assert_array_equal(target(other), target(few))


@pytest.mark.parametrize("return_lambda", [0.0, 0.3, 0.95, 1.0])
def test_real_rows_have_the_one_step_target(return_lambda):
    whole = make_expansions(horizon=1)
    transitions = Transition(
        whole.observation,
        whole.action,
        whole.reward[:, 0],
        whole.terminated[:, 0],
        whole.next_observation[:, 0],
    )
    transitions = jax.tree.map(jnp.asarray, transitions)
    rows = synthetic.real_expansions(transitions, horizon=H)
    chex.assert_shape([rows.reward, rows.terminated], (B, H))
    chex.assert_shape(rows.next_observation, (B, H, S))
    np.testing.assert_array_equal(rows.steps, np.ones(B))
    assert rows.steps.dtype == jnp.int32
    bound = {"discount": DISCOUNT, "reward_scale": SCALE}
    np.testing.assert_array_equal(
        td.expansion_target(rows, state_value, return_lambda=return_lambda, **bound),
        td.one_step_target(transitions, state_value, **bound),
    )


def test_one_generated_step_is_the_one_step_target():
    batch = jax.tree.map(jnp.asarray, make_expansions(horizon=1))
    one = Transition(
        batch.observation,
        batch.action,
        batch.reward[:, 0],
        batch.terminated[:, 0],
        batch.next_observation[:, 0],
    )
    bound = {"discount": DISCOUNT, "reward_scale": SCALE}
    np.testing.assert_allclose(
        td.expansion_target(batch, state_value, return_lambda=0.3, **bound),
        td.one_step_target(one, state_value, **bound),
        rtol=1e-12,
    )


def test_a_return_over_several_steps_is_the_expansion_of_these_steps():
    """The rows of the two ways have the same target: lambda 1, a sum of N discounted rewards."""
    batch = make_expansions()
    steps = np.arange(B) % H + 1
    reward, ended = np.zeros(B), np.zeros(B)
    for row, count in enumerate(steps):
        for step in range(count):
            reward[row] += (1 - ended[row]) * DISCOUNT**step * batch.reward[row, step]
            ended[row] = max(ended[row], batch.terminated[row, step])
    rows = Transition(
        batch.observation,
        batch.action,
        reward,
        ended,
        batch.next_observation[np.arange(B), steps - 1],
        discount=DISCOUNT**steps,
    )
    bound = {"discount": DISCOUNT, "reward_scale": SCALE}
    np.testing.assert_allclose(
        td.one_step_target(jax.tree.map(jnp.asarray, rows), state_value, **bound),
        td.expansion_target(
            jax.tree.map(jnp.asarray, batch._replace(steps=steps.astype(np.int32))),
            state_value,
            return_lambda=1.0,
            **bound,
        ),
        rtol=1e-12,
    )


def make_task(rows):
    return AgentTask(
        state_size=S,
        action_size=A,
        discount=DISCOUNT,
        total_updates=100,
        return_range=1000.0 / SCALE,
        rows=rows,
    )


def test_target_is_chosen_by_the_type_of_rows():
    expansions = jax.tree.map(jnp.asarray, make_expansions())
    transitions = Transition(
        expansions.observation,
        expansions.action,
        expansions.reward[:, 0],
        expansions.terminated[:, 0],
        expansions.next_observation[:, 0],
    )
    bound = {"return_lambda": 0.3, "reward_scale": SCALE}
    of_expansions = td.make_target(make_task(Expansion), **bound)
    of_transitions = td.make_target(make_task(Transition), **bound)
    np.testing.assert_array_equal(
        of_expansions(expansions, state_value),
        td.expansion_target(expansions, state_value, discount=DISCOUNT, **bound),
    )
    np.testing.assert_array_equal(
        of_transitions(transitions, state_value),
        td.one_step_target(transitions, state_value, discount=DISCOUNT, reward_scale=SCALE),
    )
    with pytest.raises(TypeError, match="expected Transition, got Expansion"):
        of_transitions(expansions, state_value)
    with pytest.raises(TypeError, match="expected Expansion, got Transition"):
        of_expansions(transitions, state_value)


def make_agent(name):
    spec = AGENTS.get(name)
    settings = spec.settings(hidden=(6, 5), learning_rate=0.01)
    return spec.make(settings, make_task(Expansion))


def update_of(name):
    """State before, the batch, state after and metrics of an update on one batch."""
    agent = make_agent(name)
    state = reference.in_training(jax.eval_shape(agent.init, jax.random.key(0)), count=7, seed=0)
    batches = make_expansions(leading=(1, B))
    after, metrics = jax.device_get(reference.jit(agent.update)(state, batches, jax.random.key(3)))
    return state, Expansion(*(leaf[0] for leaf in batches)), after, metrics


def test_td3_bc_critics_follow_the_last_horizon():
    """The critics' loss, from targets that a loop makes with the same noise."""
    state, batch, _, metrics = update_of("td3_bc")
    noise = np.clip(0.2 * np.asarray(jax.random.normal(jax.random.key(3), (1, B, A))), -0.5, 0.5)
    targets = []
    for index in range(B):
        row = Expansion(*(leaf[index] for leaf in batch))

        def value(observation, index=index):
            mean = np.tanh(reference.mlp(state.target_actor["params"]["Mlp_0"], observation[None]))
            action = np.clip(mean + noise[0, index], -1, 1)
            return reference.q_values(state.target_critics, observation[None], action).min()

        # TD3+BC learns from raw rewards.
        targets.append(n_step_return(row._replace(reward=row.reward / SCALE), H, value))
    q = reference.q_values(state.critics, batch.observation, batch.action)
    expected = ((q - np.array(targets)) ** 2).mean(1).sum()
    np.testing.assert_allclose(metrics["critic_loss"], expected, rtol=1e-9)


def test_iql_critics_follow_the_lambda_return():
    state, batch, after, metrics = update_of("iql")
    value = lambda o: reference.mlp(after.value["params"]["Mlp_0"], o[None])[0, 0]
    target = expected_target(batch, value, 0.95)
    q = reference.q_values(state.critics, batch.observation, batch.action)
    np.testing.assert_allclose(metrics["critic_loss"], ((q - target) ** 2).mean(1).sum(), rtol=1e-9)


@pytest.mark.parametrize("module", [td3_bc, iql])
def test_critic_gradient_equals_finite_differences(module):
    agent = module.make(module.Settings(hidden=(4,)), make_task(Transition))
    rng = np.random.default_rng(1)
    observation, action, target = rng.normal(size=(B, S)), rng.normal(size=(B, A)), np.ones(B)
    shapes = jax.eval_shape(agent.init, jax.random.key(0)).critics
    critics = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), shapes)
    batch = Transition(observation, action, None, None, None)
    loss = lambda p: td.critic_loss(p, batch, target, network=agent.networks.critics)[0]
    expected = lambda p: (
        ((reference.q_values(p, observation, action) - target[None]) ** 2).mean(1).sum()
    )
    value, slope = reference.jit(jax.value_and_grad(loss))(critics)
    np.testing.assert_allclose(value, expected(critics), rtol=1e-10)
    chex.assert_trees_all_close(slope, reference.gradient(expected, critics), **reference.TOLERANCE)
