"""DWM (2402.03570): generated windows are value expansions of real states and actions.

Its diffusion model is DAWM's; docs/deviations.md lists how it differs from the authors'.
"""

import dataclasses
from collections.abc import Mapping

import jax

from dawm_jax.config.schema import Config
from dawm_jax.methods import diffusion_models, synthetic
from dawm_jax.methods.base import METHODS, Generated, MethodSpec
from dawm_jax.methods.synthetic import TargetReturn
from dawm_jax.models import tokens
from dawm_jax.models.base import Trainable
from dawm_jax.models.world_model import DiffusionWorldModel
from dawm_jax.types import Condition, Expansion, ModelParams, Normalizer


@dataclasses.dataclass(frozen=True, eq=False)
class Dwm:
    """A `GeneratingMethod` of expansions (section 3.3).

    Attributes:
      world_model: p(r_t, s_{t+1}, ..., s_{t+H} | s_t, a_t, return-to-go).
      target: the return-to-go that windows aim at.
    """

    world_model: DiffusionWorldModel
    target: TargetReturn

    @property
    def models(self) -> Mapping[str, Trainable]:
        """The world model."""
        return {"world_model": self.world_model}

    def generate(self, params: ModelParams, key: jax.Array, condition: Condition) -> Generated:
        """Expansions [B]; see `GeneratingMethod`."""
        window = self.world_model.sample(params["world_model"], key, self.target.aim(condition))
        return synthetic.to_expansions(window, condition)


def make(config: Config, normalizer: Normalizer) -> Dwm:
    """DWM with the run's settings."""
    return Dwm(
        world_model=diffusion_models.make(config, normalizer, tokens.DAWM),
        target=diffusion_models.target_return(config, normalizer),
    )


METHODS.register(
    MethodSpec(
        name="dwm",
        label="DWM",
        rows=Expansion,
        sections={"world_model": "world_model"},
        make=make,
    )
)
