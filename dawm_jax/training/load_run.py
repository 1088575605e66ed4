"""A finished run as plain functions of NumPy arrays.

import dawm_jax
run = dawm_jax.load_run("runs/hopper")
action = run.policy(observation)
"""

import contextlib
import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from dawm_jax.config import schema
from dawm_jax.config.schema import Config
from dawm_jax.data import normalizer as normalizing
from dawm_jax.data.dataset import OfflineDataset, describe
from dawm_jax.data.load import dataset_from_mapping, load_dataset
from dawm_jax.data.replay import Replay
from dawm_jax.envs.rollouts import PolicyFn
from dawm_jax.methods.base import METHODS, GeneratingMethod
from dawm_jax.models.inverse_dynamics import ActionModel
from dawm_jax.runtime import backend, loop, paths, results, run_folder, sharding
from dawm_jax.runtime.checkpoint import Checkpoints, newest_step
from dawm_jax.runtime.run_folder import DatasetRecord
from dawm_jax.training import finished, fused, online, setup, stages, train
from dawm_jax.training.setup import Setup
from dawm_jax.types import Condition, ModelParams, Normalizer, Transition, UserError

StateT = TypeVar("StateT")

# Windows that `LoadedRun.generate` generates at a time.
_WINDOWS = 256


class Generator(Protocol):
    """A compiled generator of windows from random training steps."""

    def __call__(self, key: jax.Array, /) -> tuple[Transition, jax.Array]:
        """Transitions [B, H, ...] in raw units and valid [B, H]; `key` is consumed.

        The call returns before the device is done.
        """


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class LoadedRun:
    """What a run learnt. All functions take and return raw environment units.

    Attributes:
      config: the run's settings.
      normalizer: of its training data.
      policies: agents of all seeds, leading axis seeds; None for a method that plans, whose
        seeds are the keys of its plans.
      models: averaged parameters of the method's models, as they were before a fine-tuning; None
        for a run on real data only.
      setup: what the run computed with.
      dataset: the run's data, where they were given as arrays; None: `config.dataset` is loaded.
      workdir: the run's folder; None: nothing is known of its data but their statistics.
    """

    config: Config
    normalizer: Normalizer
    policies: Any
    models: ModelParams | None
    setup: Setup
    dataset: OfflineDataset | None = None
    workdir: pathlib.Path | None = None

    def __repr__(self) -> str:
        config = self.config
        return (
            f"LoadedRun(environment={config.environment!r}, dataset={config.dataset!r}, "
            f"method={config.method!r}, agent={config.agent!r}, num_seeds={config.num_seeds})"
        )

    # --- decisions ------------------------------------------------------------------------

    def policy(self, observation: np.ndarray, seed: int = 0) -> np.ndarray:
        """The deterministic action of one seed's agent, or the action of a plan.

        Args:
          observation: [..., S].
          seed: 0 to num_seeds - 1; the key of the plan for a method that plans.

        Returns:
          [..., A].

        Raises:
          UserError: an observation of another size, or a seed out of its range.
        """
        inputs = self._vectors(observation, "observation", self._state_size)
        if not 0 <= seed < self.config.num_seeds:
            raise UserError(
                f"seed: expected one of this run's, 0 to {self.config.num_seeds - 1}, got {seed}"
            )
        if self.setup.planner is None:
            return np.asarray(self._policy_of(seed)(inputs))
        batch = inputs.reshape(-1, inputs.shape[-1])
        actions = np.asarray(self._plan(self._need_models(), jax.random.key(seed), batch))
        return actions.reshape(*inputs.shape[:-1], -1)

    def act(self, observations: np.ndarray) -> np.ndarray:
        """`policy` of every seed on observations of its own, [seeds, ..., S] -> [seeds, ..., A].

        Raises:
          UserError: observations of another size.
        """
        return np.stack([self.policy(own, seed=seed) for seed, own in enumerate(observations)])

    def in_episodes(self) -> PolicyFn:
        """Every seed's agent, or plans of every seed, for whole episodes: `rollouts.run_episodes`.

        The noise of plans differs between the time steps and is that of the run's own evaluation,
        so that what this returns is for one evaluation.
        """
        if self.setup.planner is None:
            return self.act
        plan = stages.plan_policy(self.setup, self._need_models(), jax.random.key(self.config.seed))
        steps = itertools.count()
        return lambda observations: plan(observations, next(steps))

    def inverse_dynamics(self, observation: np.ndarray, next_observation: np.ndarray) -> np.ndarray:
        """The action between two observations, [..., S], [..., S] -> [..., A].

        Raises:
          UserError: sizes differ from the environment's, or the run has no such model.
        """
        states = [
            normalizing.normalise_observation(self.normalizer, jnp.asarray(vectors))
            for vectors in (
                self._vectors(observation, "observation", self._state_size),
                self._vectors(next_observation, "next_observation", self._state_size),
            )
        ]
        infer, params = self._infer, self._need_models()["inverse_dynamics"]
        return np.asarray(normalizing.denormalise_action(self.normalizer, infer(params, *states)))

    # --- generation -----------------------------------------------------------------------

    def generate(self, num_transitions: int, *, seed: int = 0) -> Transition:
        """Synthetic transitions from random steps of the run's training data.

        Args:
          num_transitions: how many; all are valid steps.
          seed: of the starts and the noise.

        Returns:
          Arrays [num_transitions, ...].

        Raises:
          UserError: the run generates no transitions, or its data is missing or has changed.
        """
        if num_transitions < 1:
            raise UserError(f"num_transitions: expected at least 1, got {num_transitions}")
        generator = self._generate
        key, parts, count, index = jax.random.key(seed), [], 0, 0
        while count < num_transitions:
            windows, valid = jax.device_get(generator(jax.random.fold_in(key, index)))
            parts.append(jax.tree.map(lambda leaf, valid=valid: leaf[valid], windows))
            count, index = count + int(valid.sum()), index + 1
        joined = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
        return jax.tree.map(lambda leaf: leaf[:num_transitions], joined)

    def generate_from(
        self,
        observation: np.ndarray,
        action: np.ndarray,
        *,
        return_to_go: np.ndarray | float | None = None,
        seed: int = 0,
    ) -> tuple[Transition, np.ndarray]:
        """Synthetic windows of single steps from given starts, whatever agents make of them.

        Args:
          observation: [S] or [B, S].
          action: [A] or [B, A], the first action.
          return_to_go: [] or [B], discounted return of each start, to which the run's target
            rule is applied; None takes the largest of the training data.
          seed: of the noise.

        Returns:
          Transitions [H, ...] or [B, H, ...] and valid [H] or [B, H], False after a
          termination.

        Raises:
          UserError: sizes that do not fit, or the run generates no transitions.
        """
        starts = self._vectors(observation, "observation", self._state_size)
        actions = self._vectors(action, "action", self.normalizer.action_low.shape[0])
        if starts.ndim > 2 or starts.shape[:-1] != actions.shape[:-1]:
            raise UserError(
                "observation and action: expected [S] and [A], or [B, S] and [B, A], got "
                f"{list(starts.shape)} and {list(actions.shape)}"
            )
        if return_to_go is None:
            return_to_go = float(self.normalizer.return_high * self.normalizer.return_scale)
        batch = starts.reshape(-1, starts.shape[-1])
        returns = np.asarray(return_to_go, np.float32)
        if returns.shape not in ((), (len(batch),)):
            raise UserError(
                f"return_to_go: expected a number or [{len(batch)}], one for each start, got "
                f"shape {list(returns.shape)}"
            )
        windows, valid = self.generate_windows(
            jax.random.key(seed),
            batch,
            actions.reshape(len(batch), -1),
            np.broadcast_to(returns, (len(batch),)),
        )
        if starts.ndim == 1:
            return jax.tree.map(lambda leaf: leaf[0], (windows, valid))
        return windows, valid

    def generate_windows(
        self,
        key: jax.Array,
        observation: np.ndarray,
        action: np.ndarray,
        return_to_go: np.ndarray,
    ) -> tuple[Transition, np.ndarray]:
        """What `generate_from` computes, with a key for the noise. It checks no shapes.

        The program is compiled once for each number of starts.

        Args:
          key: random number generator state, the key is consumed.
          observation: [B, S].
          action: [B, A], the first action.
          return_to_go: [B] discounted return of each start, before the run's target rule.

        Returns:
          Transitions [B, H, ...] of NumPy arrays and valid [B, H], False after a termination.

        Raises:
          UserError: the run generates no transitions.
        """
        program, models = self._window_program, self._need_models()
        starts = (np.asarray(array, np.float32) for array in (observation, action, return_to_go))
        windows, valid = jax.device_get(program(models, key, *starts))
        return windows, valid

    def generator(self, replay: Replay, num_windows: int) -> Generator:
        """Compiles the generation of windows from random training steps.

        Args:
          replay: the training data of the run, see `training_data`.
          num_windows: B.

        Raises:
          UserError: the run generates no transitions.
        """
        method, models = self._need_generator(), self._need_models()

        def program(
            key: jax.Array, models: ModelParams, replay: Replay
        ) -> tuple[Transition, jax.Array]:
            rows, valid = fused.generate_from_replay(
                method, models, key, replay, num_windows=num_windows
            )
            assert isinstance(rows, Transition)
            return normalizing.raw_windows(self.normalizer, rows, valid, num_windows=num_windows)

        compiled = jax.jit(program).lower(jax.random.key(0), models, replay).compile()
        return lambda key: compiled(key, models, replay)

    def training_data(self) -> Replay:
        """The run's training data on the device.

        Raises:
          UserError: the dataset is missing, or is not what the run was trained on.
        """
        dataset = self.dataset or load_dataset(self.config.dataset)
        self._check_digest(dataset)
        replay, normalizer = setup.build_replay(self.config, dataset)
        if not loop.equal_constants(normalizer, self.normalizer):
            raise UserError(
                f"dataset {self.config.dataset}: the data is not what the run was trained on, or "
                "another version of dawm_jax trained it: statistics of the data differ; restore "
                "the data, load the run with its version, or train a new run"
            )
        return replay

    def check_data(self, dataset: OfflineDataset) -> None:
        """Checks that data are what the run was trained on.

        Raises:
          UserError: they are not.
        """
        if not self._check_digest(dataset):
            dataclasses.replace(self, dataset=dataset).training_data()

    def _check_digest(self, dataset: OfflineDataset) -> bool:
        """Raises UserError for other data; False if the run's folder has no digest."""
        if self.workdir is None:
            return False
        record = DatasetRecord(self.config.dataset, dataset.digest, describe(dataset))
        return run_folder.check_dataset(self.workdir, record)

    def finetune(self, workdir: str | pathlib.Path, **changes: Any) -> "LoadedRun":
        """The run after a fine-tuning of its agents in their environment.

        The offline stages are copied from this run's folder into `workdir`, and the same call on
        the same folder resumes.

        Args:
          workdir: folder of the new run, made when absent.
          changes: settings of `config.online`, such as steps=50_000.

        Raises:
          UserError: this run has no folder or was fine-tuned already, an unknown setting, or what
            `training.train.run` refuses.
        """
        target = paths.expand(str(workdir), "workdir")
        if self.workdir is None or self.config.online.steps:
            reason = "it has no folder" if self.workdir is None else "it was fine-tuned already"
            raise UserError(f"finetune: expected a run that was trained offline, but {reason}")
        dotted = {f"online.{name}": value for name, value in changes.items()}
        config = schema.replace(self.config, dotted)
        if not config.online.steps:
            raise UserError("finetune: expected steps=N, the environment steps of each seed")
        online.check(config, METHODS.get(config.method))  # before the folder is claimed
        if not (target / run_folder.CONFIG).exists():
            # Training in a folder without the copied stages would train them anew.
            if target.exists() and (found := sorted(path.name for path in target.iterdir())):
                raise UserError(
                    f"finetune: expected {target} to be absent, empty or an earlier call's, got a "
                    f"folder with {found[0]}; choose another"
                )
            run_folder.copy_trained(self.workdir, target, schema.to_dict(config))
        train.run(config, target, self.dataset)
        return load_run(target, self.dataset)

    def with_rollout(self, **changes: Any) -> "LoadedRun":
        """The same run with other settings of `config.rollout`, such as guidance=2.0.

        Raises:
          UserError: an unknown setting, or a value out of its range.
        """
        dotted = {f"rollout.{name}": value for name, value in changes.items()}
        config = schema.replace(self.config, dotted)
        return dataclasses.replace(self, config=config, setup=setup.make(config, self.normalizer))

    # --- compiled functions ---------------------------------------------------------------

    @property
    def _state_size(self) -> int:
        return self.normalizer.observation_mean.shape[0]

    @functools.cached_property
    def _policies(self) -> dict[int, Callable[[np.ndarray], jax.Array]]:
        return {}

    def _policy_of(self, seed: int) -> Callable[[np.ndarray], jax.Array]:
        if seed not in self._policies:
            # The parameters are constants of the program: a call passes the observation alone.
            agent = jax.tree.map(lambda leaf: leaf[seed], self.policies)
            self._policies[seed] = jax.jit(functools.partial(self.setup.act, agent))
        return self._policies[seed]

    @functools.cached_property
    def _plan(self) -> Callable[[ModelParams, jax.Array, np.ndarray], jax.Array]:
        assert self.setup.planner is not None
        return jax.jit(self.setup.planner.plan)

    @functools.cached_property
    def _infer(self) -> Callable[..., jax.Array]:
        model = self.setup.method.models.get("inverse_dynamics")
        if not isinstance(model, ActionModel):
            raise UserError(f"method {self.config.method} has no inverse dynamics model")
        return jax.jit(model.infer)

    @functools.cached_property
    def _generate(self) -> Generator:
        return self.generator(self.training_data(), _WINDOWS)

    @functools.cached_property
    def _window_program(self) -> Callable[..., tuple[Transition, jax.Array]]:
        method = self._need_generator()

        def program(
            models: ModelParams,
            key: jax.Array,
            observation: jax.Array,
            action: jax.Array,
            return_to_go: jax.Array,
        ) -> tuple[Transition, jax.Array]:
            condition = Condition(
                normalizing.normalise_observation(self.normalizer, observation),
                normalizing.normalise_action(self.normalizer, action),
                return_to_go / self.normalizer.return_scale,
            )
            rows, valid = method.generate(models, key, condition)
            assert isinstance(rows, Transition)
            return normalizing.raw_windows(
                self.normalizer, rows, valid, num_windows=len(observation)
            )

        return jax.jit(program)

    # --- checks ---------------------------------------------------------------------------

    def _vectors(self, values: np.ndarray, name: str, size: int) -> np.ndarray:
        array = np.asarray(values, np.float32)
        if array.ndim < 1 or array.shape[-1] != size:
            raise UserError(
                f"{name}: expected an array [..., {size}], got shape {list(array.shape)}"
            )
        return array

    def _need_generator(self) -> GeneratingMethod:
        self._need_models()
        method = self.setup.generator
        row = None if self.setup.training is None else self.setup.training.row
        if method is None or not isinstance(row, Transition):
            raise UserError(f"method {self.config.method} generates no transitions")
        return method

    def _need_models(self) -> ModelParams:
        if self.models is None:
            raise UserError("this run was trained on real data only: it has no models")
        return self.models


