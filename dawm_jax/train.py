"""The whole training, read from top to bottom.

load -> models of the method -> agents on what they generate -> results

A method that plans instead of learning a policy is evaluated as it is.
"""

import contextlib
import functools
import itertools
import logging
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dawm_jax.collect import tiers
from dawm_jax.data import dataset as data
from dawm_jax.data.windows import Replay
from dawm_jax.envs import evaluate
from dawm_jax.methods.registry import Assembly, assemble, build_replay, raw_action
from dawm_jax.models.factories import Trainable
from dawm_jax.runtime import loop, parallel, run_folder
from dawm_jax.runtime.metrics import MetricsFile, Writer, make_writers
from dawm_jax.training import cost_model as estimate
from dawm_jax.training import fused, programs, results
from dawm_jax.types import UserError

_log = logging.getLogger(__name__)

# Streams of the run's root key; each consumer folds its own steps into its stream.
_STREAMS = {"world_model": 0, "inverse_dynamics": 1, "agent": 2, "policy": 3, "planner": 4}
# Windows and transitions of the held-out diagnostics.
_MAX_HELD_OUT = 2_048


def run(config: Any, workdir: pathlib.Path) -> dict[str, Any]:
    """Trains everything that `config` asks for, resuming what `workdir` already holds.

    Args:
      config: see configs/common.py.
      workdir: the run's folder, made when absent.

    Returns:
      What results.json holds; nothing on other processes than the first, which alone
      evaluates, logs and writes everything but checkpoints.

    Raises:
      UserError: a mistake in the configuration, the data or the folder.
      loop.Interrupted: a signal asked to stop; the same call resumes.
    """
    _check(config)
    with loop.stop_on_signals() as stop, contextlib.ExitStack() as cleanup:
        parallel.in_turn(lambda: cleanup.enter_context(_own(workdir, config)))

        # --- data ---
        dataset = parallel.in_turn(lambda: _load_dataset(config.dataset))
        _log.info("%s", data.describe(dataset))
        replay, statistics = build_replay(config, dataset)
        parts = assemble(config, statistics)

        # --- devices ---
        placement = parallel.place(
            config.parallel, num_seeds=config.num_seeds, batch_sizes=_shared_batches(config)
        )
        replay = placement.replicate(replay)
        for line in estimate.plan(config, parts, replay):
            _log.info("%s", line)

        # --- models, then agents or plans ---
        # Only now: a run that was refused above must not claim the folder.
        writers = parallel.in_turn(lambda: _start_recording(workdir, config))
        for writer in writers:
            cleanup.callback(writer.close)
        log = MetricsFile(workdir / "metrics.jsonl", active=parallel.is_first())
        run_stage = functools.partial(
            loop.run_stage,
            statistics=placement.replicate(statistics),
            workdir=workdir,
            log=log,
            writers=writers,
            stop=stop,
        )
        key = jax.random.key(config.seed)
        models = None
        if config.training.real_fraction < 1.0:
            models = fused.Models(
                **{
                    name: _train_model(name, model, replay, placement, key, run_stage)
                    for name, model in parts.models.items()
                }
            )
        if parts.plan is not None:
            _evaluate_plans(config, parts, models, key, log)
        else:
            _train_agents(config, parts, models, replay, statistics, placement, key, run_stage)

        # --- results ---
        if not parallel.is_first():
            return {}
        best = float(statistics.return_high * statistics.return_scale)
        return results.finish(
            config,
            workdir,
            log,
            dataset_text=data.describe(dataset),
            largest_return_to_go=best * float(parts.agent.reward_scale),
        )


# --- the stages ---------------------------------------------------------------------------


def _train_model(name, model: Trainable, replay, placement, key, run_stage):
    """Fits one model; returns its averaged parameters."""
    held_out, errors = _held_out_rows(replay), jax.jit(model.errors)

    def assess(state, step):
        values = errors(state.average, replay, held_out)
        values = {k: np.asarray(v).tolist() for k, v in jax.device_get(values).items()}
        _log.info("%s, held out: %s", name.replace("_", " "), _short(values))
        return values

    section = model.section
    key = jax.random.fold_in(key, _STREAMS[name])
    key_init, key_steps = jax.random.split(key)
    key_steps = placement.replicate(key_steps)

    def compile_steps(num_steps):
        program = programs.model_steps(model, placement, num_steps=num_steps)
        return _Bound(program, lambda first: (key_steps, replay, first), placement)

    state = run_stage(
        loop.Stage(
            name=name,
            unit="step",
            total_steps=section.steps,
            chunk_steps=section.log_steps,
            checkpoint_steps=section.checkpoint_steps,
            compile=compile_steps,
            assess=assess,
            assess_steps=section.checkpoint_steps,
        ),
        placement.replicate(jax.jit(model.init)(key_init)),
    )
    return state.average


