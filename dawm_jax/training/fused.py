"""The fused program: synthetic rollout and agent updates in one scan.

A round generates windows from real starts with the frozen models, writes their rows into the
ring buffer, and updates the agent on minibatches drawn from the buffer and the replay.
`lax.scan` runs many rounds a call; no operation of a round involves the host.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from dawm_jax.agents.base import Agent
from dawm_jax.data import replay as replaying
from dawm_jax.data import ring_buffer
from dawm_jax.data.replay import Replay
from dawm_jax.data.ring_buffer import Buffer
from dawm_jax.methods.base import Generated, GeneratingMethod
from dawm_jax.models.base import ShardFn, keep
from dawm_jax.models.optim import scan_steps
from dawm_jax.types import Condition, Metrics, ModelParams, Rows


@struct.dataclass
class AgentRun:
    """One agent in training, with the synthetic rows it learns from (None: real rows only)."""

    agent: Any
    buffer: Buffer[Any] | None


@struct.dataclass
class Inputs:
    """What stays the same while agents are trained.

    Attributes:
      models: averaged parameters of the method's models; None on real data only.
      replay: the dataset.
    """

    models: ModelParams | None
    replay: Replay


@dataclasses.dataclass(frozen=True, eq=False)
class AgentTraining:
    """The fused program of one agent; all methods are pure.

    Attributes:
      agent: the algorithm.
      method: generates the synthetic rows; None on real data only.
      row: shapes of one such row, see `row_shapes`; None on real data only.
      updates_per_round: gradient updates of the critics in a round.
      windows_per_round: windows generated in a round.
      batch_size: rows of a minibatch.
      real_fraction: share of real rows in a minibatch, rounded to whole rows.
      buffer_capacity: rows of the ring buffer.
      next_action: whether real transitions carry the action of the next step.
      shard: spreads generated windows over devices.
    """

    agent: Agent[Any]
    method: GeneratingMethod | None
    row: Rows | None
    updates_per_round: int
    windows_per_round: int
    batch_size: int
    real_fraction: float
    buffer_capacity: int
    next_action: bool = False
    shard: ShardFn = keep

    def init(self, key: jax.Array) -> AgentRun:
        """A fresh agent with an empty buffer; `key` is consumed."""
        return AgentRun(self.agent.init(key), self.init_buffer())

    def init_buffer(self) -> Buffer[Any] | None:
        """An empty buffer of what the method generates, or None on real data only."""
        return None if self.row is None else ring_buffer.empty(self.buffer_capacity, self.row)

    def step(
        self,
        run: AgentRun,
        key: jax.Array,
        first_update: jax.Array,
        inputs: Inputs,
        /,
        *,
        num_steps: int,
    ) -> tuple[AgentRun, Metrics]:
        """Consecutive rounds in one scan: generate, then update; a `loop.StepFn`.

        Args:
          run: the agent and its buffer.
          key: of the run; round r draws from fold_in(key, r).
          first_update: index of the first gradient update, a multiple of `updates_per_round`.
          inputs: the models and the dataset.
          num_steps: gradient updates, a multiple of `updates_per_round`.

        Returns:
          The run, and each metric's mean over the rounds.
        """

        def one_round(run: AgentRun, index: jax.Array) -> tuple[AgentRun, Metrics]:
            return self.round(run, jax.random.fold_in(key, index), inputs)

        first_round = first_update // self.updates_per_round
        return scan_steps(one_round, run, first_round, num_steps // self.updates_per_round)

    def round(self, run: AgentRun, key: jax.Array, inputs: Inputs) -> tuple[AgentRun, Metrics]:
        """Generates the windows of one round and makes its updates; `key` is consumed."""
        key_generate, key_update = jax.random.split(key)
        buffer = run.buffer
        generation_metrics: Metrics = {}
        if buffer is not None:
            buffer, generation_metrics = self.generate(buffer, key_generate, inputs)

        def update(state: Any, index: jax.Array) -> tuple[Any, Metrics]:
            key_batch, key_agent = jax.random.split(jax.random.fold_in(key_update, index))
            batches = self.draw_batches(key_batch, buffer, inputs.replay)
            return self.agent.update(state, batches, key_agent)

        calls = self.updates_per_round // self.agent.batches_per_update
        state, agent_metrics = scan_steps(update, run.agent, jnp.int32(0), calls)
        return AgentRun(state, buffer), {**generation_metrics, **agent_metrics}

    def generate(
        self, buffer: Buffer[Any], key: jax.Array, inputs: Inputs
    ) -> tuple[Buffer[Any], Metrics]:
        """Writes the rows of one round into the buffer; `key` is consumed.

        Returns:
          The buffer, and the mean reward and the termination rate of the valid rows.
        """
        assert self.method is not None and inputs.models is not None
        rows, valid = generate_from_replay(
            self.method,
            inputs.models,
            key,
            inputs.replay,
            num_windows=self.windows_per_round,
            shard=self.shard,
        )
        count = jnp.maximum(valid.sum(), 1)

        def mean(values: jax.Array) -> jax.Array:
            return jnp.where(valid, values, 0.0).sum() / count.astype(values.dtype)

        metrics = {
            "synthetic_reward": mean(rows.reward),
            "synthetic_termination_rate": mean(rows.terminated),
        }
        return ring_buffer.add(buffer, rows, valid), metrics

    def prefill(
        self,
        buffer: Buffer[Any],
        key: jax.Array,
        inputs: Inputs,
        first_round: int | jax.Array = 0,
        /,
        *,
        num_rounds: int,
    ) -> Buffer[Any]:
        """The buffer after `num_rounds` rounds of generation without updates.

        Round r draws from fold_in(key, r), so that several calls of consecutive rounds generate
        what one call does.
        """

        def one_round(buffer: Buffer[Any], index: jax.Array) -> tuple[Buffer[Any], Metrics]:
            return self.generate(buffer, jax.random.fold_in(key, index), inputs)

        return scan_steps(one_round, buffer, first_round, num_rounds)[0]

    def draw_batches(self, key: jax.Array, buffer: Buffer[Any] | None, replay: Replay) -> Rows:
        """The minibatches of one update, [batches_per_update, batch_size, ...].

        Real rows come from the whole dataset, held-out episodes too.
        """
        num_batches = self.agent.batches_per_update
        num_real = round(self.real_fraction * self.batch_size)
        key_real, key_synthetic = jax.random.split(key)
        parts: list[Rows] = []
        if num_real:
            rows = jax.random.randint(key_real, (num_batches, num_real), 0, len(replay))
            parts.append(replaying.gather_transitions(replay, rows, next_action=self.next_action))
        if num_real < self.batch_size:
            if buffer is None:
                raise ValueError("synthetic rows need a buffer: expected a method, got None")
            shape = (num_batches, self.batch_size - num_real)
            parts.append(ring_buffer.draw_rows(key_synthetic, buffer, shape))
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis=1), *parts)


def generate_from_replay(
    method: GeneratingMethod,
    models: ModelParams,
    key: jax.Array,
    replay: Replay,
    *,
    num_windows: int,
    shard: ShardFn = keep,
) -> Generated:
    """Generates from training steps drawn uniformly with replacement.

    Args:
      method: what generates.
      models: averaged parameters of its models.
      key: random number generator state, the key is consumed.
      replay: the dataset whose training steps the windows start from.
      num_windows: B.
      shard: spreads the starts over devices.
    """
    key_starts, key_generate = jax.random.split(key)
    starts = jax.random.randint(key_starts, (num_windows,), 0, replay.num_train)
    condition = shard(replaying.gather_conditions(replay, starts))
    return method.generate(models, key_generate, condition)


def row_shapes(method: GeneratingMethod, *, state_size: int, action_size: int) -> Rows:
    """Shapes of one row that the method generates, without a leading axis."""

    def generate_one() -> Rows:
        key = jax.random.key(0)
        models = {name: model.init(key).average for name, model in method.models.items()}
        condition = Condition(jnp.zeros((1, state_size)), jnp.zeros((1, action_size)), jnp.zeros(1))
        return method.generate(models, key, condition).rows

    rows = jax.eval_shape(generate_one)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), rows)
