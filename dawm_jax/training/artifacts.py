"""What a run leaves behind: results.json, returns.npz and curves.png."""

import functools
import json
import logging
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from dawm_jax.agents.base import AGENTS
from dawm_jax.config import schema
from dawm_jax.envs.scores import confidence_interval, normalised_score
from dawm_jax.methods.base import METHODS
from dawm_jax.runtime import provenance, sharding
from dawm_jax.runtime.metrics import MetricsFile, format_seconds
from dawm_jax.training.setup import Setup

_log = logging.getLogger(__name__)

# A mean Q above this multiple of the data's largest return is no noise of minibatches.
_Q_WARNING = 1.5


def evaluation_entry(environment: str, returns: np.ndarray, when: str) -> dict[str, Any]:
    """What is recorded of an evaluation: all returns, and their summary for the log.

    Args:
      environment: Gymnasium id.
      returns: [seeds, episodes], undiscounted.
      when: in the training, for the log.
    """
    entry = {"return_mean": float(returns.mean()), "returns": returns.tolist()}
    scores = normalised_score(environment, returns.mean(axis=1))
    text = f"return {returns.mean():.0f}"
    if scores is not None:
        entry["normalised_score"] = float(scores.mean())
        text = f"normalised score {scores.mean():.1f}, {text}"
    seeds, episodes = returns.shape
    _log.info("%s: %s (%d seed(s) x %d episodes)", when, text, seeds, episodes)
    return entry


def finish(
    parts: Setup, workdir: pathlib.Path, log: MetricsFile, *, dataset_text: str
) -> dict[str, Any]:
    """Writes the run's results from its metrics and logs the score.

    Args:
      parts: what the run computed with.
      workdir: its folder.
      log: its metrics.jsonl, the only source of numbers.
      dataset_text: one line about the data.

    Returns:
      The content of results.json.
    """
    config = parts.config
    evaluations = list(log.lines("agent" if parts.planner is None else "planner", "assess"))
    returns = [np.asarray(entry["returns"]) for entry in evaluations]
    updates = [entry["step"] for entry in evaluations]
    curve = [
        {"update": update, **_summary(config.environment, values)}
        for update, values in zip(updates, returns, strict=True)
    ]
    results = {
        **_what_ran(parts, dataset_text),
        "final": _summary(config.environment, returns[-1]),
        "best": _summary(config.environment, max(returns, key=lambda values: values.mean())),
        "curve": curve,
        "value_check": _check_values(log, _largest_return(parts)),
        "evaluation_seconds": sum(entry["seconds"] for entry in evaluations),
        "stages": _stages(log),
        "device": sharding.describe_devices(),
        "versions": provenance.versions(),
        "commit": provenance.commit(),
    }
    provenance.write_atomically(workdir / "results.json", json.dumps(results, indent=2) + "\n")
    with provenance.whole_file(workdir / "returns.npz") as path, path.open("wb") as file:
        arrays: dict[str, Any] = {f"update_{u}": r for u, r in zip(updates, returns, strict=True)}
        np.savez(file, updates=np.asarray(updates), **arrays)
    plot_curves(workdir / "curves.png", log, results)
    _log.info("%s", headline(results))
    _log.info("results, curves and checkpoints are in %s", workdir)
    return results


def _what_ran(parts: Setup, dataset_text: str) -> dict[str, Any]:
    """The settings that results.json repeats from config.json."""
    config, method = parts.config, METHODS.get(parts.config.method)
    horizon = config.horizon
    target = {"rule": config.rollout.target_rule, "factor": config.rollout.target_factor}
    if parts.planner is not None:
        horizon = parts.planner.horizon
        target = {"rule": "max_fraction", "factor": parts.planner.target_fraction}
    return {
        "environment": config.environment,
        "dataset": config.dataset,
        "dataset_summary": dataset_text,
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
        "top_fraction": config.top_fraction,
        "horizon": horizon,
        "target_return": target,
        "rollout": schema.to_dict(config)["rollout"],
    }


def _largest_return(parts: Setup) -> float:
    """The data's largest discounted return-to-go in the units of the agent's rewards."""
    scale = 1.0 if parts.agent is None else float(parts.agent.reward_scale)
    return float(parts.normalizer.return_high * parts.normalizer.return_scale) * scale


def headline(results: dict[str, Any]) -> str:
    """The final score in one line."""
    final = results["final"]
    text = f"{results['agent_label']} on {_source(results)} of {results['dataset']}: "
    if "score_mean" in final:
        text += f"normalised score {final['score_mean']:.1f}"
        if final["score_interval"]:
            low, high = final["score_interval"]
            text += f" (95 % interval {low:.1f} to {high:.1f} over {results['num_seeds']} seeds)"
        text += ", "
    seconds = sum(
        stage["seconds"] + stage["compile_seconds"] for stage in results["stages"].values()
    )
    seconds += results["evaluation_seconds"]
    return text + f"return {final['return_mean']:.0f}, in {format_seconds(seconds)}"


