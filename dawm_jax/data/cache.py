"""Flat copies of datasets in the user's cache folder."""

import hashlib
import logging
import pathlib
from collections.abc import Callable

from dawm_jax.data import flat_file
from dawm_jax.data.dataset import OfflineDataset, validate
from dawm_jax.runtime import paths

_log = logging.getLogger(__name__)

_FORMAT = 2  # part of every copy's key; must grow when the stored arrays change


def cached(
    name: str, files: tuple[pathlib.Path, ...], load: Callable[[str], OfflineDataset]
) -> OfflineDataset:
    """The cached copy of a dataset; reads the dataset and writes a copy if there is none.

    Args:
      name: of the dataset.
      files: the dataset's files; a change of their place, size or time makes the copy stale.
      load: reads the dataset from its files, given its name.
    """
    folder = paths.cache("datasets")
    if folder is None:
        return load(name)
    path = folder / f"{_fingerprint(files)}.npz"
    if (copy := _read(path, name)) is not None:
        return copy
    dataset = load(name)
    try:
        flat_file.write(dataset, path, compress=False)
    except OSError as error:
        _log.warning("no cached copy of %s was kept in %s (%s)", name, folder, error)
    return dataset


def _read(path: pathlib.Path, name: str) -> OfflineDataset | None:
    """The copy at `path`; None if it is absent, unreadable or damaged."""
    try:
        return validate(flat_file.read(path, name)) if path.is_file() else None
    except OSError as error:
        _log.warning("the cached copy %s cannot be read (%s); reading %s again", path, error, name)
    except Exception:  # see `flat_file.read`
        _log.warning("the cached copy %s is damaged; reading %s again", path, name)
    return None


def _fingerprint(files: tuple[pathlib.Path, ...]) -> str:
    parts = [f"{path.resolve()}:{path.stat().st_size}:{path.stat().st_mtime_ns}" for path in files]
    return hashlib.sha256("|".join([str(_FORMAT), *parts]).encode()).hexdigest()[:24]