# --- loading ------------------------------------------------------------------------------


def load_run(
    workdir: str | pathlib.Path, dataset: OfflineDataset | Mapping[str, ArrayLike] | None = None
) -> LoadedRun:
    """Loads the newest checkpoints of a run.

    Args:
      workdir: the run's folder.
      dataset: the run's data, if it was trained on arrays: `generate` needs them. See
        `dawm_jax.train` for its forms.

    Raises:
      UserError: the folder is no run, a stage has no checkpoint, or a checkpoint was made by an
        incompatible version.
    """
    backend.check()
    workdir = paths.expand(str(workdir), "workdir")
    if isinstance(dataset, Mapping):
        dataset = dataset_from_mapping(dataset)
    config = schema.of_run(workdir)
    with contextlib.ExitStack() as cleanup:
        opened = {name: _open(workdir, name) for name in finished.last_steps(config)}
        for checkpoints in opened.values():
            cleanup.callback(checkpoints.close)
        # The shapes of the statistics give S and A, which give the shapes of all parameters.
        normalizer = _normalizer(workdir, opened)
        parts = setup.make(config, normalizer)
        key = jax.random.key(0)
        models, policies = None, None
        if METHODS.get(config.method).trains_models(config):
            models = {
                name: _restore(opened[name], jax.eval_shape(model.init, key), normalizer).average
                for name, model in parts.method.models.items()
            }
        if parts.training is not None:
            keys = jax.random.split(key, config.num_seeds)
            shapes = {"agent": jax.eval_shape(jax.vmap(parts.training.agent.init), keys)}
            if "online" in opened:
                found = _restore(opened["online"], {"learner": shapes}, normalizer)["learner"]
            else:
                found = _restore(opened["agent"], shapes, normalizer)
            policies = found["agent"]
    return LoadedRun(
        config=config,
        normalizer=normalizer,
        policies=policies,
        models=models,
        setup=parts,
        dataset=dataset,
        workdir=workdir,
    )


