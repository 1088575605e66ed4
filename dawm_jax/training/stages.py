"""The stages of a run: each model, then the agents, or the evaluation of plans."""

import functools
import logging
import time
import zlib
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from dawm_jax.config.schema import Config
from dawm_jax.data.replay import Replay
from dawm_jax.data.ring_buffer import Buffer
from dawm_jax.envs import rollouts
from dawm_jax.envs.resumable import ResumablePolicy, StepPolicyFn
from dawm_jax.envs.rollouts import Outcome
from dawm_jax.methods.base import MethodSpec
from dawm_jax.models.base import Trainable
from dawm_jax.models.optim import TrainState, scan_steps
from dawm_jax.runtime import distributed, loop, sharding
from dawm_jax.runtime.metrics import Progress
from dawm_jax.runtime.sharding import Placement
from dawm_jax.runtime.stopping import Interrupted, StopFlag
from dawm_jax.training import artifacts, setup
from dawm_jax.training.fused import AgentRun, AgentTraining, Inputs
from dawm_jax.training.setup import Setup
from dawm_jax.training.verdict import verdict
from dawm_jax.types import Metrics, ModelParams, Params

_log = logging.getLogger(__name__)

# Largest number of rounds of the generation before the first update in one program call.
_MAX_ROUNDS = 8
# Pieces of a sweep in one program call; more than one for the reason in `rounds_per_call`.
_SWEEP_PIECES = 4
# Largest number of rows that the held-out diagnostics of a model use.
_MAX_HELD_OUT = 2_048
# Actions of an evaluation of plans that is not complete, in the run's folder.
_KEPT_ACTIONS = "planner_actions.npz"
_PLAN_REPORTS = 50  # lines of progress of an evaluation of plans
# Numbers that stages fold into the run's key. Step i of a stage then folds in i.
_STREAMS = {"world_model": 0, "inverse_dynamics": 1, "agent": 2, "policy": 3, "planner": 4}


def stream_key(key: jax.Array, stage: str) -> jax.Array:
    """The key of a stage, derived from the run's key and the stage's name."""
    # Every other name gets its checksum with the highest bit set, above the numbers of `_STREAMS`.
    number = _STREAMS.get(stage, zlib.crc32(stage.encode()) | 1 << 31)
    return jax.random.fold_in(key, number)


def shared_batch_sizes(config: Config, method: MethodSpec) -> dict[str, int]:
    """Setting -> size of every batch that the devices of a run share."""
    if not method.trains_models(config):
        return {}
    sizes = {
        f"config.{name}.batch_size": config.fit_settings(name).batch_size
        for name in method.fitted_sections
    }
    if not method.plans and config.rollout.expand != "minibatch":
        sizes["config.rollout.windows_per_round"] = config.rollout.windows_per_round
    return sizes


# --- models -------------------------------------------------------------------------------


def model_steps(model: Trainable, placement: Placement) -> loop.StepFn[TrainState]:
    """Consecutive updates of a model in one scan; the constants are the replay."""

    def steps(
        state: TrainState,
        key: jax.Array,
        first_step: jax.Array,
        replay: Replay,
        /,
        *,
        num_steps: int,
    ) -> tuple[TrainState, Metrics]:
        def one_step(state: TrainState, index: jax.Array) -> tuple[TrainState, Metrics]:
            key_step = jax.random.fold_in(key, index)
            return model.step(state, key_step, replay, shard=placement.shard, mean=placement.mean)

        return scan_steps(one_step, state, first_step, num_steps)

    return steps


def train_model(
    name: str,
    model: Trainable,
    replay: Replay,
    placement: Placement,
    key: jax.Array,
    session: loop.Session,
) -> Params:
    """Fits one model.

    Args:
      name: of the model and its stage.
      model: what to fit.
      replay: the dataset, on every device.
      placement: how the batch is spread.
      key: of the run.
      session: of the run.

    Returns:
      The model's averaged parameters.
    """
    settings = model.settings
    held_out, errors = held_out_rows(replay), jax.jit(model.errors)

    def assess(state: TrainState, step: int, /) -> dict[str, Any]:
        values = jax.device_get(errors(state.average, replay, held_out))
        found = {metric: np.asarray(value).tolist() for metric, value in values.items()}
        _log.info("%s", verdict(name, found, held_out=replay.num_train < len(replay)))
        return found

    key_init, key_steps = jax.random.split(stream_key(key, name))
    stage = loop.Stage(
        name=name,
        unit="step",
        steps=loop.JittedSteps(
            model_steps(model, placement),
            key=placement.replicate(key_steps),
            constants=replay,
            placement=placement,
            over_seeds=False,
        ),
        total_steps=settings.steps,
        chunk_steps=settings.log_steps,
        checkpoint_steps=settings.checkpoint_steps,
        assess=assess,
        assess_steps=settings.checkpoint_steps,
    )
    return session.run(stage, placement.replicate(jax.jit(model.init)(key_init))).average


