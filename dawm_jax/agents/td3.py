"""TD3's delayed update (Fujimoto et al. 2018, 1802.09477), which TD3+BC and ReBRAC share.

An agent of this family defines the target of its critics and the loss of its policy. The
state, the smoothing of the target policy and the order of the gradient steps are the same.
"""

import abc
import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct

from dawm_jax.agents import td
from dawm_jax.agents.base import AgentTask
from dawm_jax.models import optim
from dawm_jax.models.networks import Critics, TanhMlp
from dawm_jax.runtime.settings import setting
from dawm_jax.types import Metrics, Params, Rows


@dataclasses.dataclass(frozen=True)
class Settings:
    """The hyper-parameters of TD3, with the values of the TD3+BC paper."""

    hidden: tuple[int, ...] = setting(
        (256, 256),
        "units of the hidden layers, policy and critics",
        smoke=(16, 16),
        source="TD3+BC",
        at_least=1,
    )
    learning_rate: float = setting(3e-4, "Adam's rate", source="TD3+BC", above=0.0)
    # The targets move once per policy update: 10,000 times in 20,000 updates (quick). 10,000 x
    # .005 are 50 time constants of the target: a value of the horizon 1 / (1 - discount) = 100
    # reaches at most 1 - e^-0.5 = 39 % of its size. At .02 it is 1 - e^-2 = 86 %.
    tau: float = setting(
        0.005,
        "share of the new parameters in the target networks, once per policy update",
        quick=0.02,
        source="TD3+BC",
        above=0.0,
        at_most=1.0,
    )
    policy_noise: float = setting(
        0.2,
        "standard deviation of the target action's noise, in units of half an action range",
        source="TD3+BC",
        at_least=0.0,
    )
    noise_clip: float = setting(
        0.5,
        "largest size of the target action's noise, in units of half an action range",
        source="TD3+BC",
        at_least=0.0,
    )
    policy_delay: int = setting(2, "critic updates per policy update", source="TD3+BC", at_least=1)


def batches_per_update(settings: Settings) -> int:
    """Minibatches of one call of `update`: the policy delay."""
    return settings.policy_delay


# Fields of `State` that belong to the policy.
POLICY = ("actor", "target_actor", "actor_opt")


class Networks(NamedTuple):
    """The policy and both critics."""

    actor: TanhMlp
    critics: Critics


@struct.dataclass
class State:
    """Everything that an update moves."""

    actor: Params
    critics: Params
    target_actor: Params
    target_critics: Params
    actor_opt: optax.OptState
    critic_opt: optax.OptState


# Compared by identity (eq=False): jit hashes an agent's methods, and arrays have no hash.
@dataclasses.dataclass(frozen=True, eq=False)
class Td3(abc.ABC):
    """An agent with TD3's update.

    Attributes:
      settings: hyper-parameters.
      task: sizes and discount.
      networks: the policy and both critics.
      optimizer: optimiser of the policy and of the critics.
    """

    settings: Settings
    task: AgentTask
    networks: Networks
    optimizer: optax.GradientTransformation

    @abc.abstractmethod
    def critic_target(self, state: State, batch: Rows, noise: jax.Array) -> jax.Array:
        """The target of both critics.

        Args:
          state: state of the agent, of which the target networks are used.
          batch: rows [B].
          noise: [B, A] clipped noise of the target action.

        Returns:
          [B].
        """

    @abc.abstractmethod
    def actor_loss(self, actor: Params, critics: Params, batch: Rows) -> tuple[jax.Array, Metrics]:
        """The loss of the policy's parameters `actor` on rows [B], and metrics."""

    @property
    def batches_per_update(self) -> int:
        """The policy delay."""
        return self.settings.policy_delay

    @property
    def reward_scale(self) -> float:
        """1: the critics see the environment's rewards."""
        return 1.0

    def init(self, key: jax.Array) -> State:
        """A fresh agent; targets start as copies. `key` is consumed."""
        key_actor, key_critics = jax.random.split(key)
        observation = jnp.zeros((1, self.task.state_size), jnp.float32)
        action = jnp.zeros((1, self.task.action_size), jnp.float32)
        actor = self.networks.actor.init(key_actor, observation)
        critics = self.networks.critics.init(key_critics, observation, action)
        return State(
            actor=actor,
            critics=critics,
            target_actor=jax.tree.map(jnp.copy, actor),
            target_critics=jax.tree.map(jnp.copy, critics),
            actor_opt=self.optimizer.init(actor),
            critic_opt=self.optimizer.init(critics),
        )

    def update(self, state: State, batches: Rows, key: jax.Array) -> tuple[State, Metrics]:
        """One delayed-policy cycle: a critic step on every batch, then one actor step.

        The cycle is written out instead of branching on the step. So the program is free of
        conditionals, each of which costs a GPU one synchronisation with the host.

        Args:
          state: state of the agent.
          batches: [policy_delay, B, ...] rows; the policy learns from the last batch.
          key: random number generator state, the key is consumed.

        Returns:
          The next state, and metrics: those of the critics are of the last batch.
        """
        noise = self._clipped_noise(key, batches.action.shape)
        critics, critic_opt = state.critics, state.critic_opt
        for index in range(batches.reward.shape[0]):
            batch = jax.tree.map(lambda leaf, index=index: leaf[index], batches)
            target = self.critic_target(state, batch, noise[index])
            loss = functools.partial(
                td.critic_loss, batch=batch, target=target, network=self.networks.critics
            )
            critics, critic_opt, critic_metrics = optim.gradient_step(
                loss, critics, critic_opt, self.optimizer
            )
        actor, actor_opt, actor_metrics = optim.gradient_step(
            lambda actor: self.actor_loss(actor, critics, batch),
            state.actor,
            state.actor_opt,
            self.optimizer,
        )
        tau = self.settings.tau
        state = State(
            actor=actor,
            critics=critics,
            target_actor=optax.incremental_update(actor, state.target_actor, tau),
            target_critics=optax.incremental_update(critics, state.target_critics, tau),
            actor_opt=actor_opt,
            critic_opt=critic_opt,
        )
        return state, {**critic_metrics, **actor_metrics}

    def act(self, state: State, observation: jax.Array) -> jax.Array:
        """The deterministic policy: standardised [..., S] -> [..., A] in [-1, 1]."""
        return self.networks.actor.apply(state.actor, observation)

    def smoothed_target(
        self, state: State, observation: jax.Array, noise: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """min_e Q_e(s, a) at a = clip(pi(s) + noise), with the target networks.

        TD3, algorithm 1.

        Args:
          state: state of the agent.
          observation: [B, ..., S].
          noise: [B, A] clipped noise; the states of one row share it.

        Returns:
          Values [B, ...] and the actions [B, ..., A].
        """
        action = self.networks.actor.apply(state.target_actor, observation)
        noise = noise.reshape(len(noise), *(1,) * (observation.ndim - 2), -1)
        action = jnp.clip(action + noise, -1.0, 1.0)
        q = self.networks.critics.apply(state.target_critics, observation, action).min(0)
        return q, action

    def _clipped_noise(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        noise = self.settings.policy_noise * jax.random.normal(key, shape)
        return jnp.clip(noise, -self.settings.noise_clip, self.settings.noise_clip)
