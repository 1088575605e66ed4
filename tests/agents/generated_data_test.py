"""Agents learn a known policy and known values from generated rows alone.

The task is a scalar linear system with quadratic costs, s' = f s + b u and
r = -(q s^2 + c u^2). An exact generator stands in place of the world model: it makes windows
of states and rewards, and the exact inverse dynamics (s' - f s) / b completes their actions.
All values are -(p s^2 + constant), so that p and the policies follow from scalar equations.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpy_reference as reference
import pytest

from dawm_jax.agents import iql, td3_bc
from dawm_jax.agents.base import AgentTask
from dawm_jax.types import Expansion, GeneratedWindow, Transition

STATE, ACTION, STATE_COST, ACTION_COST = 0.9, 0.6, 1.0, 0.1  # f, b, q, c
DISCOUNT, H = 0.6, 4
SPREAD = 1.0 / 3.0  # variance of a uniform number in [-1, 1]: of first states and of actions
GAIN = 0.5  # of the policy u = -GAIN s that continues value expansions
ALPHA, BETA = 2.5, 3.0  # TD3+BC's weight of the value, IQL's inverse temperature
UPDATES, WINDOWS = 2_000, 64
SETTINGS = {"hidden": (32, 32), "learning_rate": 1e-3, "tau": 0.05}
# What 2,000 updates leave of the error: relative for values, absolute for TD3+BC's gain and
# for single actions. The policy follows the slope of a network, which errs more than its value.
VALUE_TOLERANCE, GAIN_TOLERANCE, ACTION_TOLERANCE = 0.03, 0.05, 0.15


# --- the exact generator ------------------------------------------------------------------


def generate(key, *, gain):
    """WINDOWS windows from uniform states under uniform actions, or -gain s from the second on."""
    key_start, key_action = jax.random.split(key)
    state = jax.random.uniform(key_start, (WINDOWS, 1), minval=-1.0, maxval=1.0)
    actions = jax.random.uniform(key_action, (H, WINDOWS, 1), minval=-1.0, maxval=1.0)
    states, rewards = [state], []
    for step in range(H):
        action = actions[step] if gain is None or step == 0 else -gain * state
        cost = STATE_COST * state**2 + ACTION_COST * action**2
        state = STATE * state + ACTION * action
        states.append(state)
        rewards.append(-cost[:, 0])
    rewards = jnp.stack(rewards, axis=1)
    return GeneratedWindow(jnp.stack(states, axis=1), rewards, jnp.zeros_like(rewards))


def infer(state, next_state):
    """The exact inverse dynamics."""
    return (next_state - STATE * state) / ACTION


def transitions(window):
    """Every generated step, [WINDOWS * H]."""
    state, next_state = window.states[:, :-1], window.states[:, 1:]
    steps = Transition(
        state, infer(state, next_state), window.rewards, window.terminated, next_state
    )
    return jax.tree.map(lambda leaf: leaf.reshape(WINDOWS * H, *leaf.shape[2:]), steps)


def expansions(window):
    """The first state and action with the generated steps after them, [WINDOWS]."""
    first, second = window.states[:, 0], window.states[:, 1]
    rewards = window.rewards
    return Expansion(
        first,
        infer(first, second),
        rewards,
        window.terminated,
        window.states[:, 1:],
        jnp.full(len(rewards), rewards.shape[1], jnp.int32),
    )


def make_task(rows):
    return AgentTask(
        state_size=1,
        action_size=1,
        discount=DISCOUNT,
        total_updates=UPDATES,
        return_range=1000.0,  # leaves IQL's rewards as they are
        rows=rows,
    )


def learn(agent, rows):
    """The agent after UPDATES critic updates, each on windows that are generated for it."""
    gain, as_rows = (GAIN, expansions) if rows is Expansion else (None, transitions)
    make_rows = lambda key: as_rows(generate(key, gain=gain))

    @reference.jit
    def train(key):
        key_init, key_train = jax.random.split(key)

        def update(state, index):
            key_rows, key_agent = jax.random.split(jax.random.fold_in(key_train, index))
            keys = jax.random.split(key_rows, agent.batches_per_update)
            return agent.update(state, jax.vmap(make_rows)(keys), key_agent)

        steps = jnp.arange(UPDATES // agent.batches_per_update)
        return jax.lax.scan(update, agent.init(key_init), steps)[0]

    return train(jax.random.key(0))


# --- the known solution -------------------------------------------------------------------


def continuation(rows, return_lambda):
    """(known, bootstrap) of a target r_0 - (known + bootstrap p) s_1^2, but for a constant.

    The value that it bootstraps from is -p s^2, but for a constant. The target of expansions
    is the mean over n of the n-step returns with the weights of the lambda-return.
    """
    if rows is Transition:
        return 0.0, DISCOUNT
    closed = STATE - ACTION * GAIN  # s_h = closed^(h - 1) s_1
    weights = [(1 - return_lambda) * return_lambda ** (n - 1) for n in range(1, H)]
    weights.append(return_lambda ** (H - 1))
    cost = STATE_COST + ACTION_COST * GAIN**2
    known = bootstrap = 0.0
    for n, weight in enumerate(weights, start=1):
        known += weight * sum(DISCOUNT**h * cost * closed ** (2 * (h - 1)) for h in range(1, n))
        bootstrap += weight * DISCOUNT**n * closed ** (2 * (n - 1))
    return known, bootstrap


def mean_square_state(rows):
    """E s^2 over the rows' states."""
    squares = [SPREAD]
    while rows is Transition and len(squares) < H:
        squares.append(STATE**2 * squares[-1] + ACTION**2 * SPREAD)
    return np.mean(squares)


