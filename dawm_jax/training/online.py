"""Fine-tuning: agents go on to learn while they act in their environment.

A turn is one time step of all copies of the environment. Its order lets host and device work at
the same time:

actions of the policy -> updates on what was lived through before (the device) beside the step of
the simulators (the host) -> the ring of lived steps

Every `refit_every` environment steps the models are fitted to the dataset and the ended online
episodes, and generate new rows. Each seed has its own copies, ring, models and agent.
"""

import dataclasses
import logging
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from dawm_jax.agents.base import AGENTS, AgentTask, Loosens
from dawm_jax.config import schema
from dawm_jax.config.schema import Config
from dawm_jax.data import lived as living
from dawm_jax.data.lived import LivedStep
from dawm_jax.data.replay import Replay
from dawm_jax.data.ring_buffer import Buffer
from dawm_jax.envs import copies as copying
from dawm_jax.envs.copies import Copies, Episodes, Lived
from dawm_jax.methods.base import METHODS, MethodSpec
from dawm_jax.models.base import Trainable
from dawm_jax.models.optim import TrainState
from dawm_jax.runtime import loop
from dawm_jax.runtime.sharding import Placement
from dawm_jax.training import setup, stages
from dawm_jax.training.fine_tuning import FineTuning, Learner
from dawm_jax.training.fused import AgentRun
from dawm_jax.training.setup import Setup
from dawm_jax.types import Metrics, ModelParams, Transition, UserError

_log = logging.getLogger(__name__)

STAGE = "online"


@struct.dataclass
class OnlineRun:
    """The state of the stage.

    Attributes:
      learner: of all seeds.
      episodes: where all copies of all seeds are, those of a seed together; NumPy arrays.
    """

    learner: Learner
    episodes: Episodes

    @property
    def agent(self) -> Any:
        """States of all seeds' agents."""
        return self.learner.agent


# --- what can be refused before any data are read -----------------------------------------


def check(config: Config, method: MethodSpec) -> None:
    """Checks that a run can be fine-tuned.

    Raises:
      UserError: it cannot, and why.
    """
    online, agent = config.online, AGENTS.get(config.agent)
    if not online.steps:
        return
    if method.plans:
        raise UserError(
            f"config.online.steps: expected 0 with config.method={method.name}, which plans and "
            f"trains no agent, got {online.steps}"
        )
    if jax.process_count() > 1 or config.parallel != "mesh":
        raise UserError(
            "config.online.steps: expected 0 with several processes or config.parallel=pmap, as "
            f"one process steps the environments, got {online.steps}"
        )
    config.training.check_one_step("with config.online.steps above 0, whose rows are single steps")
    if online.generated_fraction and not method.trains_models(config):
        raise UserError(
            "config.online.generated_fraction: expected 0 on real data only "
            f"(config.training.real_fraction=1), got {online.generated_fraction:g}; raise the "
            "other shares"
        )
    batches = agent.batches_per_update(config.sections[agent.name])
    if online.envs * online.updates_per_step % batches:
        raise UserError(
            "config.online.updates_per_step: expected a multiple of "
            f"{batches} for config.online.envs x updates_per_step, the critic updates of one "
            f"{agent.label} update, got {online.envs} x {online.updates_per_step}"
        )
    if online.warm_up and not agent.policy:
        raise UserError(
            f"config.online.warm_up: expected 0 with agent {agent.name!r}, which does not say what "
            f"its policy is (AgentSpec.policy), got {online.warm_up}"
        )
    blank = AgentTask(
        state_size=1,
        action_size=1,
        discount=config.discount,
        total_updates=1,
        return_range=1.0,
        rows=Transition,
    )
    built = agent.make(config.sections[agent.name], blank)
    if online.cloning_decay < 1.0 and not isinstance(built, Loosens):
        raise UserError(
            f"config.online.cloning_decay: expected 1 with agent {agent.name!r}, whose pull "
            f"towards the data cannot be changed, got {online.cloning_decay:g}"
        )


