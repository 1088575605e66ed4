"""Strictness for all tests, how they compile programs, and throw-away environments."""

import signal
import tempfile

import gymnasium as gym
import jax
import pytest

# (B, 1) - (B,) silently gives (B, B); the package must never rely on it.
jax.config.update("jax_numpy_rank_promotion", "raise")
# float32 + float64 silently gives another type; the package must convert explicitly.
jax.config.update("jax_numpy_dtype_promotion", "strict")

# A shell that starts the tests in the background makes them ignore these signals, and processes
# that tests start inherit it: tests of signals need the handlers of a program in the foreground.
for _signal, _handler in (
    (signal.SIGHUP, signal.SIG_DFL),
    (signal.SIGINT, signal.default_int_handler),
):
    if signal.getsignal(_signal) is signal.SIG_IGN:
        signal.signal(_signal, _handler)

# Compilation takes most of the tests' time. Programs that tests start have XLA's optimisations.
jax.config.update("jax_disable_most_optimizations", True)

# End-to-end tests run the same programs many times in fresh functions.
_CACHE = tempfile.TemporaryDirectory(prefix="dawm_jax_test_cache_")
jax.config.update("jax_compilation_cache_dir", _CACHE.name)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


@pytest.fixture
def standard_promotion():
    """For flax's normalisations of bfloat16 and float64.

    They promote both with float32, which strict promotion refuses.
    """
    with jax.numpy_dtype_promotion("standard"):
        yield


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
