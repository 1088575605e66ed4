"""Tables of docs/protocol.md's runs: README.md, docs/results.md, docs/finetuning.md."""

import functools
import itertools
import pathlib
import re
import statistics
from collections.abc import Mapping, Sequence

import experiments
import numpy as np
from _raw import PROTOCOL, RESULTS, last_score, last_scores, robot_name, single, task_name

from dawm_jax.report import cells as report_cells
from dawm_jax.report import fine_tuning as report_fine_tuning
from dawm_jax.report import over_tasks, runs
from dawm_jax.report import statistics as report_statistics
from dawm_jax.report import tables as report_tables
from dawm_jax.report.runs import MethodResult
from dawm_jax.report.statistics import Models
from dawm_jax.runtime.markdown import table

# Columns of the short table: what an agent learnt from, and the agent.
_HEADLINE = tuple(
    (source, agent) for agent in ("td3_bc", "iql") for source in ("dawm", "dwm", "real")
)
# Ends of the names of the part main's folders.
_MAIN_ROWS = tuple(f"{source}-{agent}" for source, agent in _HEADLINE)


def _main_part() -> list[MethodResult]:
    return runs.group(runs.load([PROTOCOL / "main"]))


def headline() -> str:
    """Last scores of `_HEADLINE` on each task, and their means over the tasks."""
    found = {(x.source, x.agent, task_name(x)): x for x in _main_part()}
    tasks = [task.replace("/", " ") for task in (*experiments.DEVELOPED_ON, *experiments.UNTOUCHED)]
    rows = [[task, *(last_score(found[*column, task]) for column in _HEADLINE)] for task in tasks]
    means = [
        statistics.fmean(_mean_score(found[*column, task]) for task in tasks)
        for column in _HEADLINE
    ]
    rows.append(["average", *(f"{mean:.1f}" for mean in means)])
    return table(["", *(found[*column, tasks[0]].method for column in _HEADLINE)], rows)


@functools.cache  # two documents show it
def gains() -> str:
    """DAWM's gains over nine tasks, and over those that were developed on and the others."""
    results = _main_part()
    developed = {task.replace("/", " ") for task in experiments.DEVELOPED_ON}
    sets = {
        "nine tasks": results,
        "seven unseen tasks": [x for x in results if task_name(x) not in developed],
        "two development tasks": [x for x in results if task_name(x) in developed],
    }
    cells: dict[tuple[str, str], list[str]] = {}
    for chosen in sets.values():
        for found in over_tasks.comparisons(chosen, "dawm"):
            gain = report_cells.gain(found.gain)
            cells.setdefault((found.method, found.other), []).append(gain)
    rows = [[mine, other, *gains] for (mine, other), gains in cells.items()]
    return table(["gain of the mean score of", "over", *sets], rows)


def volume() -> str:
    """Volumes of generated transitions and steps of returns, beside the protocol's rows."""
    folders = [
        PROTOCOL / part / f"{task.replace('/', '-')}-{row}"
        for task in experiments.DEVELOPED_ON
        for part, row in (
            *(("main", row) for row in _MAIN_ROWS),
            *(("rivals", f"dawm-alone-{agent}") for agent in experiments.AGENTS),
        )
    ]
    others = [PROTOCOL / "cpu", *sorted((RESULTS / "studies" / "volume").iterdir())]
    found = runs.load([*folders, *others])
    tasks = [f"dawm/{task}-200k-v1" for task in experiments.DEVELOPED_ON]
    cells: dict[tuple[str, str, str], dict[str, str]] = {}
    # Runs of the same rows on two devices are not pooled.
    devices = dict.fromkeys(run.results.device for run in found)
    pools = (
        runs.pooled(run for run in found if run.results.device == device) for device in devices
    )
    for (name, _, _), members in itertools.chain.from_iterable(pool.items() for pool in pools):
        (result,) = runs.group(members)
        # The name of a dataset that another machine collected differently ends with its digest.
        task = next(task for task in tasks if name.startswith(task))
        first = members[0]
        number_of = first.settings.get("prefill_transitions")
        before = f"{number_of:,}" if number_of is not None else ""
        if first.results.method == "dwm" and before:
            before = "a window for each training step"
        row = first.label, before, re.sub(r"1 x |NVIDIA | \(.*", "", first.results.device)
        cells.setdefault(row, {})[task] = last_score(result)
    header = ["method", "transitions before the first update", "device", *experiments.DEVELOPED_ON]
    rows = [
        [*row, *(found.get(task, "") for task in tasks)] for row, found in sorted(cells.items())
    ]
    return table(header, rows)