def _source(results: dict[str, Any]) -> str:
    """What the agent learnt from, for the headline."""
    share = results["real_fraction"]
    if share == 1.0:
        return "real data"
    generated = f"{results['method_label']} data"
    return generated if share == 0.0 else f"{share:.0%} real and {1 - share:.0%} {generated}"


def _check_values(log: MetricsFile, largest_return_to_go: float) -> dict[str, float] | None:
    """The last mean Q beside the best the data ever returned; says so when it is far above.

    None without a critic.
    """
    last = list(log.lines("agent", "train"))[-1:]
    if not last or "q_mean" not in last[0]:
        return None
    q_mean = last[0]["q_mean"]
    if q_mean > _Q_WARNING * largest_return_to_go:
        _log.warning(
            "the mean Q of %.0f is far above the data's largest discounted return of %.0f: "
            "the values have run away and the policy cannot be trusted",
            q_mean,
            largest_return_to_go,
        )
    return {"q_mean": q_mean, "largest_return_to_go": largest_return_to_go}


def _summary(environment: str, returns: np.ndarray) -> dict[str, Any]:
    """Returns and scores by seed, their mean and 95 % interval over seeds."""
    per_seed = returns.mean(axis=1)
    summary = {
        "return_per_seed": per_seed.tolist(),
        "return_mean": float(per_seed.mean()),
        "return_interval": confidence_interval(per_seed),
        "episodes_per_seed": returns.shape[1],
    }
    scores = normalised_score(environment, per_seed)
    if scores is not None:
        summary["score_per_seed"] = scores.tolist()
        summary["score_mean"] = float(scores.mean())
        summary["score_interval"] = confidence_interval(scores)
    return summary


def _stages(log: MetricsFile) -> dict[str, Any]:
    """Steps, seconds and speed of every stage, from its last line."""
    last = {entry["stage"]: entry for entry in log.lines(kind="train")}
    return {
        stage: {
            "steps": entry["step"],
            "seconds": entry["seconds"],
            "compile_seconds": entry["compile_seconds"],
            "steps_per_second": entry["step"] / max(entry["seconds"], 1e-9),
        }
        for stage, entry in last.items()
    }


# --- curves.png ---------------------------------------------------------------------------


def plot_curves(path: pathlib.Path, log: MetricsFile, results: dict[str, Any]) -> None:
    """Draws the learning curve, each model's loss, and a metric of the agents' updates.

    Args:
      path: of the picture.
      log: metrics.jsonl of the run.
      results: the content of its results.json.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    models = [stage for stage in results["stages"] if stage != "agent"]
    panels: list[Callable[[Any], None]] = [functools.partial(_plot_scores, results=results)]
    panels += [functools.partial(_plot_loss, log=log, stage=stage) for stage in models]
    if "agent" in results["stages"]:
        panels.append(functools.partial(_plot_metric, log=log, results=results))
    rows = -(-len(panels) // 2)
    figure, grid = plt.subplots(
        rows, 2, figsize=(11, 3.5 * rows), constrained_layout=True, squeeze=False
    )
    for axis, draw in zip(grid.ravel(), panels, strict=False):
        draw(axis)
        axis.grid(alpha=0.3)
        axis.locator_params(axis="x", nbins=6)
    for axis in grid.ravel()[len(panels) :]:
        axis.set_axis_off()
    figure.suptitle(f"{results['environment']}, {results['dataset']}")
    with provenance.whole_file(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)


def _plot_scores(axis: Any, results: dict[str, Any]) -> None:
    """Every seed's score, or return without a score, and the mean over seeds."""
    curve = results["curve"]
    scored = "score_mean" in curve[0]
    field, name = ("score", "normalised score") if scored else ("return", "return")
    steps = [point["update"] for point in curve]
    per_seed = np.asarray([point[f"{field}_per_seed"] for point in curve])
    axis.plot(steps, per_seed, color="tab:blue", alpha=0.3, linewidth=1)
    axis.plot(steps, per_seed.mean(axis=1), color="tab:blue", marker="o")
    title = f"{results['agent_label']}: {name}, seeds and mean"
    axis.set(title=title, xlabel="updates", ylabel=name)


def _plot_loss(axis: Any, log: MetricsFile, stage: str) -> None:
    entries = list(log.lines(stage, "train"))
    losses = [entry["loss"] for entry in entries]
    axis.plot([entry["step"] for entry in entries], losses)
    # The negative log-likelihood of a Gaussian model can be negative.
    axis.set_yscale("log" if min(losses) > 0 else "linear")
    axis.set(title=f"{stage.replace('_', ' ')}: loss", xlabel="steps")


def _plot_metric(axis: Any, log: MetricsFile, results: dict[str, Any]) -> None:
    """The metric that the agent names, beside the data's largest return if it is a value."""
    metric = AGENTS.get(results["agent"]).curve
    entries = list(log.lines("agent", "train"))
    axis.plot([entry["step"] for entry in entries], [entry[metric] for entry in entries])
    axis.set(title=f"{metric.replace('_', ' ')} of minibatches", xlabel="updates")
    if results["value_check"]:
        limit = results["value_check"]["largest_return_to_go"]
        label = "largest return-to-go of data"
        axis.axhline(limit, color="tab:gray", linestyle="--", label=label)
        axis.legend()
