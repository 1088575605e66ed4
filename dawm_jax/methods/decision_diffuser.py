"""Decision Diffuser (2211.15657): plans states towards a return, acts by inverse dynamics.

docs/deviations.md lists how the method differs from the authors' code.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from dawm_jax.config.schema import SECTIONS, Config, SectionSpec
from dawm_jax.data import normalizer as normalizing
from dawm_jax.methods import diffusion_models
from dawm_jax.methods.base import METHODS, MethodSpec
from dawm_jax.methods.synthetic import TargetReturn
from dawm_jax.models import inverse_dynamics, tokens
from dawm_jax.models.base import DENOISERS, Trainable
from dawm_jax.models.diffusion import PREDICTIONS
from dawm_jax.models.inverse_dynamics import ActionModel
from dawm_jax.models.sampler import Sampler, SamplerSettings
from dawm_jax.models.tokens import STATE_FORMS
from dawm_jax.models.world_model import DiffusionWorldModel
from dawm_jax.runtime.settings import redefault, setting
from dawm_jax.types import Condition, ModelParams, Normalizer


@dataclasses.dataclass(frozen=True)
class Settings(SamplerSettings):
    """Section `planner`: overrides the settings of the same name in `rollout`, `world_model`.

    At full size it has the values and the network of the authors' code. The quick one plans
    with the tokens, the denoiser and the sampler of this package's world model: changes of the
    state in place of states, and eight second-order steps at temperature 1. The published
    temperature 0.5 scales the noise of every ancestral step; a deterministic solver has only the
    initial noise, and 0.5 would take samples from the middle of the distribution.

    With 5 diffusion steps (DWM's comparison) the least noise sqrt(1 - abar_0) is 0.32, above one
    step of Hopper, whose root mean square is 0.23 standard deviations.
    """

    horizon: int = setting(
        99,
        "generated steps of a plan",
        quick=31,
        smoke=5,
        at_least=1,
        source="DD: plans of 100 states",
    )
    denoiser: str = setting(
        "decision_unet",
        "the network that predicts; its sizes are the section of its name",
        quick="temporal_resnet",
        source="DD",
        absent_from="world_model.denoiser",
    )
    states: str = setting(
        "absolute",
        "what a token says of its state: its change since the token before, in units of the "
        "data's changes, or the standardised state itself",
        quick="changes",
        choices=STATE_FORMS,
        source="DD",
        absent="absolute",
    )
    diffusion_steps: int = setting(200, "diffusion steps K", quick=1_000, at_least=1, source="DD")
    prediction: str = setting(
        "epsilon", "what the denoiser predicts", quick="v", choices=PREDICTIONS, source="DD"
    )
    target_fraction: float = setting(
        0.9,
        "share of the range of the data's returns-to-go that plans aim at",
        source="DD: 0.9 of its scale",
    )
    sampling_steps: int = redefault(
        SamplerSettings, "sampling_steps", 200, quick=8, smoke=2, source="DD"
    )
    order: int = redefault(SamplerSettings, "order", 1, quick=2)
    spacing: str = redefault(
        SamplerSettings, "spacing", "quadratic", quick="noise", source="DDIM 2010.02502, D.2"
    )
    eta: float = redefault(SamplerSettings, "eta", 1.0, quick=0.0, source="DD: ancestral")
    guidance: float = redefault(SamplerSettings, "guidance", 1.2, source="DD")
    temperature: float = redefault(SamplerSettings, "temperature", 0.5, quick=1.0, source="DD")

    def check(self, name: str) -> None:
        """Checks that the denoiser is registered, and what `SamplerSettings.check` does.

        Args:
          name: dotted name of the section, for messages.

        Raises:
          UserError: an unknown denoiser, or order 2 with eta above 0.
        """
        super().check(name)
        DENOISERS.get(self.denoiser, setting=f"{name}.denoiser")


@dataclasses.dataclass(frozen=True, eq=False)
class DecisionDiffuser:
    """A `PlanningMethod` (algorithm 1).

    Attributes:
      world_model: p(s_{t+1}, ..., s_{t+H} | s_t, return-to-go).
      inverse_dynamics: f(s_t, s_{t+1}) -> a_t.
      target: the return-to-go that plans aim at.
      normalizer: constants fitted on the training data.
    """

    world_model: DiffusionWorldModel
    inverse_dynamics: ActionModel
    target: TargetReturn
    normalizer: Normalizer

    @property
    def models(self) -> Mapping[str, Trainable]:
        """World model and inverse dynamics model."""
        return {"world_model": self.world_model, "inverse_dynamics": self.inverse_dynamics}

    @property
    def horizon(self) -> int:
        """Steps of a plan."""
        return self.world_model.horizon

    @property
    def target_fraction(self) -> float:
        """Share of the data's range of returns that plans aim at."""
        return self.target.factor

    def plan(self, params: ModelParams, key: jax.Array, observation: jax.Array) -> jax.Array:
        """The action from the first two states of a plan; see `PlanningMethod`."""
        state = normalizing.normalise_observation(self.normalizer, observation)
        batch = len(state)
        unused = jnp.zeros((batch, len(self.normalizer.action_low)))  # plans have no first action
        condition = Condition(state, unused, self.target(jnp.zeros(batch)))
        plan = self.world_model.sample_tokens(params["world_model"], key, condition)
        states = self.world_model.tokens.states(plan)
        action = self.inverse_dynamics.infer(params["inverse_dynamics"], states[:, 0], states[:, 1])
        return normalizing.denormalise_action(self.normalizer, action)


def make(config: Config, normalizer: Normalizer) -> DecisionDiffuser:
    """Decision Diffuser with the run's settings."""
    planner = config.section(Settings)
    section = dataclasses.replace(
        config.world_model,
        denoiser=planner.denoiser,
        states=planner.states,
        diffusion_steps=planner.diffusion_steps,
        prediction=planner.prediction,
    )
    return DecisionDiffuser(
        world_model=diffusion_models.of_section(
            config,
            section,
            normalizer,
            tokens.STATES,
            sampler=Sampler.of(planner),
            horizon=planner.horizon,
        ),
        inverse_dynamics=inverse_dynamics.make(
            config.inverse_dynamics, normalizer, state_columns=config.world_model.state_columns
        ),
        target=TargetReturn("max_fraction", planner.target_fraction, normalizer),
        normalizer=normalizer,
    )


SECTIONS.register(SectionSpec("planner", Settings))
METHODS.register(
    MethodSpec(
        name="decision_diffuser",
        label="Decision Diffuser",
        rows=None,
        sections={"world_model": "world_model", "inverse_dynamics": "inverse_dynamics"},
        make=make,
        settings="planner",
        seed_is="the noise of the plans; models are shared",
    )
)