def longer_returns() -> str:
    """TD3+BC with one-step targets and with returns over seven steps, and DWM-TD3+BC.

    All runs on Walker2d medium are on a CPU. On medium-replay those of the first three columns are
    on the H100.
    """
    studies, volume = RESULTS / "studies" / "volume", PROTOCOL / "volume"
    lead = RESULTS / "studies" / "dwm-lead"
    one_step = {"medium": PROTOCOL / "cpu", "medium-replay": PROTOCOL / "main"}
    seven_steps = {
        "medium": (
            studies / "walker2d-real-td3_bc-7-steps",
            studies / "walker2d-dawm-td3_bc-200k-7-steps",
            None,
            PROTOCOL / "targets" / "walker2d-medium-dawm-td3_bc-expansions",
        ),
        "medium-replay": (
            volume / "walker2d-medium-replay-real-td3_bc-returns",
            volume / "walker2d-medium-replay-dawm-td3_bc-volume-returns",
            lead / "seven-step-returns-of-generated-rows",
            lead / "first-steps-seven-step-returns",
        ),
    }
    rows = []
    for tier, own in seven_steps.items():
        plain = [
            one_step[tier] / f"walker2d-{tier}-{source}-td3_bc"
            for source in ("real", "dawm", "dwm")
        ]
        scores = [last_score(single(x)) if x else "" for x in (*plain, *own)]
        rows.append([f"walker2d {tier}", *scores])
    header = ["", "TD3+BC", "DAWM", "DWM", "TD3+BC, 7 steps", "DAWM, 7 steps"]
    header += ["DAWM, 7 steps of generated rows", "the same rows, first steps alone"]
    return table(header, rows)


# The part few's columns: what an agent learnt from, and the share of real rows.
_FEW_COLUMNS = (("real", 1.0), ("dawm", 0.5), ("dawm", 0.0), ("dwm", 0.5), ("joint", 0.5))
# Pairs of these columns whose gains are shown.
_FEW_PAIRS = (
    (("dawm", 0.5), ("real", 1.0)),
    (("dawm", 0.0), ("real", 1.0)),
    (("dawm", 0.5), ("dwm", 0.5)),
    (("dawm", 0.5), ("joint", 0.5)),
    (("dwm", 0.5), ("real", 1.0)),
    (("joint", 0.5), ("real", 1.0)),
)
_FewKey = tuple[str, int, str, tuple[str, float]]


def _few_part() -> dict[_FewKey, MethodResult]:
    """(environment, number of episodes, agent, column) -> result of the part few."""
    results = runs.group(runs.load([PROTOCOL / "few"]))
    found = {(robot_name(x), x.episodes, x.agent, (x.source, x.real_fraction)): x for x in results}
    assert len(found) == len(results), "two results in one cell"
    return found


def little_data() -> str:
    """Both agents with and without DAWM from few episodes: scores and gains."""
    found = _few_part()
    rows, header = [], ["medium data of", "episodes"]
    for agent in experiments.AGENTS:
        name = _agent_label(found, agent)
        header += [f"DAWM-{name}", name, "gain"]
    for task, count in itertools.product(_development_robots(), experiments.EPISODES):
        row = [task, str(count)]
        for agent in experiments.AGENTS:
            pair = [found[task, count, agent, column] for column in _FEW_PAIRS[0]]
            row += [*map(last_score, pair), _gain_of_last([pair[0]], [pair[1]])]
        rows.append(row)
    return table(header, rows)


def few() -> str:
    """Last scores and gains of the part few, by task and number of episodes."""
    found = _few_part()
    rows = [
        [
            _agent_label(found, agent),
            task,
            str(count),
            *(last_score(found[task, count, agent, column]) for column in _FEW_COLUMNS),
        ]
        for agent in experiments.AGENTS
        for task in _development_robots()
        for count in experiments.EPISODES
    ]
    names = ["the agent on real data", *map(_few_name, _FEW_COLUMNS[1:])]
    scores_of = table(["agent", "medium data of", "episodes", *names], rows)
    gains = [
        [
            _agent_label(found, agent),
            f"{_few_name(mine)}, over {_few_name(other)}",
            str(count),
            *(
                _gain_of_last(
                    [found[task, count, agent, mine] for task in tasks],
                    [found[task, count, agent, other] for task in tasks],
                )
                for tasks in (*([task] for task in _development_robots()), _development_robots())
            ),
        ]
        for agent in experiments.AGENTS
        for mine, other in _FEW_PAIRS
        for count in experiments.EPISODES
    ]
    header = ["agent", "gain of the mean score of", "episodes", *_development_robots(), "both"]
    return f"{scores_of}\n\n{table(header, gains)}"


