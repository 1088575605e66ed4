"""The diffusion model that DAWM, DWM and joint diffusion train with the same settings."""

from dawm_jax.config.schema import Config
from dawm_jax.methods.synthetic import TargetReturn
from dawm_jax.models import world_model
from dawm_jax.models.diffusion import Process
from dawm_jax.models.sampler import Sampler
from dawm_jax.models.tokens import Layout
from dawm_jax.models.world_model import DiffusionWorldModel
from dawm_jax.types import Normalizer


def make(config: Config, normalizer: Normalizer, layout: Layout) -> DiffusionWorldModel:
    """The world model of `config.world_model`, sampled as `config.rollout` says.

    Args:
      config: settings of the run.
      normalizer: constants fitted on the training data.
      layout: channels of a token; `config.world_model` says in which form they hold states.
    """
    section = config.world_model
    return world_model.make(
        section,
        denoiser_settings=config.sections[section.denoiser],
        process=Process.cosine(section.diffusion_steps, section.prediction),
        sampler=Sampler.of(config.rollout),
        horizon=config.horizon,
        layout=layout._replace(changes=section.states == "changes"),
        normalizer=normalizer,
    )


def target_return(config: Config, normalizer: Normalizer) -> TargetReturn:
    """The target return of `config.rollout`."""
    return TargetReturn(config.rollout.target_rule, config.rollout.target_factor, normalizer)
