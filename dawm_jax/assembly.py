"""From a configuration to pure functions with their hyper-parameters bound.

Training and loading a finished run build the same functions here, so that a checkpoint
plus config.json is all that a policy or a world model needs; `build_replay` adds the data
that a configuration names.
"""

import functools
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dawm_jax import (
    agents,
    data,
    diffusion,
    fused,
    inverse_dynamics,
    learner,
    networks,
    rollout,
    simulate,
    windows,
    world_model,
)
from dawm_jax.types import Condition, Statistics, UserError

_log = logging.getLogger(__name__)

_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


class WorldModel(NamedTuple):
    """The world model's functions.

    Attributes:
      init: key -> training state.
      step: (state, key, replay, shard, mean) -> (state, metrics), one update.
      errors: (params, window, noise) -> denoising error per level.
      levels: diffusion steps of `errors`.
      sample: (params, key, condition) -> generated windows.
    """

    init: Callable[[jax.Array], learner.TrainState]
    step: Callable[..., tuple[learner.TrainState, learner.Metrics]]
    errors: Callable[..., jax.Array]
    levels: tuple[int, ...]
    sample: Callable[..., world_model.Imagined]


class InverseDynamics(NamedTuple):
    """The inverse dynamics model's functions.

    Attributes:
      init: key -> training state.
      step: (state, key, replay, shard, mean) -> (state, metrics), one update.
      errors: (params, transitions) -> held-out errors.
      infer: (params, state, next_state) -> actions in [-1, 1].
    """

    init: Callable[[jax.Array], learner.TrainState]
    step: Callable[..., tuple[learner.TrainState, learner.Metrics]]
    errors: Callable[..., learner.Metrics]
    infer: Callable[..., jax.Array]


class Assembly(NamedTuple):
    """Everything a run computes with.

    Attributes:
      world_model: its functions.
      inverse_dynamics: its functions.
      agent: the algorithm.
      imagine: see `fused.ImagineFn`.
      init_buffer: () -> an empty buffer, or None on real data only.
      init_run: key -> a fresh agent with its empty buffer.
    """

    world_model: WorldModel
    inverse_dynamics: InverseDynamics
    agent: agents.Agent
    imagine: fused.ImagineFn
    init_buffer: Callable[[], rollout.Buffer | None]
    init_run: Callable[[jax.Array], fused.Run]


def build_replay(config: Any, dataset: data.OfflineDataset) -> tuple[windows.Replay, Statistics]:
    """The dataset on the device, checked against the environment it will be evaluated in.

    Raises:
      UserError: they do not fit, or an option is bad; see `windows.build`.
    """
    env = simulate.make_environment(config.environment)
    action_space, observation_space = env.action_space, env.observation_space
    env.close()
    if observation_space.shape[0] != dataset.observations.shape[1]:
        raise UserError(
            f"dataset {dataset.name} has {dataset.observations.shape[1]} observation dimensions, "
            f"{config.environment} {observation_space.shape[0]}; choose the configs/ file of "
            "the dataset's environment, or set --config.environment"
        )
    if dataset.environment not in (None, config.environment):
        _log.warning(
            "%s was recorded in %s and will be evaluated in %s",
            dataset.name,
            dataset.environment,
            config.environment,
        )
    return windows.build(
        dataset,
        action_low=action_space.low,
        action_high=action_space.high,
        discount=config.discount,
        return_scale=config.return_scale,
        timeout_value=config.timeout_value,
        held_out_fraction=config.held_out_fraction,
    )


def assemble(config: Any, statistics: Statistics) -> Assembly:
    """Builds a run's functions.

    Args:
      config: of the run; see configs/common.py.
      statistics: of its training data.

    Raises:
      UserError: a value out of its range.
    """
    if config.rollout.target_rule not in rollout.TARGET_RULES:
        raise UserError(
            "config.rollout.target_rule: expected one of "
            f"{', '.join(rollout.TARGET_RULES)}, got {config.rollout.target_rule!r}"
        )
    sizes = {
        "state_size": statistics.observation_mean.shape[0],
        "action_size": statistics.action_low.shape[0],
    }
    model = _world_model(config, statistics, **sizes)
    inverse = _inverse_dynamics(config, statistics, **sizes)
    agent = agents.make(
        config.agent,
        config,
        total_updates=config.training.updates,
        return_range=statistics.return_range,
        **sizes,
    )

    def imagine(models: fused.Models, key: jax.Array, condition: Condition):
        wanted = rollout.target_return(
            condition.return_to_go,
            statistics,
            rule=config.rollout.target_rule,
            factor=config.rollout.target_factor,
        )
        return rollout.rollout(
            key,
            condition._replace(return_to_go=wanted),
            sample=functools.partial(model.sample, models.world_model),
            infer=functools.partial(inverse.infer, models.inverse_dynamics),
        )

    def init_buffer() -> rollout.Buffer | None:
        if config.training.real_fraction == 1.0:
            return None
        return rollout.empty_buffer(config.rollout.buffer_capacity, **sizes)

    init_run = lambda key: fused.Run(agent.init(key), init_buffer())
    return Assembly(model, inverse, agent, imagine, init_buffer, init_run)


