"""Writes the generated tables and sentences of README.md and docs/ from the files under results/.

python launch/tables.py            rewrites them
python launch/tables.py --check    changes nothing; exit code 1 if one is out of date or missing

A table or text stands between the lines `<!-- begin NAME -->` and `<!-- end NAME -->` of its file.
The rest of the file is left alone.
"""

import dataclasses
import itertools
import json
import pathlib
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import experiments
import numpy as np
from _command import ROOT, Parser

# This folder leaves the import path: its modules have names of installed packages.
sys.path[0] = str(ROOT)

from dawm_jax.collect.policies import shipped_policies  # noqa: E402
from dawm_jax.config import help  # noqa: E402
from dawm_jax.quality.types import QualityReport, Summary  # noqa: E402
from dawm_jax.report import cells as report_cells  # noqa: E402
from dawm_jax.report import fine_tuning as report_fine_tuning  # noqa: E402
from dawm_jax.report import over_tasks, runs  # noqa: E402
from dawm_jax.report import tables as report_tables  # noqa: E402
from dawm_jax.report.runs import MethodResult, Run  # noqa: E402
from dawm_jax.robustness import curves as robustness_curves  # noqa: E402
from dawm_jax.robustness import report as robustness_report  # noqa: E402
from dawm_jax.robustness import store as robustness_store  # noqa: E402
from dawm_jax.robustness.sweeps import SWEEPS  # noqa: E402
from dawm_jax.runtime.markdown import number, table  # noqa: E402
from dawm_jax.types import UserError, first_line  # noqa: E402

_RESULTS = ROOT / "results"
_PROTOCOL = _RESULTS / "protocol"


@dataclasses.dataclass(frozen=True)
class Block:
    """One generated table or text.

    Attributes:
      file: that holds it, relative to the repository.
      name: of its markers.
      make: the text between them.
    """

    file: str
    name: str
    make: Callable[[], str]

    def replaced(self, text: str) -> str:
        """The file's text with the new part between the markers.

        Raises:
          UserError: the text does not hold the markers once each, in their order.
        """
        begin, end = f"<!-- begin {self.name} -->", f"<!-- end {self.name} -->"
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not found or not closed or begin in after:
            raise UserError(f"{self.file}: expected the lines {begin} and {end} once each")
        return f"{before}{begin}\n\n{self.make()}\n\n{end}{after}"


# --- scores -------------------------------------------------------------------------------

# Columns of the short table: what an agent learnt from, and the agent.
_HEADLINE = tuple(
    (source, agent) for agent in ("td3_bc", "iql") for source in ("dawm", "dwm", "real")
)


# Ends of the names of the part main's folders.
_MAIN_ROWS = tuple(f"{source}-{agent}" for source, agent in _HEADLINE)


def _main_part() -> list[MethodResult]:
    return runs.group(runs.load([_PROTOCOL / "main"]))


def headline() -> str:
    """Last scores of `_HEADLINE` on each task, and their means over the tasks."""
    found = {(x.source, x.agent, _task(x)): x for x in _main_part()}
    tasks = [task.replace("/", " ") for task in (*experiments.DEVELOPED_ON, *experiments.UNTOUCHED)]
    rows = [[task, *(_last_score(found[*column, task]) for column in _HEADLINE)] for task in tasks]
    means = [
        statistics.fmean(_mean_score(found[*column, task]) for task in tasks)
        for column in _HEADLINE
    ]
    rows.append(["average", *(f"{mean:.1f}" for mean in means)])
    return table(["", *(found[*column, tasks[0]].method for column in _HEADLINE)], rows)


def gains() -> str:
    """DAWM's gains over nine tasks, and over those that were developed on and the others."""
    results = _main_part()
    developed = {task.replace("/", " ") for task in experiments.DEVELOPED_ON}
    sets = {
        "nine tasks": results,
        "seven held-out tasks": [x for x in results if _task(x) not in developed],
        "two development tasks": [x for x in results if _task(x) in developed],
    }
    cells: dict[tuple[str, str], list[str]] = {}
    for chosen in sets.values():
        for found in over_tasks.comparisons(chosen, "dawm"):
            gain = report_cells.gain(found.gain, found.gain_interval, found.seeds)
            cells.setdefault((found.method, found.other), []).append(gain)
    rows = [[mine, other, *gains] for (mine, other), gains in cells.items()]
    return table(["gain of the mean score of", "over", *sets], rows)