def few_again() -> str:
    """TD3+BC with and without DAWM from few episodes, on the protocol's device and on a CPU."""
    cpu = {
        (robot_name(x), x.episodes, x.source): x
        for x in runs.group(runs.load([RESULTS / "studies" / "few-cpu"]))
    }
    h100 = _few_part()
    rows = []
    for robot, count in itertools.product(_development_robots(), experiments.EPISODES[:2]):
        row = [robot, str(count)]
        for mine, other in (
            [h100[robot, count, "td3_bc", column] for column in _FEW_PAIRS[0]],
            [cpu[robot, count, source] for source, _ in _FEW_PAIRS[0]],
        ):
            row += [last_score(mine), last_score(other), _gain_of_last([mine], [other])]
        rows.append(row)
    names = [f"{name}, {device}" for device in ("H100", "CPU") for name in ("DAWM", "real", "gain")]
    return table(["medium data of", "episodes", *names], rows)


def _development_robots() -> list[str]:
    return [task.split("/")[0] for task in experiments.DEVELOPED_ON]


def _agent_label(found: Mapping[_FewKey, MethodResult], agent: str) -> str:
    return next(result.agent_label for result in found.values() if result.agent == agent)


def _few_name(column: tuple[str, float]) -> str:
    source, real = column
    names = {"dawm": "DAWM", "dwm": "DWM", "joint": "joint diffusion", "real": "real data"}
    return names[source] if source == "real" else f"{names[source]}, {100 * real:g} % real"


def _gain_of_last(mine: Sequence[MethodResult], others: Sequence[MethodResult]) -> str:
    """Gain of the average of last scores over tasks; both sequences have the same tasks."""
    models = [[x.by_model(last_scores(x)) for x in some] for some in (mine, others)]
    return _gain(*models)


def _gain(models: Models, others: Models) -> str:
    return report_cells.gain(report_statistics.gain_over(models, others))


def fine_tuned() -> str:
    """The part online: last scores, and means over the evaluations that all curves have."""
    tuned = report_fine_tuning.results(runs.load([PROTOCOL / "online"]))
    found = {(robot_name(x), x.source, x.agent): x for x in tuned}
    assert len(found) == len(tuned), "two results of one robot, method and agent"
    columns = (("dawm", "td3_bc"), ("real", "td3_bc"), ("real", "rlpd"))
    measures = {
        "after the last step": report_fine_tuning.at_the_end,
        "mean of the curve": report_fine_tuning.over_shared_steps,
    }
    rows = []
    for robot, (name, measure) in itertools.product(_development_robots(), measures.items()):
        own = [found[robot, *column] for column in columns]
        shared = functools.reduce(np.intersect1d, [x.evaluated for x in own])
        values = [measure(x, shared) for x in own]
        means = [report_cells.mean_with_interval(*pair) for pair in zip(own, values, strict=True)]
        models = [[x.by_model(value)] for x, value in zip(own, values, strict=True)]
        rows.append([robot, name, *means[:2], _gain(*models[:2]), means[2]])
    header = ["medium data of", "", "DAWM-TD3+BC", "TD3+BC", "gain", "RLPD"]
    return table(header, rows)


def world_models() -> str:
    """DAWM-TD3+BC, half real, by training of its models; gains where there is another root seed."""
    rows = []
    for task in (*experiments.DEVELOPED_ON, "hopper/medium-replay", "walker2d/medium-replay"):
        name = f"{task.replace('/', '-')}-dawm-td3_bc"
        folders = [PROTOCOL / "main" / name, PROTOCOL / "repeated" / name]
        found = [single(path) for path in folders]
        row = [task.replace("/", " "), *map(last_score, found)]
        other_seed = PROTOCOL / "repeated" / f"{name}-seed-1"
        if other_seed.exists():
            found.append(single(other_seed))
            models = [last_scores(x) for x in found]
            row += [last_score(found[-1]), report_cells.mean(models, 1)]
            for other in ("dwm", "real"):
                rival = single(PROTOCOL / "main" / name.replace("dawm", other))
                row.append(_gain([models], [[last_scores(rival)]]))
        rows.append([*row, *[""] * (7 - len(row))])
    header = ["", "protocol", "again, root seed 0", "root seed 1", "all three"]
    return table([*header, "gain over DWM-TD3+BC", "gain over TD3+BC"], rows)