def held_out_rows(replay: Replay) -> jax.Array:
    """Evenly spread steps of the held-out episodes, or of all if none are held out."""
    first = replay.num_train if replay.num_train < len(replay) else 0
    count = min(_MAX_HELD_OUT, len(replay) - first)
    return jnp.asarray(np.linspace(first, len(replay) - 1, count).astype(np.int32))


# --- agents -------------------------------------------------------------------------------


def init_agents(training: AgentTraining, keys: jax.Array, placement: Placement) -> AgentRun:
    """Fresh agents of all seeds with empty buffers, keys [seeds], placed.

    The seeds are initialised one after the other: on a CPU, the batched QR factorisations of
    orthogonal kernels that run at the same time can wait for each other's threads for ever.
    """
    agents = jax.jit(functools.partial(jax.lax.map, training.agent.init))(keys)
    buffers = jax.vmap(lambda _: training.init_buffer(), axis_size=len(keys))
    return AgentRun(placement.place_seeds(agents), placement.make_seeds(lambda: buffers(None)))


def train_agents(
    parts: Setup,
    models: ModelParams | None,
    replay: Replay,
    placement: Placement,
    key: jax.Array,
    session: loop.Session,
) -> AgentRun:
    """Trains all seeds' agents in the fused program and evaluates them on the way.

    Args:
      parts: what the run computes with.
      models: averaged parameters of the method's models; None on real data only.
      replay: the dataset, on every device.
      placement: how seeds and windows are spread.
      key: of the run.
      session: of the run.

    Returns:
      Agents and buffers of all seeds, leading axis seeds.
    """
    config, training = parts.config, parts.training
    assert training is not None
    inputs = Inputs(models, replay)
    # Three streams of each seed: its initial parameters, its prefill and its rounds.
    key_init, *keys = seed_keys(stream_key(key, "agent"), config.num_seeds)
    key_prefill, key_train = placement.place_seeds(keys)

    def fill(run: AgentRun, /) -> AgentRun:
        if models is None or training.supply == "minibatch":
            return run
        if training.supply == "sweep":
            assert run.buffer is not None
            swept = sweep(training, inputs, placement, stream_key(key, "sweep"), session.stop)
            return AgentRun(run.agent, share_buffer(run.buffer, key_prefill, swept, placement))
        num_rounds = setup.prefill_rounds(config)
        if not num_rounds:
            return run
        piece, buffer = rounds_per_call(num_rounds), run.buffer
        program = placement.jit_seeds(functools.partial(training.prefill, num_rounds=piece))
        _log.info("agent: compiling the generation")
        compiled = program.lower(buffer, key_prefill, inputs, jnp.int32(0)).compile()
        _log.info("agent: generating before the first update, %s rounds", f"{num_rounds:,}")
        for first in range(0, num_rounds, piece):
            _stop_generation(session.stop)
            buffer = compiled(buffer, key_prefill, inputs, jnp.int32(first))
            jax.block_until_ready(buffer)
        return AgentRun(run.agent, buffer)

    stage = loop.Stage(
        name="agent",
        unit="update",
        steps=loop.JittedSteps(
            training.step,
            key=key_train,
            constants=inputs,
            placement=placement,
            over_seeds=True,
        ),
        total_steps=config.training.updates,
        chunk_steps=config.training.log_updates,
        checkpoint_steps=config.training.checkpoint_updates,
        assess=evaluator(
            parts, placement, session.stop, total=config.training.updates, unit="update"
        ),
        assess_steps=config.evaluation.interval,
        prepare=fill,
    )
    return session.run(stage, init_agents(training, key_init, placement))


