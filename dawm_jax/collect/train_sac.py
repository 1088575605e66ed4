"""Soft actor-critic trained online.

A round steps a few copies of the environment on the host, and then updates the agent in one
scanned program on the device. Scored snapshots of the policy are kept; the policies of D4RL's
tiers are chosen among them at the end.
"""

import dataclasses
import functools
import itertools
import logging
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dawm_jax.agents.soft import Optimizers
from dawm_jax.collect import sac, snapshots
from dawm_jax.collect.episodes import limit_kwargs
from dawm_jax.collect.policies import Policies, SampleFn, make_sampler, save_policies
from dawm_jax.collect.snapshots import Snapshot
from dawm_jax.data import ring_buffer
from dawm_jax.data.dataset import to_unit_range
from dawm_jax.data.ring_buffer import Buffer
from dawm_jax.envs import guard, rollouts, simulate
from dawm_jax.envs.guard import GuardedSimulator
from dawm_jax.envs.simulate import Simulator
from dawm_jax.runtime import loop, run_folder
from dawm_jax.runtime.metrics import MetricsFile
from dawm_jax.runtime.stopping import StopFlag
from dawm_jax.types import Metrics, Params, Transition, UserError

_log = logging.getLogger(__name__)

_ROUNDS_PER_CHUNK = 16


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings of one online training; defaults are the SAC paper's unless noted.

    Attributes:
      environment: Gymnasium id.
      seed: of everything random.
      steps: environment steps.
      copies: environments stepped together.
      round_steps: steps of each copy in a round.
      updates_per_step: critic updates per environment step (paper: 1).
      policy_delay: critic updates per policy update (paper: 1).
      batch_size: transitions of a minibatch (paper: 256).
      hidden: units of the hidden layers, policy and critics.
      actor_learning_rate: Adam's rate for the policy.
      critic_learning_rate: Adam's rate for the critics and the temperature (paper: 3e-4).
      discount: gamma, per step.
      tau: share of the new parameters in the target critics, after every critic step.
      start_steps: environment steps with uniformly random actions before learning starts.
      snapshot_steps: environment steps between scored snapshots of the policy.
      snapshot_episodes: episodes of a snapshot's score.
      checkpoint_steps: environment steps between checkpoints.
      max_steps: time limit of an episode; None: the environment's.
    """

    environment: str
    seed: int = 0
    steps: int = 1_000_000
    copies: int = 16
    round_steps: int = 8
    updates_per_step: float = 0.5
    policy_delay: int = 2
    batch_size: int = 128
    hidden: tuple[int, ...] = (256, 256)
    actor_learning_rate: float = 3e-4
    critic_learning_rate: float = 1e-3
    discount: float = 0.99
    tau: float = 0.005
    start_steps: int = 5_120
    snapshot_steps: int = 10_240
    snapshot_episodes: int = 10
    checkpoint_steps: int = 51_200
    max_steps: int | None = None

    @property
    def steps_per_round(self) -> int:
        """Environment steps of a round, over all copies."""
        return self.copies * self.round_steps

    @property
    def total_steps(self) -> int:
        """Environment steps that the training makes: `steps` rounded down to whole rounds."""
        return self.steps - self.steps % self.steps_per_round

    @property
    def cycles_per_round(self) -> int:
        """Calls of `Sac.update` in a round, each of `policy_delay` critic updates."""
        num_updates = int(self.steps_per_round * self.updates_per_step)
        return max(num_updates // self.policy_delay, 1)


class Training(NamedTuple):
    """The state of a training: the agent, and all transitions that it has seen."""

    agent: sac.State
    buffer: Buffer[Transition]


def train(settings: Settings, workdir: pathlib.Path, stop: StopFlag) -> Policies:
    """Trains SAC online, from its newest checkpoint if there is one.

    A resumed training starts new episodes. So its numbers differ from those of a training that
    was not stopped.

    Args:
      settings: of the training.
      workdir: for metrics, checkpoints, snapshots and policies.npz. A stopped training writes
        policies.npz too, if a snapshot was scored.
      stop: read between calls of several rounds.

    Returns:
      The policies of D4RL's tiers, as in policies.npz.

    Raises:
      UserError: `steps` are less than a round, the environment is one that
        `rollouts.run_episodes` refuses, or see `loop.Session.run`.
      Interrupted: see `loop.Session.run`.
    """
    kwargs = _check(settings)
    with run_folder.own(workdir, dataclasses.asdict(settings)):
        run_folder.write_config(workdir, dataclasses.asdict(settings))
        log = MetricsFile(workdir / "metrics.jsonl")
        simulator = GuardedSimulator(
            simulate.make_simulator(settings.environment, settings.copies, kwargs=kwargs),
            settings.environment,
        )
        try:
            _run(settings, workdir, log, simulator, stop)
        finally:
            simulator.close()
            if scored := _scored(log):
                policies = snapshots.select(
                    settings.environment, dataclasses.asdict(settings), workdir, scored
                )
                save_policies(policies, workdir / "policies.npz")
        return policies


def _check(settings: Settings) -> dict[str, Any] | None:
    """Refuses what cannot be trained; the keyword arguments of `gym.make`."""
    if settings.total_steps == 0:
        raise UserError(
            f"--steps: expected at least a round of {settings.steps_per_round} with --train, got "
            f"{settings.steps}"
        )
    kwargs = limit_kwargs(settings.max_steps or 0)
    guard.episode_limit(settings.environment, kwargs, setting="--max_steps")
    if settings.total_steps != settings.steps:
        _log.info(
            "sac: %s steps, which are whole rounds of %s, of the %s asked for",
            *(f"{n:,}" for n in (settings.total_steps, settings.steps_per_round, settings.steps)),
        )
    return kwargs


def _run(
    settings: Settings,
    workdir: pathlib.Path,
    log: MetricsFile,
    simulator: Simulator,
    stop: StopFlag,
) -> None:
    """The only stage of the training."""
    env = simulate.make_environment(settings.environment)
    action_space, state_size = env.action_space, env.observation_space.shape[0]
    env.close()
    low, high = action_space.low, action_space.high
    key = jax.random.key(settings.seed)
    learner = Learner(settings, state_size, low.size)
    sampler = make_sampler(action_space)
    collector = Collector(settings, simulator, sampler, low, high)

    def assess(state: Training, step: int) -> dict[str, Any]:
        returns = _score(state.agent.actor, settings, sampler, step, stop)
        snapshots.save_snapshot(workdir, step, state.agent.actor)
        return {"return_mean": float(returns.mean()), "return_std": float(returns.std())}

    stage = loop.Stage(
        name="sac",
        unit="step",
        steps=Rounds(settings, learner, collector, key),
        total_steps=settings.total_steps,
        chunk_steps=_ROUNDS_PER_CHUNK * settings.steps_per_round,
        checkpoint_steps=settings.checkpoint_steps,
        assess=assess,
        assess_steps=settings.snapshot_steps,
    )
    session = loop.Session(
        workdir=workdir,
        log=log,
        writers=(),
        stop=stop,
        constants={"action_low": jnp.asarray(low), "action_high": jnp.asarray(high)},
    )
    session.run(stage, jax.jit(learner.init)(jax.random.fold_in(key, 0)))


def _scored(log: MetricsFile) -> list[Snapshot]:
    return [Snapshot(entry["step"], entry["return_mean"]) for entry in log.lines("sac", "assess")]


# --- on the device ------------------------------------------------------------------------


class Learner:
    """The jitted functions of a training.

    Args:
      settings: of the training.
      state_size: S.
      action_size: A.
    """

    def __init__(self, settings: Settings, state_size: int, action_size: int):
        self._settings = settings
        self._sac = sac.Sac(
            networks=sac.make_networks(settings.hidden, action_size),
            state_size=state_size,
            action_size=action_size,
            optimizers=Optimizers(
                actor=_adam(settings.actor_learning_rate),
                critics=_adam(settings.critic_learning_rate),
                temperature=_adam(settings.critic_learning_rate),
            ),
            discount=settings.discount,
            tau=settings.tau,
        )

    def init(self, key: jax.Array) -> Training:
        """A fresh agent and an empty buffer with room for all steps; `key` is consumed."""
        state, action = (self._sac.state_size,), (self._sac.action_size,)
        row = Transition(*(_float32(shape) for shape in (state, action, (), (), state)))
        return Training(self._sac.init(key), ring_buffer.empty(self._settings.steps, row))

    @functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
    def store(self, training: Training, transitions: Transition) -> Training:
        """Adds transitions [n, ...] to the buffer; `training` is donated."""
        valid = jnp.ones(len(transitions.reward), bool)
        return training._replace(buffer=ring_buffer.add(training.buffer, transitions, valid))

    @functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
    def learn(self, training: Training, key: jax.Array) -> tuple[Training, Metrics]:
        """The updates of one round and their mean metrics; `training` is donated."""

        def cycle(agent: sac.State, index: jax.Array) -> tuple[sac.State, Metrics]:
            key_draw, key_update = jax.random.split(jax.random.fold_in(key, index))
            shape = (self._settings.policy_delay, self._settings.batch_size)
            batches = ring_buffer.draw_rows(key_draw, training.buffer, shape)
            return self._sac.update(agent, batches, key_update)

        indices = jnp.arange(self._settings.cycles_per_round)
        agent, metrics = jax.lax.scan(cycle, training.agent, indices)
        return training._replace(agent=agent), jax.tree.map(jnp.mean, metrics)


def _float32(shape: tuple[int, ...]) -> Any:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _adam(learning_rate: float) -> optax.GradientTransformation:
    # A schedule, and not a number, because the optimiser's state in checkpoints counts steps.
    return optax.adam(optax.constant_schedule(learning_rate))


# --- on the host --------------------------------------------------------------------------


class Collector:
    """Steps the copies of the environment; a copy whose episode ended starts another.

    Args:
      settings: of the training.
      simulator: of `settings.copies` copies.
      sampler: of the environment's actions.
      low: [A] bounds of the actions.
      high: [A].

    Attributes:
      finished: undiscounted returns of the episodes that ended since the list was cleared.
    """

    def __init__(
        self,
        settings: Settings,
        simulator: Simulator,
        sampler: SampleFn,
        low: np.ndarray,
        high: np.ndarray,
    ):
        self._settings, self._simulator, self._sampler = settings, simulator, sampler
        self._low, self._high = low, high
        self._observations: np.ndarray | None = None
        self._returns = np.zeros(settings.copies)
        self.finished: list[float] = []

    def round(self, actor: Params, first_step: int, key: jax.Array) -> Transition:
        """The transitions of one round.

        Args:
          actor: parameters of the policy.
          first_step: environment steps before the round.
          key: random number generator state, the key is consumed.

        Returns:
          [round_steps * copies, ...] float32, raw observations, actions in [-1, 1].
        """
        settings = self._settings
        if self._observations is None:
            self._observations = np.stack(
                [self._reset(index, first_step) for index in range(settings.copies)]
            )
        rows = [
            self._step(actor, first_step + t * settings.copies, key)
            for t in range(settings.round_steps)
        ]
        columns = (np.concatenate(column) for column in zip(*rows, strict=True))
        return Transition(*(jnp.asarray(column, jnp.float32) for column in columns))

    def _step(self, actor: Params, step: int, key: jax.Array) -> tuple[np.ndarray, ...]:
        """One step of every copy, in the order of a Transition's fields."""
        assert self._observations is not None
        observations = self._observations.astype(np.float32)
        actions = self._actions(actor, observations, step, key)
        steps = self._simulator.step(np.arange(self._settings.copies), actions)
        next_observations = steps.observations.astype(np.float32)
        self._observations = steps.observations.copy()
        self._returns += steps.rewards
        for index in np.flatnonzero(steps.terminated | steps.truncated):
            self.finished.append(self._returns[index])
            self._returns[index] = 0.0
            self._observations[index] = self._reset(int(index), step)
        scaled = to_unit_range(actions, self._low, self._high)
        return observations, scaled, steps.rewards, steps.terminated, next_observations

    def _reset(self, index: int, step: int) -> np.ndarray:
        return self._simulator.reset(index, _seed(self._settings.seed, step + index))

    def _actions(
        self, actor: Params, observations: np.ndarray, step: int, key: jax.Array
    ) -> np.ndarray:
        if step < self._settings.start_steps:
            rng = np.random.default_rng((self._settings.seed, step))
            size = (len(observations), len(self._low))
            return rng.uniform(self._low, self._high, size).astype(np.float32)
        return np.asarray(self._sampler(actor, observations, jax.random.fold_in(key, step)))


