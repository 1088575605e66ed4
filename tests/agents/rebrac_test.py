"""ReBRAC against NumPy written from the paper's equations, in float64."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import numpy_reference as reference
import pytest

from dawm_jax.agents import rebrac, td3
from dawm_jax.agents.base import AgentTask
from dawm_jax.types import Transition

S, A, B = 3, 2, 8
DISCOUNT, TAU, RATE = 0.9, 0.1, 0.01
ACTOR_PENALTY, CRITIC_PENALTY = 0.7, 0.4
# Wide noise and a tight clip, so that a batch has both clipped and unclipped draws.
POLICY_NOISE, NOISE_CLIP = 0.6, 0.5
COUNT = 7  # steps that the optimisers have behind them

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture(autouse=True)
def float64():
    """Errors of the program show at 1e-9 instead of drowning in float32's rounding."""
    with jax.enable_x64(True):
        yield


def make_agent(delay=2):
    settings = rebrac.Settings(
        hidden=(6, 5),
        learning_rate=RATE,
        tau=TAU,
        actor_penalty=ACTOR_PENALTY,
        critic_penalty=CRITIC_PENALTY,
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
    return rebrac.make(settings, task)


AGENT = make_agent()


def make_state(seed=85):
    """At this seed each critic is the smaller one somewhere: see the test of the oracle."""
    shapes = jax.eval_shape(AGENT.init, jax.random.key(0))
    return reference.in_training(shapes, count=COUNT, seed=seed)


def make_batches(delay=2, seed=0):
    """Every row is one of the four: terminated or not, its next action known or not."""
    rng = np.random.default_rng(seed)
    row = np.arange(delay * B).reshape(delay, B)
    known = (row % 4 > 1).astype(np.float64)
    next_action = rng.uniform(-1, 1, (delay, B, A))
    return Transition(
        observation=rng.normal(size=(delay, B, S)),
        action=rng.uniform(-1, 1, (delay, B, A)),
        reward=rng.normal(size=(delay, B)),
        terminated=(row % 2).astype(np.float64),
        next_observation=rng.normal(size=(delay, B, S)),
        # An unknown action may be any value.
        next_action=np.where(known[..., None] == 1, next_action, np.nan),
        next_action_known=known,
    )


# One compilation for all tests of a delay.
@functools.cache
def update_of(delay):
    return reference.jit(make_agent(delay).update)


# (actor, critics, batch) -> gradient of the policy's loss by the policy.
actor_gradient = reference.jit(
    jax.grad(lambda actor, critics, batch: AGENT.actor_loss(actor, critics, batch)[0])
)


# --- the paper's equations ----------------------------------------------------------------


def policy(actor, observation):
    return np.tanh(reference.mlp(actor["params"]["Mlp_0"], observation))


def expected_target(state, batch, noise):
    """Row by row: r + gamma (min Q(s', a~) - beta_2 ||a~ - a'||^2), and r at a termination."""
    action = np.clip(policy(state.target_actor, batch.next_observation) + noise, -1, 1)
    q = reference.q_values(state.target_critics, batch.next_observation, action)
    target = []
    for row in range(len(batch.reward)):
        total = batch.reward[row]
        if not batch.terminated[row]:
            total += DISCOUNT * min(q[0, row], q[1, row])
            if batch.next_action_known[row]:
                distance = sum((action[row] - batch.next_action[row]) ** 2)
                total -= DISCOUNT * CRITIC_PENALTY * distance
        target.append(total)
    return np.array(target)


def expected_critic_loss(critics, batch, target):
    q = reference.q_values(critics, batch.observation, batch.action)
    return ((q[0] - target) ** 2).mean() + ((q[1] - target) ** 2).mean()


def policy_values(actor, critics, batch):
    """min_e Q_e(s, pi(s))."""
    q = reference.q_values(critics, batch.observation, policy(actor, batch.observation))
    return np.minimum(q[0], q[1])


def weight_of_value(actor, critics, batch):
    """1 / mean |Q|."""
    return 1.0 / np.abs(policy_values(actor, critics, batch)).mean()


def expected_actor_loss(actor, critics, batch, weight):
    error = policy(actor, batch.observation) - batch.action
    penalty = (error**2).sum(1).mean()
    return ACTOR_PENALTY * penalty - weight * policy_values(actor, critics, batch).mean()


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


@pytest.mark.parametrize("delay", [1, 2])
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
    actual = update_of(delay)(state, batches, key)
    chex.assert_trees_all_close(
        actual, expected_update(state, batches, noise), **reference.TOLERANCE
    )


def test_oracle_tells_the_minimum_from_a_single_critic():
    """Of both minima, in the policy's loss and in the target, each critic is one somewhere."""
    state, batch = make_state(), reference.batch_at(make_batches())
    for critics, actor, observation in (
        (state.critics, state.actor, batch.observation),
        (state.target_critics, state.target_actor, batch.next_observation),
    ):
        q = reference.q_values(critics, observation, policy(actor, observation))
        assert 0 < (q[0] < q[1]).sum() < B


def test_no_gradient_flows_through_the_weight_of_the_value():
    state, batch = make_state(), reference.batch_at(make_batches())
    actual = actor_gradient(state.actor, state.critics, batch)
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


def critic_target(batch, **changes):
    """The target after changes of fields, without noise."""
    changed = jax.tree.map(jnp.asarray, batch._replace(**changes))
    return reference.jit(AGENT.critic_target)(make_state(), changed, np.zeros((B, A)))


def test_termination_cuts_bootstrap_and_penalty():
    """The target is the reward, whatever state and action follow."""
    batch = reference.batch_at(make_batches())
    known, terminated = np.ones(B), np.ones(B)
    for offset in (0.0, 1.0):
        target = critic_target(
            batch,
            terminated=terminated,
            next_observation=batch.next_observation + offset,
            next_action=np.full((B, A), offset),
            next_action_known=known,
        )
        np.testing.assert_array_equal(target, batch.reward)


def test_penalty_is_the_squared_distance_to_a_known_next_action():
    """Moving the next action changes the targets of rows where it is known, and no other."""
    batch = reference.batch_at(make_batches())
    alive, known = np.zeros(B), (np.arange(B) < B // 2).astype(np.float64)
    target = functools.partial(critic_target, batch, terminated=alive)
    free = target(next_action=np.zeros((B, A)), next_action_known=np.zeros(B))
    action = policy(make_state().target_actor, batch.next_observation)
    for next_action in (np.zeros((B, A)), np.full((B, A), 0.5)):
        penalty = CRITIC_PENALTY * ((action - next_action) ** 2).sum(1)
        np.testing.assert_allclose(
            target(next_action=next_action, next_action_known=known),
            free - DISCOUNT * known * penalty,
            rtol=1e-12,
        )


def test_rows_without_next_actions():
    batches = make_batches()._replace(next_action=None, next_action_known=None)
    with pytest.raises(TypeError, match="expected Transition with next_action"):
        jax.eval_shape(AGENT.update, make_state(), batches, jax.random.key(0))


def test_critics_alone_have_layer_normalisation():
    state = jax.eval_shape(AGENT.init, jax.random.key(0))
    critics = state.critics["params"]["VmapMlp_0"]
    assert set(critics) == {"Dense_0", "Dense_1", "Dense_2", "LayerNorm_0", "LayerNorm_1"}
    assert critics["LayerNorm_0"]["scale"].shape == (2, 6)
    assert set(state.actor["params"]["Mlp_0"]) == {"Dense_0", "Dense_1", "Dense_2"}
