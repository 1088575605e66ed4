"""Files of flat arrays with D4RL's names: HDF5, as D4RL stores them, and NumPy's .npz."""

import os
import pathlib
import zipfile
from collections.abc import Mapping

import numpy as np

from dawm_jax.data.dataset import OfflineDataset
from dawm_jax.data.flat_arrays import OPTIONAL, REQUIRED, from_mapping
from dawm_jax.data.flat_arrays import from_flat_arrays as from_flat_arrays
from dawm_jax.data.sources import SOURCES
from dawm_jax.runtime import paths
from dawm_jax.types import UserError, first_line


class D4rlSource:
    """Reads a D4RL v2 file, given its path."""

    name = "d4rl"
    priority = 10

    def matches(self, name: str) -> bool:
        return name.endswith((".hdf5", ".h5")) or name.startswith(os.path.sep)

    def fetch(self, name: str) -> tuple[pathlib.Path, ...]:
        return (_existing(name),)

    def load(self, name: str) -> OfflineDataset:
        return from_mapping(name, _read_hdf5(paths.expand(name, "config.dataset")))


class NpzSource:
    """Reads an .npz file of the same arrays, given its path."""

    name = "flat_npz"
    priority = 5  # before `D4rlSource`, which matches every absolute path

    def matches(self, name: str) -> bool:
        return name.endswith(".npz")

    def fetch(self, name: str) -> tuple[pathlib.Path, ...]:
        _existing(name)
        return ()  # a flat file already: a cached copy would read no faster

    def load(self, name: str) -> OfflineDataset:
        return from_mapping(name, _read_npz(paths.expand(name, "config.dataset")))


SOURCES.register(D4rlSource())
SOURCES.register(NpzSource())


def _existing(name: str) -> pathlib.Path:
    path = paths.expand(name, "config.dataset")
    if not path.is_file():
        what = "a folder" if path.is_dir() else "nothing there"
        raise UserError(
            "dataset file not found: expected a D4RL HDF5 file, or an .npz file of the same "
            f"arrays, at {path}, got {what}; check the path"
        )
    return path


def _read_hdf5(path: pathlib.Path) -> Mapping[str, np.ndarray]:
    """The file's arrays of D4RL's names; groups and other arrays are left out."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            stored = [key for key in (*REQUIRED, *OPTIONAL) if key in file]
            return {key: _read_array(file[key], key, path) for key in stored}
    except UserError:
        raise
    except Exception as error:  # a damaged file raises OSError, KeyError, RuntimeError, ...
        raise UserError(f"{path}: not a readable HDF5 file ({first_line(error)})") from error


def _read_array(node: object, key: str, path: pathlib.Path) -> np.ndarray:
    import h5py

    if not isinstance(node, h5py.Dataset):
        raise UserError(f"{path}: expected an array {key}, got an HDF5 {type(node).__name__}")
    if node.shape is None:
        raise UserError(f"{path}: expected an array {key}, got one without a shape")
    try:
        return np.asarray(node[()])
    except (MemoryError, ValueError) as error:
        raise UserError(
            f"{path}: {key} of shape {list(node.shape)} cannot be read ({first_line(error)})"
        ) from error


def _read_npz(path: pathlib.Path) -> Mapping[str, np.ndarray]:
    """The archive's arrays of D4RL's names; nothing in it is unpickled."""
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path}: expected an archive of arrays, as numpy.savez writes it")
    try:
        # NumPy leaves a file open that it opened itself and cannot read.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            return {key: file[key] for key in (*REQUIRED, *OPTIONAL) if key in file.files}
    except Exception as error:  # zipfile, zlib, EOF, objects that only a pickle could hold, ...
        raise UserError(f"{path}: not a readable .npz file ({first_line(error)})") from error
