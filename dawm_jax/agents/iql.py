"""Implicit Q-learning, IQL (Kostrikov et al. 2022, 2110.06169)."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct

from dawm_jax.agents import td
from dawm_jax.agents.base import AGENTS, AgentSpec, AgentTask
from dawm_jax.models import optim
from dawm_jax.models.networks import Critics, GaussianPolicy, Value
from dawm_jax.runtime.settings import setting
from dawm_jax.types import Expansion, Metrics, Params, Rows, Transition

# The official implementation's bounds of the policy's log standard deviation.
_LOG_STD_BOUNDS = (-5.0, 2.0)
# The official implementation scales rewards so that the returns of the data's best and worst
# episode differ by this much.
_SCALED_RETURN_RANGE = 1000.0


@dataclasses.dataclass(frozen=True)
class Settings:
    """The hyper-parameters of IQL, with the paper's values."""

    hidden: tuple[int, ...] = setting(
        (256, 256),
        "units of the hidden layers, policy, value and critics",
        smoke=(16, 16),
        source="IQL",
        at_least=1,
    )
    learning_rate: float = setting(
        3e-4, "Adam's rate; the policy's decays to 0 by a cosine", source="IQL", above=0.0
    )
    # 20,000 updates (quick) x .005 are 100 time constants of the target: a value of the horizon
    # 1 / (1 - discount) = 100 reaches at most 1 - e^-1 = 63 % of its size. At .02 it is 98 %.
    tau: float = setting(
        0.005,
        "share of the new parameters in the target critics, each update",
        quick=0.02,
        source="IQL",
        above=0.0,
        at_most=1.0,
    )
    expectile: float = setting(
        0.7, "expectile of the value regression", source="IQL", above=0.0, below=1.0
    )
    beta: float = setting(
        3.0, "inverse temperature of the policy extraction", source="IQL", at_least=0.0
    )
    max_weight: float = setting(
        100.0, "cap of the exponentiated advantage", source="IQL", above=0.0
    )
    return_lambda: float = setting(
        0.95,
        "lambda of the lambda-return that value expansions give as target (without effect on "
        "transitions); 1 takes the H-step return alone",
        source="DWM",
        at_least=0.0,
        at_most=1.0,
    )


class Networks(NamedTuple):
    """The policy, the state value, and both critics."""

    actor: GaussianPolicy
    value: Value
    critics: Critics


@struct.dataclass
class State:
    """Everything that an update moves."""

    actor: Params
    value: Params
    critics: Params
    target_critics: Params
    actor_opt: optax.OptState
    value_opt: optax.OptState
    critic_opt: optax.OptState


def expectile_loss(difference: jax.Array, *, expectile: float) -> jax.Array:
    """|expectile - 1(u < 0)| u^2, elementwise (IQL, eq. 4)."""
    return jnp.where(difference > 0, expectile, 1.0 - expectile) * jnp.square(difference)


