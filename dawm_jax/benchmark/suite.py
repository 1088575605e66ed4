"""One run of the benchmark: every stage on every side; benchmark.json, table.md, ratios.png."""

import functools
import json
import logging
import pathlib
import time
from collections.abc import Iterable, Sequence
from importlib import metadata, util
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from dawm_jax.benchmark import jax_side, measure, tables
from dawm_jax.benchmark.jax_side import Problem
from dawm_jax.benchmark.measure import Call, Candidate
from dawm_jax.benchmark.records import Benchmark, Header, SideRecord, StageRecord
from dawm_jax.config import schema
from dawm_jax.config.schema import Config
from dawm_jax.runtime import provenance, sharding
from dawm_jax.types import first_line

_log = logging.getLogger(__name__)


class TorchWay(NamedTuple):
    """How a PyTorch side is written; see `torch_common.Tuning`."""

    fused_optimizer: bool
    compiled: bool


# PyTorch as it is usually written; with the optimisations that its manual recommends; compiled.
TORCH = {
    "stock": TorchWay(fused_optimizer=False, compiled=False),
    "tuned": TorchWay(fused_optimizer=True, compiled=False),
    "compiled": TorchWay(fused_optimizer=True, compiled=True),
}
# Units of one call on a CPU. On an accelerator a call has `_ACCELERATOR_FACTOR` times as many, and
# the unit of "pipeline" that many times the steps.
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
# One unit of "pipeline": 60 denoiser steps, 160 inverse dynamics steps, 896 prefilled transitions
# and 400 agent updates. The quick variant has 10,000, 8,000, 20,000 and 20,000: other proportions.
_PIPELINE = {
    "world_model.steps": 60,
    "inverse_dynamics.steps": 160,
    "rollout.prefill_transitions": 896,
    "training.updates": 400,
}
# Width of the square matrices whose product is timed.
_MATMUL = 1_024
_MATMUL_ON_ACCELERATOR = 8_192
# Stages that compute in float32 whatever config.world_model.dtype is.
_FLOAT32 = ("inverse_dynamics", "td3_bc", "iql")


class Save(Protocol):
    """Keeps what is measured so far."""

    def __call__(self, numbers: Benchmark, /) -> None: ...


def run(
    config: Config,
    *,
    stages: Sequence[str],
    rounds: int,
    seconds: float,
    sides: Sequence[str],
    memory: bool,
    save: Save,
) -> Benchmark:
    """Times every stage on every side, in turns.

    Args:
      config: sizes and data.
      stages: some of `jax_side.STAGES`.
      rounds: turns of each side.
      seconds: least duration of a turn.
      sides: some of TORCH; none are timed if PyTorch is not installed.
      memory: whether to measure peak memory too, in a new process for each stage and side.
      save: called after each stage.

    Returns:
      The content of benchmark.json.

    Raises:
      UserError: the data or the settings cannot be used.
    """
    jax_side.check(config)
    if sides and util.find_spec("torch") is None:
        _log.info("PyTorch is not installed (pip install 'dawm_jax[torch]'): only JAX is timed")
        sides = ()
    if sides:
        from dawm_jax.benchmark import torch_side

        torch_side.check(config)
    problem = jax_side.load(config)
    numbers: Benchmark = {
        **header(config),
        "torch_threads": _prepare_torch() if sides else None,
        "stages": {},
    }
    for stage in stages:
        record = _time_stage(stage, problem, sides, rounds, seconds)
        numbers["stages"][stage] = record
        if memory:
            for name, side in record["sides"].items():
                work = functools.partial(_memory_of, stage, name, config)
                side["peak_memory"] = measure.peak_memory(work)
        _log.info("%s", tables.line(stage, record))
        save(numbers)
    return numbers


def header(config: Config) -> Header:
    """What is measured, and on what."""
    versions = provenance.versions()
    if util.find_spec("torch") is not None:
        versions["torch"] = metadata.version("torch")
    return {
        "environment": config.environment,
        "variant": config.variant,
        "dataset": config.dataset,
        "dtype": config.world_model.dtype,
        "device": sharding.describe_devices(),
        "versions": versions,
        "commit": provenance.commit(),
    }


def write(numbers: Benchmark, out: pathlib.Path) -> None:
    """Writes all numbers, their table and their figure."""
    out.mkdir(parents=True, exist_ok=True)
    provenance.write_atomically(out / "benchmark.json", json.dumps(numbers, indent=1) + "\n")
    provenance.write_atomically(out / "table.md", tables.markdown(numbers))
    tables.plot_ratios(numbers, out / "ratios.png")


