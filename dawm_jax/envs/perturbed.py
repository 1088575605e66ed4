"""Changed physics of a MuJoCo model: factors of its constants."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from dawm_jax.types import UserError, one_line

_LARGEST = 100.0  # far beyond every published change; simulations are unstable above it


@dataclasses.dataclass(frozen=True)
class Physics:
    """Factors of the constants of a MuJoCo model; 1 leaves a constant as it is.

    Attributes:
      gravity: of the three components of the acceleration.
      friction: of the sliding, torsional and rolling coefficients of all geoms and contact pairs.
      mass: of the masses and inertias of all bodies, as another density would change them.
      damping: of the linear damping of all degrees of freedom.
      actuator: of both bounds of the controls, to which MuJoCo clips actions.

    Raises:
      UserError: a factor is not above 0 and at most 100.
    """

    gravity: float = 1.0
    friction: float = 1.0
    mass: float = 1.0
    damping: float = 1.0
    actuator: float = 1.0

    def __post_init__(self) -> None:
        for name, factor in dataclasses.asdict(self).items():
            if not 0.0 < factor <= _LARGEST:
                raise UserError(
                    f"physics: expected a factor above 0 and at most {_LARGEST:g} for {name}, got "
                    f"{factor:g}; 1 leaves it as it is"
                )

    def changed(self) -> dict[str, float]:
        """The factors other than 1, by name."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value != 1.0}

    def __str__(self) -> str:
        """As `parse` reads it: "gravity=1.2,friction=0.5"; "" if nothing is changed."""
        return ",".join(f"{name}={factor!r}" for name, factor in self.changed().items())


UNCHANGED = Physics()
NAMES = tuple(field.name for field in dataclasses.fields(Physics))


def parse(text: str) -> Physics:
    """Physics as a user writes them: "gravity=1.2,friction=0.5".

    Raises:
      UserError: the text has another form, an unknown or repeated name, or a factor out of range.
    """
    factors: dict[str, float] = {}
    for part in text.split(","):
        name, equals, number = (word.strip() for word in part.partition("="))
        try:
            factor = float(number)
        except ValueError:
            factor = math.nan
        if not equals or name not in NAMES or name in factors or math.isnan(factor):
            raise UserError(
                "physics: expected factors such as gravity=1.2,friction=0.5, each name once, of "
                f"{', '.join(NAMES)}; got {one_line(text)}"
            )
        factors[name] = factor
    return Physics(**factors)


def from_metadata(value: object) -> Physics:
    """The physics that a file describes by their factors; unchanged if it holds something else."""
    if not isinstance(value, Mapping):
        return UNCHANGED
    try:
        return Physics(**{str(name): float(factor) for name, factor in value.items()})
    except (TypeError, ValueError, OverflowError):  # UserError is a ValueError
        return UNCHANGED


def change_environment(env: Any, physics: Physics, name: str) -> None:
    """Applies physics to the model of a Gymnasium environment; the spaces stay as they are.

    Args:
      env: as `gym.make` returns it.
      physics: the factors.
      name: Gymnasium id, for the message.

    Raises:
      UserError: the environment has no MuJoCo model, and the physics are not unchanged.
    """
    if physics == UNCHANGED:
        return
    import mujoco

    model = getattr(env.unwrapped, "model", None)
    if not isinstance(model, mujoco.MjModel):
        raise UserError(
            f"environment {name} has no MuJoCo model: expected one, to change its physics "
            f"({physics}); leave the physics unchanged"
        )
    change_model(model, physics)


def change_model(model: Any, physics: Physics) -> None:
    """Multiplies the constants of an `MjModel` in place.

    The derived constants (subtree masses, inverse inertias in the initial state) follow. Unchanged
    physics leave every bit of the model.

    Args:
      model: the model.
      physics: the factors.
    """
    if physics == UNCHANGED:
        return
    import mujoco

    model.opt.gravity[:] *= physics.gravity
    model.geom_friction[:] *= physics.friction
    model.pair_friction[:] *= physics.friction
    model.body_mass[:] *= physics.mass
    model.body_inertia[:] *= physics.mass
    model.dof_damping[:] *= physics.damping
    model.actuator_ctrlrange[:] *= physics.actuator
    mujoco.mj_setConst(model, mujoco.MjData(model))
