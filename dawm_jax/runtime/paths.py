"""Folders that a user names, and this package's cache in the user's home.

Both need a home folder, which a user without an entry in the system's user database may lack.
"""

import functools
import logging
import os
import pathlib

from dawm_jax.types import UserError

_log = logging.getLogger(__name__)


def expand(name: str, flag: str) -> pathlib.Path:
    """A path as a user wrote it, with ~ replaced by the home folder.

    Args:
      name: the path.
      flag: what named it, for the message: "--workdir".

    Raises:
      UserError: an empty name, or ~ without a known home folder.
    """
    if not name.strip():
        raise UserError(f"{flag}: expected a path, got {name!r}; is a variable of the shell empty?")
    try:
        return pathlib.Path(name).expanduser()
    except RuntimeError:
        raise UserError(
            f"{flag}: the home folder in {name} is not known; write the whole path, or set HOME"
        ) from None


def make_folder(name: str, flag: str) -> pathlib.Path:
    """Makes the folder of a command's results before the command computes them.

    Raises:
      UserError: it cannot be made or written; see also `expand`.
    """
    folder = expand(name, flag)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        reason = "" if os.access(folder, os.W_OK | os.X_OK) else "Permission denied"
    except OSError as error:
        reason = error.strerror or str(error)
    if reason:
        raise UserError(
            f"{flag} {folder}: expected a folder that can be written ({reason}); choose another"
        )
    return folder


def cache(name: str) -> pathlib.Path | None:
    """The folder `name` in $XDG_CACHE_HOME/dawm_jax or ~/.cache/dawm_jax, made when absent.

    None where it cannot be written; the first such call logs a warning.
    """
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        folder = pathlib.Path(root).expanduser() / "dawm_jax" / name
        folder.mkdir(parents=True, exist_ok=True)
        reason = "" if os.access(folder, os.W_OK | os.X_OK) else "Permission denied"
    except RuntimeError:
        reason = "the home folder is not known"
    except OSError as error:
        reason = error.strerror or str(error)
    if not reason:
        return folder
    _warn(root, reason)
    return None


@functools.cache  # one warning for all folders of the cache
def _warn(root: str, reason: str) -> None:
    _log.warning(
        "no cache in %s (%s): compiled programs and copies of datasets are not kept; set "
        "XDG_CACHE_HOME to a folder that can be written",
        root,
        reason,
    )
