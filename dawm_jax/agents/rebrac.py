"""ReBRAC (Tarasov et al. 2023, 2305.09836): TD3 with cloning penalties in policy and critics.

It differs from TD3+BC in four choices: a penalty in the target of the critics, a weight of
its own for each penalty, layer normalisation in the critics, and deeper networks.

Deviations from the official implementation:
- The penalty of the critics is 0 where the dataset's next action is unknown: after a time-out,
  and after the last step of a generated window. The official code drops the step before a
  time-out; generated windows are not in the paper.
- Networks start with PyTorch's default initialisation. The official code starts biases at
  0.1 and output layers close to 0.
- The target policy follows the policy after its gradient step, as TD3's does. The official
  code uses the parameters before the step.
- Observations are standardised, and the batch size is the run's own (paper: 1,024).
- One default serves all datasets, where the paper tunes both penalties for each.
"""

import dataclasses

import jax
import jax.numpy as jnp

from dawm_jax.agents import td, td3
from dawm_jax.agents.base import AGENTS, AgentSpec, AgentTask
from dawm_jax.models import optim
from dawm_jax.models.networks import Critics, TanhMlp
from dawm_jax.runtime.settings import redefault, setting
from dawm_jax.types import Metrics, Params, Rows, Transition


@dataclasses.dataclass(frozen=True)
class Settings(td3.Settings):
    """The hyper-parameters of ReBRAC, with the paper's values for Gym-MuJoCo."""

    hidden: tuple[int, ...] = redefault(
        td3.Settings, "hidden", (256, 256, 256), smoke=(16, 16), source="ReBRAC"
    )
    learning_rate: float = redefault(td3.Settings, "learning_rate", 1e-3, source="ReBRAC")
    # The paper's choices for the medium tiers, policy and critics: Hopper .01 and .01,
    # Walker2d .05 and .1, HalfCheetah .001 and .01.
    actor_penalty: float = setting(
        0.01,
        "beta_1, weight of (pi(s) - a)^2 in the policy's loss",
        source="ReBRAC, Hopper medium",
        at_least=0.0,
    )
    critic_penalty: float = setting(
        0.01,
        "beta_2, weight of (pi(s') - a')^2 in the critics' target",
        source="ReBRAC, Hopper medium",
        at_least=0.0,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Rebrac(td3.Td3):
    """ReBRAC.

    Attributes:
      settings: hyper-parameters.
      pull: factor of beta_1 and beta_2, see `Loosens`.
    """

    settings: Settings
    pull: float | jax.Array = 1.0

    def loosened(self, pull: float | jax.Array) -> "Rebrac":
        """The agent with weaker penalties; see `Loosens`."""
        return dataclasses.replace(self, pull=pull)

    def critic_target(self, state: td3.State, batch: Rows, noise: jax.Array) -> jax.Array:
        """r + gamma (1 - terminated) (min_e Q_e(s', a~) - beta_2 known ||a~ - a'||^2), [B].

        a~ is the smoothed action of the target policy in s', a' the dataset's next action,
        and known is 1 where the dataset has one.

        Args:
          state: state of the agent, of which the target networks are used.
          batch: transitions [B] with their next actions.
          noise: [B, A] clipped noise of the target action.

        Raises:
          TypeError: rows without next actions.
        """
        if (
            not isinstance(batch, Transition)
            or batch.next_action is None
            or batch.next_action_known is None
        ):
            raise TypeError("expected Transition with next_action and next_action_known")
        next_action, known = batch.next_action, batch.next_action_known

        def penalised_value(next_obs: jax.Array) -> jax.Array:
            q, action = self.smoothed_target(state, next_obs, noise)
            # `where`, not a product: an unknown action may be any value, NaN included.
            distance = jnp.where(known > 0, jnp.square(action - next_action).sum(-1), 0.0)
            return q - self.settings.critic_penalty * self.pull * distance

        return td.one_step_target(batch, penalised_value, discount=self.task.discount)

    def actor_loss(self, actor: Params, critics: Params, batch: Rows) -> tuple[jax.Array, Metrics]:
        """mean (beta_1 ||pi(s) - a||^2 - lambda min_e Q_e(s, pi(s))), lambda = 1 / mean |min Q|.

        No gradient flows through lambda. The minimum over both critics is the official
        implementation's.

        Args:
          actor: parameters of the policy.
          critics: parameters of both critics.
          batch: rows [B].

        Returns:
          The loss, and metrics.
        """
        action = self.networks.actor.apply(actor, batch.observation)
        q = self.networks.critics.apply(critics, batch.observation, action).min(0)
        weight = 1.0 / jax.lax.stop_gradient(jnp.abs(q).mean())
        error = jnp.square(action - batch.action)
        penalty = self.settings.actor_penalty * self.pull
        value = (penalty * error.sum(-1) - weight * q).mean()
        return value, {"actor_loss": value, "cloning_mse": error.mean()}


def make(settings: Settings, task: AgentTask) -> Rebrac:
    """ReBRAC for a task."""
    return Rebrac(
        settings=settings,
        task=task,
        networks=td3.Networks(
            actor=TanhMlp(settings.hidden, task.action_size),
            critics=Critics(settings.hidden, members=2, layer_norm=True),
        ),
        optimizer=optim.adam(
            settings.learning_rate, schedule="constant", total_steps=task.total_updates
        ),
    )


AGENTS.register(
    AgentSpec(
        name="rebrac",
        label="ReBRAC",
        settings=Settings,
        make=make,
        learns_from=(Transition,),
        batches_per_update=td3.batches_per_update,
        needs_next_action=True,
        policy=td3.POLICY,
    )
)
