"""Minari datasets, read from MINARI_DATASETS_PATH and downloaded when absent."""

import dataclasses
import logging
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from dawm_jax.data import bundled
from dawm_jax.data.dataset import OfflineDataset, float32_notes, validate
from dawm_jax.data.minari_folder import dataset_folder
from dawm_jax.data.sources import SOURCES
from dawm_jax.envs import perturbed, simulate
from dawm_jax.envs.perturbed import Physics
from dawm_jax.envs.recorded import Recorded, recorded
from dawm_jax.envs.tasks import References
from dawm_jax.types import UserError, first_line, one_line

_log = logging.getLogger(__name__)

_CONNECTION_TIMEOUT_S = 5.0
# Namespaces of Minari's server: `minari download` knows their datasets.
_HOSTED = ("D4RL", "atari", "minigrid", "mujoco")
# What the package collects from its own policies: see `collect.tiers`.
_COLLECTED = re.compile(r"dawm/.*-v1")


class Episode(Protocol):
    """An episode of T steps, as Minari returns it."""

    @property
    def observations(self) -> np.ndarray:
        """[T + 1, S]."""

    @property
    def actions(self) -> np.ndarray:
        """[T, A]."""

    @property
    def rewards(self) -> np.ndarray:
        """[T]."""

    @property
    def terminations(self) -> np.ndarray:
        """[T] bool."""

    @property
    def truncations(self) -> np.ndarray:
        """[T] bool."""


class MinariSource:
    """Reads the dataset of a Minari id, such as mujoco/hopper/medium-v0."""

    name = "minari"
    priority = 100  # the last one: it matches every name and explains unknown ones

    def matches(self, name: str) -> bool:
        return True

    def fetch(self, name: str) -> tuple[pathlib.Path, ...]:
        folder = _folder(name)
        if not is_local(name):
            _download(name, folder)
        return tuple(sorted(path for path in folder.rglob("*") if path.is_file()))

    def load(self, name: str) -> OfflineDataset:
        dataset = _open(name)
        _check_spaces(name, dataset)
        space = dataset.observation_space
        try:
            episodes = [_as_vectors(x, space) for x in dataset.iterate_episodes()]
        except Exception as error:
            raise UserError(
                f"dataset {name}: its episodes cannot be read ({first_line(error)}); "
                f"{_advice(name)}"
            ) from error
        spec, metadata = dataset.env_spec, dataset.storage.metadata
        return from_episodes(
            name,
            episodes,
            environment=None if spec is None else spec.id,
            made_with=None if spec is None else recorded(spec, _physics(metadata)),
            references=_references(metadata),
        )


MINARI = MinariSource()
SOURCES.register(MINARI)


def is_local(name: str) -> bool:
    """Whether a Minari dataset's folder exists, complete or from an interrupted download."""
    return (dataset_folder(name) / "data").is_dir()


def from_episodes(
    name: str,
    episodes: Sequence[Episode],
    environment: str | None = None,
    *,
    made_with: Recorded | None = None,
    references: References | None = None,
) -> OfflineDataset:
    """A dataset from Minari episodes.

    An episode without an end was left open by its recorder: its last step is a truncation.

    Args:
      name: of the dataset.
      episodes: with T + 1 observations and T of everything else.
      environment: Gymnasium id, or None if it is unknown.
      made_with: what the environment was made of, or None if it is unknown.
      references: returns of scores 0 and 100, or None if they are unknown.

    Raises:
      UserError: an episode is empty or malformed, or the result is not a valid dataset.
    """
    if not episodes:
        raise UserError(f"dataset {name} has no episodes")
    checked = [_arrays(episode, index, name) for index, episode in enumerate(episodes)]
    _check_sizes(checked, name)
    joined = {field: np.concatenate([arrays[field] for arrays in checked]) for field in checked[0]}
    del checked
    ends = np.cumsum([len(e.rewards) for e in episodes]) - 1
    terminations = _flags(joined["terminations"], ends, "terminations", name)
    truncations = _flags(joined["truncations"], ends, "truncations", name)
    truncations[ends] = True
    cast = ("observations", "actions", "rewards")
    notes = [note for field in cast for note in float32_notes(joined[field], field)]
    with np.errstate(over="ignore"):  # `validate` reports what becomes infinite
        vectors = {
            field: np.asarray(joined[field], np.float32) for field in (*cast, "next_observations")
        }
    return validate(
        OfflineDataset(
            name=name,
            **vectors,
            terminations=terminations,
            truncations=truncations & ~terminations,
            environment=environment,
            recorded=made_with,
            references=references,
            notes=tuple(notes),
        )
    )


