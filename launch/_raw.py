"""What the modules of generated tables share: files under results/ and cells of scores."""

import json
import pathlib
from typing import Any

import numpy as np
from _command import ROOT

from dawm_jax.report import cells, runs
from dawm_jax.report.runs import MethodResult, Run
from dawm_jax.types import UserError

RESULTS = ROOT / "results"
PROTOCOL = RESULTS / "protocol"


# --- files --------------------------------------------------------------------------------


def read(path: pathlib.Path) -> Any:
    """Content of a JSON file.

    Raises:
      UserError: the file is missing or damaged.
    """
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: expected readable JSON ({error})") from error


def json_lines(path: pathlib.Path) -> list[dict[str, Any]]:
    """Content of a file with one JSON object in each line."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def runs_of(folder: str) -> list[Run]:
    """The runs below results/FOLDER, sorted by folder."""
    return sorted(runs.load((RESULTS / folder).glob("*/")), key=lambda run: run.path)


def single(folder: pathlib.Path) -> MethodResult:
    """The result of one run."""
    (result,) = runs.group(runs.load([folder]))
    return result


# --- results ------------------------------------------------------------------------------


def task_name(result: MethodResult) -> str:
    """Name of a task of the protocol, as in "hopper medium-replay"."""
    return dataset_name(result.task)


def dataset_name(dataset: str) -> str:
    """Likewise of its dataset, dawm/hopper/medium-replay-200k-v1."""
    _, name, tier = dataset.split("/")
    return f"{name} {tier.removesuffix('-200k-v1')}"


def robot_name(result: MethodResult) -> str:
    """The first word of `task_name`, also of a task of few episodes: "hopper"."""
    return result.whole_task.split("/")[1]


def last_scores(result: MethodResult) -> np.ndarray:
    """[seeds] last scores of a result that has scores."""
    assert result.last is not None
    return result.last


def last_score(result: MethodResult) -> str:
    """Mean of the last scores with its interval."""
    return cells.mean_with_interval(result, result.last)
