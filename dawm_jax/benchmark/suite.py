"""What is timed, in one run, and what is written: benchmark.json, table.md, ratios.png."""

import json
import logging
import pathlib
import time
from collections.abc import Callable, Iterable
from importlib import metadata, util
from typing import Any

import jax
import jax.numpy as jnp

from dawm_jax.benchmark import jax_side, measure, tables
from dawm_jax.benchmark.jax_side import Problem
from dawm_jax.benchmark.measure import Contender
from dawm_jax.collect import tiers
from dawm_jax.data import dataset as data
from dawm_jax.methods import registry as assembly
from dawm_jax.runtime import parallel
from dawm_jax.training import results
from dawm_jax.types import UserError, first_line

_log = logging.getLogger(__name__)

# PyTorch as it is usually written; with what its users know to be faster; and compiled.
TORCH: dict[str, dict[str, Any]] = {
    "stock": {"fused_optimizer": False, "compiled": False},
    "tuned": {"fused_optimizer": True, "compiled": False},
    "compiled": {"fused_optimizer": True, "compiled": True},
}
# Units of a call: about a second on two CPU cores. An accelerator gets so many times more.
_UNITS = {
    "denoiser_training": 20,
    "sampling": 4,
    "inverse_dynamics": 100,
    "td3_bc": 100,
    "iql": 100,
    "fused": 100,
    "pipeline": 1,
}
_ACCELERATOR_FACTOR = 10
# The fixed work of the pipeline, in the proportions of a quick run.
_PIPELINE = {"world_model": 60, "inverse_dynamics": 160, "prefill": 896, "updates": 400}
# Side of the matrices whose product is timed.
_MATMUL = 1_024
_MATMUL_ON_ACCELERATOR = 8_192
# Stages that compute in float32 whatever the denoiser does.
_FLOAT32 = ("inverse_dynamics", "td3_bc", "iql")


