"""What a run leaves behind: results.json, returns.npz and curves.png."""

import functools
import json
import logging
import pathlib
import zlib
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from dawm_jax.agents.base import AGENTS
from dawm_jax.config import schema
from dawm_jax.config.schema import Config
from dawm_jax.envs.rollouts import Outcome
from dawm_jax.envs.scores import (
    confidence_interval,
    mean_height,
    normalised_score,
    reference_returns,
)
from dawm_jax.envs.tasks import References
from dawm_jax.methods.base import METHODS, MethodSpec
from dawm_jax.runtime import provenance, sharding
from dawm_jax.runtime.metrics import MetricsFile, format_seconds
from dawm_jax.runtime.run_folder import DatasetRecord
from dawm_jax.training import figures
from dawm_jax.training.setup import Setup
from dawm_jax.types import UserError, first_line

_log = logging.getLogger(__name__)

# How the data are used.
_DATA_SETTINGS = (
    "discount",
    "timeout_value",
    "return_scale",
    "held_out_fraction",
    "clip_actions",
)

# A mean Q that exceeds the data's largest discounted return by this share of the largest magnitude
# of a return is no noise of minibatches.
_Q_WARNING = 0.5
_PNG_BEGIN, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
# The last field of results.json: SHA-256 of the others. Results of an older version have none.
_DIGEST = "results_digest"


def evaluation_entry(
    environment: str, outcome: Outcome, when: str, references: References | None = None
) -> dict[str, Any]:
    """What is recorded of an evaluation: all returns, and their summary for the log.

    Args:
      environment: Gymnasium id.
      outcome: of the episodes, [seeds, episodes].
      when: in the training, for the log.
      references: of the data; see `envs.scores.reference_returns`.

    Raises:
      UserError: a return is not a finite number.
    """
    returns = outcome.returns
    if bad := int((~np.isfinite(returns)).sum()):
        raise UserError(
            f"{when}: expected finite returns of {environment}, got {bad} of {returns.size} "
            "episodes with NaN or infinity; check the rewards of the environment"
        )
    entry = {"return_mean": float(returns.mean()), "returns": returns.tolist()}
    scores = normalised_score(environment, returns.mean(axis=1), references)
    text = f"return {returns.mean():.0f}"
    if scores is not None:
        entry["normalised_score"] = float(scores.mean())
        text = f"normalised score {scores.mean():.1f}, {text}"
    if outcome.succeeded is not None:
        entry["successes"] = outcome.succeeded.mean(axis=1).tolist()
        text = f"success in {100.0 * outcome.succeeded.mean():.0f} % of episodes, {text}"
    seeds, episodes = returns.shape
    _log.info("%s: %s (%d seed(s) x %d episodes)", when, text, seeds, episodes)
    return entry


def finish(
    parts: Setup, workdir: pathlib.Path, log: MetricsFile, *, dataset: DatasetRecord
) -> dict[str, Any]:
    """Writes the run's results from its metrics and logs the score.

    results.json is written last, so that it exists only beside all other files.

    Args:
      parts: what the run computed with.
      workdir: its folder.
      log: its metrics.jsonl, the only source of numbers.
      dataset: the data of the run.

    Returns:
      The content of results.json.

    Raises:
      UserError: metrics.jsonl has no evaluation with finite returns.
    """
    config = parts.config
    summary = functools.partial(_summary, config.environment, parts.references)
    returns = _returns(log)
    if not returns:
        raise UserError(
            f"{workdir}/metrics.jsonl: expected evaluations with finite returns, got none; remove "
            "those that are not finite and run the same command again"
        )
    *_, last = returns
    results = {
        **_what_ran(parts, dataset),
        "final": summary(returns[last]),
        "best": summary(max(returns.values(), key=lambda values: values.mean())),
        "curve": [{"update": update, **summary(values)} for update, values in returns.items()],
        "value_check": _check_values(log, *_return_limits(parts)),
        "evaluation_seconds": _evaluation_seconds(log),
        "stages": _stages(log),
        "device": sharding.describe_devices(),
        "cpu": provenance.cpu_model(),
        "versions": provenance.versions(),
        "commit": provenance.commit(),
    }
    if success := _success(log):
        results["success"] = success
    if config.online.steps:
        results["online"] = _online(parts, log, summary, offline=results["final"])
    _write_returns(workdir / "returns.npz", returns)
    figures.plot_curves(workdir / "curves.png", log, results)
    sealed = {**results, _DIGEST: provenance.digest(results, _DIGEST)}
    text = json.dumps(sealed, indent=2) + "\n"
    provenance.write_atomically(workdir / "results.json", text)
    announce(results, workdir)
    stored: dict[str, Any] = json.loads(text)
    return stored


