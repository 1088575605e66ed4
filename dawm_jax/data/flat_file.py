"""One dataset as one .npz file of flat arrays."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from dawm_jax.data.dataset import OfflineDataset
from dawm_jax.envs import perturbed
from dawm_jax.envs.recorded import Recorded
from dawm_jax.envs.tasks import References
from dawm_jax.runtime import provenance


def write(dataset: OfflineDataset, path: pathlib.Path, *, compress: bool) -> None:
    """Writes `dataset` to `path`, whole or not at all; makes the folder if it is absent.

    Next observations are stored only where they are not the next row's observation.

    Args:
      dataset: a valid dataset.
      path: of the file.
      compress: makes the file smaller and slower to read.

    Raises:
      OSError: the file cannot be written.
    """
    ends = dataset.episode_ends
    arrays = {
        "observations": dataset.observations,
        "actions": dataset.actions,
        "rewards": dataset.rewards,
        "terminations": np.packbits(dataset.terminations),
        "episode_ends": ends.astype(np.int64),
        "final_observations": dataset.next_observations[ends],
        "meta": np.array(json.dumps(_meta(dataset))),
    }
    successors = _successors(dataset.observations, ends, arrays["final_observations"])
    if not np.array_equal(successors, dataset.next_observations):
        arrays["next_observations"] = dataset.next_observations
    path.parent.mkdir(parents=True, exist_ok=True)
    with provenance.whole_file(path) as part, part.open("wb") as file:
        if compress:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
        else:
            np.savez(file, **arrays)  # type: ignore[arg-type]


def read(path: pathlib.Path, name: str) -> OfflineDataset:
    """Reads what `write` wrote.

    Args:
      path: of the file.
      name: of the dataset.

    Raises:
      Exception: a damaged archive raises errors of many kinds (zipfile, zlib, EOF, JSON).
    """
    with np.load(path) as file:
        arrays = {key: file[key] for key in file.files}
    observations, ends = arrays["observations"], arrays["episode_ends"]
    next_observations = arrays.get("next_observations")
    if next_observations is None:
        next_observations = _successors(observations, ends, arrays["final_observations"])
    terminations = np.unpackbits(arrays["terminations"], count=len(observations)).astype(bool)
    truncations = np.zeros_like(terminations)
    truncations[ends] = ~terminations[ends]
    return OfflineDataset(
        name=name,
        observations=observations,
        actions=arrays["actions"],
        rewards=arrays["rewards"],
        next_observations=next_observations,
        terminations=terminations,
        truncations=truncations,
        **_from_meta(json.loads(str(arrays["meta"]))),
    )


def _meta(dataset: OfflineDataset) -> dict[str, Any]:
    """What is known of a dataset beside its arrays, as JSON holds it."""
    recorded = dataset.recorded
    return {
        "environment": dataset.environment,
        "recorded": None if recorded is None else dataclasses.asdict(recorded),
        "references": dataset.references,
        "notes": dataset.notes,
    }


def _from_meta(meta: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `_meta`; files of earlier versions hold the environment alone."""
    recorded, references = meta.get("recorded"), meta.get("references")
    if recorded is not None:
        physics = perturbed.from_metadata(recorded.get("physics"))
        wrappers = tuple(recorded["wrappers"])
        recorded = Recorded(**{**recorded, "wrappers": wrappers, "physics": physics})
    return {
        "environment": meta["environment"],
        "recorded": recorded,
        "references": None if references is None else References(*references),
        "notes": tuple(meta.get("notes", ())),
    }


def _successors(
    observations: np.ndarray, ends: np.ndarray, final_observations: np.ndarray
) -> np.ndarray:
    """The next row within an episode, the episode's final observation at its end, [N, S]."""
    successors = np.concatenate([observations[1:], observations[-1:]])
    successors[ends] = final_observations
    return successors
