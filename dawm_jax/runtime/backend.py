"""The platform that JAX computes on, as variables of the environment choose it."""

import os

import jax

from dawm_jax.types import UserError, first_line

_VARIABLES = ("JAX_PLATFORMS", "JAX_PLATFORM_NAME")


def check() -> None:
    """Checks that JAX has the platform that a variable asks for.

    It initialises JAX's devices: a process of several must have joined its job before.

    Raises:
      UserError: the platform is not there.
    """
    asked = {name: os.environ[name] for name in _VARIABLES if os.environ.get(name)}
    if not asked:
        return
    try:
        jax.devices()
    except Exception as error:  # of several kinds: RuntimeError, AssertionError
        name, value = next(iter(asked.items()))
        # JAX adds what to set; for cuda it raises an assertion without a text.
        reason = first_line(error).partition(" (set JAX_PLATFORMS")[0] if str(error) else "absent"
        raise UserError(
            f"{name}={value}: JAX cannot use this platform here ({reason}); expected one, in small "
            f"letters, that this machine and the installed JAX have, such as cpu, or no {name}"
        ) from error
