"""Synthetic data of a finished run as a Minari dataset, for any offline algorithm.

Draws states, actions and returns-to-go uniformly from the steps that the run's models were
trained on, generates a window of single steps from each, and writes every window as one episode
in the environment's units: it ends with the first generated termination, or is truncated after
its last step.

Examples:
  python -m dawm_jax.generate --workdir=runs/a --dataset_id=local/hopper/synthetic-v0
  python -m dawm_jax.generate --workdir=runs/a --dataset_id=local/hopper/synthetic-v0 \\
      --transitions=5000000 --seed=1 --guidance=2.0 --overwrite

The dataset appears under MINARI_DATASETS_PATH (default ~/.minari/datasets) when it is
complete: minari.load_dataset("local/hopper/synthetic-v0"), or --config.dataset of a run.
The same flags give the same episodes. What made them is in its metadata, under "dawm_jax".
"""

from absl import flags

from dawm_jax.runtime import cli, paths

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run", required=True)
_DATASET_ID = flags.DEFINE_string(
    "dataset_id", None, "Minari id of the new dataset: local/hopper/synthetic-v0", required=True
)
_TRANSITIONS = flags.DEFINE_integer(
    "transitions", 1_000_000, "To write", lower_bound=1, upper_bound=10**12
)
_SEED = flags.DEFINE_integer(
    "seed", 0, "Of the starts and the noise", lower_bound=0, upper_bound=2**32 - 1
)
_BATCH = flags.DEFINE_integer(
    "batch", 1_024, "Windows generated together", lower_bound=1, upper_bound=2**24
)
_OVERWRITE = flags.DEFINE_boolean("overwrite", False, "Replace a dataset of this id")
# Unset ones are the run's own; the names are those of config.rollout.
_ROLLOUT = (
    flags.DEFINE_float("guidance", None, "Instead of the run's config.rollout.guidance"),
    flags.DEFINE_integer("sampling_steps", None, "Instead of config.rollout.sampling_steps"),
    flags.DEFINE_float("temperature", None, "Instead of config.rollout.temperature"),
    flags.DEFINE_string("target_rule", None, "Instead of config.rollout.target_rule"),
    flags.DEFINE_float("target_factor", None, "Instead of config.rollout.target_factor"),
)


def main() -> None:
    """Generates what the flags ask for; see the module's text."""
    from dawm_jax.training import synthesis

    synthesis.generate(
        paths.expand(_WORKDIR.value, "--workdir"),
        _DATASET_ID.value,
        transitions=_TRANSITIONS.value,
        seed=_SEED.value,
        batch=_BATCH.value,
        overwrite=_OVERWRITE.value,
        rollout={flag.name: flag.value for flag in _ROLLOUT if flag.value is not None},
    )


def _check() -> None:
    """Refuses values that config.rollout would refuse."""
    from dawm_jax.config import schema

    known = dict(schema.fields())
    for flag in _ROLLOUT:
        refusal = known[f"config.rollout.{flag.name}"].refusal(flag.value)
        if flag.value is not None and refusal:
            raise ValueError(f"--{flag.name}: {refusal}")
    paths.expand(_WORKDIR.value, "--workdir")


def run() -> None:
    """Entry point of the console script."""
    cli.run(main, __doc__, check=_check)


if __name__ == "__main__":
    run()
