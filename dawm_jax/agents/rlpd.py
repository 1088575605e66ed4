"""RLPD (Ball et al. 2023, 2302.02948): soft actor-critic with an ensemble of normalised critics.

Made for online steps beside a dataset: half of every minibatch from each, many updates a step.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from dawm_jax.agents import soft, td
from dawm_jax.agents.base import AGENTS, AgentSpec, AgentTask
from dawm_jax.agents.soft import Networks, State
from dawm_jax.models import optim, squashed_gaussian
from dawm_jax.models.networks import Critics, Mlp
from dawm_jax.runtime.settings import setting
from dawm_jax.types import Metrics, Params, Rows, Transition, UserError


@dataclasses.dataclass(frozen=True)
class Settings:
    """The hyper-parameters of RLPD, with the paper's values for locomotion."""

    hidden: tuple[int, ...] = setting(
        (256, 256),
        "units of the hidden layers, policy and critics",
        smoke=(16, 16),
        source="RLPD",
        at_least=1,
    )
    learning_rate: float = setting(
        3e-4, "Adam's rate, of policy, critics and temperature", source="RLPD", above=0.0
    )
    tau: float = setting(
        0.005,
        "share of the new parameters in the target critics, each critic update",
        source="RLPD",
        above=0.0,
        at_most=1.0,
    )
    critics: int = setting(
        10, "critics of the ensemble, with layer normalisation", smoke=3, source="RLPD", at_least=1
    )
    target_critics: int = setting(
        2,
        "critics, drawn for each update, whose smallest value is the target's",
        source="RLPD",
        at_least=1,
    )
    policy_delay: int = setting(
        20, "critic updates per policy update", smoke=2, source="RLPD", at_least=1
    )
    target_entropy: float = setting(
        -0.5,
        "entropy that the temperature aims at, per dimension of the action",
        source="RLPD",
        at_least=-100.0,
        at_most=100.0,
    )
    entropy_bonus: bool = setting(
        True, "whether the critics' target contains the entropy of the next action", source="RLPD"
    )

    def check(self, name: str) -> None:
        """Raises UserError if targets need more critics than there are."""
        if self.target_critics > self.critics:
            raise UserError(
                f"{name}.target_critics: expected at most {name}.critics ({self.critics}), got "
                f"{self.target_critics}"
            )


