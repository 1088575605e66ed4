"""The fused program against the same pieces called one after another."""

import dataclasses
import functools
import os
import pathlib
import subprocess
import sys
import types
from typing import ClassVar

import chex
import jax
import jax.numpy as jnp
import numpy as np
import numpy_reference as reference
import pytest

from dawm_jax.data.replay import Replay
from dawm_jax.methods.base import Generated
from dawm_jax.runtime import sharding
from dawm_jax.training import fused, stages
from dawm_jax.training.fused import AgentRun, AgentTraining, Inputs
from dawm_jax.types import Expansion, Returns, Transition

S, A, H = 2, 1, 3
ROWS, TRAIN_ROWS = 24, 16
WINDOWS, BATCH, CAPACITY = 4, 8, 64
SYNTHETIC = 100.0  # added to the reward of every generated transition
UPDATES, DELAY = 4, 2
# Programs that sum in another order agree to a few dozen float32 roundings of 6e-8.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


def make_replay():
    rng = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    transitions = Transition(
        observation=normal(ROWS, S),
        action=jnp.tanh(normal(ROWS, A)),
        reward=jnp.arange(ROWS, dtype=jnp.float32) / ROWS,  # tells the row, below 1
        terminated=jnp.asarray(np.arange(ROWS) % 8 == 7, jnp.float32),
        next_observation=normal(ROWS, S),
    )
    return Replay(
        transitions=transitions,
        episode_end=jnp.asarray(np.arange(ROWS) // 8 * 8 + 7, jnp.int32),
        return_to_go=normal(ROWS),
        num_train=TRAIN_ROWS,
    )


class FakeMethod:
    """Random walks from the condition; every second window ends after its first step."""

    models: ClassVar = {}

    def __init__(self, seen=None):
        self.seen = [] if seen is None else seen

    def generate(self, params, key, condition):
        self.seen.append(condition)
        count = condition.state.shape[0]
        steps = params["world_model"] * jax.random.normal(key, (count, H, S))
        states = condition.state[:, None] + jnp.cumsum(steps, axis=1)
        states = jnp.concatenate([condition.state[:, None], states], axis=1)
        ends = jnp.broadcast_to(jnp.arange(count)[:, None] % 2 == 1, (count, H))
        transitions = Transition(
            observation=states[:, :-1].reshape(-1, S),
            action=jnp.repeat(condition.action, H, axis=0),
            reward=SYNTHETIC + jnp.tile(jnp.arange(H, dtype=jnp.float32), count),
            terminated=(ends & (jnp.arange(H) == 0)[None]).astype(jnp.float32).reshape(-1),
            next_observation=states[:, 1:].reshape(-1, S),
        )
        return Generated(transitions, (~ends | (jnp.arange(H) == 0)[None]).reshape(-1))


VALID = WINDOWS // 2 * H + WINDOWS // 2  # transitions of a round that exist


class StubAgent:
    """Cheap to compile, and sensitive to every field, to the order of rows, and to the key."""

    batches_per_update, reward_scale = DELAY, 1.0

    def init(self, key):
        return {"x": jax.random.normal(key, (2 * S + A + 2,)), "count": jnp.int32(0)}

    def update(self, state, batches, key):
        chex.assert_shape(batches.observation, (DELAY, BATCH, S))
        synthetic = (batches.reward >= SYNTHETIC).astype(jnp.float32)
        fields = jnp.concatenate(
            [
                batches.observation,
                batches.action,
                (batches.reward - SYNTHETIC * synthetic)[..., None],
                batches.terminated[..., None],
                batches.next_observation,
            ],
            axis=-1,
        )
        weights = jnp.linspace(0.1, 1.0, DELAY * BATCH).reshape(DELAY, BATCH, 1)
        moved = jnp.tanh(state["x"] + (weights * fields).mean((0, 1)))
        moved = moved + 0.1 * jax.random.normal(key, moved.shape)
        return {"x": moved, "count": state["count"] + 1}, {"moved": moved.mean()}


def row():
    """The shapes of one transition."""
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
    return Transition(shape(S), shape(A), shape(), shape(), shape(S))


TRAINING = AgentTraining(
    agent=StubAgent(),
    method=FakeMethod(),
    row=row(),
    updates_per_round=UPDATES,
    windows_per_round=WINDOWS,
    batch_size=BATCH,
    real_fraction=0.25,
    buffer_capacity=CAPACITY,
)
INPUTS = Inputs(models={"world_model": jnp.float32(0.1)}, replay=make_replay())
REPLAY = INPUTS.replay
KEY = jax.random.key(11)
_DEVICES = 4
_ROOT = pathlib.Path(__file__).resolve().parents[2]


@functools.cache
def step(num_rounds):
    """The fused program (run, key, first round), compiled once for all tests."""
    program = jax.jit(functools.partial(TRAINING.step, num_steps=num_rounds * UPDATES))
    return lambda run, key, first_round: program(run, key, jnp.int32(first_round * UPDATES), INPUTS)


@functools.cache
def make_run(seed):
    return TRAINING.init(jax.random.key(seed))


# --- grouping of rounds -------------------------------------------------------------------


def test_rounds_in_one_call_equal_single_calls():
    """Bit for bit, so that how often the host looks changes nothing."""
    together, metrics = step(3)(make_run(0), KEY, 5)
    run, each = make_run(0), []
    for index in range(3):
        run, of_round = step(1)(run, KEY, 5 + index)
        each.append(of_round)
    chex.assert_trees_all_equal(together, run)
    mean = jax.tree.map(lambda *values: np.mean(values), *each)
    chex.assert_trees_all_close(metrics, mean, rtol=1e-5)


def test_rounds_draw_different_numbers():
    first, second = (step(1)(make_run(0), KEY, index)[0] for index in (0, 1))
    with pytest.raises(AssertionError):
        chex.assert_trees_all_close(first, second)


def test_jit_equals_no_jit():
    compiled = step(1)(make_run(0), KEY, 2)
    with jax.disable_jit():
        plain = TRAINING.step(make_run(0), KEY, jnp.int32(2 * UPDATES), INPUTS, num_steps=UPDATES)
    chex.assert_trees_all_close(compiled, plain, **TOLERANCE)


def test_round_equals_its_pieces_by_hand():
    """Generate, then per cycle: draw minibatches from the buffer just written, update."""
    run = make_run(0)
    key_generate, key_update = jax.random.split(jax.random.fold_in(KEY, 2))
    buffer, metrics = TRAINING.generate(run.buffer, key_generate, INPUTS)
    state, each = run.agent, []
    for cycle in range(UPDATES // DELAY):
        key_batch, key_agent = jax.random.split(jax.random.fold_in(key_update, cycle))
        batches = TRAINING.draw_batches(key_batch, AgentRun(state, buffer), INPUTS)
        state, of_cycle = TRAINING.agent.update(state, batches, key_agent)
        each.append(of_cycle)
    metrics |= jax.tree.map(lambda *values: np.mean(values), *each)
    actual = step(1)(run, KEY, 2)
    chex.assert_trees_all_close(actual, (AgentRun(state, buffer), metrics), **TOLERANCE)


def test_vmap_over_seeds_equals_separate_seeds():
    keys = jax.random.split(KEY, 2)
    stack = lambda *trees: jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
    one_round = functools.partial(TRAINING.step, num_steps=UPDATES)
    program = reference.jit(jax.vmap(one_round, in_axes=(0, 0, None, None)))
    runs = stack(make_run(0), make_run(1))
    together = program(runs, keys, jnp.int32(2 * UPDATES), INPUTS)
    separate = [step(1)(make_run(seed), keys[seed], 2) for seed in range(2)]
    chex.assert_trees_all_close(together, stack(*separate), **TOLERANCE)


def test_one_compilation_for_many_calls():
    """What changes between calls is data: nothing is traced again."""

    @reference.jit
    @chex.assert_max_traces(n=1)
    def program(run, key, first_update):
        return TRAINING.step(run, key, first_update, INPUTS, num_steps=UPDATES)

    run = make_run(0)
    for index in range(4):
        run, _ = program(run, jax.random.fold_in(KEY, index), jnp.int32(index * UPDATES))
    assert int(run.buffer.written) == 4 * VALID


# --- generation ---------------------------------------------------------------------------


def test_a_row_has_the_shapes_that_the_method_generates():
    """Nothing is computed for it; the models give the parameters' structure."""

    class Model:
        def init(self, key):
            return dataclasses.make_dataclass("State", ["average"])(jnp.float32(0.1))

    method = FakeMethod()
    method.models = {"world_model": Model()}
    assert fused.row_shapes(method, state_size=S, action_size=A) == row()


def test_generation_starts_at_training_steps():
    """Windows condition on steps of the training episodes, never on held-out ones."""
    seen = []
    training = dataclasses.replace(TRAINING, method=FakeMethod(seen))
    for index in range(8):
        training.generate(training.init_buffer(), jax.random.fold_in(KEY, index), INPUTS)
    rows = []
    for condition in seen:
        for state, action, rtg in zip(*map(np.array, condition), strict=True):
            (row,) = np.flatnonzero((np.array(REPLAY.transitions.observation) == state).all(1))
            np.testing.assert_array_equal(REPLAY.transitions.action[row], action)
            np.testing.assert_array_equal(REPLAY.return_to_go[row], rtg)
            rows.append(row)
    assert max(rows) < TRAIN_ROWS
    assert len(set(rows)) > TRAIN_ROWS // 2  # 32 uniform draws of 16 rows reach 14 on average


def test_generation_metrics_ignore_invalid_steps():
    buffer, metrics = TRAINING.generate(TRAINING.init_buffer(), KEY, INPUTS)
    assert int(buffer.written) == VALID
    # Half of the windows have rewards 0, 1, 2 above the marker, the others only the first.
    np.testing.assert_allclose(
        metrics["synthetic_reward"], SYNTHETIC + WINDOWS // 2 * 3 / VALID, rtol=1e-6
    )
    np.testing.assert_allclose(
        metrics["synthetic_termination_rate"], WINDOWS // 2 / VALID, rtol=1e-6
    )


def test_prefill_equals_rounds_by_hand():
    """Nothing but valid synthetic transitions, round r from fold_in(key, r)."""
    rounds = 3
    program = reference.jit(functools.partial(TRAINING.prefill, num_rounds=rounds))
    actual = program(TRAINING.init_buffer(), KEY, INPUTS)
    buffer = TRAINING.init_buffer()
    for index in range(rounds):
        buffer, _ = TRAINING.generate(buffer, jax.random.fold_in(KEY, index), INPUTS)
    assert int(actual.written) == rounds * VALID
    rewards = np.array(actual.rows.reward)
    assert np.all(rewards[: rounds * VALID] >= SYNTHETIC)
    assert np.all(rewards[rounds * VALID :] == 0)
    chex.assert_trees_all_close(actual, buffer, rtol=1e-6, atol=1e-6)


def test_prefill_in_pieces_equals_one_call():
    whole = jax.jit(functools.partial(TRAINING.prefill, num_rounds=6))
    piece = jax.jit(functools.partial(TRAINING.prefill, num_rounds=2))
    buffer = TRAINING.init_buffer()
    for first in (0, 2, 4):
        buffer = piece(buffer, KEY, INPUTS, jnp.int32(first))
    chex.assert_trees_all_equal(buffer, whole(TRAINING.init_buffer(), KEY, INPUTS))


# --- minibatches --------------------------------------------------------------------------


@pytest.mark.parametrize("real_fraction, num_real", [(0.0, 0), (0.25, 2), (0.3, 2), (1.0, BATCH)])
def test_number_of_real_rows(real_fraction, num_real):
    """Exactly that many in every minibatch, the rest synthetic and written."""
    buffer, _ = TRAINING.generate(TRAINING.init_buffer(), KEY, INPUTS)
    agent = StubAgent()
    agent.batches_per_update = 40
    training = dataclasses.replace(TRAINING, agent=agent, real_fraction=real_fraction)
    batches = training.draw_batches(KEY, AgentRun(None, buffer), INPUTS)
    chex.assert_shape(batches.observation, (40, BATCH, S))
    real = np.array(batches.reward) < 1.0
    np.testing.assert_array_equal(real.sum(1), np.full(40, num_real))
    assert np.all(np.array(batches.reward)[~real] >= SYNTHETIC)
    rows = np.rint(np.array(batches.reward)[real] * ROWS).astype(int)
    # Whole rows of the dataset, fields not mixed up.
    drawn = jax.tree.map(lambda leaf: np.array(leaf)[real], batches)
    expected = jax.tree.map(lambda leaf: np.array(leaf)[rows], REPLAY.transitions)
    jax.tree.map(np.testing.assert_array_equal, drawn, expected)
    if num_real:  # held-out episodes too: only the models must not see them
        assert rows.max() >= TRAIN_ROWS


def test_real_rows_carry_the_next_action_for_an_agent_that_needs_it():
    training = dataclasses.replace(
        TRAINING, method=None, row=None, real_fraction=1.0, next_action=True
    )
    batches = training.draw_batches(KEY, AgentRun(None, None), INPUTS)
    chex.assert_shape(batches.next_action, (DELAY, BATCH, A))
    rows = np.rint(np.array(batches.reward) * ROWS).astype(int)
    known = rows % 8 != 7  # not at an episode's last step
    np.testing.assert_array_equal(batches.next_action_known, known)
    following = np.array(REPLAY.transitions.action)[np.where(known, rows + 1, rows)]
    np.testing.assert_array_equal(batches.next_action, following)


def test_real_rows_are_returns_over_several_steps():
    """Episodes have 8 rows, and the reward tells the row: r = row / ROWS."""
    returns = Returns(3, 0.9)
    training = dataclasses.replace(
        TRAINING, method=None, row=None, real_fraction=1.0, returns=returns
    )
    batches = training.draw_batches(KEY, AgentRun(None, None), INPUTS)
    one_step = dataclasses.replace(training, returns=None)
    plain = one_step.draw_batches(KEY, AgentRun(None, None), INPUTS)
    assert plain.discount is None
    rows = np.rint(np.array(plain.reward) * ROWS).astype(int)
    counts = np.minimum(3, 8 - rows % 8)
    assert set(counts.flat) == {1, 2, 3}
    expected = sum(np.where(k < counts, 0.9**k * (rows + k) / ROWS, 0.0) for k in range(3))
    np.testing.assert_allclose(batches.reward, expected, rtol=1e-5)
    np.testing.assert_allclose(batches.discount, 0.9**counts, rtol=1e-6)
    np.testing.assert_array_equal(batches.observation, plain.observation)
    after = np.array(REPLAY.transitions.next_observation)[rows + counts - 1]
    np.testing.assert_array_equal(batches.next_observation, after)


def test_real_data_only_needs_no_models():
    training = dataclasses.replace(TRAINING, method=None, row=None, real_fraction=1.0)
    run = training.init(jax.random.key(0))
    program = reference.jit(functools.partial(training.step, num_steps=2 * UPDATES))
    after, metrics = program(run, KEY, jnp.int32(0), Inputs(None, REPLAY))
    assert after.buffer is None
    assert int(after.agent["count"]) == 2 * UPDATES // DELAY
    assert set(metrics) == {"moved"}


# --- value expansions: a sweep, and expansions for one minibatch ----------------------------


class FakeExpansions:
    """A `PolicyMethod` whose rewards tell the start; the last step always ends."""

    models: ClassVar = {}

    def expand(self, params, key, condition, *, act):
        """The actions of the policy stand in place of the next states' first value."""
        noise = params["world_model"] * jax.random.normal(key, (len(condition.state), H, S))
        states = condition.state[:, None] + noise
        expansions = Expansion(
            observation=condition.state,
            action=condition.action,
            reward=SYNTHETIC + jnp.repeat(condition.return_to_go[:, None], H, axis=1),
            terminated=jnp.zeros((len(noise), H)).at[:, -1].set(1.0),
            next_observation=states.at[..., 0].set(act(states)[..., 0]),
            steps=jnp.full(len(noise), H, jnp.int32),
        )
        return Generated(expansions, jnp.ones((len(noise), H), bool))


class FakeGenerator:
    """The same as a `GeneratingMethod`."""

    models: ClassVar = {}

    def generate(self, params, key, condition):
        policy = lambda state: state[..., :A]
        return FakeExpansions().expand(params, key, condition, act=policy)


class PolicyAgent(StubAgent):
    """Its policy depends on its state."""

    batches_per_update = DELAY

    def act(self, state, observation):
        return jnp.full((*observation.shape[:-1], A), state["x"][0])


class ExpansionAgent(PolicyAgent):
    """Sensitive to the states of expansions."""

    def update(self, state, batches, key):
        chex.assert_shape(batches.next_observation, (DELAY, BATCH, H, S))
        moved = jnp.tanh(state["x"] + 0.1 * batches.next_observation.mean())
        moved = moved + 0.1 * jax.random.normal(key, moved.shape)
        return {"x": moved, "count": state["count"] + 1}, {"moved": moved.mean()}


def expansion_row():
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
    count = jax.ShapeDtypeStruct((), jnp.int32)
    return Expansion(shape(S), shape(A), shape(H), shape(H), shape(H, S), count)


SWEEPING = dataclasses.replace(
    TRAINING,
    agent=PolicyAgent(),
    method=FakeGenerator(),
    row=expansion_row(),
    buffer_capacity=TRAIN_ROWS + 2,
    supply="sweep",
)
AFRESH = dataclasses.replace(SWEEPING, method=FakeExpansions(), supply="minibatch")


@pytest.fixture(name="pieces_of_five")
def _pieces_of_five(monkeypatch):
    """Sixteen training steps in four pieces, the last of which has one step."""
    monkeypatch.setattr(fused, "_SWEEP_WINDOWS", 5)
    return dataclasses.replace(SWEEPING, windows_per_round=5)


def test_a_sweep_expands_every_training_step_once_and_in_order(pieces_of_five):
    training = pieces_of_five
    assert (training.sweep_windows, training.sweep_pieces(REPLAY)) == (5, 4)
    program = reference.jit(functools.partial(training.sweep, num_pieces=4))
    buffer = program(training.init_buffer(), KEY, INPUTS)
    assert int(buffer.written) == TRAIN_ROWS
    rows = jax.tree.map(lambda leaf: np.asarray(leaf)[:TRAIN_ROWS], buffer.rows)
    real = jax.tree.map(lambda leaf: np.asarray(leaf)[:TRAIN_ROWS], REPLAY.transitions)
    np.testing.assert_array_equal(rows.observation, real.observation)
    np.testing.assert_array_equal(rows.action, real.action)
    expected = SYNTHETIC + np.asarray(REPLAY.return_to_go)[:TRAIN_ROWS]
    np.testing.assert_allclose(rows.reward[:, 0], expected, rtol=1e-6)
    np.testing.assert_array_equal(rows.steps, np.full(TRAIN_ROWS, H))
    assert not np.asarray(buffer.rows.steps)[TRAIN_ROWS:].any()
    # Every start has noise of its own.
    assert len(np.unique(rows.next_observation[:, 0, 1] - rows.observation[:, 1])) == TRAIN_ROWS
    # A round then writes into the free rows and over the oldest ones.
    after, _ = training.generate(buffer, KEY, INPUTS)
    changed = (np.asarray(after.rows.next_observation) != buffer.rows.next_observation).any((1, 2))
    np.testing.assert_array_equal(np.flatnonzero(changed), [0, 1, 2, TRAIN_ROWS, TRAIN_ROWS + 1])


def test_a_sweep_in_calls_equals_one_call(pieces_of_five):
    """Also with calls that end beyond the last training step."""
    training = pieces_of_five
    whole = jax.jit(functools.partial(training.sweep, num_pieces=4))
    call = jax.jit(functools.partial(training.sweep, num_pieces=3))
    buffer = training.init_buffer()
    for first in (0, 3):
        buffer = call(buffer, KEY, INPUTS, jnp.int32(first))
    chex.assert_trees_all_equal(buffer, whole(training.init_buffer(), KEY, INPUTS))


def test_a_piece_of_a_sweep_is_a_multiple_of_a_round():
    assert SWEEPING.sweep_windows == 1024
    odd = dataclasses.replace(SWEEPING, windows_per_round=300)
    assert odd.sweep_windows == 900
    large = dataclasses.replace(SWEEPING, windows_per_round=2000)
    assert large.sweep_windows == 2000
    assert large.sweep_pieces(REPLAY) == 1


def test_a_sweep_into_a_small_buffer_is_refused():
    training = dataclasses.replace(SWEEPING, buffer_capacity=TRAIN_ROWS - 1)
    with pytest.raises(ValueError, match="a sweep needs a buffer of 16 rows, got 15"):
        training.sweep(training.init_buffer(), KEY, INPUTS, num_pieces=1)


def test_half_of_the_rows_of_expansions_are_real_and_have_one_step():
    buffer = SWEEPING.sweep(SWEEPING.init_buffer(), KEY, INPUTS, num_pieces=1)
    batches = SWEEPING.draw_batches(KEY, AgentRun(None, buffer), INPUTS)
    chex.assert_shape(batches.next_observation, (DELAY, BATCH, H, S))
    real = np.asarray(batches.steps) == 1
    np.testing.assert_array_equal(real.sum(1), np.full(DELAY, 2))  # a quarter of eight
    assert (np.asarray(batches.steps)[~real] == H).all()
    drawn = jax.tree.map(lambda leaf: np.asarray(leaf)[real], batches)
    rows = np.rint(drawn.reward[:, 0] * ROWS).astype(int)
    expected = jax.tree.map(lambda leaf: np.asarray(leaf)[rows], REPLAY.transitions)
    np.testing.assert_array_equal(drawn.observation, expected.observation)
    np.testing.assert_array_equal(drawn.action, expected.action)
    np.testing.assert_array_equal(drawn.reward[:, 0], expected.reward)
    np.testing.assert_array_equal(drawn.terminated[:, 0], expected.terminated)
    np.testing.assert_array_equal(drawn.next_observation[:, 0], expected.next_observation)
    assert (np.asarray(batches.reward)[~real] > SYNTHETIC - 10).all()


def test_expansions_of_one_minibatch_follow_the_agents_policy():
    """Every drawn start is a training step; another state of the agent gives other rows."""
    assert AFRESH.init_buffer() is None
    draw = reference.jit(lambda agent: AFRESH.draw_batches(KEY, AgentRun(agent, None), INPUTS))
    agents = [{"x": jnp.full(2 * S + A + 2, value), "count": jnp.int32(0)} for value in (0.25, 0.5)]
    first, second = (jax.tree.map(np.asarray, draw(agent)) for agent in agents)
    synthetic = first.steps == H
    assert synthetic.sum() == DELAY * 6
    for batch, value in ((first, 0.25), (second, 0.5)):
        np.testing.assert_array_equal(batch.next_observation[synthetic][..., 0], value)
    np.testing.assert_array_equal(
        first.next_observation[synthetic][..., 1], second.next_observation[synthetic][..., 1]
    )
    starts = [
        np.flatnonzero((np.asarray(REPLAY.transitions.observation) == state).all(1)).item()
        for state in first.observation[synthetic]
    ]
    assert max(starts) < TRAIN_ROWS
    assert len(set(starts)) > 6  # twelve uniform draws of sixteen steps reach 8.6 on average


def test_rounds_without_a_buffer_equal_updates_by_hand():
    """The policy of each update is the agent's after the update before."""
    training = dataclasses.replace(AFRESH, agent=ExpansionAgent())
    run = AgentRun(training.agent.init(jax.random.key(4)), None)
    program = reference.jit(functools.partial(training.step, num_steps=UPDATES))
    after, _ = program(run, KEY, jnp.int32(UPDATES), INPUTS)
    _, key_update = jax.random.split(jax.random.fold_in(KEY, 1))
    state = run.agent
    for index in range(UPDATES // DELAY):
        key_batch, key_agent = jax.random.split(jax.random.fold_in(key_update, index))
        batches = training.draw_batches(key_batch, AgentRun(state, None), INPUTS)
        state, _ = training.agent.update(state, batches, key_agent)
    assert after.buffer is None
    chex.assert_trees_all_close(after.agent, state, **TOLERANCE)
    assert abs(float(after.agent["x"][0] - run.agent["x"][0])) > 1e-3


def test_a_row_of_a_method_that_follows_a_policy_has_its_shapes():
    class Model:
        def init(self, key):
            return dataclasses.make_dataclass("State", ["average"])(jnp.float32(0.1))

    method = FakeExpansions()
    method.models = {"world_model": Model()}
    assert fused.row_shapes(method, state_size=S, action_size=A) == expansion_row()


@pytest.mark.parametrize("mode", ["mesh", "pmap"])
def test_the_copies_of_a_swept_buffer_take_the_memory_of_the_empty_ones(mode):
    placement = sharding.place(mode, num_seeds=3, batch_sizes={})
    swept = SWEEPING.sweep(SWEEPING.init_buffer(), KEY, INPUTS, num_pieces=1)
    make = jax.vmap(lambda _: SWEEPING.init_buffer(), axis_size=3)
    empty = placement.make_seeds(lambda: make(None))
    keys = placement.place_seeds(jax.random.split(KEY, 3))
    copies = stages.share_buffer(empty, keys, placement.replicate(swept), placement)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(empty))
    for seed in range(3):
        chex.assert_trees_all_equal(jax.tree.map(lambda leaf, i=seed: leaf[i], copies), swept)


# --- the sweep on several devices, in a process with four CPU devices ---------------------


def sweep_on(mode, num_seeds):
    """The buffers of all seeds, [seeds, ...], as `stages.train_agents` makes them."""
    placement = sharding.place(mode, num_seeds=num_seeds, batch_sizes={"windows": WINDOWS})
    training = dataclasses.replace(SWEEPING, shard=placement.shard_windows)
    running = types.SimpleNamespace(signal=None)
    swept = stages.sweep(training, placement.replicate(INPUTS), placement, KEY, running)
    make = jax.vmap(lambda _: training.init_buffer(), axis_size=num_seeds)
    empty = placement.make_seeds(lambda: make(None))
    keys = placement.place_seeds(jax.random.split(KEY, num_seeds))
    return stages.share_buffer(empty, keys, swept, placement)


def _worker():
    """Compares both placements with one device; prints how many devices hold the seeds."""
    fused._SWEEP_WINDOWS = WINDOWS
    with jax.default_device(jax.devices()[0]):
        expected = SWEEPING.sweep(
            SWEEPING.init_buffer(), KEY, INPUTS, num_pieces=SWEEPING.sweep_pieces(INPUTS.replay)
        )
    assert int(expected.written) == INPUTS.replay.num_train
    for mode, num_seeds in (("mesh", 4), ("mesh", 2), ("pmap", 4)):
        found = sweep_on(mode, num_seeds)
        reward = found.transitions["reward"]
        assert reward.addressable_shards[0].data.shape[0] == 1, (mode, num_seeds)
        for seed in range(num_seeds):
            jax.tree.map(
                lambda leaf, one, seed=seed: np.testing.assert_allclose(
                    leaf[seed], one, rtol=1e-6, atol=1e-6
                ),
                jax.device_get(found),
                jax.device_get(expected),
            )
        print(mode, num_seeds)


def test_the_sweep_of_many_devices_is_that_of_one():
    flags = f"--xla_force_host_platform_device_count={_DEVICES}"
    paths = os.pathsep.join(map(str, (_ROOT, *map(pathlib.Path, filter(None, sys.path)))))
    env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": paths}
    process = subprocess.run(
        [sys.executable, __file__], capture_output=True, text=True, env=env, check=False
    )
    assert process.returncode == 0, process.stderr[-2000:]
    assert process.stdout.split("\n")[:3] == ["mesh 4", "mesh 2", "pmap 4"]


if __name__ == "__main__":
    _worker()
