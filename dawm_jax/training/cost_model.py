"""What a run will do and about how long it takes here, before it starts."""

import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dawm_jax.data import windows
from dawm_jax.data.windows import Replay
from dawm_jax.methods.registry import Assembly, real_fraction
from dawm_jax.models import networks
from dawm_jax.runtime import parallel
from dawm_jax.runtime.metrics import format_seconds
from dawm_jax.training import fused

# Share of the matrix-multiply rate that the training programs reach: on two CPU cores 0.3
# (world model) to 0.7 (TD3+BC) were measured. On an accelerator small kernels are bound by
# their launch, of about this many seconds each; both only answer "minutes or hours?".
_EFFICIENCY = 0.4
_LAUNCH_SECONDS = 3e-6
_LONG_SECONDS = 3600.0
# Values that devices exchange for each parameter of a model. The gradient of a convolution over
# few steps crosses as that of its banded matrix, before it is folded into taps: counted for the
# quick U-Net (results/scaling).
_EXCHANGED = {"world_model": 1.235}


class StageCost(NamedTuple):
    """What a stage computes, whatever it runs on.

    Attributes:
      text: the stage, for people.
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


def plan(config: Any, parts: Assembly, replay: Replay) -> list[str]:
    """Lines for people: the stages, their rough durations, and a shorter variant if long."""
    rate = matmul_rate()
    lines = [
        f"devices: {parallel.describe_devices()}; float32 matrix products run at "
        f"{rate / 1e9:,.0f} GFLOP/s"
    ]
    total = 0.0
    for stage in stages(config, parts, replay):
        seconds = stage.steps * stage.seeds * _step_seconds(stage.flops, stage.operations, rate)
        total += seconds
        lines.append(f"will run {stage.text}: about {format_seconds(seconds)}")
    lines.append(f"about {format_seconds(total)} in all, without compilation and evaluation")
    if total > _LONG_SECONDS and "quick" not in config.variant:
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


def stages(config: Any, parts: Assembly, replay: Replay) -> Iterator[StageCost]:
    """Every stage of a run, counted from its lowered programs."""
    key = jax.random.key(0)
    keep = lambda tree: tree
    training, roll = config.training, config.rollout
    models = None
    if training.real_fraction < 1.0:
        states = {}
        for name, model in parts.models.items():
            state = states[name] = jax.eval_shape(model.init, key)
            step = lambda s, r, f=model: f.step(s, key, r, keep, keep)
            section, size = model.section, networks.count_parameters(state.params)
            text = f"{name.replace('_', ' ')}, {size:,} parameters, {section.steps:,} steps of "
            text += f"{section.batch_size}"
            exchanged = round(size * _EXCHANGED.get(name, 1.0))
            yield StageCost(text, section.steps, *_cost(step, state, replay), size, exchanged)
        models = fused.Models(**{name: state.average for name, state in states.items()})
    if parts.plan is not None:
        yield _planning(config, parts, models, replay)
        return
    imagine = parts.imagine
    if models is not None and imagine is not None:
        starts = jnp.zeros(parts.num_windows, jnp.int32)
        flops, operations = _cost(
            lambda m, r: imagine(m, key, windows.gather_conditions(r, starts)),
            models,
            replay,
        )
        rounds = training.updates // roll.updates_per_round
        rounds += roll.prefill_transitions // (roll.windows_per_round * config.horizon)
        transitions = rounds * roll.windows_per_round * config.horizon
        text = f"generation, {transitions:,} transitions for each of {config.num_seeds} seed(s)"
        # The cost of a scan is reported for one turn.
        turns = config.horizon if config.method == "one_step" else roll.sampling_steps
        yield StageCost(text, rounds, flops * turns, operations * turns, seeds=config.num_seeds)
    agent = parts.agent
    draw = {"num_batches": agent.batches_per_update, "batch_size": training.batch_size}

    def update(run, replay):
        batches = fused.draw_batches(
            key, run.buffer, replay, real_fraction=real_fraction(config), **draw
        )
        return agent.update(run.agent, batches, key)

    cost = _cost(update, jax.eval_shape(parts.init_run, key), replay)
    updates = f"{training.updates:,} updates of {training.batch_size}"
    yield StageCost(
        f"{config.agent}, {config.num_seeds} seed(s) x {updates}",
        training.updates // agent.batches_per_update,
        *cost,
        seeds=config.num_seeds,
        shared=False,
    )


def _planning(config, parts, models, replay) -> StageCost:
    """The final evaluation of a method that plans, of episodes as long as the data's."""
    section, planner = config.evaluation, config.planner
    episodes = section.final_episodes * config.num_seeds
    observations = jnp.zeros((episodes, replay.state_size))
    cost = _cost(lambda m, o: parts.plan(m, jax.random.key(0), o), models, observations)
    steps = len(replay) // int(jnp.unique(replay.episode_end).size)
    text = f"planning, {episodes} episodes of about {steps} steps, {planner.sampling_steps} each"
    return StageCost(text, steps * planner.sampling_steps, *cost)


def _cost(function, *arguments) -> tuple[float, int]:
    """FLOPs and number of operations of a function, from its lowered program."""
    shapes = jax.eval_shape(lambda *a: a, *arguments)
    lowered = jax.jit(function).lower(*shapes)
    analysis = lowered.cost_analysis() or {}
    return float(analysis.get("flops", 0.0)), lowered.as_text().count(" = stablehlo.")


def _step_seconds(flops: float, operations: int, rate: float) -> float:
    launches = 0.0 if jax.default_backend() == "cpu" else operations * _LAUNCH_SECONDS
    return max(flops / (_EFFICIENCY * rate), launches)