def announce(results: Mapping[str, Any], workdir: pathlib.Path) -> None:
    """Logs the score and where the results are."""
    _log.info("%s", headline(results))
    _log.info("results, curves and checkpoints are in %s", workdir)


def _evaluations(
    log: MetricsFile, stages: tuple[str, ...] = ("agent", "planner")
) -> list[dict[str, Any]]:
    """What is recorded of evaluations of agents or plans, of which a run has one kind."""
    return [entry for stage in stages for entry in log.lines(stage, "assess")]


def _returns(
    log: MetricsFile, stages: tuple[str, ...] = ("agent", "planner")
) -> dict[int, np.ndarray]:
    """Returns [seeds, episodes] of every evaluation, by its update or environment step."""
    found: dict[int, np.ndarray] = {}
    for entry in _evaluations(log, stages):
        try:
            returns = np.asarray(entry.get("returns"), np.float64)
        except (TypeError, ValueError):  # neither numbers nor rows of equal length
            returns = np.empty(0)
        if returns.ndim == 2 and returns.size and np.isfinite(returns).all():
            found[entry["step"]] = returns
        else:
            _log.warning("update %d: its returns are not finite; left out", entry["step"])
    return found


def _evaluation_seconds(log: MetricsFile) -> float:
    entries = _evaluations(log, ("agent", "planner", "online"))
    return sum(entry.get("seconds", 0.0) for entry in entries)


def _write_returns(path: pathlib.Path, returns: Mapping[int, np.ndarray]) -> None:
    arrays: dict[str, Any] = {f"update_{update}": values for update, values in returns.items()}
    with provenance.whole_file(path) as part, part.open("wb") as file:
        np.savez(file, updates=np.asarray(list(returns)), **arrays)


# --- results of a finished run ------------------------------------------------------------


def read_results(workdir: pathlib.Path) -> dict[str, Any] | None:
    """The content of results.json; None, with a warning if it is damaged, without results."""
    path = workdir / "results.json"
    if not path.exists():
        return None
    try:
        results: dict[str, Any] = json.loads(path.read_bytes())
        if results.get(_DIGEST) not in (None, provenance.digest(results, _DIGEST)):
            raise ValueError("its content is not what was written")
        # Both read what they show, and fail where it is missing.
        _points(results)
        headline(results)
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        _log.warning("%s is damaged (%s): it will be written anew", path, first_line(error))
        return None
    return results


def _points(results: Mapping[str, Any], *, at: str = "update") -> dict[int, np.ndarray]:
    """Mean return of every seed at every evaluation, by its update or environment step."""
    return {
        point[at]: np.asarray(point["return_per_seed"], np.float64) for point in results["curve"]
    }


def check_recorded(results: Mapping[str, Any], workdir: pathlib.Path, log: MetricsFile) -> None:
    """Checks that metrics.jsonl holds what results.json was made of.

    Raises:
      UserError: it does not.
    """
    returns, trained = _returns(log), _stages(log)
    for update, values in _points(results).items():
        recorded = returns.get(update)
        if recorded is None or not _is_mean(values, recorded):
            raise UserError(_not_recorded(workdir, f"its evaluation at update {update}"))
    online = {} if "online" not in results else _points(results["online"], at="step")
    tuned = _returns(log, ("online",))
    for step, values in online.items():
        # Step 0 is the last evaluation of the offline training.
        if step and not (step in tuned and _is_mean(values, tuned[step])):
            raise UserError(_not_recorded(workdir, f"its evaluation at online step {step}"))
    for stage, values in results["stages"].items():
        if trained.get(stage, {}).get("steps") != values["steps"]:
            raise UserError(_not_recorded(workdir, f"its stage {stage}"))


