"""The models that are trained on the dataset before the agents, bound to their configuration."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from dawm_jax.data import windows
from dawm_jax.data.windows import Replay
from dawm_jax.models import diffusion, inverse_dynamics, networks, world_model
from dawm_jax.models import gaussian_dynamics as dynamics
from dawm_jax.models import optim as learner
from dawm_jax.models.world_model import Layout
from dawm_jax.types import Statistics, Transition, UserError

_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


class Trainable(Protocol):
    """What training needs to know of a model.

    Attributes:
      section: of the configuration: steps, batch_size, log_steps, checkpoint_steps, ...
      init: key -> training state.
      step: (state, key, replay, shard, mean) -> (state, metrics), one update.
      errors: (params, replay, rows) -> named arrays, from held-out rows.
    """

    @property
    def section(self) -> Any: ...
    @property
    def init(self) -> Callable[[jax.Array], learner.TrainState]: ...
    @property
    def step(self) -> Callable[..., tuple[learner.TrainState, learner.Metrics]]: ...
    @property
    def errors(self) -> Callable[..., learner.Metrics]: ...


class WorldModel(NamedTuple):
    """A diffusion over windows; a `Trainable`.

    Attributes:
      sample: (params, key, condition) -> generated windows.
      sample_tokens: the same, as tokens.
    """

    section: Any
    init: Callable[[jax.Array], learner.TrainState]
    step: Callable[..., tuple[learner.TrainState, learner.Metrics]]
    errors: Callable[..., learner.Metrics]
    sample: Callable[..., world_model.Imagined]
    sample_tokens: Callable[..., jax.Array]


class ActionModel(NamedTuple):
    """A regression on actions: inverse dynamics, or a cloned policy; a `Trainable`.

    Attributes:
      infer: (params, state, next_state) -> actions in [-1, 1]; a policy's has no next state.
    """

    section: Any
    init: Callable[[jax.Array], learner.TrainState]
    step: Callable[..., tuple[learner.TrainState, learner.Metrics]]
    errors: Callable[..., learner.Metrics]
    infer: Callable[..., jax.Array]


class Dynamics(NamedTuple):
    """A Gaussian one-step model; a `Trainable`.

    Attributes:
      predict: (params, state, action) -> distribution of what follows.
    """

    section: Any
    init: Callable[[jax.Array], learner.TrainState]
    step: Callable[..., tuple[learner.TrainState, learner.Metrics]]
    errors: Callable[..., learner.Metrics]
    predict: Callable[..., dynamics.Prediction]


class Sampling(NamedTuple):
    """How a world model diffuses and is sampled; see configs/common.py for each."""

    horizon: int
    diffusion_steps: int
    prediction: str
    sampling_steps: int
    guidance: float
    order: int
    eta: float
    temperature: float


def make_world_model(
    config: Any, statistics: Statistics, sampling: Sampling, layout: Layout
) -> WorldModel:
    """The diffusion model with the network and training of `config.world_model`.

    Raises:
      UserError: a value out of its range.
    """
    section = config.world_model
    _check_world_model(section, sampling)
    sizes = _sizes(statistics)
    modules = world_model.Networks(
        denoiser=networks.TemporalUNet(
            dim=section.dim,
            multipliers=tuple(section.multipliers),
            kernel_size=section.kernel_size,
            groups=section.groups,
            dtype=_DTYPES[section.dtype],
            # A plan of states alone is made before any action is known.
            on_action=layout.rewards,
        ),
        termination=networks.Mlp(tuple(section.termination_hidden), 1),
    )
    bound = {
        "modules": modules,
        "alpha_bar": diffusion.cosine_schedule(sampling.diffusion_steps),
        "prediction": sampling.prediction,
        "statistics": statistics,
        "layout": layout,
    }
    optimizer = learner.adam(
        section.learning_rate,
        schedule=section.schedule,
        total_steps=section.steps,
        warmup_steps=section.warmup_steps,
    )
    shape = {"horizon": sampling.horizon, "channels": layout.channels(**sizes)}

    def init(key):
        params = world_model.init(
            key, modules=modules, horizon=sampling.horizon, layout=layout, **sizes
        )
        return learner.init_state(params, optimizer)

    def step(state, key, replay, shard, mean):
        key_starts, key_draws = jax.random.split(key)
        starts = jax.random.randint(key_starts, (section.batch_size,), 0, replay.num_train)
        draws = world_model.draw(
            key_draws,
            batch_size=section.batch_size,
            num_steps=sampling.diffusion_steps,
            condition_dropout=section.condition_dropout,
            **shape,
        )
        starts, draws = shard((starts, draws))
        window = windows.gather_windows(replay, starts, horizon=sampling.horizon)
        return learner.fit_step(
            state,
            lambda params: world_model.loss(params, window, draws, **bound),
            optimizer,
            ema_decay=section.ema_decay,
            mean=mean,
        )

    def errors(params, replay, rows):
        window = windows.gather_windows(replay, rows, horizon=sampling.horizon)
        tokens = (len(rows), sampling.horizon + 1, shape["channels"])
        noise = jax.random.normal(jax.random.key(0), tokens)
        # Five levels from nearly clean to pure noise.
        last = sampling.diffusion_steps - 1
        levels = tuple(round(share * last) for share in (0.0, 0.25, 0.5, 0.75, 1.0))
        values = world_model.denoising_errors(params, window, noise, levels=levels, **bound)
        found = {f"error_at_{level}": values[index] for index, level in enumerate(levels)}
        if layout.rewards:
            ended = world_model.termination_loss(params, window, modules=modules)
            found["termination_loss"] = ended
        return found

    settings = {
        "horizon": sampling.horizon,
        "num_steps": sampling.sampling_steps,
        "guidance": float(sampling.guidance),
        "order": sampling.order,
        "eta": sampling.eta,
        "temperature": sampling.temperature,
        **bound,
    }
    return WorldModel(
        section=section,
        init=init,
        step=step,
        errors=errors,
        sample=functools.partial(world_model.sample, **settings),
        sample_tokens=functools.partial(world_model.sample_tokens, **settings),
    )


def _check_world_model(section: Any, sampling: Sampling) -> None:
    if section.dtype not in _DTYPES:
        raise UserError(
            f"config.world_model.dtype: expected one of {', '.join(_DTYPES)}, got {section.dtype!r}"
        )
    if sampling.prediction not in diffusion.PREDICTIONS:
        raise UserError(
            "config.world_model.prediction: expected one of "
            f"{', '.join(diffusion.PREDICTIONS)}, got {sampling.prediction!r}"
        )
    if section.dim % section.groups:
        raise UserError(
            f"config.world_model.dim: expected a multiple of the {section.groups} groups, "
            f"got {section.dim}"
        )
    diffusion.ddim_steps(sampling.diffusion_steps, sampling.sampling_steps)
    diffusion.check_order(sampling.order, sampling.eta)


def make_inverse_dynamics(config: Any, statistics: Statistics) -> ActionModel:
    """The inverse dynamics model of `config.inverse_dynamics`."""
    return _action_model(config, statistics, inverse_dynamics.BOTH_STATES)


def make_policy(config: Any, statistics: Statistics) -> ActionModel:
    """A policy cloned from the data, with the inverse dynamics model's size and training."""
    return _action_model(config, statistics, ("observation",))


