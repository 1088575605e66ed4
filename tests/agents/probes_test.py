"""Probe MDPs: tiny worlds with known values, each of which isolates one class of bug.

After A. Jones, "Debugging RL, without the agonizing pain". The agents learn by the fused
program on real transitions, from a dataset that went through `windows.build`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from dawm_jax import agents
from dawm_jax.agents import iql, td3_bc
from dawm_jax.data import windows
from dawm_jax.data.dataset import OfflineDataset
from dawm_jax.training import fused

ROWS, HIDDEN, DISCOUNT = 56, (16,), 0.5
ALPHA = 0.5  # TD3+BC's weight of the value
BETA = 1.0  # IQL's inverse temperature
ROUNDS, UPDATES, BATCH = 12, 50, 56
# What 600 updates of Adam at 1e-2 with a slowly moving target leave of the error; the
# bugs the probes are for change a value by 0.3 and more.
TOLERANCE = 0.08

# The actions of every state: odd in number, so that also alternating states see all.
GRID = np.linspace(-1.0, 1.0, 7)


def make_agent(name):
    config = common.get_config("smoke")
    config.discount = DISCOUNT
    shared = {"hidden": HIDDEN, "learning_rate": 1e-2, "tau": 0.1}
    config.td3_bc.update(alpha=ALPHA, **shared)
    config.iql.update(beta=BETA, expectile=0.5, **shared)
    # A return range of 1000 leaves IQL's rewards as they are.
    return agents.make(
        name,
        config,
        state_size=1,
        action_size=1,
        total_updates=ROUNDS * UPDATES,
        return_range=1000.0,
    )


@functools.cache
def trainer(name):
    """One program for all probes of an agent: their data have the same shape."""
    agent = make_agent(name)

    @jax.jit
    def train(key, replay):
        key_init, key_train = jax.random.split(key)
        run = fused.Run(agent.init(key_init), None)
        run, _ = fused.train_rounds(
            run,
            key_train,
            jnp.int32(0),
            None,
            replay,
            agent=agent,
            imagine=None,
            num_rounds=ROUNDS,
            updates_per_round=UPDATES,
            num_windows=0,
            batch_size=BATCH,
            real_fraction=1.0,
        )
        return run.agent

    return train


def solve(name, observation, reward, next_observation, *, terminated, truncated):
    """Trains an agent on ROWS transitions; returns its values and policy of raw states.

    Every array has one entry per transition, in the order of episodes; actions repeat GRID.
    """
    column = lambda x: np.asarray(x, np.float32)[:, None]
    dataset = OfflineDataset(
        name="probe",
        observations=column(observation),
        actions=column(np.tile(GRID, ROWS // len(GRID))),
        rewards=np.asarray(reward, np.float32),
        next_observations=column(next_observation),
        terminations=np.asarray(terminated, bool),
        truncations=np.asarray(truncated, bool),
    )
    replay, statistics = windows.build(
        dataset,
        action_low=np.array([-1.0]),
        action_high=np.array([1.0]),
        discount=DISCOUNT,
        return_scale=0.0,
        timeout_value="zero",
        held_out_fraction=0.0,
    )
    state = trainer(name)(jax.random.key(0), replay)
    standardise = lambda x: windows.normalise_observation(statistics, column(x))

    def q(states, actions):
        """Both critics' Q(s, a), [2, B]."""
        make = {"td3_bc": td3_bc, "iql": iql}[name].make_networks
        return make(HIDDEN, 1).critics.apply(state.critics, standardise(states), column(actions))

    def v(states):
        """IQL's state values."""
        return iql.make_networks(HIDDEN, 1).value.apply(state.value, standardise(states))

    act = lambda states: make_agent(name).act(state, standardise(states))[:, 0]
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


both_agents = pytest.mark.parametrize("name", ("td3_bc", "iql"))


@both_agents
def test_constant_reward_of_one_step(name):
    """The loss of the value: 1."""
    solution = solve(name, NONE, EVERY, NONE, terminated=EVERY, truncated=NONE)
    check_values(name, solution, [0.0], [1.0])


@both_agents
def test_reward_that_depends_on_the_observation(name):
    """The value sees the state: ±1."""
    solution = solve(name, SIGN, SIGN, SIGN, terminated=EVERY, truncated=NONE)
    check_values(name, solution, [-1.0, 1.0], [-1.0, 1.0])


@both_agents
def test_delayed_reward(name):
    """One step before a reward of 1 the value is the discount."""
    # Episodes of two steps: 0 -> 1 without reward, then the end with reward 1.
    step = np.arange(ROWS) % 2
    solution = solve(name, step, step, EVERY, terminated=step, truncated=NONE)
    check_values(name, solution, [0.0, 1.0], [DISCOUNT, 1.0])


@both_agents
def test_truncation_bootstraps(name):
    """A reward of 1 for ever is worth 1 / (1 - discount), though every episode is cut."""
    cut = np.arange(ROWS) % 4 == 3  # the last row is the last of an episode
    solution = solve(name, NONE, EVERY, NONE, terminated=NONE, truncated=cut)
    check_values(name, solution, [0.0], [1.0 / (1.0 - DISCOUNT)])


@both_agents
def test_reward_that_depends_on_state_and_action(name):
    """With reward s a, the policies have closed forms.

    TD3+BC maximises lambda Q(s, pi) - E (pi - a)^2 with lambda = alpha / |pi| held fixed,
    whence pi = s sqrt(alpha / 2). IQL's policy is the mean action weighted by exp(beta A).
    """
    q, _, act = solve(name, SIGN, SIGN * ACTIONS, SIGN, terminated=EVERY, truncated=NONE)
    for sign in (-1.0, 1.0):
        at = np.full(len(GRID), sign)
        np.testing.assert_allclose(q(at, GRID), np.stack([sign * GRID] * 2), atol=TOLERANCE)
    weights = np.exp(BETA * GRID) / np.exp(BETA * GRID).sum()
    best = {"td3_bc": np.sqrt(ALPHA / 2), "iql": weights @ GRID}[name]
    np.testing.assert_allclose(act([-1.0, 1.0]), [-best, best], atol=TOLERANCE)