@dataclasses.dataclass(frozen=True, eq=False)
class Rlpd:
    """RLPD.

    Attributes:
      settings: hyper-parameters.
      task: sizes and discount.
      networks: the policy and the critics.
      optimizer: optimiser of policy, critics and temperature.
    """

    settings: Settings
    task: AgentTask
    networks: Networks
    optimizer: optax.GradientTransformation
    reward_scale: float = 1.0

    @property
    def batches_per_update(self) -> int:
        """The policy delay."""
        return self.settings.policy_delay

    def init(self, key: jax.Array) -> State:
        """A fresh agent at temperature 1; `key` is consumed."""
        return soft.init(
            key,
            self.networks,
            soft.Optimizers(self.optimizer, self.optimizer, self.optimizer),
            state_size=self.task.state_size,
            action_size=self.task.action_size,
        )

    def critic_target(self, state: State, batch: Rows, key: jax.Array) -> jax.Array:
        """r + gamma (1 - terminated) (min_{e in M} Q_e(s', a') - temperature log pi(a')), [B].

        M are `target_critics` members of the ensemble, drawn without replacement (RLPD,
        algorithm 1). Without `entropy_bonus` the last term is left out.

        Args:
          state: state of the agent; Q_e are the target critics.
          batch: transitions [B].
          key: random number generator state, the key is consumed.

        Raises:
          TypeError: rows of another type.
        """
        if not isinstance(batch, Transition):
            raise TypeError(f"expected Transition, got {type(batch).__name__}")
        key_noise, key_members = jax.random.split(key)
        noise = jax.random.normal(key_noise, batch.action.shape)
        members = jax.random.permutation(key_members, self.settings.critics)
        members = members[: self.settings.target_critics]
        chosen = jax.tree.map(lambda leaf: leaf[members], state.target_critics)
        critics = self.networks.critics.clone(members=self.settings.target_critics)

        def value(next_obs: jax.Array) -> jax.Array:
            output = self.networks.actor.apply(state.actor, next_obs)
            action, log_prob = squashed_gaussian.sample(output, noise)
            q = critics.apply(chosen, next_obs, action).min(0)
            if not self.settings.entropy_bonus:
                return q
            return q - jnp.exp(state.log_temperature) * log_prob

        return td.one_step_target(batch, value, discount=self.task.discount)

    def actor_loss(
        self,
        actor: Params,
        critics: Params,
        log_temperature: jax.Array,
        observation: jax.Array,
        noise: jax.Array,
    ) -> tuple[jax.Array, Metrics]:
        """mean (temperature log pi(a) - mean_e Q_e(s, a)) over drawn actions.

        RLPD, algorithm 1: the mean of all critics, where SAC takes the smallest.

        Args:
          actor: parameters of the policy.
          critics: parameters of the critics.
          log_temperature: [].
          observation: [B, S].
          noise: [B, A] standard normal.
        """
        output = self.networks.actor.apply(actor, observation)
        action, log_prob = squashed_gaussian.sample(output, noise)
        q = self.networks.critics.apply(critics, observation, action).mean(0)
        value = (jnp.exp(log_temperature) * log_prob - q).mean()
        return value, {"actor_loss": value, "entropy": -log_prob.mean()}

    def update(self, state: State, batches: Rows, key: jax.Array) -> tuple[State, Metrics]:
        """One cycle: a critic step on every batch, then one actor and one temperature step.

        Args:
          state: state of the agent.
          batches: [policy_delay, B, ...] transitions; the policy learns from the last batch.
          key: random number generator state, the key is consumed.

        Returns:
          The next state, and metrics.
        """
        key_critics, key_actor = jax.random.split(key)

        def critic_step(state: State, inputs: tuple[Rows, jax.Array]) -> tuple[State, Metrics]:
            batch, key_batch = inputs
            return soft.critic_step(
                state,
                batch,
                self.critic_target(state, batch, key_batch),
                networks=self.networks,
                optimizer=self.optimizer,
                tau=self.settings.tau,
            )

        keys = jax.random.split(key_critics, self.batches_per_update)
        state, critic_metrics = jax.lax.scan(critic_step, state, (batches, keys))
        observation, last = batches.observation[-1], batches.action[-1]
        noise = jax.random.normal(key_actor, last.shape)
        actor, actor_opt, actor_metrics = optim.gradient_step(
            lambda actor: self.actor_loss(
                actor, state.critics, state.log_temperature, observation, noise
            ),
            state.actor,
            state.actor_opt,
            self.optimizer,
        )
        surplus = actor_metrics["entropy"] - self.settings.target_entropy * self.task.action_size
        metrics = {
            **jax.tree.map(lambda values: values.mean(), critic_metrics),
            **actor_metrics,
            "temperature": jnp.exp(state.log_temperature),
        }
        state = soft.temperature_step(state, surplus, self.optimizer)
        return dataclasses.replace(state, actor=actor, actor_opt=actor_opt), metrics

    def act(self, state: State, observation: jax.Array) -> jax.Array:
        """tanh of the mean: standardised [..., S] -> [..., A] in (-1, 1)."""
        output = self.networks.actor.apply(state.actor, observation)
        return jnp.tanh(squashed_gaussian.distribution(output)[0])

    def explore(self, state: State, observation: jax.Array, key: jax.Array) -> jax.Array:
        """An action of the policy: standardised [..., S] -> [..., A]; see `Explores`."""
        output = self.networks.actor.apply(state.actor, observation)
        noise = jax.random.normal(key, (*observation.shape[:-1], self.task.action_size))
        return squashed_gaussian.sample(output, noise)[0]


def make(settings: Settings, task: AgentTask) -> Rlpd:
    """RLPD for a task."""
    return Rlpd(
        settings=settings,
        task=task,
        networks=Networks(
            actor=Mlp(settings.hidden, 2 * task.action_size),
            critics=Critics(settings.hidden, members=settings.critics, layer_norm=True),
        ),
        optimizer=optim.adam(
            settings.learning_rate, schedule="constant", total_steps=task.total_updates
        ),
    )


AGENTS.register(
    AgentSpec(
        name="rlpd",
        label="RLPD",
        settings=Settings,
        make=make,
        learns_from=(Transition,),
        batches_per_update=lambda settings: settings.policy_delay,
        policy=("actor", "actor_opt", "log_temperature", "temperature_opt"),
    )
)
