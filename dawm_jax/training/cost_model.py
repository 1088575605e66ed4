"""What a run will do and about how long it takes here, before it starts."""

import functools
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, jaxpr_as_fun

from dawm_jax.config.schema import Config
from dawm_jax.data import replay as replaying
from dawm_jax.data.replay import Replay
from dawm_jax.methods.base import METHODS, Generated, PlanningMethod
from dawm_jax.models import networks
from dawm_jax.models.base import Trainable, keep
from dawm_jax.models.optim import TrainState
from dawm_jax.runtime import sharding
from dawm_jax.runtime.metrics import format_seconds
from dawm_jax.training import setup
from dawm_jax.training.fused import AgentTraining, Inputs
from dawm_jax.training.setup import Setup
from dawm_jax.types import Metrics, ModelParams, Rows

# Share of the matrix-multiply rate that the training programs reach: on two CPU cores 0.6 by the
# world model and 0.7 by TD3+BC. One number for both tells a run of minutes from one of hours.
_EFFICIENCY = 0.5
# Seconds that one operation of a lowered program takes on an accelerator, where launching a small
# kernel takes longer than computing it. One H100 takes 0.15 us (TD3+BC) to 0.22 us (world model) at
# full size: rates in results/benchmark/h100, operations as `stages` counts them.
OPERATION_SECONDS = 2e-7
_LONG_SECONDS = 3600.0


class StageCost(NamedTuple):
    """What a stage computes, whatever it runs on.

    Attributes:
      text: the stage and its size, in words.
      steps: that follow one another.
      flops: of one step, one seed.
      operations: of one step's lowered program; seeds share them.
      parameters: that a step updates, where devices share its batch; else 0.
      exchanged: values, gradients, that those devices then exchange each step.
      seeds: that are computed beside each other.
      shared: whether devices can share one seed's step by its batch.
    """

    text: str
    steps: int
    flops: float
    operations: int
    parameters: int = 0
    exchanged: int = 0
    seeds: int = 1
    shared: bool = True


def steps_done(workdir: pathlib.Path) -> dict[str, int]:
    """Steps of each stage at the newest checkpoint in a run's folder, damaged or not."""
    found: dict[str, int] = {}
    for path in (workdir / "checkpoints").glob("*/*"):
        if path.name.isdecimal():
            stage = path.parent.name
            found[stage] = max(int(path.name), found.get(stage, 0))
    return found


def plan(parts: Setup, replay: Replay, done: Mapping[str, int] | None = None) -> list[str]:
    """Lines of the log: the stages, their rough durations, and a shorter variant if long.

    Args:
      parts: what the run computes with.
      replay: its data.
      done: steps that are done, by stage; only what is left is counted.
    """
    costs = list(stages(parts, replay, done))
    if not costs:
        return ["all stages are trained"]
    rate = matmul_rate()
    lines = [
        f"devices: {sharding.describe_devices()}; float32 matrix products run at "
        f"{rate / 1e9:,.0f} GFLOP/s"
    ]
    total = 0.0
    for stage in costs:
        seconds = stage.steps * stage.seeds * _step_seconds(stage.flops, stage.operations, rate)
        total += seconds
        lines.append(f"will run {stage.text}: about {format_seconds(seconds)}")
    tunes = parts.config.online.steps > 0
    left_out = "compilation, evaluation and simulation" if tunes else "compilation and evaluation"
    lines.append(f"about {format_seconds(total)} in all, without {left_out}")
    if total > _LONG_SECONDS and "quick" not in parts.config.variant:
        lines.append("that is long for this device; the variant :quick takes minutes on a CPU")
    return lines


def matmul_rate(size: int = 1024, seconds: float = 0.2) -> float:
    """Float32 matrix-multiply rate of the first device, FLOP/s."""
    x = jnp.ones((size, size))
    product = jax.jit(lambda x: x @ x)
    jax.block_until_ready(product(x))
    start, count = time.monotonic(), 0
    while time.monotonic() - start < seconds:
        jax.block_until_ready(product(x))
        count += 1
    return count * 2 * size**3 / (time.monotonic() - start)


