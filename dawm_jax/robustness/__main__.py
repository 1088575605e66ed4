"""Plays the policies of finished runs in changed physics and with noise.

  python -m dawm_jax.robustness runs/dawm runs/dwm --out=robustness
  python -m dawm_jax.robustness runs/* --changes=gravity,action --episodes=20 --out=robustness

Every argument is a run's folder, its results.json, or a folder of run folders. The changes are
factors of gravity, friction, mass, joint damping and the actuators' range of a MuJoCo model, and
Gaussian noise of observations and actions; the unchanged level is in every sweep. The command
writes robustness.json (returns of every episode), robustness.md (tables) and robustness.png into
--out. It keeps the levels in robustness.json that are done: the same command goes on where it was
stopped, run by run, and more runs or changes can be added.
"""

from absl import flags

from dawm_jax.runtime import cli, paths

_OUT = flags.DEFINE_string("out", "robustness", "Folder to write the files to")
_CHANGES = flags.DEFINE_string(
    "changes",
    "gravity,friction,mass,damping,actuator,observation,action",
    "What is changed, separated by commas",
)
_EPISODES = flags.DEFINE_integer(
    "episodes", 10, "Of each seed in each level", lower_bound=1, upper_bound=10**6
)
_SEED = flags.DEFINE_integer(
    "seed", 10_000, "Of start states and noise", lower_bound=0, upper_bound=2**32 - 1
)


def main(folders: list[str]) -> None:
    """Plays, writes the files and prints the Markdown."""
    from dawm_jax.robustness import sweeps
    from dawm_jax.robustness.run import Request, make_report
    from dawm_jax.robustness.store import EpisodeProtocol
    from dawm_jax.runtime import stopping
    from dawm_jax.types import UserError

    if not folders:
        raise UserError(
            "no runs: expected their folders, e.g. python -m dawm_jax.robustness runs/*"
        )
    request = Request(
        folders=tuple(folders),
        out=_OUT.value,
        sweeps=sweeps.parse(_CHANGES.value),
        protocol=EpisodeProtocol(episodes=_EPISODES.value, seed=_SEED.value),
    )
    try:
        with stopping.stop_on_signals() as stop:
            print(make_report(request, stop))
    except stopping.Interrupted as interruption:
        cli.fail(f"stopped in {interruption}; the same command goes on", 143)


def _check() -> None:
    """Refuses an unknown change, and a folder that cannot be named."""
    from dawm_jax.robustness import sweeps

    sweeps.parse(_CHANGES.value)
    paths.expand(_OUT.value, "--out")


def run() -> None:
    """Entry point of the console script."""
    cli.run(main, __doc__, takes_arguments=True, check=_check)


if __name__ == "__main__":
    run()
