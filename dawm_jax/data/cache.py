"""Flat copies of datasets in the user's cache folder."""

import hashlib
import logging
import os
import pathlib
from collections.abc import Callable

from dawm_jax.data import flat_file
from dawm_jax.data.dataset import OfflineDataset, validate

_log = logging.getLogger(__name__)

_FORMAT = 1  # part of every copy's key; must grow when the stored arrays change


def cached(
    name: str, files: tuple[pathlib.Path, ...], load: Callable[[str], OfflineDataset]
) -> OfflineDataset:
    """The cached copy of a dataset; reads the dataset and writes a copy if there is none.

    Args:
      name: of the dataset.
      files: the dataset's files; a change of their place, size or time makes the copy stale.
      load: reads the dataset from its files, given its name.
    """
    path = _folder() / f"{_fingerprint(files)}.npz"
    if path.is_file():
        try:
            return validate(flat_file.read(path, name))
        except Exception:  # see `flat_file.read`
            _log.warning("the cached copy %s is damaged; reading %s again", path, name)
    dataset = load(name)
    try:
        flat_file.write(dataset, path, compress=False)
    except OSError as error:
        _log.warning("no cached copy of %s was kept (%s)", name, error)
    return dataset


def _folder() -> pathlib.Path:
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return pathlib.Path(root).expanduser() / "dawm_jax" / "datasets"


def _fingerprint(files: tuple[pathlib.Path, ...]) -> str:
    parts = [f"{path.resolve()}:{path.stat().st_size}:{path.stat().st_mtime_ns}" for path in files]
    return hashlib.sha256("|".join([str(_FORMAT), *parts]).encode()).hexdigest()[:24]
