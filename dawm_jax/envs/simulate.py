"""Many copies of a Gymnasium environment stepped together, and one-step replay.

MuJoCo's batch engine steps the tasks that register batch physics: bit for bit what Gymnasium
computes (tested), and several times faster. Gymnasium steps every other environment.
"""

import contextlib
import importlib.util
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from dawm_jax.envs import perturbed
from dawm_jax.envs.perturbed import Physics
from dawm_jax.envs.tasks import TASKS, BatchPhysics, find_task
from dawm_jax.runtime import provenance
from dawm_jax.types import UserError, first_line, one_line

_log = logging.getLogger(__name__)

# Environments that `replay` works for, for its error message.
_REPLAYED = ("Hopper-v5", "Walker2d-v5", "HalfCheetah-v5", "Ant-v5", "Humanoid-v5")
# With fewer copies per thread, threads wait for each other longer than they compute.
_COPIES_PER_THREAD = 8


class Steps(NamedTuple):
    """The result of one step of n copies; each copy has its position in its episode."""

    observations: np.ndarray  # [n, S] float64
    rewards: np.ndarray  # [n] float64
    terminated: np.ndarray  # [n] bool
    truncated: np.ndarray  # [n] bool
    # [n] bool, whether the environment calls the step a success; None: it does not say so of any.
    succeeded: np.ndarray | None = None


class Simulator(Protocol):
    """Copies of an environment; a copy is addressed by its index."""

    def reset(self, index: int, seed: int) -> np.ndarray:
        """Starts an episode in one copy and returns its first observation [S] float64."""

    def step(self, indices: np.ndarray, actions: np.ndarray) -> Steps:
        """Steps the copies `indices` [n] with actions [n, A] in environment units."""

    def close(self) -> None:
        """Releases the copies."""


# Gymnasium's environments and spaces are imported only where they are used: the import takes
# half a second, and a command's --help need not wait for it. They are `Any` here.
def make_environment(environment: str, kwargs: Mapping[str, Any] | None = None) -> Any:
    """A Gymnasium environment with flat Box observations and bounded flat Box actions.

    Dictionaries of Boxes become vectors by Gymnasium's `FlattenObservation`: the entries in the
    order of the sorted keys, as in Minari datasets, which store no order.

    Args:
      environment: Gymnasium id.
      kwargs: keyword arguments of `gym.make`; None: none.

    Raises:
      UserError: the environment is unknown, cannot be built, or has other spaces.
    """
    import gymnasium as gym

    try:
        with _warnings_of_models():
            env = gym.make(environment, **(kwargs or {}))
    except Exception as error:
        raise UserError(
            f"environment {environment!r} cannot be made ({first_line(error)}); "
            f"{_advice(environment, kwargs)}"
        ) from error
    if is_dictionary_of_boxes(env.observation_space):
        env.observation_space = _with_sorted_keys(env.observation_space)
        env = gym.wrappers.FlattenObservation(env)
    for kind, space in (("actions", env.action_space), ("observations", env.observation_space)):
        if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1:
            env.close()
            raise UserError(
                f"environment {environment}: expected a flat Box space of {kind}, got "
                f"{one_line(space)}; only continuous control from vectors is supported"
            )
    actions: Any = env.action_space
    if wrong := _wrong_actions(actions):
        env.close()
        raise UserError(f"environment {environment}: expected {wrong}")
    return env


def _advice(environment: str, kwargs: Mapping[str, Any] | None) -> str:
    """What to do about an environment that cannot be made."""
    task = find_task(environment)
    package, _, _ = (task.environment if task else environment).rpartition(":")
    if package and package != environment.rpartition(":")[0]:
        return f"name it {package}:{environment}"
    if package and importlib.util.find_spec(package.partition(".")[0]) is None:
        extra = ", with the extra robotics of dawm_jax" if task else ""
        return f"install the package {package}{extra}"
    given = f", config.environment_kwargs ({', '.join(kwargs)})" if kwargs else ""
    return f"check its name{given} and that gymnasium[mujoco] is installed"


