"""Joint diffusion: actions are diffused with states and rewards, as in Diffuser (2205.09991)."""

import dataclasses
from collections.abc import Mapping

import jax

from dawm_jax.agents.base import AGENTS
from dawm_jax.config.schema import Config
from dawm_jax.methods import diffusion_models, synthetic
from dawm_jax.methods.base import METHODS, Generated, MethodSpec
from dawm_jax.methods.synthetic import TargetReturn
from dawm_jax.models import tokens
from dawm_jax.models.base import Trainable
from dawm_jax.models.world_model import DiffusionWorldModel
from dawm_jax.types import Condition, ModelParams, Normalizer, Transition


@dataclasses.dataclass(frozen=True, eq=False)
class Joint:
    """A `GeneratingMethod`.

    Attributes:
      world_model: p(r_t, s_{t+1}, a_{t+1}, ..., s_{t+H} | s_t, a_t, return-to-go).
      target: the return-to-go that windows aim at.
      next_action: whether transitions carry the action of the next step.
    """

    world_model: DiffusionWorldModel
    target: TargetReturn
    next_action: bool

    @property
    def models(self) -> Mapping[str, Trainable]:
        """The world model."""
        return {"world_model": self.world_model}

    def generate(self, params: ModelParams, key: jax.Array, condition: Condition) -> Generated:
        """Transitions [B * H]; see `GeneratingMethod`."""
        window = self.world_model.sample(params["world_model"], key, self.target.aim(condition))
        return synthetic.to_transitions(window, next_action=self.next_action)


def make(config: Config, normalizer: Normalizer) -> Joint:
    """Joint diffusion with the run's settings."""
    return Joint(
        world_model=diffusion_models.make(config, normalizer, tokens.JOINT),
        target=diffusion_models.target_return(config, normalizer),
        next_action=AGENTS.get(config.agent).needs_next_action,
    )


METHODS.register(
    MethodSpec(
        name="joint",
        label="Joint",
        rows=Transition,
        sections={"world_model": "world_model"},
        make=make,
    )
)
