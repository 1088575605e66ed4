"""Load an offline dataset into flat float32 arrays on the host.

Three sources behind one function, `load_dataset(name)`:
  bundled/hopper/medium-v0      shipped in the package, no network
  /path/to/file.hdf5            a D4RL v2 file: flat arrays, `terminals`, `timeouts`
  mujoco/hopper/medium-v0       anything else is a Minari id, downloaded when absent

Every mistake in the data is a `UserError`: one line, expected, got, fix.
"""

import dataclasses
import hashlib
import json
import logging
import os
import pathlib
import tempfile
from typing import Any

import numpy as np

from dawm_jax.types import UserError, first_line, one_line

_log = logging.getLogger(__name__)

_ASSETS = pathlib.Path(__file__).parent / "assets"
BUNDLED_PREFIX = "bundled/"
_CACHE_FORMAT = 1  # part of the cache's key: bump it when the stored arrays change
# Actions of continuous-control data are float32 policies' outputs; this much above the
# bound is rounding, more is another action space.
_ACTION_TOLERANCE = 1e-3


@dataclasses.dataclass(frozen=True)
class OfflineDataset:
    """Whole episodes, one after the other, as flat host arrays.

    Attributes:
      name: what the user asked for.
      observations: [N, S] float32.
      actions: [N, A] float32, in the environment's units.
      rewards: [N] float32.
      next_observations: [N, S] float32, the true successor also at an episode's end.
      terminations: [N] bool, the environment ended the episode.
      truncations: [N] bool, the episode was cut (a time-out, or the data's end).
      environment: Gymnasium id the data says it is from, or None.
    """

    name: str
    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    next_observations: np.ndarray
    terminations: np.ndarray
    truncations: np.ndarray
    environment: str | None = None

    def __len__(self) -> int:
        return len(self.rewards)

    @property
    def episode_ends(self) -> np.ndarray:
        """Index of the last step of every episode, [episodes]."""
        return np.flatnonzero(self.terminations | self.truncations)

    @property
    def episode_returns(self) -> np.ndarray:
        """Undiscounted return of every episode, [episodes], float64."""
        starts = np.concatenate([[0], self.episode_ends[:-1] + 1])
        return np.add.reduceat(self.rewards.astype(np.float64), starts)


def load_dataset(name: str, *, cache: bool = True) -> OfflineDataset:
    """Loads and validates a dataset.

    Args:
      name: a bundled name, the path of a D4RL HDF5 file, or a Minari id.
      cache: keep a flat copy of Minari and HDF5 data in the user's cache folder, since
        reading thousands of small HDF5 objects takes seconds to minutes.

    Returns:
      The dataset, whole episodes, float32.

    Raises:
      UserError: the dataset is missing, unreachable, malformed or not continuous control.
    """
    if name.startswith(BUNDLED_PREFIX):
        return _read_bundled(name)
    if name.endswith((".hdf5", ".h5")) or os.path.sep == name[:1]:
        path = pathlib.Path(name).expanduser()
        if not path.is_file():
            raise UserError(
                f"dataset file not found: expected a D4RL HDF5 file at {path}; check the path"
            )
        return _cached(name, _fingerprint(path), lambda: _read_d4rl(path, name), cache)
    folder = _minari_folder(name)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return _cached(name, _fingerprint(*files), lambda: _read_minari(name), cache)


def top_episodes(dataset: OfflineDataset, fraction: float) -> OfflineDataset:
    """The share `fraction` of the episodes with the highest undiscounted returns, in order.

    Raises:
      UserError: `fraction` is not above 0 and at most 1.
    """
    if not 0.0 < fraction <= 1.0:
        raise UserError(f"config.top_fraction: expected above 0 and at most 1, got {fraction}")
    if fraction == 1.0:
        return dataset
    returns, ends = dataset.episode_returns, dataset.episode_ends
    kept = np.zeros(len(ends), bool)
    kept[np.argsort(-returns, kind="stable")[: int(np.ceil(fraction * len(ends)))]] = True
    rows = np.repeat(kept, np.diff(ends, prepend=-1))
    arrays = {
        field.name: getattr(dataset, field.name)[rows]
        for field in dataclasses.fields(dataset)
        if isinstance(getattr(dataset, field.name), np.ndarray)
    }
    return dataclasses.replace(
        dataset, name=f"{dataset.name}, best {100 * fraction:g} % of episodes", **arrays
    )


