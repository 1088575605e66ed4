"""A finished run's folder without its training: the models are random, everything else real."""

import pathlib

import jax
import numpy as np

from dawm_jax.config import schema
from dawm_jax.config.schema import Config
from dawm_jax.data.load import load_dataset
from dawm_jax.runtime import run_folder
from dawm_jax.runtime.checkpoint import Checkpoints
from dawm_jax.training import setup

# Random models make states that differ by tenths, so that a random classifier ends all windows
# alike. This one ends every tenth step: where a value of the state arrived at is above a bar.
_VALUE, _BAR = -3, 0.3


def small_config(**changes) -> Config:
    """The smoke variant with one level and one sampling step: it compiles quickly.

    Args:
      changes: settings, with "__" for the dot: rollout__guidance=2.0.
    """
    config = schema.parse(schema.get_config("smoke"))
    small = {
        "num_seeds": 1,
        "unet.multipliers": (1,),
        "unet.groups": 4,
        "rollout.sampling_steps": 1,
    }
    changed = {name.replace("__", "."): value for name, value in changes.items()}
    return schema.replace(config, small | changed)


def write_run(folder: pathlib.Path, config: Config) -> pathlib.Path:
    """Writes config.json and a checkpoint of every stage, as training leaves them."""
    _, normalizer = setup.build_replay(config, load_dataset(config.dataset))
    parts = setup.make(config, normalizer)
    key = jax.random.key(0)
    trained = parts.method.models if parts.planner or parts.generator else {}
    stages = {name: jax.eval_shape(model.init, key) for name, model in trained.items()}
    if parts.training is not None:
        keys = jax.random.split(key, config.num_seeds)
        stages["agent"] = jax.eval_shape(jax.vmap(parts.training.init), keys)
    rng = np.random.default_rng(4)
    values = lambda leaf: (0.3 * rng.normal(size=leaf.shape)).astype(leaf.dtype)

    folder.mkdir(parents=True, exist_ok=True)
    run_folder.write_config(folder, schema.to_dict(config))
    for stage, shapes in stages.items():
        checkpoints = Checkpoints(folder / "checkpoints" / stage)
        state = jax.tree.map(values, shapes)
        if stage == "world_model" and "termination" in state.average:
            _end_some(state.average["termination"]["params"])
        checkpoints.save(1, {"state": state, "statistics": normalizer})
        checkpoints.close()
    return folder


def _end_some(layers) -> None:
    """Overwrites a classifier's random parameters."""
    for layer in layers.values():
        layer["kernel"][:], layer["bias"][:] = 0.0, 0.0
    layers["Dense_0"]["kernel"][_VALUE, 0] = 1.0
    layers["Dense_1"]["kernel"][0] = 1.0
    layers["Dense_1"]["bias"][:] = -_BAR
