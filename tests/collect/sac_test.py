"""Soft actor-critic against NumPy written from the paper's equations, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpy_reference as reference
import optax
import pytest
from scipy import integrate, stats

from dawm_jax.agents import soft
from dawm_jax.collect import sac
from dawm_jax.models import squashed_gaussian
from dawm_jax.types import Transition

S, A, B = 3, 2, 8
DISCOUNT, TAU = 0.9, 0.1
ACTOR_RATE, CRITIC_RATE, TEMPERATURE_RATE = 0.01, 0.02, 0.03
COUNT = 7  # steps that the optimisers have behind them
NETWORKS = sac.make_networks((6, 5), A)
AGENT = sac.Sac(
    networks=NETWORKS,
    state_size=S,
    action_size=A,
    optimizers=soft.Optimizers(
        actor=optax.adam(optax.constant_schedule(ACTOR_RATE)),
        critics=optax.adam(optax.constant_schedule(CRITIC_RATE)),
        temperature=optax.adam(optax.constant_schedule(TEMPERATURE_RATE)),
    ),
    discount=DISCOUNT,
    tau=TAU,
)


@pytest.fixture(autouse=True)
def float64():
    """Errors of the program show at 1e-9 instead of drowning in float32's rounding."""
    with jax.enable_x64(True):
        yield


def make_state(seed=0):
    shapes = jax.eval_shape(AGENT.init, jax.random.key(0))
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


@functools.cache
def update():
    """Compiled once for all tests."""
    return reference.jit(AGENT.update)


# --- the paper's equations ----------------------------------------------------------------


def policy(actor, observation, noise):
    """Actions and log densities by the change of variables, appendix C."""
    out = reference.mlp(actor["params"], observation)
    mean, log_std = out[:, :A], np.clip(out[:, A:], -20, 2)
    latent = mean + np.exp(log_std) * noise
    # log(1 - tanh(u)^2) = -2 log cosh(u), which does not cancel at large |u|
    log_slope = -2 * (np.logaddexp(latent, -latent) - np.log(2))
    log_prob = stats.norm.logpdf(latent, mean, np.exp(log_std)) - log_slope
    return np.tanh(latent), log_prob.sum(1)


def expected_target(state, batch, noise):
    action, log_prob = policy(state.actor, batch.next_observation, noise)
    q = reference.q_values(state.target_critics, batch.next_observation, action)
    value = np.minimum(q[0], q[1]) - np.exp(state.log_temperature) * log_prob
    return batch.reward + DISCOUNT * (1 - batch.terminated) * value


def expected_critic_loss(critics, batch, target):
    q = reference.q_values(critics, batch.observation, batch.action)
    return ((q[0] - target) ** 2).mean() + ((q[1] - target) ** 2).mean()


def expected_actor_loss(actor, critics, log_temperature, observation, noise):
    action, log_prob = policy(actor, observation, noise)
    q = reference.q_values(critics, observation, action)
    return (np.exp(log_temperature) * log_prob - np.minimum(q[0], q[1])).mean()


def float64_actor(networks):
    """Initial parameters in the type of the observations."""
    params = networks.actor.init(jax.random.key(0), jnp.zeros((1, S), jnp.float32))
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)


def test_densities_of_sampled_actions_integrate_to_one():
    """One action dimension: the density of tanh(u) over (-1, 1), by quadrature."""
    networks = sac.make_networks((4,), 1)
    actor = float64_actor(networks)
    observation = jnp.asarray(np.random.default_rng(0).normal(size=S))
    mean, log_std = squashed_gaussian.distribution(networks.actor.apply(actor, observation))

    def density(action):
        noise = (np.arctanh(action)[:, None] - mean[None]) / jnp.exp(log_std)[None]
        observations = jnp.broadcast_to(observation, (len(action), S))
        got, log_prob = sac.sample(actor, observations, noise, networks=networks)
        np.testing.assert_allclose(got[:, 0], action, rtol=1e-6)
        return np.exp(log_prob)

    total, _ = integrate.fixed_quad(density, -1, 1, n=100)
    np.testing.assert_allclose(total, 1.0, atol=1e-3)


