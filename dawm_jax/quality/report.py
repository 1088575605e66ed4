"""What a quality report looks like: Markdown tables and figures, from its numbers."""

import pathlib
from typing import Any

import numpy as np

_STUDY_COLUMNS = {
    "dynamics_error": "dynamics error",
    "reward_error": "reward error",
    "ks_mean": "KS, mean",
    "discriminator_auc": "AUC of a classifier",
    "step_size": "change of the state",
    "novelty": "novelty",
    "termination_recall": "termination recall",
    "termination_precision": "termination precision",
    "generated_return": "generated return",
}
_REAL, _JUDGED = "tab:gray", "tab:blue"


def quality_markdown(numbers: dict[str, Any]) -> str:
    """The report as Markdown, from what quality.json holds."""
    head = f"# Quality of {numbers['judged']}\n\nAgainst {numbers['reference']}"
    head += f" ({numbers['environment']}), {numbers['transitions']:,} transitions"
    if numbers["windows"]:
        head += f" in {numbers['windows']:,} windows"
    parts = [f"{head}, commit {numbers['commit']}."]
    parts += [f"**Note:** {note}." for note in numbers["notes"]]
    parts.append(_table(("", "judged", "real"), rows(numbers)))
    if "by_step" in numbers.get("dynamics", {}):
        parts.append(_steps_table(numbers))
    parts.append(_legend(numbers))
    return "\n\n".join(parts) + "\n"


def rows(numbers: dict[str, Any]) -> list[tuple[str, str, str]]:
    """The report's measures as text: name, what is judged, and the real data's."""
    return [row for section in _SECTIONS for row in section(numbers)]


def study_markdown(study: dict[str, Any]) -> str:
    """The study's tables as Markdown, from what study.json holds."""
    own = ", ".join(f"{name} {value}" for name, value in study["settings"].items())
    parts = [
        f"# What moves the quality of {study['judged']}",
        f"Against {study['reference']} ({study['environment']}), commit {study['commit']}. "
        f"One setting is changed at a time around the run's own ({own}); "
        f"{study['windows']:,} windows and half as many before terminations a setting, the same "
        "starts and noise for all. The first rows repeat the run's own settings with other "
        "starts and noise: differences within their spread are noise.",
    ]
    rows = [["own settings", *_study_cells(one)] for one in study["repeats"]]
    for name, settings in study["fields"].items():
        for one in settings:
            mark = " (own)" if one["value"] == study["settings"][name] else ""
            rows.append([f"{name} {one['value']:g}{mark}", *_study_cells(one)])
    parts.append(_table(("", *_STUDY_COLUMNS.values()), rows))
    return "\n\n".join(parts) + "\n"


def _study_cells(one: dict[str, Any]) -> list[str]:
    return [_number(one[name]) for name in _STUDY_COLUMNS]


# --- rows of the table --------------------------------------------------------------------


def _simulator_rows(numbers):
    if "dynamics" not in numbers:
        return []
    floor = numbers["floor"]
    both = lambda x: f"{_number(x['mean'])} ({_number(x['median'])})"
    return [
        (f"{name} error of one step, mean (median)", both(numbers[name]), both(floor[name]))
        for name in ("dynamics", "reward")
    ]


def _inverse_rows(numbers):
    found = numbers.get("inverse_dynamics")
    if not found:
        return []
    text = lambda values: ", ".join(map(_number, values))
    rows = [
        (
            "inferred actions on held-out real pairs, squared error by dimension "
            "(real: the mean action's)",
            text(found["mse"]),
            text(found["mean_action_mse"]),
        )
    ]
    if "replay_real_pairs" in found:
        rows.append(
            (
                "dynamics error of real pairs with inferred actions, mean",
                _number(found["replay_real_pairs"]["mean"]),
                _number(numbers["floor"]["dynamics"]["mean"]),
            )
        )
    if found.get("replay_inferred_action"):
        rows.append(
            (
                "dynamics error of steps with inferred actions (real: the first step, "
                "whose action is real), mean",
                _number(found["replay_inferred_action"]["mean"]),
                _number(found["replay_real_action"]["mean"]),
            )
        )
    return rows


