"""How each cost grows: one size changes at a time, everything else stays."""

import functools
import logging
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from dawm_jax.benchmark import jax_side, measure, suite
from dawm_jax.benchmark.jax_side import Problem
from dawm_jax.data.windows import Replay
from dawm_jax.types import Transition

_log = logging.getLogger(__name__)

_EPISODE = 500  # steps of the episodes of made-up data
_LARGE_BATCHES = [2_048, 8_192, 32_768]  # only an accelerator gains by them


def _batch(problem: Problem, size: int) -> Problem:
    config = problem.config
    for section in (config.world_model, config.inverse_dynamics, config.training):
        section.batch_size = size
    config.rollout.windows_per_round = size
    config.rollout.buffer_capacity = max(config.rollout.buffer_capacity, size * config.horizon)
    return problem


def _horizon(problem: Problem, size: int) -> Problem:
    problem.config.horizon = size
    return problem


def _width(problem: Problem, size: int) -> Problem:
    problem.config.world_model.dim = size
    return problem


def _dataset(problem: Problem, size: int) -> Problem:
    """Made-up transitions: their number matters, not what they are."""
    replay = problem.replay
    keys = iter(jax.random.split(jax.random.key(0), 3))
    states = functools.partial(jax.random.normal, shape=(size, replay.state_size))
    steps = jnp.arange(size)
    return problem._replace(
        replay=Replay(
            transitions=Transition(
                observation=states(next(keys)),
                action=jnp.zeros((size, replay.action_size)),
                reward=jnp.ones(size),
                terminated=jnp.zeros(size),
                next_observation=states(next(keys)),
            ),
            episode_end=jnp.minimum((steps // _EPISODE + 1) * _EPISODE - 1, size - 1),
            return_to_go=jax.random.uniform(next(keys), (size,)),
            num_train=size,
        )
    )


def _same(problem: Problem, size: int) -> Problem:
    return problem


# axis -> (what changes the problem, sizes, stages)
AXES: dict[str, tuple[Callable[[Problem, int], Problem], list[int], list[str]]] = {
    "batch": (_batch, [32, 64, 128, 256, 512], ["denoiser_training", "sampling", "td3_bc", "iql"]),
    "horizon": (_horizon, [1, 3, 7, 15, 31], ["denoiser_training", "sampling"]),
    "seeds": (_same, [1, 2, 4, 8, 16, 32], ["td3_bc", "iql", "fused"]),
    "width": (_width, [16, 32, 64, 128], ["denoiser_training", "sampling"]),
    "dataset": (
        _dataset,
        [10_000, 100_000, 1_000_000, 10_000_000],
        ["denoiser_training", "td3_bc"],
    ),
}


def run(config: Any, *, axes: Iterable[str], rounds: int, seconds: float) -> dict[str, Any]:
    """Times the stages of each axis at all its sizes, in turns.

    Args:
      config: sizes and data, see configs/common.py.
      axes: some of AXES.
      rounds: turns of each size.
      seconds: least time of a turn.

    Returns:
      What growth.json holds.
    """
    problem = suite.load(config)
    return {
        **suite.header(config),
        "devices": jax.device_count(),
        "growth": {
            axis: {stage: _grow(axis, stage, problem, rounds, seconds) for stage in AXES[axis][2]}
            for axis in axes
        },
    }


def _grow(axis: str, stage: str, problem: Problem, rounds: int, seconds: float):
    change, sizes, _ = AXES[axis]
    unit = jax_side.STAGES[stage]
    if axis == "batch" and jax.default_backend() != "cpu":
        sizes = sizes + _LARGE_BATCHES
    contenders, costs = [], {}
    for size in sizes:
        _log.info("growth with %s, %s: compiling %s", axis, stage, f"{size:,}")
        copied = problem._replace(config=problem.config.copy_and_resolve_references())
        seeds = size if axis == "seeds" else 1
        units = suite.units_of(stage, copied.config, share=5)
        work = jax_side.make(stage, change(copied, size), units=units, seeds=seeds)
        contenders.append(measure.Contender(str(size), work.call, work.units))
        costs[size] = {"size": size, "unit": unit, "flops_per_unit": work.flops}
    rates = measure.in_turns(contenders, rounds=rounds, seconds=seconds)
    return [{**costs[size], **measure.summary(rates[str(size)])} for size in sizes]
