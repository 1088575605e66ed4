"""Collects the nine D4RL-like datasets of Hopper, Walker2d and HalfCheetah, and describes them.

python launch/datasets.py                       lists them, their digests and what is missing
python launch/datasets.py --collect             collects what is missing: two hours on two cores
python launch/datasets.py --describe OUT.json   writes size, returns, versions and digest of each

Datasets are looked for and written under MINARI_DATASETS_PATH. results/datasets.json, which the
table of docs/datasets.md is made of, was written by --describe.
"""

import json
import pathlib
import subprocess
import sys
from typing import Any

from _command import ROOT, Parser

# This folder leaves the import path: its modules have names of installed packages.
sys.path[0] = str(ROOT)

# D4RL's v2 files: steps, mean and standard deviation of the episodes' returns.
D4RL = {
    "hopper/medium": (999_906, 1422.1, 379.0),
    "hopper/medium-replay": (402_000, 467.3, 511.0),
    "hopper/medium-expert": (1_999_400, None, None),
    "walker2d/medium": (999_995, 2852.1, 1095.4),
    "walker2d/medium-replay": (302_000, 682.7, 895.9),
    "walker2d/medium-expert": (1_999_209, None, None),
    "halfcheetah/medium": (1_000_000, 4770.3, 355.8),
    "halfcheetah/medium-replay": (202_000, 3093.3, 1680.7),
    "halfcheetah/medium-expert": (2_000_000, None, None),
}
_ENVIRONMENTS = {"hopper": "Hopper-v5", "walker2d": "Walker2d-v5", "halfcheetah": "HalfCheetah-v5"}


def dataset_id(short: str) -> str:
    """Minari id of one of the keys of `D4RL`."""
    return f"dawm/{short}-v1"


def missing() -> list[str]:
    """The keys of `D4RL` whose datasets are not under MINARI_DATASETS_PATH."""
    import minari

    present = minari.list_local_datasets()
    return [short for short in D4RL if dataset_id(short) not in present]


def collect_command(short: str) -> list[str]:
    """The command that collects the dataset of one of the keys of `D4RL`."""
    task, tier = short.split("/")
    flags = [f"--env={_ENVIRONMENTS[task]}", f"--tier={tier}"]
    return [sys.executable, "-m", "dawm_jax.collect", *flags]


def recorded(short: str) -> str:
    """The digest in the metadata of a dataset; a dataset of version 0.1 has none."""
    import minari

    metadata = minari.load_dataset(dataset_id(short)).storage.metadata
    return str(metadata["collection"].get("digest", "present, without a digest"))


def describe(short: str) -> dict[str, Any]:
    """Size, returns and provenance of a collected dataset."""
    import minari
    import numpy as np

    from dawm_jax.data.load import load_dataset
    from dawm_jax.envs.scores import normalised_score

    dataset = minari.load_dataset(dataset_id(short))
    metadata = dataset.storage.metadata
    episodes = list(dataset.iterate_episodes())
    returns = np.array([np.sum(episode.rewards, dtype=np.float64) for episode in episodes])
    scores = normalised_score(_ENVIRONMENTS[short.split("/")[0]], returns)
    assert scores is not None  # every task of `D4RL` has reference returns
    steps, mean, std = D4RL[short]
    return {
        "dataset": dataset_id(short),
        "steps": int(sum(len(episode.rewards) for episode in episodes)),
        "episodes": len(returns),
        "return_mean": float(returns.mean()),
        "return_std": float(returns.std()),
        "return_max": float(returns.max()),
        "score_mean": float(np.mean(scores)),
        "terminations": int(sum(episode.terminations.sum() for episode in episodes)),
        "command": metadata["collection"]["command"],
        "seconds": metadata["collection"]["seconds"],
        "requirements": metadata["requirements"],
        "digest": load_dataset(dataset_id(short)).digest,
        "d4rl": {"steps": steps, "return_mean": mean, "return_std": std},
    }


def _parser() -> Parser:
    parser = Parser(__doc__)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--collect", action="store_true", help="collect what is missing")
    what.add_argument("--describe", type=pathlib.Path, metavar="OUT.json", help="file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT.json")
    return parser


def main() -> int:
    """Runs the command line; returns the exit code."""
    parser = _parser()
    arguments = parser.parse_args()
    if arguments.describe is not None:
        parser.refuse_existing(arguments.describe, overwrite=arguments.overwrite)
        parser.need_folder(arguments.describe)
    absent = missing()
    if arguments.collect:
        codes = [subprocess.run(collect_command(short), cwd=ROOT).returncode for short in absent]
        return int(any(codes))
    if arguments.describe is None:
        for short in D4RL:
            print(f"{dataset_id(short):<36} {'missing' if short in absent else recorded(short)}")
        return 0
    if absent:
        parser.fail(f"{dataset_id(absent[0])} is missing: run python launch/datasets.py --collect")
    found = [describe(short) for short in D4RL]
    arguments.describe.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