def volume() -> str:
    """Volumes of generated transitions and steps of returns, beside the protocol's rows."""
    folders = [
        _PROTOCOL / part / f"{task.replace('/', '-')}-{row}"
        for task in experiments.DEVELOPED_ON
        for part, row in (
            *(("main", row) for row in _MAIN_ROWS),
            *(("rivals", f"dawm-alone-{agent}") for agent in experiments.AGENTS),
        )
    ]
    others = [_PROTOCOL / "cpu", *sorted((_RESULTS / "studies" / "volume").iterdir())]
    found = runs.load([*folders, *others])
    tasks = [f"dawm/{task}-200k-v1" for task in experiments.DEVELOPED_ON]
    cells: dict[tuple[str, str, str], dict[str, str]] = {}
    # Runs of the same rows on two devices are not pooled.
    devices = dict.fromkeys(run.device for run in found)
    pools = (runs.pooled(run for run in found if run.device == device) for device in devices)
    for (name, _, _), members in itertools.chain.from_iterable(pool.items() for pool in pools):
        (result,) = runs.group(members)
        # The name of a dataset that another machine collected differently ends with its digest.
        task = next(task for task in tasks if name.startswith(task))
        settings = members[0].settings
        number_of = settings.get("prefill_transitions")
        before = f"{number_of:,}" if number_of is not None else ""
        if members[0].method == "dwm" and before:
            before = "a window for each training step"
        row = members[0].label, before, re.sub(r"1 x |NVIDIA | \(.*", "", members[0].device)
        cells.setdefault(row, {})[task] = _last_score(result)
    header = ["method", "transitions before the first update", "device", *experiments.DEVELOPED_ON]
    rows = [
        [*row, *(found.get(task, "") for task in tasks)] for row, found in sorted(cells.items())
    ]
    return table(header, rows)


def longer_returns() -> str:
    """TD3+BC with one-step targets, with returns over seven steps, and DWM-TD3+BC."""
    studies, volume = _RESULTS / "studies" / "volume", _PROTOCOL / "volume"
    seven_steps = {
        "medium": (
            studies / "walker2d-real-td3_bc-7-steps",
            studies / "walker2d-dawm-td3_bc-200k-7-steps",
        ),
        "medium-replay": (
            volume / "walker2d-medium-replay-real-td3_bc-returns",
            volume / "walker2d-medium-replay-dawm-td3_bc-volume-returns",
        ),
    }
    score = lambda folder: _last_score(_single(folder)) if folder.exists() else ""
    rows = []
    for tier, own in seven_steps.items():
        one_step = [
            _PROTOCOL / "main" / f"walker2d-{tier}-{source}-td3_bc"
            for source in ("real", "dawm", "dwm")
        ]
        rows.append([f"walker2d {tier}", *map(score, (*one_step, *own))])
    return table(["", "TD3+BC", "DAWM", "DWM", "TD3+BC, 7 steps", "DAWM, 7 steps"], rows)


# The part few's columns: what an agent learnt from, and the share of real rows.
_FEW_COLUMNS = (("real", 1.0), ("dawm", 0.5), ("dawm", 0.0), ("dwm", 0.5), ("joint", 0.5))
# Pairs of these columns whose gains are shown.
_FEW_PAIRS = (
    (("dawm", 0.5), ("real", 1.0)),
    (("dawm", 0.0), ("real", 1.0)),
    (("dawm", 0.5), ("dwm", 0.5)),
    (("dawm", 0.5), ("joint", 0.5)),
)
_FewKey = tuple[str, int, str, tuple[str, float]]


def _few_part() -> dict[_FewKey, MethodResult]:
    """(environment, number of episodes, agent, column) -> result of the part few."""
    results = runs.group(runs.load([_PROTOCOL / "few"]))
    found = {
        (_environment(x), x.episodes, x.agent, (x.source, x.real_fraction)): x for x in results
    }
    assert len(found) == len(results), "two results in one cell"
    return found


def _environment(result: MethodResult) -> str:
    return result.data.split("/")[1]


def little_data() -> str:
    """Both agents with and without DAWM from few episodes: scores and gains."""
    found = _few_part()
    rows, header = [], ["medium data of", "episodes"]
    for agent in experiments.AGENTS:
        name = found["hopper", experiments.EPISODES[0], agent, ("real", 1.0)].agent_label
        header += [f"DAWM-{name}", name, "gain"]
    for task, count in itertools.product(_few_tasks(), experiments.EPISODES):
        row = [task, str(count)]
        for agent in experiments.AGENTS:
            pair = [found[task, count, agent, column] for column in _FEW_PAIRS[0]]
            row += [*map(_last_score, pair), _gain_of_last([pair[0]], [pair[1]])]
        rows.append(row)
    return table(header, rows)


def few() -> str:
    """Last scores and gains of the part few, by task and number of episodes."""
    found = _few_part()
    rows = [
        [
            found[task, count, agent, _FEW_COLUMNS[0]].agent_label,
            task,
            str(count),
            *(_last_score(found[task, count, agent, column]) for column in _FEW_COLUMNS),
        ]
        for agent in experiments.AGENTS
        for task in _few_tasks()
        for count in experiments.EPISODES
    ]
    names = ["the agent on real data", *map(_few_name, _FEW_COLUMNS[1:])]
    scores_of = table(["agent", "medium data of", "episodes", *names], rows)
    gains = [
        [
            found["hopper", count, agent, mine].agent_label,
            f"{_few_name(mine)}, over {_few_name(other)}",
            str(count),
            *(
                _gain_of_last(
                    [found[task, count, agent, mine] for task in tasks],
                    [found[task, count, agent, other] for task in tasks],
                )
                for tasks in (*([task] for task in _few_tasks()), _few_tasks())
            ),
        ]
        for agent in experiments.AGENTS
        for mine, other in _FEW_PAIRS
        for count in experiments.EPISODES
    ]
    header = ["agent", "gain of the mean score of", "episodes", *_few_tasks(), "both"]
    return f"{scores_of}\n\n{table(header, gains)}"