def is_dictionary_of_boxes(space: Any) -> bool:
    """Whether a space of observations is a dictionary, perhaps nested, of Boxes."""
    import gymnasium as gym

    if not isinstance(space, gym.spaces.Dict) or not space.spaces:
        return False
    parts = space.spaces.values()
    return all(isinstance(part, gym.spaces.Box) or is_dictionary_of_boxes(part) for part in parts)


def _with_sorted_keys(space: Any) -> Any:
    """A dictionary of Boxes with the keys of every level sorted; other spaces as they are."""
    import gymnasium as gym

    if not isinstance(space, gym.spaces.Dict):
        return space
    parts = {key: _with_sorted_keys(space.spaces[key]) for key in sorted(space.spaces)}
    return gym.spaces.Dict(parts)


# MuJoCo warns of it for each copy of Gymnasium's HalfCheetah, on the terminal and in a file
# MUJOCO_LOG.TXT. The user cannot change the model.
_KNOWN_WARNING = "'settotalmass' is deprecated"


@contextlib.contextmanager
def _warnings_of_models() -> Iterator[None]:
    """Logs what MuJoCo warns of while it compiles a model, without `_KNOWN_WARNING`."""
    import mujoco

    def warn(text: str) -> None:
        if _KNOWN_WARNING not in text:
            _log.warning("MuJoCo: %s", text)

    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(warn)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(before)


def _wrong_actions(space: Any) -> str:
    """What was expected of a flat Box of actions and is not so; "" if all is well."""
    if not np.issubdtype(space.dtype, np.floating):
        return f"continuous actions of floats, got {space.dtype}; discrete ones are not supported"
    if not np.isfinite([space.low, space.high]).all():
        return f"bounded actions, got {one_line(space)}; give its actions finite bounds"
    if not (space.low < space.high).all():
        return f"actions whose low bound is below the high one, got {one_line(space)}"
    return ""


def make_simulator(
    environment: str,
    num: int,
    *,
    threads: int = 0,
    kwargs: Mapping[str, Any] | None = None,
    physics: Sequence[Physics] | None = None,
) -> Simulator:
    """The fastest simulator of `num` copies that equals Gymnasium bit for bit.

    Args:
      environment: Gymnasium id.
      num: number of copies.
      threads: of MuJoCo's batch engine; 0 takes one thread for every eight copies, at most the
        number of cores that this process may use. The results do not depend on it.
      kwargs: see `make_environment`; with any, Gymnasium steps the copies.
      physics: of each copy, [num]; None: unchanged in all.

    Raises:
      UserError: the environment cannot be made, is not continuous control, or has no MuJoCo model
        that physics can be changed in.
    """
    physics = (perturbed.UNCHANGED,) * num if physics is None else physics
    rules = _batch_physics(environment)
    if rules is not None and not kwargs:
        try:
            from mujoco import batch  # since MuJoCo 3.17
        except ImportError:
            pass
        else:
            threads = threads or min(provenance.num_cores(), -(-num // _COPIES_PER_THREAD))
            return _BatchSimulator(environment, rules, physics, batch.Batch, threads)
    return _GymnasiumSimulator(environment, physics, kwargs)


def _batch_physics(environment: str) -> BatchPhysics | None:
    """The batch physics of exactly this Gymnasium id: other versions have other rewards."""
    return next((task.batch_physics for task in TASKS if task.environment == environment), None)


def _make_changed(
    environment: str, physics: Physics, kwargs: Mapping[str, Any] | None = None
) -> Any:
    """`make_environment` with changed physics."""
    env = make_environment(environment, kwargs)
    try:
        perturbed.change_environment(env, physics, environment)
    except UserError:
        env.close()
        raise
    return env


class _GymnasiumSimulator:
    """One Gymnasium environment per copy."""

    def __init__(
        self, environment: str, physics: Sequence[Physics], kwargs: Mapping[str, Any] | None
    ):
        self._environments = [_make_changed(environment, own, kwargs) for own in physics]

    def reset(self, index: int, seed: int) -> np.ndarray:
        return np.asarray(self._environments[index].reset(seed=seed)[0], np.float64)

    def step(self, indices: np.ndarray, actions: np.ndarray) -> Steps:
        results = [
            self._environments[index].step(action)
            for index, action in zip(indices, actions, strict=True)
        ]
        observations, rewards, terminated, truncated, infos = zip(*results, strict=True)
        return Steps(
            np.asarray(observations, np.float64),
            np.asarray(rewards, np.float64),
            np.asarray(terminated, bool),
            np.asarray(truncated, bool),
            _successes(infos),
        )

    def close(self) -> None:
        for env in self._environments:
            env.close()


def _successes(infos: Sequence[Mapping[str, Any]]) -> np.ndarray | None:
    """Which steps their environments call a success, [n] bool; None: no environment says.

    Robotics environments have an entry "success" or "is_success" in the information of a step,
    some of them in an episode's last step alone.
    """
    for key in ("success", "is_success"):
        if any(key in info for info in infos):
            return np.array([bool(np.all(info.get(key, False))) for info in infos])
    return None


class _BatchSimulator:
    """One MuJoCo batch for the steps; one Gymnasium environment of each physics resets its copies.

    The initial state depends on the physics: it holds the accelerations of the first step.

    Gymnasium computes observation, reward and termination in Python, one environment at a time.
    `step` does the same floating-point operations in the same order, for all copies at once.
    """

    def __init__(
        self,
        environment: str,
        rules: BatchPhysics,
        physics: Sequence[Physics],
        make_batch: Any,
        threads: int,
    ):
        self._rules, num = rules, len(physics)
        self._envs = {own: _make_changed(environment, own) for own in dict.fromkeys(physics)}
        self._physics = physics
        self._env = self._envs[physics[0]]
        self._unwrapped = self._env.unwrapped
        self._batch = make_batch(self._unwrapped.model, nsim=num, nthread=threads)
        if len(self._envs) > 1:
            self._batch.set_models([self._envs[own].unwrapped.model for own in physics])
        self._qpos, self._qvel = self._batch.bind("qpos"), self._batch.bind("qvel")
        self._ctrl = self._batch.bind("ctrl")
        self._elapsed = np.zeros(num, int)
        self._limit = self._env.spec.max_episode_steps

    def reset(self, index: int, seed: int) -> np.ndarray:
        import mujoco

        env = self._envs[self._physics[index]]
        observation, _ = env.reset(seed=seed)
        # The whole integration state: the solver's warm start is part of the trajectory.
        mujoco.mj_getState(
            env.unwrapped.model,
            env.unwrapped.data,
            self._batch.state[index],
            mujoco.mjtState.mjSTATE_INTEGRATION,
        )
        self._elapsed[index] = 0
        return observation

    def step(self, indices: np.ndarray, actions: np.ndarray) -> Steps:
        rules, ids = self._rules, np.asarray(indices, np.int32)
        x_before = self._qpos[ids, 0]
        self._ctrl[ids] = actions
        self._batch.step(ids=ids, nstep=self._unwrapped.frame_skip)
        self._elapsed[ids] += 1
        qpos, qvel = self._qpos[ids], self._qvel[ids]
        rewards = (qpos[:, 0] - x_before) / self._unwrapped.dt
        terminated = np.zeros(len(ids), bool)
        if rules.healthy is not None:
            terminated = ~rules.healthy(qpos, qvel)
            rewards = rewards + 1.0 * ~terminated
        rewards = rewards - rules.control_cost * np.sum(np.square(actions), axis=1)
        velocity = np.clip(qvel, -rules.velocity_limit, rules.velocity_limit)
        observations = np.concatenate([qpos[:, 1:], velocity], axis=1)
        return Steps(observations, rewards, terminated, self._elapsed[ids] >= self._limit)

    def close(self) -> None:
        for env in self._envs.values():
            env.close()


# --- one-step replay ----------------------------------------------------------------------


class StateColumns(NamedTuple):
    """Where an observation holds the state of the simulator: first positions, then velocities."""

    skipped: int  # first positions, which are not observed: where the body is in the plane
    positions: int  # observed positions
    velocities: int

    @property
    def size(self) -> int:
        """Columns of the state; those after them follow from the state and the last action."""
        return self.positions + self.velocities


def state_columns(env: Any) -> StateColumns | None:
    """Where observations of an environment hold the state of MuJoCo; None where they do not."""
    model = getattr(env.unwrapped, "model", None)
    layout = getattr(env.unwrapped, "observation_structure", {})
    columns = StateColumns(*(layout.get(name, 0) for name in ("skipped_qpos", "qpos", "qvel")))
    complete = model is not None and (
        columns.positions > 0
        and columns.skipped + columns.positions == model.nq
        and columns.velocities == model.nv
    )
    return columns if complete else None


def replay(
    environment: str,
    observations: np.ndarray,
    actions: np.ndarray,
    *,
    margin_scale: float = 1.0,
    kwargs: Mapping[str, Any] | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One simulator step from each observation, independent of all others.

    The state is rebuilt from the observation's positions and velocities, with four losses: the
    horizontal position is 0 (nothing depends on it), velocities beyond the observation's clipping
    are unknown, the contact solver starts cold, and where the body was one substep before the
    observation is unknown. Ant and Humanoid reward the distance that the body moves from there, the
    replay the distance from the observation. Errors measured against the replay contain these
    losses. Columns after the velocities, such as contact forces, follow from the state and are not
    used.

    Args:
      environment: a Gymnasium id of MuJoCo whose observation begins with all positions but the
        horizontal ones and all velocities, such as Hopper, Walker2d, HalfCheetah, Ant, Humanoid.
      observations: [N, S].
      actions: [N, A] in environment units.
      margin_scale: factor of the contact margins. MuJoCo 3.5 and later add the margins of two
        geoms, earlier versions take the larger one: 0.5 gives Hopper the earlier contacts.
      kwargs: see `make_environment`.

    Returns:
      Next observations [N, S] float64, rewards [N] float64, terminated [N] bool.

    Raises:
      UserError: the environment's observation does not determine its state.
    """
    env = make_environment(environment, kwargs)
    try:
        simulator: Any = env.unwrapped
        columns = _replayed_columns(environment, env, observations)
        simulator.model.geom_margin[:] *= margin_scale
        results = [
            _replay_one(simulator, columns, observation, action)
            for observation, action in zip(observations, actions, strict=True)
        ]
    finally:
        env.close()
    next_observations, rewards, terminated = zip(*results, strict=True)
    return np.asarray(next_observations), np.asarray(rewards), np.asarray(terminated, bool)


def _replayed_columns(environment: str, env: Any, observations: np.ndarray) -> StateColumns:
    """Where observations [N, S] of the environment hold its state.

    Raises:
      UserError: they do not hold it, or have another size than the environment's.
    """
    columns = state_columns(env)
    if columns is None:
        raise UserError(
            f"environment {environment}: its state cannot be rebuilt from an observation; replay "
            "works for MuJoCo environments that observe all velocities and all positions but the "
            "horizontal ones, such as " + ", ".join(_REPLAYED)
        )
    if observations.shape[1:] != env.observation_space.shape:
        raise UserError(
            f"{environment} has {env.observation_space.shape[0]} observation dimensions, the "
            f"data {observations.shape[1]}; name the environment that the data is from"
        )
    return columns


def _replay_one(
    simulator: Any, columns: StateColumns, observation: np.ndarray, action: np.ndarray
) -> tuple[np.ndarray, float, bool]:
    import mujoco

    mujoco.mj_resetData(simulator.model, simulator.data)
    state = np.asarray(observation[: columns.size], np.float64)
    positions, velocities = np.split(state, [columns.positions])
    simulator.set_state(np.concatenate([np.zeros(columns.skipped), positions]), velocities)
    next_observation, reward, terminated = simulator.step(action)[:3]
    return next_observation, reward, terminated
