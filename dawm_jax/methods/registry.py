"""From a configuration to pure functions with their hyper-parameters bound.

Training and loading a finished run build the same functions here, so that a checkpoint
plus config.json is all that a policy or a world model needs; `build_replay` adds the data
that a configuration names.

`config.method` decides which models are trained and what the agent learns from:
  dawm              diffused states and rewards, inverse dynamics -> transitions
  dwm               the same diffusion -> value expansions of the critics' target
  joint             diffused states, actions and rewards -> transitions
  one_step          Gaussian dynamics, cloned policy -> transitions
  decision_diffuser diffused states, inverse dynamics -> plans; there is no agent
"""

import functools
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dawm_jax import agents
from dawm_jax.data import dataset as data
from dawm_jax.data import windows
from dawm_jax.envs import simulate
from dawm_jax.methods import synthetic as rollout
from dawm_jax.models import factories as models
from dawm_jax.models import gaussian_dynamics as dynamics
from dawm_jax.models import world_model
from dawm_jax.models.factories import ActionModel, Dynamics, Sampling, Trainable, WorldModel
from dawm_jax.training import fused
from dawm_jax.types import Condition, Statistics, UserError

_log = logging.getLogger(__name__)

METHODS = ("dawm", "dwm", "joint", "one_step", "decision_diffuser")

# (models, key, raw observations [B, S]) -> raw actions [B, A]
PlanFn = Callable[[fused.Models, jax.Array, jax.Array], jax.Array]


class Assembly(NamedTuple):
    """Everything a run computes with; None where its method has no such thing.

    Attributes:
      models: what is trained before the agents, in this order, by field of `fused.Models`.
      world_model: its functions.
      inverse_dynamics: its functions.
      agent: the algorithm; what evaluates if there is no `plan`.
      imagine: see `fused.ImagineFn`.
      num_windows: generated a round.
      plan: chooses actions without an agent.
      init_buffer: () -> an empty buffer, or None on real data only.
      init_run: key -> a fresh agent with its empty buffer.
    """

    models: dict[str, Trainable]
    world_model: WorldModel | Dynamics
    inverse_dynamics: ActionModel | None
    agent: agents.Agent
    imagine: fused.ImagineFn | None
    num_windows: int
    plan: PlanFn | None
    init_buffer: Callable[[], rollout.Buffer | None]
    init_run: Callable[[jax.Array], fused.Run]


class _Method(NamedTuple):
    """A method's models, and what they generate."""

    models: dict[str, Any]
    imagine: fused.ImagineFn | None = None
    plan: PlanFn | None = None


def build_replay(config: Any, dataset: data.OfflineDataset) -> tuple[windows.Replay, Statistics]:
    """The episodes that `config` uses of a dataset, on the device.

    They are checked against the environment that the agents will be evaluated in.

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
        data.top_episodes(dataset, config.top_fraction),
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
    builders = {
        "dawm": _dawm,
        "dwm": _dwm,
        "joint": _joint,
        "one_step": _one_step,
        "decision_diffuser": _decision_diffuser,
    }
    if config.method not in builders:
        raise UserError(
            f"config.method: expected one of {', '.join(METHODS)}, got {config.method!r}"
        )
    method = builders[config.method](config, statistics)
    synthetic = config.training.real_fraction < 1.0
    expansions = synthetic and config.method == "dwm"
    sizes = {
        "state_size": statistics.observation_mean.shape[0],
        "action_size": statistics.action_low.shape[0],
    }
    agent = agents.make(
        config.agent,
        config,
        total_updates=config.training.updates,
        return_range=statistics.return_range,
        expansions=expansions,
        **sizes,
    )

    def init_buffer() -> rollout.Buffer | None:
        if not synthetic:
            return None
        capacity, horizon = config.rollout.buffer_capacity, None
        if expansions:  # as many windows as there would be with their transitions
            capacity, horizon = capacity // config.horizon, config.horizon
        return rollout.empty_buffer(capacity, horizon=horizon, **sizes)

    imagine, num_windows = method.imagine, config.rollout.windows_per_round
    if config.rollout.real_actions_only and imagine is not None:
        imagine = _first_steps_of(imagine, config.horizon)
        num_windows *= config.horizon
    return Assembly(
        models=method.models,
        world_model=method.models["world_model"],
        inverse_dynamics=method.models.get("inverse_dynamics"),
        agent=agent,
        imagine=imagine,
        num_windows=num_windows,
        plan=method.plan,
        init_buffer=init_buffer,
        init_run=lambda key: fused.Run(agent.init(key), init_buffer()),
    )


def real_fraction(config: Any) -> float:
    """The share of real transitions in a minibatch.

    Of methods that generate transitions it is the configuration's. The others mix nothing: each row
    of dwm starts from real data as it is, and decision_diffuser trains no agent.
    """
    share = config.training.real_fraction
    return 0.0 if share < 1.0 and config.method in ("dwm", "decision_diffuser") else share


def raw_action(
    agent: agents.Agent, statistics: Statistics, state: Any, observation: jax.Array
) -> jax.Array:
    """An agent's action in environment units, [..., S] raw -> [..., A]."""
    action = agent.act(state, windows.normalise_observation(statistics, observation))
    return windows.denormalise_action(statistics, action)


