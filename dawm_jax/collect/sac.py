"""Soft actor-critic (Haarnoja et al. 2018, 1812.05905): the online agent whose policies make data.

Like the offline agents of the package: pure functions of explicit parameters, actions in
[-1, 1], twin critics.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from dawm_jax.agents import soft
from dawm_jax.agents.soft import Networks, State
from dawm_jax.models import optim, squashed_gaussian
from dawm_jax.models.networks import Critics, Mlp
from dawm_jax.types import Metrics, Params, Transition


def make_networks(hidden: tuple[int, ...], action_size: int) -> Networks:
    """Networks with hidden layers of the given sizes."""
    return Networks(Mlp(hidden, 2 * action_size), Critics(hidden, members=2))


# --- the policy ---------------------------------------------------------------------------


def distribution(
    actor: Params, observation: jax.Array, *, networks: Networks
) -> tuple[jax.Array, jax.Array]:
    """Mean and log standard deviation before squashing, [..., S] -> twice [..., A]."""
    return squashed_gaussian.distribution(networks.actor.apply(actor, observation))


def sample(
    actor: Params, observation: jax.Array, noise: jax.Array, *, networks: Networks
) -> tuple[jax.Array, jax.Array]:
    """An action a = tanh(u), u ~ N(mean, std²), and its log density (appendix C, eq. 21).

    Args:
      actor: parameters of the policy.
      observation: [..., S].
      noise: [..., A] standard normal.
      networks: networks of the agent.

    Returns:
      Actions [..., A] in (-1, 1) and log densities [...].
    """
    return squashed_gaussian.sample(networks.actor.apply(actor, observation), noise)


def act(actor: Params, observation: jax.Array, *, networks: Networks) -> jax.Array:
    """The deterministic action tanh(mean), [..., S] -> [..., A] in (-1, 1)."""
    return jnp.tanh(distribution(actor, observation, networks=networks)[0])


# --- learning -----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Sac:
    """The agent: its networks, optimisers and hyper-parameters.

    Attributes:
      networks: networks of the agent.
      state_size: S.
      action_size: A; the target entropy is -A.
      actor_optimizer: optimiser of the policy.
      critic_optimizer: optimiser of the critics.
      temperature_optimizer: optimiser of the logarithm of the temperature.
      discount: gamma, per step.
      tau: share of the new parameters in the target critics, after every critic step.
    """

    networks: Networks
    state_size: int
    action_size: int
    actor_optimizer: optax.GradientTransformation
    critic_optimizer: optax.GradientTransformation
    temperature_optimizer: optax.GradientTransformation
    discount: float
    tau: float

    def init(self, key: jax.Array) -> State:
        """A fresh agent at temperature 1; `key` is consumed."""
        return soft.init(
            key,
            self.networks,
            soft.Optimizers(
                self.actor_optimizer, self.critic_optimizer, self.temperature_optimizer
            ),
            state_size=self.state_size,
            action_size=self.action_size,
        )

    def td_target(self, state: State, batch: Transition, noise: jax.Array) -> jax.Array:
        """r + gamma (1 - terminated) (min_e Q_e(s', a') - temperature log pi(a')), [B] (eq. 3).

        Args:
          state: state of the agent; Q_e are the target critics.
          batch: transitions [B].
          noise: [B, A] standard normal noise of a'.
        """
        action, log_prob = sample(
            state.actor, batch.next_observation, noise, networks=self.networks
        )
        q = self.networks.critics.apply(state.target_critics, batch.next_observation, action).min(0)
        value = q - jnp.exp(state.log_temperature) * log_prob
        return batch.reward + self.discount * (1.0 - batch.terminated) * value

    def actor_loss(
        self,
        actor: Params,
        critics: Params,
        log_temperature: jax.Array,
        observation: jax.Array,
        noise: jax.Array,
    ) -> tuple[jax.Array, Metrics]:
        """mean (temperature log pi(a) - min_e Q_e(s, a)) over sampled actions (eq. 7).

        Args:
          actor: parameters of the policy.
          critics: parameters of the critics.
          log_temperature: [].
          observation: [B, S].
          noise: [B, A] standard normal.
        """
        action, log_prob = sample(actor, observation, noise, networks=self.networks)
        q = self.networks.critics.apply(critics, observation, action).min(0)
        value = (jnp.exp(log_temperature) * log_prob - q).mean()
        return value, {"entropy": -log_prob.mean()}

    def update(self, state: State, batches: Transition, key: jax.Array) -> tuple[State, Metrics]:
        """One cycle: a critic step on every batch, then one actor and one temperature step.

        Args:
          state: state of the agent.
          batches: [delay, B, ...] transitions; the actor learns from the last batch.
          key: random number generator state, the key is consumed.

        Returns:
          The next state, and metrics.
        """
        noise = jax.random.normal(key, (batches.reward.shape[0] + 1, *batches.action.shape[1:]))
        for index in range(batches.reward.shape[0]):
            batch = jax.tree.map(lambda leaf, index=index: leaf[index], batches)
            state, critic_metrics = soft.critic_step(
                state,
                batch,
                self.td_target(state, batch, noise[index]),
                networks=self.networks,
                optimizer=self.critic_optimizer,
                tau=self.tau,
            )
        actor, actor_opt, actor_metrics = optim.gradient_step(
            lambda params: self.actor_loss(
                params, state.critics, state.log_temperature, batch.observation, noise[-1]
            ),
            state.actor,
            state.actor_opt,
            self.actor_optimizer,
        )
        temperature = jnp.exp(state.log_temperature)
        surplus = actor_metrics["entropy"] + self.action_size
        state = soft.temperature_step(state, surplus, self.temperature_optimizer)
        state = dataclasses.replace(state, actor=actor, actor_opt=actor_opt)
        return state, {**critic_metrics, **actor_metrics, "temperature": temperature}