def few_again() -> str:
    """TD3+BC with and without DAWM from few episodes, on the protocol's device and on a CPU."""
    cpu = {
        (_environment(x), x.episodes, x.source): x
        for x in runs.group(runs.load([_RESULTS / "studies" / "few-cpu"]))
    }
    h100 = {
        (task, count, source): x
        for (task, count, agent, (source, _)), x in _few_part().items()
        if agent == "td3_bc" and x.real_fraction in (0.5, 1.0)
    }
    rows = []
    for task, count in dict.fromkeys(key[:2] for key in cpu):
        row = [task, str(count)]
        for found in (h100, cpu):
            mine, other = found[task, count, "dawm"], found[task, count, "real"]
            row += [_last_score(mine), _last_score(other), _gain_of_last([mine], [other])]
        rows.append(row)
    names = [f"{name}, {device}" for device in ("H100", "CPU") for name in ("DAWM", "real", "gain")]
    return table(["medium data of", "episodes", *names], rows)


def _few_tasks() -> list[str]:
    return [task.split("/")[0] for task in experiments.DEVELOPED_ON]


def _few_name(column: tuple[str, float]) -> str:
    source, real = column
    names = {"dawm": "DAWM", "dwm": "DWM", "joint": "joint diffusion", "real": "real data"}
    return names[source] if source == "real" else f"{names[source]}, {100 * real:g} % real"


def _gain_of_last(mine: Sequence[MethodResult], others: Sequence[MethodResult]) -> str:
    """Gain of the average of last scores over tasks; both sequences have the same tasks."""
    models = [[x.by_model(_last_scores(x)) for x in some] for some in (mine, others)]
    return report_cells.gain_over(*models)


def fine_tuned() -> str:
    """The part online: last scores and mean heights of the curves."""
    tuned = report_fine_tuning.results(runs.load([_PROTOCOL / "online"]))
    found = {(_environment(x), x.source, x.agent): x for x in tuned}
    assert len(found) == len(tuned), "two results of one task, method and agent"
    columns = (("dawm", "td3_bc"), ("real", "td3_bc"), ("real", "rlpd"))
    measures = {
        "after the last step": lambda x: x.curve[:, -1],
        "mean of the curve": report_fine_tuning.heights,
    }
    rows = []
    for task, (name, measure) in itertools.product(_few_tasks(), measures.items()):
        own = [found[task, *column] for column in columns]
        means = [report_cells.mean_with_interval(x, measure(x)) for x in own]
        models = [[x.by_model(measure(x))] for x in own]
        rows.append([task, name, *means[:2], report_cells.gain_over(*models[:2]), means[2]])
    header = ["medium data of", "", "DAWM-TD3+BC", "TD3+BC", "gain", "RLPD"]
    return table(header, rows)


def world_models() -> str:
    """DAWM-TD3+BC, half real, by world model on the tasks that have several, and their gains."""
    parts = {"protocol": "main", "trained again": "repeated", "root seed 1": "second"}
    rivals_of = [f"{source}-td3_bc" for source in ("dwm", "real")]
    rows = []
    for folder in sorted((_PROTOCOL / "repeated").iterdir()):
        task = folder.name.removesuffix("-dawm-td3_bc")
        folders = [
            _PROTOCOL / part / f"{folder.name}{'-seed-1' if part == 'second' else ''}"
            for part in parts.values()
        ]
        found = [_single(path) if path.exists() else None for path in folders]
        models = [_last_scores(x) for x in found if x is not None]
        others = [[[_last_scores(_single(_PROTOCOL / "main" / f"{task}-{x}"))]] for x in rivals_of]
        rows.append(
            [
                task.replace("-", " ", 1),
                *("" if x is None else _last_score(x) for x in found),
                report_cells.mean(models, 1),
                *(report_cells.gain_over([models], other) for other in others),
            ]
        )
    return table(["", *parts, "all", "gain over DWM-TD3+BC", "gain over TD3+BC"], rows)


def _single(folder: pathlib.Path) -> MethodResult:
    """The result of one run."""
    (result,) = runs.group(runs.load([folder]))
    return result


def few_quality() -> str:
    """Quality reports of world models of few episodes, trained on a CPU, and of all episodes."""
    folders = {
        f"{count} episodes": _RESULTS
        / "studies"
        / "few-cpu"
        / f"hopper-medium-dawm-td3_bc-{count}-episodes"
        for count in experiments.EPISODES
    }
    paths = {name: folder / "quality" / "quality.json" for name, folder in folders.items()}
    paths["all episodes"] = _RESULTS / "quality" / "hopper-medium-200k" / "quality.json"
    return _quality({name: path for name, path in paths.items() if path.exists()})