def test_log_probabilities_do_not_overflow_far_out():
    actor = float64_actor(NETWORKS)
    action, log_prob = sac.sample(
        actor, jnp.zeros((1, S)), jnp.full((1, A), 50.0), networks=NETWORKS
    )
    assert np.isfinite(log_prob).all()
    np.testing.assert_allclose(np.abs(action), 1.0)


def test_target_value_and_terminations():
    state, batches = make_state(), make_batches()
    batch = jax.tree.map(lambda leaf: leaf[0], batches)
    noise = np.random.default_rng(1).normal(size=(B, A))
    target = AGENT.td_target(state, batch, noise)
    np.testing.assert_allclose(target, expected_target(state, batch, noise), **reference.TOLERANCE)
    terminated = batch.terminated == 1
    np.testing.assert_array_equal(np.asarray(target)[terminated], batch.reward[terminated])


def test_one_update_equals_numpy():
    """A whole cycle: two critic steps, targets after each, the actor, the temperature."""
    state, batches, key = make_state(), make_batches(), jax.random.key(3)
    noise = np.asarray(jax.random.normal(key, (3, B, A)))
    got, metrics = update()(state, batches, key)

    expected = state
    for index in range(2):
        batch = jax.tree.map(lambda leaf, index=index: leaf[index], batches)
        target = expected_target(expected, batch, noise[index])
        slope = reference.gradient(
            lambda p, batch=batch, target=target: expected_critic_loss(p, batch, target),
            expected.critics,
        )
        critics, critic_opt = reference.adam_step(
            slope, expected.critics, expected.critic_opt, CRITIC_RATE
        )
        expected = expected.replace(
            critics=critics,
            critic_opt=critic_opt,
            target_critics=reference.polyak(critics, expected.target_critics, TAU),
        )
    slope = reference.gradient(
        lambda actor: expected_actor_loss(
            actor, expected.critics, expected.log_temperature, batch.observation, noise[2]
        ),
        expected.actor,
    )
    actor, actor_opt = reference.adam_step(slope, expected.actor, expected.actor_opt, ACTOR_RATE)
    # The loss log_temperature * (entropy - target entropy), target entropy -A, in its slope.
    entropy = -policy(expected.actor, batch.observation, noise[2])[1].mean()
    log_temperature, temperature_opt = reference.adam_step(
        entropy + A, expected.log_temperature, expected.temperature_opt, TEMPERATURE_RATE
    )
    expected = expected.replace(
        actor=actor,
        actor_opt=actor_opt,
        log_temperature=log_temperature,
        temperature_opt=temperature_opt,
    )
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, **reference.TOLERANCE), got, expected
    )
    np.testing.assert_allclose(metrics["entropy"], entropy, rtol=1e-9)


def test_a_policy_that_is_too_sure_gets_a_higher_temperature():
    state, batches = make_state(), make_batches()
    narrow = jax.tree.map(np.copy, state.actor)
    narrow["params"]["Dense_2"]["bias"][A:] = -12.0
    for actor, sign in ((narrow, 1), (state.actor, None)):
        fresh = state.replace(
            actor=actor,
            temperature_opt=AGENT.optimizers.temperature.init(state.log_temperature),
        )
        new, metrics = update()(fresh, batches, jax.random.key(0))
        moved = np.sign(float(new.log_temperature - state.log_temperature))
        assert moved == (sign or np.sign(-(float(metrics["entropy"]) + A)))


def test_act_is_the_middle_of_what_is_sampled():
    state = make_state()
    observation = np.random.default_rng(2).normal(size=(5, S))
    np.testing.assert_allclose(
        soft.act(state.actor, observation, networks=NETWORKS),
        policy(state.actor, observation, np.zeros((5, A)))[0],
        **reference.TOLERANCE,
    )
