"""The fused program against the same pieces called one after another."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import numpy_reference as reference
import pytest

from dawm_jax import agents
from dawm_jax.data import windows
from dawm_jax.methods import synthetic as rollout
from dawm_jax.training import fused
from dawm_jax.types import Transition

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
    return windows.Replay(
        transitions=transitions,
        episode_end=jnp.asarray(np.arange(ROWS) // 8 * 8 + 7, jnp.int32),
        return_to_go=normal(ROWS),
        num_train=TRAIN_ROWS,
    )


def fake_imagine(models, key, condition):
    """Random walks from the condition; every second window ends after its first step."""
    count = condition.state.shape[0]
    steps = models.world_model * jax.random.normal(key, (count, H, S))
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
    return transitions, (~ends | (jnp.arange(H) == 0)[None]).reshape(-1)


VALID = WINDOWS // 2 * H + WINDOWS // 2  # transitions of a round that exist


def stub_update(state, batches, key):
    """Cheap to compile, and sensitive to every field, to the order of rows, and to the key."""
    chex.assert_shape(batches.observation, (DELAY, BATCH, S))
    fields = jnp.concatenate(
        [
            batches.observation,
            batches.action,
            batches.reward[..., None] - SYNTHETIC * (batches.reward >= SYNTHETIC)[..., None],
            batches.terminated[..., None],
            batches.next_observation,
        ],
        axis=-1,
    )
    weights = jnp.linspace(0.1, 1.0, DELAY * BATCH).reshape(DELAY, BATCH, 1)
    moved = jnp.tanh(state["x"] + (weights * fields).mean((0, 1)))
    state = {"x": moved + 0.1 * jax.random.normal(key, moved.shape), "count": state["count"] + 1}
    return state, {"moved": moved.mean()}


AGENT = agents.Agent(
    init=lambda key: {"x": jax.random.normal(key, (2 * S + A + 2,)), "count": jnp.int32(0)},
    update=stub_update,
    act=None,
    batches_per_update=DELAY,
)
MODELS = fused.Models(world_model=jnp.float32(0.1), inverse_dynamics=None)
REPLAY = make_replay()
KEY = jax.random.key(11)
IMAGINE = {"imagine": fake_imagine, "num_windows": WINDOWS}


def train(run, key, first_round, *, num_rounds):
    return fused.train_rounds(
        run,
        key,
        first_round,
        MODELS,
        REPLAY,
        agent=AGENT,
        num_rounds=num_rounds,
        updates_per_round=UPDATES,
        batch_size=BATCH,
        real_fraction=0.25,
        **IMAGINE,
    )


@functools.cache
def train_jit(num_rounds):
    """Compiled once for all tests."""
    return jax.jit(functools.partial(train, num_rounds=num_rounds))


@functools.cache
def make_run(seed):
    agent = AGENT.init(jax.random.key(seed))
    return fused.Run(agent, rollout.empty_buffer(CAPACITY, S, A))


# --- grouping of rounds -------------------------------------------------------------------


def test_rounds_in_one_call_equal_single_calls():
    """Bit for bit, so that how often the host looks changes nothing."""
    together, metrics = train_jit(3)(make_run(0), KEY, jnp.int32(5))
    run, each = make_run(0), []
    for index in range(3):
        run, of_round = train_jit(1)(run, KEY, jnp.int32(5 + index))
        each.append(of_round)
    chex.assert_trees_all_equal(together, run)
    mean = jax.tree.map(lambda *values: np.mean(values), *each)
    chex.assert_trees_all_close(metrics, mean, rtol=1e-5)


def test_rounds_draw_different_numbers():
    first, second = (train_jit(1)(make_run(0), KEY, jnp.int32(index))[0] for index in (0, 1))
    with pytest.raises(AssertionError):
        chex.assert_trees_all_close(first, second)


def test_jit_equals_no_jit():
    compiled = train_jit(1)(make_run(0), KEY, jnp.int32(2))
    with jax.disable_jit():
        plain = train(make_run(0), KEY, jnp.int32(2), num_rounds=1)
    chex.assert_trees_all_close(compiled, plain, **TOLERANCE)


def test_round_equals_its_pieces_by_hand():
    """Imagine, then per cycle: draw minibatches from the buffer just written, update."""
    run = make_run(0)
    key_imagine, key_update = jax.random.split(jax.random.fold_in(KEY, 2))
    buffer, metrics = fused.imagine_round(run.buffer, key_imagine, MODELS, REPLAY, **IMAGINE)
    state, each = run.agent, []
    for cycle in range(UPDATES // DELAY):
        key_batch, key_agent = jax.random.split(jax.random.fold_in(key_update, cycle))
        batches = fused.draw_batches(
            key_batch, buffer, REPLAY, num_batches=DELAY, batch_size=BATCH, real_fraction=0.25
        )
        state, of_cycle = AGENT.update(state, batches, key_agent)
        each.append(of_cycle)
    metrics |= jax.tree.map(lambda *values: np.mean(values), *each)
    actual = train_jit(1)(run, KEY, jnp.int32(2))
    chex.assert_trees_all_close(actual, (fused.Run(state, buffer), metrics), **TOLERANCE)


def test_vmap_over_seeds_equals_separate_seeds():
    keys = jax.random.split(KEY, 2)
    stack = lambda *trees: jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
    program = reference.jit(jax.vmap(functools.partial(train, num_rounds=1), in_axes=(0, 0, None)))
    together = program(stack(make_run(0), make_run(1)), keys, jnp.int32(2))
    separate = [train_jit(1)(make_run(seed), keys[seed], jnp.int32(2)) for seed in range(2)]
    chex.assert_trees_all_close(together, stack(*separate), **TOLERANCE)


def test_one_compilation_for_many_calls():
    """What changes between calls is data: nothing is traced again."""

    @reference.jit
    @chex.assert_max_traces(n=1)
    def program(run, key, first_round):
        return train(run, key, first_round, num_rounds=1)

    run = make_run(0)
    for index in range(4):
        run, _ = program(run, jax.random.fold_in(KEY, index), jnp.int32(index))
    assert int(run.buffer.written) == 4 * VALID


# --- imagination --------------------------------------------------------------------------


def test_imagine_round_starts_at_training_steps():
    """Windows condition on steps of the training episodes, never on held-out ones."""
    seen = []

    def recording(models, key, condition):
        seen.append(condition)
        return fake_imagine(models, key, condition)

    for index in range(8):
        fused.imagine_round(
            rollout.empty_buffer(CAPACITY, S, A),
            jax.random.fold_in(KEY, index),
            MODELS,
            REPLAY,
            imagine=recording,
            num_windows=WINDOWS,
        )
    rows = []
    for condition in seen:
        for state, action, rtg in zip(*map(np.array, condition), strict=True):
            (row,) = np.flatnonzero((np.array(REPLAY.transitions.observation) == state).all(1))
            np.testing.assert_array_equal(REPLAY.transitions.action[row], action)
            np.testing.assert_array_equal(REPLAY.return_to_go[row], rtg)
            rows.append(row)
    assert max(rows) < TRAIN_ROWS
    assert len(set(rows)) > TRAIN_ROWS // 2  # 32 uniform draws of 16 rows reach 14 on average


def test_imagine_round_metrics_ignore_invalid_steps():
    buffer, metrics = fused.imagine_round(
        rollout.empty_buffer(CAPACITY, S, A), KEY, MODELS, REPLAY, **IMAGINE
    )
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
    actual = reference.jit(
        lambda buffer, key: fused.prefill(buffer, key, MODELS, REPLAY, num_rounds=rounds, **IMAGINE)
    )(rollout.empty_buffer(CAPACITY, S, A), KEY)
    buffer = rollout.empty_buffer(CAPACITY, S, A)
    for index in range(rounds):
        buffer, _ = fused.imagine_round(
            buffer, jax.random.fold_in(KEY, index), MODELS, REPLAY, **IMAGINE
        )
    assert int(actual.written) == rounds * VALID
    rewards = np.array(actual.transitions.reward)
    assert np.all(rewards[: rounds * VALID] >= SYNTHETIC)
    assert np.all(rewards[rounds * VALID :] == 0)
    chex.assert_trees_all_close(actual, buffer, rtol=1e-6, atol=1e-6)


# --- minibatches --------------------------------------------------------------------------


@pytest.mark.parametrize("real_fraction, num_real", [(0.0, 0), (0.25, 2), (0.3, 2), (1.0, BATCH)])
def test_number_of_real_rows(real_fraction, num_real):
    """Exactly that many in every minibatch, the rest synthetic and written."""
    buffer, _ = fused.imagine_round(
        rollout.empty_buffer(CAPACITY, S, A), KEY, MODELS, REPLAY, **IMAGINE
    )
    batches = fused.draw_batches(
        KEY, buffer, REPLAY, num_batches=40, batch_size=BATCH, real_fraction=real_fraction
    )
    chex.assert_shape(batches.observation, (40, BATCH, S))
    real = np.array(batches.reward) < 1.0
    np.testing.assert_array_equal(real.sum(1), np.full(40, num_real))
    assert np.all(np.array(batches.reward)[~real] >= SYNTHETIC)
    rows = np.rint(np.array(batches.reward)[real] * ROWS).astype(int)
    for name in Transition._fields:  # whole rows of the dataset, fields not mixed up
        np.testing.assert_array_equal(
            np.array(getattr(batches, name))[real],
            np.array(getattr(REPLAY.transitions, name))[rows],
        )
    if num_real:  # held-out episodes too: only the models must not see them
        assert rows.max() >= TRAIN_ROWS


def test_real_data_only_needs_no_models():
    run = fused.Run(make_run(0).agent, None)
    program = reference.jit(
        functools.partial(
            fused.train_rounds,
            agent=AGENT,
            imagine=None,
            num_rounds=2,
            updates_per_round=UPDATES,
            num_windows=0,
            batch_size=BATCH,
            real_fraction=1.0,
        )
    )
    after, metrics = program(run, KEY, jnp.int32(0), None, REPLAY)
    assert after.buffer is None
    assert int(after.agent["count"]) == 2 * UPDATES // DELAY
    assert set(metrics) == {"moved"}