def _distribution_rows(numbers):
    found, floor = numbers["distribution"], numbers["floor"]
    return [
        ("KS statistic, mean of (s, a, r)", *_pair(found["ks"]["mean"], floor["ks"]["mean"])),
        ("... largest", *_pair(_all_ks(found).max(), _all_ks(floor).max())),
        (
            "correlation similarity of (s, a, r, s')",
            *_pair(found["correlation_similarity"], floor["correlation_similarity"]),
        ),
        (
            "AUC of a classifier of (s, a, r, s' - s): .5 cannot tell it from real",
            *_pair(found["discriminator_auc"], floor["discriminator_auc"]),
        ),
        (
            "distance to the nearest real (s, a), median",
            *_pair(numbers["novelty"]["judged"]["q50"], numbers["novelty"]["held_out"]["q50"]),
        ),
        (
            "change of the state in a step, squared",
            *_pair(numbers["step_size"]["judged"], numbers["step_size"]["real"]),
        ),
        ("mean reward", *_pair(numbers["mean_reward"]["judged"], numbers["mean_reward"]["real"])),
    ]


def _termination_rows(numbers):
    found = numbers["termination"]
    rows = [("termination rate", *_pair(found["rate"], found["real_rate"]))]
    if "all_windows" in found:
        real = numbers["floor"]["termination"]
        both = lambda x: (
            f"{_number(x['recall'])} of {x['true']}, {_number(x['precision'])} of {x['claimed']}"
        )
        rows.append(
            ("terminations at the right step: recall, precision", both(found["all_windows"]),
             both(real))
        )  # fmt: skip
        if found.get("timing", {}).get("windows") != numbers["windows"]:
            rows.append(("... windows from before a termination", both(found["ending"]), ""))
    timing = found.get("timing")
    if timing:
        on_time, late, early = _timing_counts(timing)
        rows.append(
            (
                f"... {timing['windows']:,} windows: on time / late / early / missed / false",
                f"{on_time} / {late} / {early} / {timing['missed']} / {timing['false']}",
                "",
            )
        )
    return rows


def _calibration_rows(numbers):
    found = numbers.get("calibration")
    if not found:
        return []
    slopes = (found["generated_on_target"]["slope"], found["real_on_target"]["slope"])
    correlations = (
        found["generated_on_target"]["correlation"],
        found["real_on_target"]["correlation"],
    )
    return [
        (
            "return-to-go asked for (real: the starts' own), mean",
            *_pair(found["target_mean"], found["own_mean"]),
        ),
        (
            f"discounted return of {found['steps']} steps, mean",
            *_pair(found["generated_mean"], found["real_mean"]),
        ),
        ("... correlation with the one asked for", *_pair(*correlations)),
        ("... slope on the one asked for", *_pair(*slopes)),
        (
            "... correlation with the real windows'",
            *_pair(found["generated_on_real"]["correlation"], 1.0),
        ),
    ]


_SECTIONS = (
    _simulator_rows,
    _inverse_rows,
    _distribution_rows,
    _termination_rows,
    _calibration_rows,
)


def _steps_table(numbers):
    names = ("dynamics", "reward")
    steps = len(numbers["dynamics"]["by_step"]["mean"])
    rows = [
        (
            f"{name} error, {kind}",
            *(_number(x) for x in numbers[name]["by_step"][kind]),
            _number(numbers["floor"][name][kind]),
        )
        for name in names
        for kind in ("mean", "median")
    ]
    return _table(("generation step", *map(str, range(steps)), "real"), rows)