def fine_tuning() -> str:
    """The part online's runs that are done, and those without generated rows."""
    folders = [_PROTOCOL / "online", _RESULTS / "studies" / "fine-tuning"]
    tuned = report_fine_tuning.results(runs.load([x for x in folders if x.exists()]))
    return report_fine_tuning.section(tuned, reference="dawm")


def _task(result: MethodResult) -> str:
    """Name of a task of the protocol, as in "hopper medium-replay"."""
    return _short(result.task)


def _short(task: str) -> str:
    """Likewise of its dataset, dawm/hopper/medium-replay-200k-v1."""
    _, name, tier = task.split("/")
    return f"{name} {tier.removesuffix('-200k-v1')}"


def _last_scores(result: MethodResult) -> np.ndarray:
    assert result.last is not None
    return result.last


def _mean_score(result: MethodResult) -> float:
    return float(_last_scores(result).mean())


def _last_score(result: MethodResult) -> str:
    return report_cells.mean_with_interval(result, result.last)


def comparison() -> str:
    """The three tables of the protocol's part main."""
    return report_tables.summary(_main_part(), reference="dawm", heading="###")


def rivals() -> str:
    """All methods on the four tasks of the protocol's part rivals."""
    folders = [
        _PROTOCOL / "main" / f"{task.replace('/', '-')}-{name}"
        for task in experiments.FOUR
        for name in _MAIN_ROWS
    ]
    results = runs.group(runs.load([*folders, _PROTOCOL / "rivals"]))
    return (
        f"{report_tables.aggregate_table(results)}\n\n"
        f"{report_tables.comparison_table(results, 'dawm', 'DAWM')}"
    )


# --- data ---------------------------------------------------------------------------------


def datasets() -> str:
    """The collected datasets, each with its counterpart of D4RL."""
    header = ("dataset", "steps", "episodes", "return", "score", "D4RL: steps", "D4RL: return")
    return table(header, map(_dataset_row, _read(_RESULTS / "datasets.json")))


def _dataset_row(entry: Mapping[str, Any]) -> list[str]:
    theirs = entry["d4rl"]
    published = theirs["return_mean"] is not None
    return [
        entry["dataset"],
        f"{entry['steps']:,}",
        f"{entry['episodes']:,}",
        f"{entry['return_mean']:.0f} ± {entry['return_std']:.0f}",
        number(entry["score_mean"], ".1f"),
        f"{theirs['steps']:,}",
        f"{theirs['return_mean']:.0f} ± {theirs['return_std']:.0f}"
        if published
        else "medium and expert, half each",
    ]


def quality() -> str:
    """Measures of the quality reports, each run beside the data's own numbers."""
    paths = sorted((_RESULTS / "quality").glob("*/quality.json"))
    return _quality({path.parent.name: path for path in paths})


def _quality(paths: Mapping[str, pathlib.Path]) -> str:
    """One row for each measure, two columns for each report.

    Args:
      paths: of quality.json by name.
    """
    reports = {name: QualityReport.from_json(_read(path)) for name, path in paths.items()}
    header = ["", *(cell for name in reports for cell in (name, "data"))]
    rows = [
        [label, *(cell for report in reports.values() for cell in cells(report))]
        for label, cells in _QUALITY_ROWS
    ]
    return table(header, rows)


Cells = Callable[[QualityReport], Sequence[str]]


def _dynamics(report: QualityReport) -> Sequence[str]:
    synthetic, real = report.synthetic.simulator, report.real.simulator
    return [
        _mean_and_median(synthetic.dynamics.all_steps if synthetic else None),
        _mean_and_median(real.dynamics if real else None),
    ]


def _rewards(report: QualityReport) -> Sequence[str]:
    synthetic, real = report.synthetic.simulator, report.real.simulator
    return [
        _mean_and_median(synthetic.reward.all_steps if synthetic else None),
        _mean_and_median(real.reward if real else None),
    ]


def _inferred_actions(report: QualityReport) -> Sequence[str]:
    errors, real = report.synthetic.inverse_dynamics, report.real.simulator
    simulated = errors and errors.simulator
    return [
        number(simulated.real_pairs.mean if simulated else None),
        number(real.dynamics.mean if real else None),
    ]


def _ks(report: QualityReport) -> Sequence[str]:
    return [number(part.distribution.ks.mean) for part in (report.synthetic, report.real)]


def _auc(report: QualityReport) -> Sequence[str]:
    found = [part.distribution.discriminator_auc for part in (report.synthetic, report.real)]
    return [
        number(auc.mean if auc else None)
        + (f" ± {auc.std:.2g}" if auc and auc.std is not None else "")
        for auc in found
    ]


def _step_size(report: QualityReport) -> Sequence[str]:
    return [number(part.step_size) for part in (report.synthetic, report.real)]


