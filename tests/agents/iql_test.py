"""IQL against NumPy written from the paper's equations, in float64."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import numpy_reference as reference
import pytest

from dawm_jax.agents import iql, td
from dawm_jax.agents.base import AgentTask
from dawm_jax.types import Transition

S, A, B = 3, 2, 8
DISCOUNT, TAU, RATE = 0.9, 0.1, 0.01
EXPECTILE, BETA, MAX_WEIGHT = 0.8, 1.5, 1.8
RETURN_RANGE = 400.0
COUNT, TOTAL = 7, 20  # steps that the optimisers have behind them, and of the whole training


@pytest.fixture(autouse=True)
def float64():
    """Errors of the program show at 1e-9 instead of drowning in float32's rounding."""
    with jax.enable_x64(True):
        yield


def make_agent(return_range=RETURN_RANGE):
    settings = iql.Settings(
        hidden=(6, 5),
        learning_rate=RATE,
        tau=TAU,
        expectile=EXPECTILE,
        beta=BETA,
        max_weight=MAX_WEIGHT,
    )
    task = AgentTask(
        state_size=S,
        action_size=A,
        discount=DISCOUNT,
        total_updates=TOTAL,
        return_range=return_range,
        rows=Transition,
    )
    return iql.make(settings, task)


def make_state(seed=1, count=COUNT):
    shapes = jax.eval_shape(make_agent().init, jax.random.key(0))
    state = reference.in_training(shapes, count=count, seed=seed)
    # One standard deviation is free, the other beyond its upper bound.
    actor = {"params": {**state.actor["params"], "log_std": np.array([-0.3, 2.7])}}
    return state.replace(actor=actor)


def make_batch(seed=0):
    rng = np.random.default_rng(seed)
    return Transition(
        observation=rng.normal(size=(1, B, S)),
        action=rng.uniform(-1, 1, (1, B, A)),
        reward=rng.normal(size=(1, B)),
        terminated=(np.arange(B) % 3 == 0).astype(np.float64)[None],
        next_observation=rng.normal(size=(1, B, S)),
    )


AGENT = make_agent()


# One compilation for all tests of a return range.
@functools.cache
def update_of(return_range):
    return reference.jit(make_agent(return_range).update)


# --- the paper's equations ----------------------------------------------------------------


def state_value(value, observation):
    return reference.mlp(value["params"]["Mlp_0"], observation)[:, 0]


def policy_mean(actor, observation):
    return np.tanh(reference.mlp(actor["params"]["TanhMlp_0"]["Mlp_0"], observation))


def expected_value_loss(value, q, batch):
    """Eqs. 4 and 5."""
    u = q - state_value(value, batch.observation)
    return (np.abs(EXPECTILE - (u < 0)) * u**2).mean()


def expected_actor_loss(actor, advantage, batch):
    """Eq. 7 with a diagonal Gaussian and the official cap of the weight."""
    mean = policy_mean(actor, batch.observation)
    std = np.exp(np.clip(actor["params"]["log_std"], -5.0, 2.0))
    density = np.exp(-0.5 * ((batch.action - mean) / std) ** 2) / (std * np.sqrt(2 * np.pi))
    weight = np.minimum(np.exp(BETA * advantage), MAX_WEIGHT)
    return -(weight * np.log(density.prod(1))).mean()


def expected_critic_loss(critics, batch, target):
    """Eq. 6, for both critics."""
    q = reference.q_values(critics, batch.observation, batch.action)
    return ((q[0] - target) ** 2).mean() + ((q[1] - target) ** 2).mean()


