"""What a run leaves behind: results.json, returns.npz and curves.png."""

import itertools
import json
import logging
import pathlib
import subprocess
from importlib import metadata
from typing import Any

import numpy as np

from dawm_jax.envs import evaluate
from dawm_jax.methods.registry import real_fraction
from dawm_jax.runtime import parallel
from dawm_jax.runtime.metrics import MetricsFile, format_seconds

_log = logging.getLogger(__name__)

# A mean over minibatches should stay below the largest return; noise does not reach this.
_Q_WARNING = 1.5
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "minari", "gymnasium", "mujoco")


# What differs between the entries of a run's `..._per_seed`.
_SEED = "an agent with its own initial values, minibatches and generated data; models are shared"
_PLANNER_SEED = "the noise of the plans; models are shared"


def evaluation_entry(environment: str, returns: np.ndarray, when: str) -> dict[str, Any]:
    """What is recorded of an evaluation: all returns, and their summary for the log.

    Args:
      environment: Gymnasium id.
      returns: [seeds, episodes], undiscounted.
      when: in the training, for the log.
    """
    entry = {"return_mean": float(returns.mean()), "returns": returns.tolist()}
    scores = evaluate.normalised_score(environment, returns.mean(axis=1))
    text = f"return {returns.mean():.0f}"
    if scores is not None:
        entry["normalised_score"] = float(scores.mean())
        text = f"normalised score {scores.mean():.1f}, {text}"
    seeds, episodes = returns.shape
    _log.info("%s: %s (%d seed(s) x %d episodes)", when, text, seeds, episodes)
    return entry


def finish(
    config: Any,
    workdir: pathlib.Path,
    log: MetricsFile,
    *,
    dataset_text: str,
    largest_return_to_go: float,
) -> dict[str, Any]:
    """Writes the run's results from its metrics and logs the score.

    Args:
      config: of the run.
      workdir: its folder.
      log: its metrics.jsonl, the only source of numbers.
      dataset_text: one line about the data.
      largest_return_to_go: discounted, of the data, in the units of the agent's rewards.

    Returns:
      What results.json holds.
    """
    plans = config.method == "decision_diffuser"
    evaluations = list(log.lines("planner" if plans else "agent", "assess"))
    returns = [np.asarray(entry["returns"]) for entry in evaluations]
    updates = [entry["step"] for entry in evaluations]
    results = {
        "environment": config.environment,
        "dataset": config.dataset,
        "dataset_summary": dataset_text,
        "method": config.method,
        "agent": "planner" if plans else config.agent,
        "variant": config.variant,
        "seed": config.seed,
        "num_seeds": config.num_seeds,
        "seed_is": _PLANNER_SEED if plans else _SEED,
        "updates": 0 if plans else config.training.updates,
        "real_fraction": real_fraction(config),
        "top_fraction": config.top_fraction,
        "horizon": config.planner.horizon if plans else config.horizon,
        "target_return": _target(config),
        "rollout": config.rollout.to_dict(),
        "final": _summary(config.environment, returns[-1]),
        "best": _summary(config.environment, max(returns, key=lambda r: r.mean())),
        "curve": [
            {"update": update, **_summary(config.environment, r)}
            for update, r in zip(updates, returns, strict=True)
        ],
        "value_check": _check_values(log, largest_return_to_go),
        "evaluation_seconds": sum(entry["seconds"] for entry in evaluations),
        "stages": _stages(log),
        "device": parallel.describe_devices(),
        "versions": versions(),
        "commit": commit(),
    }
    write_atomically(workdir / "results.json", json.dumps(results, indent=2) + "\n")
    arrays: dict[str, Any] = {f"update_{u}": r for u, r in zip(updates, returns, strict=True)}
    np.savez(workdir / "returns.npz", updates=np.asarray(updates), **arrays)
    _plot(workdir / "curves.png", config, log, results)
    _log.info("%s", headline(results))
    _log.info("results, curves and checkpoints are in %s", workdir)
    return results


