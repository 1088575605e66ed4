"""How good synthetic transitions are: what a run generates, or any dataset.

Holds transitions against real data (distributions, novelty, returns, terminations) and against
one simulator step from each of their states. Writes quality.json, quality.md and quality.png.

Examples:
  python -m dawm_jax.quality --workdir=runs/hopper                  what the run generates
  python -m dawm_jax.quality --workdir=runs/hopper --study          what its settings change
  python -m dawm_jax.quality --workdir=runs/hopper --dataset_id=me/synthetic-v0
  python -m dawm_jax.quality --dataset_id=other.hdf5 --reference=mujoco/hopper/medium-v0 \\
      --environment=Hopper-v5 --out=quality
"""

import pathlib

from absl import flags

from dawm_jax.runtime import cli

_WORKDIR = flags.DEFINE_string("workdir", None, "A finished run's folder")
_DATASET_ID = flags.DEFINE_string(
    "dataset_id", None, "Judge this Minari id or D4RL file, not what the run generates"
)
_REFERENCE = flags.DEFINE_string(
    "reference", None, "Real data to judge against, without --workdir; a run has its own"
)
_ENVIRONMENT = flags.DEFINE_string(
    "environment", None, "Gymnasium id of the simulator. Default: the run's or the reference's"
)
_OUT = flags.DEFINE_string(
    "out", None, "Folder of the report. Default: <workdir>/quality, and a dataset's name in it"
)
_TRANSITIONS = flags.DEFINE_integer(
    "transitions", 14_336, "How many to judge, of each setting of a study", lower_bound=16
)
_SEED = flags.DEFINE_integer("seed", 0, "Of samples and generation")
_STUDY = flags.DEFINE_bool(
    "study", False, "Vary guidance, DDIM steps, temperature and target: study.json, .md, .png"
)


def main() -> None:
    """Judges and writes the report; see the module's text."""
    from dawm_jax.quality import run as audit

    print(
        audit.make_report(
            audit.Request(
                workdir=_WORKDIR.value,
                dataset_id=_DATASET_ID.value,
                reference=_REFERENCE.value,
                environment=_ENVIRONMENT.value,
                out=pathlib.Path(_OUT.value or _default_out()).expanduser(),
                transitions=_TRANSITIONS.value,
                seed=_SEED.value,
                study=_STUDY.value,
            )
        )
    )


def _check() -> None:
    """Refuses combinations of flags that name nothing to judge."""
    workdir, dataset_id = _WORKDIR.value, _DATASET_ID.value
    if workdir and _REFERENCE.value:
        raise ValueError("--reference is for judging without --workdir: a run has its own data")
    if not workdir and not (dataset_id and _REFERENCE.value and _OUT.value):
        raise ValueError("expected --workdir, or --dataset_id with --reference and --out")
    if _STUDY.value and (dataset_id or not workdir):
        raise ValueError("--study varies what a run generates: it needs --workdir alone")


def _default_out() -> str:
    parts = [_WORKDIR.value or "", "quality"]
    if _DATASET_ID.value:
        parts.append(pathlib.Path(_DATASET_ID.value.strip("/").replace("/", "-")).stem)
    return "/".join(parts)


def run() -> None:
    """Entry point of the console script."""
    cli.run(main, __doc__, check=_check)


if __name__ == "__main__":
    run()
