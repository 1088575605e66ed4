"""Copies of an environment that go on from episode to episode, and can be stopped and resumed.

A deterministic environment is where its reset and its actions have led: the seed of an episode's
reset and the actions since then are its state, whatever the simulator keeps inside.
"""

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from dawm_jax.envs.guard import GuardedSimulator, episode_limit
from dawm_jax.envs.simulate import make_environment, make_simulator

_log = logging.getLogger(__name__)

# Steps of random actions after which two copies of a repeatable environment must agree.
_PROBE_STEPS = 5
# Tells the seeds of these resets from those of evaluations, whose entropy has four words.
_STREAM = 0x0A11


class Episodes(NamedTuple):
    """Where n copies are: the open episode of each."""

    episode: np.ndarray  # [n] int32, number of the open episode
    elapsed: np.ndarray  # [n] int32, its steps so far
    actions: np.ndarray  # [n, limit, A] float32, its actions; those not taken yet are 0
    observation: np.ndarray  # [n, S] float32, the newest one


class Lived(NamedTuple):
    """One time step of n copies in raw units."""

    next_observation: np.ndarray  # [n, S] float32, before the reset where an episode ended
    reward: np.ndarray  # [n] float64
    terminated: np.ndarray  # [n] bool
    ended: np.ndarray  # [n] bool, terminated or cut by the time limit
    returns: np.ndarray  # undiscounted returns of the episodes that ended, of any length


class Copies:
    """n copies of an environment; a copy whose episode ends is reset at once.

    The reset of episode e of copy i has a seed that depends on (seed, i, e) alone.

    Args:
      environment: Gymnasium id.
      num: number of copies.
      seed: of all resets.
      kwargs: keyword arguments of `gym.make`; None: none.
      max_steps: episodes are cut after so many steps; 0: the environment's limit alone.

    Attributes:
      limit: largest number of steps of an episode.

    Raises:
      UserError: see `episode_limit` and `GuardedSimulator`, also in every method.
    """

    def __init__(
        self,
        environment: str,
        num: int,
        *,
        seed: int,
        kwargs: Mapping[str, Any] | None = None,
        max_steps: int = 0,
    ):
        self.limit = episode_limit(environment, kwargs, max_steps=max_steps)
        self._seed, self._num, self._environment = seed, num, environment
        simulator = make_simulator(environment, num, kwargs=kwargs)
        self._simulator = GuardedSimulator(simulator, environment)
        self._returns = np.zeros(num)
        self._state: Episodes | None = None

    def begin(self, action_size: int) -> Episodes:
        """The first episode of every copy; `action_size` is A."""
        observation = np.stack([self._reset(copy, 0) for copy in range(self._num)])
        self._returns[:] = 0.0
        self._state = Episodes(
            episode=np.zeros(self._num, np.int32),
            elapsed=np.zeros(self._num, np.int32),
            actions=np.zeros((self._num, self.limit, action_size), np.float32),
            observation=observation,
        )
        return self.state

    @property
    def state(self) -> Episodes:
        """A copy of where the copies are."""
        assert self._state is not None
        return Episodes(*(array.copy() for array in self._state))

    @property
    def observation(self) -> np.ndarray:
        """The newest observations, [n, S] float32."""
        assert self._state is not None
        return self._state.observation

    def resume(self, state: Episodes) -> None:
        """Brings the copies to where `state` is, by repeating the actions of open episodes.

        A copy that cannot be brought there, since its environment is not deterministic, begins a
        new episode, and a line of the log says so.
        """
        kept = Episodes(*(np.array(array) for array in state))
        reached = np.stack(
            [self._reset(copy, int(kept.episode[copy])) for copy in range(self._num)]
        )
        self._returns[:] = 0.0
        for step in range(int(kept.elapsed.max(initial=0))):
            copies = np.flatnonzero(kept.elapsed > step)
            steps = self._simulator.step(copies, kept.actions[copies, step])
            reached[copies] = steps.observations
            self._returns[copies] += steps.rewards
        lost = np.flatnonzero((reached != kept.observation).any(axis=1))
        if len(lost):
            _log.warning(
                "environment %s: %d of %d copies cannot be resumed, as the same reset and actions "
                "led to other states; their episodes begin anew",
                self._environment,
                len(lost),
                self._num,
            )
        self._state = kept
        for copy in lost:
            self._next_episode(int(copy))

    def step(self, actions: np.ndarray) -> Lived:
        """Steps all copies with actions [n, A] in environment units."""
        state = self._state
        assert state is not None
        everyone = np.arange(self._num)
        state.actions[everyone, state.elapsed] = actions
        state.elapsed[:] += 1
        steps = self._simulator.step(everyone, state.actions[everyone, state.elapsed - 1])
        self._returns += steps.rewards
        next_observation = steps.observations.astype(np.float32)
        state.observation[:] = next_observation
        ended = steps.terminated | steps.truncated | (state.elapsed >= self.limit)
        returns = self._returns[ended]
        for copy in np.flatnonzero(ended):
            self._next_episode(int(copy))
        return Lived(next_observation, steps.rewards, steps.terminated, ended, returns)

    def close(self) -> None:
        """Releases the copies."""
        self._simulator.close()

    def _next_episode(self, copy: int) -> None:
        assert self._state is not None
        self._state.episode[copy] += 1
        self._state.elapsed[copy] = 0
        self._state.actions[copy] = 0.0
        self._returns[copy] = 0.0
        self._state.observation[copy] = self._reset(copy, int(self._state.episode[copy]))

    def _reset(self, copy: int, episode: int) -> np.ndarray:
        seed = reset_seed(self._seed, copy, episode)
        return self._simulator.reset(copy, seed).astype(np.float32)


def reset_seed(seed: int, copy: int, episode: int) -> int:
    """Seed of the reset of one episode of one copy, from 0 to 2**32 - 1."""
    words = np.random.SeedSequence((_STREAM, seed, copy, episode, 0)).generate_state(1)
    return int(words[0])


def is_repeatable(environment: str, kwargs: Mapping[str, Any] | None = None) -> bool:
    """Whether two copies with the same reset and the same few actions agree bit for bit.

    Args:
      environment: Gymnasium id.
      kwargs: keyword arguments of `gym.make`; None: none.

    Raises:
      UserError: the environment cannot be made, or does something wrong.
    """
    env = make_environment(environment, kwargs)
    low, high = env.action_space.low, env.action_space.high
    env.close()
    simulator = GuardedSimulator(make_simulator(environment, 2, kwargs=kwargs), environment)
    try:
        seed, rng = reset_seed(0, 0, 0), np.random.default_rng(0)
        first, second = (simulator.reset(copy, seed) for copy in range(2))
        if not np.array_equal(first, second):
            return False
        for _ in range(_PROBE_STEPS):
            action = rng.uniform(low, high).astype(low.dtype)
            steps = simulator.step(np.arange(2), np.stack([action, action]))
            if not (
                np.array_equal(steps.observations[0], steps.observations[1])
                and steps.rewards[0] == steps.rewards[1]
            ):
                return False
            if (steps.terminated | steps.truncated).any():
                break
    finally:
        simulator.close()
    return True