def _target(config: Any) -> dict[str, Any]:
    """What return was asked for; fixed before any evaluation."""
    if config.method == "decision_diffuser":
        return {"rule": "max_fraction", "factor": config.planner.target_fraction}
    return {"rule": config.rollout.target_rule, "factor": config.rollout.target_factor}


def headline(results: dict[str, Any]) -> str:
    """The final score in one line."""
    final = results["final"]
    source = "real data" if results["real_fraction"] == 1.0 else f"{results['method']} data"
    text = f"{results['agent']} on {source} of {results['dataset']}: "
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


def versions() -> dict[str, str]:
    """Installed versions of what decides the numbers."""
    found = {}
    for package in ("dawm_jax", *_PACKAGES):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def commit() -> str | None:
    """The git commit of the source, "+" when it was changed since, None outside git."""
    folder = pathlib.Path(__file__).parent
    try:
        git = lambda *args: subprocess.run(
            ["git", *args], cwd=folder, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
        return git("rev-parse", "--short", "HEAD") + (
            "+" if git("status", "--porcelain", "-uno") else ""
        )
    except (OSError, subprocess.SubprocessError):
        return None


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
        "return_interval": evaluate.confidence_interval(per_seed),
        "episodes_per_seed": returns.shape[1],
    }
    scores = evaluate.normalised_score(environment, per_seed)
    if scores is not None:
        summary["score_per_seed"] = scores.tolist()
        summary["score_mean"] = float(scores.mean())
        summary["score_interval"] = evaluate.confidence_interval(scores)
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


def write_atomically(path: pathlib.Path, text: str) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    temporary.replace(path)


def _plot(path: pathlib.Path, config: Any, log: MetricsFile, results: dict[str, Any]) -> None:
    """Learning curve with seeds, the models' losses, and Q against the data's return."""
    try:
        import matplotlib
    except ImportError:
        _log.warning("no curves.png: matplotlib is not installed")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, grid = plt.subplots(2, 2, figsize=(11, 7), constrained_layout=True)
    axes = grid.ravel()
    curve = results["curve"]
    field = "score" if "score_mean" in curve[0] else "return"
    steps = [point["update"] for point in curve]
    per_seed = np.asarray([point[f"{field}_per_seed"] for point in curve])
    axes[0].plot(steps, per_seed, color="tab:blue", alpha=0.3, linewidth=1)
    axes[0].plot(steps, per_seed.mean(axis=1), color="tab:blue", marker="o")
    agent = results["agent"]
    name = "normalised score" if field == "score" else "return"
    axes[0].set(title=f"{agent}: {name}, seeds and mean", xlabel="updates", ylabel=name)
    stages = [stage for stage in results["stages"] if stage != "agent"]
    for axis, stage in itertools.zip_longest(axes[1:3], stages):
        if stage is None:
            axis.set(title="no model trained")
            continue
        entries = list(log.lines(stage, "train"))
        losses = [e["loss"] for e in entries]
        axis.plot([e["step"] for e in entries], losses)
        # A likelihood's loss may be negative.
        axis.set_yscale("log" if min(losses) > 0 else "linear")
        axis.set(title=f"{stage.replace('_', ' ')}: loss", xlabel="steps")
    entries = list(log.lines("agent", "train"))
    metric = "q_mean" if results["value_check"] else "cloning_mse"
    axes[3].set(title="no agent trained")
    if entries:
        axes[3].plot([e["step"] for e in entries], [e[metric] for e in entries])
        axes[3].set(title=f"{metric.replace('_', ' ')} of minibatches", xlabel="updates")
    if results["value_check"]:
        limit = results["value_check"]["largest_return_to_go"]
        label = "largest return-to-go of data"
        axes[3].axhline(limit, color="tab:gray", linestyle="--", label=label)
        axes[3].legend()
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.locator_params(axis="x", nbins=6)
    figure.suptitle(f"{config.environment}, {config.dataset}")
    figure.savefig(path, dpi=110)
    plt.close(figure)
