"""The diffusion models of all methods: DAWM, DWM and joint diffusion share one section."""

from dawm_jax.config.schema import Config
from dawm_jax.methods.synthetic import TargetReturn
from dawm_jax.models import world_model
from dawm_jax.models.sampler import Sampler
from dawm_jax.models.tokens import Layout
from dawm_jax.models.world_model import DiffusionWorldModel, Settings
from dawm_jax.types import Normalizer


def make(config: Config, normalizer: Normalizer, layout: Layout) -> DiffusionWorldModel:
    """The world model of `config.world_model`, sampled as `config.rollout` says.

    Args:
      config: settings of the run.
      normalizer: constants fitted on the training data.
      layout: channels of a token; `config.world_model` says in which form they hold states.
    """
    return of_section(
        config,
        config.world_model,
        normalizer,
        layout,
        sampler=Sampler.of(config.rollout),
        horizon=config.horizon,
    )


def of_section(
    config: Config,
    section: Settings,
    normalizer: Normalizer,
    layout: Layout,
    *,
    sampler: Sampler,
    horizon: int,
) -> DiffusionWorldModel:
    """The world model of a section, whose denoiser has its sizes in the run's settings.

    Args:
      config: settings of the run.
      section: of the model and its training.
      normalizer: constants fitted on the training data.
      layout: channels of a token; `section` says in which form they hold states.
      sampler: how windows are sampled.
      horizon: H.
    """
    return world_model.make(
        section,
        denoiser_settings=config.sections[section.denoiser],
        sampler=sampler,
        horizon=horizon,
        layout=layout._replace(changes=section.states == "changes"),
        normalizer=normalizer,
    )


def target_return(config: Config, normalizer: Normalizer) -> TargetReturn:
    """The target return of `config.rollout`."""
    return TargetReturn(config.rollout.target_rule, config.rollout.target_factor, normalizer)