def units_of(stage: str, config: Config, *, share: int = 1) -> int:
    """Units of one call on this device, or a share of them; of "fused" whole rounds."""
    factor = 1 if jax.default_backend() == "cpu" or stage == "pipeline" else _ACCELERATOR_FACTOR
    units = max(factor * _UNITS[stage] // share, 1)
    return _whole_rounds(units, config) if stage == "fused" else units


def _whole_rounds(updates: int, config: Config) -> int:
    per_round = config.rollout.updates_per_round
    return -(-updates // per_round) * per_round


# --- one stage ----------------------------------------------------------------------------


def _time_stage(
    stage: str, problem: Problem, torch_names: Iterable[str], rounds: int, seconds: float
) -> StageRecord:
    config = _config_of(stage, problem.config)
    problem = Problem(config, problem.replay, problem.normalizer)
    units = units_of(stage, config)
    _log.info("%s: compiling", stage)
    start = time.perf_counter()
    compiled = jax_side.compile_stage(stage, problem, units=units)
    compile_seconds = {"jax": time.perf_counter() - start}
    candidates = [Candidate("jax", compiled.call, compiled.units)]
    for name in torch_names:
        start = time.perf_counter()
        try:
            call = _torch_call(stage, problem, name, units)
            call()
        except RuntimeError as error:  # no C++ compiler for torch.compile, or too little memory
            _log.warning("%s: PyTorch %s left out: %s", stage, name, first_line(error))
            continue
        compile_seconds[name] = time.perf_counter() - start
        candidates.append(Candidate(name, call, compiled.units))
    dtype = "float32" if stage in _FLOAT32 else config.world_model.dtype
    candidates += _matmuls(dtype, with_torch=len(candidates) > 1)
    with measure.progress(stage, rounds * len(candidates)) as report:
        rates = measure.in_turns(candidates, rounds=rounds, seconds=seconds, report=report)
    sides: dict[str, SideRecord] = {
        name: {**measure.summary(rates[name]), "compile_seconds": duration}
        for name, duration in compile_seconds.items()
    }
    return {
        "unit": jax_side.STAGES[stage],
        "flops_per_unit": compiled.flops,
        "sides": sides,
        "matmul": {
            name: measure.summary(rates[f"{name} matmul"])
            for name in ("jax", "torch")
            if f"{name} matmul" in rates
        },
    }


def _config_of(stage: str, config: Config) -> Config:
    """The settings of a stage: of the pipeline with the same sizes and little work."""
    if stage != "pipeline":
        return config
    factor = 1 if jax.default_backend() == "cpu" else _ACCELERATOR_FACTOR
    changes = {name: factor * count for name, count in _PIPELINE.items()}
    changes["training.updates"] = _whole_rounds(changes["training.updates"], config)
    return schema.replace(config, changes)


def _matmuls(dtype: str, *, with_torch: bool) -> list[Candidate]:
    """Products of large matrices, whose rate in FLOP/s bounds that of the stages."""
    size = _MATMUL if jax.default_backend() == "cpu" else _MATMUL_ON_ACCELERATOR
    count = 2.0 * size**3
    x = jnp.ones((size, size), dtype)
    product = jax.jit(lambda x: x @ x)
    candidates = [Candidate("jax matmul", lambda: jax.block_until_ready(product(x)), count)]
    if with_torch:
        from dawm_jax.benchmark import torch_side

        candidates.append(Candidate("torch matmul", torch_side.matmul(size, dtype), count))
    return candidates


def _prepare_torch() -> int:
    """Gives PyTorch one thread per core that this process may use; returns their number."""
    import torch

    torch.set_flush_denormal(True)  # as XLA does
    torch.set_num_threads(provenance.num_cores())
    return torch.get_num_threads()


def _torch_call(stage: str, problem: Problem, name: str, units: int) -> Call:
    from dawm_jax.benchmark import torch_side

    return torch_side.make(
        stage,
        problem.config,
        problem.replay,
        problem.normalizer,
        device=torch_side.device(),
        units=units,
        tf32=True,  # XLA's default on a GPU
        fused_optimizer=TORCH[name].fused_optimizer,
        compiled=TORCH[name].compiled,
    )


def _memory_of(stage: str, name: str, config: Config) -> dict[str, float]:
    """Peak memory of one side of one stage; runs in a process of its own."""
    config = _config_of(stage, config)
    problem, units = jax_side.load(config), units_of(stage, config)
    if name != "jax":
        _prepare_torch()

    def work() -> float:
        if name == "jax":
            jax_side.compile_stage(stage, problem, units=units).call()
            statistics = jax.local_devices()[0].memory_stats() or {}
            return float(statistics.get("peak_bytes_in_use", 0))
        from dawm_jax.benchmark import torch_side

        _torch_call(stage, problem, name, units)()
        return torch_side.peak_bytes()

    return measure.watch_memory(work)
