"""Probe MDPs: tiny worlds with known values, each of which isolates one class of bug.

After A. Jones, "Debugging RL, without the agonizing pain". The agents learn from a dataset
that went through `replay.build`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dawm_jax.agents.base import AGENTS, AgentTask
from dawm_jax.data import normalizer, replay
from dawm_jax.data.dataset import OfflineDataset
from dawm_jax.types import Transition

ROWS, DISCOUNT = 56, 0.5
ALPHA = 0.5  # TD3+BC's weight of the value
BETA = 1.0  # IQL's inverse temperature
ACTOR_PENALTY = 2.0  # ReBRAC's weight of cloning
UPDATES, BATCH = 600, 56
# What 600 updates of Adam at 1e-2 with a slowly moving target leave of the error; the
# bugs the probes are for change a value by 0.3 and more.
TOLERANCE = 0.08

# The actions of every state: odd in number, so that also alternating states see all.
GRID = np.linspace(-1.0, 1.0, 7)
SETTINGS = {
    "td3_bc": {"alpha": ALPHA},
    "iql": {"beta": BETA, "expectile": 0.5},
    "rebrac": {"actor_penalty": ACTOR_PENALTY, "critic_penalty": 0.0},
}


@functools.cache
def make_agent(name, **changes):
    spec = AGENTS.get(name)
    shared = {"hidden": (16,), "learning_rate": 1e-2, "tau": 0.1}
    task = AgentTask(
        state_size=1,
        action_size=1,
        discount=DISCOUNT,
        total_updates=UPDATES,
        return_range=1000.0,  # leaves IQL's rewards as they are
        rows=Transition,
    )
    return spec.make(spec.settings(**{**shared, **SETTINGS[name], **changes}), task)


@functools.cache
def trainer(agent):
    """One program for all probes of an agent: their data have the same shape."""

    @jax.jit
    def train(key, transitions):
        key_init, key_updates = jax.random.split(key)

        def update(state, index):
            key_rows, key_agent = jax.random.split(jax.random.fold_in(key_updates, index))
            rows = jax.random.randint(key_rows, (agent.batches_per_update, BATCH), 0, ROWS)
            batches = jax.tree.map(lambda leaf: leaf[rows], transitions)
            return agent.update(state, batches, key_agent)

        steps = jnp.arange(UPDATES // agent.batches_per_update)
        return jax.lax.scan(update, agent.init(key_init), steps)[0]

    return train


def column(x):
    return np.asarray(x, np.float32)[:, None]


def solve(name, observation, reward, next_observation, *, terminated, truncated):
    """Trains an agent on ROWS transitions; returns its values and policy of raw states.

    Every array has one entry per transition, in the order of episodes; actions repeat GRID.
    """
    dataset = OfflineDataset(
        name="probe",
        observations=column(observation),
        actions=column(np.tile(GRID, ROWS // len(GRID))),
        rewards=np.asarray(reward, np.float32),
        next_observations=column(next_observation),
        terminations=np.asarray(terminated, bool),
        truncations=np.asarray(truncated, bool),
    )
    data, constants = replay.build(
        dataset,
        action_low=np.array([-1.0]),
        action_high=np.array([1.0]),
        discount=DISCOUNT,
        return_scale=0.0,
        timeout_value="zero",
        held_out_fraction=0.0,
    )
    transitions = replay.gather_transitions(
        data, jnp.arange(ROWS), next_action=AGENTS.get(name).needs_next_action
    )
    agent = make_agent(name)
    state = trainer(agent)(jax.random.key(0), transitions)
    standardise = lambda x: normalizer.normalise_observation(constants, column(x))

    def q(states, actions):
        """Both critics' Q(s, a), [2, B]."""
        return agent.networks.critics.apply(state.critics, standardise(states), column(actions))

    def v(states):
        """IQL's state values."""
        return agent.networks.value.apply(state.value, standardise(states))

    act = lambda states: agent.act(state, standardise(states))[:, 0]
    return q, v, act


