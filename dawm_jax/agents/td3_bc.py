"""TD3+BC (Fujimoto & Gu 2021, 2106.06860): TD3 with a cloning term in the policy's loss."""

import dataclasses

import jax
import jax.numpy as jnp

from dawm_jax.agents import td, td3
from dawm_jax.agents.base import AGENTS, AgentSpec, AgentTask
from dawm_jax.models import optim
from dawm_jax.models.networks import Critics, TanhMlp
from dawm_jax.runtime.settings import setting
from dawm_jax.types import Expansion, Metrics, Params, Rows, Transition


@dataclasses.dataclass(frozen=True)
class Settings(td3.Settings):
    """The hyper-parameters of TD3+BC."""

    alpha: float = setting(
        2.5, "weight of the value against cloning", source="TD3+BC", at_least=0.0
    )
    # On 200,000 steps of Walker2d-medium, with the tau of the quick variant, mean Q without
    # normalisation is 5,220 after 20,000 updates; the mean return-to-go is 294 (docs/choices.md).
    critic_norm: bool = setting(
        False,
        "layer normalisation after every hidden layer of the critics, as in ReBRAC",
        quick=True,
        absent=False,
    )
    return_lambda: float = setting(
        1.0,
        "lambda of the lambda-return that value expansions give as target (without effect on "
        "transitions); 1 takes the H-step return alone",
        source="DWM",
        at_least=0.0,
        at_most=1.0,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Td3Bc(td3.Td3):
    """TD3+BC.

    Attributes:
      settings: hyper-parameters.
      target: target of the critics.
      pull: factor of the cloning term beside the value, see `Loosens`.
    """

    settings: Settings
    target: td.TargetFn
    pull: float | jax.Array = 1.0

    def loosened(self, pull: float | jax.Array) -> "Td3Bc":
        """The agent with alpha / pull in place of alpha; see `Loosens`."""
        return dataclasses.replace(self, pull=pull)

    def critic_target(self, state: td3.State, batch: Rows, noise: jax.Array) -> jax.Array:
        """The target from the smoothed value of the next states, [B]; see `td3.Td3`."""
        return self.target(batch, lambda next_obs: self.smoothed_target(state, next_obs, noise)[0])

    def actor_loss(self, actor: Params, critics: Params, batch: Rows) -> tuple[jax.Array, Metrics]:
        """-lambda mean Q_1(s, pi(s)) + mean (pi(s) - a)^2, lambda = alpha / mean |Q_1|.

        TD3+BC, eq. 5; alpha is divided by `pull`. No gradient flows through lambda. The policy
        follows the first critic alone, as in TD3.

        Args:
          actor: parameters of the policy.
          critics: parameters of both critics.
          batch: rows [B].

        Returns:
          The loss, and metrics.
        """
        action = self.networks.actor.apply(actor, batch.observation)
        first = jax.tree.map(lambda leaf: leaf[:1], critics)
        first_critic = self.networks.critics.clone(members=1)
        q = first_critic.apply(first, batch.observation, action)[0]
        alpha = self.settings.alpha / self.pull
        weight = alpha / jax.lax.stop_gradient(jnp.abs(q).mean())
        cloning = jnp.square(action - batch.action).mean()
        value = -weight * q.mean() + cloning
        return value, {"actor_loss": value, "cloning_mse": cloning}


def make(settings: Settings, task: AgentTask) -> Td3Bc:
    """TD3+BC for a task."""
    return Td3Bc(
        settings=settings,
        task=task,
        networks=td3.Networks(
            actor=TanhMlp(settings.hidden, task.action_size),
            critics=Critics(settings.hidden, members=2, layer_norm=settings.critic_norm),
        ),
        optimizer=optim.adam(
            settings.learning_rate, schedule="constant", total_steps=task.total_updates
        ),
        target=td.make_target(task, return_lambda=settings.return_lambda),
    )


AGENTS.register(
    AgentSpec(
        name="td3_bc",
        label="TD3+BC",
        settings=Settings,
        make=make,
        learns_from=(Transition, Expansion),
        batches_per_update=td3.batches_per_update,
        policy=td3.POLICY,
    )
)
