"""Writes a Minari dataset episode by episode; it appears whole or not at all.

with DatasetWriter("local/hopper/mine-v0", environment="Hopper-v5", metadata={}) as writer:
    writer.add(observations, actions, rewards, terminations, truncations)  # one episode

Memory does not grow with the dataset. Minari's own storage makes folders, metadata and spaces.
The arrays are written with h5py's low-level calls into Minari's layout, because a world model
generates very many very short episodes. An episode of seven steps of Hopper takes 0.65 ms and
2.3 KB. It takes 2.5 ms and 14.6 KB with Minari's `update_episodes`, which makes every array
chunked and resizable, and 1.5 ms with h5py's `create_dataset`.
"""

import contextlib
import ctypes
import fcntl
import functools
import importlib.metadata
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, NamedTuple, TextIO

import h5py
import numpy as np

from dawm_jax.data import bundled, minari_folder
from dawm_jax.envs import simulate
from dawm_jax.envs.scores import reference_returns
from dawm_jax.types import UserError, first_line, one_line

# Packages that every environment needs, besides the one that registers it.
_REQUIREMENTS = ("gymnasium", "mujoco")
# Of the hidden folder: the lock, the dataset in the making, and the one that it replaces.
_LOCK, _NEW, _REPLACED = ".lock", "dataset", "replaced"
_LOCK_TRIES = 100
# Linux: renameat2 relative to the current folder, and its flag for an exchange.
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
# The writer or Minari sets these keys; the caller's metadata must not contain them.
_RESERVED = {
    *("dataset_id", "minari_version", "data_format", "jpeg_encoding", "env_spec"),
    *("observation_space", "action_space", "total_episodes", "total_steps", "dataset_size"),
    *("ref_min_score", "ref_max_score", "requirements"),
}


class BeingWrittenError(UserError):
    """Another process is writing the dataset."""


class ExistsError(UserError):
    """There is a dataset of this id, or something else in its place."""


class Episode(NamedTuple):
    """A whole episode of T steps."""

    observations: np.ndarray  # [T + 1, S]
    actions: np.ndarray  # [T, A]
    rewards: np.ndarray  # [T]
    terminations: np.ndarray  # [T] bool
    truncations: np.ndarray  # [T] bool