def sweep(
    training: AgentTraining,
    inputs: Inputs,
    placement: Placement,
    key: jax.Array,
    stop: StopFlag,
) -> Buffer[Any]:
    """The buffer of one seed with an expansion of every training step; see `AgentTraining.sweep`.

    The expansions depend on the models alone, which all seeds of a run share: one sweep serves
    all seeds.

    Args:
      training: the fused program, whose `supply` is "sweep".
      inputs: the models and the dataset, on every device.
      placement: how windows are spread.
      key: random number generator state, the key is consumed.
      stop: a signal stops the sweep between two program calls.

    Raises:
      Interrupted: a signal asked to stop.
    """
    num_pieces, total = training.sweep_pieces(inputs.replay), inputs.replay.num_train
    program = placement.jit_batch(functools.partial(training.sweep, num_pieces=_SWEEP_PIECES))
    buffer, key = placement.replicate((jax.jit(training.init_buffer)(), key))
    _log.info("agent: compiling the expansion of %s training steps", f"{total:,}")
    compiled = program.lower(buffer, key, inputs, jnp.int32(0)).compile()
    progress = Progress("expansion", total, "steps") if distributed.is_first() else None
    for first in range(0, num_pieces, _SWEEP_PIECES):
        _stop_generation(stop)
        buffer = compiled(buffer, key, inputs, jnp.int32(first))
        jax.block_until_ready(buffer)
        if progress is not None:
            done = (first + _SWEEP_PIECES) * training.sweep_windows
            progress.report(min(done, total), {})
    if progress is not None:
        progress.close()
    return buffer


def share_buffer(
    buffers: Buffer[Any], keys: jax.Array, buffer: Buffer[Any], placement: Placement
) -> Buffer[Any]:
    """Copies of one buffer for all seeds, in the memory of their empty ones.

    Args:
      buffers: of all seeds, leading axis seeds; it is donated.
      keys: [seeds], not used: every program over seeds has one key a seed.
      buffer: to copy.
      placement: how seeds are spread.

    Returns:
      Copies with a leading axis of seeds.
    """

    def copy(own: Buffer[Any], key: jax.Array, buffer: Buffer[Any]) -> Buffer[Any]:
        del key
        # Only an argument that is used is donated. XLA compiles the selection to a copy.
        return jax.tree.map(lambda old, new: jnp.where(True, new, old), own, buffer)

    return placement.place_seeds(placement.jit_seeds(copy)(buffers, keys, buffer))


def _stop_generation(stop: StopFlag) -> None:
    """Raises Interrupted if a signal to any process asked to stop."""
    if distributed.any_process(stop.signal is not None):
        raise Interrupted("the generation before the first update, which begins anew")


def rounds_per_call(num_rounds: int) -> int:
    """Rounds of generation before the first update between two looks at the signals.

    It divides `num_rounds`, so that one program makes them all, and is above 1: XLA compiles a
    single round without a loop, which may round in another way.
    """
    few = range(_MAX_ROUNDS, 1, -1)
    return next((count for count in few if num_rounds % count == 0), num_rounds)


def seed_keys(key: jax.Array, num_seeds: int) -> list[jax.Array]:
    """Keys [num_seeds] of each of a seed's three streams."""
    seeds = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(num_seeds))
    return [jax.vmap(jax.random.fold_in, (0, None))(seeds, stream) for stream in range(3)]


class HasAgent(Protocol):
    """The state of a stage that trains agents."""

    @property
    def agent(self) -> Any:
        """States of all seeds' agents, leading axis seeds."""


