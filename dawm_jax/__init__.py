"""DAWM in JAX: offline reinforcement learning on diffusion-generated transitions.

import dawm_jax

config = dawm_jax.get_config("hopper:quick")
run = dawm_jax.train(config, "runs/hopper")    # or dawm_jax.load_run("runs/hopper")
action = run.policy(observation)               # [..., S] -> [..., A], NumPy in and out
transitions = run.generate(10_000)             # synthetic transitions of the run's models
returns = dawm_jax.evaluate(run, episodes=10)  # [seeds, episodes]
"""

import importlib
from typing import TYPE_CHECKING, Any

from dawm_jax.runtime import interrupts

if TYPE_CHECKING:
    from dawm_jax.api import evaluate, get_config, train
    from dawm_jax.data.load import dataset_from_arrays, load_dataset
    from dawm_jax.envs.scores import normalised_score
    from dawm_jax.runtime.stopping import Interrupted
    from dawm_jax.training.load_run import load_run
    from dawm_jax.types import UserError

interrupts.quiet_imports()

__version__ = "0.1.0"
__all__ = [
    "Interrupted",
    "UserError",
    "dataset_from_arrays",
    "evaluate",
    "get_config",
    "load_dataset",
    "load_run",
    "normalised_score",
    "train",
]

_HOMES = {
    "Interrupted": "dawm_jax.runtime.stopping",
    "UserError": "dawm_jax.types",
    "dataset_from_arrays": "dawm_jax.data.load",
    "evaluate": "dawm_jax.api",
    "get_config": "dawm_jax.api",
    "load_dataset": "dawm_jax.data.load",
    "load_run": "dawm_jax.training.load_run",
    "normalised_score": "dawm_jax.envs.scores",
    "train": "dawm_jax.api",
}


def __getattr__(name: str) -> Any:
    # Imported on first use: a command answers --help before the training program is imported.
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'dawm_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
