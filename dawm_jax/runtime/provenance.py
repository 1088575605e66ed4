"""Where numbers come from (host, versions, commit), and files that appear whole or not at all."""

import contextlib
import hashlib
import json
import os
import pathlib
import platform
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any

# The packages whose versions can change the numbers of a run.
_PACKAGES = (
    "dawm_jax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "minari",
    "gymnasium",
    "mujoco",
)
_GIT_TIMEOUT_S = 10


def num_cores() -> int:
    """Number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_model() -> str:
    """Name of the host's CPU, such as "AMD EPYC 7B13"; may be empty where none is known."""
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":")[1].strip() for line in file if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Installed versions of this package and of the libraries that can change its numbers."""
    return {package: _version(package) for package in _PACKAGES}


def commit() -> str | None:
    """Short hash of the source's git commit; "+" is appended if tracked files differ from it.

    None if no git repository tracks the source, as where the package is installed below another
    project, or git is not installed.
    """
    try:
        _git("ls-files", "--error-unmatch", pathlib.Path(__file__).name)
        return _git("rev-parse", "--short", "HEAD") + (
            "+" if _git("status", "--porcelain", "-uno") else ""
        )
    except (OSError, subprocess.SubprocessError):
        return None


@contextlib.contextmanager
def whole_file(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Makes a file visible at `path` only when it is completely written.

    Readers of `path` see the old content or the new one, also if two processes write at once.

    Args:
      path: the file to create or replace; its folder must exist. A symbolic link at `path` is
        replaced, and its target is left as it is.

    Yields:
      A path to write to, in a new private folder beside `path`. It is moved to `path` if the
      `with` block succeeds; nothing is left of it if the block raises.
    """
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        temporary = pathlib.Path(folder) / "part"
        yield temporary
        temporary.replace(path)


def digest(content: Mapping[str, Any], field: str) -> str:
    """SHA-256 of JSON-able content without its entry `field`, which is where a file stores it."""
    others = {name: value for name, value in content.items() if name != field}
    return hashlib.sha256(json.dumps(others).encode()).hexdigest()


def write_atomically(path: pathlib.Path, text: str) -> None:
    """Writes a text file that is visible only when complete; see `whole_file`."""
    with whole_file(path) as temporary:
        temporary.write_text(text)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments],
        cwd=pathlib.Path(__file__).parent,
        capture_output=True,
        text=True,
        check=True,
        timeout=_GIT_TIMEOUT_S,
    ).stdout.strip()
