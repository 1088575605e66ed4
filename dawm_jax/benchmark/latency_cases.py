"""Times of decisions and of synthetic transitions, for each method.

Networks have the sizes of a configuration and random parameters: time does not depend on them.
"""

import functools
import logging
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dawm_jax.benchmark import measure
from dawm_jax.benchmark.measure import Contender
from dawm_jax.collect import tiers
from dawm_jax.data import dataset as data
from dawm_jax.data import windows
from dawm_jax.methods import registry as assembly
from dawm_jax.training import fused

_log = logging.getLogger(__name__)

# Settings of the planner, over the configuration's own; see configs/common.py.
_ANCESTRAL = {"prediction": "epsilon", "order": 1, "eta": 1.0}
PLANNERS = {
    "Decision Diffuser, as published": {
        "horizon": 99,
        "diffusion_steps": 200,
        "sampling_steps": 200,
        **_ANCESTRAL,
    },
    "Decision Diffuser, fast": {
        "horizon": 31,
        "diffusion_steps": 5,
        "sampling_steps": 3,
        **_ANCESTRAL,
    },
}
GENERATORS = ("dawm", "dwm", "joint", "one_step")
# Observations that are decided at once: one simulator, and ten episodes beside each other.
_BATCHES = (1, 10)
_TURNS = 3


class Case(NamedTuple):
    """One thing to time.

    Attributes:
      kind: "decisions" or "transitions".
      name: of the method.
      batch: decisions or windows of a call.
      units: decisions or transitions of a call.
      call: does one call's work, returning when the device is done.
    """

    kind: str
    name: str
    batch: int
    units: int
    call: Callable[[], Any]


def make_cases(config: Any) -> list[Case]:
    """Every case, compiled.

    Raises:
      UserError: the data or the configuration cannot be used.
    """
    tiers.ensure(config.dataset)
    replay, fitted = assembly.build_replay(config, data.load_dataset(config.dataset))
    key = jax.random.key(0)

    def assemble(method: str, **planner: Any) -> tuple[assembly.Assembly, fused.Models]:
        changed = config.copy_and_resolve_references()
        changed.method = method
        changed.planner.update(planner)
        parts = assembly.assemble(changed, fitted)
        models = {name: jax.jit(model.init)(key).average for name, model in parts.models.items()}
        return parts, fused.Models(**models)

    def case(kind, name, batch, units, function, *arguments):
        _log.info("compiling %s, %s, %d at once", kind, name, batch)
        compiled = jax.jit(function).lower(*arguments).compile()
        return Case(kind, name, batch, units, lambda: jax.block_until_ready(compiled(*arguments)))

    cases = []
    parts, _ = assemble("dawm")
    agent = jax.jit(parts.agent.init)(key)
    act = functools.partial(assembly.raw_action, parts.agent, fitted)
    for batch in _BATCHES:
        observations = jnp.zeros((batch, replay.state_size))
        name = f"agent ({config.agent})"
        cases.append(case("decisions", name, batch, batch, act, agent, observations))
    for name, settings in PLANNERS.items():
        parts, models = assemble("decision_diffuser", **settings)
        for batch in _BATCHES:
            observations = jnp.zeros((batch, replay.state_size))
            arguments = (models, key, observations)
            cases.append(case("decisions", name, batch, batch, parts.plan, *arguments))
    starts = jnp.arange(config.rollout.windows_per_round)
    condition = windows.gather_conditions(replay, starts)
    for name in GENERATORS:
        parts, models = assemble(name)
        units = len(starts) * config.horizon
        imagine = parts.imagine
        cases.append(case("transitions", name, len(starts), units, imagine, models, key, condition))
    return cases


def time_cases(
    cases: list[Case], *, seconds: float, clock: Callable[[], float] = time.perf_counter
) -> list[dict[str, Any]]:
    """Times the cases in turns; see `measure.in_turns`.

    Returns:
      By case its identity, and seconds per 1,000 decisions or transitions: the median of the
      turns, and all of them.
    """
    contenders = [Contender(str(i), case.call, case.units) for i, case in enumerate(cases)]
    rates = measure.in_turns(contenders, rounds=_TURNS, seconds=seconds, clock=clock)
    entries = []
    for index, case in enumerate(cases):
        turns = [1_000 / rate for rate in rates[str(index)]]
        entries.append(
            {
                "kind": case.kind,
                "method": case.name,
                "batch": case.batch,
                "seconds_per_1000": statistics.median(turns),
                "turns": turns,
            }
        )
    return entries


def markdown(numbers: dict[str, Any]) -> str:
    """The report of one run."""
    heading = f"# Inference speed: {numbers['environment']}, {numbers['device']}"
    return f"{heading}\n\n{tables(numbers)}\n"


def tables(numbers: dict[str, Any]) -> str:
    """Both tables, times relative to the first row of the same kind and batch."""
    lines: list[str] = []
    for kind, batch in (("decisions", "observations at once"), ("transitions", "windows at once")):
        cases = [case for case in numbers["cases"] if case["kind"] == kind]
        base: dict[int, float] = {}
        lines += [
            "",
            f"| method | {batch} | seconds per 1,000 {kind} | relative |",
            "|---|---|---|---|",
        ]
        for case in cases:
            first = base.setdefault(case["batch"], case["seconds_per_1000"])
            value = case["seconds_per_1000"]
            lines.append(
                f"| {case['method']} | {case['batch']} | {value:.3g} | {value / first:.3g} |"
            )
    return "\n".join(lines).strip()