def _train_agents(config, parts: Assembly, models, replay, statistics, placement, key, run_stage):
    """Trains all seeds' agents in the fused program, evaluating as it goes."""
    training, roll = config.training, config.rollout
    # Three streams a seed: its initial parameters, its prefill and its rounds.
    key_init, *keys = _seed_keys(jax.random.fold_in(key, _STREAMS["agent"]), config.num_seeds)
    key_prefill, key_train = placement.place_seeds(keys)
    agents = programs.init_agents(parts)(key_init)
    buffers = jax.vmap(lambda _: parts.init_buffer(), axis_size=config.num_seeds)

    def compile_rounds(num_updates):
        return _Bound(
            programs.agent_rounds(config, parts, placement, num_updates=num_updates),
            lambda update: (key_train, update // roll.updates_per_round, models, replay),
            placement,
        )

    def fill_buffers(runs):
        if models is None or not roll.prefill_transitions:
            return runs
        fill = programs.prefill(config, parts, placement)
        return runs.replace(buffer=fill(runs.buffer, key_prefill, models, replay))

    return run_stage(
        loop.Stage(
            name="agent",
            unit="update",
            total_steps=training.updates,
            chunk_steps=training.log_updates,
            checkpoint_steps=training.checkpoint_updates,
            compile=compile_rounds,
            assess=_evaluator(config, parts, statistics, placement),
            assess_steps=config.evaluation.interval,
            prepare=fill_buffers,
        ),
        fused.Run(placement.place_seeds(agents), placement.make_seeds(lambda: buffers(None))),
    )


def _evaluator(config, parts: Assembly, statistics, placement):
    """(runs, update) -> what an evaluation of all seeds found.

    The first process plays all episodes, on all cores of its host, while the others wait:
    a small share of a run, and the numbers do not depend on how many processes there are.
    """
    act = jax.jit(jax.vmap(functools.partial(raw_action, parts.agent, statistics)))

    def evaluate_runs(runs, update):
        agents = parallel.local_copy(placement.replicate(runs.agent))
        if not parallel.is_first():
            return {}
        section = config.evaluation
        final = update == config.training.updates
        returns = evaluate.run_episodes(
            functools.partial(act, agents),
            config.environment,
            num_policies=config.num_seeds,
            num_episodes=section.final_episodes if final else section.episodes,
            seed=section.seed,
        )
        return results.evaluation_entry(config.environment, returns, f"update {update}")

    return evaluate_runs


def _evaluate_plans(config, parts: Assembly, models, key, log: MetricsFile) -> None:
    """Evaluates a method that plans; a seed is the noise of its plans, the models are shared."""
    # The first process plays all episodes, as of agents.
    if not parallel.is_first() or any(log.lines("planner", "assess")):
        return
    models = parallel.local_copy(models)
    section, plan = config.evaluation, parts.plan
    assert plan is not None
    keys = _seed_keys(jax.random.fold_in(key, _STREAMS["planner"]), config.num_seeds)[0]
    plan_of_seeds = jax.jit(
        lambda models, keys, index, observations: jax.vmap(plan, (None, 0, 0))(
            models, jax.vmap(jax.random.fold_in, (0, None))(keys, index), observations
        )
    )
    steps = itertools.count()
    start = time.monotonic()
    returns = evaluate.run_episodes(
        lambda observations: plan_of_seeds(models, keys, next(steps), observations),
        config.environment,
        num_policies=config.num_seeds,
        num_episodes=section.final_episodes,
        seed=section.seed,
    )
    entry = results.evaluation_entry(config.environment, returns, "planner")
    log.append("planner", "assess", 0, {**entry, "seconds": time.monotonic() - start})


def _seed_keys(key: jax.Array, num_seeds: int) -> list[jax.Array]:
    """Keys [num_seeds] of each of a seed's three streams."""
    seeds = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(num_seeds))
    return [jax.vmap(jax.random.fold_in, (0, None))(seeds, stream) for stream in range(3)]


class _Bound:
    """A jitted program with its constant arguments, compiled ahead of its first call."""

    def __init__(self, program, arguments, placement):
        self._program, self._arguments, self._placement = program, arguments, placement

    def compile(self, state, first_step):
        compiled = self._program.lower(state, *self._arguments(first_step)).compile()

        def run(state, first_step):
            state, metrics = compiled(state, *self._arguments(first_step))
            # Seeds' metrics lie where the seeds do; every process reads all of them.
            return state, self._placement.replicate(metrics)

        return run


