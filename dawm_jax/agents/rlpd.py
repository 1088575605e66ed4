"""RLPD (Ball et al. 2023, 2302.02948): soft actor-critic with an ensemble of normalised critics.

Made for online steps beside a dataset: half of every minibatch from each, many updates a step.
"""

import dataclasses

import jax
import jax.numpy as jnp

from dawm_jax.agents import soft, td
from dawm_jax.agents.base import AGENTS, AgentSpec, AgentTask
from dawm_jax.agents.soft import Networks, Optimizers, State
from dawm_jax.models import optim, squashed_gaussian
from dawm_jax.models.networks import Critics, Mlp
from dawm_jax.runtime.settings import setting
from dawm_jax.types import Metrics, Rows, Transition, UserError


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
      optimizers: of policy, critics and temperature.
      reward_scale: factor between the environment's rewards and those of the target.
    """

    settings: Settings
    task: AgentTask
    networks: Networks
    optimizers: Optimizers
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
            self.optimizers,
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

    @staticmethod
    def pool(q: jax.Array) -> jax.Array:
        """The mean of all critics [E, B] -> [B] (RLPD, algorithm 1), where SAC takes the least."""
        return q.mean(0)

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
                optimizer=self.optimizers.critics,
                tau=self.settings.tau,
            )

        keys = jax.random.split(key_critics, self.batches_per_update)
        state, critic_metrics = jax.lax.scan(critic_step, state, (batches, keys))
        state, policy_metrics = soft.policy_step(
            state,
            batches.observation[-1],
            jax.random.normal(key_actor, batches.action.shape[1:]),
            networks=self.networks,
            optimizers=self.optimizers,
            pool=self.pool,
            target_entropy=self.settings.target_entropy * self.task.action_size,
        )
        critic_metrics = jax.tree.map(lambda values: values.mean(), critic_metrics)
        return state, {**critic_metrics, **policy_metrics}

    def act(self, state: State, observation: jax.Array) -> jax.Array:
        """tanh of the mean: standardised [..., S] -> [..., A] in (-1, 1)."""
        return soft.act(state.actor, observation, networks=self.networks)

    def explore(self, state: State, observation: jax.Array, key: jax.Array) -> jax.Array:
        """An action of the policy: standardised [..., S] -> [..., A]; see `Explores`."""
        output = self.networks.actor.apply(state.actor, observation)
        noise = jax.random.normal(key, (*observation.shape[:-1], self.task.action_size))
        return squashed_gaussian.sample(output, noise)[0]


def make(settings: Settings, task: AgentTask) -> Rlpd:
    """RLPD for a task."""
    adam = optim.adam(settings.learning_rate, schedule="constant", total_steps=task.total_updates)
    return Rlpd(
        settings=settings,
        task=task,
        networks=Networks(
            actor=Mlp(settings.hidden, 2 * task.action_size),
            critics=Critics(settings.hidden, members=settings.critics, layer_norm=True),
        ),
        optimizers=Optimizers(actor=adam, critics=adam, temperature=adam),
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