def tell(config: Config) -> None:
    """Logs what a stopped fine-tuning cannot resume."""
    if config.online.steps and not copying.is_repeatable(
        config.environment, config.environment_arguments
    ):
        _log.warning(
            "environment %s: the same reset and actions give other states: a stopped run resumes "
            "with new episodes, and not bit for bit",
            config.environment,
        )


# --- what host and devices do in turn -----------------------------------------------------


class Keys(NamedTuple):
    """The streams of the stage, each [seeds]."""

    act: jax.Array
    update: jax.Array
    refit: jax.Array


class Remember(Protocol):
    """The rings of all seeds after one more time step; the rings are donated."""

    def __call__(self, rings: Buffer[LivedStep], row: LivedStep, /) -> Buffer[LivedStep]: ...


class _Programs(NamedTuple):
    """The compiled programs of all seeds; `refit` is None if models are never refitted."""

    update: jax.stages.Compiled
    refit: jax.stages.Compiled | None
    remember: Remember


class OnlineSteps:
    """The turns of the stage; a `loop.Steps`.

    Args:
      tuning: what one seed computes.
      copies: of all seeds.
      replay: the dataset, placed.
      keys: streams of all seeds, placed.
    """

    def __init__(self, tuning: FineTuning, copies: Copies, replay: Replay, keys: Keys):
        self._tuning, self._copies, self._replay, self._keys = tuning, copies, replay, keys
        self._act = jax.jit(jax.vmap(tuning.act, (0, 0, 0, None)))
        self._programs: _Programs | None = None
        mean, std = tuning.normalizer.observation_mean, tuning.normalizer.observation_std
        self._mean, self._std = np.asarray(mean), np.asarray(std)
        self._low = np.asarray(tuning.normalizer.action_low)
        self._half_range = (np.asarray(tuning.normalizer.action_high) - self._low) / 2
        self._is_at_state = False

    def compile(self, state: OnlineRun, num_steps: int) -> None:
        """See `loop.Steps`; the programs of a turn do not depend on `num_steps`."""
        if self._programs is not None:
            return
        over_seeds, learner = (0, 0, None, None), state.learner
        # What a program returns lies where its argument lay: one compilation fits all turns.
        placed = jax.tree.map(lambda leaf: leaf.sharding, learner)
        update = jax.jit(
            jax.vmap(self._tuning.update, over_seeds),
            donate_argnums=0,
            out_shardings=(placed, None),
        )
        refit = jax.jit(
            jax.vmap(self._tuning.refit, over_seeds), donate_argnums=0, out_shardings=placed
        )
        step = jnp.int32(0)
        self._programs = _Programs(
            update.lower(learner, self._keys.update, step, self._replay).compile(),
            refit.lower(learner, self._keys.refit, step, self._replay).compile()
            if self._tuning.refits
            else None,
            jax.jit(jax.vmap(living.remember), donate_argnums=0, out_shardings=placed.lived),
        )

    def __call__(
        self, state: OnlineRun, first_step: int, num_steps: int
    ) -> tuple[OnlineRun, Metrics]:
        """See `loop.Steps`; it returns when the updates of the last turn are done."""
        if first_step and not self._is_at_state:
            self._copies.resume(state.episodes)
        self._is_at_state = True
        learner, gathered = state.learner, _Gathered()
        for step in range(first_step, first_step + num_steps, self._tuning.settings.envs):
            learner = self._turn(learner, step, gathered)
        return OnlineRun(learner, self._copies.state), gathered.means()

    def _turn(self, learner: Learner, step: int, gathered: "_Gathered") -> Learner:
        programs, index, replay = self._programs, jnp.int32(step), self._replay
        assert programs is not None  # the loop compiles first
        observation = self._by_seed(self._standardised(self._copies.observation))
        action = self._act(learner.agent, observation, self._keys.act, index)
        tried = np.asarray(action)  # waits for the updates of the turn before
        if step:
            if programs.refit is not None and step % self._tuning.settings.refit_every == 0:
                learner = programs.refit(learner, self._keys.refit, index, replay)
            learner, metrics = programs.update(learner, self._keys.update, index, replay)
            gathered.add(metrics)
        # The device updates while the host steps the simulators.
        # It computes the actions in the environment's units too: a program that returned them
        # beside those of the ring could round the two differently.
        raw = self._low + (tried.reshape(-1, len(self._low)) + np.float32(1.0)) * self._half_range
        lived = self._copies.step(raw)
        gathered.returns.extend(lived.returns)
        ring = programs.remember(learner.lived, self._row(observation, action, lived))
        return dataclasses.replace(learner, lived=ring)

    def _row(self, observation: np.ndarray, action: jax.Array, lived: Lived) -> LivedStep:
        return LivedStep(
            observation=jnp.asarray(observation),
            action=action,
            reward=self._by_seed(lived.reward.astype(np.float32)),
            terminated=self._by_seed(lived.terminated.astype(np.float32)),
            next_observation=self._by_seed(self._standardised(lived.next_observation)),
            ended=self._by_seed(lived.ended),
        )

    def _standardised(self, observation: np.ndarray) -> np.ndarray:
        return (observation - self._mean) / self._std

    def _by_seed(self, array: np.ndarray) -> Any:
        """[seeds n, ...] -> [seeds, n, ...]."""
        return array.reshape(-1, self._tuning.settings.envs, *array.shape[1:])


