"""The stages of a run on the JAX side, compiled from the programs that training runs."""

import dataclasses
import functools
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp

from dawm_jax.benchmark import flops
from dawm_jax.benchmark.measure import Call
from dawm_jax.config import schema
from dawm_jax.config.schema import Config
from dawm_jax.data import replay as replaying
from dawm_jax.data.load import load_dataset
from dawm_jax.data.replay import Replay
from dawm_jax.methods.base import METHODS
from dawm_jax.methods.dawm import Dawm
from dawm_jax.models.base import Trainable, keep
from dawm_jax.models.optim import TrainState
from dawm_jax.runtime import sharding
from dawm_jax.runtime.loop import JittedSteps
from dawm_jax.runtime.sharding import Placement
from dawm_jax.training import setup, stages
from dawm_jax.training.fused import AgentRun, AgentTraining, Inputs
from dawm_jax.training.setup import Setup
from dawm_jax.types import (
    GeneratedWindow,
    Metrics,
    ModelParams,
    Normalizer,
    Params,
    UserError,
)

# Name of each stage that is timed -> its unit.
STAGES = {
    "denoiser_training": "steps",
    "sampling": "windows",
    "inverse_dynamics": "steps",
    "td3_bc": "updates",
    "iql": "updates",
    "fused": "updates",
    "pipeline": "runs",
}
_MODELS = {"denoiser_training": "world_model", "inverse_dynamics": "inverse_dynamics"}
State = TypeVar("State")


@dataclasses.dataclass(frozen=True)
class Problem:
    """What all sides compute with.

    Attributes:
      config: sizes and settings.
      replay: the dataset.
      normalizer: constants fitted on its training data.
    """

    config: Config
    replay: Replay
    normalizer: Normalizer


@dataclasses.dataclass(frozen=True)
class CompiledStage:
    """A stage that is ready to be timed.

    Attributes:
      call: does `units` of the stage's unit and returns when the device is done.
      units: units of one call.
      flops: FLOP of one unit, matrix products alone.
    """

    call: Call
    units: int
    flops: float


def check(config: Config) -> None:
    """Refuses settings whose method has other stages than `STAGES`.

    Raises:
      UserError: the method is not DAWM, or the run would train no models.
    """
    if config.method != "dawm":
        raise UserError(
            "config.method: expected dawm, the method that the benchmark times, got "
            f"{config.method!r}; python -m dawm_jax.benchmark.latency times all methods"
        )


def load(config: Config) -> Problem:
    """The data that the settings name.

    Raises:
      UserError: the data or the settings cannot be used.
    """
    return Problem(config, *setup.build_replay(config, load_dataset(config.dataset)))


def compile_stage(stage: str, problem: Problem, *, units: int, seeds: int = 1) -> CompiledStage:
    """Compiles a stage.

    Args:
      stage: one of STAGES.
      problem: settings and data.
      units: units of one call: gradient steps, critic updates, or batches of windows. "pipeline"
        ignores it: one call is one run with the steps of the settings.
      seeds: agents that are trained together, for the stages that train agents. A unit is one
        update of one agent.

    Raises:
      ValueError: units that are not whole cycles of the agent or rounds of "fused".
    """
    if stage in _MODELS:
        return _model_training(_MODELS[stage], problem, units)
    if stage == "sampling":
        return _sampling(problem, units)
    if stage == "pipeline":
        return _pipeline(problem)
    return _agent_training(stage, problem, units, seeds)


# --- one stage ----------------------------------------------------------------------------


def _model_training(name: str, problem: Problem, units: int) -> CompiledStage:
    parts, placement = _set_up(problem, problem.config)
    model, replay = parts.method.models[name], placement.replicate(problem.replay)
    steps = _model_steps(model, placement, replay)
    state = placement.replicate(jax.jit(model.init)(jax.random.key(0)))
    return CompiledStage(_continued(steps, state, units), units, _step_flops(model, replay))


def _sampling(problem: Problem, units: int) -> CompiledStage:
    parts, placement = _set_up(problem, problem.config)
    method, num_windows = parts.method, problem.config.rollout.windows_per_round
    assert isinstance(method, Dawm)  # see `check`

    def sample(params: Params, key: jax.Array, replay: Replay) -> GeneratedWindow:
        """`units` batches of windows from random training steps."""

        def one_batch(carry: None, index: jax.Array) -> tuple[None, GeneratedWindow]:
            key_starts, key_sample = jax.random.split(jax.random.fold_in(key, index))
            starts = jax.random.randint(key_starts, (num_windows,), 0, replay.num_train)
            condition = placement.shard_windows(replaying.gather_conditions(replay, starts))
            aimed = method.target.aim(condition)
            return carry, method.world_model.sample(params, key_sample, aimed)

        return jax.lax.scan(one_batch, None, jnp.arange(units))[1]

    key, replay = placement.replicate((jax.random.key(0), problem.replay))
    params = placement.replicate(jax.jit(method.world_model.init)(key).average)
    compiled = jax.jit(sample).lower(params, key, replay).compile()
    total = units * num_windows
    return CompiledStage(
        lambda: jax.block_until_ready(compiled(params, key, replay)),
        total,
        flops.matmul_flops(sample, params, key, replay) / total,
    )


