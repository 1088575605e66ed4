"""A run's folder: made, locked, and refused to another configuration."""

import contextlib
import fcntl
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from dawm_jax.runtime import provenance
from dawm_jax.types import UserError, first_line

_CONFIG, _LOCK = "config.json", ".lock"


class Migrate(Protocol):
    """Gives a configuration that an older version stored the settings of this version."""

    def __call__(self, stored: Mapping[str, Any], /) -> Mapping[str, Any]: ...


def _unchanged(stored: Mapping[str, Any], /) -> Mapping[str, Any]:
    return stored


@contextlib.contextmanager
def own(
    workdir: pathlib.Path, config: Mapping[str, Any], *, migrate: Migrate = _unchanged
) -> Iterator[None]:
    """Makes and locks the folder; refuses one of another configuration.

    Args:
      workdir: the folder.
      config: JSON-able; compared with the folder's config.json, if there is one.
      migrate: applied to the stored configuration before the comparison.

    Raises:
      UserError: it cannot be written, is in use, or holds another configuration.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = (workdir / _LOCK).open("w")
    except OSError as error:
        raise UserError(
            f"--workdir {workdir} cannot be written ({error.strerror}); choose another folder"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"--workdir {workdir} is in use by another run; wait for it or choose another"
            ) from None
        if (workdir / _CONFIG).exists():
            _refuse_other_config(workdir, migrate(read_config(workdir)), config)
        yield


def check_shared(workdir: pathlib.Path) -> None:
    """Checks that this process sees the folder that process 0 owns.

    Raises:
      UserError: it does not.
    """
    if not (workdir / _LOCK).exists():
        raise UserError(
            f"--workdir {workdir} is not shared: process 0 made it, another cannot see it; "
            "choose a folder that all hosts mount"
        )


def read_config(workdir: pathlib.Path) -> dict[str, Any]:
    """The configuration that a run's folder stores, of whatever version wrote it.

    Raises:
      UserError: there is none, or it is damaged.
    """
    path = workdir / _CONFIG
    if not path.is_file():
        raise UserError(f"{workdir} is not a run: expected a {_CONFIG} in it")
    try:
        stored = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({first_line(error)}); restore it") from error
    if not isinstance(stored, dict):
        raise UserError(f"{path}: expected a configuration, got {stored!r}; restore it")
    return stored


def write_config(workdir: pathlib.Path, config: Mapping[str, Any]) -> None:
    """Claims the folder for `config`: writes config.json, whole or not at all."""
    provenance.write_atomically(workdir / _CONFIG, json.dumps(config, indent=2) + "\n")


def _refuse_other_config(
    workdir: pathlib.Path, stored: Mapping[str, Any], config: Mapping[str, Any]
) -> None:
    """Raises if the two configurations differ, and says in what."""
    # A round trip through JSON turns tuples into lists, as in the stored configuration.
    old = _flatten(json.loads(json.dumps(stored)))
    new = _flatten(json.loads(json.dumps(config)))
    changed = [
        f"{name}: {old.get(name)!r} there, {new.get(name)!r} here"
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    ]
    if changed:
        raise UserError(
            f"{workdir} holds a run of another configuration ({'; '.join(changed[:4])}"
            f"{'; …' if len(changed) > 4 else ''}); choose another --workdir"
        )


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat.update(_flatten(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat
