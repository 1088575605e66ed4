"""robustness.json: the raw returns of every run and level, which a repeated command keeps."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping

import numpy as np

from dawm_jax.runtime import provenance
from dawm_jax.types import UserError, first_line

_UNITS = (
    "returns are undiscounted, [seeds][episodes] of each level; a level is a factor of the "
    "simulator's constants, or the standard deviation of noise: of observations in standard "
    "deviations of the run's training data, of actions in half ranges"
)


@dataclasses.dataclass(frozen=True)
class EpisodeProtocol:
    """What the returns of one file have in common.

    Attributes:
      episodes: of each seed in each level.
      seed: of start states and noise.
    """

    episodes: int
    seed: int


@dataclasses.dataclass(frozen=True, eq=False)
class Record:
    """The returns of one run.

    Attributes:
      run: its folder in words.
      label: its method and agent in words.
      environment: Gymnasium id.
      dataset: name of its data.
      returns: key of a level -> [seeds, episodes].
    """

    run: str
    label: str
    environment: str
    dataset: str
    returns: Mapping[str, np.ndarray]


def digest_of(run: pathlib.Path) -> str:
    """What the records of a run's folder are stored by: the SHA-256 digest of its results.json."""
    return hashlib.sha256((run / "results.json").read_bytes()).hexdigest()


def read(path: pathlib.Path, protocol: EpisodeProtocol) -> dict[str, Record]:
    """The records of a file by the digest of their run's results; none without a file.

    Args:
      path: of the file.
      protocol: what its returns must have in common.

    Raises:
      UserError: the file is damaged, or its protocol is another.
    """
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text())
        found = EpisodeProtocol(**content["protocol"])
        records = {digest: _record(entry) for digest, entry in content["runs"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: expected what this command wrote ({first_line(error)}); delete it, or choose "
            "another --out"
        ) from error
    if found != protocol:
        raise UserError(
            f"{path} was made with --episodes={found.episodes} --seed={found.seed}: repeat these, "
            "or choose another --out"
        )
    return records


def write(path: pathlib.Path, protocol: EpisodeProtocol, records: Mapping[str, Record]) -> None:
    """Writes a file that `read` reads; it appears whole or not at all.

    Args:
      path: of the file.
      protocol: what the returns have in common.
      records: by the digest of their run's results.

    Raises:
      OSError: the file cannot be written.
    """
    runs = {
        digest: {
            **dataclasses.asdict(dataclasses.replace(record, returns={})),
            "returns": {key: values.tolist() for key, values in record.returns.items()},
        }
        for digest, record in records.items()
    }
    content = {
        "units": _UNITS,
        "protocol": dataclasses.asdict(protocol),
        "commit": provenance.commit(),
        "versions": provenance.versions(),
        "runs": runs,
    }
    provenance.write_atomically(path, json.dumps(content, indent=1) + "\n")


def _record(entry: Mapping[str, object]) -> Record:
    returns = entry["returns"]
    if not isinstance(returns, dict):
        raise TypeError("returns: expected an object")
    arrays = {key: np.asarray(values, np.float64) for key, values in returns.items()}
    if any(values.ndim != 2 or not np.isfinite(values).all() for values in arrays.values()):
        raise ValueError("expected finite returns [seeds][episodes]")
    words = {name: str(entry[name]) for name in ("run", "label", "environment", "dataset")}
    return Record(**words, returns=arrays)
