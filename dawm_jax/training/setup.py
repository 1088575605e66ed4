"""From settings and data to what a run computes with: replay, method, agent, fused program.

Training, loading and the benchmark build the same objects here, so that a checkpoint and
config.json suffice to compute with a finished run.
"""

import dataclasses
import hashlib
import json
import logging
from typing import Any

import jax
import jax.numpy as jnp

from dawm_jax.agents.base import AGENTS, Agent, AgentSpec, AgentTask
from dawm_jax.config import schema
from dawm_jax.config.schema import Config
from dawm_jax.data import normalizer as normalizing
from dawm_jax.data import remarks
from dawm_jax.data import replay as replaying
from dawm_jax.data.dataset import OfflineDataset, random_episodes, top_episodes
from dawm_jax.data.replay import Replay
from dawm_jax.envs import recorded, simulate
from dawm_jax.envs.scores import reference_returns
from dawm_jax.envs.tasks import References, task_name
from dawm_jax.methods import base as methods
from dawm_jax.methods.base import (
    GeneratingMethod,
    Method,
    PlanningMethod,
    PolicyMethod,
    Supply,
)
from dawm_jax.methods.synthetic import FirstSteps, MultiStep
from dawm_jax.models.base import ShardFn, keep
from dawm_jax.training import fused, mixing
from dawm_jax.training.fused import AgentTraining
from dawm_jax.training.mixing import Most
from dawm_jax.types import Expansion, Normalizer, Returns, Transition, UserError

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class Setup:
    """What a run computes with.

    Attributes:
      config: settings of the run.
      normalizer: constants fitted on the training data.
      method: method with its models.
      planner: the method, if it plans; None if it trains agents.
      training: the fused program of the agents; None if the method plans.
      references: returns of scores 0 and 100 that the data's metadata name, or None.
    """

    config: Config
    normalizer: Normalizer
    method: Method
    planner: PlanningMethod | None
    training: AgentTraining | None
    references: References | None = None

    @property
    def generator(self) -> GeneratingMethod | None:
        """The method, if it generates without an agent: whole windows of single steps.

        `training.method` may turn them into returns over several steps or keep first steps alone.
        None on real data only, and of a method that plans or follows the agent's policy.
        """
        if self.training is None or self.training.method is None:
            return None
        return self.method if isinstance(self.method, GeneratingMethod) else None

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


def check(config: Config) -> None:
    """Builds the method's models with placeholder statistics, before any data are read.

    Raises:
      UserError: settings that exclude each other.
    """
    shapes = {
        field.name: (1,) if field.name.startswith(("observation", "action")) else ()
        for field in dataclasses.fields(Normalizer)
    }
    blank = Normalizer(**{name: jnp.ones(shape) for name, shape in shapes.items()})
    methods.check(config).make(config, blank)


def make(
    config: Config,
    normalizer: Normalizer,
    *,
    num_train: int = 0,
    shard_windows: ShardFn = keep,
    references: References | None = None,
) -> Setup:
    """Builds what a run computes with.

    Args:
      config: settings of the run.
      normalizer: constants fitted on the training data.
      num_train: training steps, for each of which the buffer of a sweep has room. Without a
        training it may be 0.
      shard_windows: spreads generated windows over devices.
      references: see `Setup`.

    Raises:
      UserError: an unknown method, agent or denoiser, or settings that exclude each other.
    """
    spec = methods.check(config)
    method: Any = spec.make(config, normalizer)
    if spec.plans:
        return Setup(config, normalizer, method, method, None, references)
    training = _agent_training(config, normalizer, spec, method, num_train, shard_windows)
    return Setup(config, normalizer, method, None, training, references)