def expected_update(state, batch, *, reward_scale, count):
    """Value, policy, critics, target: the official order."""
    q = reference.q_values(state.target_critics, batch.observation, batch.action).min(0)
    value_loss = lambda p: expected_value_loss(p, q, batch)
    value, value_opt = reference.adam_step(
        reference.gradient(value_loss, state.value), state.value, state.value_opt, RATE
    )
    advantage = q - state_value(value, batch.observation)
    actor_loss = lambda p: expected_actor_loss(p, advantage, batch)
    decayed = RATE * 0.5 * (1 + np.cos(np.pi * count / TOTAL))
    actor, actor_opt = reference.adam_step(
        reference.gradient(actor_loss, state.actor), state.actor, state.actor_opt, decayed
    )
    next_value = state_value(value, batch.next_observation)
    target = reward_scale * batch.reward + DISCOUNT * (1 - batch.terminated) * next_value
    critic_loss = lambda p: expected_critic_loss(p, batch, target)
    critics, critic_opt = reference.adam_step(
        reference.gradient(critic_loss, state.critics), state.critics, state.critic_opt, RATE
    )
    mean = policy_mean(state.actor, batch.observation)
    metrics = {
        "value_loss": value_loss(state.value),
        "v_mean": state_value(state.value, batch.observation).mean(),
        "actor_loss": actor_loss(state.actor),
        "cloning_mse": ((mean - batch.action) ** 2).mean(),
        "critic_loss": critic_loss(state.critics),
        "q_mean": reference.q_values(state.critics, batch.observation, batch.action).mean(),
    }
    next_state = iql.State(
        actor=actor,
        value=value,
        critics=critics,
        target_critics=reference.polyak(critics, state.target_critics, TAU),
        actor_opt=actor_opt,
        value_opt=value_opt,
        critic_opt=critic_opt,
    )
    return next_state, metrics, advantage


# --- tests --------------------------------------------------------------------------------


@pytest.mark.parametrize("return_range, reward_scale", [(1000.0, 1.0), (RETURN_RANGE, 2.5)])
def test_update_equals_numpy(return_range, reward_scale):
    """Every parameter, target, moment and metric; rewards scaled by 1000 / range."""
    state, batches = make_state(), make_batch()
    batch = reference.batch_at(batches)
    state_after, metrics, advantage = expected_update(
        state, batch, reward_scale=reward_scale, count=COUNT
    )
    capped = np.exp(BETA * advantage) > MAX_WEIGHT
    assert capped.any() and not capped.all()
    actual = update_of(return_range)(state, batches, jax.random.key(0))
    chex.assert_trees_all_close(actual, (state_after, metrics), **reference.TOLERANCE)


def test_gradients_equal_finite_differences():
    state, batch = make_state(), reference.batch_at(make_batch())
    rng = np.random.default_rng(2)
    q, advantage, target = rng.normal(size=(3, B))
    for actual, loss, params in (
        (
            lambda p: AGENT.value_loss(p, q, batch)[0],
            lambda p: expected_value_loss(p, q, batch),
            state.value,
        ),
        (
            lambda p: AGENT.actor_loss(p, advantage, batch)[0],
            lambda p: expected_actor_loss(p, advantage, batch),
            state.actor,
        ),
        (
            lambda p: td.critic_loss(p, batch, target, network=AGENT.networks.critics)[0],
            lambda p: expected_critic_loss(p, batch, target),
            state.critics,
        ),
    ):
        value, slope = reference.jit(jax.value_and_grad(actual))(params)
        np.testing.assert_allclose(value, loss(params), rtol=1e-10)
        chex.assert_trees_all_close(slope, reference.gradient(loss, params), **reference.TOLERANCE)


@pytest.mark.parametrize("expectile", [0.5, 0.7, 0.9])
def test_expectile_loss_is_minimal_at_the_expectile(expectile):
    """The expectile m solves expectile E[(x - m)+] = (1 - expectile) E[(m - x)+]."""
    sample = np.random.default_rng(0).gamma(2.0, size=200)
    low, high = sample.min(), sample.max()
    for _ in range(100):  # bisection, beyond float64's resolution
        middle = (low + high) / 2
        above, below = np.maximum(sample - middle, 0).mean(), np.maximum(middle - sample, 0).mean()
        low, high = (middle, high) if expectile * above > (1 - expectile) * below else (low, middle)
    loss = lambda m: iql.expectile_loss(sample - m, expectile=expectile).mean()
    slope = reference.jit(jax.grad(loss))
    np.testing.assert_allclose(slope(middle), 0.0, atol=1e-12)
    assert slope(middle - 0.1) < 0 < slope(middle + 0.1)