class _Gathered:
    """The metrics of the turns of a program call."""

    def __init__(self) -> None:
        self.returns: list[float] = []  # of episodes that ended
        self._pending: Metrics | None = None
        self._values: dict[str, list[np.ndarray]] = {}

    def add(self, metrics: Metrics) -> None:
        """Adds a turn's metrics; those of the turn before are computed by now, and fetched."""
        previous, self._pending = self._pending, metrics
        for name, value in jax.device_get(previous or {}).items():
            self._values.setdefault(name, []).append(value)

    def means(self) -> Metrics:
        """Means over turns, and the number and mean return of the episodes that ended."""
        self.add({})
        found = {name: jnp.asarray(np.mean(values)) for name, values in self._values.items()}
        found["episodes"] = jnp.asarray(len(self.returns))
        if self.returns:
            found["episode_return"] = jnp.asarray(np.float32(np.mean(self.returns)))
        return found


# --- the stage ----------------------------------------------------------------------------


def fine_tune(
    parts: Setup,
    run: AgentRun,
    models: ModelParams | None,
    replay: Replay,
    placement: Placement,
    key: jax.Array,
    session: loop.Session,
) -> OnlineRun:
    """Fine-tunes all seeds' agents in their environment and evaluates them on the way.

    Args:
      parts: what the offline training computed with.
      run: the trained agents and their generated rows, leading axis seeds.
      models: averaged parameters of the method's models; None on real data only.
      replay: the dataset, on every device.
      placement: how seeds are spread.
      key: of the run.
      session: of the run.

    Returns:
      The last state.

    Raises:
      UserError: the environment does something wrong; see `Copies`.
    """
    config, settings = parts.config, parts.config.online
    tuning = make(parts, num_train=replay.num_train)
    streams = stages.seed_keys(stages.stream_key(key, STAGE), config.num_seeds)
    copies = Copies(
        config.environment,
        config.num_seeds * settings.envs,
        seed=config.seed,
        kwargs=config.environment_arguments,
        max_steps=config.evaluation.max_steps,
    )
    try:
        stage = loop.Stage(
            name=STAGE,
            unit="step",
            steps=OnlineSteps(
                tuning,
                copies,
                replay,
                Keys(*placement.place_seeds(streams)),
            ),
            total_steps=settings.steps,
            chunk_steps=settings.log_steps,
            checkpoint_steps=settings.checkpoint_steps,
            assess=stages.evaluator(
                parts, placement, session.stop, total=settings.steps, unit="online step"
            ),
            assess_steps=settings.evaluation_interval,
        )
        learner = begin(tuning, run, models, placement, num_seeds=config.num_seeds, key=key)
        episodes = copies.begin(parts.normalizer.action_low.shape[0])
        return session.run(stage, OnlineRun(learner, episodes))
    finally:
        copies.close()