def _agent_training(
    config: Config,
    normalizer: Normalizer,
    spec: methods.MethodSpec,
    method: GeneratingMethod | PolicyMethod,
    num_train: int,
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
    _check_agent(agent_spec, agent, config.sections[agent_spec.name])
    # Either all rows of a minibatch have a discount of their own or none has.
    returns = None
    generated, real = config.training.return_steps, config.training.steps_of_real_returns
    if generated > 1 or real > 1:
        returns = Returns(real, config.discount)
        if generator is not None:
            assert not isinstance(generator, PolicyMethod)  # see `methods.check`
            steps = Returns(generated, config.discount)
            generator = MultiStep(generator, config.horizon, steps)
    windows = roll.windows_per_round
    if generator is not None and roll.real_actions_only:
        assert not isinstance(generator, PolicyMethod)  # see `methods.check`
        generator, windows = FirstSteps(generator, config.horizon), windows * config.horizon
    supply = _supply(config, spec, generator)
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
        # A window is H transitions but one expansion. Divided by H, the capacity in rows holds
        # the same number of windows in both cases.
        buffer_capacity=max(
            roll.buffer_capacity // (config.horizon if expansions else 1),
            num_train if supply == "sweep" else 0,
        ),
        supply=supply,
        next_action=agent_spec.needs_next_action,
        returns=returns,
        shard=shard_windows,
    )


def _supply(
    config: Config, spec: methods.MethodSpec, method: GeneratingMethod | PolicyMethod | None
) -> Supply:
    """Where the synthetic rows of the run's minibatches come from."""
    if spec.rows is not Expansion:
        return "rounds"
    afresh = isinstance(method, PolicyMethod) or config.rollout.expand == "minibatch"
    return "minibatch" if afresh else "sweep"


def _check_agent(spec: AgentSpec, agent: Agent[Any], settings: Any) -> None:
    """Checks that an agent has the members of `Agent`, before anything is trained.

    Raises:
      UserError: a member is missing, or the agent's `batches_per_update` is not its spec's.
    """
    members = ("init", "update", "act", "batches_per_update", "reward_scale")
    if missing := [member for member in members if not hasattr(agent, member)]:
        raise UserError(
            f"agent {spec.name!r}: expected the members {', '.join(members)}, got no "
            f"{', '.join(missing)}; see docs/architecture.md"
        )
    expected, got = spec.batches_per_update(settings), agent.batches_per_update
    if got != expected:
        raise UserError(
            f"agent {spec.name!r}: expected batches_per_update of its AgentSpec and of the agent "
            f"to be equal, got {expected} and {got}"
        )


