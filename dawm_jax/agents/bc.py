"""Behaviour cloning, BC: a deterministic policy by regression on the data's actions.

On the best episodes only (`config.top_fraction`) it is the %BC of the offline literature
(Chen et al. 2021, 2106.01345, section 5).
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax
from flax import struct

from dawm_jax.agents.base import AGENTS, AgentSpec, AgentTask
from dawm_jax.models import optim
from dawm_jax.models.networks import TanhMlp
from dawm_jax.runtime.settings import setting
from dawm_jax.types import Metrics, Params, Rows, Transition


@dataclasses.dataclass(frozen=True)
class Settings:
    """The hyper-parameters of behaviour cloning: those of TD3+BC's policy."""

    hidden: tuple[int, ...] = setting(
        (256, 256),
        "units of the hidden layers",
        smoke=(16, 16),
        source="TD3+BC",
        at_least=1,
    )
    learning_rate: float = setting(3e-4, "Adam's rate", source="TD3+BC", above=0.0)


@struct.dataclass
class State:
    """Everything that an update moves."""

    actor: Params
    actor_opt: optax.OptState


# Compared by identity (eq=False): jit hashes an agent's methods, and arrays have no hash.
@dataclasses.dataclass(frozen=True, eq=False)
class Bc:
    """Behaviour cloning.

    Attributes:
      task: sizes.
      network: the policy.
      optimizer: optimiser of the policy.
    """

    task: AgentTask
    network: TanhMlp
    optimizer: optax.GradientTransformation
    batches_per_update: int = 1
    reward_scale: float = 1.0

    def init(self, key: jax.Array) -> State:
        """A fresh policy. `key` is consumed."""
        actor = self.network.init(key, jnp.zeros((1, self.task.state_size), jnp.float32))
        return State(actor, self.optimizer.init(actor))

    def loss(self, actor: Params, batch: Rows) -> tuple[jax.Array, Metrics]:
        """mean (pi(s) - a)^2 over batch and dimensions, and metrics."""
        value = jnp.square(self.network.apply(actor, batch.observation) - batch.action).mean()
        return value, {"cloning_mse": value}

    def update(self, state: State, batches: Rows, key: jax.Array) -> tuple[State, Metrics]:
        """One gradient step.

        Args:
          state: state of the agent.
          batches: [1, B, ...] rows, of which observation and action are used.
          key: unused; the update draws nothing.

        Returns:
          The next state, and metrics.
        """
        del key
        batch = jax.tree.map(lambda leaf: leaf[0], batches)
        actor, actor_opt, metrics = optim.gradient_step(
            lambda actor: self.loss(actor, batch), state.actor, state.actor_opt, self.optimizer
        )
        return State(actor, actor_opt), metrics

    def act(self, state: State, observation: jax.Array) -> jax.Array:
        """The policy: standardised [..., S] -> [..., A] in [-1, 1]."""
        return self.network.apply(state.actor, observation)


def make(settings: Settings, task: AgentTask) -> Bc:
    """Behaviour cloning for a task."""
    return Bc(
        task=task,
        network=TanhMlp(settings.hidden, task.action_size),
        optimizer=optim.adam(
            settings.learning_rate, schedule="constant", total_steps=task.total_updates
        ),
    )


AGENTS.register(
    AgentSpec(
        name="bc",
        label="BC",
        settings=Settings,
        make=make,
        learns_from=(Transition,),
        batches_per_update=lambda settings: 1,
        curve="cloning_mse",
        policy=("actor", "actor_opt"),
    )
)
