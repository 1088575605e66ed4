"""Strictness for all tests, their cache of compiled programs, and throw-away environments."""

import tempfile

import gymnasium as gym
import jax
import pytest

# (B, 1) - (B,) silently gives (B, B); the package must never rely on it.
jax.config.update("jax_numpy_rank_promotion", "raise")

# End-to-end tests run the same programs many times in fresh functions.
_CACHE = tempfile.TemporaryDirectory(prefix="dawm_jax_test_cache_")
jax.config.update("jax_compilation_cache_dir", _CACHE.name)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


@pytest.fixture(name="register")
def _register():
    """Registers environments for one test."""
    names = []

    def register(name, make, **options):
        gym.register(name, entry_point=make, **options)
        names.append(name)
        return name

    yield register
    for name in names:
        gym.registry.pop(name)