class Rounds:
    """The `loop.Steps` of a training: in every round host steps, then updates on the device.

    Args:
      settings: of the training.
      learner: makes the updates.
      collector: makes the transitions.
      key: of the training.
    """

    def __init__(self, settings: Settings, learner: Learner, collector: Collector, key: jax.Array):
        self._settings, self._learner = settings, learner
        self._collector, self._key = collector, key

    def compile(self, state: Training, num_steps: int) -> None:
        """Does nothing: the learner's programs are compiled by their first call."""

    def __call__(
        self, state: Training, first_step: int, num_steps: int
    ) -> tuple[Training, Metrics]:
        """See `loop.Steps`; a step is a step of one copy of the environment."""
        settings, of_rounds = self._settings, []
        for step in range(first_step, first_step + num_steps, settings.steps_per_round):
            key_act, key_learn = jax.random.split(jax.random.fold_in(self._key, step + 1))
            transitions = self._collector.round(state.agent.actor, step, key_act)
            state = self._learner.store(state, transitions)
            if step >= settings.start_steps:
                state, metrics = self._learner.learn(state, key_learn)
                of_rounds.append(metrics)
        return state, self._means(of_rounds)

    def _means(self, of_rounds: list[Metrics]) -> dict[str, Any]:
        """Mean metrics of the rounds, and of the episodes that ended in them."""
        means: dict[str, Any] = {}
        if of_rounds:
            means = jax.tree.map(lambda *x: jnp.stack(x).mean(), *of_rounds)
        if self._collector.finished:
            means["episode_return"] = np.mean(self._collector.finished)
            self._collector.finished.clear()
        return means


def _score(
    actor: Params, settings: Settings, sampler: SampleFn, step: int, stop: StopFlag
) -> np.ndarray:
    """Returns of whole episodes [1, snapshot_episodes]; actions are sampled, as for datasets."""
    key, calls = jax.random.key(step), itertools.count()

    def policy(observations: np.ndarray, /) -> np.ndarray:
        actions = sampler(actor, observations[0], jax.random.fold_in(key, next(calls)))
        return np.asarray(actions)[None]

    outcome = rollouts.run_episodes(
        policy,
        settings.environment,
        seeds=_seed(settings.seed, settings.steps + step)
        + np.arange(settings.snapshot_episodes)[None],
        environment_kwargs=limit_kwargs(settings.max_steps or 0),
        stop=stop,
    )
    return outcome.returns


def _seed(seed: int, index: int) -> int:
    """A reset seed of the training `seed`, apart from those of evaluation and collection."""
    return int(np.random.SeedSequence((seed, index, 7)).generate_state(1)[0])
