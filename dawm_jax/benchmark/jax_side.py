"""The stages as the training runs them: the very programs of `dawm_jax.programs`."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dawm_jax.benchmark import flops
from dawm_jax.data import windows
from dawm_jax.methods import registry as assembly
from dawm_jax.runtime import parallel
from dawm_jax.training import fused, programs
from dawm_jax.types import Statistics

# What is timed, and the unit of each.
STAGES = {
    "denoiser_training": "steps",
    "sampling": "windows",
    "inverse_dynamics": "steps",
    "td3_bc": "updates",
    "iql": "updates",
    "fused": "updates",
    "pipeline": "runs",
}


class Problem(NamedTuple):
    """What every side computes with."""

    config: Any
    replay: windows.Replay
    statistics: Statistics


class Work(NamedTuple):
    """A compiled stage.

    Attributes:
      call: does `units` of the stage's unit, and returns when the device is done.
      units: of a call.
      flops: of one unit, in matrix products.
    """

    call: Callable[[], None]
    units: int
    flops: float


def make(stage: str, problem: Problem, *, units: int, seeds: int = 1) -> Work:
    """Compiles a stage.

    Args:
      stage: one of STAGES.
      problem: sizes and data.
      units: gradient steps, critic updates or batches of windows of one call; a pipeline
        makes one run of what the configuration says.
      seeds: agents beside each other, of the stages that train agents; a unit is then
        still one update of one agent.

    Raises:
      ValueError: units that are not whole cycles of the agent or rounds of "fused".
    """
    if stage in ("denoiser_training", "inverse_dynamics"):
        return _model_training(stage, problem, units)
    if stage == "sampling":
        return _sampling(problem, units)
    if stage == "pipeline":
        return _pipeline(problem)
    return _agent_training(stage, problem, units, seeds)


def with_agent(config: Any, agent: str, *, real: bool) -> Any:
    """The configuration of an agent's training, on real or on generated data only."""
    changed = config.copy_and_resolve_references()
    changed.agent = agent
    changed.training.real_fraction = 1.0 if real else 0.0
    return changed


def _model_training(stage: str, problem: Problem, units: int) -> Work:
    parts = assembly.assemble(problem.config, problem.statistics)
    model = parts.models["world_model" if stage == "denoiser_training" else stage]
    placement = parallel.place("mesh", num_seeds=1, batch_sizes={})
    key, replay = placement.replicate((jax.random.key(0), problem.replay))
    return _repeated(
        programs.model_steps(model, placement, num_steps=units),
        placement.replicate(jax.jit(model.init)(key)),
        (key, replay, jnp.int32(0)),
        units,
    )


def _sampling(problem: Problem, units: int) -> Work:
    parts = assembly.assemble(problem.config, problem.statistics)
    model = parts.models["world_model"]
    num_windows = problem.config.rollout.windows_per_round
    placement = parallel.place("mesh", num_seeds=1, batch_sizes={})

    def sample_batches(params, key, replay):
        def sample_batch(_, index):
            key_starts, key_sample = jax.random.split(jax.random.fold_in(key, index))
            starts = jax.random.randint(key_starts, (num_windows,), 0, replay.num_train)
            condition = placement.shard_windows(windows.gather_conditions(replay, starts))
            return None, parts.world_model.sample(params, key_sample, condition)

        return jax.lax.scan(sample_batch, None, jnp.arange(units))[1]

    key, replay = placement.replicate((jax.random.key(0), problem.replay))
    arguments = (placement.replicate(jax.jit(model.init)(key).params), key, replay)
    program = jax.jit(sample_batches)
    compiled = program.lower(*arguments).compile()
    total = units * num_windows
    return Work(
        lambda: jax.block_until_ready(compiled(*arguments)),
        total,
        flops.matmul_flops(program, *arguments) / total,
    )


def _agent_training(stage: str, problem: Problem, units: int, seeds: int) -> Work:
    config = with_agent(
        problem.config,
        problem.config.agent if stage == "fused" else stage,
        real=stage != "fused",
    )
    if stage != "fused":
        config.rollout.updates_per_round = units
    parts = assembly.assemble(config, problem.statistics)
    per_round = config.rollout.updates_per_round
    if units % per_round or per_round % parts.agent.batches_per_update:
        raise ValueError(f"{stage}: {units} updates are not whole rounds or cycles")
    placement = parallel.place("mesh", num_seeds=seeds, batch_sizes={})
    keys = jax.random.split(jax.random.key(0), seeds)
    arguments = (
        placement.place_seeds(keys),
        jnp.int32(0),
        _fresh_models(parts, placement) if stage == "fused" else None,
        placement.replicate(problem.replay),
    )
    return _repeated(
        programs.agent_rounds(config, parts, placement, num_updates=units),
        _fresh_agents(parts, placement, keys),
        arguments,
        units * seeds,
    )


def _pipeline(problem: Problem) -> Work:
    """One whole run: both models, the first transitions, and the agent."""
    config = with_agent(problem.config, problem.config.agent, real=False)
    parts = assembly.assemble(config, problem.statistics)
    placement = parallel.place("mesh", num_seeds=1, batch_sizes={})
    key, replay = placement.replicate((jax.random.key(0), problem.replay))
    keys = placement.place_seeds(jax.random.split(key, 1))
    first = jnp.int32(0)
    fresh = {name: jax.jit(model.init) for name, model in parts.models.items()}
    models = _fresh_models(parts, placement)
    runs = _fresh_agents(parts, placement, jax.random.split(key, 1))

    def compiled(program, *arguments):
        return program.lower(*arguments).compile(), flops.matmul_flops(program, *arguments)

    train, fill, update, total = {}, None, None, 0.0
    for name, model in parts.models.items():
        program = programs.model_steps(model, placement, num_steps=model.section.steps)
        train[name], count = compiled(program, fresh[name](key), key, replay, first)
        total += count
    fill, count = compiled(
        programs.prefill(config, parts, placement), runs.buffer, keys, models, replay
    )
    total += count
    rounds = programs.agent_rounds(config, parts, placement, num_updates=config.training.updates)
    update, count = compiled(rounds, runs, keys, first, models, replay)
    total += count

    def call():
        trained = {
            name: steps(fresh[name](key), key, replay, first)[0].average
            for name, steps in train.items()
        }
        models = fused.Models(**trained)
        runs = _fresh_agents(parts, placement, jax.random.split(key, 1))
        runs = runs.replace(buffer=fill(runs.buffer, keys, models, replay))
        jax.block_until_ready(update(runs, keys, first, models, replay))

    return Work(call, 1, total)


def _fresh_models(parts: assembly.Assembly, placement) -> fused.Models:
    key = jax.random.key(0)
    averages = {name: jax.jit(model.init)(key).average for name, model in parts.models.items()}
    return placement.replicate(fused.Models(**averages))


def _fresh_agents(parts: assembly.Assembly, placement, keys) -> fused.Run:
    buffers = jax.vmap(lambda _: parts.init_buffer(), axis_size=len(keys))
    return fused.Run(
        placement.place_seeds(programs.init_agents(parts)(keys)),
        placement.make_seeds(functools.partial(buffers, None)),
    )


def _repeated(program, state, arguments, units: int) -> Work:
    """Each call goes on from the state that the last one left."""
    count = flops.matmul_flops(program, state, *arguments) / units
    compiled = program.lower(state, *arguments).compile()

    def call():
        nonlocal state
        state, metrics = compiled(state, *arguments)
        jax.block_until_ready((state, metrics))

    return Work(call, units, count)