def _legend(numbers):
    text = (
        "Real: the training data, or its held-out part where a sample is compared with the "
        "training data (KS, correlations, distances). Errors: squared, mean over dimensions, in "
        "units of the data's standard deviations."
    )
    if "dynamics" in numbers:
        floor = numbers["floor"]
        text += (
            " One simulator step is taken from each state with its action. The data's own steps "
            "are the floor, not zero: observations clip velocities "
            f"({100 * floor['clipped_share']:.1f} % of the data's steps; the others have a mean "
            f"error of {_number(floor['dynamics_unclipped']['mean'])}), are float32, and leave out "
            "the contact solver's warm start."
        )
    if numbers["windows"]:
        text += (
            " KS, correlations and distances leave out the first step of a window, whose state "
            "and action are real."
        )
    return text


def _timing_counts(timing: dict[str, Any]) -> tuple[int, int, int]:
    """Windows that end on time, late and early."""
    late = {int(k): n for k, n in timing["steps_late"].items()}
    count = lambda keep: sum(n for k, n in late.items() if keep(k))
    return count(lambda k: k == 0), count(lambda k: k > 0), count(lambda k: k < 0)


def _pair(*values: float | None) -> list[str]:
    return [_number(value) for value in values]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _all_ks(distribution: dict[str, Any]) -> np.ndarray:
    ks = distribution["ks"]
    return np.array([*ks["observation"], *ks["action"], ks["reward"]])


def _table(header, rows) -> str:
    line = lambda cells: "| " + " | ".join(map(str, cells)) + " |"
    return "\n".join([line(header), "|" + "---|" * len(header), *map(line, rows)])


# --- figures ------------------------------------------------------------------------------


def plot_quality(
    path: pathlib.Path, numbers: dict[str, Any], arrays: dict[str, np.ndarray]
) -> None:
    """One figure: errors by step, KS, terminations, returns, distances."""
    plt = _pyplot()
    figure, grid = plt.subplots(2, 3, figsize=(14, 7.5), constrained_layout=True)
    _plot_errors(grid[0, 0], numbers, "dynamics")
    _plot_errors(grid[0, 1], numbers, "reward")
    _plot_ks(grid[0, 2], numbers)
    _plot_timing(grid[1, 0], numbers)
    _plot_returns(grid[1, 1], numbers, arrays)
    _plot_distances(grid[1, 2], arrays)
    for axis in grid.ravel():
        axis.grid(alpha=0.3)
    figure.suptitle(f"{numbers['judged']} ({numbers['environment']})")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def plot_study(path: pathlib.Path, study: dict[str, Any]) -> None:
    """A row a measure, a column a setting; the band is the spread of the repeats."""
    plt = _pyplot()
    names = [n for n in _STUDY_COLUMNS if study["repeats"][0][n] is not None]
    fields = study["fields"]
    figure, grid = plt.subplots(
        len(names),
        len(fields),
        figsize=(3 * len(fields), 1.7 * len(names)),
        constrained_layout=True,
        sharex="col",
        sharey="row",
        squeeze=False,
    )
    for row, name in zip(grid, names, strict=True):
        spread = [one[name] for one in study["repeats"] if one[name] is not None]
        row[0].set_ylabel(_STUDY_COLUMNS[name], fontsize="small")
        if name.endswith("error"):
            row[0].set_yscale("log")  # the row's axes share it
        for axis, (field, settings) in zip(row, fields.items(), strict=True):
            values = [one["value"] for one in settings]
            axis.axhspan(min(spread), max(spread), color=_REAL, alpha=0.3)
            axis.axvline(study["settings"][field], color=_REAL, linestyle=":")
            found = [np.nan if one[name] is None else one[name] for one in settings]
            axis.plot(values, found, color=_JUDGED, marker="o", markersize=4)
            axis.grid(alpha=0.3)
            if name == names[-1]:
                axis.set_xlabel(field)
    figure.suptitle(
        f"{study['judged']}: dotted the run's own setting, grey the spread of "
        f"{len(study['repeats'])} repeats"
    )
    figure.savefig(path, dpi=90)
    plt.close(figure)


