"""DAWM in JAX: offline reinforcement learning on diffusion-generated transitions."""

__version__ = "0.1.0"
