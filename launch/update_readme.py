"""Rewrites the tables of README.md and BUILD.md from what lies under results/.

python launch/update_readme.py            rewrites them
python launch/update_readme.py --check    exit code 1 if one is out of date
"""

import json
import pathlib
import sys

_ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(_ROOT))

from dawm_jax.benchmark import latency_cases as speed  # noqa: E402
from dawm_jax.benchmark import tables  # noqa: E402
from dawm_jax.quality import report as quality_report  # noqa: E402
from dawm_jax.report import runs as comparison  # noqa: E402
from dawm_jax.report import tables as comparison_report  # noqa: E402

# Measures of the quality reports that BUILD.md shows.
_QUALITY = (
    "dynamics error of one step, mean (median)",
    "reward error of one step, mean (median)",
    "dynamics error of real pairs with inferred actions, mean",
    "KS statistic, mean of (s, a, r)",
    "AUC of a classifier of (s, a, r, s' - s): .5 cannot tell it from real",
    "change of the state in a step, squared",
    "termination rate",
    "... 1,024 windows: on time / late / early / missed / false",
)

# What was changed on the way to the default, and the runs that had it: TASK is a task's name.
_CHANGES = (
    ("five equal DDIM steps", "earlier/equal-steps/TASK-dawm-td3_bc"),
    ("ten steps at temperature 1.15, dropped", "earlier/temperature/TASK-dawm-td3_bc"),
    ("ten quadratically spaced steps", "earlier/quadratic-steps/TASK-dawm-td3_bc"),
    (
        "eight steps of second order, 1,000 diffusion steps",
        "earlier/second-order/TASK-dawm-td3_bc",
    ),
    ("a world model trained twice as long", "comparison/TASK-dawm-generated-td3_bc"),
    ("actions drawn, not their means, dropped", "earlier/drawn-actions/TASK-dawm-td3_bc"),
    ("**half of every minibatch real**", "comparison/TASK-dawm-td3_bc"),
    ("real data alone", "comparison/TASK-real-td3_bc"),
)


def changes_table(results: pathlib.Path) -> str:
    """A Markdown table of the score and the mean value of each of `_CHANGES`, by task."""
    tasks = ("hopper", "walker2d")
    lines = [
        "| | runs | " + " | ".join(f"{task}: score, Q" for task in tasks) + " |",
        "|---" * (len(tasks) + 2) + "|",
    ]
    for change, folder in _CHANGES:
        cells = [change, f"`{folder}`"]
        for task in tasks:
            (run,) = comparison.load([results / folder.replace("TASK", task)])
            (entry,) = comparison.group([run])
            cells.append(f"{entry.last.mean():.1f}, {run['value_check']['q_mean']:.0f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def datasets_table(path: pathlib.Path) -> str:
    """A Markdown table of the collected datasets, D4RL's files beside them."""
    lines = [
        "| dataset | steps | episodes | return | score | D4RL: steps | D4RL: return |",
        "|---|---|---|---|---|---|---|",
    ]
    for entry in json.loads(path.read_text()) if path.exists() else []:
        theirs = entry["d4rl"]
        returns = "medium and expert, half each"
        if theirs["return_mean"] is not None:
            returns = f"{theirs['return_mean']:.0f} ± {theirs['return_std']:.0f}"
        cells = [
            entry["dataset"],
            f"{entry['steps']:,}",
            f"{entry['episodes']:,}",
            f"{entry['return_mean']:.0f} ± {entry['return_std']:.0f}",
            f"{entry['score_mean']:.1f}",
            f"{theirs['steps']:,}",
            returns,
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def speed_tables(folder: pathlib.Path) -> str:
    """A Markdown table of each benchmark's ratios."""
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("*/benchmark.json"))]
    return "\n\n".join(tables.short(numbers) for numbers in found)


def inference_tables(folder: pathlib.Path) -> str:
    """Markdown tables of the times of decisions and of generation, where they were taken."""
    parts = []
    for path in sorted(folder.glob("*/speed.json")):
        numbers = json.loads(path.read_text())
        where = (
            f"`{numbers['variant']}` sizes, {numbers['environment']}, {numbers['device']}, "
            f"jax {numbers['versions']['jax']}, commit {numbers['commit'][:7]}:"
        )
        parts += [where, speed.tables(numbers)]
    return "\n\n".join(parts)


def quality_table(folder: pathlib.Path) -> str:
    """A Markdown table of the quality reports of runs, beside the data's own numbers."""
    found = {
        path.parent.name: {
            name: cells for name, *cells in quality_report.rows(json.loads(path.read_text()))
        }
        for path in sorted(folder.glob("*/quality.json"))
    }
    lines = [
        "| | " + " | ".join(f"{name} | data" for name in found) + " |",
        "|---" * (2 * len(found) + 1) + "|",
    ]
    for measure in _QUALITY:
        cells = [cell for report in found.values() for cell in report[measure]]
        lines.append("| " + " | ".join([measure.removeprefix("... "), *cells]) + " |")
    return "\n".join(lines)


def _replaced(text: str, name: str, new: str) -> str:
    """`text` with what stands between the markers of `name` replaced."""
    start, end = f"<!-- {name}: made by launch/update_readme.py -->", f"<!-- end of {name} -->"
    before, rest = text.split(start)
    return f"{before}{start}\n\n{new}\n\n{end}{rest.split(end)[1]}"


def main() -> int:
    """Rewrites or checks the tables; returns the exit code."""
    results, code = _ROOT / "results", 0
    entries = comparison.group(comparison.load([results / "comparison"]))
    for file, name, new in (
        ("README.md", "results", comparison_report.summary(entries, heading="###")),
        ("README.md", "changes", changes_table(results)),
        ("README.md", "speed", speed_tables(results / "benchmark")),
        ("README.md", "inference", inference_tables(results / "inference")),
        ("BUILD.md", "datasets", datasets_table(results / "datasets.json")),
        ("BUILD.md", "quality", quality_table(results / "quality")),
    ):
        path = _ROOT / file
        text = path.read_text()
        updated = _replaced(text, name, new)
        if "--check" not in sys.argv[1:]:
            path.write_text(updated)
        elif updated != text:
            print(f"the {name} in {file} are out of date: run python launch/update_readme.py")
            code = 1
    return code


if __name__ == "__main__":
    sys.exit(main())
