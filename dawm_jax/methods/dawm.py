"""DAWM (2509.19538): diffused states and rewards, and inverse dynamics, give transitions."""

import dataclasses
import functools
from collections.abc import Mapping

import jax

from dawm_jax.agents.base import AGENTS
from dawm_jax.config.schema import Config
from dawm_jax.methods import diffusion_models, synthetic
from dawm_jax.methods.base import METHODS, Generated, MethodSpec
from dawm_jax.methods.synthetic import TargetReturn
from dawm_jax.models import inverse_dynamics, tokens
from dawm_jax.models.base import Trainable
from dawm_jax.models.inverse_dynamics import ActionModel
from dawm_jax.models.world_model import DiffusionWorldModel
from dawm_jax.types import Condition, ModelParams, Normalizer, Transition


@dataclasses.dataclass(frozen=True, eq=False)
class Dawm:
    """A `GeneratingMethod`.

    Attributes:
      world_model: p(r_t, s_{t+1}, ..., s_{t+H} | s_t, a_t, return-to-go).
      inverse_dynamics: f(s_t, s_{t+1}) -> a_t.
      target: the return-to-go that windows aim at.
      next_action: whether transitions carry the action of the next step.
    """

    world_model: DiffusionWorldModel
    inverse_dynamics: ActionModel
    target: TargetReturn
    next_action: bool

    @property
    def models(self) -> Mapping[str, Trainable]:
        """World model and inverse dynamics model."""
        return {"world_model": self.world_model, "inverse_dynamics": self.inverse_dynamics}

    def generate(self, params: ModelParams, key: jax.Array, condition: Condition) -> Generated:
        """Transitions [B * H]; see `GeneratingMethod`."""
        window = self.world_model.sample(params["world_model"], key, self.target.aim(condition))
        infer = functools.partial(self.inverse_dynamics.infer, params["inverse_dynamics"])
        window = synthetic.complete(window, condition.action, infer)
        return synthetic.to_transitions(window, next_action=self.next_action)


def make(config: Config, normalizer: Normalizer) -> Dawm:
    """DAWM with the run's settings."""
    return Dawm(
        world_model=diffusion_models.make(config, normalizer, tokens.DAWM),
        inverse_dynamics=inverse_dynamics.make(
            config.inverse_dynamics, normalizer, state_columns=config.world_model.state_columns
        ),
        target=diffusion_models.target_return(config, normalizer),
        next_action=AGENTS.get(config.agent).needs_next_action,
    )


METHODS.register(
    MethodSpec(
        name="dawm",
        label="DAWM",
        rows=Transition,
        sections={"world_model": "world_model", "inverse_dynamics": "inverse_dynamics"},
        make=make,
    )
)