# Fields of an episode -> number of axes, and how many entries it has beyond one per step.
_FIELDS = {
    "observations": (2, 1),
    "actions": (2, 0),
    "rewards": (1, 0),
    "terminations": (1, 0),
    "truncations": (1, 0),
}


def _arrays(episode: Episode, index: int, name: str) -> dict[str, np.ndarray]:
    """The arrays of an episode of T steps, [T, ...] each, in the data's precision."""
    where = f"dataset {name}: episode {index}"
    found = {field: np.asarray(getattr(episode, field)) for field in _FIELDS}
    steps = len(found["rewards"]) if found["rewards"].ndim else -1
    if steps == 0 or len(np.atleast_1d(found["observations"])) < 2:
        raise UserError(f"{where} is empty: expected at least one step")
    for field, array in found.items():
        axes, extra = _FIELDS[field]
        if array.dtype.kind not in "biuf":
            raise UserError(f"{where}: expected numbers in {field}, got {array.dtype}")
        if array.ndim != axes or len(array) != steps + extra or array.size == 0:
            size = ", size" if axes == 2 else ""
            raise UserError(
                f"{where}: expected {field} of shape [{steps + extra}{size}], got "
                f"{list(array.shape)}; {_advice(name)}"
            )
    if found["actions"].dtype.kind != "f":
        raise UserError(
            f"{where}: expected continuous actions of floats, got {found['actions'].dtype}; "
            "discrete actions are not supported"
        )
    observations = found["observations"]
    return {**found, "observations": observations[:-1], "next_observations": observations[1:]}


def _flags(joined: np.ndarray, ends: np.ndarray, field: str, name: str) -> np.ndarray:
    """The flags of all episodes as bool; UserError unless all are 0 or 1."""
    bad = np.flatnonzero((joined != 0) & (joined != 1))
    if len(bad):
        raise UserError(
            f"dataset {name}: episode {np.searchsorted(ends, bad[0])}: expected 0 or 1 in {field}, "
            f"got {joined[bad[0]]}; repair the data"
        )
    return joined.astype(bool)


def _check_sizes(episodes: Sequence[dict[str, np.ndarray]], name: str) -> None:
    """Raises UserError unless all episodes have vectors of one size."""
    for field in ("observations", "actions"):
        sizes = [arrays[field].shape[1] for arrays in episodes]
        other = next((i for i, size in enumerate(sizes) if size != sizes[0]), None)
        if other is not None:
            raise UserError(
                f"dataset {name}: expected {field} of one size, got {sizes[0]} in episode 0 and "
                f"{sizes[other]} in episode {other}; repair the data"
            )


def _references(metadata: dict[str, Any]) -> References | None:
    """The returns of scores 0 and 100 in Minari's metadata; None if they cannot be used."""
    values = [metadata.get(key) for key in ("ref_min_score", "ref_max_score")]
    try:
        low, high = (float(x) if isinstance(x, int | float) else np.nan for x in values)
    except OverflowError:  # JSON allows whole numbers of any size
        return None
    return References(low, high) if np.isfinite([low, high]).all() and low < high else None


def _physics(metadata: dict[str, Any]) -> Physics:
    """What `collect --physics` recorded in; unchanged in every other dataset."""
    collection = metadata.get("collection")
    found = collection.get("physics") if isinstance(collection, dict) else None
    return perturbed.from_metadata(found)


def _advice(name: str) -> str:
    """How to get the data of a damaged dataset again."""
    folder = dataset_folder(name)
    if name.split("/")[0] in _HOSTED or _was_downloaded(folder):
        return f"run: minari download --force {name}"
    if _COLLECTED.fullmatch(name):
        return f"delete {folder}, and the next run collects it again"
    return f"restore {folder} from where it was recorded, or record it again"


