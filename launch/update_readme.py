"""Rewrites README.md's results table from results/*/results.json.

python launch/update_readme.py            rewrites the table
python launch/update_readme.py --check    exit code 1 if it is out of date
"""

import pathlib
import sys

_ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(_ROOT))

from dawm_jax import comparison, comparison_report  # noqa: E402

_START, _END = "<!-- results: made by launch/update_readme.py -->", "<!-- end of results -->"


def main() -> int:
    """Rewrites or checks the table; returns the exit code."""
    path = _ROOT / "README.md"
    text = path.read_text()
    before, rest = text.split(_START)
    after = rest.split(_END)[1]
    table = comparison_report.runs_table(comparison.load([_ROOT / "results"]))
    new = f"{before}{_START}\n\n{table}\n\n{_END}{after}"
    if "--check" in sys.argv[1:]:
        if new != text:
            print("README.md's results are out of date: run python launch/update_readme.py")
        return int(new != text)
    path.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
