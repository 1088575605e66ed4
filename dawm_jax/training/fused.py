"""The fused program: synthetic rollout and agent updates in one scan.

A round generates windows from real starts with the frozen world model, completes their
actions, writes the transitions into the ring buffer, and updates the agent on minibatches
drawn from it. `lax.scan` runs many rounds a call; nothing in a round touches the host.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from dawm_jax.agents import Agent
from dawm_jax.data import windows
from dawm_jax.data.windows import Replay
from dawm_jax.methods import synthetic as rollout
from dawm_jax.methods.synthetic import Buffer, Rows
from dawm_jax.models.optim import Metrics, Params, scan_steps
from dawm_jax.types import Condition


@struct.dataclass
class Run:
    """One agent in training, with the synthetic data it learns from (None: real only)."""

    agent: Any
    buffer: Buffer | None


@struct.dataclass
class Models:
    """Parameters of the trained models; which ones there are depends on the method."""

    world_model: Params
    inverse_dynamics: Params = None
    policy: Params = None


# (models, key, condition [B]) -> transitions [B * H], valid [B * H]; or expansions [B], [B, H]
ImagineFn = Callable[[Models, jax.Array, Condition], tuple[Rows, jax.Array]]


def imagine_from_data(
    key: jax.Array,
    models: Models,
    replay: Replay,
    *,
    imagine: ImagineFn,
    num_windows: int,
    shard: Callable[[Any], Any] = lambda tree: tree,
) -> tuple[Rows, jax.Array]:
    """Generates windows from training steps drawn uniformly with replacement.

    Args:
      key: random number generator state, the key is consumed.
      models: the frozen models.
      replay: the dataset whose steps the windows start from.
      imagine: generates and completes windows.
      num_windows: B.
      shard: spreads a batch over devices.

    Returns:
      See `ImagineFn`.
    """
    key_starts, key_imagine = jax.random.split(key)
    starts = jax.random.randint(key_starts, (num_windows,), 0, replay.num_train)
    return imagine(models, key_imagine, shard(windows.gather_conditions(replay, starts)))


def imagine_round(
    buffer: Buffer,
    key: jax.Array,
    models: Models,
    replay: Replay,
    *,
    imagine: ImagineFn,
    num_windows: int,
    shard: Callable[[Any], Any] = lambda tree: tree,
) -> tuple[Buffer, Metrics]:
    """Generates one round's transitions from random training steps into the buffer.

    Args:
      buffer: the ring to write to.
      key: random number generator state, the key is consumed.
      models: the frozen models.
      replay: the dataset whose steps the windows start from.
      imagine: generates and completes windows.
      num_windows: windows a round.
      shard: spreads a batch over devices.

    Returns:
      The buffer, and metrics of what was generated.
    """
    transitions, valid = imagine_from_data(
        key, models, replay, imagine=imagine, num_windows=num_windows, shard=shard
    )
    count = jnp.maximum(valid.sum(), 1)
    mean = lambda x: jnp.where(valid, x, 0.0).sum() / count
    metrics = {
        "synthetic_reward": mean(transitions.reward),
        "synthetic_termination_rate": mean(transitions.terminated),
    }
    return rollout.add(buffer, transitions, valid), metrics


def draw_batches(
    key: jax.Array,
    buffer: Buffer | None,
    replay: Replay,
    *,
    num_batches: int,
    batch_size: int,
    real_fraction: float,
) -> Rows:
    """Minibatches of real and synthetic rows, [num_batches, batch_size, ...].

    The number of real rows is `real_fraction` of a batch, rounded; real rows come from
    the whole dataset.
    """
    num_real = round(real_fraction * batch_size)
    key_real, key_synthetic = jax.random.split(key)
    parts: list[Rows] = []
    if num_real:
        rows = jax.random.randint(key_real, (num_batches, num_real), 0, len(replay))
        parts.append(windows.gather_transitions(replay, rows))
    if num_real < batch_size:
        if buffer is None:
            raise ValueError("synthetic rows need a buffer")
        shape = (num_batches, batch_size - num_real)
        parts.append(rollout.draw_rows(key_synthetic, buffer, shape))
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis=1), *parts)


def train_rounds(
    run: Run,
    key: jax.Array,
    first_round: jax.Array,
    models: Models | None,
    replay: Replay,
    *,
    agent: Agent,
    imagine: ImagineFn | None,
    num_rounds: int,
    updates_per_round: int,
    num_windows: int,
    batch_size: int,
    real_fraction: float,
    shard: Callable[[Any], Any] = lambda tree: tree,
) -> tuple[Run, Metrics]:
    """Runs consecutive rounds: imagine, then update, in one scan.

    Args:
      run: the agent and its buffer.
      key: the run's key; round r draws from fold_in(key, r).
      first_round: index of the first round.
      models: the frozen models, None when training on real data only.
      replay: the dataset.
      agent: the algorithm.
      imagine: generates and completes windows, None when training on real data only.
      num_rounds: rounds of this call.
      updates_per_round: gradient updates of the critics a round.
      num_windows: windows generated a round.
      batch_size: transitions of a minibatch.
      real_fraction: share of real transitions in a minibatch.
      shard: spreads a batch over devices.

    Returns:
      The run, and each metric's mean over the rounds.
    """
    cycles = updates_per_round // agent.batches_per_update

    def one_round(run, index):
        key_imagine, key_update = jax.random.split(jax.random.fold_in(key, index))
        buffer, metrics = run.buffer, {}
        if imagine is not None:
            buffer, metrics = imagine_round(
                buffer,
                key_imagine,
                models,
                replay,
                imagine=imagine,
                num_windows=num_windows,
                shard=shard,
            )

        def cycle(state, cycle_index):
            key_batch, key_agent = jax.random.split(jax.random.fold_in(key_update, cycle_index))
            batches = draw_batches(
                key_batch,
                buffer,
                replay,
                num_batches=agent.batches_per_update,
                batch_size=batch_size,
                real_fraction=real_fraction,
            )
            return agent.update(state, batches, key_agent)

        state, agent_metrics = scan_steps(cycle, run.agent, jnp.int32(0), cycles)
        return Run(state, buffer), {**metrics, **agent_metrics}

    return scan_steps(one_round, run, first_round, num_rounds)


def prefill(
    buffer: Buffer,
    key: jax.Array,
    models: Models,
    replay: Replay,
    *,
    imagine: ImagineFn,
    num_rounds: int,
    num_windows: int,
    shard: Callable[[Any], Any] = lambda tree: tree,
) -> Buffer:
    """Fills the buffer before the first update, so that early minibatches are diverse."""

    def one_round(buffer, index):
        return imagine_round(
            buffer,
            jax.random.fold_in(key, index),
            models,
            replay,
            imagine=imagine,
            num_windows=num_windows,
            shard=shard,
        )

    return scan_steps(one_round, buffer, jnp.int32(0), num_rounds)[0]
