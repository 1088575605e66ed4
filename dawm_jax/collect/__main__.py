"""Makes D4RL's locomotion datasets, as Minari datasets, from policies in the package.

Examples:
  python -m dawm_jax.collect --env=Hopper-v5 --tier=medium --steps=1000000 \\
      --dataset_id=dawm/hopper/medium-v1
  python -m dawm_jax.collect --env=Walker2d-v5 --tier=medium-replay
  python -m dawm_jax.collect --env=Hopper-v5 --physics=gravity=1.2,friction=0.5 \\
      --dataset_id=local/hopper/heavy-v0
  python -m dawm_jax.collect --env=gymnasium_robotics:PointMaze_UMaze-v3 --tier=scripted
  python -m dawm_jax.collect --env=Ant-v5 --train --workdir=runs/sac-ant
  python -m dawm_jax.collect --env=Ant-v5 --tier=medium --policies=runs/sac-ant/policies.npz

Tiers, after D4RL's recipe: random; medium (the first snapshot of soft actor-critic whose return
passes R_random + (R_expert - R_random) / 3); medium-replay (up to 8 snapshots until medium);
expert; medium-expert. scripted: a controller in the package, for PointMaze and OGBench's cube
(extra robotics). The same command makes the same data. An interrupted command leaves no dataset.
--train trains the policies, for hours, and resumes on the same --workdir. --physics records in
another simulator than runs are evaluated in; the dataset's metadata say so, and a run on it warns.
"""

import pathlib

from absl import flags

from dawm_jax.data import TIERS
from dawm_jax.runtime import cli

_MAX_STEPS = 2**31 - 1
_TRAINING_STEPS = 1_000_000

_ENV = flags.DEFINE_string(
    "env", None, "Gymnasium id of a continuous-control environment", required=True
)
_TIER = flags.DEFINE_enum(
    "tier",
    "medium",
    list(TIERS),
    "D4RL's tier, or scripted; see above",
)
_STEPS = flags.DEFINE_integer(
    "steps",
    None,
    "Environment steps; a dataset has at least so many, in whole episodes; a training makes whole "
    "rounds of 128. Default: 1,000,000, medium-expert 2,000,000, medium-replay the steps that the "
    "training had made at medium",
    lower_bound=1,
    upper_bound=_MAX_STEPS,
)
_EPISODE_STEPS = flags.DEFINE_integer(
    "max_steps",
    0,
    "Time limit of an episode, for environments without one; 0: the environment's",
    lower_bound=0,
    upper_bound=_MAX_STEPS,
)
_DATASET_ID = flags.DEFINE_string(
    "dataset_id", None, "Minari id of the new dataset. Default: dawm/<task>/<tier>-v1"
)
_SEED = flags.DEFINE_integer(
    "seed", 0, "Of resets and actions", lower_bound=0, upper_bound=2**32 - 1
)
_POLICIES = flags.DEFINE_string(
    "policies", None, "policies.npz of a training. Default: the ones in the package"
)
_PHYSICS = flags.DEFINE_string(
    "physics",
    None,
    "Factors of the constants of the MuJoCo model: gravity=1.2,friction=0.5; also mass, damping, "
    "actuator",
)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace a dataset of this id")
_TRAIN = flags.DEFINE_bool("train", False, "Train policies with soft actor-critic; collect nothing")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the training")


def main() -> None:
    """Collects or trains; see the module's text."""
    if _TRAIN.value:
        _train()
    else:
        _collect()


def _collect() -> None:
    from dawm_jax.collect import policies as policies_lib
    from dawm_jax.collect import tiers
    from dawm_jax.data import dataset
    from dawm_jax.data.load import load_dataset
    from dawm_jax.envs import perturbed
    from dawm_jax.envs.tasks import task_name
    from dawm_jax.runtime import stopping

    environment, tier = _ENV.value, _TIER.value
    policies = None
    if _POLICIES.value:
        policies = policies_lib.load_policies(pathlib.Path(_POLICIES.value).expanduser())
        policies_lib.check_environment(policies, environment)
    elif tiers.needs_policies(tier):
        policies = policies_lib.shipped_policies(environment)
    physics = perturbed.UNCHANGED if _PHYSICS.value is None else perturbed.parse(_PHYSICS.value)
    recipe = tiers.Recipe(environment, tier, _STEPS.value, _EPISODE_STEPS.value, physics)
    name = _DATASET_ID.value or f"dawm/{task_name(environment)}/{tier}-v1"
    try:
        with stopping.stop_on_signals() as stop:
            tiers.make(
                name, recipe, policies, seed=_SEED.value, overwrite=_OVERWRITE.value, stop=stop
            )
    except stopping.Interrupted as interruption:
        cli.fail(f"stopped in {interruption}; the same command starts again", 143)
    cli.log.info("%s", dataset.describe(load_dataset(name)))


def _train() -> None:
    from dawm_jax.collect import train_sac
    from dawm_jax.envs.tasks import task_name
    from dawm_jax.runtime import stopping

    environment = _ENV.value
    workdir = pathlib.Path(_WORKDIR.value or f"runs/sac-{task_name(environment)}").expanduser()
    settings = train_sac.Settings(
        environment,
        seed=_SEED.value,
        steps=_TRAINING_STEPS if _STEPS.value is None else _STEPS.value,
        max_steps=_EPISODE_STEPS.value or None,
    )
    try:
        with stopping.stop_on_signals() as stop:
            policies = train_sac.train(settings, workdir, stop)
    except stopping.Interrupted as interruption:
        cli.fail(f"stopped in {interruption}; the same command resumes there", 143)
    for name, facts in policies.card["policies"].items():
        print(f"{name:<10} step {facts['step']:>9,}  return {facts['return_mean']:.0f}")
    print(f"policies: {workdir / 'policies.npz'}")


def _check() -> None:
    """Refuses policies that do not act, and --physics that are wrong or make standard data."""
    if _PHYSICS.value is None and _POLICIES.value is None:
        return
    from dawm_jax.collect import tiers
    from dawm_jax.envs import perturbed

    if _POLICIES.value and not _TRAIN.value and not tiers.needs_policies(_TIER.value):
        raise ValueError(
            f"--policies: no policy acts in the tier {_TIER.value}; leave the flag out"
        )
    if _PHYSICS.value is None:
        return
    perturbed.parse(_PHYSICS.value)
    if _TIER.value == "scripted":
        raise ValueError("--physics changes what policies meet: it cannot be used with scripted")
    if _TRAIN.value:
        raise ValueError("--physics changes what is recorded: it cannot be used with --train")
    if _DATASET_ID.value is None or tiers.recipe_of(_DATASET_ID.value):
        raise ValueError(
            "--physics needs --dataset_id with a name of its own, such as local/hopper/heavy-v0: "
            "standard names mean unchanged physics"
        )


def run() -> None:
    """Entry point of the console script."""
    cli.run(main, __doc__, check=_check)


if __name__ == "__main__":
    run()