EVERY, NONE = np.ones(ROWS), np.zeros(ROWS)
ACTIONS = np.tile(GRID, ROWS // len(GRID))
SIGN = np.where(np.arange(ROWS) < ROWS // 2, -1.0, 1.0)  # a state for each half of the data


def check_values(name, solution, states, values):
    """Both critics at every action of the data, and IQL's V."""
    q, v, _ = solution
    for state, value in zip(states, values, strict=True):
        at = np.full(len(GRID), state)
        np.testing.assert_allclose(q(at, GRID), np.full((2, len(GRID)), value), atol=TOLERANCE)
        if name == "iql":
            np.testing.assert_allclose(v(at), np.full(len(GRID), value), atol=TOLERANCE)


every_agent = pytest.mark.parametrize("name", sorted(SETTINGS))


@every_agent
def test_constant_reward_of_one_step(name):
    """The loss of the value: 1."""
    solution = solve(name, NONE, EVERY, NONE, terminated=EVERY, truncated=NONE)
    check_values(name, solution, [0.0], [1.0])


@every_agent
def test_reward_that_depends_on_the_observation(name):
    """The value sees the state: ±1."""
    solution = solve(name, SIGN, SIGN, SIGN, terminated=EVERY, truncated=NONE)
    check_values(name, solution, [-1.0, 1.0], [-1.0, 1.0])


@every_agent
def test_delayed_reward(name):
    """One step before a reward of 1 the value is the discount."""
    # Episodes of two steps: 0 -> 1 without reward, then the end with reward 1.
    step = np.arange(ROWS) % 2
    solution = solve(name, step, step, EVERY, terminated=step, truncated=NONE)
    check_values(name, solution, [0.0, 1.0], [DISCOUNT, 1.0])


@every_agent
def test_truncation_bootstraps(name):
    """A reward of 1 for ever is worth 1 / (1 - discount), though every episode is cut."""
    cut = np.arange(ROWS) % 4 == 3  # the last row is the last of an episode
    solution = solve(name, NONE, EVERY, NONE, terminated=NONE, truncated=cut)
    check_values(name, solution, [0.0], [1.0 / (1.0 - DISCOUNT)])


@every_agent
def test_reward_that_depends_on_state_and_action(name):
    """With reward s a, the policies have closed forms.

    TD3+BC maximises lambda Q(s, pi) - E (pi - a)^2 with lambda = alpha / |pi| held fixed,
    whence pi = s sqrt(alpha / 2). ReBRAC maximises Q / |pi| - beta_1 (pi - a)^2, whence
    pi = s sqrt(1 / (2 beta_1)). IQL's policy is the mean action weighted by exp(beta A).
    """
    q, _, act = solve(name, SIGN, SIGN * ACTIONS, SIGN, terminated=EVERY, truncated=NONE)
    for sign in (-1.0, 1.0):
        at = np.full(len(GRID), sign)
        np.testing.assert_allclose(q(at, GRID), np.stack([sign * GRID] * 2), atol=TOLERANCE)
    weights = np.exp(BETA * GRID) / np.exp(BETA * GRID).sum()
    best = {
        "td3_bc": np.sqrt(ALPHA / 2),
        "rebrac": np.sqrt(1 / (2 * ACTOR_PENALTY)),
        "iql": weights @ GRID,
    }[name]
    np.testing.assert_allclose(act([-1.0, 1.0]), [-best, best], atol=TOLERANCE)


def test_rebrac_penalty_lowers_the_value_where_the_next_action_is_known():
    """The values before a reward of 1 are gamma (1 - beta_2 (pi - a')^2) and gamma.

    States -1 and 0 lead to state 1, which pays 1 and ends. The actions of state 1 have mean
    0 and its value does not depend on them, hence pi = 0. The next action a' of state -1 is
    known, that of state 0 is not. At the termination a' counts for nothing.
    """
    penalty, next_action = 1.0, 0.6
    agent = make_agent("rebrac", critic_penalty=penalty, policy_noise=0.0)
    state = np.arange(ROWS) % 3 - 1.0
    last = (state == 1.0).astype(np.float32)
    transitions = Transition(
        observation=column(state),
        action=column(ACTIONS),
        reward=last,
        terminated=last,
        next_observation=column(EVERY),
        next_action=column(np.full(ROWS, next_action)),
        next_action_known=np.float32(state != 0.0),
    )
    learned = trainer(agent)(jax.random.key(0), jax.tree.map(jnp.asarray, transitions))
    np.testing.assert_allclose(agent.act(learned, column([1.0])), [[0.0]], atol=TOLERANCE)
    known = DISCOUNT * (1.0 - penalty * next_action**2)
    for at, value in ((-1.0, known), (0.0, DISCOUNT), (1.0, 1.0)):
        states = np.full(len(GRID), at)
        q = agent.networks.critics.apply(learned.critics, column(states), column(GRID))
        np.testing.assert_allclose(q, np.full((2, len(GRID)), value), atol=TOLERANCE)