def raw_action(
    agent: agents.Agent, statistics: Statistics, state: Any, observation: jax.Array
) -> jax.Array:
    """An agent's action in environment units, [..., S] raw -> [..., A]."""
    action = agent.act(state, windows.normalise_observation(statistics, observation))
    return windows.denormalise_action(statistics, action)


def _world_model(config, statistics, *, state_size, action_size) -> WorldModel:
    section = config.world_model
    if section.dtype not in _DTYPES:
        raise UserError(
            f"config.world_model.dtype: expected one of {', '.join(_DTYPES)}, got {section.dtype!r}"
        )
    if section.prediction not in diffusion.PREDICTIONS:
        raise UserError(
            "config.world_model.prediction: expected one of "
            f"{', '.join(diffusion.PREDICTIONS)}, got {section.prediction!r}"
        )
    if section.dim % section.groups:
        raise UserError(
            f"config.world_model.dim: expected a multiple of the {section.groups} groups, "
            f"got {section.dim}"
        )
    diffusion.ddim_steps(section.diffusion_steps, config.rollout.sampling_steps)
    network = networks.TemporalUNet(
        dim=section.dim,
        multipliers=tuple(section.multipliers),
        kernel_size=section.kernel_size,
        groups=section.groups,
        dtype=_DTYPES[section.dtype],
    )
    bound = {
        "network": network,
        "alpha_bar": diffusion.cosine_schedule(section.diffusion_steps),
        "prediction": section.prediction,
        "statistics": statistics,
    }
    optimizer = learner.adam(
        section.learning_rate,
        schedule=section.schedule,
        total_steps=section.steps,
        warmup_steps=section.warmup_steps,
    )

    def init(key):
        params = world_model.init(
            key,
            network=network,
            horizon=config.horizon,
            state_size=state_size,
            action_size=action_size,
        )
        return learner.init_state(params, optimizer)

    def step(state, key, replay, shard, mean):
        key_starts, key_draws = jax.random.split(key)
        starts = jax.random.randint(key_starts, (section.batch_size,), 0, replay.num_train)
        draws = world_model.draw(
            key_draws,
            batch_size=section.batch_size,
            horizon=config.horizon,
            channels=state_size + world_model.EXTRA_CHANNELS,
            num_steps=section.diffusion_steps,
            condition_dropout=section.condition_dropout,
        )
        starts, draws = shard((starts, draws))
        window = windows.gather_windows(replay, starts, horizon=config.horizon)
        return learner.fit_step(
            state,
            lambda params: world_model.loss(params, window, draws, **bound),
            optimizer,
            ema_decay=section.ema_decay,
            mean=mean,
        )

    # Five levels from nearly clean to pure noise.
    levels = tuple(round(f * (section.diffusion_steps - 1)) for f in (0.0, 0.25, 0.5, 0.75, 1.0))
    return WorldModel(
        init=init,
        step=step,
        errors=functools.partial(world_model.denoising_errors, levels=levels, **bound),
        levels=levels,
        sample=functools.partial(
            world_model.sample,
            horizon=config.horizon,
            num_steps=config.rollout.sampling_steps,
            guidance=float(config.rollout.guidance),
            eta=config.rollout.eta,
            temperature=config.rollout.temperature,
            **bound,
        ),
    )


def _inverse_dynamics(config, statistics, *, state_size, action_size) -> InverseDynamics:
    section = config.inverse_dynamics
    network = networks.TanhMlp(tuple(section.hidden), action_size)
    optimizer = learner.adam(
        section.learning_rate, schedule=section.schedule, total_steps=section.steps
    )

    def init(key):
        params = inverse_dynamics.init(key, network=network, state_size=state_size)
        return learner.init_state(params, optimizer)

    def step(state, key, replay, shard, mean):
        rows = jax.random.randint(key, (section.batch_size,), 0, replay.num_train)
        batch = windows.gather_transitions(replay, shard(rows))
        return learner.fit_step(
            state,
            lambda params: inverse_dynamics.loss(params, batch, network=network),
            optimizer,
            ema_decay=section.ema_decay,
            mean=mean,
        )

    return InverseDynamics(
        init=init,
        step=step,
        errors=functools.partial(
            inverse_dynamics.errors,
            network=network,
            action_half_range=(statistics.action_high - statistics.action_low) / 2,
        ),
        infer=functools.partial(inverse_dynamics.infer, network=network),
    )
