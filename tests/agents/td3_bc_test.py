"""TD3+BC against NumPy written from the papers' equations, in float64."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import numpy_reference as reference
import pytest

from dawm_jax.agents import td, td3, td3_bc
from dawm_jax.agents.base import AgentTask
from dawm_jax.types import Transition

S, A, B = 3, 2, 8
DISCOUNT, TAU, ALPHA, RATE = 0.9, 0.1, 1.7, 0.01
# Wide noise and a tight clip, so that a batch has both clipped and unclipped draws.
POLICY_NOISE, NOISE_CLIP = 0.6, 0.5
COUNT = 7  # steps that the optimisers have behind them


@pytest.fixture(autouse=True)
def float64():
    """Errors of the program show at 1e-9 instead of drowning in float32's rounding."""
    with jax.enable_x64(True):
        yield


def make_agent(delay=2):
    settings = td3_bc.Settings(
        hidden=(6, 5),
        learning_rate=RATE,
        tau=TAU,
        alpha=ALPHA,
        policy_noise=POLICY_NOISE,
        noise_clip=NOISE_CLIP,
        policy_delay=delay,
    )
    task = AgentTask(
        state_size=S,
        action_size=A,
        discount=DISCOUNT,
        total_updates=100,
        return_range=1.0,
        rows=Transition,
    )
    return td3_bc.make(settings, task)


def make_state(seed=0):
    shapes = jax.eval_shape(make_agent().init, jax.random.key(0))
    return reference.in_training(shapes, count=COUNT, seed=seed)


def make_batches(delay=2, seed=0):
    rng = np.random.default_rng(seed)
    return Transition(
        observation=rng.normal(size=(delay, B, S)),
        action=rng.uniform(-1, 1, (delay, B, A)),
        reward=rng.normal(size=(delay, B)),
        terminated=(np.arange(delay * B) % 3 == 0).astype(np.float64).reshape(delay, B),
        next_observation=rng.normal(size=(delay, B, S)),
    )


AGENT = make_agent()


# One compilation for all tests of a delay.
@functools.cache
def update_of(delay):
    return reference.jit(make_agent(delay).update)


# (actor, critics, batch) -> gradients of the policy's loss by both parameters.
actor_gradients = reference.jit(
    jax.grad(
        lambda actor, critics, batch: AGENT.actor_loss(actor, critics, batch)[0],
        argnums=(0, 1),
    )
)


# --- the papers' equations ----------------------------------------------------------------


def policy(actor, observation):
    return np.tanh(reference.mlp(actor["params"]["Mlp_0"], observation))


def expected_target(state, batch, noise):
    """TD3, algorithm 1, with the environment's terminations."""
    action = np.clip(policy(state.target_actor, batch.next_observation) + noise, -1, 1)
    q = reference.q_values(state.target_critics, batch.next_observation, action)
    return batch.reward + DISCOUNT * (1 - batch.terminated) * np.minimum(q[0], q[1])


def expected_critic_loss(critics, batch, target):
    q = reference.q_values(critics, batch.observation, batch.action)
    return ((q[0] - target) ** 2).mean() + ((q[1] - target) ** 2).mean()


def weight_of_value(actor, critics, batch):
    """lambda of TD3+BC's eq. 5."""
    q = reference.q_values(critics, batch.observation, policy(actor, batch.observation))[0]
    return ALPHA / np.abs(q).mean()


def expected_actor_loss(actor, critics, batch, weight):
    action = policy(actor, batch.observation)
    q = reference.q_values(critics, batch.observation, action)[0]
    return -weight * q.mean() + ((action - batch.action) ** 2).mean()


def expected_update(state, batches, noise):
    critics, critic_opt = state.critics, state.critic_opt
    for index in range(len(noise)):
        batch = reference.batch_at(batches, index)
        target = expected_target(state, batch, noise[index])
        critic_loss = lambda p, batch=batch, target=target: expected_critic_loss(p, batch, target)
        metrics = {
            "critic_loss": critic_loss(critics),
            "q_mean": reference.q_values(critics, batch.observation, batch.action).mean(),
        }
        critics, critic_opt = reference.adam_step(
            reference.gradient(critic_loss, critics), critics, critic_opt, RATE
        )
    weight = weight_of_value(state.actor, critics, batch)
    actor_loss = lambda p: expected_actor_loss(p, critics, batch, weight)
    metrics["actor_loss"] = actor_loss(state.actor)
    metrics["cloning_mse"] = ((policy(state.actor, batch.observation) - batch.action) ** 2).mean()
    actor, actor_opt = reference.adam_step(
        reference.gradient(actor_loss, state.actor), state.actor, state.actor_opt, RATE
    )
    state = td3.State(
        actor=actor,
        critics=critics,
        target_actor=reference.polyak(actor, state.target_actor, TAU),
        target_critics=reference.polyak(critics, state.target_critics, TAU),
        actor_opt=actor_opt,
        critic_opt=critic_opt,
    )
    return state, metrics


# --- tests --------------------------------------------------------------------------------


