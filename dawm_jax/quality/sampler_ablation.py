"""How what a run generates changes with the settings of its generation, one at a time."""

from typing import Any

from dawm_jax.quality import evaluate as judge
from dawm_jax.quality.evaluate import Reference
from dawm_jax.runtime.metrics import Progress
from dawm_jax.training.load_run import LoadedRun

# Values of the fields of config.rollout; the run's own value is added.
_VALUES = {
    "guidance": (1.0, 1.2, 1.5, 2.0),
    "sampling_steps": (1, 3, 5, 8, 20),
    "order": (1, 2),
    "temperature": (0.5, 0.75, 1.0, 1.15, 1.3),
    "target_factor": (1.0, 1.1, 1.2, 1.5),
}
_FRACTIONS = (0.6, 0.8, 1.0)  # of target_factor when the rule is max_fraction
_REPEATS = 3  # of the run's own settings, to see the noise


def run_study(run: LoadedRun, reference: Reference, *, num_windows: int, seed: int) -> dict:
    """Measures the run's own settings, then each field's values around them.

    All settings share their starts and their noise; only the repeats draw others.

    Args:
      run: with models.
      reference: its dataset.
      num_windows: see `judge.measure_run`.
      seed: of the first repeat.

    Returns:
      `settings` the run's own, `repeats` their numbers, and `fields`: by field a list of
      values with their numbers.
    """
    own = run.config.rollout
    values = {name: _values(run, name) for name in _VALUES}
    total = _REPEATS + sum(len(some) - 1 for some in values.values())
    progress = Progress("study", total, "settings")
    done = 0

    def headline(seed: int, **changed: Any) -> dict[str, Any]:
        nonlocal done
        found = judge.measure_run(
            run.with_rollout(**changed), reference, num_windows=num_windows, seed=seed
        )
        done += 1
        progress.report(done, {})
        return _headline(found.numbers)

    repeats = [headline(seed + i) for i in range(_REPEATS)]
    fields = {
        name: [
            {"value": v, **(repeats[0] if v == own[name] else headline(seed, **{name: v}))}
            for v in some
        ]
        for name, some in values.items()
    }
    progress.close()
    return {
        "settings": {"target_rule": own.target_rule, **{name: own[name] for name in _VALUES}},
        "windows": num_windows,
        "repeats": repeats,
        "fields": fields,
    }


def _values(run: LoadedRun, name: str) -> list[Any]:
    own, some = run.config.rollout, _VALUES[name]
    if name == "target_factor" and own.target_rule == "max_fraction":
        some = _FRACTIONS
    if name == "order" and own.eta > 0:
        some = (1,)
    if name == "sampling_steps":
        some = tuple(v for v in some if v <= run.config.world_model.diffusion_steps)
    return sorted({*some, own[name]})


def _headline(numbers: dict[str, Any]) -> dict[str, Any]:
    """The few numbers that a study compares; simulator measures are None without one."""
    error = lambda name: numbers.get(name, {"mean": None, "median": None})
    ending = numbers["termination"].get("ending", {})
    return {
        "dynamics_error": error("dynamics")["mean"],
        "dynamics_error_median": error("dynamics")["median"],
        "reward_error": error("reward")["mean"],
        "ks_mean": numbers["distribution"]["ks"]["mean"],
        "discriminator_auc": numbers["distribution"]["discriminator_auc"],
        "step_size": numbers["step_size"]["judged"],
        "novelty": numbers["novelty"]["median_ratio"],
        "termination_recall": ending.get("recall"),
        "termination_precision": ending.get("precision"),
        "generated_return": numbers["calibration"]["generated_mean"],
    }