class DatasetWriter:
    """A context manager that takes episodes; the dataset appears when the `with` block ends.

    If the block raises, there is no new dataset, and an existing one is unchanged. A killed
    process leaves a hidden folder beside the dataset's folder. Minari does not see the hidden
    folder, and the next writer of the same id removes it.

    Observations are stored in the precision of the first episode, float32 or float64. The
    declared observation space is the environment's in that precision: Gymnasium's
    `Box.contains` refuses float64 values in a float32 space, and a float64 space would promise
    digits that a float32 model does not have. The bounds are the environment's; a model's
    states may lie outside. Actions are stored in the precision of the environment's space.

    Attributes:
      metadata: the caller's; the caller may add to it until the `with` block ends.
      episodes: number of episodes added.
      steps: number of steps added.
    """

    def __init__(
        self,
        dataset_id: str,
        *,
        environment: str,
        metadata: dict[str, Any],
        overwrite: bool = False,
        environment_kwargs: Mapping[str, Any] | None = None,
    ):
        """Checks the arguments; writes nothing.

        Args:
          dataset_id: Minari id with a version, such as local/hopper/synthetic-v0.
          environment: Gymnasium id of the task.
          metadata: JSON-able, stored beside Minari's own. Minari reads `algorithm_name`,
            `description`, `code_permalink` (strings), `author`, `author_email` (lists).
          overwrite: replace a dataset of this id once the new one is complete.
          environment_kwargs: keyword arguments of `gym.make`; None: none.

        Raises:
          UserError: a malformed id, an existing dataset, an unwritable folder, an environment
            that is unknown or that Minari cannot store, or metadata that Minari cannot store.
        """
        self.metadata = metadata
        self.episodes = self.steps = 0
        self._id, self._overwrite = dataset_id, overwrite
        self._target = _target(dataset_id, overwrite)
        self._staging = _staging(self._target)
        _check_metadata(metadata)
        self._environment = environment
        env = simulate.make_environment(environment, environment_kwargs)
        self._spec, self._spaces = env.spec, (env.observation_space, env.action_space)
        env.close()
        _check_spec(environment, self._spec)
        self._storage: Any = None
        self._file: h5py.File | None = None
        self._episodes: _EpisodeFile | None = None

    def __enter__(self) -> "DatasetWriter":
        self._lock = _lock(self._staging, self._id)
        try:
            self._recover()
            _target(self._id, self._overwrite)  # another writer may have finished meanwhile
        except BaseException:
            self._release()
            raise
        return self

    def _recover(self) -> None:
        """Removes what a killed writer left, or moves back what it had moved away."""
        replaced = self._staging / _REPLACED
        if replaced.exists() and not self._target.exists():
            replaced.rename(self._target)
        for left in (replaced, self._staging / _NEW):
            shutil.rmtree(left, ignore_errors=True)

    def add(
        self,
        observations: np.ndarray,
        actions: np.ndarray,
        rewards: np.ndarray,
        terminations: np.ndarray,
        truncations: np.ndarray,
    ) -> None:
        """Writes one episode.

        Args:
          observations: [T + 1, S], the last one after the last step.
          actions: [T, A], in the environment's units.
          rewards: [T].
          terminations: [T] bool, true at most at the last step.
          truncations: [T] bool, true at most at the last step; one of the two is true there.

        Raises:
          UserError: other shapes, numbers that are not finite, or no end.
        """
        if self._storage is None:
            self._open(np.asarray(observations).dtype)
        observation_space, action_space = self._storage.observation_space, self._spaces[1]
        episode = {
            "observations": np.ascontiguousarray(observations, observation_space.dtype),
            "actions": np.ascontiguousarray(actions, action_space.dtype),
            "rewards": np.ascontiguousarray(rewards),
            "terminations": np.ascontiguousarray(terminations, bool),
            "truncations": np.ascontiguousarray(truncations, bool),
        }
        _check_episode(episode, observation_space.shape, action_space.shape, self.episodes)
        assert self._episodes is not None
        with self._told():
            self._episodes.write(self.episodes, episode)
        self.episodes += 1
        self.steps += len(episode["rewards"])

    def written(self) -> Iterator[Episode]:
        """The episodes that were added, as a reader of the dataset gets them; one in memory."""
        for index in range(self.episodes):
            assert self._file is not None
            group = self._file[f"episode_{index}"]
            yield Episode(**{name: group[name][()] for name in Episode._fields})

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if self._file is not None:
                with self._told(error):
                    self._file.close()
            if error is None:
                self._finish()
        finally:
            self._release()

    @contextlib.contextmanager
    def _told(self, error: BaseException | None = None) -> Iterator[None]:
        """Turns what h5py raises when a write fails, as on a full disk, into a UserError.

        Args:
          error: what was raised before; it is not replaced by another.
        """
        try:
            yield
        except (OSError, RuntimeError) as failure:
            if error is None:
                raise UserError(
                    f"dataset {self._id} cannot be written ({first_line(failure)}); nothing of it "
                    f"is kept: make room in {self._target.parent} and run the same command again"
                ) from failure

    def _release(self) -> None:
        # The lock is released last: this process would otherwise remove the folder of the
        # writer that locks it next.
        shutil.rmtree(self._staging, ignore_errors=True)
        self._lock.close()

    def _open(self, dtype: np.dtype) -> None:
        """Makes the empty dataset in the hidden folder."""
        import gymnasium as gym
        from minari.dataset.minari_storage import MinariStorage

        space = self._spaces[0]
        dtype = np.dtype(np.float32 if dtype == np.float32 else np.float64)
        with np.errstate(over="ignore"):  # a bound beyond float32's range becomes infinite
            bounds = space.low.astype(dtype), space.high.astype(dtype)
        folder = self._staging / _NEW / "data"
        folder.parent.mkdir()
        self._storage = MinariStorage.new(
            folder,
            observation_space=gym.spaces.Box(*bounds, dtype=dtype.type),
            action_space=self._spaces[1],
            env_spec=self._spec,
            data_format="hdf5",
        )
        # The layout of HDF5 1.10 stores small objects in half the space of the default layout.
        # `track_order`, which Minari sets too, keeps the keys in the order of the episodes.
        self._file = h5py.File(
            folder / "main_data.hdf5", "w", libver=("v110", "v110"), track_order=True
        )
        self._episodes = _EpisodeFile(self._file)

    def _finish(self) -> None:
        """Completes the metadata and moves the dataset to its folder."""
        if self._storage is None:
            raise UserError(f"dataset {self._id}: there is no episode to write")
        _check_metadata(self.metadata)
        # Minari expects sets of authors and of their addresses.
        authors = {
            key: set(value) for key, value in self.metadata.items() if key.startswith("author")
        }
        references = reference_returns(self._environment)
        scores = dict(zip(("ref_min_score", "ref_max_score"), references or (), strict=False))
        self._storage.update_metadata(
            {
                **self.metadata,
                **authors,
                **scores,
                "dataset_id": self._id,
                "minari_version": importlib.metadata.version("minari"),
                "requirements": _requirements(self._environment),
                "total_episodes": self.episodes,
                "total_steps": self.steps,
                "dataset_size": float(self._storage.get_size()),
            }
        )
        _make_namespace(self._id)
        new = self._staging / _NEW
        if not (self._overwrite and self._target.exists()):
            new.rename(self._target)
        elif not _exchange(new, self._target):
            # A process that is killed between the two leaves the old dataset to `_recover`.
            self._target.rename(self._staging / _REPLACED)
            new.rename(self._target)


