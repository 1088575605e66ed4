"""One-step model, DWM's baseline (2402.03570): Gaussian dynamics and the policy in training.

Each minibatch holds value expansions of real states and actions, generated for it with the
agent's policy as it is then: DWM with another model.
"""

import dataclasses
from collections.abc import Mapping

import jax

from dawm_jax.config.schema import SECTIONS, Config, SectionSpec
from dawm_jax.methods import synthetic
from dawm_jax.methods.base import METHODS, Generated, MethodSpec
from dawm_jax.models import gaussian_dynamics
from dawm_jax.models.base import Trainable
from dawm_jax.models.gaussian_dynamics import GaussianDynamics
from dawm_jax.types import Condition, Expansion, ModelParams, Normalizer, PolicyFn


@dataclasses.dataclass(frozen=True, eq=False)
class OneStep:
    """A `PolicyMethod`.

    Attributes:
      dynamics: p(s_{t+1}, r_t | s_t, a_t).
      horizon: H.
    """

    dynamics: GaussianDynamics
    horizon: int

    @property
    def models(self) -> Mapping[str, Trainable]:
        """The dynamics model."""
        return {"world_model": self.dynamics}

    def expand(
        self, params: ModelParams, key: jax.Array, condition: Condition, *, act: PolicyFn
    ) -> Generated:
        """Expansions [B]; see `PolicyMethod`. The return-to-go is not used."""
        window = self.dynamics.roll_out(
            params["world_model"], key, condition, act=act, horizon=self.horizon
        )
        return synthetic.to_expansions(window, condition)


def make(config: Config, normalizer: Normalizer) -> OneStep:
    """The one-step model with the run's settings."""
    return OneStep(
        dynamics=gaussian_dynamics.make(config.section(gaussian_dynamics.Settings), normalizer),
        horizon=config.horizon,
    )


SECTIONS.register(SectionSpec("one_step", gaussian_dynamics.Settings))
METHODS.register(
    MethodSpec(
        name="one_step",
        label="One-step",
        rows=Expansion,
        sections={"world_model": "one_step"},
        make=make,
    )
)
