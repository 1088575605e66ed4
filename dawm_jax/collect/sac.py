"""Soft actor-critic (Haarnoja et al. 2018, 1812.05905): the online agent whose policies make data.

Like the offline agents of the package: pure functions of explicit parameters, actions in
[-1, 1], twin critics.
"""

import dataclasses

import jax
import jax.numpy as jnp

from dawm_jax.agents import soft, td
from dawm_jax.agents.soft import Networks, Optimizers, State
from dawm_jax.models import squashed_gaussian
from dawm_jax.models.networks import Critics, Mlp
from dawm_jax.types import Metrics, Params, Transition


def make_networks(hidden: tuple[int, ...], action_size: int) -> Networks:
    """Networks with hidden layers of the given sizes."""
    return Networks(Mlp(hidden, 2 * action_size), Critics(hidden, members=2))


# --- the policy ---------------------------------------------------------------------------


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


# --- learning -----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Sac:
    """The agent: its networks, optimisers and hyper-parameters.

    Attributes:
      networks: networks of the agent.
      state_size: S.
      action_size: A; the target entropy is -A.
      optimizers: of policy, critics and temperature.
      discount: gamma, per step.
      tau: share of the new parameters in the target critics, after every critic step.
    """

    networks: Networks
    state_size: int
    action_size: int
    optimizers: Optimizers
    discount: float
    tau: float

    def init(self, key: jax.Array) -> State:
        """A fresh agent at temperature 1; `key` is consumed."""
        return soft.init(
            key,
            self.networks,
            self.optimizers,
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

        def value(next_obs: jax.Array) -> jax.Array:
            action, log_prob = sample(state.actor, next_obs, noise, networks=self.networks)
            q = self.pool(self.networks.critics.apply(state.target_critics, next_obs, action))
            return q - jnp.exp(state.log_temperature) * log_prob

        return td.one_step_target(batch, value, discount=self.discount)

    @staticmethod
    def pool(q: jax.Array) -> jax.Array:
        """The smallest value of the critics, [E, B] -> [B] (eqs. 3 and 7)."""
        return q.min(0)

    def update(self, state: State, batches: Transition, key: jax.Array) -> tuple[State, Metrics]:
        """One cycle: a critic step on every batch, then one actor and one temperature step.

        Args:
          state: state of the agent.
          batches: [delay, B, ...] transitions; the actor learns from the last batch.
          key: random number generator state, the key is consumed.

        Returns:
          The next state, and metrics: those of the critics are of the last batch.
        """
        noise = jax.random.normal(key, (batches.reward.shape[0] + 1, *batches.action.shape[1:]))
        for index in range(batches.reward.shape[0]):
            batch = jax.tree.map(lambda leaf, index=index: leaf[index], batches)
            state, critic_metrics = soft.critic_step(
                state,
                batch,
                self.td_target(state, batch, noise[index]),
                networks=self.networks,
                optimizer=self.optimizers.critics,
                tau=self.tau,
            )
        state, policy_metrics = soft.policy_step(
            state,
            batch.observation,
            noise[-1],
            networks=self.networks,
            optimizers=self.optimizers,
            pool=self.pool,
            target_entropy=-float(self.action_size),
        )
        return state, {**critic_metrics, **policy_metrics}