# --- the methods --------------------------------------------------------------------------


def _dawm(config, statistics) -> _Method:
    """States and rewards by diffusion, actions by inverse dynamics (DAWM, section 3)."""
    model = _diffusion(config, statistics, world_model.DAWM)
    inverse = models.make_inverse_dynamics(config, statistics)

    def imagine(params: fused.Models, key: jax.Array, condition: Condition):
        imagined = model.sample(params.world_model, key, _aimed(config, statistics, condition))
        infer = functools.partial(inverse.infer, params.inverse_dynamics)
        return rollout.complete(imagined, condition.action, infer)

    return _Method({"world_model": model, "inverse_dynamics": inverse}, imagine)


def _dwm(config, statistics) -> _Method:
    """DAWM's diffusion as a value expansion of real states and actions (DWM, section 3.3)."""
    model = _diffusion(config, statistics, world_model.DAWM)

    def imagine(params: fused.Models, key: jax.Array, condition: Condition):
        imagined = model.sample(params.world_model, key, _aimed(config, statistics, condition))
        return rollout.to_expansions(imagined, condition)

    return _Method({"world_model": model}, imagine)


def _joint(config, statistics) -> _Method:
    """Actions are diffused with states and rewards, as in Diffuser and SynthER's kin."""
    model = _diffusion(config, statistics, world_model.JOINT)

    def imagine(params: fused.Models, key: jax.Array, condition: Condition):
        imagined = model.sample(params.world_model, key, _aimed(config, statistics, condition))
        return rollout.to_transitions(imagined)

    return _Method({"world_model": model}, imagine)


def _one_step(config, statistics) -> _Method:
    """A Gaussian model rolled out with a policy cloned from the data (DWM's baseline)."""
    model = models.make_dynamics(config, statistics)
    policy = models.make_policy(config, statistics)

    def imagine(params: fused.Models, key: jax.Array, condition: Condition):
        imagined = dynamics.roll_out(
            key,
            condition,
            predict=functools.partial(model.predict, params.world_model),
            act=functools.partial(policy.infer, params.policy),
            statistics=statistics,
            horizon=config.horizon,
        )
        return rollout.to_transitions(imagined)

    return _Method({"world_model": model, "policy": policy}, imagine)


def _decision_diffuser(config, statistics) -> _Method:
    """Plans states towards a return and acts by inverse dynamics (DD, algorithm 1)."""
    section = config.planner
    model = models.make_world_model(
        config,
        statistics,
        Sampling(**{name: section[name] for name in Sampling._fields}),
        world_model.STATES,
    )
    inverse = models.make_inverse_dynamics(config, statistics)

    def plan(params: fused.Models, key: jax.Array, observation: jax.Array) -> jax.Array:
        state = windows.normalise_observation(statistics, observation)
        wanted = rollout.target_return(
            jnp.zeros(len(state)), statistics, rule="max_fraction", factor=section.target_fraction
        )
        no_action = jnp.zeros((len(state), 0))
        states = model.sample_tokens(params.world_model, key, Condition(state, no_action, wanted))
        action = inverse.infer(params.inverse_dynamics, states[:, 0], states[:, 1])
        return windows.denormalise_action(statistics, action)

    return _Method({"world_model": model, "inverse_dynamics": inverse}, plan=plan)


def _diffusion(config, statistics, layout) -> WorldModel:
    model, roll = config.world_model, config.rollout
    sampling = Sampling(
        horizon=config.horizon,
        diffusion_steps=model.diffusion_steps,
        prediction=model.prediction,
        sampling_steps=roll.sampling_steps,
        guidance=roll.guidance,
        order=roll.order,
        eta=roll.eta,
        temperature=roll.temperature,
    )
    return models.make_world_model(config, statistics, sampling, layout)


def _aimed(config, statistics, condition: Condition) -> Condition:
    """The condition with the target return instead of the start's own."""
    wanted = rollout.target_return(
        condition.return_to_go,
        statistics,
        rule=config.rollout.target_rule,
        factor=config.rollout.target_factor,
    )
    return condition._replace(return_to_go=wanted)


def _first_steps_of(imagine: fused.ImagineFn, horizon: int) -> fused.ImagineFn:
    def first_steps(params: fused.Models, key: jax.Array, condition: Condition):
        return rollout.first_steps(*imagine(params, key, condition), horizon=horizon)

    return first_steps