def make(parts: Setup, *, num_train: int) -> FineTuning:
    """What one seed of a run computes while it is fine-tuned.

    Schedules of learning rates begin anew: those of the agent span the online updates, and the
    models' rate in refits is constant.

    Args:
      parts: what the offline training computed with.
      num_train: training steps of the dataset.
    """
    config, settings = parts.config, parts.config.online
    online = setup.make(_online_config(parts.config), parts.normalizer, num_train=num_train)
    training = online.training
    assert training is not None  # see `check`
    limits = setup.online_limits(config)
    return FineTuning(
        settings=settings,
        training=training,
        # Without generated rows nothing reads the models.
        models=online.method.models if limits.generated else {},
        policy=AGENTS.get(config.agent).policy,
        normalizer=parts.normalizer,
        discount=config.discount,
        timeout_value=config.timeout_value,
        rounds=setup.refit_rounds(config),
        limits=limits,
    )


def _online_config(config: Config) -> Config:
    """The settings whose learning rates are those of the fine-tuning."""
    settings, per_round = config.online, config.rollout.updates_per_round
    updates = settings.steps * settings.updates_per_step
    changes: dict[str, Any] = {"training.updates": -(-updates // per_round) * per_round}
    constant = {
        "learning_rate": settings.refit_learning_rate,
        "schedule": "constant",
        "warmup_steps": 0,
    }
    for name in METHODS.get(config.method).fitted_sections:
        section = config.fit_settings(name)  # only some have a warm-up
        changes |= {f"{name}.{k}": v for k, v in constant.items() if hasattr(section, k)}
    return schema.replace(config, changes)


def begin(
    tuning: FineTuning,
    run: AgentRun,
    models: ModelParams | None,
    placement: Placement,
    *,
    num_seeds: int,
    key: jax.Array,
) -> Learner:
    """The learners of all seeds before the first turn, placed.

    Args:
      tuning: what one seed computes.
      run: the agents trained offline and their generated rows, leading axis seeds.
      models: averaged parameters that every seed's models begin with; None on real data only.
      placement: how seeds are spread.
      num_seeds: number of seeds.
      key: of the run; new agents are drawn from it.
    """
    training = tuning.training
    agent = restart_schedules(run.agent)
    if tuning.settings.fresh_agent:
        key_fresh = stages.seed_keys(stages.stream_key(key, "fresh agents"), num_seeds)[0]
        agent = stages.init_agents(training, key_fresh, placement).agent
    for_seeds = lambda tree: jax.tree.map(lambda leaf: jnp.stack([leaf] * num_seeds), tree)
    started = {
        name: for_seeds(_restarted(model, (models or {})[name], key))
        for name, model in tuning.models.items()
    }
    ring = empty_ring(tuning)
    generated = run.buffer if tuning.limits.generated else None
    learner = Learner(agent, started, generated=generated, lived=for_seeds(ring))
    return placement.place_seeds(learner)


def empty_ring(tuning: FineTuning) -> Buffer[LivedStep]:
    """The ring of online steps of one seed before its first step."""
    return living.empty(
        turns=tuning.settings.capacity_turns,
        copies=tuning.settings.envs,
        state_size=tuning.normalizer.observation_mean.shape[0],
        action_size=tuning.normalizer.action_low.shape[0],
    )


def _restarted(model: Trainable, params: Any, key: jax.Array) -> TrainState:
    """A trained model with a fresh optimiser."""
    fresh = jax.jit(model.init)(key)
    return TrainState(params=params, average=params, opt_state=fresh.opt_state)


def restart_schedules(state: Any) -> Any:
    """An agent's state whose learning-rate schedules are at their beginning.

    Moments of Adam and everything else stay.
    """

    def restart(leaf: Any) -> Any:
        if not isinstance(leaf, optax.ScaleByScheduleState):
            return leaf
        return optax.ScaleByScheduleState(jnp.zeros_like(leaf.count))

    is_schedule = lambda leaf: isinstance(leaf, optax.ScaleByScheduleState)
    return jax.tree.map(restart, state, is_leaf=is_schedule)
