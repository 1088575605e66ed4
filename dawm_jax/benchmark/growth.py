"""Costs at growing sizes: one size changes and everything else stays."""

import dataclasses
import functools
import logging
from collections.abc import Iterable
from typing import Protocol

import jax
import jax.numpy as jnp

from dawm_jax.benchmark import jax_side, measure, suite
from dawm_jax.benchmark.jax_side import Problem
from dawm_jax.benchmark.measure import Candidate
from dawm_jax.benchmark.records import Growth, Point
from dawm_jax.config import schema
from dawm_jax.config.schema import Config
from dawm_jax.data.replay import Replay
from dawm_jax.types import Transition, UserError

_log = logging.getLogger(__name__)

_EPISODE = 500  # steps of the episodes of made-up data
_LARGE_BATCHES = (2_048, 8_192, 32_768)  # timed on accelerators alone


# The setting that is the width of a denoiser.
_WIDTHS = {"temporal_resnet": "temporal_resnet.width", "unet": "unet.dim"}


class Change(Protocol):
    """Gives a problem a size."""

    def __call__(self, problem: Problem, size: int, /) -> Problem:
        """The problem with that size."""


@dataclasses.dataclass(frozen=True)
class Axis:
    """A size that grows.

    Attributes:
      change: gives a problem the size.
      sizes: sizes in ascending order.
      stages: names of the stages that are timed at each size.
    """

    change: Change
    sizes: tuple[int, ...]
    stages: tuple[str, ...]


def _batch(problem: Problem, size: int) -> Problem:
    config = problem.config
    room = max(config.rollout.buffer_capacity, size * config.horizon)
    return _with_settings(
        problem,
        {
            "world_model.batch_size": size,
            "inverse_dynamics.batch_size": size,
            "training.batch_size": size,
            "rollout.windows_per_round": size,
            "rollout.buffer_capacity": room,
        },
    )


def _horizon(problem: Problem, size: int) -> Problem:
    return _with_settings(problem, {"horizon": size})


def _width(problem: Problem, size: int) -> Problem:
    return _with_settings(problem, {_WIDTHS[problem.config.world_model.denoiser]: size})


def _with_settings(problem: Problem, changes: dict[str, int]) -> Problem:
    return dataclasses.replace(problem, config=schema.replace(problem.config, changes))


def _dataset(problem: Problem, size: int) -> Problem:
    """Made-up transitions: the duration of a program does not depend on their values."""
    replay = problem.replay
    keys = iter(jax.random.split(jax.random.key(0), 3))
    states = functools.partial(jax.random.normal, shape=(size, replay.state_size))
    steps = jnp.arange(size)
    return dataclasses.replace(
        problem,
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
        ),
    )


def _seeds(problem: Problem, size: int) -> Problem:
    """The number of agents is an argument of the stages, not a property of the problem."""
    del size
    return problem


AXES = {
    "batch": Axis(
        _batch, (32, 64, 128, 256, 512), ("denoiser_training", "sampling", "td3_bc", "iql")
    ),
    "horizon": Axis(_horizon, (1, 3, 7, 15, 31), ("denoiser_training", "sampling")),
    "seeds": Axis(_seeds, (1, 2, 4, 8, 16, 32), ("td3_bc", "iql", "fused")),
    "width": Axis(_width, (32, 64, 128, 256), ("denoiser_training", "sampling")),
    "dataset": Axis(
        _dataset, (10_000, 100_000, 1_000_000, 10_000_000), ("denoiser_training", "td3_bc")
    ),
}


def check(config: Config, axes: Iterable[str]) -> None:
    """Refuses axes that the settings do not have.

    Raises:
      UserError: the width of a denoiser without one in `_WIDTHS`.
    """
    denoiser = config.world_model.denoiser
    if "width" in axes and denoiser not in _WIDTHS:
        raise UserError(
            "--axes: with width, expected config.world_model.denoiser "
            f"{' or '.join(_WIDTHS)}, got {denoiser!r}; leave width out of --axes"
        )


def run(config: Config, *, axes: dict[str, Axis] = AXES, rounds: int, seconds: float) -> Growth:
    """Times the stages of each axis at all its sizes, in turns.

    Args:
      config: sizes and data.
      axes: what grows.
      rounds: turns of each size.
      seconds: least duration of a turn.

    Returns:
      The content of growth.json.

    Raises:
      UserError: the data or the settings cannot be used.
    """
    jax_side.check(config)
    check(config, axes)
    problem = jax_side.load(config)
    return {
        **suite.header(config),
        "devices": jax.device_count(),
        "growth": {
            name: {
                stage: _grow(name, axis, stage, problem, rounds, seconds) for stage in axis.stages
            }
            for name, axis in axes.items()
        },
    }


def _grow(
    name: str, axis: Axis, stage: str, problem: Problem, rounds: int, seconds: float
) -> list[Point]:
    sizes = axis.sizes
    if name == "batch" and jax.default_backend() != "cpu":
        sizes += _LARGE_BATCHES
    candidates, costs = [], {}
    for size in sizes:
        _log.info("growth with %s, %s: compiling %s", name, stage, f"{size:,}")
        changed = axis.change(problem, size)
        compiled = jax_side.compile_stage(
            stage,
            changed,
            units=suite.units_of(stage, changed.config, share=5),
            seeds=size if name == "seeds" else 1,
        )
        candidates.append(Candidate(str(size), compiled.call, compiled.units))
        costs[size] = compiled.flops
    with measure.progress(f"{name}, {stage}", rounds * len(candidates)) as report:
        rates = measure.in_turns(candidates, rounds=rounds, seconds=seconds, report=report)
    return [
        {
            **measure.summary(rates[str(size)]),
            "size": size,
            "unit": jax_side.STAGES[stage],
            "flops_per_unit": costs[size],
        }
        for size in sizes
    ]
