"""Tables of datasets, of further tasks, of robustness and of injected faults."""

from collections.abc import Mapping
from typing import Any

from _raw import PROTOCOL, RESULTS, dataset_name, last_score, read, runs_of

from dawm_jax.collect.policies import shipped_policies
from dawm_jax.report import cells as report_cells
from dawm_jax.report import runs
from dawm_jax.report.runs import Run
from dawm_jax.robustness import curves as robustness_curves
from dawm_jax.robustness import report as robustness_report
from dawm_jax.robustness import store as robustness_store
from dawm_jax.robustness.sweeps import SWEEPS
from dawm_jax.runtime.markdown import number, table


def datasets() -> str:
    """The collected datasets, each with its counterpart of D4RL."""
    header = ("dataset", "steps", "episodes", "return", "score", "D4RL: steps", "D4RL: return")
    return table(header, map(_dataset_row, read(RESULTS / "datasets.json")))


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


def reliability() -> str:
    """Faults that were made on purpose, and how many ended right."""
    found = read(RESULTS / "reliability" / "reliability.json")
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


def robotics() -> str:
    """Successes and returns of the runs on robotics tasks."""
    rows = []
    for run in runs_of("robotics"):
        found = run.results
        assert found.success is not None, f"{run.path}: expected successes"
        rows.append(
            [
                found.dataset,
                run.label,
                f"{found.updates:,}",
                ", ".join(f"{100 * rate:.0f}" for rate in found.success.last.values),
                report_cells.mean([found.final.returns.values], 0),
            ]
        )
    header = ["dataset", "method", "updates", "success by seed, %", "return"]
    return table(header, rows)


def robustness() -> str:
    """Areas below the curves of return against change, of each task and method."""
    protocol = robustness_store.EpisodeProtocol(10, 10_000)
    found = {robustness_store.digest_of(run.path): run for run in runs.load([PROTOCOL / "cpu"])}
    parts = []
    for path in sorted((RESULTS / "robustness").glob("*/robustness.json")):
        records = robustness_store.read(path, protocol)
        returns = {found[digest]: record.returns for digest, record in records.items()}
        drawn = robustness_curves.curves(list(returns), returns, SWEEPS)
        parts += [f"### {dataset_name(drawn[0].task)}", robustness_report.overview(drawn)]
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
            last_score(result),
            report_cells.mean_with_interval(result, result.last_return, digits=0),
        ]
        for result in runs.group(runs_of("many-dimensions"))
        for run in result.runs
    ]
    return table(["data", "method", "updates", "seeds", "score", "return"], rows)


def _episodes_of(run: Run) -> str:
    """What the run's log said of its data: name, steps, episodes and returns."""
    return ", ".join(run.results.dataset_summary.split(", ")[:-2])
