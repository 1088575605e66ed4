"""Tables of speed: README.md and docs/performance.md."""

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

from _raw import RESULTS, read

from dawm_jax.runtime.markdown import number, table

# Names of the benchmark's stages in tables.
_STAGES = {
    "denoiser_training": "training of the denoiser",
    "sampling": "sampling of windows",
    "inverse_dynamics": "training of inverse dynamics",
    "td3_bc": "updates of TD3+BC",
    "iql": "updates of IQL",
    "fused": "generation with updates",
    "pipeline": "all stages, short",
}


def _benchmarks() -> list[Any]:
    """The benchmark of each machine."""
    return [read(path) for path in sorted((RESULTS / "benchmark").glob("*/benchmark.json"))]


def speed() -> str:
    """Rates of this package, and their ratios to PyTorch's."""
    return "\n\n".join(map(_benchmark, _benchmarks()))


def _benchmark(numbers: Mapping[str, Any]) -> str:
    versions = numbers["versions"]
    caption = (
        f"`{numbers['variant'] or 'full'}` sizes, {numbers['dtype']}, {numbers['device']}, "
        f"jax {versions['jax']}, torch {versions.get('torch', '-')}, commit {numbers['commit']}:"
    )
    header = ("stage", "this package, per second", "x eager PyTorch", "x best PyTorch")
    return f"{caption}\n\n{table(header, itertools.starmap(_stage_row, numbers['stages'].items()))}"


def _stage_row(stage: str, found: Mapping[str, Any]) -> list[str]:
    medians = {side: rates["median"] for side, rates in found["sides"].items()}
    own = medians.pop("jax")
    ratios = {side: own / median for side, median in medians.items()}
    return [
        _STAGES[stage],
        f"{own:.4g} {found['unit']}",
        number(ratios.get("stock"), ".2f"),
        number(min(ratios.values(), default=None), ".2f"),
    ]


def speed_summary() -> str:
    """Ratios to eager and to the best PyTorch of each stage, one column a benchmark."""
    found = _benchmarks()
    header = ["times PyTorch's speed: eager, best"]
    header += [f"{one['device'].removeprefix('1 x ')}, {one['dtype']}" for one in found]
    rows = []
    for stage in dict.fromkeys(stage for one in found for stage in one["stages"]):
        cells = [
            _stage_row(stage, one["stages"][stage]) if stage in one["stages"] else None
            for one in found
        ]
        rows.append([_STAGES[stage], *(", ".join(cell[2:]) if cell else "" for cell in cells)])
    return table(header, rows)


def inference() -> str:
    """Durations of decisions and of generated transitions, relative to the first row's."""
    parts = []
    for path in sorted((RESULTS / "inference").glob("*/speed.json")):
        numbers = read(path)
        parts.append(
            f"`{numbers['variant'] or 'full'}` sizes, {numbers['environment']}, "
            f"{numbers['device']}, jax {numbers['versions']['jax']}, "
            f"commit {numbers['commit'][:7]}:"
        )
        parts += [
            _durations(numbers["cases"], "decisions", "observations per call"),
            _durations(numbers["cases"], "transitions", "windows per call"),
        ]
    return "\n\n".join(parts)


def _durations(cases: Iterable[Mapping[str, Any]], kind: str, batch: str) -> str:
    base: dict[int, float] = {}
    rows = []
    for case in cases:
        if case["kind"] == kind:
            seconds, size = case["seconds_per_1000"], case["batch"]
            relative = seconds / base.setdefault(size, seconds)
            rows.append([case["method"], str(size), number(seconds), number(relative)])
    return table(("method", batch, f"seconds per 1,000 {kind}", "relative"), rows)


def exchange() -> str:
    """Bytes that the programs exchange per step on several devices."""
    found = read(RESULTS / "scaling" / "quick" / "scaling.json")
    rows = []
    programs = [name for name, value in found["1"].items() if _is_program(value)]
    for name in programs:
        for devices, counted in found.items():
            sent = dict(counted[name]["bytes_per_step"])
            reduced = sent.pop("all-reduce", 0)
            others = ", ".join(f"{kind} {size:,.0f}" for kind, size in sent.items()) or "0"
            rows.append([name, devices, f"{reduced:,.0f}", others])
    return table(("program", "devices", "all-reduce bytes", "other bytes"), rows)


def _is_program(value: object) -> bool:
    return isinstance(value, dict) and "bytes_per_step" in value


def chips() -> str:
    """Durations of the full-size stages that the cost model predicts."""
    predictions = read(RESULTS / "scaling" / "model.json")["predictions"]
    machines = list(dict.fromkeys(one["machine"] for one in predictions))
    cells: dict[str, dict[str, str]] = {}
    for one in predictions:
        stage = one["stage"] + (f", {one['seeds']} seeds" if one["seeds"] else "")
        text = f"{_one_figure(one['seconds'])}, {one['busy_chips']} busy"
        if one["communication"]:
            text += f", {_rounded(100 * one['communication'])} % between chips"
        cells.setdefault(stage, {})[one["machine"]] = text
    rows = [[stage, *(row[machine] for machine in machines)] for stage, row in cells.items()]
    return table(["stage", *machines], rows)


def _one_figure(seconds: float) -> str:
    """A duration with one significant figure: 40 s, 30 min, 2 h."""
    if seconds < 60.0:
        return f"{_rounded(seconds)} s"
    if seconds < 3600.0:
        return f"{_rounded(seconds / 60.0)} min"
    return f"{_rounded(seconds / 3600.0)} h"


def _rounded(value: float) -> str:
    """A number with one significant figure."""
    return f"{float(f'{value:.1g}'):g}"
