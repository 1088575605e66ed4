"""Markdown and figures from the numbers of a run."""

import pathlib
from collections.abc import Sequence

from dawm_jax.benchmark.records import Benchmark, Growth, Latency, Rates, SideRecord, StageRecord
from dawm_jax.runtime import markdown as md
from dawm_jax.runtime.metrics import format_seconds

_LABELS = {
    "jax": "JAX",
    "stock": "PyTorch",
    "tuned": "PyTorch tuned",
    "compiled": "PyTorch compiled",
}


# --- benchmark.json -----------------------------------------------------------------------


def line(stage: str, record: StageRecord) -> str:
    """One stage for the log: rates, and JAX against the others."""
    sides = record["sides"]
    rates = ", ".join(f"{_LABELS[name]} {side['median']:.4g}" for name, side in sides.items())
    ratios = ", ".join(f"{ratio:.2f}x {_LABELS[name]}" for name, ratio in ratios_of(record).items())
    text = f"{stage}: {rates} {record['unit']}/s"
    return f"{text}; JAX is {ratios}" if ratios else text


def ratios_of(record: StageRecord) -> dict[str, float]:
    """Rate of JAX divided by that of each other side, by medians."""
    sides = record["sides"]
    return {
        name: sides["jax"]["median"] / side["median"]
        for name, side in sides.items()
        if name != "jax"
    }


def markdown(numbers: Benchmark) -> str:
    """All stages: rates with their ranges, ratios, and shares of the matrix product's rate."""
    stages = numbers["stages"]
    names = list(dict.fromkeys(name for record in stages.values() for name in record["sides"]))
    others = [name for name in names if name != "jax"]
    labels = [_LABELS[name] for name in names]
    header = ["stage", *labels]
    header += [f"JAX / {_LABELS[name]}" for name in others] + (["JAX / best"] if others else [])
    header += ["GFLOP per unit", "share of matmul rate: JAX"]
    header += ["best PyTorch"] if others else []
    rows = [_stage_row(stage, record, names) for stage, record in stages.items()]
    costs = [
        [stage, *(_cost(record["sides"].get(name)) for name in names)]
        for stage, record in stages.items()
    ]
    paragraphs = [
        f"# Speed: {numbers['environment']}, `{numbers['variant'] or 'full'}`, "
        f"{numbers['dtype']}, {numbers['device']}",
        "Units per second without compilation: median of the rounds (lowest to highest).",
        md.table(header, rows),
        "Seconds until the first call was done (of JAX the compilation), and peak memory:",
        md.table(["stage", *labels], costs),
    ]
    if start := numbers.get("start"):
        paragraphs.append(
            "From the start of the main program to its first training step: "
            f"{start['cold']:.1f} s with a cold cache of compiled programs, "
            f"{start['warm']:.1f} s with a warm one."
        )
    versions = ", ".join(f"{name} {version}" for name, version in numbers["versions"].items())
    paragraphs.append(f"{versions}; commit {numbers['commit']}.")
    return "\n\n".join(paragraphs) + "\n"


def _stage_row(stage: str, record: StageRecord, names: Sequence[str]) -> list[str]:
    ratios, sides = ratios_of(record), record["sides"]
    others = [name for name in names if name != "jax"]
    cells = [f"{stage}, {record['unit']}", *(_rate(sides.get(name)) for name in names)]
    cells += [md.number(ratios.get(name), ".2f") for name in others]
    if others:
        cells.append(f"**{min(ratios.values()):.2f}**" if ratios else "-")
    cells += [md.number(record["flops_per_unit"] / 1e9), _share(record, ["jax"])]
    if others:
        cells.append(_share(record, [name for name in others if name in sides]))
    return cells


def _rate(side: Rates | None) -> str:
    if side is None:
        return "-"
    return f"{side['median']:.4g} ({side['low']:.3g} to {side['high']:.3g})"


def _share(record: StageRecord, names: list[str]) -> str:
    """The best of these sides' FLOP/s, divided by the best matrix product's."""
    if not names or not record["matmul"]:
        return "-"
    rate = max(record["sides"][name]["median"] for name in names) * record["flops_per_unit"]
    return f"{100 * rate / max(side['median'] for side in record['matmul'].values()):.0f} %"


def _cost(side: SideRecord | None) -> str:
    if side is None:
        return "-"
    text = format_seconds(side["compile_seconds"])
    for place, size in side.get("peak_memory", {}).items():
        text += f", {size / 2**20:,.0f} MiB ({place})"
    return text