def _pyplot():
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _plot_errors(axis, numbers, name):
    axis.set(title=f"{name} error against the simulator", xlabel="generation step")
    if name not in numbers:
        return _say(axis, "no simulator for this environment")
    steps = numbers[name].get("by_step")
    for kind, style in (("mean", "-o"), ("median", "--s")):
        values = steps[kind] if steps else [numbers[name][kind]]
        values = [np.nan if value is None else value for value in values]
        axis.semilogy(values, style, color=_JUDGED, label=f"judged, {kind}")
    floor = numbers["floor"][name]["mean"]
    axis.axhline(floor, color=_REAL, linestyle="--", label="real data, mean")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.legend()
    return None


def _plot_ks(axis, numbers):
    ks = numbers["distribution"]["ks"]
    labels = [f"s{i}" for i in range(len(ks["observation"]))]
    labels += [f"a{i}" for i in range(len(ks["action"]))] + ["r"]
    axis.bar(labels, _all_ks(numbers["distribution"]), color=_JUDGED, label="judged")
    floor = _all_ks(numbers["floor"])
    axis.plot(labels, floor, "_", color="black", markersize=10, label="held-out real")
    axis.set(title="Kolmogorov-Smirnov statistic by dimension")
    axis.tick_params(axis="x", labelsize="small", rotation=90 if len(labels) > 20 else 0)
    axis.legend()


def _plot_timing(axis, numbers):
    axis.set(title="terminations: steps late", ylabel="windows")
    timing = numbers["termination"].get("timing")
    if not timing:
        return _say(axis, "no windows, or no simulator")
    late = {int(k): n for k, n in timing["steps_late"].items()}
    span = range(min(late, default=0), max(late, default=0) + 1)
    colours = ["tab:green" if k == 0 else _JUDGED for k in span]
    axis.bar([f"{k:+d}" if k else "0" for k in span], [late.get(k, 0) for k in span], color=colours)
    axis.bar(["missed", "false"], [timing["missed"], timing["false"]], color="tab:red")
    axis.tick_params(axis="x", labelsize="small", rotation=45)
    return None


def _plot_returns(axis, numbers, arrays):
    if "target" not in arrays:
        axis.set(title="return of a window")
        return _say(axis, "only for what a run generates")
    steps = numbers["calibration"]["steps"]
    axis.set(
        title=f"discounted return of {steps} steps",
        xlabel="return-to-go asked for",
        ylabel="mean and middle half of each group",
    )
    # Up to ten groups of windows; equal targets, as at the data's best return, stay together.
    target = arrays["target"]
    edges = np.unique(np.quantile(target, np.linspace(0, 1, 11)))
    group = np.searchsorted(edges[1:-1], target)
    members = [np.flatnonzero(group == g) for g in np.unique(group)]
    x = [target[some].mean() for some in members]
    for name, label, colour in (
        ("real_return", "real windows from the same starts", _REAL),
        ("generated_return", "generated", _JUDGED),
    ):
        values = [arrays[name][some] for some in members]
        axis.plot(x, [v.mean() for v in values], "-o", color=colour, label=label)
        low, high = zip(*(np.quantile(v, [0.25, 0.75]) for v in values), strict=True)
        axis.fill_between(x, low, high, color=colour, alpha=0.2)
    axis.legend(loc="upper right")
    return None


def _plot_distances(axis, arrays):
    judged, real = arrays["distances"], arrays["held_out_distances"]
    bins = np.linspace(0, max(np.quantile(judged, 0.99), np.quantile(real, 0.99), 1e-9), 50)
    for values, label, colour in ((real, "held-out real", _REAL), (judged, "judged", _JUDGED)):
        axis.hist(values, bins, density=True, alpha=0.5, label=label, color=colour)
    axis.set(title="distance to the nearest real (s, a)", xlabel="standardised units")
    axis.legend(loc="upper right")


def _say(axis, text):
    axis.text(0.5, 0.5, text, ha="center", va="center", transform=axis.transAxes)
