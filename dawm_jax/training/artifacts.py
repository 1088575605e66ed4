"""What a run leaves behind: results.json, returns.npz and curves.png."""

import dataclasses
import logging
import pathlib
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

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
from dawm_jax.runtime import provenance, results, sharding
from dawm_jax.runtime.metrics import MetricsFile, format_seconds
from dawm_jax.runtime.results import (
    Area,
    Evaluation,
    Online,
    PerSeed,
    Results,
    Stage,
    Success,
    TargetReturn,
    ValueCheck,
)
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
) -> Results:
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
    returns = _returns(log)
    if not returns:
        raise UserError(
            f"{workdir}/metrics.jsonl: expected evaluations with finite returns, got none; remove "
            "those that are not finite and run the same command again"
        )
    found = _results(parts, log, dataset, returns)
    _write_returns(workdir / "returns.npz", returns)
    figures.plot_curves(workdir / "curves.png", log, found)
    results.write(workdir / results.FILE, found)
    announce(found, workdir)
    return results.read(workdir / results.FILE)  # as a later call finds them


def announce(found: Results, workdir: pathlib.Path) -> None:
    """Logs the score and where the results are."""
    _log.info("%s", headline(found))
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
            _log.warning(
                "%s %d: its returns are not finite; left out", entry["stage"], entry["step"]
            )
    return found


def _evaluation_seconds(log: MetricsFile) -> float:
    entries = _evaluations(log, ("agent", "planner", "online"))
    return sum(entry.get("seconds", 0.0) for entry in entries)


def _write_returns(path: pathlib.Path, returns: Mapping[int, np.ndarray]) -> None:
    arrays: dict[str, Any] = {f"update_{update}": values for update, values in returns.items()}
    with provenance.whole_file(path) as part, part.open("wb") as file:
        np.savez(file, updates=np.asarray(list(returns)), **arrays)


# --- results of a finished run ------------------------------------------------------------


def read_results(workdir: pathlib.Path) -> Results | None:
    """The content of results.json; None, with a warning if it is damaged, without results."""
    path = workdir / results.FILE
    if not path.exists():
        return None
    try:
        return results.read(path)
    except (OSError, ValueError) as error:
        _log.warning("%s is damaged (%s): it will be written anew", path, first_line(error))
        return None


def check_recorded(found: Results, workdir: pathlib.Path, log: MetricsFile) -> None:
    """Checks that metrics.jsonl holds what results.json was made of.

    Raises:
      UserError: it does not.
    """
    recorded, trained = _returns(log), _stages(log)
    for point in found.curve:
        if not _is_of(point, recorded):
            raise UserError(_not_recorded(workdir, f"its evaluation at update {point.at}"))
    tuned = _returns(log, ("online",))
    for point in () if found.online is None else found.online.curve:
        # Step 0 is the last evaluation of the offline training.
        if point.at and not _is_of(point, tuned):
            raise UserError(_not_recorded(workdir, f"its evaluation at online step {point.at}"))
    for name, stage in found.stages.items():
        if name not in trained or trained[name].steps != stage.steps:
            raise UserError(_not_recorded(workdir, f"its stage {name}"))


def _is_of(point: Evaluation, recorded: Mapping[int, np.ndarray]) -> bool:
    """Whether an evaluation is that of the returns recorded at its update or step."""
    returns = recorded.get(point.at)
    values = point.returns.values
    return (
        returns is not None
        and values.shape == returns.shape[:1]
        and np.allclose(values, returns.mean(axis=1))
    )


def _not_recorded(workdir: pathlib.Path, what: str) -> str:
    return (
        f"{workdir}: metrics.jsonl does not hold what results.json was made of ({what} is missing "
        "or differs); both are left as they are: restore metrics.jsonl, or choose another --workdir"
    )


def complete(found: Results, workdir: pathlib.Path, log: MetricsFile) -> None:
    """Writes returns.npz and curves.png if they are missing or damaged."""
    returns = _returns(log)
    if not _holds_returns(workdir / "returns.npz", returns):
        _write_returns(workdir / "returns.npz", returns)
    curves = workdir / "curves.png"
    if not curves.is_file() or not _is_whole_png(curves.read_bytes()):
        figures.plot_curves(curves, log, found)


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