def run(
    config: Any,
    *,
    stages: Iterable[str],
    rounds: int,
    seconds: float,
    sides: Iterable[str],
    memory: bool,
    save: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """Times every stage on every side, in turns.

    Args:
      config: sizes and data, see configs/common.py.
      stages: some of `jax_side.STAGES`.
      rounds: turns of each side.
      seconds: least time of a turn.
      sides: some of TORCH; left out where PyTorch is not installed.
      memory: also measure peak memory, in a process for each stage and side.
      save: called with what there is after each stage.

    Returns:
      What benchmark.json holds.

    Raises:
      UserError: the data or the configuration cannot be used.
    """
    problem = load(config)
    names = list(sides)
    if names and util.find_spec("torch") is None:
        _log.info("PyTorch is not installed (extra: torch): only JAX is timed")
        names = []
    numbers = header(config)
    numbers["torch_threads"] = _prepare_torch() if names else None
    numbers["stages"] = {}
    for stage in stages:
        numbers["stages"][stage] = _time_stage(stage, problem, names, rounds, seconds)
        if memory:
            for name, side in numbers["stages"][stage]["sides"].items():
                side["peak_memory"] = measure.peak_memory(_memory_of, stage, name, config)
        _log.info("%s", tables.line(stage, numbers["stages"][stage]))
        save(numbers)
    return numbers


def load(config: Any) -> Problem:
    """The configuration's data."""
    tiers.ensure(config.dataset)
    return Problem(config, *assembly.build_replay(config, data.load_dataset(config.dataset)))


def header(config: Any) -> dict[str, Any]:
    """What was measured, on what."""
    versions = results.versions()
    if util.find_spec("torch") is not None:
        versions["torch"] = metadata.version("torch")
    return {
        "environment": config.environment,
        "variant": config.variant,
        "dataset": config.dataset,
        "dtype": config.world_model.dtype,
        "device": parallel.describe_devices(),
        "versions": versions,
        "commit": results.commit(),
    }


def write(numbers: dict[str, Any], out: pathlib.Path) -> None:
    """Writes all numbers, their table and their figure."""
    out.mkdir(parents=True, exist_ok=True)
    results.write_atomically(out / "benchmark.json", json.dumps(numbers, indent=1) + "\n")
    results.write_atomically(out / "table.md", tables.markdown(numbers))
    tables.plot_ratios(numbers, out / "ratios.png")


def units_of(stage: str, config: Any, *, share: int = 1) -> int:
    """Units of a call on the device at hand, or a share of them; of "fused", whole rounds."""
    factor = 1 if jax.default_backend() == "cpu" or stage == "pipeline" else _ACCELERATOR_FACTOR
    units = max(factor * _UNITS[stage] // share, 1)
    per_round = config.rollout.updates_per_round if stage == "fused" else 1
    return -(-units // per_round) * per_round


# --- one stage ----------------------------------------------------------------------------


def _time_stage(
    stage: str, problem: Problem, torch_names: list[str], rounds: int, seconds: float
) -> dict[str, Any]:
    if stage == "pipeline":
        problem = problem._replace(config=_pipeline_config(problem.config))
    units = units_of(stage, problem.config)
    _log.info("%s: compiling", stage)
    start = time.perf_counter()
    work = jax_side.make(stage, problem, units=units)
    sides: dict[str, dict[str, Any]] = {"jax": {"compile_seconds": time.perf_counter() - start}}
    contenders = [Contender("jax", work.call, work.units)]
    for name in torch_names:
        start = time.perf_counter()
        try:
            call = _torch_call(stage, problem, name, units)
            call()
        except RuntimeError as error:  # no C++ compiler to compile with, or no memory
            _log.warning("%s: PyTorch %s left out: %s", stage, name, first_line(error))
            continue
        sides[name] = {"compile_seconds": time.perf_counter() - start}
        contenders.append(Contender(name, call, work.units))
    dtype = "float32" if stage in _FLOAT32 else problem.config.world_model.dtype
    contenders += _matmuls(dtype, with_torch=bool(torch_names))
    rates = measure.in_turns(contenders, rounds=rounds, seconds=seconds)
    for name, side in sides.items():
        side.update(measure.summary(rates[name]))
    return {
        "unit": jax_side.STAGES[stage],
        "flops_per_unit": work.flops,
        "sides": sides,
        "matmul": {
            name: measure.summary(rates[f"{name} matmul"])
            for name in ("jax", "torch")
            if f"{name} matmul" in rates
        },
    }


def _pipeline_config(config: Any) -> Any:
    """The same sizes, little work."""
    small = config.copy_and_resolve_references()
    factor = 1 if jax.default_backend() == "cpu" else _ACCELERATOR_FACTOR
    small.world_model.steps = factor * _PIPELINE["world_model"]
    small.inverse_dynamics.steps = factor * _PIPELINE["inverse_dynamics"]
    small.rollout.prefill_transitions = factor * _PIPELINE["prefill"]
    per_round = small.rollout.updates_per_round
    small.training.updates = -(-factor * _PIPELINE["updates"] // per_round) * per_round
    return small


def _matmuls(dtype: str, *, with_torch: bool) -> list[Contender]:
    """Products of large matrices: the most that a side can reach, in FLOP/s."""
    size = _MATMUL if jax.default_backend() == "cpu" else _MATMUL_ON_ACCELERATOR
    count = 2.0 * size**3
    x = jnp.ones((size, size), dtype)
    product = jax.jit(lambda x: x @ x)
    contenders = [Contender("jax matmul", lambda: jax.block_until_ready(product(x)), count)]
    if with_torch:
        from dawm_jax.benchmark import torch_side

        contenders.append(Contender("torch matmul", torch_side.matmul(size, dtype), count))
    return contenders


def _prepare_torch() -> int:
    """One thread for each core that this process may use: more make PyTorch collapse."""
    import torch

    torch.set_flush_denormal(True)  # as XLA does
    torch.set_num_threads(parallel.num_cores())
    return torch.get_num_threads()


def _torch_call(stage: str, problem: Problem, name: str, units: int) -> Callable[[], None]:
    from dawm_jax.benchmark import torch_side

    return torch_side.make(
        stage,
        problem.config,
        problem.replay,
        problem.statistics,
        device=torch_side.device(),
        units=units,
        tf32=True,  # as JAX does by itself
        **TORCH[name],
    )


def _memory_of(stage: str, name: str, config: Any) -> dict[str, float]:
    """In a process of its own: the memory of one side of one stage."""
    problem = load(config)
    if stage == "pipeline":
        problem = problem._replace(config=_pipeline_config(config))
    if name != "jax":
        _prepare_torch()

    def work():
        if name == "jax":
            jax_side.make(stage, problem, units=units_of(stage, config)).call()
            statistics = jax.local_devices()[0].memory_stats() or {}
            return lambda: float(statistics.get("peak_bytes_in_use", 0))
        from dawm_jax.benchmark import torch_side

        _torch_call(stage, problem, name, units_of(stage, config))()
        return torch_side.peak_bytes

    return measure.watch_memory(work)


def check_names(flag: str, names: list[str] | None, known: Iterable[str]) -> list[str]:
    """`names`, or all that are known if None.

    Raises:
      UserError: one is not known.
    """
    known = list(known)
    for name in names or []:
        if name not in known:
            raise UserError(f"--{flag}: expected some of {', '.join(known)}, got {name!r}")
    return known if names is None else names