def second_models() -> str:
    """The parts main and second: scores by root seed, and gains over both world models."""
    tasks = experiments.DEVELOPED_ON
    found = {
        (task, source, agent): [
            single(PROTOCOL / "main" / f"{task.replace('/', '-')}-{source}-{agent}"),
            single(PROTOCOL / "second" / f"{task.replace('/', '-')}-{source}-{agent}-seed-1"),
        ]
        for task in tasks
        for source, agent in _HEADLINE
    }
    scores = [
        [
            task.replace("/", " "),
            str(root),
            *(last_score(found[task, *column][root]) for column in _HEADLINE),
        ]
        for task in tasks
        for root in (0, 1)
    ]
    methods = [found[tasks[0], *column][0].method for column in _HEADLINE]
    gains = []
    for agent, (mine, other) in itertools.product(
        experiments.AGENTS, (("dawm", "dwm"), ("dawm", "real"), ("dwm", "real"))
    ):
        models = {
            source: [_models_of(found[task, source, agent]) for task in tasks]
            for source in (mine, other)
        }
        labels = [found[tasks[0], source, agent][0].method for source in (mine, other)]
        sets = (*([k] for k in range(len(tasks))), range(len(tasks)))
        cells = [
            _gain([models[mine][k] for k in chosen], [models[other][k] for k in chosen])
            for chosen in sets
        ]
        gains.append([*labels, *cells])
    names = [task.replace("/", " ") for task in tasks]
    header = ["gain of the mean score of", "over", *names, "both"]
    return f"{table(['', 'root seed', *methods], scores)}\n\n{table(header, gains)}"


def _models_of(results: Sequence[MethodResult]) -> list[np.ndarray]:
    """Last scores by world model; agents on real data have none, and count as those of one."""
    values = [last_scores(result) for result in results]
    return [np.concatenate(values)] if results[0].source == "real" else values


def targets() -> str:
    """DAWM with seven-step targets of its windows' first steps, and the rows of `main`, on a CPU.

    Runs of the same rows with other root seeds are pooled. The first steps have root seed 0; the
    last column compares them with the runs of this root seed alone.
    """
    scores, gains = [], []
    for agent in experiments.AGENTS:
        found = [_targets_and_rivals(task, agent) for task in experiments.DEVELOPED_ON]
        for task, results in zip(experiments.DEVELOPED_ON, found, strict=True):
            cells = [f"{last_score(x)}, {x.num_seeds} seeds" for x in results]
            scores.append([task.replace("/", " "), results[0].agent_label, *cells])
        mine, *others = zip(*found, strict=True)
        for other in others:
            tasks = [slice(k, k + 1) for k in range(len(mine))]
            cells = [_gain_of_last(mine[some], other[some]) for some in (*tasks, slice(None))]
            same_seed = _root_seed_0(other[0].source, agent)
            paired = _gain_of_last(mine, same_seed) if same_seed else ""
            gains.append([mine[0].agent_label, other[0].label, *cells, paired])
    names = [task.replace("/", " ") for task in experiments.DEVELOPED_ON]
    first = "DAWM, first steps, seven-step targets"
    columns = ["", "agent", first, "DAWM", "DWM", "real data"]
    header = [f"gain of {first}; agent", "over", *names, "both", "both, root seed 0"]
    return f"{table(columns, scores)}\n\n{table(header, gains)}"


def _targets_and_rivals(task: str, agent: str) -> list[MethodResult]:
    """The part `targets`' second row, then DAWM, DWM and real data, on a CPU."""
    name = task.replace("/", "-")
    found = [single(PROTOCOL / "targets" / f"{name}-dawm-{agent}-expansions")]
    for source in ("dawm", "dwm", "real"):
        row = f"{name}-{source}-{agent}"
        folders = [PROTOCOL / "cpu" / row, PROTOCOL / "second" / f"{row}-seed-1"]
        (result,) = runs.group(runs.load(path for path in folders if path.exists()))
        found.append(result)
    return found


def _root_seed_0(source: str, agent: str) -> list[MethodResult]:
    """The runs of a row on a CPU with root seed 0; none if a development task lacks it."""
    names = (task.replace("/", "-") for task in experiments.DEVELOPED_ON)
    folders = [PROTOCOL / "cpu" / f"{name}-{source}-{agent}" for name in names]
    return [single(path) for path in folders] if all(path.exists() for path in folders) else []


