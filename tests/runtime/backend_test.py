"""A platform that JAX does not have is told in one line, in a process of its own."""

import os
import pathlib
import subprocess
import sys

import pytest

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_CHECK = """
from dawm_jax.runtime import backend
from dawm_jax.types import UserError
try:
    backend.check()
    print("fine")
except UserError as error:
    print(error)
"""


def check(**variables):
    kept = {k: v for k, v in os.environ.items() if not k.startswith("JAX_PLATFORM")}
    return subprocess.run(
        [sys.executable, "-c", _CHECK],
        env={**kept, "PYTHONPATH": str(_ROOT), **variables},
        capture_output=True,
        text=True,
        timeout=300,
    ).stdout


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("JAX_PLATFORMS", "CPU"),
        ("JAX_PLATFORMS", "nonsense"),
        ("JAX_PLATFORM_NAME", "nonsense"),
    ],
)
def test_a_platform_that_is_not_there(name, value):
    output = check(**{name: value})
    assert output.startswith(f"{name}={value}: JAX cannot use this platform here (")
    assert f"such as cpu, or no {name}" in output and output.count("\n") == 1


@pytest.mark.parametrize("variables", [{}, {"JAX_PLATFORMS": "cpu"}, {"JAX_PLATFORMS": ""}])
def test_a_platform_that_is_there(variables):
    assert check(**variables) == "fine\n"
