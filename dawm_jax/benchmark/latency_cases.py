"""Durations of decisions and of generated transitions, for every registered method.

The networks have the sizes of a configuration and random parameters: durations do not depend on
parameters.
"""

import dataclasses
import functools
import logging
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp

from dawm_jax.agents.base import Agent
from dawm_jax.benchmark import jax_side, measure
from dawm_jax.benchmark.jax_side import Problem
from dawm_jax.benchmark.measure import Call, Candidate
from dawm_jax.benchmark.records import LatencyCase
from dawm_jax.config import schema
from dawm_jax.config.schema import Config
from dawm_jax.data import replay as replaying
from dawm_jax.methods.base import (
    METHODS,
    GeneratingMethod,
    Method,
    PlanningMethod,
    PolicyMethod,
)
from dawm_jax.methods.synthetic import WithPolicy
from dawm_jax.training import setup
from dawm_jax.training.setup import Setup
from dawm_jax.types import ModelParams

_log = logging.getLogger(__name__)

# Decision Diffuser is timed with two sets of settings: name of the set -> variant of the
# configuration whose section `planner` is the set.
PLANNERS = {"as published": "", "fast": "fast-planner"}
# Observations per decision: one simulator, and ten episodes that are played together.
BATCHES = (1, 10)
TURNS = 3


@dataclasses.dataclass(frozen=True)
class Case:
    """What is timed.

    Attributes:
      kind: "decisions" or "transitions".
      name: name of the method.
      batch: observations or windows of one call.
      units: decisions or transitions of one call.
      call: does the work of one call and returns when the device is done.
    """

    kind: str
    name: str
    batch: int
    units: int
    call: Call


def make_cases(
    config: Config,
    *,
    planners: Mapping[str, Mapping[str, Any]] | None = None,
    batches: Sequence[int] = BATCHES,
) -> list[Case]:
    """Compiles every case.

    Args:
      config: sizes and data.
      planners: name of a set of settings -> section `planner`; None takes PLANNERS.
      batches: observations per decision.

    Raises:
      UserError: the data or the settings cannot be used.
    """
    if planners is None:
        planners = {name: planner_settings(variant) for name, variant in PLANNERS.items()}
    problem = jax_side.load(config)
    return [
        *_agent_cases(problem, batches),
        *_planner_cases(problem, planners, batches),
        *_generation_cases(problem),
    ]


def planner_settings(variant: str) -> dict[str, Any]:
    """The section `planner` of a variant of the configuration."""
    return schema.get_config(variant)["planner"].to_dict()


def _agent_cases(problem: Problem, batches: Sequence[int]) -> Iterator[Case]:
    parts = _on_real_data(problem)
    state = jax.jit(_agent(parts).init)(jax.random.key(0))
    for batch in batches:
        observations = jnp.zeros((batch, problem.replay.state_size))
        name = f"agent ({parts.config.agent})"
        yield _case("decisions", name, batch, batch, parts.act, state, observations)


def _on_real_data(problem: Problem) -> Setup:
    """A run on real data alone, which every agent accepts."""
    changes = {"method": "dawm", "training.real_fraction": 1.0}
    return setup.make(schema.replace(problem.config, changes), problem.normalizer)


def _agent(parts: Setup) -> Agent[Any]:
    assert parts.agent is not None
    return parts.agent


def _planner_cases(
    problem: Problem, planners: Mapping[str, Mapping[str, Any]], batches: Sequence[int]
) -> Iterator[Case]:
    key = jax.random.key(0)
    for spec in METHODS:
        if not spec.plans:
            continue
        configs = {spec.label: problem.config}
        if spec.name == "decision_diffuser":
            configs = {
                f"{spec.label}, {name}": _with_planner(problem.config, settings)
                for name, settings in planners.items()
            }
        for name, config in configs.items():
            method = cast(PlanningMethod, spec.make(config, problem.normalizer))
            models = _random_models(method)
            for batch in batches:
                observations = jnp.zeros((batch, problem.replay.state_size))
                yield _case("decisions", name, batch, batch, method.plan, models, key, observations)


def _with_planner(config: Config, settings: Mapping[str, Any]) -> Config:
    return schema.replace(config, {f"planner.{name}": v for name, v in settings.items()})


def _generation_cases(problem: Problem) -> Iterator[Case]:
    config, key = problem.config, jax.random.key(0)
    agent = _agent(_on_real_data(problem))
    act = functools.partial(agent.act, jax.jit(agent.init)(key))
    batch = config.rollout.windows_per_round
    condition = replaying.gather_conditions(problem.replay, jnp.arange(batch))
    for spec in METHODS:
        if spec.plans:
            continue
        method = cast(GeneratingMethod | PolicyMethod, spec.make(config, problem.normalizer))
        arguments = _random_models(method), key, condition
        units = batch * config.horizon
        generator = WithPolicy(method, act) if isinstance(method, PolicyMethod) else method
        yield _case("transitions", spec.name, batch, units, generator.generate, *arguments)


def _random_models(method: Method) -> ModelParams:
    key = jax.random.key(0)
    return {name: jax.jit(model.init)(key).average for name, model in method.models.items()}


def _case(
    kind: str, name: str, batch: int, units: int, function: Callable[..., Any], *arguments: Any
) -> Case:
    """Compiles a function of arrays."""
    _log.info("compiling %s, %s, %d per call", kind, name, batch)
    compiled = jax.jit(function).lower(*arguments).compile()
    return Case(kind, name, batch, units, lambda: jax.block_until_ready(compiled(*arguments)))


def time_cases(
    cases: Sequence[Case], *, seconds: float, clock: Callable[[], float] = time.perf_counter
) -> list[LatencyCase]:
    """Times the cases in turns; see `measure.in_turns`.

    Args:
      cases: what is timed.
      seconds: least duration of each of the TURNS turns of a case.
      clock: monotonic, in seconds.

    Returns:
      Of each case its identity, and seconds per 1,000 decisions or transitions.
    """
    names = [f"{case.name}, {case.batch} per call" for case in cases]
    candidates = [
        Candidate(name, case.call, case.units) for name, case in zip(names, cases, strict=True)
    ]
    with measure.progress("latency", TURNS * len(cases)) as report:
        rates = measure.in_turns(
            candidates, rounds=TURNS, seconds=seconds, clock=clock, report=report
        )
    return [_record(case, rates[name]) for name, case in zip(names, cases, strict=True)]


def _record(case: Case, rates: list[float]) -> LatencyCase:
    turns = [1_000 / rate for rate in rates]
    return {
        "kind": case.kind,
        "method": case.name,
        "batch": case.batch,
        "seconds_per_1000": statistics.median(turns),
        "turns": turns,
    }
