"""Behaviour policies: soft actor-critic trained online, and the file that carries them.

Training steps a few copies of the environment on the host and updates the agent in one
scanned program a round. Snapshots of the policy and their scores are kept on the way;
`select` makes D4RL's tiers of them.
"""

import dataclasses
import functools
import json
import os
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from dawm_jax.collect import sac
from dawm_jax.envs import evaluate, simulate
from dawm_jax.methods import synthetic as rollout
from dawm_jax.methods.synthetic import Buffer
from dawm_jax.models import optim as learner
from dawm_jax.runtime import loop, run_folder
from dawm_jax.runtime.metrics import MetricsFile
from dawm_jax.types import Transition, UserError, first_line

_ASSETS = pathlib.Path(__file__).parent / "assets"


# --- the policies and their file ----------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Policies:
    """What a training run left behind for making datasets.

    Attributes:
      environment: Gymnasium id.
      actors: parameters of the "medium" and the "expert" policy, and of the policies that
        filled the replay buffer before medium, in order: "replay-0", "replay-1", ...
      card: JSON-able facts: returns, environment steps, versions, settings.
    """

    environment: str
    actors: dict[str, learner.Params]
    card: dict[str, Any]


def save_policies(policies: Policies, path: pathlib.Path) -> None:
    """Writes one compressed .npz, atomically; weights are rounded to 16 bits."""
    arrays: dict[str, Any] = {
        f"{name}/{leaf}": np.asarray(value, np.float16)
        for name, actor in policies.actors.items()
        for leaf, value in flax.traverse_util.flatten_dict(actor, sep="/").items()
    }
    text = json.dumps({"environment": policies.environment, "card": policies.card})
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    with os.fdopen(handle, "wb") as file:
        np.savez_compressed(file, about=np.array(text), **arrays)
    os.chmod(temporary, 0o644)  # temporary files are made private
    os.replace(temporary, path)


def load_policies(path: pathlib.Path) -> Policies:
    """Reads what `save_policies` wrote.

    Raises:
      UserError: there is no such file, or it holds something else.
    """
    try:
        with np.load(path) as file:
            about = json.loads(str(file["about"]))
            flat: dict[str, dict[str, np.ndarray]] = {}
            for key in file.files:
                if key != "about":
                    name, leaf = key.split("/", 1)
                    flat.setdefault(name, {})[leaf] = file[key].astype(np.float32)
        actors = {
            name: flax.traverse_util.unflatten_dict(leaves, sep="/")
            for name, leaves in flat.items()
        }
        return Policies(about["environment"], actors, about["card"])
    except FileNotFoundError:
        raise UserError(f"no policies at {path}: expected a policies.npz of a training") from None
    except Exception as error:
        raise UserError(f"{path} holds no behaviour policies ({first_line(error)})") from error


def check_environment(policies: Policies, environment: str) -> None:
    """Raises UserError if the policies are of another environment."""
    if policies.environment != environment:
        raise UserError(
            f"the policies are for {policies.environment}, --env is {environment}: "
            "name the environment that they were trained in"
        )


def shipped_environments() -> list[str]:
    """Gymnasium ids that the package has policies for."""
    return sorted(file.stem for file in _ASSETS.glob("*.npz"))


def shipped_policies(environment: str) -> Policies:
    """The policies in the package for a Gymnasium id.

    Raises:
      UserError: there are none.
    """
    path = _ASSETS / f"{environment}.npz"
    if not path.is_file():
        known = ", ".join(shipped_environments())
        raise UserError(
            f"no policies are shipped for {environment} (there are {known}): train some with "
            f"--env={environment} --train --workdir=DIR, then pass --policies=DIR/policies.npz"
        )
    return load_policies(path)


def make_sampler(action_space: Any):
    """A jitted (actor, observations [n, S], key) -> sampled actions [n, A], environment units.

    Args:
      action_space: the environment's.
    """
    low, high = jnp.asarray(action_space.low), jnp.asarray(action_space.high)
    networks = functools.partial(_networks_of, action_size=low.size)

    @jax.jit
    def sampled(actor, observations, key):
        noise = jax.random.normal(key, (len(observations), low.size))
        action, _ = sac.sample(actor, observations, noise, networks=networks(actor))
        return (high + low)[None] / 2 + (high - low)[None] / 2 * action

    return sampled


