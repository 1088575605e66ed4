"""Scores that papers and repositories published on D4RL v2, to stand beside our own.

Normalised, 100 = expert. They are of D4RL's data: only a run on a D4RL v2 file can be held
against them.
"""

import re

# Columns of the tables below, in their order of tasks.
_TASKS = tuple(
    f"{task}-{tier}"
    for tier in ("medium", "medium-replay", "medium-expert")
    for task in ("hopper", "walker2d", "halfcheetah")
)

# DWM (2402.03570), table of its main results: the best of a grid of target returns and
# horizons that was evaluated on the simulator, five seeds.
_DWM = {
    "DWM-TD3+BC": (65, 70, 46, 53, 46, 43, 103, 110, 75),
    "DWM-IQL": (54, 76, 44, 61, 35, 41, 90, 104, 71),
    "TD3+BC": (58, 77, 47, 53, 75, 43, 90, 108, 73),
    "IQL": (48, 75, 46, 25, 48, 44, 86, 109, 60),
    "Decision Diffuser": (49, 67, 49, 66, 44, 38, 106, 99, 91),
    "One-step-TD3+BC": (39, 39, 44, 26, 23, 43, 31, 60, 27),
    "One-step-IQL": (45, 52, 44, 25, 24, 42, 39, 57, 61),
}
# BC, IQL: tables collected by Diffuser's repository; %BC, TD3+BC: CORL's runs, the last
# evaluation; DD: its own numbers (2211.15657).
_OTHERS = {
    "BC": (52.9, 75.3, 42.6, 18.1, 26.0, 36.6, 52.5, 107.5, 55.2),
    "10 % BC": (55.5, 67.3, 42.5, 70.4, 54.4, 23.6, 111.2, 108.7, 90.1),
    "TD3+BC": (60.4, 82.7, 48.1, 64.4, 85.6, 44.8, 101.2, 110.0, 90.8),
    "IQL": (66.3, 78.3, 47.4, 94.7, 73.9, 44.2, 91.5, 109.6, 86.7),
    "Decision Diffuser": (79.3, 82.5, 49.1, 100.0, 75.0, 39.3, 111.8, 108.8, 90.6),
}
SOURCES = ("DWM's paper", "other publications")
# DAWM (2509.19538): the gain of its average over DWM's, as its abstract says; its tables are
# not public.
GAINS_OVER_DWM = {"td3_bc": 9.3, "iql": 9.5}

_TIER = re.compile(r"medium[-_]expert|medium[-_]replay|medium")


def task_of(environment: str, dataset: str) -> str | None:
    """D4RL's name of the task that a run's data stand for, or None if there is none."""
    tier = _TIER.search(dataset.rsplit("/", 1)[-1])
    name = environment.split("-")[0].lower()
    task = f"{name}-{tier[0].replace('_', '-')}" if tier else ""
    return task if task in _TASKS else None


def is_same_data(dataset: str) -> bool:
    """Whether it is D4RL's own v2 file, as far as its name tells."""
    return bool(re.search(r"-v2\.hdf5$", dataset))


def scores_of(task: str) -> dict[str, list[float | None]]:
    """Published scores of a task, by method as our own reports name it: a list over SOURCES."""
    column = _TASKS.index(task)
    pick = lambda table, method: float(table[method][column]) if method in table else None
    methods = dict.fromkeys([*_DWM, *_OTHERS])
    return {method: [pick(table, method) for table in (_DWM, _OTHERS)] for method in methods}
