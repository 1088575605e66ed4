"""Minari datasets, read from MINARI_DATASETS_PATH and downloaded when absent."""

import logging
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from dawm_jax.data import bundled
from dawm_jax.data.dataset import OfflineDataset, validate
from dawm_jax.data.sources import SOURCES
from dawm_jax.types import UserError, first_line, one_line

_log = logging.getLogger(__name__)

_CONNECTION_TIMEOUT_S = 5.0


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
        try:
            episodes = list(dataset.iterate_episodes())
        except Exception as error:
            raise UserError(
                f"dataset {name}: its episodes cannot be read ({first_line(error)}); "
                f"run: minari download --force {name}"
            ) from error
        spec = dataset.env_spec
        return from_episodes(name, episodes, environment=None if spec is None else spec.id)


MINARI = MinariSource()
SOURCES.register(MINARI)


def is_local(name: str) -> bool:
    """Whether a Minari dataset's folder exists, complete or from an interrupted download."""
    import minari

    return (pathlib.Path(minari.storage.get_dataset_path(name)) / "data").is_dir()


def from_episodes(
    name: str, episodes: Sequence[Episode], environment: str | None = None
) -> OfflineDataset:
    """A dataset from Minari episodes.

    An episode without an end was left open by its recorder: its last step is a truncation.

    Args:
      name: of the dataset.
      episodes: with T + 1 observations and T of everything else.
      environment: Gymnasium id, or None if it is unknown.

    Raises:
      UserError: an episode is empty, or the result is not a valid dataset.
    """
    for index, episode in enumerate(episodes):
        if len(episode.rewards) == 0 or len(episode.observations) < 2:
            raise UserError(f"dataset {name}: episode {index} is empty: expected at least one step")
    if not episodes:
        raise UserError(f"dataset {name} has no episodes")

    def join(pick: Callable[[Episode], np.ndarray]) -> np.ndarray:
        return np.concatenate([pick(episode) for episode in episodes])

    terminations = join(lambda e: np.asarray(e.terminations, bool))
    truncations = join(lambda e: np.asarray(e.truncations, bool))
    truncations[np.cumsum([len(e.rewards) for e in episodes]) - 1] = True
    return validate(
        OfflineDataset(
            name=name,
            observations=join(lambda e: np.asarray(e.observations[:-1], np.float32)),
            actions=join(lambda e: np.asarray(e.actions, np.float32)),
            rewards=join(lambda e: np.asarray(e.rewards, np.float32)),
            next_observations=join(lambda e: np.asarray(e.observations[1:], np.float32)),
            terminations=terminations,
            truncations=truncations & ~terminations,
            environment=environment,
        )
    )


def _folder(name: str) -> pathlib.Path:
    """The local folder of a Minari id, which need not exist."""
    import minari
    from minari.dataset import minari_dataset

    try:
        minari_dataset.parse_dataset_id(name)
    except (ValueError, TypeError):  # TypeError: an id without a version
        raise UserError(
            f"unknown dataset {name!r}: expected a Minari id such as mujoco/hopper/medium-v0, "
            f"the path of a D4RL .hdf5 file, or a bundled one ({', '.join(bundled.names())})"
        ) from None
    return pathlib.Path(minari.storage.get_dataset_path(name))


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
            f"dataset {name}: Minari cannot open it ({first_line(error)}); if a download "
            f"broke off, run: minari download --force {name}"
        ) from error


def _check_spaces(name: str, dataset: Any) -> None:
    """Raises UserError unless actions and observations are flat Boxes."""
    import gymnasium as gym

    spaces = (("actions", dataset.action_space), ("observations", dataset.observation_space))
    for kind, space in spaces:
        if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1:
            raise UserError(
                f"dataset {name}: expected a flat Box space of {kind}, got {one_line(space)}; "
                "only continuous control from vectors is supported"
            )
