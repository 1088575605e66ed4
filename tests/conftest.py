"""Strictness for all tests, and one cache of compiled programs for the session."""

import tempfile

import jax

# (B, 1) - (B,) silently gives (B, B); the package must never rely on it.
jax.config.update("jax_numpy_rank_promotion", "raise")

# End-to-end tests run the same programs many times in fresh functions.
_CACHE = tempfile.TemporaryDirectory(prefix="dawm_jax_test_cache_")
jax.config.update("jax_compilation_cache_dir", _CACHE.name)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
