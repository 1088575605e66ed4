"""DAWM in JAX: offline reinforcement learning on diffusion-generated transitions.

import dawm_jax
run = dawm_jax.load_run("runs/hopper")
action = run.policy(observation)
"""

__version__ = "0.1.0"
__all__ = ["load_run"]


def __getattr__(name: str):
    # Lazily, so that the command line answers --help without waiting for JAX.
    if name == "load_run":
        from dawm_jax.training.load_run import load_run

        return load_run
    raise AttributeError(f"module 'dawm_jax' has no attribute {name!r}")