@pytest.mark.parametrize("delay", [1, 2, 3])
def test_update_equals_numpy(delay):
    """One cycle: every parameter, target, moment and metric."""
    state, batches = make_state(), make_batches(delay)
    key = jax.random.key(3)
    draws = POLICY_NOISE * np.array(jax.random.normal(key, batches.action.shape))
    noise = np.clip(draws, -NOISE_CLIP, NOISE_CLIP)
    clipped = np.abs(draws) > NOISE_CLIP
    assert clipped.any() and not clipped.all()
    smoothed = policy(state.target_actor, batches.next_observation) + noise
    assert (np.abs(smoothed) > 1).any()  # the smoothed action is cut to the valid range
    assert make_agent(delay).batches_per_update == delay
    actual = update_of(delay)(state, batches, key)
    chex.assert_trees_all_close(
        actual, expected_update(state, batches, noise), **reference.TOLERANCE
    )


def test_critic_gradient_equals_finite_differences():
    state, batch = make_state(), reference.batch_at(make_batches())
    target = expected_target(state, batch, np.zeros((B, A)))
    loss = lambda p: td.critic_loss(p, batch, target, network=AGENT.networks.critics)[0]
    actual = reference.jit(jax.grad(loss))(state.critics)
    expected = reference.gradient(lambda p: expected_critic_loss(p, batch, target), state.critics)
    chex.assert_trees_all_close(actual, expected, **reference.TOLERANCE)


def test_no_gradient_flows_through_lambda():
    state, batch = make_state(), reference.batch_at(make_batches())
    actual = actor_gradients(state.actor, state.critics, batch)[0]
    weight = weight_of_value(state.actor, state.critics, batch)
    fixed = reference.gradient(
        lambda p: expected_actor_loss(p, state.critics, batch, weight), state.actor
    )
    chex.assert_trees_all_close(actual, fixed, **reference.TOLERANCE)
    live = reference.gradient(
        lambda p: expected_actor_loss(
            p, state.critics, batch, weight_of_value(p, state.critics, batch)
        ),
        state.actor,
    )
    with pytest.raises(AssertionError):  # the two gradients do differ here
        chex.assert_trees_all_close(fixed, live, rtol=0.01)


def test_actor_follows_the_first_critic_only():
    state, batch = make_state(), reference.batch_at(make_batches())
    gradient = actor_gradients(state.actor, state.critics, batch)[1]
    for leaf in jax.tree.leaves(gradient):
        assert np.all(leaf[1] == 0)
    assert any(np.any(leaf[0] != 0) for leaf in jax.tree.leaves(gradient))


def test_target_bootstraps_unless_terminated():
    """Whatever follows a termination is worth 0; a time-out has terminated = 0."""
    state, batch = make_state(), reference.batch_at(make_batches())
    noise = np.zeros((B, A))

    @reference.jit
    def target(terminated, next_observation):
        changed = batch._replace(
            terminated=jnp.full(B, terminated), next_observation=next_observation
        )
        return AGENT.critic_target(state, changed, noise)

    np.testing.assert_array_equal(target(1.0, batch.next_observation), batch.reward)
    for next_observation in (batch.next_observation, batch.next_observation + 1.0):
        action = policy(state.target_actor, next_observation)
        worth = reference.q_values(state.target_critics, next_observation, action).min(0)
        np.testing.assert_allclose(
            target(0.0, next_observation), batch.reward + DISCOUNT * worth, rtol=1e-12
        )


def test_act_is_the_deterministic_policy_within_bounds():
    act, state = reference.jit(make_agent().act), make_state()
    observation = np.random.default_rng(1).normal(size=(50, S)) * 10.0
    action = act(state, observation)
    np.testing.assert_array_equal(action, act(state, observation))
    np.testing.assert_allclose(action, policy(state.actor, observation), rtol=1e-9)
    assert np.abs(action).max() <= 1.0
    assert np.abs(action).max() > 0.9  # saturated, so the bound was tried


def test_fresh_targets_are_copies_and_critics_differ():
    state = reference.jit(make_agent().init)(jax.random.key(0))
    chex.assert_trees_all_equal(state.target_actor, state.actor)
    chex.assert_trees_all_equal(state.target_critics, state.critics)
    kernel = state.critics["params"]["VmapMlp_0"]["Dense_0"]["kernel"]
    assert not np.allclose(kernel[0], kernel[1])


def test_vmap_over_seeds_equals_separate_calls():
    states, batches = [make_state(0), make_state(1)], [make_batches(1, 0), make_batches(1, 1)]
    keys = jax.random.split(jax.random.key(5), 2)
    stack = lambda *trees: jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
    together = reference.jit(jax.vmap(make_agent(1).update))(stack(*states), stack(*batches), keys)
    separate = stack(*(update_of(1)(*each) for each in zip(states, batches, keys, strict=True)))
    # Both are float64 and differ by the order of sums alone.
    chex.assert_trees_all_close(together, separate, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("norm", [False, True])
def test_critic_norm_normalises_the_critics_alone(norm):
    agent = make_agent()
    settings = dataclasses.replace(agent.settings, critic_norm=norm)
    state = jax.eval_shape(td3_bc.make(settings, agent.task).init, jax.random.key(0))
    critics, actor = state.critics["params"]["VmapMlp_0"], state.actor["params"]["Mlp_0"]
    assert any("LayerNorm" in name for name in critics) == norm
    assert not any("LayerNorm" in name for name in actor)
    assert jax.tree.structure(state.target_critics) == jax.tree.structure(state.critics)
