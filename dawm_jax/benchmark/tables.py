"""Markdown and figures from the numbers of a run."""

import pathlib
from typing import Any

from dawm_jax.runtime.metrics import format_seconds

_LABELS = {
    "jax": "JAX",
    "stock": "PyTorch",
    "tuned": "PyTorch tuned",
    "compiled": "PyTorch compiled",
}


def line(stage: str, numbers: dict[str, Any]) -> str:
    """One stage for the log: rates, and JAX against the others."""
    sides = numbers["sides"]
    rates = ", ".join(f"{_LABELS[name]} {side['median']:.4g}" for name, side in sides.items())
    ratios = ", ".join(
        f"{ratio:.2f}x {_LABELS[name]}" for name, ratio in ratios_of(numbers).items()
    )
    text = f"{stage}: {rates} {numbers['unit']}/s"
    return f"{text}; JAX is {ratios}" if ratios else text


def ratios_of(numbers: dict[str, Any]) -> dict[str, float]:
    """How many times faster JAX is than each other side, of a stage; by medians."""
    sides = numbers["sides"]
    return {
        name: sides["jax"]["median"] / side["median"]
        for name, side in sides.items()
        if name != "jax"
    }


def markdown(numbers: dict[str, Any]) -> str:
    """All stages: rates with their ranges, ratios, and the share of the matrix product's rate."""
    names = list(dict.fromkeys(n for s in numbers["stages"].values() for n in s["sides"]))
    others = [name for name in names if name != "jax"]
    labels = [_LABELS[name] for name in names]
    header = ["stage", *labels]
    header += [f"JAX / {_LABELS[name]}" for name in others] + (["JAX / best"] if others else [])
    header += ["GFLOP a unit", "share of matmul rate: JAX", *(["best PyTorch"] if others else [])]
    lines = [
        f"# Speed: {numbers['environment']}, `{numbers['variant'] or 'full'}`, "
        f"{numbers['dtype']}, {numbers['device']}",
        "",
        "Units a second: median of the rounds (lowest to highest). Compilation apart, below.",
        "",
        _row(header),
        "|---" * len(header) + "|",
    ]
    for stage, found in numbers["stages"].items():
        ratios, sides = ratios_of(found), found["sides"]
        cells = [f"{stage}, {found['unit']}", *(_rate(sides.get(name)) for name in names)]
        cells += [f"{ratios[name]:.2f}" if name in ratios else "-" for name in others]
        if others:
            cells.append(f"**{min(ratios.values()):.2f}**" if ratios else "-")
        cells += [f"{found['flops_per_unit'] / 1e9:.3g}", _share(found, ["jax"])]
        if others:
            cells.append(_share(found, [name for name in others if name in sides]))
        lines.append(_row(cells))
    lines += ["", "Seconds until the first call was done (JAX: compiled), and peak memory:", ""]
    lines += [_row(["stage", *labels]), "|---" * (1 + len(names)) + "|"]
    for stage, found in numbers["stages"].items():
        lines.append(_row([stage, *(_cost(found["sides"].get(name)) for name in names)]))
    if start := numbers.get("start"):
        lines += [
            "",
            "From the start of the main program to its first training step: "
            f"{start['cold']:.1f} s with a cold cache of compiled programs, "
            f"{start['warm']:.1f} s with a warm one.",
        ]
    versions = ", ".join(f"{name} {version}" for name, version in numbers["versions"].items())
    lines += ["", f"{versions}; commit {numbers['commit']}."]
    return "\n".join(lines) + "\n"


def short(numbers: dict[str, Any]) -> str:
    """For README.md: JAX against plain PyTorch and the best of its ways."""
    versions = numbers["versions"]
    lines = [
        f"`{numbers['variant'] or 'full'}` sizes, {numbers['dtype']}, {numbers['device']}, "
        f"jax {versions['jax']}, torch {versions.get('torch', '-')}, commit {numbers['commit']}:",
        "",
        _row(["stage", "this package, a second", "x stock PyTorch", "x best PyTorch"]),
        "|---|---|---|---|",
    ]
    for stage, found in numbers["stages"].items():
        ratios = ratios_of(found)
        stock = f"{ratios['stock']:.2f}" if "stock" in ratios else "-"
        best = f"{min(ratios.values()):.2f}" if ratios else "-"
        rate = f"{found['sides']['jax']['median']:.4g} {found['unit']}"
        lines.append(_row([stage.replace("_", " "), rate, stock, best]))
    return "\n".join(lines)


def plot_ratios(numbers: dict[str, Any], path: pathlib.Path) -> None:
    """Bars of how many times faster JAX is; nothing is drawn without another side."""
    stages = {stage: ratios_of(found) for stage, found in numbers["stages"].items()}
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


def plot_growth(numbers: dict[str, Any], path: pathlib.Path) -> None:
    """Time a unit against each size, a panel an axis, both logarithmic."""
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
        panel.set_ylabel("ms a unit")
        panel.legend(fontsize=7)
    figure.suptitle(f"{numbers['device']}, {numbers['variant'] or 'full'}", fontsize=9)
    figure.savefig(path, dpi=150)


def growth_markdown(numbers: dict[str, Any]) -> str:
    """Milliseconds a unit, a table an axis."""
    lines = [f"# How costs grow: {numbers['environment']}, {numbers['device']}"]
    for axis, stages in numbers["growth"].items():
        sizes = [point["size"] for point in next(iter(stages.values()))]
        lines += ["", _row([axis, *(f"{size:,}" for size in sizes)])]
        lines.append("|---" * (1 + len(sizes)) + "|")
        for stage, points in stages.items():
            unit = points[0]["unit"].removesuffix("s")
            times = [f"{1e3 / point['median']:.3g}" for point in points]
            lines.append(_row([f"{stage}, ms a {unit}", *times]))
    return "\n".join(lines) + "\n"


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _rate(side: dict[str, Any] | None) -> str:
    if side is None:
        return "-"
    return f"{side['median']:.4g} ({side['low']:.3g} to {side['high']:.3g})"


def _share(found: dict[str, Any], names: list[str]) -> str:
    """The best of these sides' FLOP/s, over the best matrix product's of the same rounds."""
    if not names or not found["matmul"]:
        return "-"
    rate = max(found["sides"][name]["median"] for name in names) * found["flops_per_unit"]
    return f"{100 * rate / max(side['median'] for side in found['matmul'].values()):.0f} %"


def _cost(side: dict[str, Any] | None) -> str:
    if side is None:
        return "-"
    text = format_seconds(side["compile_seconds"])
    for place, size in side.get("peak_memory", {}).items():
        text += f", {size / 2**20:,.0f} MiB ({place})"
    return text