def dwm_lead() -> str:
    """DAWM-TD3+BC on Walker2d medium-replay, changed in steps towards DWM: learning curves."""
    task, study = "walker2d-medium-replay", RESULTS / "studies" / "dwm-lead"
    first, seven = "DAWM, first steps of its windows", "seven-step returns"
    volume = PROTOCOL / "volume" / f"{task}-dawm-td3_bc-volume-returns"
    folders = {
        "TD3+BC": PROTOCOL / "main" / f"{task}-real-td3_bc",
        "DAWM": PROTOCOL / "main" / f"{task}-dawm-td3_bc",
        f"DAWM, {seven}": volume,
        f"DAWM, {seven} of generated rows": study / "seven-step-returns-of-generated-rows",
        first: study / "first-steps",
        f"{first}, {seven} of generated rows": study / "first-steps-seven-step-returns",
        "DWM": PROTOCOL / "main" / f"{task}-dwm-td3_bc",
    }
    shown, rows = (6_000, 12_000, 18_000, 24_000, 30_000), []
    for label, folder in folders.items():
        result = single(folder)
        means = result.curve.mean(axis=0)[np.isin(result.evaluated, shown)]
        rows.append([label, *(f"{mean:.1f}" for mean in means), last_score(result)])
    return table(["updates", *(f"{x:,}" for x in shown), "mean of the last five"], rows)


def completion() -> str:
    """DAWM-TD3+BC on generated rows alone: completed actions against more real starts."""
    words = {1: "the first", 7: "all seven"}
    found = {
        (task, form): single(_study(task, form))
        for task in experiments.DEVELOPED_ON
        for form in experiments.COMPLETION
    }
    rows = []
    for (task, form), result in found.items():
        kept = experiments.COMPLETION[form]
        numbers = str(kept.starts), str(kept.starts * kept.steps)
        rows.append([task.replace("/", " "), words[kept.steps], *numbers, last_score(result)])
    header = ["", "steps of a window that are used", "real starts", "transitions", "score"]
    scores = table(header, rows)
    completed, fewer, more = experiments.COMPLETION
    gains = [
        [
            name,
            *(
                _gain_of_last([found[x, mine] for x in tasks], [found[x, other] for x in tasks])
                for tasks in (*([x] for x in experiments.DEVELOPED_ON), experiments.DEVELOPED_ON)
            ),
        ]
        for name, mine, other in (
            ("completed, at equal real starts", completed, fewer),
            ("completed, at equal transitions", completed, more),
            ("seven times as many real starts", more, fewer),
        )
    ]
    names = [task.replace("/", " ") for task in experiments.DEVELOPED_ON]
    return f"{scores}\n\n{table(['gain', *names, 'both'], gains)}"


def _study(task: str, form: str) -> pathlib.Path:
    """Folder of a run of the part studies."""
    return PROTOCOL / "studies" / f"{task.replace('/', '-')}-dawm-alone-td3_bc-{form}"


def horizons() -> str:
    """DAWM-TD3+BC on generated rows alone, by steps of a window; "" where a run is missing.

    The windows of 7 steps are those of `completion`, so that all runs are on one device.
    """
    suffixes = {
        "1": "horizon-1",
        "3": "horizon-3",
        "7, 56 windows": "56-starts-completed",
        "15": "horizon-15",
    }
    rows = []
    for task in experiments.DEVELOPED_ON:
        folders = [_study(task, suffix) for suffix in suffixes.values()]
        scores = [last_score(single(folder)) if folder.exists() else "" for folder in folders]
        if any(scores):
            rows.append([task.replace("/", " "), *scores])
    return table(["horizon", *suffixes], rows)


def fine_tuning() -> str:
    """The part online, and the control without generated rows."""
    found = runs.load([PROTOCOL / "online", RESULTS / "studies" / "fine-tuning"])
    return report_fine_tuning.section(report_fine_tuning.results(found), reference="dawm")


def _mean_score(result: MethodResult) -> float:
    return float(last_scores(result).mean())


def comparison() -> str:
    """The three tables of the protocol's part main."""
    return report_tables.summary(_main_part(), reference="dawm", heading="###")


def rivals() -> str:
    """All methods on the four tasks of the protocol's part rivals."""
    folders = [
        PROTOCOL / "main" / f"{task.replace('/', '-')}-{name}"
        for task in experiments.FOUR
        for name in _MAIN_ROWS
    ]
    results = runs.group(runs.load([*folders, PROTOCOL / "rivals"]))
    return (
        f"{report_tables.aggregate_table(results)}\n\n"
        f"{report_tables.comparison_table(results, 'dawm', 'DAWM')}"
    )