def _agent_training(stage: str, problem: Problem, units: int, seeds: int) -> CompiledStage:
    synthetic = stage == "fused"
    config = with_agent(problem.config, problem.config.agent if synthetic else stage, synthetic)
    parts, placement = _set_up(problem, config, seeds=seeds)
    training = parts.training
    assert training is not None  # see `check`
    if not synthetic:  # without generation one call is one round
        training = dataclasses.replace(training, updates_per_round=units)
    per_round = training.updates_per_round
    if units % per_round or per_round % training.agent.batches_per_update:
        raise ValueError(f"{stage}: {units} updates are not whole rounds or cycles")
    models = _fresh_models(parts, placement) if synthetic else None
    inputs = Inputs(models, placement.replicate(problem.replay))
    keys = jax.random.split(jax.random.key(0), seeds)
    steps = _agent_steps(training, placement, keys, inputs)
    return CompiledStage(
        _continued(steps, stages.init_agents(training, keys, placement), units),
        units * seeds,
        _training_flops(training, inputs, units) / units,
    )


def with_agent(config: Config, agent: str, synthetic: bool) -> Config:
    """The settings under which an agent learns from synthetic rows alone, or from real ones."""
    return schema.replace(
        config, {"agent": agent, "training.real_fraction": 0.0 if synthetic else 1.0}
    )


# --- a whole run --------------------------------------------------------------------------


def _pipeline(problem: Problem) -> CompiledStage:
    """One run: both models, the prefill of the buffer, and the agent."""
    config = with_agent(problem.config, problem.config.agent, synthetic=True)
    parts, placement = _set_up(problem, config)
    training = parts.training
    assert training is not None  # see `check`
    replay = placement.replicate(problem.replay)
    fits = {name: _fit(m, placement, replay) for name, m in parts.method.models.items()}
    keys = jax.random.split(jax.random.key(0), 1)
    placed_keys = placement.place_seeds(keys)
    inputs = Inputs(_fresh_models(parts, placement), replay)
    runs = stages.init_agents(training, keys, placement)
    num_rounds, num_updates = setup.prefill_rounds(config), config.training.updates
    prefill = functools.partial(training.prefill, num_rounds=num_rounds)
    fill = placement.jit_seeds(prefill).lower(runs.buffer, placed_keys, inputs).compile()
    steps = _agent_steps(training, placement, keys, inputs)
    update = steps.lower(runs, num_updates).compile()

    def call() -> None:
        inputs = Inputs({name: fit() for name, fit in fits.items()}, replay)
        runs = stages.init_agents(training, keys, placement)
        runs = AgentRun(runs.agent, fill(runs.buffer, placed_keys, inputs))
        jax.block_until_ready(update(runs, placed_keys, jnp.int32(0), inputs))

    total = _training_flops(training, inputs, num_updates)
    total += flops.matmul_flops(prefill, training.init_buffer(), keys[0], inputs)
    for model in parts.method.models.values():
        total += model.settings.steps * _step_flops(model, replay)
    return CompiledStage(call, 1, total)


def _fit(model: Trainable, placement: Placement, replay: Replay) -> Callable[[], Params]:
    """Compiles the training of a model from its start; returns the averaged parameters."""
    key, init, num_steps = jax.random.key(0), jax.jit(model.init), model.settings.steps
    steps = _model_steps(model, placement, replay)
    steps.compile(placement.replicate(init(key)), num_steps)
    return lambda: steps(placement.replicate(init(key)), 0, num_steps)[0].average


# --- what the stages share ----------------------------------------------------------------


def _set_up(problem: Problem, config: Config, *, seeds: int = 1) -> tuple[Setup, Placement]:
    """What a run with these settings computes with, on all devices."""
    placement = sharding.place(
        config.parallel,
        num_seeds=seeds,
        batch_sizes=stages.shared_batch_sizes(config, METHODS.get(config.method)),
    )
    parts = setup.make(config, problem.normalizer, shard_windows=placement.shard_windows)
    return parts, placement


def _model_steps(model: Trainable, placement: Placement, replay: Replay) -> JittedSteps[TrainState]:
    return JittedSteps(
        stages.model_steps(model, placement),
        key=placement.replicate(jax.random.key(0)),
        constants=replay,
        placement=placement,
        over_seeds=False,
    )


def _agent_steps(
    training: AgentTraining, placement: Placement, keys: jax.Array, inputs: Inputs
) -> JittedSteps[AgentRun]:
    return JittedSteps(
        training.step,
        key=placement.place_seeds(keys),
        constants=inputs,
        placement=placement,
        over_seeds=True,
    )


def _fresh_models(parts: Setup, placement: Placement) -> ModelParams:
    """Initial parameters of all models: the duration of a program does not depend on them."""
    key, models = jax.random.key(0), parts.method.models
    return placement.replicate({name: jax.jit(m.init)(key).average for name, m in models.items()})


def _continued(steps: JittedSteps[State], state: State, num_steps: int) -> Call:
    """Compiles the steps; each call starts from the state in which the previous one ended."""
    steps.compile(state, num_steps)

    def call() -> None:
        nonlocal state
        state, metrics = steps(state, 0, num_steps)
        jax.block_until_ready((state, metrics))

    return call


def _step_flops(model: Trainable, replay: Replay) -> float:
    """Of one gradient step of a model."""
    key = jax.random.key(0)

    def step(state: TrainState, replay: Replay) -> tuple[TrainState, Metrics]:
        return model.step(state, key, replay, shard=keep, mean=keep)

    return flops.matmul_flops(step, jax.eval_shape(model.init, key), replay)


def _training_flops(training: AgentTraining, inputs: Inputs, num_updates: int) -> float:
    """Of some updates of one agent, with the generation of their rounds."""
    key = jax.random.key(0)
    run = jax.eval_shape(training.init, key)
    step = functools.partial(training.step, num_steps=num_updates)
    return flops.matmul_flops(step, run, key, jnp.int32(0), inputs)