def evaluator(
    parts: Setup, placement: Placement, stop: StopFlag, *, total: int, unit: str
) -> loop.Assess[HasAgent]:
    """What evaluates all seeds' agents; raises Interrupted if `stop` is set meanwhile.

    Process 0 plays all episodes on all cores of its host while the other processes wait. This
    takes a small share of a run, and the returns do not depend on the number of processes. A
    signal to any of them stops all.

    Args:
      parts: what the run computes with.
      placement: how seeds are spread.
      stop: of the run.
      total: last step of the stage, whose evaluation plays `config.evaluation.final_episodes`.
      unit: name of a step, for the log.
    """
    config = parts.config
    act = jax.jit(jax.vmap(parts.act))

    def evaluate(run: HasAgent, step: int, /) -> dict[str, Any]:
        agents = sharding.local_copy(placement.replicate(run.agent))
        section = config.evaluation
        last = step == total

        def play() -> Outcome:
            return rollouts.run_episodes(
                functools.partial(act, agents),
                config.environment,
                seeds=rollouts.reset_seeds(
                    section.seed,
                    config.seed,
                    step,
                    num_policies=config.num_seeds,
                    num_episodes=section.final_episodes if last else section.episodes,
                ),
                environment_kwargs=config.environment_arguments,
                max_steps=section.max_steps,
                stop=stop,
            )

        outcome = distributed.on_first_process(play, meanwhile=stop.ask)
        if outcome is None:
            return {}
        return artifacts.evaluation_entry(
            config.environment, outcome, f"{unit} {step}", parts.references
        )

    return evaluate


# --- plans --------------------------------------------------------------------------------


def evaluate_plans(
    parts: Setup, models: ModelParams | None, key: jax.Array, session: loop.Session
) -> None:
    """Evaluates a method that plans; a seed is the noise of its plans, models are shared.

    Process 0 plays all episodes while the other processes wait. The actions are kept in the run's
    folder until the evaluation is complete, so that a stopped or killed one is resumed.

    Args:
      parts: what the run computes with; its method plans.
      models: averaged parameters of the method's models.
      key: of the run.
      session: of the run; its metrics.jsonl gets one entry.

    Raises:
      Interrupted: a signal asked to stop.
    """
    distributed.on_first_process(
        lambda: _evaluate_plans(parts, models, key, session), meanwhile=session.stop.ask
    )


def _evaluate_plans(
    parts: Setup, models: ModelParams | None, key: jax.Array, session: loop.Session
) -> None:
    config, section = parts.config, parts.config.evaluation
    policy = ResumablePolicy(plan_policy(parts, models, key), session.workdir / _KEPT_ACTIONS)
    if any(session.log.lines("planner", "assess")):
        policy.discard()
        return
    if policy.num_kept:
        _log.info("planner: repeating %s steps of episodes", f"{policy.num_kept:,}")
    start = time.monotonic()
    try:
        outcome = rollouts.run_episodes(
            policy,
            config.environment,
            seeds=rollouts.reset_seeds(
                section.seed,
                config.seed,
                0,
                num_policies=config.num_seeds,
                num_episodes=section.final_episodes,
            ),
            environment_kwargs=config.environment_arguments,
            max_steps=section.max_steps,
            stop=session.stop,
            report=_PlanReport(policy),
        )
    except Interrupted as interruption:
        policy.save()
        raise Interrupted(f"planner, {interruption}") from interruption
    entry = artifacts.evaluation_entry(config.environment, outcome, "planner", parts.references)
    seconds = time.monotonic() - start
    session.log.append("planner", "assess", 0, {**entry, "seconds": seconds})
    policy.discard()


def plan_policy(parts: Setup, models: ModelParams | None, key: jax.Array) -> StepPolicyFn:
    """The plans of all seeds at a time step of their episodes.

    Args:
      parts: what the run computes with; its method plans.
      models: averaged parameters of the method's models.
      key: of the run.
    """
    method = parts.planner
    assert method is not None
    models = sharding.local_copy(models)
    keys = seed_keys(stream_key(key, "planner"), parts.config.num_seeds)[0]
    plan_of_seeds = jax.jit(
        lambda models, keys, index, observations: jax.vmap(method.plan, (None, 0, 0))(
            models, jax.vmap(jax.random.fold_in, (0, None))(keys, index), observations
        )
    )
    return lambda observations, step: plan_of_seeds(models, keys, step, observations)


class _PlanReport:
    """A `rollouts.Report` that shows the time left and saves the actions of what was planned."""

    def __init__(self, policy: ResumablePolicy):
        self._policy = policy
        self._progress: Progress | None = None

    def __call__(self, step: int, limit: int, running: int, /) -> None:
        if step <= self._policy.num_kept:
            return  # repeated, not planned
        if self._progress is None:
            # The first step compiles the planner, which the estimate must not count.
            self._progress = Progress("planner", limit, "step", step)
        elif step % max(1, limit // _PLAN_REPORTS) == 0:
            self._policy.save()
            self._progress.report(step, {"episodes running": running})
        if running == 0:
            self._progress.close()