def _termination_rate(report: QualityReport) -> Sequence[str]:
    return [number(part.termination_rate) for part in (report.synthetic, report.real)]


def _timing(report: QualityReport) -> Sequence[str]:
    timing = report.synthetic.simulator and report.synthetic.simulator.timing
    if not timing:
        return ["-", ""]
    counts = [timing.on_time, timing.late, timing.early, timing.missed, timing.false]
    counts.append(timing.windows - sum(counts))
    return [f"{' / '.join(map(str, counts))} of {timing.windows:,}", ""]


def _mean_and_median(summary: Summary | None) -> str:
    return f"{number(summary.mean)} ({number(summary.median)})" if summary else "-"


_QUALITY_ROWS: tuple[tuple[str, Cells], ...] = (
    ("dynamics error of one step: mean (median)", _dynamics),
    ("reward error of one step: mean (median)", _rewards),
    ("dynamics error of real pairs with inferred actions: mean", _inferred_actions),
    ("Kolmogorov-Smirnov statistic: mean over (s, a, r)", _ks),
    ("AUC of a classifier of (s, a, r, s' - s); .5: generated and real look alike", _auc),
    ("squared change of the state in one step", _step_size),
    ("termination rate", _termination_rate),
    ("windows near an end: on time / late / early / missed / false / neither", _timing),
)


# --- speed --------------------------------------------------------------------------------


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
    return [_read(path) for path in sorted((_RESULTS / "benchmark").glob("*/benchmark.json"))]


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
    for path in sorted((_RESULTS / "inference").glob("*/speed.json")):
        numbers = _read(path)
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
    found = _read(_RESULTS / "scaling" / "quick" / "scaling.json")
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
    predictions = _read(_RESULTS / "scaling" / "model.json")["predictions"]
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


# --- reliability --------------------------------------------------------------------------


def reliability() -> str:
    """Faults that were made on purpose, and how many ended right."""
    found = _read(_RESULTS / "reliability" / "reliability.json")
    caption = (
        f"Seed {found['seed']}, {found['device']}, jax {found['versions']['jax']}, "
        f"commit {found['commit']}:"
    )
    header = ("fault", "where", "tried", "held", "equal bit for bit", "one line")
    names = ("kind", "place", "tried", "held", "equal", "one_line")
    rows = [[str(row[name]) for name in names] for row in found["faults"]]
    sums = [str(sum(row[name] for row in found["faults"])) for name in names[2:]]
    counts = ("inputs", "tried", "held")
    suites = [
        [f"{name} (`{suite['file']}`)", *(f"{suite[x]:,}" for x in counts)]
        for name, suite in found["suites"].items()
    ]
    parts = [
        caption,
        table(header, [*rows, ["all", "", *sums]]),
        table(("tests of", "inputs", "tests", "passed"), suites),
    ]
    return "\n\n".join(parts)


# --- the world model ----------------------------------------------------------------------


def world_model_trials() -> str:
    """Settings of the world model that were tried."""
    rows = []
    for trial in _json_lines(_RESULTS / "world-model" / "trials.jsonl"):
        blocks = f", {trial['blocks']} blocks" if trial["blocks"] else ""
        alone = trial["states"] == "changes" and not trial["state_before"]
        rows.append(
            [
                _short_task(trial),
                f"{trial['denoiser']} {trial['width']}{blocks}",
                trial["states"] + (" alone" if alone else ""),
                f"{trial['steps']:,} x {trial['batch_size']}",
                f"{trial['learning_rate']:g}",
                f"{trial['sampling_steps']} {trial['spacing']}, order {trial['order']}",
                f"{trial['guidance']:g}",
                number(trial["cpu_seconds"]),
                f"{trial['state_auc']:.3f} ± {trial['state_auc_std']:.3f}",
                f"{trial['auc']:.3f}",
                f"{trial['change_ratio']:.2f}",
            ]
        )
    head = ["set", "denoiser", "tokens", "steps x batch", "rate", "sampler", "guidance", "CPU s"]
    return table(
        [*head, "AUC of (s, r, s')", "AUC with a", "change"],
        rows,
    )


def equal_seconds() -> str:
    """Trials of the world model at equal seconds of one core, judged by the quality report."""
    rows = []
    for trial in _json_lines(_RESULTS / "world-model" / "equal_seconds.jsonl"):
        seconds = trial["core_seconds"]
        rows.append(
            [
                _short_task(trial),
                trial["trial"],
                f"{trial['steps']:,} x {trial['batch_size']}",
                "" if seconds is None else number(seconds),
                str(trial["evaluations"]),
                f"{trial['state_auc']:.3f} ± {trial['state_auc_std']:.3f}",
                f"{trial['auc']:.3f} ± {trial['auc_std']:.3f}",
                f"{trial['auc_real_pairs']:.3f}",
                f"{trial['change_ratio']:.2f}",
                f"{number(trial['dynamics_error'])} ({number(trial['dynamics_error_median'])})",
                f"{number(trial['reward_error'])} ({number(trial['reward_error_median'])})",
            ]
        )
    head = ["set", "trial", "steps x batch", "s", "evaluations", "AUC of (s, r, s')", "AUC with a"]
    errors = ["error of a step, mean (median)", "error of the reward"]
    return table([*head, "AUC, real pairs", "change", *errors], rows)


