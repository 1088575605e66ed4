"""A configuration file that adds one plug-in of every kind, for plugins_test.

The agent answers the mean action, the denoiser is one linear layer, the method replays real
steps as windows, the source makes random episodes, and the task is a point that an action moves.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from dawm_jax.agents.base import AGENTS, AgentSpec, AgentTask
from dawm_jax.config import schema
from dawm_jax.config.schema import SECTIONS, Config, SectionSpec
from dawm_jax.data.dataset import OfflineDataset
from dawm_jax.data.sources import SOURCES
from dawm_jax.envs.tasks import TASKS, References, Task
from dawm_jax.methods.base import METHODS, Generated, MethodSpec
from dawm_jax.methods.dawm import Dawm
from dawm_jax.methods.dawm import make as make_dawm
from dawm_jax.models.base import DENOISERS, DenoiserCondition, DenoiserSpec, TokenShape, Trainable
from dawm_jax.runtime.settings import setting
from dawm_jax.types import (
    Condition,
    Metrics,
    ModelParams,
    Normalizer,
    Params,
    Rows,
    Transition,
)

# --- an agent: the mean action of the minibatches -----------------------------------------


@dataclasses.dataclass(frozen=True)
class MeanSettings:
    """Section `toy_mean`."""

    rate: float = setting(0.1, "of the moving average of actions", above=0.0, at_most=1.0)


@dataclasses.dataclass(frozen=True)
class MeanAgent:
    """Answers the moving average of the actions it has seen."""

    settings: MeanSettings
    task: AgentTask
    batches_per_update: int = 1
    reward_scale: float = 1.0

    def init(self, key: jax.Array) -> jax.Array:
        del key
        return jnp.zeros(self.task.action_size)

    def update(self, state: jax.Array, batches: Rows, key: jax.Array) -> tuple[jax.Array, Metrics]:
        del key
        mean = batches.action.mean((0, 1))
        state = state + self.settings.rate * (mean - state)
        return state, {"distance": jnp.abs(mean - state).mean()}

    def act(self, state: jax.Array, observation: jax.Array) -> jax.Array:
        return jnp.broadcast_to(state, (*observation.shape[:-1], len(state)))


AGENTS.register(
    AgentSpec(
        name="toy_mean",
        label="Mean action",
        settings=MeanSettings,
        make=MeanAgent,
        learns_from=(Transition,),
        batches_per_update=lambda settings: 1,
        curve="distance",
    )
)

# --- a denoiser: one linear layer ---------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class LinearSettings:
    """Section `toy_linear`."""

    scale: float = setting(0.01, "of the initial weights", above=0.0)


@dataclasses.dataclass(frozen=True)
class LinearDenoiser:
    """A linear map of each token."""

    settings: LinearSettings
    shape: TokenShape

    def init(self, key: jax.Array) -> Params:
        size = (self.shape.inputs, self.shape.channels)
        return {"kernel": self.settings.scale * jax.random.normal(key, size)}

    def __call__(
        self, params: Params, x: jax.Array, step: jax.Array, condition: DenoiserCondition
    ) -> jax.Array:
        del step, condition
        return x @ params["kernel"]


DENOISERS.register(
    DenoiserSpec(
        name="toy_linear",
        label="linear",
        settings=LinearSettings,
        make=lambda settings, shape, *, dtype: LinearDenoiser(settings, shape),
    )
)

# --- a method: DAWM with scaled rewards ---------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ScaledSettings:
    """Section `toy_scaled`."""

    factor: float = setting(2.0, "of the generated rewards")


@dataclasses.dataclass(frozen=True)
class Scaled:
    """DAWM, whose generated rewards are multiplied."""

    dawm: Dawm
    factor: float

    @property
    def models(self) -> Mapping[str, Trainable]:
        return {"toy_model": self.dawm.world_model, "toy_inverse": self.dawm.inverse_dynamics}

    def generate(self, params: ModelParams, key: jax.Array, condition: Condition) -> Generated:
        named = {"world_model": params["toy_model"], "inverse_dynamics": params["toy_inverse"]}
        rows, valid = self.dawm.generate(named, key, condition)
        return Generated(rows._replace(reward=self.factor * rows.reward), valid)


def make_scaled(config: Config, normalizer: Normalizer) -> Scaled:
    """The method with the run's settings."""
    return Scaled(make_dawm(config, normalizer), config.section(ScaledSettings).factor)


SECTIONS.register(SectionSpec("toy_scaled", ScaledSettings))
METHODS.register(
    MethodSpec(
        name="toy_scaled",
        label="Scaled DAWM",
        rows=Transition,
        sections={"toy_model": "world_model", "toy_inverse": "inverse_dynamics"},
        settings="toy_scaled",
        make=make_scaled,
    )
)

# --- a task: a point on a line ------------------------------------------------------------


class Point(gym.Env):
    """The action moves a point; the reward is its position's negative distance from 0."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self._state = self.np_random.normal(size=2).astype(np.float32)
        return self._state.copy(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self._state = (0.9 * self._state + np.float32(action[0])).astype(np.float32)
        position = float(np.abs(self._state).max())
        return self._state.copy(), -position, position > 5.0, False, {}


gym.register("ToyPoint-v0", entry_point=Point, max_episode_steps=20)
TASKS.register(
    Task(
        name="toypoint",
        environment="ToyPoint-v0",
        references=References(random=-40.0, expert=0.0),
        dataset="toy://200",
    )
)

# --- a source: random episodes of the point -----------------------------------------------


@dataclasses.dataclass(frozen=True)
class ToySource:
    """Datasets called toy://EPISODES."""

    name: str = "toy"
    priority: int = 0

    def matches(self, name: str) -> bool:
        return name.startswith("toy://")

    def fetch(self, name: str) -> tuple[pathlib.Path, ...]:
        return ()

    def load(self, name: str) -> OfflineDataset:
        rng, length = np.random.default_rng(0), 10
        episodes = int(name.removeprefix("toy://"))
        observations = rng.normal(size=(episodes, length + 1, 2)).astype(np.float32)
        ends = np.tile(np.arange(length) == length - 1, episodes)
        return OfflineDataset(
            name=name,
            observations=observations[:, :-1].reshape(-1, 2),
            actions=rng.uniform(-1, 1, (episodes * length, 1)).astype(np.float32),
            rewards=rng.normal(size=episodes * length).astype(np.float32),
            next_observations=observations[:, 1:].reshape(-1, 2),
            terminations=np.zeros_like(ends),
            truncations=ends,
            environment="ToyPoint-v0",
        )


SOURCES.register(ToySource())


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The configuration that uses all five."""
    config = schema.get_config(variant, environment="ToyPoint-v0")
    config.agent, config.method = "toy_mean", "toy_scaled"
    config.world_model.denoiser = "toy_linear"
    return config
