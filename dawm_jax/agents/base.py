"""The contract of agents: what the fused program, evaluation and the configuration need of one."""

import dataclasses
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import jax

from dawm_jax.runtime.registry import Registry
from dawm_jax.types import Expansion, Metrics, Rows, Transition

StateT = TypeVar("StateT")


@dataclasses.dataclass(frozen=True)
class AgentTask:
    """Sizes and constants of the task that an agent is built for.

    Attributes:
      state_size: S.
      action_size: A.
      discount: gamma, per step.
      total_updates: gradient updates of the critics in the whole training.
      return_range: [] largest minus smallest undiscounted return of the data's episodes.
      rows: `Expansion` where the method generates value expansions, else `Transition`.
    """

    state_size: int
    action_size: int
    discount: float
    total_updates: int
    return_range: float | jax.Array
    rows: type[Transition] | type[Expansion]


class Agent(Protocol[StateT]):
    """An offline RL algorithm with its hyper-parameters: pure functions of explicit state."""

    @property
    def batches_per_update(self) -> int:
        """Minibatches, and gradient updates of the critics, of one call of `update`."""

    @property
    def reward_scale(self) -> float | jax.Array:
        """Factor between the environment's rewards and the rewards that the critics see."""

    def init(self, key: jax.Array) -> StateT:
        """A fresh state: parameters, targets, optimisers; `key` is consumed."""

    def update(self, state: StateT, batches: Rows, key: jax.Array) -> tuple[StateT, Metrics]:
        """One update.

        Args:
          state: state of the agent.
          batches: [batches_per_update, B, ...] rows of the type `AgentTask.rows`; rewards in
            the environment's units, observations standardised, actions in [-1, 1].
          key: random number generator state, the key is consumed.

        Returns:
          The next state, and scalar metrics.
        """

    def act(self, state: StateT, observation: jax.Array) -> jax.Array:
        """The deterministic policy: standardised [..., S] -> [..., A] in [-1, 1]."""


@runtime_checkable
class Loosens(Protocol):
    """An agent whose pull towards the data's actions can weaken while it trains."""

    def loosened(self, pull: float | jax.Array) -> Agent[Any]:
        """The agent with another pull.

        Args:
          pull: factor of the pull that the settings give, above 0 and at most 1, a scalar.
        """


@runtime_checkable
class Explores(Protocol):
    """An agent that draws the actions which it tries in its environment."""

    def explore(self, state: Any, observation: jax.Array, key: jax.Array) -> jax.Array:
        """Drawn actions: standardised [..., S] -> [..., A] in [-1, 1]; `key` is consumed."""


SettingsT = TypeVar("SettingsT")
SettingsT_contra = TypeVar("SettingsT_contra", contravariant=True)


class MakeAgent(Protocol[SettingsT_contra]):
    """Builds an agent."""

    def __call__(self, settings: SettingsT_contra, task: AgentTask) -> Agent[Any]:
        """Builds an agent.

        Args:
          settings: section of the agent.
          task: sizes and discount of the task.
        """


@dataclasses.dataclass(frozen=True)
class AgentSpec(Generic[SettingsT]):
    """A registered agent, and what is known of it before it is built.

    Attributes:
      name: value of `config.agent`, and name of the agent's section.
      label: display name, in logs and tables.
      settings: dataclass of its section.
      make: builds the agent.
      learns_from: row types that `Agent.update` accepts.
      batches_per_update: section -> minibatches of one call of `update`;
        `config.rollout.updates_per_round` must be a multiple of it.
      needs_next_action: whether transitions must carry the action of the next step.
      curve: metric of `Agent.update` that curves.png shows.
      policy: fields of the state that only the policy's part of an update moves: what stays as it
        is while critics warm up; () if the agent cannot be warmed up.
    """

    name: str
    label: str
    settings: type[SettingsT]
    make: MakeAgent[SettingsT]
    learns_from: tuple[type[Transition] | type[Expansion], ...]
    batches_per_update: "BatchesPerUpdate[SettingsT]"
    needs_next_action: bool = False
    curve: str = "q_mean"
    policy: tuple[str, ...] = ()


class BatchesPerUpdate(Protocol[SettingsT_contra]):
    """How many minibatches one update takes."""

    def __call__(self, settings: SettingsT_contra) -> int:
        """Minibatches of one update, from the agent's section of the configuration."""


AGENTS: Registry[AgentSpec[Any]] = Registry(
    "agent", setting="config.agent", rooms=("dawm_jax.agents",)
)