def best_of() -> str:
    """What the best of several windows of a start claims, and what the simulator gives."""
    names = ("claimed_spread_within", "claimed_gain_of_best", "true_gain_of_best", "corr_within")
    rows = [
        [
            _short_task(found),
            *(f"{found[name]:.2f}" for name in names[:2]),
            f"{found[names[2]]:.2f} ± {found['true_gain_se']:.2f}",
            f"{found[names[3]]:.2f}",
        ]
        for found in _json_lines(_RESULTS / "world-model" / "best_of.jsonl")
    ]
    head = ["set", "deviation between windows of a start", "gain of the best, generated"]
    return table([*head, "gain of the best, simulator", "correlation within a start"], rows)


def open_loop() -> str:
    """What the simulator makes of the actions of recorded and of generated windows."""
    rows = [
        [
            _short_task(found),
            name,
            f"{found[name]['difference']:.1f} ± {found[name]['se']:.1f}",
            number(found[name]["state_error_median"]),
        ]
        for found in _json_lines(_RESULTS / "world-model" / "open_loop.jsonl")
        for name in ("recorded actions", "inferred actions of recorded states", "generated")
    ]
    return table(
        ["set", "window", "simulator's J minus its own", "median error of the state"], rows
    )


def disagreement() -> str:
    """Dropping steps at which denoisers disagree more than on 95 % of held-out steps."""
    rows = []
    for found in _json_lines(_RESULTS / "world-model" / "disagreement.jsonl"):
        beyond, floor = found["q95"], found["floor"]
        rows.append(
            [
                found["kind"],
                f"{found['rank_correlation']:.2f}",
                f"{100 * beyond['beyond_share']:.1f} %",
                *(number(value) for value in (found["error_all"], beyond["error_kept"])),
                *(number(floor[name]) for name in ("all", "kept")),
                *("{:.3f} ± {:.3f}".format(*found[f"auc_{name}"]) for name in ("all", "kept")),
            ]
        )
    head = ["disagreement", "rank correlation with the error", "dropped"]
    errors = ["error, all", "error, kept", "error of real steps, all", "the same, kept"]
    return table([*head, *errors, "AUC, all", "AUC, kept"], rows)


def advantages() -> str:
    """Windows that aim at advantages: what they claim, and what the simulator gives."""
    rows = [
        [
            f"{found['asked']:.1f}",
            f"{found['claimed']:.2f}",
            f"{found['true']:.2f} ± {found['true_se']:.2f}",
        ]
        for found in _json_lines(_RESULTS / "world-model" / "advantage.jsonl")
        if found["asked"] is not None
    ]
    return table(["advantage asked for", "generated", "simulator"], rows)


def recipes() -> str:
    """The quick variant's world model of version 0.1 and the present one."""
    rows = []
    for found in _json_lines(_RESULTS / "world-model" / "recipes.jsonl"):
        cloned, real = found["cloned_score"], found["real_cloned_score"]
        interval = lambda score: "{:.1f} ({:.1f} to {:.1f})".format(*score)
        rows.append(
            [
                _short_task(found),
                found["recipe"],
                number(found["cpu_seconds"]),
                f"{found['state_auc']:.3f} ± {found['state_auc_std']:.3f}",
                f"{found['auc']:.3f} ± {found['auc_std']:.3f}",
                f"{found['change_ratio']:.2f}",
                interval(cloned),
                interval(real),
            ]
        )
    return table(
        [
            "set",
            "recipe",
            "CPU s",
            "AUC of (s, r, s')",
            "AUC with a",
            "change",
            "BC on generated data",
            "BC on real data",
        ],
        rows,
    )


def critics() -> str:
    """Mean Q of TD3+BC on real data with and without normalised critics."""
    updates = (5_000, 10_000, 15_000, 20_000, 25_000, 30_000, 40_000)
    rows = []
    for found in _json_lines(_RESULTS / "critics" / "walker2d-real-td3_bc.jsonl"):
        q = {step: statistics.fmean(values) for step, values in found["q_mean"]}
        rows.append(
            [
                f"{found['tau']:g}",
                "yes" if found["critic_norm"] else "no",
                *(f"{q[step]:,.0f}" if step in q else "" for step in updates),
                f"{statistics.fmean(found['score_per_seed']):.1f}",
            ]
        )
    return table(["tau", "normalised", *(f"{step:,}" for step in updates), "score"], rows)


