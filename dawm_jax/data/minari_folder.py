"""The folder of Minari's datasets on this machine."""

import os
import pathlib

from dawm_jax.runtime import paths
from dawm_jax.types import UserError

_VARIABLE = "MINARI_DATASETS_PATH"


def dataset_folder(dataset_id: str) -> pathlib.Path:
    """The folder of a Minari id, which need not exist; Minari makes the folder of all datasets.

    A ~ in MINARI_DATASETS_PATH stands for the home folder. Minari itself takes it for the name of
    a folder, so that the variable is replaced for this process.

    Raises:
      UserError: the folder of all datasets cannot be made.
    """
    import minari

    if root := os.environ.get(_VARIABLE):
        os.environ[_VARIABLE] = str(paths.expand(root, _VARIABLE))
    try:
        return pathlib.Path(minari.storage.get_dataset_path(dataset_id))
    except OSError as error:
        folder = pathlib.Path(error.filename or root or "~/.minari")
        raise UserError(unwritable(folder, error.strerror)) from error


def unwritable(folder: pathlib.Path, reason: str | None) -> str:
    """What to tell of a folder that datasets cannot be written to."""
    why = f" ({reason})" if reason else ""
    return f"{folder} cannot be written{why}; set {_VARIABLE} to a folder that can"