# --- what results.json says ---------------------------------------------------------------


def _results(
    parts: Setup, log: MetricsFile, dataset: DatasetRecord, returns: Mapping[int, np.ndarray]
) -> Results:
    """Results of what ran, from its metrics and the returns in them, by update."""
    config, method = parts.config, METHODS.get(parts.config.method)
    horizon = config.horizon
    target = TargetReturn(config.rollout.target_rule, config.rollout.target_factor)
    if parts.planner is not None:
        horizon = parts.planner.horizon
        target = TargetReturn("max_fraction", parts.planner.target_fraction)
    curve = tuple(_evaluation(parts, at, values) for at, values in returns.items())
    return Results(
        environment=config.environment,
        environment_kwargs=config.environment_arguments,
        dataset=config.dataset,
        dataset_summary=dataset.summary,
        dataset_digest=dataset.digest,
        references=reference_returns(config.environment, parts.references),
        method=config.method,
        method_label=method.label,
        agent="planner" if method.plans else config.agent,
        agent_label="planner" if method.plans else AGENTS.get(config.agent).label,
        variant=config.variant,
        seed=config.seed,
        num_seeds=config.num_seeds,
        seed_is=method.seed_is,
        updates=0 if method.plans else config.training.updates,
        real_fraction=method.real_fraction(config.training.real_fraction),
        return_steps=config.training.return_steps,
        real_return_steps=config.training.steps_of_real_returns,
        top_fraction=config.top_fraction,
        episodes=config.episodes,
        horizon=horizon,
        target_return=target,
        rollout=schema.to_dict(config)["rollout"],
        settings=_settings(config, method),
        curve=curve,
        value_check=_check_values(log, *_return_limits(parts)),
        evaluation_seconds=_evaluation_seconds(log),
        stages=_stages(log),
        device=sharding.describe_devices(),
        cpu=provenance.cpu_model(),
        versions=provenance.versions(),
        commit=provenance.commit(),
        success=_success(log),
        online=_online(parts, log, offline=curve[-1]) if config.online.steps else None,
    )