def terminations() -> str:
    """Where generated windows end, with and without the absorbed output."""
    rows = [
        [
            _short_task(found),
            found["classifier"],
            *(f"{found[name]}" for name in ("on_time", "early", "late", "missed", "false")),
            f"{found['reward_error']:.4f}",
            f"{100 * found['termination_rate']:.3f} %",
            f"{100 * found['data_termination_rate']:.3f} %",
        ]
        for found in _json_lines(_RESULTS / "world-model" / "terminations.jsonl")
    ]
    ends = ("on time", "early", "late", "missed", "false")
    rates = ("terminations", "of the data")
    return table(["set", "a window ends where", *ends, "reward error", *rates], rows)


def held_out_curves() -> str:
    """Held-out errors of the quick world model while it is trained."""
    names = ("error_at_250", "error_at_500", "error_at_749", "termination_loss")
    wanted = (500, 1_000, 2_000, 4_000, 6_000, 8_000, 10_000)
    rows = [
        [
            _short_task(found),
            f"{point['step']:,}",
            *(number(point[name]) for name in names),
        ]
        for found in _json_lines(_RESULTS / "world-model" / "curves.jsonl")
        for point in found["held_out"]
        if point["step"] in wanted
    ]
    return table(["set", "step", "k = 250", "k = 500", "k = 749", "terminations"], rows)


def start_weights() -> str:
    """Scores of policies cloned from windows with weighted starts."""
    found = _json_lines(_RESULTS / "world-model" / "start_weight.jsonl")
    tasks = list(dict.fromkeys(trial["dataset"] for trial in found))
    cells: dict[float, dict[str, str]] = {}
    for trial in found:
        cell = report_cells.mean([np.asarray(trial["score_per_seed"])], 1)
        cells.setdefault(trial["start_weight"], {})[trial["dataset"]] = cell
    rows = [[f"{weight:g}", *(row[t] for t in tasks)] for weight, row in sorted(cells.items())]
    return table(["start_weight", *tasks], rows)


def cpu_devices() -> str:
    """Steps of the world model a second with other uses of two cores."""
    rows = [
        [
            f"{found['devices']}",
            "yes" if found["eigen_threads"] else "no",
            f"{found['steps_per_second']:.1f}",
        ]
        for found in _json_lines(_RESULTS / "world-model" / "cpu_devices.jsonl")
    ]
    return table(["devices", "products on several threads", "steps/s"], rows)


def inverse_dynamics_trials() -> str:
    """Inputs of the inverse dynamics model that were tried."""
    trials = _json_lines(_RESULTS / "world-model" / "inverse_dynamics.jsonl")
    return table(
        ["inputs", "steps", "CPU s", "unexplained", "AUC, real pairs", "AUC, generated"],
        [
            [
                trial["inputs"],
                f"{trial['steps']:,}",
                number(trial["cpu_seconds"]),
                f"{trial['unexplained']:.4f}",
                f"{trial['auc_real_pairs']:.3f}",
                f"{trial['auc_generated']:.3f}",
            ]
            for trial in trials
        ],
    )


def derived_columns() -> str:
    """World models of Ant with and without its contact forces in the tokens."""
    trials = _json_lines(_RESULTS / "world-model" / "derived.jsonl")
    names = ("auc_state_columns", "auc_all_columns", "dynamics_error", "reward_error")
    return table(
        ["form", "steps", "AUC, state", "AUC, all columns", "dynamics error", "reward error"],
        [
            [
                trial["form"],
                "" if trial["steps"] is None else f"{trial['steps']:,}",
                *("" if trial[name] is None else f"{trial[name]:.3f}" for name in names),
            ]
            for trial in trials
        ],
    )


def _short_task(found: dict[str, Any]) -> str:
    """The task of a raw number: "hopper" where its dataset is dawm/hopper/medium-200k-v1."""
    return found["dataset"].split("/")[1]


