"""The fused program: synthetic rollout and agent updates in one scan.

A round generates windows from real starts with the frozen models, writes their rows into the
ring buffer, and updates the agent on minibatches drawn from the buffer and the replay. Or it has
no buffer, and generates the synthetic rows of each minibatch for this minibatch alone.
`lax.scan` runs many rounds a call; no operation of a round involves the host.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from dawm_jax.agents.base import Agent
from dawm_jax.data import replay as replaying
from dawm_jax.data import ring_buffer
from dawm_jax.data.replay import Replay
from dawm_jax.data.ring_buffer import Buffer
from dawm_jax.methods import synthetic
from dawm_jax.methods.base import Generated, GeneratingMethod, PolicyMethod, Supply
from dawm_jax.models.base import ShardFn, keep
from dawm_jax.models.optim import scan_steps
from dawm_jax.types import (
    Condition,
    Expansion,
    Metrics,
    ModelParams,
    PolicyFn,
    Returns,
    Rows,
    Transition,
)

# A piece of a sweep has as many whole rounds' windows as fit into this number, and at least one
# round's. Between pieces there are no updates, so that a piece may have more windows than a round.
_SWEEP_WINDOWS = 1_024


@struct.dataclass
class AgentRun:
    """One agent in training, with the buffer of its synthetic rows (None: it has no buffer)."""

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
      supply: where synthetic rows come from; a `PolicyMethod` has "minibatch".
      next_action: whether real transitions carry the action of the next step.
      returns: steps and discount of the returns of real transitions; None: one step, and no row
        has a discount of its own. Those of synthetic rows are the method's.
      shard: spreads generated windows over devices.
    """

    agent: Agent[Any]
    method: GeneratingMethod | PolicyMethod | None
    row: Rows | None
    updates_per_round: int
    windows_per_round: int
    batch_size: int
    real_fraction: float
    buffer_capacity: int
    supply: Supply = "rounds"
    next_action: bool = False
    returns: Returns | None = None
    shard: ShardFn = keep

    def init(self, key: jax.Array) -> AgentRun:
        """A fresh agent with an empty buffer; `key` is consumed."""
        return AgentRun(self.agent.init(key), self.init_buffer())

    def init_buffer(self) -> Buffer[Any] | None:
        """An empty buffer of what the method generates, or None if no buffer is used."""
        if self.row is None or self.supply == "minibatch":
            return None
        return ring_buffer.empty(self.buffer_capacity, self.row)

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
            batches = self.draw_batches(key_batch, AgentRun(state, buffer), inputs)
            return self.agent.update(state, batches, key_agent)

        calls = self.updates_per_round // self.agent.batches_per_update
        state, agent_metrics = scan_steps(update, run.agent, jnp.int32(0), calls)
        return AgentRun(state, buffer), {**generation_metrics, **agent_metrics}

    def generator(self, act: PolicyFn | None = None) -> GeneratingMethod:
        """The method, which generates with the policy `act` if it follows one."""
        assert self.method is not None
        if isinstance(self.method, PolicyMethod):
            assert act is not None  # `supply` is "minibatch": there is an agent
            return synthetic.WithPolicy(self.method, act)
        return self.method

    def generate(
        self, buffer: Buffer[Any], key: jax.Array, inputs: Inputs
    ) -> tuple[Buffer[Any], Metrics]:
        """Writes the rows of one round into the buffer; `key` is consumed.

        Returns:
          The buffer, and the mean reward and the termination rate of the valid rows.
        """
        assert inputs.models is not None
        rows, valid = generate_from_replay(
            self.generator(),
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

    @property
    def sweep_windows(self) -> int:
        """Windows of one piece of a sweep: a multiple of a round's, so that devices share both."""
        return self.windows_per_round * max(1, _SWEEP_WINDOWS // self.windows_per_round)

    def sweep_pieces(self, replay: Replay) -> int:
        """Pieces of a sweep over all training steps."""
        return -(-replay.num_train // self.sweep_windows)

    def sweep(
        self,
        buffer: Buffer[Any],
        key: jax.Array,
        inputs: Inputs,
        first_piece: int | jax.Array = 0,
        /,
        *,
        num_pieces: int,
    ) -> Buffer[Any]:
        """The buffer after consecutive pieces of a sweep, which expands every training step once.

        Piece p expands the steps from p * `sweep_windows` on and draws from fold_in(key, p).
        Of what lies beyond the last training step nothing is written. After all pieces, row i of
        a buffer that was empty is the expansion of training step i.

        Raises:
          ValueError: the buffer has no room for all training steps.
        """
        replay, models, method = inputs.replay, inputs.models, self.generator()
        assert models is not None
        if buffer.capacity < replay.num_train:
            raise ValueError(
                f"a sweep needs a buffer of {replay.num_train} rows, got {buffer.capacity}"
            )

        def one_piece(buffer: Buffer[Any], index: jax.Array) -> tuple[Buffer[Any], Metrics]:
            starts = index * self.sweep_windows + jnp.arange(self.sweep_windows, dtype=jnp.int32)
            exists = starts < replay.num_train
            starts = jnp.minimum(starts, replay.num_train - 1)
            condition = self.shard(replaying.gather_conditions(replay, starts))
            rows, valid = method.generate(models, jax.random.fold_in(key, index), condition)
            return ring_buffer.add(buffer, rows, valid & exists[:, None]), {}

        return scan_steps(one_piece, buffer, first_piece, num_pieces)[0]

    @property
    def num_real(self) -> int:
        """Real rows of a minibatch."""
        return round(self.real_fraction * self.batch_size)

    def draw_batches(self, key: jax.Array, run: AgentRun, inputs: Inputs) -> Rows:
        """The minibatches of one update, [batches_per_update, batch_size, ...].

        Real rows come from the whole dataset, held-out episodes too. They are expansions of one
        step where the synthetic rows are expansions.
        """
        num_batches = self.agent.batches_per_update
        num_real = self.num_real
        key_real, key_synthetic = jax.random.split(key)
        parts: list[Rows] = []
        if num_real:
            shape = (num_batches, num_real)
            rows = jax.random.randint(key_real, shape, 0, len(inputs.replay))
            parts.append(self.gather(inputs.replay, rows))
        if num_real < self.batch_size:
            shape = (num_batches, self.batch_size - num_real)
            parts.append(self.draw_synthetic(key_synthetic, run, inputs, shape))
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis=1), *parts)

    def expand_afresh(self, key: jax.Array, agent: Any, inputs: Inputs, *, num: int) -> Rows:
        """Expansions [num] of random training steps, with the agent's policy if they need one.

        Args:
          key: random number generator state, the key is consumed.
          agent: state of the agent.
          inputs: the models and the dataset.
          num: number of rows.
        """
        assert inputs.models is not None
        method = self.generator(functools.partial(self.agent.act, agent))
        return generate_from_replay(method, inputs.models, key, inputs.replay, num_windows=num).rows

    def gather(self, replay: Replay, rows: jax.Array) -> Rows:
        """Real rows of the type of the synthetic ones, at indices of any shape."""
        if self.returns is not None:
            return replaying.gather_returns(
                replay, rows, self.returns, next_action=self.next_action
            )
        real = replaying.gather_transitions(replay, rows, next_action=self.next_action)
        return self.as_rows(real)

    def as_rows(self, real: Transition) -> Rows:
        """Real transitions as the type of row that the agent learns from."""
        if isinstance(self.row, Expansion):
            return synthetic.real_expansions(real, horizon=self.row.reward.shape[0])
        return real

    def draw_synthetic(
        self, key: jax.Array, run: AgentRun, inputs: Inputs, shape: tuple[int, int]
    ) -> Rows:
        """Synthetic rows [*shape, ...], from the buffer or generated for this call."""
        if self.supply == "minibatch":
            rows = self.expand_afresh(key, run.agent, inputs, num=math.prod(shape))
            return jax.tree.map(lambda leaf: leaf.reshape(*shape, *leaf.shape[1:]), rows)
        assert run.buffer is not None  # without a method all rows are real
        return ring_buffer.draw_rows(key, run.buffer, shape)


def generate_from_replay(
    method: GeneratingMethod,
    models: ModelParams,
    key: jax.Array,
    replay: Replay,
    *,
    num_windows: int,
    shard: ShardFn = keep,
) -> Generated:
    """Generates from training steps drawn with replacement, see `Replay.draw_starts`.

    Args:
      method: what generates.
      models: averaged parameters of its models.
      key: random number generator state, the key is consumed.
      replay: the dataset whose training steps the windows start from.
      num_windows: B.
      shard: spreads the starts over devices.
    """
    key_starts, key_generate = jax.random.split(key)
    starts = replay.draw_starts(key_starts, num_windows)
    condition = shard(replaying.gather_conditions(replay, starts))
    return method.generate(models, key_generate, condition)


def row_shapes(
    method: GeneratingMethod | PolicyMethod, *, state_size: int, action_size: int
) -> Rows:
    """Shapes of one row that the method generates, without a leading axis."""
    generator: GeneratingMethod
    if isinstance(method, PolicyMethod):
        zeros = lambda state: jnp.zeros((*state.shape[:-1], action_size))
        generator = synthetic.WithPolicy(method, zeros)
    else:
        generator = method

    def generate_one() -> Rows:
        key = jax.random.key(0)
        models = {name: model.init(key).average for name, model in method.models.items()}
        condition = Condition(jnp.zeros((1, state_size)), jnp.zeros((1, action_size)), jnp.zeros(1))
        return generator.generate(models, key, condition).rows

    rows = jax.eval_shape(generate_one)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), rows)