def is_local(name: str) -> bool:
    """Whether a Minari dataset is on this machine (or half of it, from a broken download)."""
    import minari

    return (pathlib.Path(minari.storage.get_dataset_path(name)) / "data").is_dir()


def describe(dataset: OfflineDataset) -> str:
    """One line about a dataset, for the log."""
    returns = dataset.episode_returns
    return (
        f"{dataset.name}: {len(dataset):,} transitions in {len(returns):,} episodes, "
        f"return {returns.mean():.0f} ± {returns.std():.0f}, "
        f"{int(dataset.terminations.sum()):,} terminations, "
        f"{int(dataset.truncations.sum()):,} time-outs"
    )


def validate(dataset: OfflineDataset) -> OfflineDataset:
    """Returns `dataset` unchanged if training on it makes sense; raises UserError if not."""
    name, steps = dataset.name, len(dataset)
    if steps == 0:
        raise UserError(f"dataset {name} is empty: expected at least one transition")
    for field in ("observations", "actions", "next_observations"):
        _check_vectors(getattr(dataset, field), steps, field, name)
    if dataset.next_observations.shape != dataset.observations.shape:
        raise UserError(
            f"dataset {name}: expected next_observations of shape "
            f"{list(dataset.observations.shape)} like observations, got "
            f"{list(dataset.next_observations.shape)}; repair the data"
        )
    for field in ("observations", "actions", "rewards", "next_observations"):
        bad = ~np.isfinite(getattr(dataset, field))
        if bad.any():
            row = int(np.argwhere(bad)[0][0])
            raise UserError(
                f"dataset {name}: expected finite numbers, got {int(bad.sum())} NaN or "
                f"infinite values in {field}, the first at step {row}; repair the data"
            )
    ends = dataset.episode_ends
    if len(ends) == 0 or ends[-1] != steps - 1:
        raise UserError(f"dataset {name}: the last episode has no end; mark it as a time-out")
    if len(ends) == steps:
        raise UserError(
            f"dataset {name}: all {steps} episodes have one step, but a world model needs "
            "sequences; check the terminals and timeouts arrays"
        )
    return dataset


def to_unit_range(actions: Any, low: Any, high: Any) -> Any:
    """Maps [low, high] to [-1, 1]; NumPy or JAX arrays of shapes that broadcast."""
    return 2.0 * (actions - low) / (high - low) - 1.0


