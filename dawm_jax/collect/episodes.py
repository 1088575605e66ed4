"""Whole episodes of one behaviour policy."""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from dawm_jax.collect.policies import make_sampler
from dawm_jax.data.minari_writer import Episode
from dawm_jax.envs import guard, simulate
from dawm_jax.envs.guard import GuardedSimulator
from dawm_jax.envs.perturbed import UNCHANGED, Physics
from dawm_jax.runtime.stopping import StopFlag
from dawm_jax.types import Params

_MAX_COPIES = 32
# Every copy finishes its last episode. With fewer steps per copy these last steps would add much
# to the data.
STEPS_PER_COPY = 10_000


class _ActFn(Protocol):
    def __call__(self, observations: np.ndarray, step: int, /) -> np.ndarray:
        """[n, S] float32, time step -> actions [n, A] float32 in environment units."""


class Step(NamedTuple):
    """One step of an episode."""

    action: np.ndarray  # [A]
    reward: float
    terminated: bool
    truncated: bool


def episodes(
    environment: str,
    actor: Params | None,
    *,
    steps: int,
    seed: int,
    threads: int = 0,
    max_steps: int = 0,
    physics: Physics = UNCHANGED,
    stop: StopFlag | None = None,
) -> Iterator[Episode]:
    """Whole episodes of one policy, in total at least `steps` steps.

    Several copies of the environment are stepped together. Each copy makes episodes until it has
    made its share of the steps, and finishes its last episode. No episode is cut or
    dropped.

    Args:
      environment: Gymnasium id.
      actor: parameters of a SAC policy, whose actions are sampled; None acts uniformly at
        random.
      steps: lower bound of the total number of steps.
      seed: of resets and actions; the same seed gives the same episodes in the same order.
      threads: of the simulator, see `simulate.make_simulator`; changes the speed only.
      max_steps: time limit of an episode; 0: the environment's.
      physics: of the simulator.
      stop: looked at before every step.

    Yields:
      Episodes in the order in which they end, as Gymnasium returns them: observations and rewards
      are float64, actions float32.

    Raises:
      UserError: the environment cannot be made, is not continuous control, has no time limit
        where `max_steps` is 0, has no model of the physics, raises an exception, or returns
        numbers that are not finite.
      Interrupted: `stop` was set.
    """
    stop, kwargs = stop or StopFlag(), limit_kwargs(max_steps)
    guard.episode_limit(environment, kwargs, setting="--max_steps")
    copies = int(np.clip(steps // STEPS_PER_COPY, 1, _MAX_COPIES))
    env = simulate.make_environment(environment, kwargs)
    act = _make_act(env.action_space, actor, seed)
    env.close()
    quota = -(-steps // copies)
    simulator = GuardedSimulator(
        simulate.make_simulator(
            environment, copies, threads=threads, kwargs=kwargs, physics=[physics] * copies
        ),
        environment,
    )
    num_resets, made = 0, np.zeros(copies, int)

    def reset(index: int) -> list[np.ndarray]:
        nonlocal num_resets
        num_resets += 1
        return [simulator.reset(index, reset_seed(seed, num_resets))]

    try:
        observations = [reset(i) for i in range(copies)]
        rows: list[list[Step]] = [[] for _ in range(copies)]
        active, step = np.arange(copies), 0
        while len(active):
            stop.check(f"an episode in {environment}")
            current = np.stack([observations[i][-1] for i in active]).astype(np.float32)
            actions = act(_padded(current, copies), step)[: len(active)]
            result, step = simulator.step(active, actions), step + 1
            made[active] += 1
            done = []
            for row, i in enumerate(active):
                observations[i].append(result.observations[row])
                ends = result.terminated[row], result.truncated[row]
                rows[i].append(Step(actions[row], result.rewards[row], *ends))
                if any(ends):
                    yield joined(observations[i], rows[i])
                    rows[i] = []
                    if made[i] >= quota:
                        done.append(i)
                    else:
                        observations[i] = reset(int(i))
            active = np.setdiff1d(active, done)
    finally:
        simulator.close()


def limit_kwargs(max_steps: int) -> dict[str, Any] | None:
    """Keyword arguments of `gym.make` that limit an episode; None for 0, the own limit."""
    return {"max_episode_steps": max_steps} if max_steps else None


def _make_act(space: Any, actor: Params | None, seed: int) -> _ActFn:
    """Actions in the Box `space`, of a policy or uniformly random."""
    if actor is None:

        def uniform(observations: np.ndarray, step: int, /) -> np.ndarray:
            rng = np.random.default_rng((seed, step))
            size = (len(observations), *space.shape)
            return rng.uniform(space.low, space.high, size).astype(np.float32)

        return uniform
    sampler, key = make_sampler(space), jax.random.key(seed)
    return lambda observations, step: np.asarray(
        sampler(actor, observations, jax.random.fold_in(key, step))
    )


def _padded(rows: np.ndarray, size: int) -> np.ndarray:
    """`rows` with zero rows up to `size`, so that the policy is compiled for one shape."""
    return np.pad(rows, ((0, size - len(rows)), (0, 0)))


def joined(observations: list[np.ndarray], steps: list[Step]) -> Episode:
    """The episode of T steps and T + 1 observations."""
    actions, rewards, terminated, truncated = (np.array(x) for x in zip(*steps, strict=True))
    # Gymnasium may report both at once; such an end is a termination.
    return Episode(np.array(observations), actions, rewards, terminated, truncated & ~terminated)


def reset_seed(seed: int, index: int) -> int:
    """Seed of the reset number `index` of a collection with the seed `seed`."""
    return int(np.random.SeedSequence((seed, index, 11)).generate_state(1)[0])