def plot_ratios(numbers: Benchmark, path: pathlib.Path) -> None:
    """Bars of how many times faster JAX is; nothing is drawn without another side."""
    stages = {stage: ratios_of(record) for stage, record in numbers["stages"].items()}
    names = list(dict.fromkeys(name for ratios in stages.values() for name in ratios))
    if not names:
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 1.0 + 0.5 * len(stages)), layout="constrained")
    axes = figure.subplots()
    height = 0.8 / len(names)
    for index, name in enumerate(names):
        rows = [row for row, ratios in enumerate(stages.values()) if name in ratios]
        values = [ratios[name] for ratios in stages.values() if name in ratios]
        places = [row + (index - (len(names) - 1) / 2) * height for row in rows]
        bars = axes.barh(places, values, height=height, label=f"against {_LABELS[name]}")
        axes.bar_label(bars, fmt="%.2f", padding=2, fontsize=7)
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(stages)), list(stages))
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set_xlabel("times as fast as PyTorch")
    axes.set_title(f"{numbers['device']}, {numbers['dtype']}", fontsize=9)
    figure.legend(fontsize=7, loc="outside lower center", ncols=len(names))
    figure.savefig(path, dpi=150)


# --- growth.json --------------------------------------------------------------------------


def growth_markdown(numbers: Growth) -> str:
    """Milliseconds per unit, one table per axis."""
    parts = [f"# Costs at growing sizes: {numbers['environment']}, {numbers['device']}"]
    for axis, stages in numbers["growth"].items():
        sizes = [point["size"] for point in next(iter(stages.values()))]
        rows = []
        for stage, points in stages.items():
            unit = points[0]["unit"].removesuffix("s")
            times = [md.number(1e3 / point["median"]) for point in points]
            rows.append([f"{stage}, ms per {unit}", *times])
        parts.append(md.table([axis, *(f"{size:,}" for size in sizes)], rows))
    return "\n\n".join(parts) + "\n"


def plot_growth(numbers: Growth, path: pathlib.Path) -> None:
    """Time per unit against each size, one panel per axis, both logarithmic."""
    from matplotlib.figure import Figure

    grown = numbers["growth"]
    columns = min(3, len(grown))
    rows = -(-len(grown) // columns)
    figure = Figure(figsize=(3.6 * columns, 3.0 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    for panel in panels.flat[len(grown) :]:
        panel.set_axis_off()
    for panel, (axis, stages) in zip(panels.flat, grown.items(), strict=False):
        for stage, points in stages.items():
            sizes = [point["size"] for point in points]
            times = [1e3 / point["median"] for point in points]
            panel.loglog(sizes, times, marker="o", markersize=3, label=stage)
        panel.minorticks_off()
        panel.set_xticks(sizes, [f"{size:,}" for size in sizes], fontsize=6)
        low, high = panel.get_ylim()
        panel.set_ylim(low / 4, high * 4)  # so that noise does not look like growth
        panel.yaxis.set_major_formatter("{x:g}")
        panel.set_xlabel(axis)
        panel.set_ylabel("ms per unit")
        panel.legend(fontsize=7)
    figure.suptitle(f"{numbers['device']}, {numbers['variant'] or 'full'}", fontsize=9)
    figure.savefig(path, dpi=150)


# --- speed.json ---------------------------------------------------------------------------


def latency_markdown(numbers: Latency) -> str:
    """Decisions and transitions; times relative to the first row of the same batch."""
    parts = [f"# Latency: {numbers['environment']}, {numbers['device']}"]
    for kind, batch in (
        ("decisions", "observations per call"),
        ("transitions", "windows per call"),
    ):
        base: dict[int, float] = {}
        rows = []
        for case in numbers["cases"]:
            if case["kind"] != kind:
                continue
            seconds, turns = case["seconds_per_1000"], case["turns"]
            relative = seconds / base.setdefault(case["batch"], seconds)
            spread = f"{min(turns):.3g} to {max(turns):.3g}"
            cells = [case["method"], str(case["batch"]), md.number(seconds), spread]
            rows.append([*cells, md.number(relative)])
        header = ("method", batch, f"seconds per 1,000 {kind}", "range of turns", "relative")
        parts.append(md.table(header, rows))
    return "\n\n".join(parts) + "\n"
