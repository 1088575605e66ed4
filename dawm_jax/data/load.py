"""`load_dataset` reads any dataset by its name; `dataset_from_arrays` takes arrays in memory."""

import logging
from collections.abc import Mapping

from numpy.typing import ArrayLike

from dawm_jax.data import cache as cache_lib
from dawm_jax.data.dataset import OfflineDataset
from dawm_jax.data.flat_arrays import from_flat_arrays, from_mapping
from dawm_jax.data.memory import memory_name
from dawm_jax.data.sources import source_of
from dawm_jax.types import UserError

_log = logging.getLogger(__name__)


def load_dataset(name: str, *, cache: bool = True) -> OfflineDataset:
    """Reads a dataset, after downloading or collecting it if it is absent.

    What was odd in the data (`OfflineDataset.notes`) is logged, also when a cached copy is read.

    Args:
      name: one of
        bundled/hopper/medium-v0     ships with the package
        /path/to/file.hdf5           a D4RL v2 file: flat arrays, `terminals`, `timeouts`
        /path/to/file.npz            the same arrays in NumPy's format
        dawm/hopper/medium-v1        collected from policies in the package
        mujoco/hopper/medium-v0      any other name is a Minari id, downloaded when absent
      cache: keep a flat copy in the user's cache folder and read it in later calls. Thousands
        of small HDF5 objects take seconds to minutes to read.

    Returns:
      Whole episodes, float32, valid (see `dataset.validate`).

    Raises:
      UserError: the dataset is missing, unreadable, unreachable, malformed or not continuous
        control.
    """
    if not name.isprintable():
        raise UserError(f"config.dataset: expected a name in one line, got {name!r}")
    source = source_of(name)
    try:
        files = source.fetch(name)
        cached = cache and files
        dataset = cache_lib.cached(name, files, source.load) if cached else source.load(name)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise UserError(f"dataset {name}: {where}{error.strerror or error}") from error
    _log_notes(dataset)
    return dataset


def dataset_from_arrays(
    observations: ArrayLike,
    actions: ArrayLike,
    rewards: ArrayLike,
    terminals: ArrayLike,
    timeouts: ArrayLike | None = None,
    next_observations: ArrayLike | None = None,
    *,
    name: str = "arrays",
    environment: str | None = None,
) -> OfflineDataset:
    """A dataset from flat arrays of all episodes, as D4RL's files hold them.

    Args:
      observations: [N, S].
      actions: [N, A] floats, in the environment's units.
      rewards: [N].
      terminals: [N], 1 where the environment ended the episode, else 0.
      timeouts: [N], 1 where the episode was cut, else 0; None: where `next_observations` is not
        the next row's observation.
      next_observations: [N, S]; None: the next row's observation, without the last step of
        each cut episode.
      name: for logs and the run's configuration.
      environment: Gymnasium id of the data's environment, or None.

    Returns:
      Whole episodes; `dawm_jax.train(config, workdir, dataset=...)` trains on them.

    Raises:
      UserError: see `data.flat_arrays.from_flat_arrays`.
    """
    dataset = from_flat_arrays(
        memory_name(name),
        observations,
        actions,
        rewards,
        terminals,
        timeouts=timeouts,
        next_observations=next_observations,
        environment=environment,
    )
    _log_notes(dataset)
    return dataset


def dataset_from_mapping(
    arrays: Mapping[str, ArrayLike], *, name: str = "arrays"
) -> OfflineDataset:
    """`dataset_from_arrays` of a dictionary; arrays of other names are ignored.

    Raises:
      UserError: an array is missing; see `dataset_from_arrays`.
    """
    dataset = from_mapping(memory_name(name), arrays)
    _log_notes(dataset)
    return dataset


def _log_notes(dataset: OfflineDataset) -> None:
    for note in dataset.notes:
        _log.warning("dataset %s: %s", dataset.name, note)