def _action_model(config, statistics, inputs: tuple[str, ...]) -> ActionModel:
    section = config.inverse_dynamics
    network = networks.TanhMlp(tuple(section.hidden), _sizes(statistics)["action_size"])
    bound: dict[str, Any] = {"network": network, "inputs": inputs}
    optimizer = learner.adam(
        section.learning_rate, schedule=section.schedule, total_steps=section.steps
    )

    def init(key):
        params = inverse_dynamics.init(key, state_size=_sizes(statistics)["state_size"], **bound)
        return learner.init_state(params, optimizer)

    def errors(params, replay, rows):
        return inverse_dynamics.errors(
            params,
            windows.gather_transitions(replay, rows),
            action_half_range=(statistics.action_high - statistics.action_low) / 2,
            **bound,
        )

    return ActionModel(
        section=section,
        init=init,
        step=_regression_step(
            section, optimizer, functools.partial(inverse_dynamics.loss, **bound)
        ),
        errors=errors,
        infer=functools.partial(inverse_dynamics.infer, network=network),
    )


def make_dynamics(config: Any, statistics: Statistics) -> Dynamics:
    """The Gaussian one-step model of `config.one_step`."""
    section, sizes = config.one_step, _sizes(statistics)
    network = networks.Mlp(tuple(section.hidden), dynamics.output_size(sizes["state_size"]))
    bound: dict[str, Any] = {"network": network, "statistics": statistics}
    optimizer = learner.adam(
        section.learning_rate, schedule=section.schedule, total_steps=section.steps
    )

    def init(key):
        return learner.init_state(dynamics.init(key, network=network, **sizes), optimizer)

    def errors(params, replay, rows):
        return dynamics.errors(params, windows.gather_transitions(replay, rows), **bound)

    return Dynamics(
        section=section,
        init=init,
        step=_regression_step(section, optimizer, functools.partial(dynamics.loss, **bound)),
        errors=errors,
        predict=functools.partial(dynamics.predict, network=network),
    )


def _regression_step(section, optimizer, loss: Callable[..., Any]):
    """The update of a model of single transitions, on training rows; loss(params, batch)."""

    def step(state, key, replay: Replay, shard, mean):
        rows = jax.random.randint(key, (section.batch_size,), 0, replay.num_train)
        batch: Transition = windows.gather_transitions(replay, shard(rows))
        return learner.fit_step(
            state,
            lambda params: loss(params, batch),
            optimizer,
            ema_decay=section.ema_decay,
            mean=mean,
        )

    return step


def _sizes(statistics: Statistics) -> dict[str, int]:
    return {
        "state_size": statistics.observation_mean.shape[0],
        "action_size": statistics.action_low.shape[0],
    }
