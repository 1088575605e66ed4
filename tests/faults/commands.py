"""Commands of this package as processes that can be killed, starved of disk, and watched.

A process that has imported the libraries forks one child for each command, because the imports
take longer than the commands. The child is a process of its own: it starts JAX itself, and a kill
ends it alone. Run as a script, this file is that process.
"""

import contextlib
import dataclasses
import importlib
import json
import os
import pathlib
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[2]

# Compilation takes most of the time of a first run; the programs themselves run for milliseconds.
_XLA_FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
_POLL_S = 0.002
_TIMEOUT_S = 300.0


@dataclasses.dataclass(frozen=True)
class Command:
    """A command line.

    Attributes:
      module: whose `run` is called, such as "dawm_jax.main".
      arguments: of the command line.
      folder: the current folder of the process; MINARI_DATASETS_PATH is its folder "minari".
    """

    module: str
    arguments: tuple[str, ...]
    folder: pathlib.Path


@dataclasses.dataclass(frozen=True)
class FileStep:
    """A moment: before the change number `number`, from 0, of a file or folder.

    Attributes:
      number: of the change.
      parts: a change counts if one of them is in the path. Changes are calls of Python that
        open a file for writing, make, rename, or remove something.
    """

    number: int
    parts: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Moment:
    """A moment: some seconds after something was seen.

    Attributes:
      seen: looked at until it is true; it gets the output so far.
      delay: seconds from then on.
    """

    seen: Callable[[bytes], bool]
    delay: float


@dataclasses.dataclass(frozen=True)
class Ended:
    """A process that ended.

    Attributes:
      code: exit code; -9 after a kill.
      output: of both streams.
      seconds: it took.
      changes: paths of the changes of files; see `FileStep`. Empty after a kill.
    """

    code: int
    output: str
    seconds: float
    changes: tuple[str, ...]

    @property
    def was_killed(self) -> bool:
        return self.code == -signal.SIGKILL


class Server:
    """Starts one command at a time.

    Args:
      folder: for compiled programs and the output; several servers may share it.
    """

    def __init__(self, folder: pathlib.Path):
        self._folder = folder
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "XDG_CACHE_HOME": str(folder / "cache"),
            "XLA_FLAGS": _XLA_FLAGS,
            "PYTHONPATH": str(ROOT),
        }
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            bufsize=0,
        )

    def close(self) -> None:
        """Ends the server."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def run(
        self,
        command: Command,
        *,
        kill: FileStep | Moment | None = None,
        largest_file: int | None = None,
    ) -> Ended:
        """Runs a command to its end.

        Args:
          command: what to run.
          kill: when the process gets SIGKILL, unless it has ended before.
          largest_file: bytes; what makes a file longer fails, as on a full disk.
        """
        output = command.folder / "output"
        request = {
            "module": command.module,
            "arguments": command.arguments,
            "folder": str(command.folder),
            "output": str(output),
            "step": dataclasses.asdict(kill) if isinstance(kill, FileStep) else None,
            "largest_file": largest_file,
        }
        output.write_bytes(b"")
        start = time.monotonic()
        self._write(request)
        pid = int(self._read())
        if isinstance(kill, Moment):
            self._kill(pid, output, kill)
        elif not select.select([self._process.stdout], [], [], _TIMEOUT_S)[0]:
            os.kill(pid, signal.SIGABRT)
        code = int(self._read())
        seconds = time.monotonic() - start
        changes = command.folder / "changes.json"
        try:
            found = json.loads(changes.read_bytes())
        except (OSError, ValueError):  # killed, or cut by the limit on files
            found = []
        changes.unlink(missing_ok=True)
        return Ended(code, output.read_text(errors="replace"), seconds, tuple(found))

    def _kill(self, pid: int, output: pathlib.Path, moment: Moment) -> None:
        """Kills the process at the moment, unless it ends before."""
        deadline = time.monotonic() + _TIMEOUT_S
        while not moment.seen(output.read_bytes()) and time.monotonic() < deadline:
            if select.select([self._process.stdout], [], [], _POLL_S)[0]:
                return
        select.select([self._process.stdout], [], [], moment.delay)
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.kill(pid, signal.SIGKILL)

    def _write(self, request: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")

    def _read(self) -> bytes:
        assert self._process.stdout is not None
        if not (line := self._process.stdout.readline()):
            raise RuntimeError("the process that starts commands has ended")
        return line


# --- the script ---------------------------------------------------------------------------

_CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
# The modules of commands define flags of the same names: only a child imports its own.
_IMPORTS = (
    "dawm_jax.training.train",
    "dawm_jax.training.synthesis",
    "dawm_jax.config.flag",
    "dawm_jax.config.help",
    "dawm_jax.config.by_name",
    "dawm_jax.collect.tiers",
    "matplotlib.pyplot",
    "mujoco",
    "gymnasium.envs.mujoco",
)


def _serve() -> None:
    """Answers each request, a line of stdin, by two lines: the child's id and its exit code."""
    for name in _IMPORTS:
        importlib.import_module(name)
    from dawm_jax.training import cost_model

    # The estimate of the duration compiles every program once more and measures the machine.
    cost_model.plan = lambda *arguments: []
    for line in sys.stdin:
        request = json.loads(line)
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reader)
            _become(request, writer)
            importlib.import_module(request["module"]).run()
            return
        os.close(writer)
        print(pid, flush=True)
        _copy(reader, request["output"])
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def _copy(reader: int, path: str) -> None:
    """Copies a pipe into a file to the pipe's end: the child's limit would cut a file."""
    with open(path, "ab", buffering=0) as file, open(reader, "rb", buffering=0) as pipe:
        while content := pipe.read(1 << 16):
            file.write(content)


def _become(request: dict[str, Any], writer: int) -> None:
    """Makes this process what the request asks for."""
    nowhere = os.open(os.devnull, os.O_RDONLY)
    for old, new in ((nowhere, 0), (writer, 1), (writer, 2)):
        os.dup2(old, new)
    os.close(writer)
    os.chdir(request["folder"])
    os.environ["MINARI_DATASETS_PATH"] = str(pathlib.Path(request["folder"]) / "minari")
    sys.argv = [request["module"], *request["arguments"]]
    _watch_files(request["step"])
    if request["largest_file"] is not None:
        size = request["largest_file"]
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def _watch_files(step: dict[str, Any] | None) -> None:
    """Kills this process at a change of files, or writes at the end which there were."""
    import atexit

    changes: list[str] = []
    folder = os.getcwd()

    def hook(event: str, arguments: Sequence[Any]) -> None:
        is_writing = event == "open" and len(arguments) > 2 and (arguments[2] or 0) & _WRITING
        if not (is_writing or event in _CHANGES) or isinstance(arguments[0], int):
            return
        path = os.path.join(folder, os.fsdecode(arguments[0]))
        if event == "os.rename":
            path += " " + os.fsdecode(arguments[1])
        if not path.startswith(folder):
            return
        changes.append(path.replace(folder, ""))
        if step is not None:
            counted = [c for c in changes if any(part in c for part in step["parts"])]
            if len(counted) > step["number"]:
                os.kill(os.getpid(), signal.SIGKILL)

    @atexit.register
    def write() -> None:
        made = json.dumps(changes)
        with contextlib.suppress(OSError):  # a limit may be smaller than the list
            pathlib.Path(folder, "changes.json").write_text(made)

    sys.addaudithook(hook)


if __name__ == "__main__":
    _serve()
