"""A run's folder: made, locked, and refused to another configuration."""

import contextlib
import fcntl
import json
import pathlib
from collections.abc import Iterator
from typing import Any

from dawm_jax.types import UserError


@contextlib.contextmanager
def own(workdir: pathlib.Path, config: dict[str, Any]) -> Iterator[None]:
    """Makes and locks the folder; refuses one of another configuration.

    Args:
      workdir: the folder.
      config: JSON-able; compared with the folder's config.json, if there is one.

    Raises:
      UserError: it cannot be written, is in use, or holds another configuration.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = (workdir / ".lock").open("w")
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
        _refuse_other_config(workdir / "config.json", config)
        yield


def _refuse_other_config(path: pathlib.Path, config: dict[str, Any]) -> None:
    """Raises if config.json holds another configuration, with the difference."""
    if not path.exists():
        return
    old = _flatten(json.loads(path.read_text()))
    new = _flatten(json.loads(json.dumps(config)))  # as it would be read back
    changed = [
        f"{name}: {old.get(name)!r} there, {new.get(name)!r} here"
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    ]
    if changed:
        raise UserError(
            f"{path.parent} holds a run of another configuration ({'; '.join(changed[:4])}"
            f"{'; …' if len(changed) > 4 else ''}); choose another --workdir"
        )


def write_config(workdir: pathlib.Path, config: dict[str, Any]) -> None:
    """Claims the folder for `config`: writes config.json, atomically."""
    path = workdir / "config.json"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(config, indent=2) + "\n")
    temporary.replace(path)


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat.update(_flatten(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat
