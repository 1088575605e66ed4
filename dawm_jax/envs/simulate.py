"""Many copies of a Gymnasium environment, stepped together, and one-step replay.

MuJoCo's batch engine steps Hopper, Walker2d and HalfCheetah: bit for bit what Gymnasium
computes (tested), several times faster. Every other environment is stepped by Gymnasium.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np

from dawm_jax.runtime import parallel
from dawm_jax.types import UserError, first_line, one_line

_COPIES_PER_THREAD = 8


class Steps(NamedTuple):
    """What one step of n copies returned, each at its own time."""

    observations: np.ndarray  # [n, S] float64
    rewards: np.ndarray  # [n] float64
    terminated: np.ndarray  # [n] bool
    truncated: np.ndarray  # [n] bool


class Simulator(Protocol):
    """Copies of an environment; a copy is addressed by its index."""

    def reset(self, index: int, seed: int) -> np.ndarray:
        """Starts an episode in one copy; its first observation [S]."""

    def step(self, indices: np.ndarray, actions: np.ndarray) -> Steps:
        """Steps the copies `indices` with actions [n, A] in environment units."""

    def close(self) -> None:
        """Releases the copies."""


def make_environment(environment: str) -> Any:
    """A Gymnasium environment with flat Box observations and bounded Box actions.

    Raises:
      UserError: it is unknown, cannot be built, or has other spaces.
    """
    import gymnasium as gym

    try:
        env = gym.make(environment)
    except Exception as error:
        raise UserError(
            f"environment {environment!r} cannot be made ({first_line(error)}); "
            "check its name and that gymnasium[mujoco] is installed"
        ) from error
    for kind, space in (("actions", env.action_space), ("observations", env.observation_space)):
        if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1:
            env.close()
            raise UserError(
                f"environment {environment}: expected a flat Box space of {kind}, got "
                f"{one_line(space)}; only continuous control from vectors is supported"
            )
    actions: Any = env.action_space
    if not np.isfinite([actions.low, actions.high]).all():
        env.close()
        raise UserError(f"environment {environment}: expected bounded actions")
    return env


def make_simulator(environment: str, num: int, *, threads: int = 0) -> Simulator:
    """The fastest simulator of `num` copies that equals Gymnasium's bit for bit.

    Args:
      environment: Gymnasium id.
      num: copies.
      threads: of MuJoCo's batch engine; 0 uses the cores that this process may use, one for
        every eight copies: fewer wait for each other longer than they compute. The results
        are the same.

    Raises:
      UserError: the environment cannot be made or is not continuous control.
    """
    if environment in _TASKS:
        try:
            from mujoco import batch  # since MuJoCo 3.17
        except ImportError:
            pass
        else:
            threads = threads or min(parallel.num_cores(), -(-num // _COPIES_PER_THREAD))
            return _BatchSimulator(environment, num, batch.Batch, threads)
    return _GymnasiumSimulator(environment, num)


class _GymnasiumSimulator:
    """One Gymnasium environment a copy."""

    def __init__(self, environment: str, num: int):
        self._environments = [make_environment(environment) for _ in range(num)]

    def reset(self, index: int, seed: int) -> np.ndarray:
        return np.asarray(self._environments[index].reset(seed=seed)[0], np.float64)

    def step(self, indices: np.ndarray, actions: np.ndarray) -> Steps:
        results = [
            self._environments[index].step(action)[:4]
            for index, action in zip(indices, actions, strict=True)
        ]
        observations, rewards, terminated, truncated = zip(*results, strict=True)
        return Steps(
            np.asarray(observations, np.float64),
            np.asarray(rewards, np.float64),
            np.asarray(terminated, bool),
            np.asarray(truncated, bool),
        )

    def close(self) -> None:
        for env in self._environments:
            env.close()


# --- MuJoCo's batch engine ----------------------------------------------------------------


class _Task(NamedTuple):
    """Observation, reward and end of a Gymnasium v5 locomotion task, vectorised.

    Gymnasium computes them in Python, one environment at a time; the order of the
    floating-point operations here is the same.
    """

    velocity_limit: float  # observed velocities are clipped to it
    control_cost: float
    healthy: Callable[[np.ndarray, np.ndarray], np.ndarray] | None  # (qpos, qvel) -> [n]


def _hopper_healthy(qpos: np.ndarray, qvel: np.ndarray) -> np.ndarray:
    state = np.concatenate([qpos[:, 2:], qvel], axis=1)
    bounded = ((-100.0 < state) & (state < 100.0)).all(1)
    return bounded & (qpos[:, 1] > 0.7) & (-0.2 < qpos[:, 2]) & (qpos[:, 2] < 0.2)


def _walker2d_healthy(qpos: np.ndarray, qvel: np.ndarray) -> np.ndarray:
    height, angle = qpos[:, 1], qpos[:, 2]
    return (0.8 < height) & (height < 2.0) & (-1.0 < angle) & (angle < 1.0)


_TASKS = {
    "Hopper-v5": _Task(10.0, 1e-3, _hopper_healthy),
    "Walker2d-v5": _Task(10.0, 1e-3, _walker2d_healthy),
    "HalfCheetah-v5": _Task(np.inf, 0.1, None),
}


class _BatchSimulator:
    """One MuJoCo batch; one Gymnasium environment makes the initial states."""

    def __init__(self, environment: str, num: int, make_batch: Callable[..., Any], threads: int):
        self._task = _TASKS[environment]
        self._env = make_environment(environment)
        self._unwrapped = self._env.unwrapped
        self._batch = make_batch(self._unwrapped.model, nsim=num, nthread=threads)
        self._qpos, self._qvel = self._batch.bind("qpos"), self._batch.bind("qvel")
        self._ctrl = self._batch.bind("ctrl")
        self._elapsed = np.zeros(num, int)
        self._limit = self._env.spec.max_episode_steps

    def reset(self, index: int, seed: int) -> np.ndarray:
        import mujoco

        observation, _ = self._env.reset(seed=seed)
        # The whole integration state: the solver's warm start is part of the trajectory.
        mujoco.mj_getState(
            self._unwrapped.model,
            self._unwrapped.data,
            self._batch.state[index],
            mujoco.mjtState.mjSTATE_INTEGRATION,
        )
        self._elapsed[index] = 0
        return observation

    def step(self, indices: np.ndarray, actions: np.ndarray) -> Steps:
        task, ids = self._task, np.asarray(indices, np.int32)
        before = self._qpos[ids, 0]
        self._ctrl[ids] = actions
        self._batch.step(ids=ids, nstep=self._unwrapped.frame_skip)
        self._elapsed[ids] += 1
        qpos, qvel = self._qpos[ids], self._qvel[ids]
        rewards = (qpos[:, 0] - before) / self._unwrapped.dt
        terminated = np.zeros(len(ids), bool)
        if task.healthy is not None:
            terminated = ~task.healthy(qpos, qvel)
            rewards = rewards + 1.0 * ~terminated
        rewards = rewards - task.control_cost * np.sum(np.square(actions), axis=1)
        velocity = np.clip(qvel, -task.velocity_limit, task.velocity_limit)
        observations = np.concatenate([qpos[:, 1:], velocity], axis=1)
        return Steps(observations, rewards, terminated, self._elapsed[ids] >= self._limit)

    def close(self) -> None:
        self._env.close()


# --- one-step replay ----------------------------------------------------------------------


def replay(
    environment: str,
    observations: np.ndarray,
    actions: np.ndarray,
    *,
    margin_scale: float = 1.0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One simulator step from each observation, alone.

    The state is rebuilt from the observation: the horizontal position, which nothing
    depends on, is 0, velocities beyond the observation's clipping are lost, and the
    contact solver starts cold. Errors measured against it have these as their floor.

    Args:
      environment: a Gymnasium id whose observation is qpos[1:], qvel.
      observations: [N, S].
      actions: [N, A] in environment units.
      margin_scale: factor on the contact margins; 0.5 gives Hopper the contacts it had
        before MuJoCo 3.5, which adds the margins of two geoms where it took the larger.

    Returns:
      Next observations [N, S] float64, rewards [N] float64, terminated [N] bool.

    Raises:
      UserError: the environment's observation does not determine its state.
    """
    env = make_environment(environment)
    try:
        simulator: Any = env.unwrapped
        model = getattr(simulator, "model", None)
        layout = getattr(simulator, "observation_structure", {})
        if model is None or layout.get("skipped_qpos") != 1 or len(layout) != 3:
            raise UserError(
                f"environment {environment}: its state cannot be rebuilt from an observation; "
                "replay works for " + ", ".join(_TASKS)
            )
        if observations.shape[1:] != env.observation_space.shape:
            raise UserError(
                f"{environment} has {env.observation_space.shape[0]} observation dimensions, the "
                f"data {observations.shape[1]}; name the environment that the data is from"
            )
        model.geom_margin[:] *= margin_scale
        results = [
            _replay_one(simulator, observation, action)
            for observation, action in zip(observations, actions, strict=True)
        ]
    finally:
        env.close()
    following, rewards, terminated = zip(*results, strict=True)
    return np.asarray(following), np.asarray(rewards), np.asarray(terminated, bool)


def _replay_one(simulator: Any, observation: np.ndarray, action: np.ndarray):
    import mujoco

    qpos_size = simulator.model.nq - 1
    mujoco.mj_resetData(simulator.model, simulator.data)
    qpos = np.concatenate([[0.0], observation[:qpos_size]])
    simulator.set_state(qpos, np.asarray(observation[qpos_size:], np.float64))
    return simulator.step(action)[:3]