def stages(
    parts: Setup, replay: Replay, done: Mapping[str, int] | None = None
) -> Iterator[StageCost]:
    """Every stage of a run that has steps left, counted from its lowered programs; see `plan`."""
    models, states, done = None, {}, done or {}
    if METHODS.get(parts.config.method).trains_models(parts.config):
        states = {
            name: jax.eval_shape(model.init, jax.random.key(0))
            for name, model in parts.method.models.items()
        }
        for name, model in parts.method.models.items():
            if done.get(name, 0) < model.settings.steps:
                yield _fitting(name, model, states[name], replay, done.get(name, 0))
        models = {name: state.average for name, state in states.items()}
    if parts.planner is not None:
        yield _planning(parts.config, parts.planner, models, replay)
        return
    assert parts.training is not None
    if done.get("agent", 0) < parts.config.training.updates:
        first = done.get("agent", 0)
        if parts.training.method is not None:
            yield from _generation(parts.config, parts.training, models, replay, first)
        yield _updates(parts.config, parts.training, models, replay, first)
    first = done.get("online", 0)
    if first < parts.config.online.steps:
        yield _fine_tuning(parts.config, parts.training, models, replay, first)
        if count := _refits_left(parts.config, first):
            for name, model in parts.method.models.items():
                yield _refitting(name, model, states[name], replay, parts.config, count)


def _left(total: int, done: int) -> str:
    """How many of the steps of a stage are left, in words."""
    return f"the last {total - done:,} of {total:,}" if done else f"{total:,}"


def _fitting(
    name: str, model: Trainable, state: TrainState, replay: Replay, done: int
) -> StageCost:
    """The fit of a model after `done` steps."""
    settings, size = model.settings, networks.count_parameters(state.params)
    text = (
        f"{name.replace('_', ' ')}, {size:,} parameters, {_left(settings.steps, done)} steps of "
        f"{settings.batch_size}"
    )
    # Devices exchange one gradient per parameter. The U-Net's convolutions over few steps exchange
    # a quarter more, the gradient of a banded matrix, which is left out here.
    return StageCost(text, settings.steps - done, *_step_cost(model, state, replay), size, size)


def _step_cost(model: Trainable, state: TrainState, replay: Replay) -> tuple[float, int]:
    """FLOPs and number of operations of one gradient step of a model."""

    def step(state: TrainState, replay: Replay) -> tuple[TrainState, Metrics]:
        return model.step(state, jax.random.key(0), replay, shard=keep, mean=keep)

    return _cost(step, state, replay)


def _refits_left(config: Config, done: int) -> int:
    """Refits of each model that are left after `done` environment steps of a fine-tuning."""
    online = config.online
    if not online.refit_every or not setup.online_limits(config).generated:
        return 0
    made_before = lambda step: max(step - 1, 0) // online.refit_every
    return made_before(online.steps) - made_before(done)


def _refitting(
    name: str, model: Trainable, state: TrainState, replay: Replay, config: Config, count: int
) -> StageCost:
    """`count` refits of a model, which each seed has for itself."""
    steps, seeds = config.online.refit_steps, config.num_seeds
    text = f"{count} refits of {name.replace('_', ' ')}, {steps:,} steps each, {seeds} seed(s)"
    cost = _step_cost(model, state, replay)
    return StageCost(text, count * steps, *cost, seeds=seeds, shared=False)


def _generation(
    config: Config,
    training: AgentTraining,
    models: ModelParams | None,
    replay: Replay,
    done: int,
) -> Iterator[StageCost]:
    """The generation after `done` updates; before the first, what fills the buffer too."""
    left = config.training.updates - done
    if training.supply == "sweep" and not done:
        text = f"expansion of {replay.num_train:,} training steps for all seeds"
        pieces, windows = training.sweep_pieces(replay), training.sweep_windows
        yield _calls(text, pieces, windows, training, models, replay)
    if training.supply == "minibatch":
        batches = training.agent.batches_per_update
        calls, windows = left // batches, batches * (training.batch_size - training.num_real)
    else:
        calls, windows = left // config.rollout.updates_per_round, training.windows_per_round
        calls += setup.prefill_rounds(config) if training.supply == "rounds" and not done else 0
    text = f"generation, {calls * windows:,} windows for each of {config.num_seeds} seed(s)"
    cost = _calls(text, calls, windows, training, models, replay)
    yield cost._replace(seeds=config.num_seeds)


def _calls(
    text: str,
    calls: int,
    windows: int,
    training: AgentTraining,
    models: ModelParams | None,
    replay: Replay,
) -> StageCost:
    """A number of calls of the method, each for so many windows."""
    agent = jax.eval_shape(training.agent.init, jax.random.key(0))

    def generate(models: ModelParams, replay: Replay, agent: Any) -> Generated:
        method = training.generator(functools.partial(training.agent.act, agent))
        condition = replaying.gather_conditions(replay, jnp.zeros(windows, jnp.int32))
        return method.generate(models, jax.random.key(0), condition)

    return StageCost(text, calls, *_cost(generate, models, replay, agent))


