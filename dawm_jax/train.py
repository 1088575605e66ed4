"""The whole training, read from top to bottom.

load -> world model -> inverse dynamics -> agents on synthetic transitions -> report
"""

import contextlib
import functools
import logging
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dawm_jax import (
    data,
    estimate,
    evaluate,
    fused,
    learner,
    loop,
    parallel,
    report,
    run_folder,
    tiers,
    windows,
)
from dawm_jax.assembly import Assembly, assemble, build_replay, raw_action
from dawm_jax.metrics import MetricsFile, Writer, make_writers
from dawm_jax.types import UserError
from dawm_jax.windows import Replay
from dawm_jax.world_model import EXTRA_CHANNELS

_log = logging.getLogger(__name__)

# Streams of the run's root key; each consumer folds its own steps into its stream.
_MODEL_STREAM, _INVERSE_STREAM, _AGENT_STREAM = range(3)
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

        # --- models, then agents ---
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
                world_model=_train_world_model(config, parts, replay, placement, key, run_stage),
                inverse_dynamics=_train_inverse_dynamics(
                    config, parts, replay, placement, key, run_stage
                ),
            )
        _train_agents(config, parts, models, replay, statistics, placement, key, run_stage)

        # --- report ---
        if not parallel.is_first():
            return {}
        best = float(statistics.return_high * statistics.return_scale)
        return report.finish(
            config,
            workdir,
            log,
            dataset_text=data.describe(dataset),
            largest_return_to_go=best * float(parts.agent.reward_scale),
        )


# --- the stages ---------------------------------------------------------------------------


def _train_world_model(config, parts: Assembly, replay, placement, key, run_stage):
    """Fits the world model; returns its averaged parameters."""
    functions = parts.world_model
    gather = jax.jit(functools.partial(windows.gather_windows, horizon=config.horizon))
    held_out = gather(replay, _held_out_rows(replay))
    channels = replay.state_size + EXTRA_CHANNELS
    noise = jax.random.normal(
        jax.random.key(0), (len(held_out.action), config.horizon + 1, channels)
    )
    errors = jax.jit(functions.errors)

    def assess(state, step):
        values = np.asarray(errors(state.average, held_out, noise))
        named = {f"error_at_{k}": float(v) for k, v in zip(functions.levels, values, strict=True)}
        _log.info("world model, held-out x0 error by noise level: %s", _short(named))
        return named

    return _train_model(
        "world_model",
        config.world_model,
        functions,
        assess,
        replay,
        placement,
        jax.random.fold_in(key, _MODEL_STREAM),
        run_stage,
    )


def _train_inverse_dynamics(config, parts: Assembly, replay, placement, key, run_stage):
    """Fits the inverse dynamics model; returns its averaged parameters."""
    functions = parts.inverse_dynamics
    held_out = windows.gather_transitions(replay, _held_out_rows(replay))
    errors = jax.jit(functions.errors)

    def assess(state, step):
        values = {k: np.asarray(v).tolist() for k, v in errors(state.average, held_out).items()}
        _log.info(
            "inverse dynamics, held-out squared error by action dimension: %s "
            "(the mean action's: %s)",
            _short(values["mse"]),
            _short(values["baseline_mse"]),
        )
        return values

    return _train_model(
        "inverse_dynamics",
        config.inverse_dynamics,
        functions,
        assess,
        replay,
        placement,
        jax.random.fold_in(key, _INVERSE_STREAM),
        run_stage,
    )


def _train_model(name, section, functions, assess, replay, placement, key, run_stage):
    """Runs one model's stage; returns its averaged parameters."""
    key_init, key_steps = jax.random.split(key)

    def compile_steps(num_steps):
        def program(state, replay, first_step):
            def one_step(state, index):
                key_step = jax.random.fold_in(key_steps, index)
                return functions.step(state, key_step, replay, placement.shard, placement.mean)

            return learner.scan_steps(one_step, state, first_step, num_steps)

        return _Bound(placement.compile_training(program), lambda first: (replay, first), placement)

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
        placement.replicate(jax.jit(functions.init)(key_init)),
    )
    return state.average


def _train_agents(config, parts: Assembly, models, replay, statistics, placement, key, run_stage):
    """Trains all seeds' agents in the fused program, evaluating as it goes."""
    training, roll = config.training, config.rollout
    # Three streams a seed: its initial parameters, its prefill and its rounds.
    key_init, *keys = _seed_keys(jax.random.fold_in(key, _AGENT_STREAM), config.num_seeds)
    key_prefill, key_train = placement.place_seeds(keys)
    # One seed after the other: batched QR factorisations, of orthogonal kernels, that run
    # beside each other can wait for each other's threads for ever on a CPU.
    agents = jax.jit(functools.partial(jax.lax.map, parts.agent.init))(key_init)
    buffers = jax.vmap(lambda _: parts.init_buffer(), axis_size=config.num_seeds)
    generation = {
        "imagine": None if models is None else parts.imagine,
        "num_windows": roll.windows_per_round,
        "shard": placement.shard_windows,
    }

    def compile_rounds(num_updates):
        rounds = functools.partial(
            fused.train_rounds,
            agent=parts.agent,
            num_rounds=num_updates // roll.updates_per_round,
            updates_per_round=roll.updates_per_round,
            batch_size=training.batch_size,
            real_fraction=training.real_fraction,
            **generation,
        )
        return _Bound(
            placement.map_seeds(rounds),
            lambda update: (key_train, update // roll.updates_per_round, models, replay),
            placement,
        )

    def fill_buffers(runs):
        if models is None or not roll.prefill_transitions:
            return runs
        rounds = -(-roll.prefill_transitions // (roll.windows_per_round * config.horizon))
        fill = functools.partial(fused.prefill, num_rounds=rounds, **generation)
        buffer = placement.map_seeds(fill)(runs.buffer, key_prefill, models, replay)
        return runs.replace(buffer=buffer)

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
        return report.evaluation_entry(config.environment, returns, update)

    return evaluate_runs


def _seed_keys(key: jax.Array, num_seeds: int) -> list[jax.Array]:
    """Keys [num_seeds] of each of a seed's three streams."""
    seeds = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(num_seeds))
    return [jax.vmap(jax.random.fold_in, (0, None))(seeds, stream) for stream in range(3)]


class _Bound:
    """A jitted program with its constant arguments, compiled ahead of its first call.

    Datasets and frozen models are arguments, not closures: a closure would copy them into
    the program.
    """

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


def _shared_batches(config: Any) -> dict[str, int]:
    if config.training.real_fraction == 1.0:
        return {}
    return {
        "config.world_model.batch_size": config.world_model.batch_size,
        "config.inverse_dynamics.batch_size": config.inverse_dynamics.batch_size,
        "config.rollout.windows_per_round": config.rollout.windows_per_round,
    }


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
        return ", ".join(f"{name} {value:.2g}" for name, value in values.items())
    return "[" + ", ".join(f"{value:.2g}" for value in values) + "]"