class _EpisodeFile:
    """Minari's HDF5 layout: /episode_<i>/<array>, attributes `id` and `total_steps`."""

    def __init__(self, file: h5py.File):
        self._file = file
        self._properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        # `write` fills every array completely, so HDF5 need not fill it with zeros first.
        self._properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        self._properties.set_obj_track_times(False)

    def write(self, index: int, episode: dict[str, np.ndarray]) -> None:
        group = h5py.h5g.create(self._file.id, b"episode_%d" % index)
        for name, value in ((b"id", index), (b"total_steps", len(episode["rewards"]))):
            attribute = h5py.h5a.create(group, name, h5py.h5t.NATIVE_INT64, _space(()))
            attribute.write(np.array(value, np.int64))
        for key, array in episode.items():
            dataset = h5py.h5d.create(
                group, key.encode(), _kind(array.dtype), _space(array.shape), self._properties
            )
            dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, array)


# HDF5 types and shapes take tens of microseconds to make, and repeat in every episode.
@functools.lru_cache
def _kind(dtype: np.dtype) -> h5py.h5t.TypeID:
    return h5py.h5t.py_create(dtype)


@functools.lru_cache
def _space(shape: tuple[int, ...]) -> h5py.h5s.SpaceID:
    return h5py.h5s.create_simple(shape)


def is_being_written(dataset_id: str) -> bool:
    """Whether a process, this one too, writes a dataset of this id now."""
    staging = _staging(minari_folder.dataset_folder(dataset_id))
    try:
        with (staging / _LOCK).open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _staging(target: pathlib.Path) -> pathlib.Path:
    """The hidden folder beside a dataset's folder, in which the dataset is written."""
    return target.with_name(f".{target.name}.partial")


def _lock(staging: pathlib.Path, dataset_id: str) -> TextIO:
    """Makes the hidden folder and locks it; the lock ends with the file or the process.

    Raises:
      BeingWrittenError: another process holds the lock.
      UserError: the folder cannot be made or locked.
    """
    for _ in range(_LOCK_TRIES):
        try:
            staging.mkdir(parents=True, exist_ok=True)
            lock = (staging / _LOCK).open("w")
        except FileNotFoundError:
            continue  # a writer removed the folder, as it does at its end
        except OSError as error:
            raise UserError(minari_folder.unwritable(staging.parent, error.strerror)) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(lock.fileno()), os.stat(staging / _LOCK)):
                return lock
        except FileNotFoundError:
            pass
        except BlockingIOError:
            lock.close()
            raise BeingWrittenError(
                f"dataset {dataset_id} is being written by another process; wait for it or "
                "choose another id"
            ) from None
        except OSError as error:
            lock.close()
            raise UserError(minari_folder.unwritable(staging, error.strerror)) from error
        lock.close()  # the file was removed before it was locked
    raise UserError(minari_folder.unwritable(staging.parent, "its folders vanish"))


