"""The contract of methods: which models a run trains, and what it makes of them."""

import dataclasses
from collections.abc import Mapping
from typing import Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

import jax

from dawm_jax.agents.base import AGENTS
from dawm_jax.config.schema import Config
from dawm_jax.models.base import Trainable
from dawm_jax.runtime.registry import Registry
from dawm_jax.types import (
    Condition,
    Expansion,
    ModelParams,
    Normalizer,
    PolicyFn,
    Rows,
    Transition,
    UserError,
)

# Where the synthetic rows of a minibatch come from. "rounds": a ring buffer, into which each round
# of updates writes windows from random starts, and several rounds before the first update.
# "sweep": a ring buffer which holds an expansion of every training step before the first update.
# "minibatch": expansions that are generated for this minibatch alone.
Supply: TypeAlias = Literal["rounds", "sweep", "minibatch"]


class Generated(NamedTuple):
    """What a method generates from B starts."""

    rows: Rows  # transitions [B * H], or expansions [B]
    valid: jax.Array  # [B * H] or [B, H] bool: False for steps after a termination


class Method(Protocol):
    """A method with its settings: pure functions of explicit parameters.

    Implementations are frozen dataclasses compared by identity (eq=False): jit hashes the
    object whose method it compiles, and arrays have no hash.
    """

    @property
    def models(self) -> Mapping[str, Trainable]:
        """The models that are trained before the agents, in this order, by name."""


@runtime_checkable
class GeneratingMethod(Method, Protocol):
    """A method whose agents learn from what its models generate."""

    def generate(self, params: ModelParams, key: jax.Array, condition: Condition) -> Generated:
        """Generates from real starts.

        Args:
          params: averaged parameters of `models`.
          key: random number generator state, the key is consumed.
          condition: [B] starts with their own returns-to-go.
        """


@runtime_checkable
class PolicyMethod(Method, Protocol):
    """A method whose models are rolled out with the policy in training.

    Its rows are expansions, generated for each minibatch with the policy as it is then.
    """

    def expand(
        self, params: ModelParams, key: jax.Array, condition: Condition, *, act: PolicyFn
    ) -> Generated:
        """Generates expansions of real starts.

        Args:
          params: averaged parameters of `models`.
          key: random number generator state, the key is consumed.
          condition: [B] starts with their own returns-to-go.
          act: the agent's deterministic policy, for the steps after the first.
        """


class PlanningMethod(Method, Protocol):
    """A method that chooses actions with its models, without an agent."""

    @property
    def horizon(self) -> int:
        """Steps of a plan."""

    @property
    def target_fraction(self) -> float:
        """Share of the data's range of returns that plans aim at."""

    def plan(self, params: ModelParams, key: jax.Array, observation: jax.Array) -> jax.Array:
        """Actions in the environment's units.

        Args:
          params: averaged parameters of `models`.
          key: random number generator state, the key is consumed.
          observation: [B, S] raw.

        Returns:
          [B, A].
        """


class MakeMethod(Protocol):
    """Builds a method."""

    def __call__(self, config: Config, normalizer: Normalizer) -> Method:
        """Builds a method.

        Args:
          config: settings of the run.
          normalizer: constants fitted on the training data.
        """


@dataclasses.dataclass(frozen=True)
class MethodSpec:
    """A registered method, and what is known of it before it is built.

    Attributes:
      name: value of `config.method`.
      label: display name, in logs and tables.
      rows: type of the generated rows; None for a method that plans and trains no agent.
      sections: name of each model -> section of the configuration that fits the model.
      settings: section of the configuration that this method alone reads, "" without one.
      make: builds a `GeneratingMethod`, or a `PolicyMethod` if `rows` are expansions, or without
        `rows` a `PlanningMethod`.
      seed_is: what differs between the seeds of a run.
    """

    name: str
    label: str
    rows: type[Transition] | type[Expansion] | None
    sections: Mapping[str, str]
    make: MakeMethod
    settings: str = ""
    seed_is: str = (
        "an agent with its own initial values, minibatches and generated data; models are shared"
    )

    @property
    def plans(self) -> bool:
        """Whether the method chooses actions without an agent."""
        return self.rows is None

    @property
    def fitted_sections(self) -> tuple[str, ...]:
        """Names of the sections that fit the method's models, each once."""
        return tuple(dict.fromkeys(self.sections.values()))

    def real_fraction(self, setting: float) -> float:
        """The share of real rows in a minibatch under `config.training.real_fraction`."""
        return 0.0 if self.plans else setting

    def trains_models(self, config: Config) -> bool:
        """Whether the run trains the method's models: not on real data only."""
        return config.training.real_fraction < 1.0


METHODS: Registry[MethodSpec] = Registry(
    "method", setting="config.method", rooms=("dawm_jax.methods",)
)


def check(config: Config) -> MethodSpec:
    """The run's method, if the other settings suit it.

    Raises:
      UserError: an unknown method, or settings that the method excludes.
    """
    method, agent = METHODS.get(config.method), AGENTS.get(config.agent)
    if method.plans and not method.trains_models(config):
        raise UserError(
            "config.training.real_fraction: expected less than 1 with "
            f"config.method={method.name}, which trains no agent, got 1.0"
        )
    if config.rollout.real_actions_only and method.rows is not Transition:
        raise UserError(
            "config.rollout.real_actions_only: expected False with "
            f"config.method={method.name}, which generates no transitions"
        )
    if config.rollout.expand == "minibatch" and method.rows is not Expansion:
        raise UserError(
            f"config.rollout.expand: expected sweep with config.method={method.name}, which "
            "generates no expansions, got 'minibatch'"
        )
    if method.trains_models(config) and method.rows is not Transition:
        config.training.check_one_step(
            f"with config.method={method.name}, which generates no transitions"
        )
    if method.rows is None or not method.trains_models(config):
        return method
    if method.rows not in agent.learns_from:
        able = [spec.name for spec in AGENTS if method.rows in spec.learns_from]
        raise UserError(
            f"config.agent: expected one of {', '.join(able)} with config.method={method.name}, "
            f"which generates {method.rows.__name__.lower()}s, got {agent.name!r}"
        )
    return method
