"""Rewrites README.md's results table from results/*/results.json.

python launch/update_readme.py            rewrites the table
python launch/update_readme.py --check    exit code 1 if it is out of date
"""

import json
import pathlib
import sys

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_START, _END = "<!-- results: made by launch/update_readme.py -->", "<!-- end of results -->"


def table(folder: pathlib.Path) -> str:
    """A Markdown table with one row a run, sorted by dataset, agent and data source."""
    runs = [json.loads(path.read_text()) for path in sorted(folder.glob("*/results.json"))]
    runs.sort(key=lambda r: (r["dataset"], r["agent"] != "td3_bc", r["real_fraction"]))
    lines = [
        "| dataset | agent | trained on | updates | seeds | score, last | 95 % interval | "
        "score, best | return, last | training s | device | commit |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join(lines + [_row(run) for run in runs])


def _row(run: dict) -> str:
    final = run["final"]
    source = {0.0: "synthetic", 1.0: "real"}.get(
        run["real_fraction"], f"{100 * run['real_fraction']:.0f} % real"
    )
    interval = "one seed"
    if final["score_interval"]:
        low, high = final["score_interval"]
        interval = f"{low:.1f} to {high:.1f}"
    seconds = sum(stage["seconds"] for stage in run["stages"].values())
    cells = [
        run["dataset"],
        run["agent"],
        source,
        f"{run['updates']:,}",
        run["num_seeds"],
        f"{final['score_mean']:.1f}",
        interval,
        f"{run['best']['score_mean']:.1f}",
        f"{final['return_mean']:.0f}",
        f"{seconds:.0f}",
        run["device"],
        run["commit"],
    ]
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def main() -> int:
    """Rewrites or checks the table; returns the exit code."""
    path = _ROOT / "README.md"
    text = path.read_text()
    before, rest = text.split(_START)
    after = rest.split(_END)[1]
    new = f"{before}{_START}\n\n{table(_ROOT / 'results')}\n\n{_END}{after}"
    if "--check" in sys.argv[1:]:
        if new != text:
            print("README.md's results are out of date: run python launch/update_readme.py")
        return int(new != text)
    path.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