def _settings(config: Config, method: MethodSpec) -> dict[str, Any]:
    """Settings of the agent, of the method and of its models, and how they use the data.

    Of the evaluation's settings only the length of episodes is among them: it changes returns, and
    what agents live through while they are fine-tuned.
    """
    values = schema.to_dict(config)
    names = [] if method.plans else [config.agent]
    if method.trains_models(config):
        names += [*method.fitted_sections, *filter(None, [method.settings])]
    names += [values[name]["denoiser"] for name in names if "denoiser" in values[name]]
    return {
        **{name: values[name] for name in _DATA_SETTINGS},
        "training": {"batch_size": config.training.batch_size},
        "evaluation": {"max_steps": config.evaluation.max_steps},
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


def headline(found: Results) -> str:
    """The final score in one line."""
    final = found.final
    text = f"{found.agent_label} on {_source(found)} of {found.dataset}: "
    if final.scores is not None:
        text += f"normalised score {final.scores.mean:.1f}"
        if final.scores.interval is not None:
            low, high = final.scores.interval
            text += f" (95 % interval {low:.1f} to {high:.1f} over {found.num_seeds} seeds)"
        text += ", "
    if found.success is not None:
        text += f"success in {100.0 * found.success.last.mean:.0f} % of episodes, "
    seconds = sum(stage.seconds + stage.compile_seconds for stage in found.stages.values())
    seconds += found.evaluation_seconds
    text += f"return {final.returns.mean:.0f}, in {format_seconds(seconds)}"
    return text if found.online is None else f"{text}; {_headline_online(found.online)}"


def _headline_online(online: Online) -> str:
    last, area = online.final, online.area
    assert area is not None, "results of this version have it"
    after = f"after {last.at:,} environment steps"
    if online.success is not None:
        after += f" success in {100.0 * online.success.last.mean:.0f} % of episodes,"
    if last.scores is None or area.scores is None:
        name, end, height = "return", last.returns, area.returns
    else:
        name, end, height = "score", last.scores, area.scores
    return f"{after} {name} {end.mean:.1f}, on average over the steps {height.mean:.1f}"


def _source(found: Results) -> str:
    """What the agent learnt from, for the headline."""
    share = found.real_fraction
    if share == 1.0:
        return "real data"
    generated = f"{found.method_label} data"
    return generated if share == 0.0 else f"{share:.0%} real and {1 - share:.0%} {generated}"


def _check_values(log: MetricsFile, smallest: float, largest: float) -> ValueCheck | None:
    """The last mean Q beside the best the data ever returned; says so when it is far above.

    Far above is a distance, so that the check holds for returns of any sign: more than
    `_Q_WARNING` of the largest magnitude of a return above the largest return. Data whose returns
    are all 0 have no magnitude and get no warning.

    Args:
      log: of the run.
      smallest: discounted return-to-go in the data, in units of the agent's rewards.
      largest: likewise.

    Returns:
      None without a critic.
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
    return ValueCheck(q_mean, largest)


def _online(parts: Setup, log: MetricsFile, *, offline: Evaluation) -> Online:
    """The learning curve over environment steps.

    It begins with the agents trained offline, unless new ones took their place.

    Args:
      parts: what the run computed with.
      log: its metrics.
      offline: the last evaluation of the offline training.

    Raises:
      UserError: metrics.jsonl has no last evaluation of the fine-tuning.
    """
    settings, returns = parts.config.online, _returns(log, ("online",))
    if settings.steps not in returns:
        raise UserError(
            f"metrics.jsonl: expected an evaluation at online step {settings.steps}, got none with "
            "finite returns; run the same command again"
        )
    tuned = tuple(_evaluation(parts, at, values) for at, values in returns.items())
    curve = tuned if settings.fresh_agent else (dataclasses.replace(offline, at=0), *tuned)
    return Online(
        settings=schema.to_dict(parts.config)["online"],
        curve=curve,
        area=_area(curve),
        updates=(settings.steps - settings.envs) * settings.updates_per_step,
        seconds_per_step=_stages(log)["online"].seconds / settings.steps,
        success=_success(log, online=True),
    )


def _success(log: MetricsFile, *, online: bool = False) -> Success | None:
    """Shares of successful episodes by seed, of every evaluation; None if none was recorded."""
    entries = _evaluations(log, ("online",)) if online else _evaluations(log)
    curve = tuple(
        (int(entry["step"]), np.asarray(entry["successes"], np.float64))
        for entry in entries
        if "successes" in entry
    )
    return Success(_with_interval(curve[-1][1]), curve) if curve else None


def _area(curve: Sequence[Evaluation]) -> Area:
    """The mean height of a learning curve over its steps, by the trapezoidal rule."""
    at = np.asarray([point.at for point in curve], np.float64)

    def height(values: Sequence[PerSeed]) -> PerSeed:
        return PerSeed(mean_height(np.stack([each.values for each in values]), at))

    scores = [point.scores for point in curve if point.scores is not None]
    return Area(height([point.returns for point in curve]), height(scores) if scores else None)


def _evaluation(parts: Setup, at: int, returns: np.ndarray) -> Evaluation:
    """An evaluation with these returns, [seeds, episodes], after `at` updates or steps."""
    per_seed = returns.mean(axis=1)
    scores = normalised_score(parts.config.environment, per_seed, parts.references)
    return Evaluation(
        at=at,
        returns=_with_interval(per_seed),
        scores=None if scores is None else _with_interval(scores),
        episodes=returns.shape[1],
    )


def _with_interval(values: np.ndarray) -> PerSeed:
    return PerSeed(values, confidence_interval(values))


def _stages(log: MetricsFile) -> dict[str, Stage]:
    """Steps and seconds of every stage, from the last line of its training."""
    last = {entry["stage"]: entry for entry in log.lines(kind="train")}
    return {
        stage: Stage(
            steps=entry["step"],
            seconds=entry.get("seconds", 0.0),
            compile_seconds=entry.get("compile_seconds", 0.0),
            trained_in=entry.get("trained_in"),
        )
        for stage, entry in last.items()
    }