def _exchange(one: pathlib.Path, other: pathlib.Path) -> bool:
    """Exchanges two folders in one step; False where the system cannot."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    if rename is None:
        return False
    paths = (os.fsencode(path) for path in (one, other))
    return rename(_AT_FDCWD, next(paths), _AT_FDCWD, next(paths), _RENAME_EXCHANGE) == 0


def _target(dataset_id: str, overwrite: bool) -> pathlib.Path:
    """The dataset's folder, checked; see `DatasetWriter.__init__`."""
    from minari.dataset import minari_dataset

    try:
        minari_dataset.parse_dataset_id(dataset_id)
    except (ValueError, TypeError):  # TypeError: an id without a version
        raise UserError(
            f"dataset id {dataset_id!r}: expected a Minari id with a version, such as "
            "local/hopper/synthetic-v0"
        ) from None
    if dataset_id.startswith(bundled.PREFIX):
        raise UserError(
            f"dataset id {dataset_id!r}: {bundled.PREFIX} names the data in the package; "
            "choose another namespace"
        )
    target = minari_folder.dataset_folder(dataset_id)
    if target.exists() and not (overwrite and (target / "data").is_dir()):
        advice = "choose another id or version" + (
            ", or overwrite it" if (target / "data").is_dir() and not overwrite else ""
        )
        raise ExistsError(f"dataset {dataset_id} exists already ({target}); {advice}")
    existing = next(path for path in target.parents if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(minari_folder.unwritable(existing, None))
    return target


def _requirements(environment: str) -> list[str]:
    """The packages whose versions decide what an environment computes, as NAME==VERSION."""
    versions = {name: importlib.metadata.version(name) for name in _REQUIREMENTS}
    if package := environment.rpartition(":")[0].partition(".")[0]:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # a module on the path
            versions[package] = importlib.metadata.version(package)
    return [f"{name}=={version}" for name, version in versions.items()]


def _check_spec(environment: str, spec: Any) -> None:
    """Raises UserError if Minari cannot store how the environment is made."""
    try:
        spec.to_json()
    except (TypeError, ValueError) as error:
        raise UserError(
            f"environment {environment}: Minari stores how it is made as text, which is not "
            f'possible here ({first_line(error)}); register it with entry_point="module:Class" '
            "and keyword arguments that JSON can hold"
        ) from error


def _check_metadata(metadata: dict[str, Any]) -> None:
    try:
        json.dumps(metadata)
    except (TypeError, ValueError) as error:
        raise UserError(f"metadata: expected what JSON can hold ({one_line(error)})") from error
    if reserved := _RESERVED & metadata.keys():
        raise UserError(f"metadata: {', '.join(sorted(reserved))} is set by the writer itself")


def _check_episode(
    episode: dict[str, np.ndarray],
    observation_shape: tuple[int, ...],
    action_shape: tuple[int, ...],
    index: int,
) -> None:
    """Raises UserError for other shapes, numbers that are not finite, or no end."""
    steps = len(episode["rewards"])
    expected = {
        "observations": (steps + 1, *observation_shape),
        "actions": (steps, *action_shape),
        **dict.fromkeys(("rewards", "terminations", "truncations"), (steps,)),
    }
    for key, shape in expected.items():
        if episode[key].shape != shape or steps == 0:
            raise UserError(
                f"episode {index}: expected {key} of shape {list(shape)}, got "
                f"{list(episode[key].shape)}"
            )
    for key in ("observations", "actions", "rewards"):
        if not np.isfinite(episode[key]).all():
            raise UserError(f"episode {index}: {key} holds numbers that are not finite")
    ends = np.flatnonzero(episode["terminations"] | episode["truncations"])
    if ends.tolist() != [steps - 1]:
        raise UserError(
            f"episode {index}: expected its only end at step {steps - 1}, got {ends.tolist()}"
        )


def _make_namespace(dataset_id: str) -> None:
    """Makes the namespace of the dataset: the folders above it, with Minari's metadata."""
    from minari import namespace
    from minari.dataset import minari_dataset

    name = minari_dataset.parse_dataset_id(dataset_id)[0]
    if name and name not in namespace.list_local_namespaces():
        namespace.create_namespace(name)