def scale_actions(dataset: OfflineDataset, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Actions mapped from [low, high] to [-1, 1], [N, A].

    Raises:
      UserError: an action lies outside the bounds, or their size differs.
    """
    if low.shape != dataset.actions.shape[1:]:
        raise UserError(
            f"dataset {dataset.name} has {dataset.actions.shape[1]} action dimensions, the "
            f"environment {low.size}; choose the configs/ file of the dataset's environment"
        )
    scaled = to_unit_range(dataset.actions, low, high)
    excess = float(np.abs(scaled).max()) - 1.0
    if excess > _ACTION_TOLERANCE:
        raise UserError(
            f"dataset {dataset.name}: actions exceed the environment's bounds by {excess:.3g} "
            "of the half range; choose the configs/ file of the dataset's environment"
        )
    return np.clip(scaled, -1.0, 1.0).astype(np.float32)


# --- D4RL ---------------------------------------------------------------------------------


def _read_d4rl(path: pathlib.Path, name: str) -> OfflineDataset:
    import h5py

    keys = ("observations", "actions", "rewards", "terminals")
    try:
        with h5py.File(path, "r") as file:
            stored = lambda key: isinstance(file.get(key), h5py.Dataset)
            missing = [key for key in keys if not stored(key)]
            if missing:
                raise UserError(
                    f"{path}: expected the D4RL arrays {', '.join(keys)}, "
                    f"got no {', '.join(missing)}"
                )
            optional = ("timeouts", "next_observations")
            arrays = {key: file[key][()] for key in (*keys, *optional) if stored(key)}
    except OSError as error:
        raise UserError(f"{path}: not a readable HDF5 file ({first_line(error)})") from error
    for key, array in arrays.items():
        if array.dtype.kind not in "biuf":
            raise UserError(f"{path}: expected numbers in {key}, got {array.dtype}")
    _check_continuous(arrays["actions"], name)
    return from_flat_arrays(name, **arrays)


def from_flat_arrays(
    name: str,
    observations: np.ndarray,
    actions: np.ndarray,
    rewards: np.ndarray,
    terminals: np.ndarray,
    timeouts: np.ndarray | None = None,
    next_observations: np.ndarray | None = None,
) -> OfflineDataset:
    """A dataset from D4RL's flat arrays.

    A terminal step is a termination even when `timeouts` marks it too. The file's last step
    ends its episode as a time-out. Without `next_observations` the successor is the next
    row; a cut episode then loses its last step, whose successor is not in the file, and
    the state after a terminal step is extrapolated linearly (no value ever bootstraps there).

    Raises:
      UserError: array lengths differ, or the result is not valid data.
    """
    vectors = {
        "observations": observations,
        "actions": actions,
        "next_observations": next_observations,
    }
    given = lambda arrays: [array for array in arrays if array is not None]
    lengths = {len(array) for array in given(vectors.values())}
    lengths |= {np.size(array) for array in given([rewards, terminals, timeouts])}
    if len(lengths) > 1:
        raise UserError(f"dataset {name}: arrays differ in length: {sorted(lengths)}")
    for field, array in vectors.items():
        if array is not None:
            _check_vectors(array, len(observations), field, name)
    terminations = np.asarray(terminals).reshape(-1).astype(bool)
    truncations = np.zeros_like(terminations)
    if timeouts is not None:
        truncations = np.asarray(timeouts).reshape(-1).astype(bool) & ~terminations
    if len(truncations) and not terminations[-1]:
        truncations[-1] = True
    observations = np.asarray(observations, np.float32)
    keep = np.ones_like(terminations)
    if next_observations is None and len(observations):
        next_observations = np.concatenate([observations[1:], observations[-1:]])
        starts = np.concatenate([[True], (terminations | truncations)[:-1]])
        previous = np.where(starts[:, None], observations, np.roll(observations, 1, axis=0))
        extrapolated = 2 * observations - previous
        next_observations = np.where(terminations[:, None], extrapolated, next_observations)
        keep = ~truncations
        # The step before a dropped one becomes its episode's cut end.
        truncations = np.concatenate([truncations[1:], [False]]) & ~terminations
    return validate(
        OfflineDataset(
            name=name,
            observations=observations[keep],
            actions=np.asarray(actions, np.float32)[keep],
            rewards=np.asarray(rewards, np.float32).reshape(-1)[keep],
            next_observations=np.asarray(next_observations, np.float32)[keep],
            terminations=terminations[keep],
            truncations=truncations[keep],
        )
    )


# --- Minari -------------------------------------------------------------------------------


def _minari_folder(name: str) -> pathlib.Path:
    """The local folder of a Minari dataset, downloaded first when absent."""
    import minari
    from minari.dataset import minari_dataset

    bundled = ", ".join(_bundled_names())
    try:
        minari_dataset.parse_dataset_id(name)
    except (ValueError, TypeError):  # TypeError: an id without a version
        raise UserError(
            f"unknown dataset {name!r}: expected a Minari id such as mujoco/hopper/medium-v0, "
            f"the path of a D4RL .hdf5 file, or a bundled one ({bundled})"
        ) from None
    folder = pathlib.Path(minari.storage.get_dataset_path(name))
    if is_local(name):
        return folder
    _log.info("%s is not in %s; downloading it", name, folder.parent)
    try:
        # Offline, the hub's client would retry for half a minute before it gives up.
        _check_network()
        minari.download_dataset(name)
    except Exception as error:
        raise UserError(
            f"dataset {name} is not in {folder} and could not be downloaded "
            f"({first_line(error)}); copy it there, set MINARI_DATASETS_PATH, or use a "
            f"bundled one ({bundled})"
        ) from error
    return folder


def _check_network(seconds: float = 5.0) -> None:
    """Fails within `seconds` where Minari's default host cannot be reached."""
    import socket
    import urllib.parse

    from huggingface_hub import constants

    behind_proxy = any(key in os.environ for key in ("HTTPS_PROXY", "https_proxy"))
    if os.environ.get("MINARI_REMOTE", "hf://").startswith("hf://") and not behind_proxy:
        host = urllib.parse.urlsplit(constants.ENDPOINT).hostname
        socket.create_connection((host, 443), timeout=seconds).close()


def _read_minari(name: str) -> OfflineDataset:
    import gymnasium as gym
    import minari

    try:
        source = minari.load_dataset(name)
    except Exception as error:
        raise UserError(
            f"dataset {name}: Minari cannot open it ({first_line(error)}); if a download "
            f"broke off, run: minari download --force {name}"
        ) from error
    for kind, space in (
        ("actions", source.action_space),
        ("observations", source.observation_space),
    ):
        if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1:
            raise UserError(
                f"dataset {name}: expected a flat Box space of {kind}, got {one_line(space)}; "
                "only continuous control from vectors is supported"
            )
    try:
        episodes = list(source.iterate_episodes())
    except Exception as error:
        raise UserError(
            f"dataset {name}: its episodes cannot be read ({first_line(error)}); "
            f"run: minari download --force {name}"
        ) from error
    spec = source.env_spec
    return from_episodes(name, episodes, environment=None if spec is None else spec.id)


def from_episodes(name: str, episodes, environment: str | None = None) -> OfflineDataset:
    """A dataset from Minari episodes: T + 1 observations, T of everything else.

    Raises:
      UserError: an episode is empty, or the result is not valid data.
    """
    for index, episode in enumerate(episodes):
        if len(episode.rewards) == 0 or len(episode.observations) < 2:
            raise UserError(f"dataset {name}: episode {index} is empty: expected at least one step")
    if not episodes:
        raise UserError(f"dataset {name} has no episodes")

    def join(pick):
        return np.concatenate([pick(episode) for episode in episodes])

    terminations = join(lambda e: np.asarray(e.terminations, bool))
    truncations = join(lambda e: np.asarray(e.truncations, bool))
    last = np.cumsum([len(e.rewards) for e in episodes]) - 1
    # An episode that the recorder left open was cut, not ended.
    truncations[last] = True
    return validate(
        OfflineDataset(
            name=name,
            observations=join(lambda e: np.asarray(e.observations[:-1], np.float32)),
            actions=join(lambda e: np.asarray(e.actions, np.float32)),
            rewards=join(lambda e: np.asarray(e.rewards, np.float32)),
            next_observations=join(lambda e: np.asarray(e.observations[1:], np.float32)),
            terminations=terminations,
            truncations=truncations & ~terminations,
            environment=environment,
        )
    )


def _check_vectors(array: np.ndarray, steps: int, field: str, name: str) -> None:
    if array.ndim != 2 or len(array) != steps or array.shape[1] == 0:
        raise UserError(
            f"dataset {name}: expected {field} of shape [{steps}, size], got "
            f"{list(array.shape)}; only flat vector spaces are supported"
        )


def _check_continuous(actions: np.ndarray, name: str) -> None:
    if np.issubdtype(actions.dtype, np.integer) or actions.ndim == 1:
        raise UserError(
            f"dataset {name}: expected continuous actions [N, size], got {actions.dtype} of "
            f"shape {list(actions.shape)}; discrete actions are not supported"
        )


# --- bundled data and the cache -----------------------------------------------------------


def write_flat(dataset: OfflineDataset, path: pathlib.Path, *, compress: bool) -> None:
    """Writes `dataset` as one .npz, atomically; the next row serves as successor."""
    ends = dataset.episode_ends
    arrays = {
        "observations": dataset.observations,
        "actions": dataset.actions,
        "rewards": dataset.rewards,
        "terminations": np.packbits(dataset.terminations),
        "episode_ends": ends.astype(np.int64),
        "final_observations": dataset.next_observations[ends],
        "meta": np.array(json.dumps({"environment": dataset.environment})),
    }
    if not np.array_equal(
        _successors(dataset.observations, ends, arrays["final_observations"]),
        dataset.next_observations,
    ):
        arrays["next_observations"] = dataset.next_observations
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".npz.tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            (np.savez_compressed if compress else np.savez)(file, **arrays)
        os.replace(temporary, path)
    except BaseException:
        pathlib.Path(temporary).unlink(missing_ok=True)
        raise


def read_flat(path: pathlib.Path, name: str) -> OfflineDataset:
    """Reads what `write_flat` wrote."""
    with np.load(path) as file:
        arrays = {key: file[key] for key in file.files}
    observations, ends = arrays["observations"], arrays["episode_ends"]
    next_observations = arrays.get("next_observations")
    if next_observations is None:
        next_observations = _successors(observations, ends, arrays["final_observations"])
    terminations = np.unpackbits(arrays["terminations"], count=len(observations))
    terminations = terminations.astype(bool)
    truncations = np.zeros_like(terminations)
    truncations[ends] = ~terminations[ends]
    return OfflineDataset(
        name=name,
        observations=observations,
        actions=arrays["actions"],
        rewards=arrays["rewards"],
        next_observations=next_observations,
        terminations=terminations,
        truncations=truncations,
        environment=json.loads(str(arrays["meta"]))["environment"],
    )


def _successors(observations, ends, final_observations) -> np.ndarray:
    """The next row within an episode, the episode's final observation at its end."""
    successors = np.concatenate([observations[1:], observations[-1:]])
    successors[ends] = final_observations
    return successors


def _bundled_path(name: str) -> pathlib.Path:
    return _ASSETS / (name.removeprefix(BUNDLED_PREFIX).replace("/", "_") + ".npz")


def _bundled_names() -> list[str]:
    paths = sorted(_ASSETS.glob("*.npz"))
    return [BUNDLED_PREFIX + path.stem.replace("_", "/") for path in paths]


def _read_bundled(name: str) -> OfflineDataset:
    path = _bundled_path(name)
    if not path.is_file():
        raise UserError(
            f"unknown bundled dataset {name!r}: expected one of {', '.join(_bundled_names())}"
        )
    return validate(read_flat(path, name))


def _fingerprint(*paths: pathlib.Path) -> str:
    """Changes when a file is replaced, grows or is touched."""
    parts = [f"{path.resolve()}:{path.stat().st_size}:{path.stat().st_mtime_ns}" for path in paths]
    return hashlib.sha256("|".join([str(_CACHE_FORMAT), *parts]).encode()).hexdigest()[:24]


def _cached(name: str, fingerprint: str, read, enabled: bool) -> OfflineDataset:
    if not enabled:
        return read()
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    path = pathlib.Path(root).expanduser() / "dawm_jax" / "datasets" / f"{fingerprint}.npz"
    if path.is_file():
        try:
            return validate(read_flat(path, name))
        except Exception:  # a damaged archive fails in many ways: zipfile, zlib, EOF, JSON
            _log.warning("the cached copy %s is damaged; reading %s again", path, name)
    dataset = read()
    try:
        write_flat(dataset, path, compress=False)
    except OSError as error:
        _log.warning("no cached copy of %s was kept (%s)", name, error)
    return dataset