def _is_mean(values: np.ndarray, returns: np.ndarray) -> bool:
    return values.shape == returns.shape[:1] and np.allclose(values, returns.mean(axis=1))


def _not_recorded(workdir: pathlib.Path, what: str) -> str:
    return (
        f"{workdir}: metrics.jsonl does not hold what results.json was made of ({what} is missing "
        "or differs); both are left as they are: restore metrics.jsonl, or choose another --workdir"
    )


def complete(results: Mapping[str, Any], workdir: pathlib.Path, log: MetricsFile) -> None:
    """Writes returns.npz and curves.png if they are missing or damaged."""
    returns = _returns(log)
    if not _holds_returns(workdir / "returns.npz", returns):
        _write_returns(workdir / "returns.npz", returns)
    curves = workdir / "curves.png"
    if not curves.is_file() or not _is_whole_png(curves.read_bytes()):
        figures.plot_curves(curves, log, results)


def _is_whole_png(content: bytes) -> bool:
    """Whether a PNG file is complete and each of its chunks has the CRC-32 stored with it."""
    if not content.startswith(_PNG_BEGIN) or not content.endswith(_PNG_END):
        return False
    start = len(_PNG_BEGIN)
    while start < len(content):  # length, kind and data, CRC
        end = start + 8 + int.from_bytes(content[start : start + 4], "big")
        if zlib.crc32(content[start + 4 : end]) != int.from_bytes(content[end : end + 4], "big"):
            return False
        start = end + 4
    return start == len(content)


def _holds_returns(path: pathlib.Path, returns: Mapping[int, np.ndarray]) -> bool:
    try:
        with np.load(path) as file:
            return file["updates"].tolist() == list(returns) and all(
                np.array_equal(file[f"update_{update}"], values)
                for update, values in returns.items()
            )
    except Exception:  # a damaged archive raises errors of many kinds
        return False


# --- parts of results.json ----------------------------------------------------------------


def _what_ran(parts: Setup, dataset: DatasetRecord) -> dict[str, Any]:
    """The settings that results.json repeats from config.json."""
    config, method = parts.config, METHODS.get(parts.config.method)
    horizon = config.horizon
    target = {"rule": config.rollout.target_rule, "factor": config.rollout.target_factor}
    if parts.planner is not None:
        horizon = parts.planner.horizon
        target = {"rule": "max_fraction", "factor": parts.planner.target_fraction}
    return {
        "environment": config.environment,
        "environment_kwargs": config.environment_arguments,
        "dataset": config.dataset,
        "dataset_summary": dataset.summary,
        "dataset_digest": dataset.digest,
        "references": reference_returns(config.environment, parts.references),
        "method": config.method,
        "method_label": method.label,
        "agent": "planner" if method.plans else config.agent,
        "agent_label": "planner" if method.plans else AGENTS.get(config.agent).label,
        "variant": config.variant,
        "seed": config.seed,
        "num_seeds": config.num_seeds,
        "seed_is": method.seed_is,
        "updates": 0 if method.plans else config.training.updates,
        "real_fraction": method.real_fraction(config.training.real_fraction),
        "return_steps": config.training.return_steps,
        "real_return_steps": config.training.steps_of_real_returns,
        "top_fraction": config.top_fraction,
        "episodes": config.episodes,
        "horizon": horizon,
        "target_return": target,
        "rollout": schema.to_dict(config)["rollout"],
        "settings": _settings(config, method),
    }