def _normalizer(workdir: pathlib.Path, stages: Mapping[str, Checkpoints]) -> Normalizer:
    """The statistics of the run's data, from the checkpoints of all its stages.

    Raises:
      UserError: the stages hold different statistics, or those of an incompatible version.
    """
    found = {name: stage.entry("statistics") for name, stage in stages.items()}
    first, statistics = next(iter(found.items()))
    for name, others in found.items():
        if differing := set(others) ^ {field.name for field in dataclasses.fields(Normalizer)}:
            raise UserError(
                f"{workdir} was made by another version of dawm_jax (its statistics differ in "
                f"{', '.join(sorted(differing))}): load it with that version, or train it anew"
            )
        if not loop.equal_constants(others, statistics):
            raise UserError(
                f"{workdir}: its stages {first} and {name} were trained on different data: delete "
                "the checkpoints of one and resume the run"
            )
    return Normalizer(**{name: jnp.asarray(value) for name, value in statistics.items()})


def _restore(checkpoints: Checkpoints, state: StateT, normalizer: Normalizer) -> StateT:
    """The part of the state in the newest intact checkpoint whose structure is that of `state`."""
    restored = checkpoints.restore(
        sharding.on_one_device({"state": state, "statistics": normalizer}), partial=True
    )
    assert restored is not None  # `_open` found one
    found: StateT = restored[0]["state"]
    return found


def _open(workdir: pathlib.Path, stage: str) -> Checkpoints:
    folder = workdir / "checkpoints" / stage
    if newest_step(folder) is None:
        has_results = (workdir / results.FILE).exists()
        fix = "delete results.json and train it again" if has_results else "resume the run"
        raise UserError(f"{workdir} has no checkpoint of its {stage} stage: {fix}")
    return Checkpoints(folder)