def _json_lines(path: pathlib.Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _read(path: pathlib.Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: expected readable JSON ({error})") from error


def _runs_of(folder: str) -> Iterator[tuple[dict[str, Any], Run]]:
    """results.json of every run below results/FOLDER, as it is and as the report reads it."""
    for path in sorted((_RESULTS / folder).glob("*/results.json")):
        (run,) = runs.load([path.parent])
        yield _read(path), run


def robotics() -> str:
    """Successes and returns of the runs on robotics tasks."""
    rows = []
    for found, run in _runs_of("robotics"):
        success, final = found["success"], found["final"]
        rows.append(
            [
                found["dataset"],
                run.label,
                f"{found['updates']:,}",
                ", ".join(f"{100 * rate:.0f}" for rate in success["rate_per_seed"]),
                report_cells.mean([np.asarray(final["return_per_seed"])], 0),
            ]
        )
    header = ["dataset", "method", "updates", "success by seed, %", "return"]
    return table(header, rows)


def robustness() -> str:
    """Areas below the curves of return against change, of each task and method."""
    protocol = robustness_store.EpisodeProtocol(10, 10_000)
    found = {robustness_store.digest_of(run.path): run for run in runs.load([_PROTOCOL / "cpu"])}
    parts = []
    for path in sorted((_RESULTS / "robustness").glob("*/robustness.json")):
        records = robustness_store.read(path, protocol)
        returns = {found[digest]: record.returns for digest, record in records.items()}
        drawn = robustness_curves.curves(list(returns), returns, SWEEPS)
        parts += [f"### {_short(drawn[0].task)}", robustness_report.overview(drawn)]
    return "\n\n".join(parts)


def policies() -> str:
    """Steps and returns of the shipped policies of Ant and Humanoid, from their cards."""
    rows = []
    for environment in ("Ant-v5", "Humanoid-v5"):
        card = shipped_policies(environment).card
        chosen = (card["policies"][name] for name in ("medium", "expert"))
        shown = [f"{x['return_mean']:,.0f} at {x['step']:,}" for x in chosen]
        rows.append([environment, f"{card['trained_steps']:,}", *shown])
    return table(["task", "steps of the training", "medium: return at step", "expert"], rows)


def many_dimensions() -> str:
    """Scores and returns of the runs on Ant and Humanoid."""
    rows = [
        [
            _episodes_of(run),
            result.method,
            f"{result.updates:,}",
            f"{result.num_seeds}",
            _last_score(result),
            report_cells.mean_with_interval(result, result.last_return, digits=0),
        ]
        for result in runs.group(run for _, run in _runs_of("many-dimensions"))
        for run in result.runs
    ]
    return table(["data", "method", "updates", "seeds", "score", "return"], rows)


def _episodes_of(run: Run) -> str:
    """What the run's log said of its data: name, steps, episodes and returns."""
    summary = _read(run.path / "dataset.json")["summary"]
    return ", ".join(summary.split(", ")[:-2])


# --- the command --------------------------------------------------------------------------


BLOCKS = (
    Block("docs/choices.md", "recipes", recipes),
    Block("docs/choices.md", "critics", critics),
    Block("docs/choices.md", "terminations", terminations),
    Block("docs/choices.md", "held-out-curves", held_out_curves),
    Block("docs/choices.md", "start-weights", start_weights),
    Block("docs/choices.md", "cpu-devices", cpu_devices),
    Block("docs/choices.md", "world-model", world_model_trials),
    Block("docs/choices.md", "inverse-dynamics", inverse_dynamics_trials),
    Block("docs/choices.md", "equal-seconds", equal_seconds),
    Block("docs/choices.md", "best-of", best_of),
    Block("docs/choices.md", "open-loop", open_loop),
    Block("docs/choices.md", "disagreement", disagreement),
    Block("docs/choices.md", "advantages", advantages),
    Block("docs/choices.md", "volume", volume),
    Block("docs/configuration.md", "configuration", help.table),
    Block("docs/results.md", "results", headline),
    Block("README.md", "gains", gains),
    Block("README.md", "longer-returns", longer_returns),
    Block("README.md", "little-data", little_data),
    Block("README.md", "fine-tuned", fine_tuned),
    Block("README.md", "speed", speed_summary),
    Block("docs/results.md", "gains", gains),
    Block("docs/results.md", "main", comparison),
    Block("docs/results.md", "rivals", rivals),
    Block("docs/performance.md", "speed", speed),
    Block("docs/performance.md", "inference", inference),
    Block("docs/performance.md", "exchange", exchange),
    Block("docs/performance.md", "chips", chips),
    Block("docs/quality.md", "quality", quality),
    Block("docs/datasets.md", "datasets", datasets),
    Block("docs/reliability.md", "reliability", reliability),
    Block("docs/robotics.md", "robotics", robotics),
    Block("docs/finetuning.md", "fine-tuning", fine_tuning),
    Block("docs/results.md", "world-models", world_models),
    Block("docs/results.md", "few", few),
    Block("docs/results.md", "few-again", few_again),
    Block("docs/results.md", "few-quality", few_quality),
    Block("docs/choices.md", "derived", derived_columns),
    Block("docs/robustness.md", "robustness", robustness),
    Block("docs/many-dimensions.md", "policies", policies),
    Block("docs/many-dimensions.md", "many-dimensions", many_dimensions),
)


def update(block: Block, *, check: bool) -> str | None:
    """Rewrites or checks one block.

    Args:
      block: what is rewritten.
      check: change nothing.

    Returns:
      What is wrong in one line, or None.
    """
    path = ROOT / block.file
    if not path.is_file():
        return f"{block.file} does not exist: {block.name} is skipped"
    text = path.read_text()
    try:
        updated = block.replaced(text)
    except UserError as error:
        return str(error)
    except (OSError, LookupError, ValueError) as error:
        return f"{block.file}: {block.name} cannot be made: {first_line(error)}"
    if updated == text:
        return None
    if check:
        return f"{block.file}: {block.name} is out of date: run python launch/tables.py"
    path.write_text(updated)
    return None


def main() -> int:
    """Runs the command line; returns the exit code."""
    parser = Parser(__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing, report differences")
    check = parser.parse_args().check
    problems = [problem for block in BLOCKS if (problem := update(block, check=check))]
    for problem in problems:
        print(f"{parser.prog}: {problem}", file=sys.stderr)
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