def td3_bc_solution(rows, return_lambda):
    """(k of the policy -k s, P of s_1^2 in Q).

    k maximises lambda Q(s, -k s) - (k s)^2 with lambda = alpha / mean |Q| held fixed, as the
    mean action of the data is 0. Q is that of the policy -k s: a fixed point in k.
    """
    known, bootstrap = continuation(rows, return_lambda)
    gain = 0.0
    for _ in range(1_000):
        closed = (STATE - ACTION * gain) ** 2
        cost = STATE_COST + ACTION_COST * gain**2
        p = (cost + known * closed) / (1.0 - bootstrap * closed)
        weight = ALPHA / (p * mean_square_state(rows))
        total = known + bootstrap * p
        gain = total * STATE * ACTION / (ACTION_COST + ACTION**2 * total + 1.0 / weight)
    return gain, total


def iql_solution(rows, return_lambda):
    """P of s_1^2 in Q, where V is the mean of Q over uniform actions."""
    known, bootstrap = continuation(rows, return_lambda)
    p = (STATE_COST + known * STATE**2) / (1.0 - bootstrap * STATE**2)
    return known + bootstrap * p


def one_step_cost(state, action):
    """-r."""
    return STATE_COST * state**2 + ACTION_COST * action**2


def next_state(state, action):
    return STATE * state + ACTION * action


# --- tests --------------------------------------------------------------------------------

STATES, ACTIONS = np.linspace(-0.9, 0.9, 13), np.linspace(-0.9, 0.9, 7)
both_kinds = pytest.mark.parametrize("rows", [Transition, Expansion])


def value_weights(agent, state):
    """P of r - Q = P s_1^2 + constant, by least squares over states and actions, [2]."""
    s, u = (x.ravel() for x in np.meshgrid(STATES, ACTIONS))
    q = agent.networks.critics.apply(state.critics, s[:, None], u[:, None])
    features = np.stack([next_state(s, u) ** 2, np.ones_like(s)], axis=1)
    return [np.linalg.lstsq(features, -one_step_cost(s, u) - each)[0][0] for each in q]


@both_kinds
def test_td3_bc_reaches_the_known_policy_and_values(rows):
    settings = td3_bc.Settings(**SETTINGS, alpha=ALPHA, policy_noise=0.0)
    agent = td3_bc.make(settings, make_task(rows))
    state = learn(agent, rows)
    gain, weight = td3_bc_solution(rows, settings.return_lambda)
    assert gain > 0.5  # far from cloning, whose policy is 0
    action = agent.act(state, STATES[:, None])[:, 0]
    learned_gain = -(action @ STATES) / (STATES @ STATES)  # by least squares
    np.testing.assert_allclose(learned_gain, gain, atol=GAIN_TOLERANCE)
    np.testing.assert_allclose(action, -gain * STATES, atol=ACTION_TOLERANCE)
    np.testing.assert_allclose(value_weights(agent, state), weight, rtol=VALUE_TOLERANCE)


@both_kinds
def test_iql_reaches_the_known_policy_and_values(rows):
    """With expectile .5, V is the mean of Q over the data's actions."""
    settings = iql.Settings(**SETTINGS, expectile=0.5, beta=BETA)
    agent = iql.make(settings, make_task(rows))
    state = learn(agent, rows)
    weight = iql_solution(rows, settings.return_lambda)
    np.testing.assert_allclose(value_weights(agent, state), weight, rtol=VALUE_TOLERANCE)
    # The policy is the mean action under the weights exp(beta A).
    s, u = STATES[:, None], np.linspace(-1.0, 1.0, 1_001)[None]
    q = -one_step_cost(s, u) - weight * next_state(s, u) ** 2
    odds = np.exp(BETA * (q - q.mean(1, keepdims=True)))
    assert odds.max() < settings.max_weight
    best = (odds * u).sum(1) / odds.sum(1)
    assert np.ptp(best) > 5 * GAIN_TOLERANCE
    action = agent.act(state, STATES[:, None])[:, 0]
    np.testing.assert_allclose(action, best, atol=GAIN_TOLERANCE)


def test_solutions_differ_by_more_than_the_tolerance():
    """So that an agent that reads one kind of rows as the other fails."""
    for one, other in (
        (td3_bc_solution(Transition, 1.0)[1], td3_bc_solution(Expansion, 1.0)[1]),
        (iql_solution(Transition, 0.95), iql_solution(Expansion, 0.95)),
    ):
        assert abs(one / other - 1.0) > 2 * VALUE_TOLERANCE
