"""Section `online`: the fine-tuning of agents in their environment after the offline training."""

import dataclasses

from dawm_jax.runtime.settings import setting
from dawm_jax.types import UserError

# Rounding of three shares that are written with a few digits.
_SUM_TOLERANCE = 1e-6
# Copies of an environment that one host steps beside the updates of a device.
_MAX_COPIES = 1_024


@dataclasses.dataclass(frozen=True)
class Online:
    """How agents go on to learn from steps of their environment, after the offline training."""

    steps: int = setting(
        0,
        "environment steps of each seed after the offline training; 0 trains offline alone",
        at_least=0,
    )
    envs: int = setting(
        10,
        "copies of the environment that each seed steps together",
        smoke=4,
        at_least=1,
        at_most=256,
    )
    updates_per_step: int = setting(
        1, "gradient updates of the critics per environment step", at_least=1, source="RLPD: 20"
    )
    offline_fraction: float = setting(
        0.25, "share of rows of the dataset in a minibatch at first", at_least=0.0, at_most=1.0
    )
    online_fraction: float = setting(
        0.5,
        "share of rows that the agent lived through in a minibatch at first",
        at_least=0.0,
        at_most=1.0,
        source="RLPD 2302.02948",
    )
    generated_fraction: float = setting(
        0.25, "share of generated rows in a minibatch at first", at_least=0.0, at_most=1.0
    )
    share_decay: float = setting(
        0.0,
        "part of the shares of the dataset and of generated rows that has gone over to online rows "
        "at the last step, linearly in the steps",
        at_least=0.0,
        at_most=1.0,
    )
    warm_up: int = setting(
        5_000,
        "environment steps at first in which critics learn and the policy stays as it is",
        smoke=40,
        at_least=0,
        source="WSRL 2412.07762",
    )
    noise: float = setting(
        0.1,
        "standard deviation of the noise of actions, in units of half an action range; an agent "
        "that draws its actions ignores it",
        at_least=0.0,
        source="TD3 1802.09477",
    )
    cloning_decay: float = setting(
        1.0,
        "factor of the pull towards the data's actions at the last step: it decays geometrically "
        "from 1 after the warm-up",
        above=0.0,
        at_most=1.0,
    )
    refit_every: int = setting(
        1_000,
        "environment steps between refits of the models, which are followed by new generated rows; "
        "0, or no generated rows in minibatches, never refits",
        smoke=80,
        at_least=0,
    )
    refit_steps: int = setting(200, "gradient steps of each model in a refit", smoke=4, at_least=1)
    refit_learning_rate: float = setting(3e-4, "constant rate of Adam in refits", above=0.0)
    refit_online_fraction: float = setting(
        0.5,
        "share of steps of ended online episodes in a refit's minibatches and in the starts of "
        "generated windows",
        at_least=0.0,
        at_most=1.0,
    )
    fresh_agent: bool = setting(
        False, "begin with new agents in place of those trained offline, as RLPD does"
    )
    buffer_capacity: int = setting(
        1_000_000, "latest online steps kept, per seed; at most `steps` are allocated", at_least=1
    )
    evaluation_interval: int = setting(
        5_000, "environment steps between evaluations", smoke=100, at_least=1
    )
    checkpoint_steps: int = setting(
        10_000, "environment steps between checkpoints", smoke=100, at_least=1
    )
    log_steps: int = setting(1_000, "environment steps between log lines", smoke=20, at_least=1)

    def check(self, name: str) -> None:
        """Checks what settings of this section say together, if it is switched on.

        Raises:
          UserError: shares that do not sum to 1, or numbers of steps that are no multiple of the
            steps that all copies make together.
        """
        if not self.steps:
            return
        shares = (self.offline_fraction, self.online_fraction, self.generated_fraction)
        if abs(sum(shares) - 1.0) > _SUM_TOLERANCE:
            raise UserError(
                f"{name}: expected offline_fraction + online_fraction + generated_fraction to be "
                f"1, got {' + '.join(f'{share:g}' for share in shares)} = {sum(shares):g}"
            )
        for field in ("steps", "refit_every", "evaluation_interval", "log_steps"):
            if getattr(self, field) % self.envs:
                raise UserError(
                    f"{name}.{field}: expected a multiple of {name}.envs ({self.envs}), got "
                    f"{getattr(self, field)}"
                )
        if self.warm_up >= self.steps:
            raise UserError(
                f"{name}.warm_up: expected less than {name}.steps ({self.steps}), as the policy "
                f"would never learn, got {self.warm_up}"
            )
        if self.buffer_capacity < self.envs:
            raise UserError(
                f"{name}.buffer_capacity: expected room for one step of all {self.envs} "
                f"environments, got {self.buffer_capacity}"
            )

    def check_copies(self, name: str, *, num_seeds: int) -> None:
        """Checks the number of copies of all seeds.

        Raises:
          UserError: there are more than one host steps in reasonable time.
        """
        if self.steps and self.envs * num_seeds > _MAX_COPIES:
            raise UserError(
                f"{name}.envs: expected at most {_MAX_COPIES // num_seeds} with {num_seeds} "
                f"seeds ({_MAX_COPIES:,} copies in all), got {self.envs}"
            )

    @property
    def capacity_turns(self) -> int:
        """Time steps of all copies that the online buffer holds."""
        return max(1, min(self.buffer_capacity, self.steps) // self.envs)
