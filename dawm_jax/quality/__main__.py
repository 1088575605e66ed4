"""Measures the quality of synthetic transitions: those that a run generates, or a dataset's.

Compares the transitions with real data (distributions, distances, returns, terminations) and with
one simulator step from each of their states. Writes quality.json, quality.md and quality.png.

Examples:
  python -m dawm_jax.quality --workdir=runs/hopper                  what the run generates
  python -m dawm_jax.quality --workdir=runs/hopper --ablation       other sampler settings
  python -m dawm_jax.quality --workdir=runs/hopper --dataset_id=me/synthetic-v0
  python -m dawm_jax.quality --dataset_id=other.hdf5 --reference=mujoco/hopper/medium-v0 \\
      --environment=Hopper-v5 --out=quality
"""

import pathlib

from absl import flags

from dawm_jax.runtime import cli, paths

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a finished run")
_DATASET_ID = flags.DEFINE_string(
    "dataset_id", None, "Minari id or D4RL file to evaluate. Default: what the run generates"
)
_REFERENCE = flags.DEFINE_string(
    "reference", None, "Real data to compare with, without --workdir; a run has its own"
)
_ENVIRONMENT = flags.DEFINE_string(
    "environment",
    None,
    "Gymnasium id of the simulator. Default: the run's, with its keyword arguments, or the "
    "reference's",
)
_OUT = flags.DEFINE_string(
    "out", None, "Folder of the report. Default: <workdir>/quality, plus --dataset_id if given"
)
_TRANSITIONS = flags.DEFINE_integer(
    "transitions",
    14_336,
    "Number of transitions to evaluate, for each value of an ablation",
    lower_bound=16,
    upper_bound=10**9,
)
_SEED = flags.DEFINE_integer(
    "seed", 0, "Seed of samples and generation", lower_bound=0, upper_bound=2**32 - 1
)
_ABLATION = flags.DEFINE_bool(
    "ablation",
    False,
    "Vary guidance, sampling steps, order, temperature and target: ablation.json, .md, .png",
)


def main() -> None:
    """Evaluates, writes the report and prints it."""
    # JAX is imported here, so that --help and a wrong flag need not wait for it.
    from dawm_jax.quality.run import Request, make_report

    print(
        make_report(
            Request(
                out=paths.expand(_OUT.value or _default_out(), "--out"),
                workdir=_WORKDIR.value,
                dataset_id=_DATASET_ID.value,
                reference=_REFERENCE.value,
                environment=_ENVIRONMENT.value,
                transitions=_TRANSITIONS.value,
                seed=_SEED.value,
                ablation=_ABLATION.value,
            )
        )
    )


def _check() -> None:
    """Refuses combinations of flags that name nothing to evaluate."""
    named = {
        "--workdir": _WORKDIR.value,
        "--dataset_id": _DATASET_ID.value,
        "--reference": _REFERENCE.value,
        "--environment": _ENVIRONMENT.value,
        "--out": _OUT.value,
    }
    for flag, value in named.items():
        if value is not None:
            paths.expand(value, flag)
    workdir, dataset_id = _WORKDIR.value, _DATASET_ID.value
    if workdir and _REFERENCE.value:
        raise ValueError("--reference is for use without --workdir: a run has its own data")
    if not workdir and not (dataset_id and _REFERENCE.value and _OUT.value):
        raise ValueError("expected --workdir, or --dataset_id with --reference and --out")
    if _ABLATION.value and (dataset_id or not workdir):
        raise ValueError("--ablation varies what a run generates: it needs --workdir alone")


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
