"""A small problem that compiles quickly, and a clock that moves only when a test says so."""

import pytest

from dawm_jax.benchmark import jax_side
from dawm_jax.config import schema


class Clock:
    def __init__(self):
        self.now = 0.0
        self.calls = []

    def __call__(self):
        return self.now

    def spend(self, name, seconds):
        self.now += seconds
        self.calls.append(name)


@pytest.fixture(name="clock")
def _clock():
    return Clock()


@pytest.fixture(name="config", scope="session")
def _config():
    """The smoke variant with a U-Net of one level."""
    config = schema.parse(schema.get_config("smoke"))
    return schema.replace(
        config,
        {
            "unet.multipliers": (1,),
            "unet.groups": 4,
            "training.updates": 8,
            "training.log_updates": 8,
            "training.checkpoint_updates": 8,
        },
    )


@pytest.fixture(name="problem", scope="session")
def _problem(config):
    return jax_side.load(config)
