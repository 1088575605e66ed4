"""Writes the generated tables and sentences of README.md and docs/ from the files under results/.

python launch/tables.py            rewrites them
python launch/tables.py --check    changes nothing; exit code 1 if one is out of date or missing

A table or text stands between the lines `<!-- begin NAME -->` and `<!-- end NAME -->` of its file.
The rest of the file is left alone.
"""

import dataclasses
import pathlib
import sys
from collections.abc import Callable

from _command import ROOT, Parser

# This folder goes to the end of the import path: its modules have names of installed packages.
sys.path[0] = str(ROOT)
sys.path.append(str(pathlib.Path(__file__).resolve().parent))

import _tables_protocol  # noqa: E402
import _tables_quality  # noqa: E402
import _tables_speed  # noqa: E402
import _tables_tasks  # noqa: E402
import _tables_trials  # noqa: E402

from dawm_jax.config import help  # noqa: E402
from dawm_jax.types import UserError, first_line  # noqa: E402


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


BLOCKS = (
    Block("docs/choices.md", "recipes", _tables_trials.recipes),
    Block("docs/choices.md", "critics", _tables_trials.critics),
    Block("docs/choices.md", "terminations", _tables_trials.terminations),
    Block("docs/choices.md", "held-out-curves", _tables_trials.held_out_curves),
    Block("docs/choices.md", "start-weights", _tables_trials.start_weights),
    Block("docs/choices.md", "cpu-devices", _tables_trials.cpu_devices),
    Block("docs/choices.md", "world-model", _tables_trials.world_model_trials),
    Block("docs/choices.md", "inverse-dynamics", _tables_trials.inverse_dynamics_trials),
    Block("docs/choices.md", "equal-seconds", _tables_trials.equal_seconds),
    Block("docs/choices.md", "best-of", _tables_trials.best_of),
    Block("docs/choices.md", "open-loop", _tables_trials.open_loop),
    Block("docs/choices.md", "disagreement", _tables_trials.disagreement),
    Block("docs/choices.md", "advantages", _tables_trials.advantages),
    Block("docs/choices.md", "volume", _tables_protocol.volume),
    Block("docs/configuration.md", "configuration", help.table),
    Block("docs/results.md", "results", _tables_protocol.headline),
    Block("README.md", "gains", _tables_protocol.gains),
    Block("README.md", "longer-returns", _tables_protocol.longer_returns),
    Block("README.md", "little-data", _tables_protocol.little_data),
    Block("README.md", "fine-tuned", _tables_protocol.fine_tuned),
    Block("README.md", "speed", _tables_speed.speed_summary),
    Block("docs/results.md", "gains", _tables_protocol.gains),
    Block("docs/results.md", "main", _tables_protocol.comparison),
    Block("docs/results.md", "rivals", _tables_protocol.rivals),
    Block("docs/performance.md", "speed", _tables_speed.speed),
    Block("docs/performance.md", "inference", _tables_speed.inference),
    Block("docs/performance.md", "exchange", _tables_speed.exchange),
    Block("docs/performance.md", "chips", _tables_speed.chips),
    Block("docs/quality.md", "quality", _tables_quality.quality),
    Block("docs/datasets.md", "datasets", _tables_tasks.datasets),
    Block("docs/reliability.md", "reliability", _tables_tasks.reliability),
    Block("docs/robotics.md", "robotics", _tables_tasks.robotics),
    Block("docs/finetuning.md", "fine-tuning", _tables_protocol.fine_tuning),
    Block("docs/results.md", "second", _tables_protocol.second_models),
    Block("docs/results.md", "world-models", _tables_protocol.world_models),
    Block("docs/results.md", "dwm-lead", _tables_protocol.dwm_lead),
    Block("docs/results.md", "targets", _tables_protocol.targets),
    Block("docs/results.md", "completion", _tables_protocol.completion),
    Block("docs/results.md", "horizons", _tables_protocol.horizons),
    Block("docs/results.md", "few", _tables_protocol.few),
    Block("docs/results.md", "few-again", _tables_protocol.few_again),
    Block("docs/results.md", "few-quality", _tables_quality.few_quality),
    Block("docs/choices.md", "derived", _tables_trials.derived_columns),
    Block("docs/robustness.md", "robustness", _tables_tasks.robustness),
    Block("docs/many-dimensions.md", "policies", _tables_tasks.policies),
    Block("docs/many-dimensions.md", "many-dimensions", _tables_tasks.many_dimensions),
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