def prefill_rounds(config: Config) -> int:
    """Rounds of generation before the first update, where rounds alone fill the buffer."""
    per_round = config.rollout.windows_per_round * config.horizon
    return -(-config.rollout.prefill_transitions // per_round)


def refit_rounds(config: Config) -> int:
    """Rounds of generation after a refit: as many as the updates since the last one would have."""
    updates = config.online.refit_every * config.online.updates_per_step
    return max(1, round(updates / config.rollout.updates_per_round))


def online_limits(config: Config) -> Most:
    """The most rows of each kind that a minibatch of the fine-tuning has."""
    return mixing.most(
        offline=config.online.offline_fraction,
        generated=config.online.generated_fraction,
        decay=config.online.share_decay,
        size=config.training.batch_size,
    )


def build_replay(config: Config, dataset: OfflineDataset) -> tuple[Replay, Normalizer]:
    """The episodes of a dataset that the run uses, on the device.

    They are checked against the environment that the agents are evaluated in; what may surprise
    is logged, one line each.

    Raises:
      UserError: sizes or bounds differ from the environment's; see `replay.build`.
    """
    env = simulate.make_environment(config.environment, config.environment_arguments)
    try:
        _check_sizes(config, dataset, env)
        lines = [*_origin_lines(config, dataset, env), *_state_lines(config, env)]
    finally:
        env.close()
    used = random_episodes(dataset, config.episodes, seed=config.seed)
    replay, normalizer = replaying.build(
        top_episodes(used, config.top_fraction),
        action_low=env.action_space.low,
        action_high=env.action_space.high,
        discount=config.discount,
        return_scale=config.return_scale,
        timeout_value=config.timeout_value,
        held_out_fraction=config.held_out_fraction,
        start_weight=config.rollout.start_weight,
        clip_actions=config.clip_actions,
    )
    for line in (*lines, *remarks.scales(normalizer), *_held_out_lines(config, replay)):
        _log.warning("dataset %s: %s", dataset.name, line)
    return replay, normalizer


def _check_sizes(config: Config, dataset: OfflineDataset, env: Any) -> None:
    """Raises UserError unless the data have the sizes of the environment's spaces."""
    for kind, array, space in (
        ("observation", dataset.observations, env.observation_space),
        ("action", dataset.actions, env.action_space),
    ):
        if array.shape[1] != space.shape[0]:
            raise UserError(
                f"dataset {dataset.name} has {array.shape[1]} {kind} dimensions, "
                f"{config.environment} {space.shape[0]}; {_size_advice(dataset, env)}"
            )


def _state_lines(config: Config, env: Any) -> list[str]:
    """A line if observation columns that follow from the state would be generated.

    Raises:
      UserError: `world_model.state_columns` is above the number of columns, or not the number of
        the environment's positions and velocities.
    """
    name, got = "config.world_model.state_columns", config.world_model.state_columns
    size = env.observation_space.shape[0]
    if got > size:
        raise UserError(
            f"{name}: expected 0 to {size}, the observation columns of {config.environment}, got "
            f"{got}; 0 generates all"
        )
    columns = simulate.state_columns(env)
    if columns is None or got == size:
        return []
    if (
        got == 0
        and columns.size < size
        and methods.METHODS.get(config.method).trains_models(config)
    ):
        return [
            f"observation columns {columns.size} to {size - 1} of {config.environment} follow from "
            f"the others and are generated too: --{name}={columns.size} infers them"
        ]
    if got not in (0, columns.size):
        raise UserError(
            f"{name}: expected {columns.size}, the positions and velocities in an observation of "
            f"{config.environment} with the given keyword arguments, or 0 to generate all columns, "
            f"got {got}"
        )
    return []


def _size_advice(dataset: OfflineDataset, env: Any) -> str:
    """What makes an environment with the sizes of the data."""
    origin = dataset.recorded
    if dataset.environment is not None and not _is_made_by(dataset.environment, env):
        return f"the data was recorded in {dataset.environment}: set --config.environment to it"
    if origin is not None and origin.wrappers:
        return (
            f"the data was recorded with the wrappers {', '.join(origin.wrappers)}: register an "
            "environment with them and name it in --config.environment"
        )
    flag = "" if origin is None else recorded.advice(origin, env)
    if flag:
        return f"set {flag}, as the data was recorded"
    return (
        "set --config.environment to the dataset's environment, or --config.environment_kwargs to "
        "the keyword arguments that it was made with"
    )


def _origin_lines(config: Config, dataset: OfflineDataset, env: Any) -> list[str]:
    """How the environment of the evaluation differs from the one that the data come from."""
    lines, origin = [], dataset.recorded
    if dataset.environment is not None and not _is_made_by(dataset.environment, env):
        lines.append(
            f"it was recorded in {dataset.environment} and will be evaluated in "
            f"{config.environment}"
        )
    if origin is not None:
        lines += recorded.differences(origin, env)
    limit = env.spec.max_episode_steps
    if origin is None or origin.max_episode_steps == limit:
        lines += remarks.long_episodes(dataset, config.environment, limit)
    if config.environment_arguments and reference_returns(config.environment) is not None:
        lines.append(
            f"scores are relative to returns of {config.environment} without "
            f"--config.environment_kwargs={config.environment_kwargs}"
        )
    return lines


def _is_made_by(name: str, env: Any) -> bool:
    """Whether a Gymnasium id, with or without a module to import, is the environment's."""
    return name.rpartition(":")[2] == env.spec.id


def _held_out_lines(config: Config, replay: Replay) -> list[str]:
    """A line if the errors of the models are not measured on held-out episodes."""
    if replay.num_train < len(replay) or not methods.METHODS.get(config.method).trains_models(
        config
    ):
        return []
    reason = "there is only one" if config.held_out_fraction else "config.held_out_fraction is 0"
    return [
        f"no episode is held out ({reason}): the log shows the errors of the models on the steps "
        "they are trained on, which are lower than on new data"
    ]


def default_workdir(config: Config) -> str:
    """A folder below runs/ for these settings: the same settings have the same folder."""
    text = json.dumps(schema.to_dict(config), sort_keys=True)
    method = methods.METHODS.get(config.method)
    words = [
        task_name(config.environment),
        *config.variant.split(","),
        config.method,
        "" if method.plans else config.agent,
        hashlib.sha256(text.encode()).hexdigest()[:8],
    ]
    return "runs/" + "-".join(filter(None, words))
