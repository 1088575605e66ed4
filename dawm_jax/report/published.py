"""Scores that papers and repositories published on D4RL's v2 datasets.

Scores are normalised: 0 is D4RL's random policy, 100 its expert. They were measured on D4RL's
data, so that they can be compared with a run only if the run's dataset is a D4RL v2 file.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence

from dawm_jax.envs.tasks import task_name

# Columns of the tables below, in this order of tasks.
TASKS = tuple(
    f"{task}-{tier}"
    for tier in ("medium", "medium-replay", "medium-expert")
    for task in ("hopper", "walker2d", "halfcheetah")
)

# DWM (2402.03570), table of its main results, five seeds. Each score is the best of a grid of
# target returns and horizons that was evaluated on the simulator. DWM and its one-step baseline
# learn from expansions alone: `training.real_fraction` is 0.
_DWM = {
    "DWM-TD3+BC": (65, 70, 46, 53, 46, 43, 103, 110, 75),
    "DWM-IQL": (54, 76, 44, 61, 35, 41, 90, 104, 71),
    "TD3+BC": (58, 77, 47, 53, 75, 43, 90, 108, 73),
    "IQL": (48, 75, 46, 25, 48, 44, 86, 109, 60),
    "Decision Diffuser": (49, 67, 49, 66, 44, 38, 106, 99, 91),
    "One-step-TD3+BC": (39, 39, 44, 26, 23, 43, 31, 60, 27),
    "One-step-IQL": (45, 52, 44, 25, 24, 42, 39, 57, 61),
}
# BC and IQL: tables of Diffuser's repository. 10 % BC and TD3+BC: CORL's runs, last evaluation.
# Decision Diffuser: its own paper (2211.15657).
_OTHERS = {
    "BC": (52.9, 75.3, 42.6, 18.1, 26.0, 36.6, 52.5, 107.5, 55.2),
    "10 % BC": (55.5, 67.3, 42.5, 70.4, 54.4, 23.6, 111.2, 108.7, 90.1),
    "TD3+BC": (60.4, 82.7, 48.1, 64.4, 85.6, 44.8, 101.2, 110.0, 90.8),
    "IQL": (66.3, 78.3, 47.4, 94.7, 73.9, 44.2, 91.5, 109.6, 86.7),
    "Decision Diffuser": (79.3, 82.5, 49.1, 100.0, 75.0, 39.3, 111.8, 108.8, 90.6),
}
SOURCES = ("DWM's paper", "other publications")
# Gain of DAWM's average over DWM's in per cent, by agent: DAWM's abstract (2509.19538).
GAINS_OVER_DWM = {"TD3+BC": 9.3, "IQL": 9.5}

_TIER = re.compile(r"medium[-_]expert|medium[-_]replay|medium")


@dataclasses.dataclass(frozen=True)
class PublishedScore:
    """Scores of one method on one task, None where a source has none.

    Attributes:
      method: as this package labels its runs, so that both stand in one row.
      dwm_paper: score in DWM's paper.
      others: score in the other publications.
    """

    method: str
    dwm_paper: float | None
    others: float | None


def task_of(environment: str, dataset: str) -> str | None:
    """D4RL's name of a run's task and tier, None if the tables do not have it.

    Args:
      environment: Gymnasium id, Hopper-v5.
      dataset: name or path of the run's dataset.
    """
    tier = _TIER.search(dataset.rsplit("/", 1)[-1])
    name = task_name(environment)
    task = f"{name}-{tier[0].replace('_', '-')}" if tier else ""
    return task if task in TASKS else None


def is_same_data(dataset: str) -> bool:
    """Whether the name of the dataset is that of one of D4RL's v2 files."""
    return bool(re.search(r"-v2\.hdf5$", dataset))


def scores_of(task: str) -> list[PublishedScore]:
    """Every published score of a task of `TASKS`, one entry per method."""
    column = TASKS.index(task)
    return [
        PublishedScore(method, _score(_DWM, method, column), _score(_OTHERS, method, column))
        for method in dict.fromkeys([*_DWM, *_OTHERS])
    ]


def _score(table: Mapping[str, Sequence[float]], method: str, column: int) -> float | None:
    return float(table[method][column]) if method in table else None
