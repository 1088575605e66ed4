"""Snapshots of a policy in training, and the choice of D4RL's tiers among them."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from dawm_jax.collect.policies import Policies, load_policies, save_policies
from dawm_jax.envs.scores import reference_returns
from dawm_jax.types import Params

# Number of policies that stand for the replay buffer of medium-replay.
REPLAY_POLICIES = 8


class Snapshot(NamedTuple):
    """A scored snapshot."""

    step: int  # environment steps before it
    return_mean: float  # undiscounted, of whole episodes with sampled actions


def snapshot_path(workdir: pathlib.Path, step: int) -> pathlib.Path:
    """The file of the snapshot at an environment step."""
    return workdir / "snapshots" / f"{step:09d}.npz"


def save_snapshot(workdir: pathlib.Path, step: int, actor: Params) -> None:
    """Writes a policy's parameters to `snapshot_path`."""
    policies = Policies("", {"actor": jax.device_get(actor)}, {})
    save_policies(policies, snapshot_path(workdir, step))


def select(
    environment: str,
    settings: Mapping[str, Any],
    workdir: pathlib.Path,
    scored: Sequence[Snapshot],
) -> Policies:
    """The policies of D4RL's tiers, from the scored snapshots of a training.

    "expert" has the best score; the score of a snapshot is averaged with those of its two
    neighbours, so that one lucky score does not decide. "medium" is the first snapshot whose
    return passes R_random + (R_expert - R_random) / 3, with D4RL's references if the environment
    has them, else with the first and the expert snapshot of this training. "replay-0",
    "replay-1", ... are at most 8 evenly spaced snapshots up to medium.

    Args:
      environment: Gymnasium id.
      settings: settings of the training, JSON-able; kept in the card.
      workdir: folder of the snapshots.
      scored: all snapshots, in the order of their steps.
    """
    import gymnasium
    import mujoco

    chosen = _choose(environment, np.array([snapshot.return_mean for snapshot in scored]))
    return Policies(
        environment,
        {
            name: load_policies(snapshot_path(workdir, scored[index].step)).actors["actor"]
            for name, index in chosen.items()
        },
        {
            "algorithm": "SAC",
            "settings": dict(settings),
            "trained_steps": scored[-1].step,
            "policies": {name: scored[index]._asdict() for name, index in chosen.items()},
            "versions": {"gymnasium": gymnasium.__version__, "mujoco": mujoco.__version__},
        },
    )


def _choose(environment: str, returns: np.ndarray) -> dict[str, int]:
    """Name of a policy -> index of its snapshot; `returns` is [snapshots]."""
    padded = np.pad(returns, 1, mode="edge")
    expert = int(np.argmax((padded[:-2] + padded[1:-1] + padded[2:]) / 3))
    of_training = (float(returns[0]), float(returns[expert]))
    low, high = reference_returns(environment) or of_training
    medium = int(np.argmax(returns >= min(low + (high - low) / 3, returns.max())))
    spaced = np.linspace(0, medium, min(REPLAY_POLICIES, medium + 1)).round().astype(int)
    replay = {f"replay-{i}": int(index) for i, index in enumerate(spaced)}
    return {"medium": medium, "expert": expert, **replay}
