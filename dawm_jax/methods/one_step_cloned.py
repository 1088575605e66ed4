"""One-step model with a cloned policy: Gaussian dynamics give transitions, as DAWM's models do.

The policy is cloned from the data. `methods.one_step` rolls the same dynamics out with the policy
in training.
"""

import dataclasses
import functools
from collections.abc import Mapping

import jax

from dawm_jax.agents.base import AGENTS
from dawm_jax.config.schema import Config
from dawm_jax.methods import synthetic
from dawm_jax.methods.base import METHODS, Generated, MethodSpec
from dawm_jax.models import gaussian_dynamics, inverse_dynamics
from dawm_jax.models.base import Trainable
from dawm_jax.models.gaussian_dynamics import GaussianDynamics
from dawm_jax.models.inverse_dynamics import ActionModel
from dawm_jax.types import Condition, ModelParams, Normalizer, Transition


@dataclasses.dataclass(frozen=True, eq=False)
class OneStepCloned:
    """A `GeneratingMethod`.

    Attributes:
      dynamics: p(s_{t+1}, r_t | s_t, a_t).
      policy: cloned from the data, s_t -> a_t.
      horizon: H.
      next_action: whether transitions carry the action of the next step.
    """

    dynamics: GaussianDynamics
    policy: ActionModel
    horizon: int
    next_action: bool

    @property
    def models(self) -> Mapping[str, Trainable]:
        """Dynamics model and cloned policy."""
        return {"world_model": self.dynamics, "policy": self.policy}

    def generate(self, params: ModelParams, key: jax.Array, condition: Condition) -> Generated:
        """Transitions [B * H]; see `GeneratingMethod`. The return-to-go is not used."""
        window = self.dynamics.roll_out(
            params["world_model"],
            key,
            condition,
            act=functools.partial(self.policy.infer, params["policy"]),
            horizon=self.horizon,
        )
        return synthetic.to_transitions(window, next_action=self.next_action)


def make(config: Config, normalizer: Normalizer) -> OneStepCloned:
    """The one-step model and the cloned policy with the run's settings."""
    return OneStepCloned(
        dynamics=gaussian_dynamics.make(config.section(gaussian_dynamics.Settings), normalizer),
        policy=inverse_dynamics.make_policy(config.inverse_dynamics, normalizer),
        horizon=config.horizon,
        next_action=AGENTS.get(config.agent).needs_next_action,
    )


METHODS.register(
    MethodSpec(
        name="one_step_cloned",
        label="One-step, cloned policy",
        rows=Transition,
        sections={"world_model": "one_step", "policy": "inverse_dynamics"},
        make=make,
    )
)
