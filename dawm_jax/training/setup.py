"""From settings and data to what a run computes with: replay, method, agent, fused program.

Training, loading and the benchmark build the same objects here, so that a checkpoint and
config.json suffice to compute with a finished run.
"""

import dataclasses
import logging
from typing import Any

import jax

from dawm_jax.agents.base import AGENTS, Agent, AgentTask
from dawm_jax.config.schema import Config
from dawm_jax.data import normalizer as normalizing
from dawm_jax.data import replay as replaying
from dawm_jax.data.dataset import OfflineDataset, top_episodes
from dawm_jax.data.replay import Replay
from dawm_jax.envs import simulate
from dawm_jax.methods import base as methods
from dawm_jax.methods.base import GeneratingMethod, Method, PlanningMethod
from dawm_jax.methods.synthetic import FirstSteps
from dawm_jax.models.base import ShardFn, keep
from dawm_jax.training import fused
from dawm_jax.training.fused import AgentTraining
from dawm_jax.types import Expansion, Normalizer, Transition, UserError

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class Setup:
    """What a run computes with.

    Attributes:
      config: the run's settings.
      normalizer: of its training data.
      method: with its models.
      planner: the method, if it plans; None if it trains agents.
      training: the fused program of the agents; None if the method plans.
    """

    config: Config
    normalizer: Normalizer
    method: Method
    planner: PlanningMethod | None
    training: AgentTraining | None

    @property
    def generator(self) -> GeneratingMethod | None:
        """What generates the agents' rows; None on real data only and of a method that plans."""
        return None if self.training is None else self.training.method

    @property
    def agent(self) -> Agent[Any] | None:
        """The algorithm; None if the method plans."""
        return None if self.training is None else self.training.agent

    def act(self, state: Any, observation: jax.Array) -> jax.Array:
        """The agent's action in the environment's units, raw [..., S] -> [..., A]."""
        assert self.training is not None
        normalised = normalizing.normalise_observation(self.normalizer, observation)
        action = self.training.agent.act(state, normalised)
        return normalizing.denormalise_action(self.normalizer, action)


def make(config: Config, normalizer: Normalizer, *, shard_windows: ShardFn = keep) -> Setup:
    """Builds what a run computes with.

    Args:
      config: the run's settings.
      normalizer: of its training data.
      shard_windows: spreads generated windows over devices.

    Raises:
      UserError: an unknown method, agent or denoiser, or settings that exclude each other.
    """
    spec = methods.check(config)
    method: Any = spec.make(config, normalizer)
    if spec.plans:
        return Setup(config, normalizer, method, planner=method, training=None)
    training = _agent_training(config, normalizer, spec, method, shard_windows)
    return Setup(config, normalizer, method, planner=None, training=training)


def _agent_training(
    config: Config,
    normalizer: Normalizer,
    spec: methods.MethodSpec,
    method: GeneratingMethod,
    shard_windows: ShardFn,
) -> AgentTraining:
    agent_spec, roll = AGENTS.get(config.agent), config.rollout
    state_size = normalizer.observation_mean.shape[0]
    action_size = normalizer.action_low.shape[0]
    generator = method if spec.trains_models(config) else None
    expansions = generator is not None and spec.rows is Expansion
    agent = agent_spec.make(
        config.sections[agent_spec.name],
        AgentTask(
            state_size=state_size,
            action_size=action_size,
            discount=config.discount,
            total_updates=config.training.updates,
            return_range=normalizer.return_range,
            rows=Expansion if expansions else Transition,
        ),
    )
    windows = roll.windows_per_round
    if generator is not None and roll.real_actions_only:
        generator, windows = FirstSteps(generator, config.horizon), windows * config.horizon
    row = None
    if generator is not None:
        row = fused.row_shapes(generator, state_size=state_size, action_size=action_size)
    return AgentTraining(
        agent=agent,
        method=generator,
        row=row,
        updates_per_round=roll.updates_per_round,
        windows_per_round=windows,
        batch_size=config.training.batch_size,
        real_fraction=spec.real_fraction(config.training.real_fraction),
        # An expansion is one row for H transitions; both buffers hold equally many windows.
        buffer_capacity=roll.buffer_capacity // (config.horizon if expansions else 1),
        next_action=agent_spec.needs_next_action,
        shard=shard_windows,
    )


def prefill_rounds(config: Config) -> int:
    """Rounds of generation before the first update."""
    per_round = config.rollout.windows_per_round * config.horizon
    return -(-config.rollout.prefill_transitions // per_round)


def build_replay(config: Config, dataset: OfflineDataset) -> tuple[Replay, Normalizer]:
    """The episodes of a dataset that the run uses, on the device.

    They are checked against the environment that the agents are evaluated in.

    Raises:
      UserError: sizes or bounds differ from the environment's; see `replay.build`.
    """
    env = simulate.make_environment(config.environment)
    action_space, observation_space = env.action_space, env.observation_space
    env.close()
    if observation_space.shape[0] != dataset.observations.shape[1]:
        raise UserError(
            f"dataset {dataset.name} has {dataset.observations.shape[1]} observation dimensions, "
            f"{config.environment} {observation_space.shape[0]}; choose the configuration of the "
            "dataset's environment, or set --config.environment"
        )
    if dataset.environment not in (None, config.environment):
        _log.warning(
            "%s was recorded in %s and will be evaluated in %s",
            dataset.name,
            dataset.environment,
            config.environment,
        )
    return replaying.build(
        top_episodes(dataset, config.top_fraction),
        action_low=action_space.low,
        action_high=action_space.high,
        discount=config.discount,
        return_scale=config.return_scale,
        timeout_value=config.timeout_value,
        held_out_fraction=config.held_out_fraction,
    )