def _networks_of(actor: learner.Params, action_size: int) -> sac.Networks:
    """Networks of the hidden sizes that the parameters have."""
    layers = actor["params"]
    widths = [layers[f"Dense_{i}"]["bias"].shape[0] for i in range(len(layers) - 1)]
    return sac.make_networks(tuple(widths), action_size)


# --- training -----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Settings:
    """Of one online training. Values are the SAC paper's (1812.05905) unless said.

    Attributes:
      environment: Gymnasium id.
      seed: of everything random.
      steps: environment steps.
      copies: environments stepped together.
      round_steps: steps of each copy between two calls of the training program.
      updates_per_step: critic updates per environment step (the paper: 1; steps are cheap).
      policy_delay: critic updates per policy update (the paper: 1; 2 saves a fourth).
      batch_size: transitions (the paper: 256; half of it learns faster on a CPU).
      hidden: units of policy and critics.
      actor_learning_rate: Adam.
      critic_learning_rate: Adam, also of the temperature (the paper: 3e-4).
      discount: per step.
      tau: share of the new parameters in the targets.
      start_steps: uniformly random actions before learning starts.
      snapshot_steps: environment steps between scored snapshots of the policy.
      snapshot_episodes: episodes of such a score.
      checkpoint_steps: environment steps between checkpoints.
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

    @property
    def steps_per_round(self) -> int:
        """Environment steps between two calls of the training program."""
        return self.copies * self.round_steps


class Training(NamedTuple):
    """What a training moves: the agent and everything it has seen."""

    agent: sac.State
    buffer: Buffer


def train(settings: Settings, workdir: pathlib.Path, stop: loop.StopFlag) -> Policies:
    """Trains SAC online, from its newest checkpoint if there is one.

    A resumed training starts new episodes, so it does not repeat an undisturbed one.

    Args:
      settings: of the training.
      workdir: for metrics, checkpoints, snapshots and policies.npz, which a training that is
        stopped leaves as well.
      stop: looked at between rounds of training.

    Returns:
      The tiers that `select` made; also written to policies.npz.

    Raises:
      UserError, loop.Interrupted: see `loop.run_stage`.
    """
    with run_folder.own(workdir, dataclasses.asdict(settings)):
        return _train(settings, workdir, stop)


def _train(settings: Settings, workdir: pathlib.Path, stop: loop.StopFlag) -> Policies:
    env = simulate.make_environment(settings.environment)
    run_folder.write_config(workdir, dataclasses.asdict(settings))
    action_space, state_size = env.action_space, env.observation_space.shape[0]
    env.close()
    low, high = action_space.low, action_space.high
    functions = _bind(settings, state_size, low.size)
    sampler = make_sampler(action_space)
    simulator = simulate.make_simulator(settings.environment, settings.copies)
    log = MetricsFile(workdir / "metrics.jsonl")
    key = jax.random.key(settings.seed)
    collector = _Collector(settings, simulator, sampler, low, high)

    def compile_steps(num_steps):
        rounds = num_steps // settings.steps_per_round
        return _Rounds(functions, collector, rounds, settings, key)

    def assess(state, step):
        scores = _score(state.agent.actor, settings, sampler, step)
        _save_snapshot(workdir, step, state.agent.actor)
        return {"return_mean": float(scores.mean()), "return_std": float(scores.std())}

    try:
        loop.run_stage(
            loop.Stage(
                name="sac",
                unit="step",
                total_steps=settings.steps - settings.steps % settings.steps_per_round,
                chunk_steps=16 * settings.steps_per_round,
                checkpoint_steps=settings.checkpoint_steps,
                compile=compile_steps,
                assess=assess,
                assess_steps=settings.snapshot_steps,
            ),
            jax.jit(functions.init)(jax.random.fold_in(key, 0)),
            {"action_low": jnp.asarray(low), "action_high": jnp.asarray(high)},
            workdir=workdir,
            log=log,
            writers=[],
            stop=stop,
        )
    finally:
        simulator.close()
        # Also of a training that was stopped: whoever has seen enough can take these.
        if scored := list(log.lines("sac", "assess")):
            policies = select(settings, workdir, scored)
            save_policies(policies, workdir / "policies.npz")
    return policies


class _Functions(NamedTuple):
    init: Callable[[jax.Array], Training]
    store: Callable[[Training, Transition], Training]
    learn: Callable[[Training, jax.Array], tuple[Training, learner.Metrics]]


def _bind(settings: Settings, state_size: int, action_size: int) -> _Functions:
    """The pure functions of the training, with their settings."""
    networks = sac.make_networks(settings.hidden, action_size)
    optimizers = {
        "actor_optimizer": learner.adam(
            settings.actor_learning_rate, schedule="constant", total_steps=0
        ),
        "critic_optimizer": learner.adam(
            settings.critic_learning_rate, schedule="constant", total_steps=0
        ),
    }
    num_updates = int(settings.steps_per_round * settings.updates_per_step)
    cycles = max(num_updates // settings.policy_delay, 1)

    def init(key):
        agent = sac.init(
            key, networks=networks, state_size=state_size, action_size=action_size, **optimizers
        )
        return Training(agent, rollout.empty_buffer(settings.steps, state_size, action_size))

    @functools.partial(jax.jit, donate_argnums=0)
    def store(training: Training, seen: Transition):
        buffer = rollout.add(training.buffer, seen, jnp.ones(len(seen.reward), bool))
        return training._replace(buffer=buffer)

    @functools.partial(jax.jit, donate_argnums=0)
    def learn(training: Training, key: jax.Array):
        def cycle(agent, index):
            key_draw, key_update = jax.random.split(jax.random.fold_in(key, index))
            shape = (settings.policy_delay, settings.batch_size)
            batches = rollout.draw_rows(key_draw, training.buffer, shape)
            return sac.update(
                agent,
                batches,
                key_update,
                networks=networks,
                discount=settings.discount,
                tau=settings.tau,
                **optimizers,
            )

        agent, metrics = jax.lax.scan(cycle, training.agent, jnp.arange(cycles))
        return training._replace(agent=agent), jax.tree.map(jnp.mean, metrics)

    return _Functions(init, store, learn)


class _Collector:
    """Steps the copies on the host; every copy goes from episode to episode."""

    def __init__(self, settings, simulator, sampler, low, high):
        self._settings, self._simulator, self._sampler = settings, simulator, sampler
        self._low, self._high = low, high
        self._observations: np.ndarray | None = None
        self._returns = np.zeros(settings.copies)
        self.finished: list[float] = []

    def round(self, actor, first_step: int, key: jax.Array) -> Transition:
        """The next transitions, [copies * round_steps, ...], actions in [-1, 1]."""
        settings, indices = self._settings, np.arange(self._settings.copies)
        if self._observations is None:
            self._observations = np.stack([self._reset(int(i), first_step) for i in indices])
        rows = []
        for t in range(settings.round_steps):
            step = first_step + t * settings.copies
            before = self._observations.astype(np.float32)
            actions = self._actions(actor, before, step, key)
            steps = self._simulator.step(indices, actions)
            after = steps.observations.astype(np.float32)
            scaled = 2 * (actions - self._low) / (self._high - self._low) - 1
            rows.append((before, scaled, steps.rewards, steps.terminated, after))
            self._observations = steps.observations.copy()
            self._returns += steps.rewards
            for i in np.flatnonzero(steps.terminated | steps.truncated):
                self.finished.append(self._returns[i])
                self._returns[i] = 0.0
                self._observations[i] = self._reset(int(i), step)
        columns = (np.concatenate(column) for column in zip(*rows, strict=True))
        return Transition(*(jnp.asarray(column, jnp.float32) for column in columns))

    def _reset(self, index: int, step: int) -> np.ndarray:
        return self._simulator.reset(index, _seed(self._settings.seed, step + index))

    def _actions(self, actor, observations, step: int, key: jax.Array) -> np.ndarray:
        if step < self._settings.start_steps:
            rng = np.random.default_rng((self._settings.seed, step))
            size = (len(observations), len(self._low))
            return rng.uniform(self._low, self._high, size).astype(np.float32)
        return np.asarray(self._sampler(actor, observations, jax.random.fold_in(key, step)))


class _Rounds:
    """A number of rounds as one program of `loop.Stage`: host steps, device updates."""

    def __init__(self, functions: _Functions, collector: _Collector, rounds, settings, key):
        self._functions, self._collector, self._rounds = functions, collector, rounds
        self._settings, self._key = settings, key

    def compile(self, state, first_step):
        del state, first_step  # compiled by its first call
        return self._run

    def _run(self, state: Training, first_step: jax.Array):
        settings, every = self._settings, []
        for i in range(self._rounds):
            step = int(first_step) + i * settings.steps_per_round
            key_act, key_learn = jax.random.split(jax.random.fold_in(self._key, step + 1))
            seen = self._collector.round(state.agent.actor, step, key_act)
            state = self._functions.store(state, seen)
            if step >= settings.start_steps:
                state, metrics = self._functions.learn(state, key_learn)
                every.append(metrics)
        means = jax.tree.map(lambda *x: jnp.stack(x).mean(), *every) if every else {}
        if self._collector.finished:
            means["episode_return"] = np.mean(self._collector.finished)
            self._collector.finished.clear()
        return state, means


def _score(actor, settings: Settings, sampler, step: int) -> np.ndarray:
    """Returns of whole episodes with sampled actions, as datasets are collected."""
    key, count = jax.random.key(step), iter(range(10**9))

    def policy(observations):  # [1, episodes, S]
        return sampler(actor, observations[0], jax.random.fold_in(key, next(count)))[None]

    return evaluate.run_episodes(
        policy,
        settings.environment,
        num_policies=1,
        num_episodes=settings.snapshot_episodes,
        seed=_seed(settings.seed, settings.steps + step),
    )


def _seed(seed: int, index: int) -> int:
    """A reset seed of the training `seed`; apart from those of evaluation and collection."""
    return int(np.random.SeedSequence((seed, index, 7)).generate_state(1)[0])


# --- snapshots and tiers ------------------------------------------------------------------

REPLAY_POLICIES = 8


def _snapshot_path(workdir: pathlib.Path, step: int) -> pathlib.Path:
    return workdir / "snapshots" / f"{step:09d}.npz"


def _save_snapshot(workdir: pathlib.Path, step: int, actor: learner.Params) -> None:
    policies = Policies("", {"actor": jax.device_get(actor)}, {})
    save_policies(policies, _snapshot_path(workdir, step))


def select(settings: Settings, workdir: pathlib.Path, scored: list[dict[str, Any]]) -> Policies:
    """D4RL's tiers from the scored snapshots of a training.

    expert: the best score (mean of a snapshot and its two neighbours, against luck).
    medium: the first that passes a third of the way from a random policy's return to an
    expert's: D4RL's references, or else this training's own.
    replay-i: evenly spaced snapshots up to medium, whose data together stand for the
    replay buffer that SAC had there.

    Args:
      settings: of the training.
      workdir: with its snapshots.
      scored: {"step", "return_mean", ...} of every snapshot, in order.
    """
    import gymnasium
    import mujoco

    returns = np.array([entry["return_mean"] for entry in scored])
    steps = [entry["step"] for entry in scored]
    padded = np.pad(returns, 1, mode="edge")
    expert = int(np.argmax((padded[:-2] + padded[1:-1] + padded[2:]) / 3))
    own = (float(returns[0]), float(returns[expert]))
    low, high = evaluate.reference_returns(settings.environment) or own
    third = min(low + (high - low) / 3, returns.max())
    medium = int(np.argmax(returns >= third))
    spaced = np.linspace(0, medium, min(REPLAY_POLICIES, medium + 1)).round().astype(int)
    chosen = {"medium": medium, "expert": expert}
    chosen |= {f"replay-{i}": int(index) for i, index in enumerate(spaced)}
    return Policies(
        settings.environment,
        {
            name: load_policies(_snapshot_path(workdir, steps[index])).actors["actor"]
            for name, index in chosen.items()
        },
        {
            "algorithm": "SAC",
            "settings": dataclasses.asdict(settings),
            "trained_steps": steps[-1],
            "policies": {
                name: {"step": steps[index], "return_mean": float(returns[index])}
                for name, index in chosen.items()
            },
            "versions": {"gymnasium": gymnasium.__version__, "mujoco": mujoco.__version__},
        },
    )
