"""What one seed computes while it is fine-tuned: pure programs over the dataset and lived steps."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from dawm_jax.agents.base import Agent, Explores, Loosens
from dawm_jax.config.online import Online
from dawm_jax.data import lived as living
from dawm_jax.data.lived import LivedStep
from dawm_jax.data.replay import Replay
from dawm_jax.data.ring_buffer import Buffer
from dawm_jax.models.base import Trainable, keep
from dawm_jax.models.optim import TrainState, scan_steps
from dawm_jax.training import mixing
from dawm_jax.training.fused import AgentRun, AgentTraining, Inputs
from dawm_jax.training.mixing import Counts, Most
from dawm_jax.types import Metrics, ModelParams, Normalizer, Rows


@struct.dataclass
class Learner:
    """What lies on the devices; every leaf has a leading axis of seeds outside `FineTuning`.

    Attributes:
      agent: state of the agent.
      models: training states of the method's models, by name; empty on real data only.
      generated: the ring of generated rows; None if there is none.
      lived: the ring of online steps.
    """

    agent: Any
    models: dict[str, TrainState]
    generated: Buffer[Any] | None
    lived: Buffer[LivedStep]


@dataclasses.dataclass(frozen=True, eq=False)
class FineTuning:
    """The programs of one seed; all methods are pure.

    Attributes:
      settings: section of the fine-tuning.
      training: the agent, the method and the draws of their rows.
      models: the method's models, whose settings are those of refits; empty on real data only.
      policy: fields of the agent's state that stay as they are in the warm-up.
      normalizer: constants fitted on the training data.
      discount: gamma.
      timeout_value: see `replay.returns_to_go`.
      rounds: rounds of generation after a refit.
      limits: the most rows of each kind in a minibatch.
    """

    settings: Online
    training: AgentTraining
    models: Mapping[str, Trainable]
    policy: tuple[str, ...]
    normalizer: Normalizer
    discount: float
    timeout_value: str
    rounds: int
    limits: Most

    def act(self, agent: Any, observation: jax.Array, key: jax.Array, step: jax.Array) -> jax.Array:
        """Actions to try: those of the policy with noise, or drawn by an agent that `Explores`.

        Args:
          agent: state of the agent.
          observation: [n, S] standardised.
          key: of the stage; step i draws from fold_in(key, i).
          step: [] int32.

        Returns:
          [n, A] in [-1, 1].
        """
        algorithm, key = self.training.agent, jax.random.fold_in(key, step)
        if isinstance(algorithm, Explores):
            action = algorithm.explore(agent, observation, key)
        else:
            action = algorithm.act(agent, observation)
            action = action + self.settings.noise * jax.random.normal(key, action.shape)
        return jnp.clip(action, -1.0, 1.0)

    def update(
        self, learner: Learner, key: jax.Array, step: jax.Array, replay: Replay
    ) -> tuple[Learner, Metrics]:
        """The updates of one turn, with the policy as it is in the warm-up.

        Args:
          learner: its ring of online steps is not empty.
          key: of the stage; step i draws from fold_in(key, i).
          step: [] int32, environment steps before this turn.
          replay: the dataset.

        Returns:
          The learner, and each metric's mean over the updates.
        """
        settings = self.settings
        key, numbers, agent = jax.random.fold_in(key, step), self.counts(step), self.agent(step)
        inputs = Inputs(self.averages(learner), replay)

        def update(state: Any, index: jax.Array) -> tuple[Any, Metrics]:
            key_batch, key_agent = jax.random.split(jax.random.fold_in(key, index))
            run = AgentRun(state, learner.generated)
            batches = self.draw_batches(key_batch, run, learner.lived, inputs, numbers)
            after, metrics = agent.update(state, batches, key_agent)
            return keep_policy(state, after, self.policy, step < settings.warm_up), metrics

        calls = settings.envs * settings.updates_per_step // agent.batches_per_update
        state, metrics = scan_steps(update, learner.agent, jnp.int32(0), calls)
        share = numbers.online.astype(jnp.float32) / self.training.batch_size
        metrics = {**metrics, "online_share": share, "pull": self.pull(step)}
        return dataclasses.replace(learner, agent=state), metrics

    def refit(self, learner: Learner, key: jax.Array, step: jax.Array, replay: Replay) -> Learner:
        """Fits the models to the dataset and the ended online episodes, and generates anew.

        Args: see `update`.
        """
        mixed = living.mixed_replay(
            replay,
            learner.lived,
            online_fraction=self.settings.refit_online_fraction,
            discount=self.discount,
            timeout_value=self.timeout_value,
            return_scale=self.normalizer.return_scale,
        )
        key_generate, key_models = jax.random.split(jax.random.fold_in(key, step))
        fitted = {}
        for index, (name, model) in enumerate(sorted(self.models.items())):
            key_model = jax.random.fold_in(key_models, index)
            fitted[name] = self._fit(model, learner.models[name], key_model, mixed)
        learner = dataclasses.replace(learner, models=fitted)
        if learner.generated is None:
            return learner
        generated = self.training.prefill(
            learner.generated,
            key_generate,
            Inputs(self.averages(learner), mixed),
            num_rounds=self.rounds,
        )
        return dataclasses.replace(learner, generated=generated)

    def _fit(
        self, model: Trainable, state: TrainState, key: jax.Array, mixed: Replay
    ) -> TrainState:
        def one_step(state: TrainState, index: jax.Array) -> tuple[TrainState, Metrics]:
            key_step = jax.random.fold_in(key, index)
            return model.step(state, key_step, mixed, shard=keep, mean=keep)

        return scan_steps(one_step, state, jnp.int32(0), self.settings.refit_steps)[0]

    def draw_batches(
        self,
        key: jax.Array,
        run: AgentRun,
        lived: Buffer[LivedStep],
        inputs: Inputs,
        numbers: Counts,
    ) -> Rows:
        """The minibatches of one update, [batches_per_update, batch_size, ...].

        Each has `numbers` of offline, generated and online rows, in this order.
        """
        training, limits = self.training, self.limits
        num_batches = training.agent.batches_per_update
        key_offline, key_generated, key_online = jax.random.split(key, 3)
        parts: list[Rows] = []
        if limits.offline:
            shape = (num_batches, limits.offline)
            rows = jax.random.randint(key_offline, shape, 0, len(inputs.replay))
            parts.append(training.gather(inputs.replay, rows))
        if limits.generated:
            shape = (num_batches, limits.generated)
            parts.append(training.draw_synthetic(key_generated, run, inputs, shape))
        if limits.online:
            shape = (num_batches, limits.online)
            drawn = living.draw(key_online, lived, shape, next_action=training.next_action)
            parts.append(training.as_rows(drawn))
        chosen = mixing.select(numbers, limits, size=training.batch_size)
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis=1)[:, chosen], *parts)

    @property
    def refits(self) -> bool:
        """Whether models are refitted before the last environment step."""
        return bool(self.models) and 0 < self.settings.refit_every < self.settings.steps

    def counts(self, step: jax.Array) -> Counts:
        """Rows of each kind in a minibatch at an environment step."""
        settings = self.settings
        return mixing.counts(
            mixing.progress(step, first=0, last=settings.steps),
            offline=settings.offline_fraction,
            generated=settings.generated_fraction,
            decay=settings.share_decay,
            size=self.training.batch_size,
        )

    def pull(self, step: jax.Array) -> jax.Array:
        """Factor of the agent's pull towards the data's actions at an environment step, []."""
        done = mixing.progress(step, first=self.settings.warm_up, last=self.settings.steps)
        return mixing.pull(done, decay=self.settings.cloning_decay)

    def agent(self, step: jax.Array) -> Agent[Any]:
        """The algorithm with the pull of an environment step."""
        algorithm = self.training.agent
        if self.settings.cloning_decay == 1.0 or not isinstance(algorithm, Loosens):
            return algorithm
        return algorithm.loosened(self.pull(step))

    def averages(self, learner: Learner) -> ModelParams | None:
        """Averaged parameters of the models; None on real data only."""
        if not self.models:
            return None
        return {name: state.average for name, state in learner.models.items()}


def keep_policy(before: Any, after: Any, fields: tuple[str, ...], frozen: jax.Array) -> Any:
    """`after`, with the fields of `before` where `frozen` is true.

    Args:
      before: state of an agent, a dataclass.
      after: state of the same structure.
      fields: names of fields; () keeps none.
      frozen: [] bool.
    """
    kept = {
        name: jax.tree.map(
            lambda old, new: jnp.where(frozen, old, new),
            getattr(before, name),
            getattr(after, name),
        )
        for name in fields
    }
    return dataclasses.replace(after, **kept) if kept else after
