"""What is changed, and by how much: the sweeps of the command.

Factors 0.1, 0.5, 2 and 5 are those of the benchmark ODRL (2410.20750) for gravity and friction. The
finer factors of gravity, damping and the actuators' range span the sweeps of robust fitted
Q-iteration (RFQI, 2208.05129). Action noise up to 0.2 is that of 2412.18781 and covers RFQI's
variance of 0.03. Other values are this package's choice.
"""

import dataclasses

from dawm_jax.envs import perturbed
from dawm_jax.envs.perturbed import UNCHANGED, Physics
from dawm_jax.types import UserError, one_line

OBSERVATION, ACTION = "observation", "action"


@dataclasses.dataclass(frozen=True)
class Level:
    """One condition of an evaluation; the default changes nothing.

    Attributes:
      physics: factors of the simulator's constants.
      observation_noise: standard deviation of Gaussian noise on each observation, in standard
        deviations of this observation in the run's training data.
      action_noise: standard deviation of Gaussian noise on each action, in half ranges of it.
    """

    physics: Physics = UNCHANGED
    observation_noise: float = 0.0
    action_noise: float = 0.0

    @property
    def key(self) -> str:
        """A name in files: "gravity=0.5", "action=0.1", "unchanged"."""
        noises = ((OBSERVATION, self.observation_noise), (ACTION, self.action_noise))
        parts = [
            str(self.physics),
            *(f"{name}={value!r}" if value else "" for name, value in noises),
        ]
        return ",".join(filter(None, parts)) or "unchanged"


@dataclasses.dataclass(frozen=True)
class Sweep:
    """One change and its values.

    Attributes:
      change: a field of `Physics`, "observation" or "action".
      values: ascending, with the one that changes nothing among them.
      label: name of the axis.
    """

    change: str
    values: tuple[float, ...]
    label: str

    @property
    def is_factor(self) -> bool:
        """Whether the values are factors, whose axis is logarithmic, and not sizes of noise."""
        return self.change in perturbed.NAMES

    @property
    def unchanged(self) -> float:
        """The value that changes nothing."""
        return 1.0 if self.is_factor else 0.0

    @property
    def levels(self) -> tuple[Level, ...]:
        """The condition of each value."""
        return tuple(_level(self.change, value) for value in self.values)


def _level(change: str, value: float) -> Level:
    if change == OBSERVATION:
        return Level(observation_noise=value)
    if change == ACTION:
        return Level(action_noise=value)
    return Level(dataclasses.replace(UNCHANGED, **{change: value}))


SWEEPS = (
    Sweep("gravity", (0.1, 0.5, 1.0, 1.05, 1.1, 1.15, 1.2, 1.4, 2.0, 5.0), "factor of gravity"),
    Sweep("friction", (0.1, 0.5, 1.0, 2.0, 5.0), "factor of friction"),
    Sweep("mass", (0.1, 0.5, 1.0, 2.0, 5.0), "factor of all masses"),
    Sweep("damping", (0.1, 0.5, 1.0, 1.2, 1.4, 1.8, 2.4, 5.0), "factor of joint damping"),
    Sweep("actuator", (0.6, 0.7, 0.8, 0.9, 0.95, 1.0), "factor of the actuators' range"),
    Sweep(OBSERVATION, (0.0, 0.01, 0.02, 0.05, 0.1, 0.2), "observation noise (std of the data)"),
    Sweep(ACTION, (0.0, 0.05, 0.1, 0.15, 0.2), "action noise (half ranges)"),
)
CHANGES = tuple(sweep.change for sweep in SWEEPS)


def parse(text: str) -> tuple[Sweep, ...]:
    """The sweeps that "gravity,action" names, in the order of `SWEEPS`.

    Raises:
      UserError: an unknown or repeated name, or none.
    """
    names = [name.strip() for name in text.split(",")]
    if not set(names) <= set(CHANGES) or len(set(names)) < len(names):
        raise UserError(
            f"--changes: expected different ones of {', '.join(CHANGES)}, separated by commas, got "
            f"{one_line(text)!r}"
        )
    return tuple(sweep for sweep in SWEEPS if sweep.change in names)


def distinct_levels(sweeps: tuple[Sweep, ...]) -> tuple[Level, ...]:
    """All conditions of the sweeps once; the unchanged one, which they share, is the first."""
    return tuple(dict.fromkeys((Level(), *(level for own in sweeps for level in own.levels))))