def _settings(config: Config, method: MethodSpec) -> dict[str, Any]:
    """Settings of the agent, of the method and of its models, and how they use the data.

    The evaluation's settings are not among them: they do not change the agents.
    """
    values = schema.to_dict(config)
    names = [] if method.plans else [config.agent]
    if method.trains_models(config):
        names += [*method.fitted_sections, *filter(None, [method.settings])]
    names += [values[name]["denoiser"] for name in names if "denoiser" in values[name]]
    return {
        **{name: values[name] for name in _DATA_SETTINGS},
        "training": {"batch_size": config.training.batch_size},
        **{name: values[name] for name in names},
    }


def _return_limits(parts: Setup) -> tuple[float, float]:
    """The data's smallest and largest discounted return-to-go in units of the agent's rewards."""
    scale = 1.0 if parts.agent is None else float(parts.agent.reward_scale)
    normalizer = parts.normalizer
    low, high = (
        float(value * normalizer.return_scale) * scale
        for value in (normalizer.return_low, normalizer.return_high)
    )
    return low, high


def headline(results: Mapping[str, Any]) -> str:
    """The final score in one line."""
    final = results["final"]
    text = f"{results['agent_label']} on {_source(results)} of {results['dataset']}: "
    if "score_mean" in final:
        text += f"normalised score {final['score_mean']:.1f}"
        if final["score_interval"]:
            low, high = final["score_interval"]
            text += f" (95 % interval {low:.1f} to {high:.1f} over {results['num_seeds']} seeds)"
        text += ", "
    if "success" in results:
        text += f"success in {100.0 * results['success']['rate_mean']:.0f} % of episodes, "
    seconds = sum(
        stage["seconds"] + stage["compile_seconds"] for stage in results["stages"].values()
    )
    seconds += results["evaluation_seconds"]
    text += f"return {final['return_mean']:.0f}, in {format_seconds(seconds)}"
    if "online" not in results:
        return text
    online = results["online"]
    name = "score" if "score_mean" in online["final"] else "return"
    after = f"after {online['curve'][-1]['step']:,} environment steps"
    if "success" in online:
        after += f" success in {100.0 * online['success']['rate_mean']:.0f} % of episodes,"
    return (
        f"{text}; {after} {name} "
        f"{online['final'][f'{name}_mean']:.1f}, on average over the steps "
        f"{online['area'][f'{name}_mean']:.1f}"
    )


def _source(results: Mapping[str, Any]) -> str:
    """What the agent learnt from, for the headline."""
    share = results["real_fraction"]
    if share == 1.0:
        return "real data"
    generated = f"{results['method_label']} data"
    return generated if share == 0.0 else f"{share:.0%} real and {1 - share:.0%} {generated}"


def _check_values(log: MetricsFile, smallest: float, largest: float) -> dict[str, float] | None:
    """The last mean Q beside the best the data ever returned; says so when it is far above.

    Far above is a distance, so that the check holds for returns of any sign: more than
    `_Q_WARNING` of the largest magnitude of a return above the largest return. Data whose returns
    are all 0 have no magnitude and get no warning.

    Args:
      log: of the run.
      smallest: discounted return-to-go in the data, in units of the agent's rewards.
      largest: likewise.

    Returns:
      What results.json records; None without a critic.
    """
    last = list(log.lines("agent", "train"))[-1:]
    if not last or not isinstance(last[0].get("q_mean"), int | float):
        return None
    q_mean = last[0]["q_mean"]
    magnitude = max(abs(smallest), abs(largest))
    if magnitude > 0.0 and q_mean > largest + _Q_WARNING * magnitude:
        _log.warning(
            "the mean Q of %.3g is far above the data's largest discounted return of %.3g: "
            "the values have run away and the policy cannot be trusted",
            q_mean,
            largest,
        )
    return {"q_mean": q_mean, "largest_return_to_go": largest}


class Summary(Protocol):
    """What results.json says of an evaluation."""

    def __call__(self, returns: np.ndarray, /) -> dict[str, Any]:
        """Returns [seeds, episodes] -> scores by seed, their mean and interval."""


