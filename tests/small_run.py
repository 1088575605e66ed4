"""A finished run's folder without its training: the models are random, everything else real."""

import pathlib

import jax
import numpy as np

from configs import common
from dawm_jax.data import dataset as data
from dawm_jax.methods.registry import assemble, build_replay
from dawm_jax.runtime import run_folder
from dawm_jax.runtime.checkpoint import Checkpoints

# Random models make states that differ by tenths, so that a random classifier ends all windows
# alike. This one ends every tenth step: where a value of the state arrived at is above a bar.
_VALUE, _BAR = -3, 0.3


def small_config():
    """The smoke variant with one level and one sampling step: it compiles quickly."""
    config = common.get_config("smoke")
    config.num_seeds = 1
    config.world_model.update(multipliers=(1,), groups=4)
    config.rollout.sampling_steps = 1
    return config


def write_run(folder: pathlib.Path, config) -> pathlib.Path:
    """Writes config.json and a checkpoint of every stage, as training leaves them."""
    _, statistics = build_replay(config, data.load_dataset(config.dataset))
    functions = assemble(config, statistics)
    key = jax.random.key(0)
    stages = {
        "world_model": jax.eval_shape(functions.world_model.init, key),
        "inverse_dynamics": jax.eval_shape(functions.inverse_dynamics.init, key),
        "agent": jax.eval_shape(jax.vmap(functions.init_run), key[None]),
    }
    rng = np.random.default_rng(4)
    values = lambda leaf: (0.3 * rng.normal(size=leaf.shape)).astype(leaf.dtype)

    folder.mkdir(parents=True, exist_ok=True)
    run_folder.write_config(folder, config.to_dict())
    for stage, shapes in stages.items():
        checkpoints = Checkpoints(folder / "checkpoints" / stage)
        state = jax.tree.map(values, shapes)
        if stage == "world_model":
            _end_some(state.average["termination"]["params"])
        checkpoints.save(1, {"state": state, "statistics": statistics})
        checkpoints.close()
    return folder


def _end_some(layers) -> None:
    """Overwrites a classifier's random parameters."""
    for layer in layers.values():
        layer["kernel"][:], layer["bias"][:] = 0.0, 0.0
    layers["Dense_0"]["kernel"][_VALUE, 0] = 1.0
    layers["Dense_1"]["kernel"][0] = 1.0
    layers["Dense_1"]["bias"][:] = -_BAR