# Compared by identity (eq=False): jit hashes an agent's methods, and arrays have no hash.
@dataclasses.dataclass(frozen=True, eq=False)
class Iql:
    """IQL.

    Attributes:
      settings: hyper-parameters.
      task: sizes and discount.
      networks: the policy, the state value and both critics.
      actor_optimizer: optimiser of the policy.
      optimizer: optimiser of the state value and of the critics.
      target: target of the critics, in scaled reward units.
      reward_scale: factor between the environment's rewards and those of the target.
      batches_per_update: see `Agent`.
      pull: divisor of beta, see `Loosens`.
    """

    settings: Settings
    task: AgentTask
    networks: Networks
    actor_optimizer: optax.GradientTransformation
    optimizer: optax.GradientTransformation
    target: td.TargetFn
    reward_scale: float | jax.Array
    batches_per_update: int = 1
    pull: float | jax.Array = 1.0

    def loosened(self, pull: float | jax.Array) -> "Iql":
        """The agent with beta / pull in place of beta; see `Loosens`."""
        return dataclasses.replace(self, pull=pull)

    def init(self, key: jax.Array) -> State:
        """A fresh agent; the target starts as a copy. `key` is consumed."""
        key_actor, key_value, key_critics = jax.random.split(key, 3)
        observation = jnp.zeros((1, self.task.state_size), jnp.float32)
        action = jnp.zeros((1, self.task.action_size), jnp.float32)
        actor = self.networks.actor.init(key_actor, observation)
        value = self.networks.value.init(key_value, observation)
        critics = self.networks.critics.init(key_critics, observation, action)
        return State(
            actor=actor,
            value=value,
            critics=critics,
            target_critics=jax.tree.map(jnp.copy, critics),
            actor_opt=self.actor_optimizer.init(actor),
            value_opt=self.optimizer.init(value),
            critic_opt=self.optimizer.init(critics),
        )

    def value_loss(self, value: Params, q: jax.Array, batch: Rows) -> tuple[jax.Array, Metrics]:
        """Expectile regression of V(s) on the target critics' min Q(s, a) (IQL, eq. 5).

        Args:
          value: parameters of the state value.
          q: [B].
          batch: rows [B].
        """
        v = self.networks.value.apply(value, batch.observation)
        loss = expectile_loss(q - v, expectile=self.settings.expectile).mean()
        return loss, {"value_loss": loss, "v_mean": v.mean()}

    def actor_loss(
        self, actor: Params, advantage: jax.Array, batch: Rows
    ) -> tuple[jax.Array, Metrics]:
        """-mean min(exp(beta advantage), max_weight) log pi(a | s) (IQL, eq. 7).

        Args:
          actor: parameters of the policy.
          advantage: [B].
          batch: rows [B].
        """
        mean, log_std = self.networks.actor.apply(actor, batch.observation)
        scaled = (batch.action - mean) * jnp.exp(-log_std)[None]
        log_prob = -(0.5 * jnp.square(scaled) + log_std[None] + 0.5 * jnp.log(2 * jnp.pi)).sum(-1)
        beta = self.settings.beta / self.pull
        weight = jnp.minimum(jnp.exp(beta * advantage), self.settings.max_weight)
        loss = -(weight * log_prob).mean()
        return loss, {"actor_loss": loss, "cloning_mse": jnp.square(batch.action - mean).mean()}

    def update(self, state: State, batches: Rows, key: jax.Array) -> tuple[State, Metrics]:
        """One update in the official order: value, policy, critics, target.

        Args:
          state: state of the agent.
          batches: [1, B, ...] rows, rewards in the environment's units.
          key: unused; IQL's update draws nothing.

        Returns:
          The next state, and metrics in scaled reward units.
        """
        del key
        networks = self.networks
        batch = jax.tree.map(lambda leaf: leaf[0], batches)
        q = networks.critics.apply(state.target_critics, batch.observation, batch.action).min(0)
        value, value_opt, value_metrics = optim.gradient_step(
            lambda value: self.value_loss(value, q, batch),
            state.value,
            state.value_opt,
            self.optimizer,
        )
        advantage = q - networks.value.apply(value, batch.observation)
        actor, actor_opt, actor_metrics = optim.gradient_step(
            lambda actor: self.actor_loss(actor, advantage, batch),
            state.actor,
            state.actor_opt,
            self.actor_optimizer,
        )
        target = self.target(batch, lambda next_obs: networks.value.apply(value, next_obs))
        critics, critic_opt, critic_metrics = optim.gradient_step(
            lambda critics: td.critic_loss(critics, batch, target, network=networks.critics),
            state.critics,
            state.critic_opt,
            self.optimizer,
        )
        state = State(
            actor=actor,
            value=value,
            critics=critics,
            target_critics=optax.incremental_update(
                critics, state.target_critics, self.settings.tau
            ),
            actor_opt=actor_opt,
            value_opt=value_opt,
            critic_opt=critic_opt,
        )
        return state, {**value_metrics, **actor_metrics, **critic_metrics}

    def act(self, state: State, observation: jax.Array) -> jax.Array:
        """The policy's mean: standardised [..., S] -> [..., A] in [-1, 1]."""
        return self.networks.actor.apply(state.actor, observation)[0]


def make(settings: Settings, task: AgentTask) -> Iql:
    """IQL for a task."""
    reward_scale = _SCALED_RETURN_RANGE / task.return_range
    constant, decayed = (
        optim.adam(settings.learning_rate, schedule=schedule, total_steps=task.total_updates)
        for schedule in ("constant", "cosine")
    )
    return Iql(
        settings=settings,
        task=task,
        networks=Networks(
            actor=GaussianPolicy(settings.hidden, task.action_size, *_LOG_STD_BOUNDS),
            value=Value(settings.hidden),
            critics=Critics(settings.hidden, members=2, orthogonal=True),
        ),
        actor_optimizer=decayed,
        optimizer=constant,
        target=td.make_target(
            task, return_lambda=settings.return_lambda, reward_scale=reward_scale
        ),
        reward_scale=reward_scale,
    )


AGENTS.register(
    AgentSpec(
        name="iql",
        label="IQL",
        settings=Settings,
        make=make,
        learns_from=(Transition, Expansion),
        batches_per_update=lambda settings: 1,
        policy=("actor", "actor_opt"),
    )
)