def _online(
    parts: Setup, log: MetricsFile, summary: Summary, *, offline: Mapping[str, Any]
) -> dict[str, Any]:
    """The learning curve over environment steps.

    It begins with the agents trained offline, unless new ones took their place.

    Raises:
      UserError: metrics.jsonl has no last evaluation of the fine-tuning.
    """
    settings, returns = parts.config.online, _returns(log, ("online",))
    if settings.steps not in returns:
        raise UserError(
            f"metrics.jsonl: expected an evaluation at online step {settings.steps}, got none with "
            "finite returns; run the same command again"
        )
    curve = [] if settings.fresh_agent else [{"step": 0, **offline}]
    curve += [{"step": step, **summary(values)} for step, values in returns.items()]
    trained = _stages(log)["online"]
    seconds = trained["seconds"]
    success = _success(log, online=True)
    return {
        **({"success": success} if success else {}),
        "settings": schema.to_dict(parts.config)["online"],
        "curve": curve,
        "final": summary(returns[settings.steps]),
        "area": _area(curve),
        "updates": (settings.steps - settings.envs) * settings.updates_per_step,
        "seconds_per_step": seconds / settings.steps,
    }


def _success(log: MetricsFile, *, online: bool = False) -> dict[str, Any]:
    """Shares of successful episodes by seed, of every evaluation; empty if none was recorded."""
    entries = _evaluations(log, ("online",)) if online else _evaluations(log)
    curve = [
        {"step" if online else "update": entry["step"], "rate_per_seed": entry["successes"]}
        for entry in entries
        if "successes" in entry
    ]
    if not curve:
        return {}
    last = np.asarray(curve[-1]["rate_per_seed"])
    return {
        "rate_mean": float(last.mean()),
        "rate_per_seed": last.tolist(),
        "rate_interval": confidence_interval(last),
        "curve": curve,
    }


def _area(curve: list[dict[str, Any]]) -> dict[str, Any]:
    """The mean height of a learning curve over its steps, by the trapezoidal rule.

    Args:
      curve: points with "step", "return_per_seed" and, where there are scores, "score_per_seed".
    """
    steps = np.asarray([point["step"] for point in curve], np.float64)
    found: dict[str, Any] = {}
    for name in ("return", "score"):
        if f"{name}_per_seed" in curve[0]:
            values = np.asarray([point[f"{name}_per_seed"] for point in curve])
            per_seed = mean_height(values, steps)
            found[f"{name}_per_seed"] = per_seed.tolist()
            found[f"{name}_mean"] = float(per_seed.mean())
    return found


def _summary(
    environment: str, references: References | None, returns: np.ndarray
) -> dict[str, Any]:
    """Returns and scores by seed, their mean and 95 % interval over seeds."""
    per_seed = returns.mean(axis=1)
    summary = {
        "return_per_seed": per_seed.tolist(),
        "return_mean": float(per_seed.mean()),
        "return_interval": confidence_interval(per_seed),
        "episodes_per_seed": returns.shape[1],
    }
    scores = normalised_score(environment, per_seed, references)
    if scores is not None:
        summary["score_per_seed"] = scores.tolist()
        summary["score_mean"] = float(scores.mean())
        summary["score_interval"] = confidence_interval(scores)
    return summary


def _stages(log: MetricsFile) -> dict[str, Any]:
    """Steps, seconds and speed of every stage, from its last line."""
    last = {entry["stage"]: entry for entry in log.lines(kind="train")}
    return {stage: _stage(entry) for stage, entry in last.items()}


def _stage(last: Mapping[str, Any]) -> dict[str, Any]:
    """What results.json says of a stage, from the last line of its training."""
    seconds = last.get("seconds", 0.0)
    found = {
        "steps": last["step"],
        "seconds": seconds,
        "compile_seconds": last.get("compile_seconds", 0.0),
        "steps_per_second": last["step"] / max(seconds, 1e-9),
    }
    # The folder of another run, which trained the stage.
    return {**found, "trained_in": last["trained_in"]} if "trained_in" in last else found