def _updates(
    config: Config,
    training: AgentTraining,
    models: ModelParams | None,
    replay: Replay,
    done: int,
) -> StageCost:
    """The updates of the agents after `done` of them; `_generation` counts generated rows."""
    left = _left(config.training.updates, done)
    updates = f"{left} updates of {config.training.batch_size}"
    text = f"{config.agent}, {config.num_seeds} seed(s) x {updates}"
    return _learning(text, config.training.updates - done, config, training, models, replay)


def _fine_tuning(
    config: Config,
    training: AgentTraining,
    models: ModelParams | None,
    replay: Replay,
    done: int,
) -> StageCost:
    """The updates of a fine-tuning after `done` environment steps.

    The simulator's steps and the rows that are generated after refits are not counted.
    """
    online = config.online
    text = (
        f"fine-tuning, {config.num_seeds} seed(s) x {_left(online.steps, done)} environment steps "
        f"with {online.updates_per_step} updates each"
    )
    updates = (online.steps - done) * online.updates_per_step
    return _learning(text, updates, config, training, models, replay)


def _learning(
    text: str,
    updates: int,
    config: Config,
    training: AgentTraining,
    models: ModelParams | None,
    replay: Replay,
) -> StageCost:
    """A number of critic updates of every seed."""
    key = jax.random.key(0)
    run, inputs = jax.eval_shape(training.init, key), Inputs(models, replay)
    batches = jax.eval_shape(training.draw_batches, key, run, inputs)

    def update(agent: Any, batches: Rows) -> Any:
        return training.agent.update(agent, batches, jax.random.key(0))

    return StageCost(
        text,
        updates // training.agent.batches_per_update,
        *_cost(update, run.agent, batches),
        seeds=config.num_seeds,
        shared=False,
    )


def _planning(
    config: Config, method: PlanningMethod, models: ModelParams | None, replay: Replay
) -> StageCost:
    """The final evaluation of a method that plans, of episodes as long as the data's."""
    episodes = config.evaluation.final_episodes * config.num_seeds
    observations = jnp.zeros((episodes, replay.state_size))

    def plan(models: ModelParams, observations: jax.Array) -> jax.Array:
        return method.plan(models, jax.random.key(0), observations)

    cost = _cost(plan, models, observations)
    steps = len(replay) // int(jnp.unique(replay.episode_end).size)
    return StageCost(f"planning, {episodes} episodes of about {steps} steps", steps, *cost)


def _cost(function: Callable[..., Any], *arguments: Any) -> tuple[float, int]:
    """FLOPs and number of operations of a function, from its lowered program."""
    shapes = jax.eval_shape(lambda *a: a, *arguments)
    return _cost_of(jax.make_jaxpr(function)(*shapes))


def _cost_of(program: ClosedJaxpr) -> tuple[float, int]:
    """FLOPs and number of operations of a program."""
    flops, operations = _cost_once(program)
    more_flops, more_operations = _repeated(program.jaxpr)
    return flops + more_flops, operations + more_operations


def _repeated(program: Jaxpr) -> tuple[float, int]:
    """What the iterations of a program's scans cost beyond what `_cost_once` counts."""
    flops, operations = 0.0, 0
    for scan in _scans(program):
        body, length = scan.params["jaxpr"], scan.params["length"]
        once, inside = _cost_once(body), _repeated(body.jaxpr)
        flops += (length - 1) * once[0] + length * inside[0]
        operations += (length - 1) * once[1] + length * inside[1]
    return flops, operations


def _cost_once(program: ClosedJaxpr) -> tuple[float, int]:
    """What XLA reports of a program: one iteration of each scan, and of each scan inside of it."""
    shapes = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in program.in_avals]
    lowered = jax.jit(jaxpr_as_fun(program)).lower(*shapes)
    analysis = lowered.cost_analysis() or {}
    return float(analysis.get("flops", 0.0)), lowered.as_text().count(" = stablehlo.")


def _scans(program: Jaxpr) -> Iterator[JaxprEqn]:
    """The scans of a program that are not inside of others, also those in functions it calls."""
    for equation in program.eqns:
        if equation.primitive.name == "scan":
            yield equation
            continue
        for value in equation.params.values():
            if isinstance(value, ClosedJaxpr):
                yield from _scans(value.jaxpr)
            elif isinstance(value, Jaxpr):
                yield from _scans(value)


def _step_seconds(flops: float, operations: int, rate: float) -> float:
    launches = 0.0 if jax.default_backend() == "cpu" else operations * OPERATION_SECONDS
    return max(flops / (_EFFICIENCY * rate), launches)