def test_expectile_loss_by_hand():
    """Too low an estimate (u > 0) costs the expectile, too high a one the rest."""
    loss = iql.expectile_loss(jnp.array([2.0, -2.0, 0.0]), expectile=0.7)
    np.testing.assert_allclose(loss, [2.8, 1.2, 0.0], rtol=1e-12)


def test_advantage_weight_is_capped():
    """Far above the cap the loss is the cap times plain cloning, overflow included."""
    state, batch = make_state(), reference.batch_at(make_batch())
    loss = reference.jit(lambda advantage: AGENT.actor_loss(state.actor, advantage, batch)[0])
    cloning = loss(np.zeros(B))  # all weights are exp(0) = 1
    for large in (10.0, 1e4):  # exp(1.5e4) overflows float64
        np.testing.assert_allclose(loss(np.full(B, large)), MAX_WEIGHT * cloning, rtol=1e-12)
    np.testing.assert_allclose(loss(np.full(B, -1.0)), np.exp(-BETA) * cloning, rtol=1e-12)


def test_only_the_actors_rate_decays():
    """At the end of training the cosine is 0: the policy rests, value and critics do not."""
    batch = make_batch()
    state = make_state(count=TOTAL)
    after = update_of(RETURN_RANGE)(state, batch, jax.random.key(0))[0]
    # The cosine of pi is exact to 1e-16, so what is left of a step is 1e-18.
    chex.assert_trees_all_close(after.actor, state.actor, rtol=0, atol=1e-15)
    for name in ("value", "critics"):
        before_leaves, after_leaves = (jax.tree.leaves(getattr(s, name)) for s in (state, after))
        for old, new in zip(before_leaves, after_leaves, strict=True):
            assert np.abs(new - old).max() > 0.01 * RATE


def test_termination_cuts_the_bootstrap():
    """Whatever follows a termination changes nothing; a time-out has terminated = 0."""
    state, batch = make_state(), make_batch()
    update = update_of(RETURN_RANGE)
    moved = batch.next_observation + 1.0
    key = jax.random.key(0)

    def critics_after(terminated, next_observation):
        changed = batch._replace(
            terminated=np.full((1, B), terminated), next_observation=next_observation
        )
        return update(state, changed, key)[0]

    chex.assert_trees_all_equal(
        critics_after(1.0, batch.next_observation), critics_after(1.0, moved)
    )
    with pytest.raises(AssertionError):
        chex.assert_trees_all_close(
            critics_after(0.0, batch.next_observation), critics_after(0.0, moved), rtol=1e-4
        )


def test_act_is_the_mean_within_bounds():
    act, state = reference.jit(make_agent().act), make_state()
    observation = np.random.default_rng(1).normal(size=(50, S)) * 10.0
    action = act(state, observation)
    np.testing.assert_array_equal(action, act(state, observation))
    np.testing.assert_allclose(action, policy_mean(state.actor, observation), rtol=1e-9)
    assert np.abs(action).max() <= 1.0
    assert np.abs(action).max() > 0.9  # saturated, so the bound was tried


def test_fresh_target_is_a_copy_and_critics_differ():
    state = reference.jit(make_agent().init)(jax.random.key(0))
    chex.assert_trees_all_equal(state.target_critics, state.critics)
    kernel = state.critics["params"]["VmapMlp_0"]["Dense_0"]["kernel"]
    assert not np.allclose(kernel[0], kernel[1])


def test_vmap_over_seeds_equals_separate_calls():
    states, batches = [make_state(0), make_state(1)], [make_batch(0), make_batch(1)]
    keys = jax.random.split(jax.random.key(5), 2)
    stack = lambda *trees: jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
    together = reference.jit(jax.vmap(make_agent().update))(stack(*states), stack(*batches), keys)
    separate = stack(
        *(update_of(RETURN_RANGE)(*each) for each in zip(states, batches, keys, strict=True))
    )
    # Both are float64 and differ by the order of sums alone.
    chex.assert_trees_all_close(together, separate, rtol=1e-10, atol=1e-12)