def _was_downloaded(folder: pathlib.Path) -> bool:
    """Whether a folder above has what the client of Minari's server keeps beside downloads."""
    return any((parent / ".cache" / "huggingface").is_dir() for parent in folder.parents[:3])


def _folder(name: str) -> pathlib.Path:
    """The local folder of a Minari id, which need not exist."""
    from minari.dataset import minari_dataset

    try:
        minari_dataset.parse_dataset_id(name)
    except (ValueError, TypeError):  # TypeError: an id without a version
        raise UserError(
            f"unknown dataset {name!r}: expected a Minari id such as mujoco/hopper/medium-v0, "
            "the path of a D4RL .hdf5 or .npz file, or a bundled one "
            f"({', '.join(bundled.names())})"
        ) from None
    return dataset_folder(name)


def _download(name: str, folder: pathlib.Path) -> None:
    import minari

    _log.info("%s is not in %s; downloading it", name, folder.parent)
    try:
        _check_network()
        minari.download_dataset(name)
    except Exception as error:
        raise UserError(
            f"dataset {name} is not in {folder} and could not be downloaded "
            f"({first_line(error)}); copy it there, set MINARI_DATASETS_PATH, or use a "
            f"bundled one ({', '.join(bundled.names())})"
        ) from error


def _check_network() -> None:
    """Raises OSError within seconds where the host that Minari downloads from is unreachable.

    The client of that host retries for half a minute before it gives up.
    """
    import socket
    import urllib.parse

    from huggingface_hub import constants

    behind_proxy = any(key in os.environ for key in ("HTTPS_PROXY", "https_proxy"))
    if os.environ.get("MINARI_REMOTE", "hf://").startswith("hf://") and not behind_proxy:
        host = urllib.parse.urlsplit(constants.ENDPOINT).hostname
        socket.create_connection((host, 443), timeout=_CONNECTION_TIMEOUT_S).close()


def _open(name: str) -> Any:
    """Minari's handle of a local dataset; Minari is imported only when a dataset is read."""
    import minari

    try:
        return minari.load_dataset(name)
    except Exception as error:
        raise UserError(
            f"dataset {name}: Minari cannot open it ({first_line(error)}); {_advice(name)}"
        ) from error


def _as_vectors(episode: Any, space: Any) -> Any:
    """An episode of Minari whose dictionaries of observations are vectors.

    The entries stand in the order of the sorted keys, as in `simulate.make_environment`.

    Args:
      episode: of Minari.
      space: of the dataset's observations.
    """
    if not isinstance(episode.observations, dict):
        return episode
    vectors = _concatenated(episode.observations, space, rows=len(episode.rewards) + 1)
    return dataclasses.replace(episode, observations=vectors)


def _concatenated(values: Any, space: Any, *, rows: int) -> np.ndarray:
    """Arrays [rows, ...] in nested dictionaries as one array [rows, S], by sorted keys."""
    if not isinstance(values, dict):
        array = np.asarray(values)
        if len(array) != rows:
            raise ValueError(f"{len(array)} observations in an episode of {rows - 1} steps")
        return array.reshape(rows, -1)
    parts = [_concatenated(values[key], space[key], rows=rows) for key in sorted(space.spaces)]
    return np.concatenate(parts, axis=1)


def _check_spaces(name: str, dataset: Any) -> None:
    """Raises UserError unless actions and observations are flat Boxes, or these make one."""
    import gymnasium as gym

    observations = dataset.observation_space
    if simulate.is_dictionary_of_boxes(observations):
        observations = gym.spaces.flatten_space(observations)
    spaces = (("actions", dataset.action_space), ("observations", observations))
    for kind, space in spaces:
        if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1:
            raise UserError(
                f"dataset {name}: expected a flat Box space of {kind}, got {one_line(space)}; "
                "only continuous control from vectors is supported"
            )
    if not np.issubdtype(dataset.action_space.dtype, np.floating):
        raise UserError(
            f"dataset {name}: expected continuous actions of floats, got a space of "
            f"{dataset.action_space.dtype}; discrete actions are not supported"
        )