# --- checks and the folder ----------------------------------------------------------------


def _check(config: Any) -> None:
    """Refuses values that would fail or mislead hours later."""
    for name, low in (
        ("num_seeds", 1),
        ("horizon", 1),
        ("planner.horizon", 1),
        ("one_step.steps", 1),
        ("world_model.steps", 1),
        ("inverse_dynamics.steps", 1),
        ("training.updates", 1),
        ("training.batch_size", 1),
        ("rollout.windows_per_round", 1),
        ("evaluation.episodes", 1),
        ("evaluation.final_episodes", 1),
    ):
        value = functools.reduce(getattr, name.split("."), config)
        if value < low:
            raise UserError(f"config.{name}: expected at least {low}, got {value}")
    _check_method(config)
    training, roll = config.training, config.rollout
    if not 0.0 <= training.real_fraction <= 1.0:
        raise UserError(
            f"config.training.real_fraction: expected 0 to 1, got {training.real_fraction}"
        )
    if not 0.0 < config.discount < 1.0:
        raise UserError(f"config.discount: expected between 0 and 1, got {config.discount}")
    delay = config.td3_bc.policy_delay if config.agent == "td3_bc" else 1
    if roll.updates_per_round % delay:
        raise UserError(
            f"config.rollout.updates_per_round: expected a multiple of the policy delay {delay}, "
            f"got {roll.updates_per_round}"
        )
    for name in ("updates", "log_updates", "checkpoint_updates"):
        if training[name] % roll.updates_per_round:
            raise UserError(
                f"config.training.{name}: expected a multiple of "
                f"config.rollout.updates_per_round ({roll.updates_per_round}), got {training[name]}"
            )
    if roll.windows_per_round * config.horizon > roll.buffer_capacity:
        raise UserError(
            f"config.rollout.buffer_capacity: expected room for a round "
            f"({roll.windows_per_round * config.horizon} transitions), got {roll.buffer_capacity}"
        )


def _check_method(config: Any) -> None:
    """Refuses settings that the method cannot mean."""
    method = config.method
    if method == "dwm" and config.agent == "bc":
        raise UserError(
            "config.agent: expected td3_bc or iql with config.method=dwm, which expands the "
            "values of a critic, got 'bc'"
        )
    if method == "decision_diffuser" and config.training.real_fraction == 1.0:
        raise UserError(
            "config.training.real_fraction: expected less than 1 with "
            "config.method=decision_diffuser, which trains no agent, got 1.0"
        )
    if method not in ("dawm", "joint", "one_step") and config.rollout.real_actions_only:
        raise UserError(
            "config.rollout.real_actions_only: expected False with "
            f"config.method={method}, which generates no transitions"
        )


def _shared_batches(config: Any) -> dict[str, int]:
    if config.training.real_fraction == 1.0:
        return {}
    sections = ("world_model", "inverse_dynamics", "one_step")
    sizes = {f"config.{name}.batch_size": config[name].batch_size for name in sections}
    return {**sizes, "config.rollout.windows_per_round": config.rollout.windows_per_round}


@contextlib.contextmanager
def _own(workdir: pathlib.Path, config: Any) -> Iterator[None]:
    """The first process owns the folder; the others, which come after it, look for it."""
    if parallel.is_first():
        with run_folder.own(workdir, config.to_dict()):
            yield
    elif (workdir / ".lock").exists():
        yield
    else:
        raise UserError(
            f"--workdir {workdir} is not shared: process 0 made it, another cannot see it; "
            "choose a folder that all hosts mount"
        )


def _load_dataset(name: str) -> data.OfflineDataset:
    tiers.ensure(name)
    return data.load_dataset(name)


def _start_recording(workdir: pathlib.Path, config: Any) -> list[Writer]:
    """Claims the folder for this configuration; the optional writers, of the first process."""
    if not parallel.is_first():
        return []
    run_folder.write_config(workdir, config.to_dict())
    return make_writers(
        workdir,
        tensorboard=config.tensorboard,
        wandb_project=config.wandb_project,
        config=config.to_dict(),
    )


def _held_out_rows(replay: Replay) -> jax.Array:
    """Evenly spread steps of the held-out episodes, or of all if none are held out."""
    first = replay.num_train if replay.num_train < len(replay) else 0
    count = min(_MAX_HELD_OUT, len(replay) - first)
    return jnp.asarray(np.linspace(first, len(replay) - 1, count).astype(np.int32))


def _short(values: Any) -> str:
    if isinstance(values, dict):
        return ", ".join(f"{name} {_short(value)}" for name, value in values.items())
    if isinstance(values, list):
        return "[" + ", ".join(map(_short, values)) + "]"
    return f"{values:.2g}"
