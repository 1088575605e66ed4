"""Collects the nine datasets of the locomotion benchmark, and records what they are.

python launch/datasets.py            those that are missing under MINARI_DATASETS_PATH
python launch/update_readme.py       then brings the table in BUILD.md up to date

Writes results/datasets.json: size, returns and versions of every dataset, D4RL's beside them.
"""

import json
import logging
import pathlib
import sys

_ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(_ROOT))

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


def describe(name: str) -> dict:
    """Size, returns and provenance of a collected dataset."""
    import minari

    from dawm_jax.data import dataset as data
    from dawm_jax.envs import evaluate

    dataset = data.load_dataset(name)
    metadata = minari.load_dataset(name).storage.metadata
    returns = dataset.episode_returns
    scores = evaluate.normalised_score(dataset.environment, returns)
    steps, mean, std = D4RL[name.removeprefix("dawm/").removesuffix("-v1")]
    return {
        "dataset": name,
        "steps": len(dataset),
        "episodes": len(returns),
        "return_mean": float(returns.mean()),
        "return_std": float(returns.std()),
        "return_max": float(returns.max()),
        "score_mean": float(scores.mean()),
        "terminations": int(dataset.terminations.sum()),
        "command": metadata["collection"]["command"],
        "seconds": metadata["collection"]["seconds"],
        "requirements": metadata["requirements"],
        "d4rl": {"steps": steps, "return_mean": mean, "return_std": std},
    }


def main() -> None:
    """Collects what is missing, one dataset after the other."""
    from dawm_jax.collect import tiers

    logging.basicConfig(level=logging.WARNING)
    logging.getLogger("dawm_jax").setLevel(logging.INFO)
    path, found = _ROOT / "results" / "datasets.json", []
    for short in D4RL:
        name = f"dawm/{short}-v1"
        tiers.ensure(name)
        found.append(describe(name))
        path.write_text(json.dumps(found, indent=1) + "\n")
        print(found[-1])


if __name__ == "__main__":
    main()
