"""A finished run as plain functions, without the training program.

import dawm_jax
run = dawm_jax.load_run("runs/hopper")
action = run.policy(observation)
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from dawm_jax.data import windows
from dawm_jax.methods.registry import Assembly, assemble, raw_action
from dawm_jax.runtime import parallel
from dawm_jax.runtime.checkpoint import Checkpoints
from dawm_jax.training import fused
from dawm_jax.types import Condition, Statistics, Transition, UserError


@dataclasses.dataclass(frozen=True)
class LoadedRun:
    """What a run learnt. All functions take and return raw environment units.

    Attributes:
      config: of the run.
      statistics: of its training data (normalisers and scales).
      policies: parameters of all seeds' agents, leading axis seeds; None for a method that
        plans, whose seeds are the keys of its plans.
      models: parameters of the models that the method trains; None for a run on real data
        only.
      functions: the bound pure functions of the run, see `assembly.Assembly`.
    """

    config: Any
    statistics: Statistics
    policies: Any
    models: fused.Models | None
    functions: Assembly

    def policy(self, observation: np.ndarray, seed: int = 0) -> np.ndarray:
        """The deterministic action of one seed's agent, [..., S] -> [..., A]."""
        inputs = jnp.asarray(observation, jnp.float32)
        if self.functions.plan is None:
            agent = jax.tree.map(lambda leaf: leaf[seed], self.policies)
            return np.asarray(self._act(agent, inputs))
        batch = inputs.reshape(-1, inputs.shape[-1])
        actions = np.asarray(self._plan(self.models, jax.random.key(seed), batch))
        return actions.reshape(*inputs.shape[:-1], -1)

    def inverse_dynamics(self, observation: np.ndarray, next_observation: np.ndarray):
        """The action between two observations, [..., S], [..., S] -> [..., A]."""
        states = (
            windows.normalise_observation(self.statistics, jnp.asarray(x, jnp.float32))
            for x in (observation, next_observation)
        )
        if self.functions.inverse_dynamics is None:
            raise UserError(f"method {self.config.method} has no inverse dynamics model")
        action = self._infer(self._need_models().inverse_dynamics, *states)
        return np.asarray(windows.denormalise_action(self.statistics, action))

    def imagine(
        self, key: jax.Array, observation: np.ndarray, action: np.ndarray, return_to_go: np.ndarray
    ) -> tuple[Transition, np.ndarray]:
        """Synthetic transitions from given starts, as the agents were trained on.

        Args:
          key: random number generator state, the key is consumed.
          observation: [B, S].
          action: [B, A], the first action.
          return_to_go: [B] discounted return of the start; the run's target rule is applied.

        Returns:
          Transitions [B, H, ...] and valid [B, H]: steps after a termination are not.
        """
        starts = (jnp.asarray(x, jnp.float32) for x in (observation, action, return_to_go))
        models = self._need_generator()
        return jax.tree.map(np.asarray, self._imagine(models, key, *starts))

    def generator(
        self, replay: windows.Replay, num_windows: int
    ) -> Callable[[jax.Array], tuple[Transition, jax.Array]]:
        """Compiles the generation of windows from random training steps.

        Args:
          replay: the data of the run.
          num_windows: B.

        Returns:
          key -> transitions [B, H, ...] and valid [B, H] on the device, dispatched without
          waiting; as `imagine` gives them from starts drawn as in training.
        """
        models = self._need_generator()

        def program(key, models, replay):
            out, valid = fused.imagine_from_data(
                key, models, replay, imagine=self.functions.imagine, num_windows=num_windows
            )
            return windows.raw_windows(self.statistics, out, valid, num_windows=num_windows)

        compiled = jax.jit(program).lower(jax.random.key(0), models, replay).compile()
        return lambda key: compiled(key, models, replay)

    def with_rollout(self, **settings: Any) -> "LoadedRun":
        """The same run with other settings of `config.rollout`, such as guidance=2.0.

        Raises:
          UserError: a value out of its range.
        """
        config = ml_collections.ConfigDict(self.config.to_dict())
        config.rollout.update(settings)
        functions = assemble(config, self.statistics)
        return dataclasses.replace(self, config=config, functions=functions)

    @functools.cached_property
    def _act(self) -> Callable[..., jax.Array]:
        return jax.jit(functools.partial(raw_action, self.functions.agent, self.statistics))

    @functools.cached_property
    def _plan(self) -> Callable[..., jax.Array]:
        assert self.functions.plan is not None
        return jax.jit(self.functions.plan)

    @functools.cached_property
    def _infer(self) -> Callable[..., jax.Array]:
        assert self.functions.inverse_dynamics is not None
        return jax.jit(self.functions.inverse_dynamics.infer)

    @functools.cached_property
    def _imagine(self) -> Callable[..., tuple[Transition, jax.Array]]:
        assert self.functions.imagine is not None
        imagine = self.functions.imagine

        def program(models, key, observation, action, return_to_go):
            condition = Condition(
                windows.normalise_observation(self.statistics, observation),
                windows.normalise_action(self.statistics, action),
                return_to_go / self.statistics.return_scale,
            )
            out, valid = imagine(models, key, condition)
            return windows.raw_windows(self.statistics, out, valid, num_windows=len(observation))

        return jax.jit(program)

    def _need_generator(self) -> fused.Models:
        if self.config.method in ("dwm", "decision_diffuser"):
            raise UserError(f"method {self.config.method} generates no transitions")
        return self._need_models()

    def _need_models(self) -> fused.Models:
        if self.models is None:
            raise UserError("this run was trained on real data only: it has no models")
        return self.models


def load_run(workdir: str | pathlib.Path) -> LoadedRun:
    """Loads what a run saved last.

    Args:
      workdir: the run's folder.

    Raises:
      UserError: it is no run, or has no agent's checkpoint yet.
    """
    workdir = pathlib.Path(workdir).expanduser()
    path = workdir / "config.json"
    if not path.is_file():
        raise UserError(f"{workdir} is not a run: expected a config.json in it")
    config = _read_config(path)
    plans = config.method == "decision_diffuser"
    blank = _blank_statistics(workdir, "world_model" if plans else "agent")
    functions = assemble(config, blank)
    key = jax.random.key(0)
    load = functools.partial(_load, workdir, statistics=blank)

    saved, models, policies = {}, None, None
    if config.training.real_fraction < 1.0:
        saved = {name: load(name, model.init, key) for name, model in functions.models.items()}
        models = fused.Models(**{name: s["state"].average for name, s in saved.items()})
    if not plans:
        keys = jax.random.split(key, config.num_seeds)
        saved["agent"] = load("agent", jax.vmap(functions.init_run), keys)
        policies = saved["agent"]["state"].agent
    statistics = next(iter(saved.values()))["statistics"]
    return LoadedRun(
        config=config,
        statistics=statistics,
        policies=policies,
        models=models,
        functions=assemble(config, statistics),
    )


def _read_config(path: pathlib.Path) -> Any:
    """A run's configuration; fields that are younger than the run say what it did."""
    stored = json.loads(path.read_text())
    stored = {"method": "dawm", "top_fraction": 1.0, **stored}
    stored["rollout"] = {"real_actions_only": False, **stored["rollout"]}
    return ml_collections.ConfigDict(stored)


def _blank_statistics(workdir: pathlib.Path, stage: str) -> Statistics:
    """Zeros of the shapes that the run's statistics have."""
    checkpoints = _checkpoints(workdir, stage)
    shapes = checkpoints.shapes()["statistics"]
    checkpoints.close()
    if differing := set(shapes) ^ set(Statistics.__dataclass_fields__):
        raise UserError(
            f"{workdir} was made by another version of dawm_jax (its statistics differ in "
            f"{', '.join(sorted(differing))}): load it with that version, or train it again"
        )
    return Statistics(**{name: jnp.zeros(shape) for name, shape in shapes.items()})


def _load(workdir: pathlib.Path, stage: str, init, key: jax.Array, *, statistics: Statistics):
    """A stage's newest checkpoint; `init` and `statistics` give its structure."""
    shapes = {"state": jax.eval_shape(init, key), "statistics": statistics}
    checkpoints = _checkpoints(workdir, stage)
    restored = checkpoints.restore(parallel.on_one_device(shapes))
    checkpoints.close()
    assert restored is not None  # `_checkpoints` found one
    return restored[0]


def _checkpoints(workdir: pathlib.Path, stage: str) -> Checkpoints:
    folder = workdir / "checkpoints" / stage
    checkpoints = Checkpoints(folder) if folder.is_dir() else None
    if checkpoints is None or checkpoints.latest_step() is None:
        raise UserError(f"{workdir} has no checkpoint of its {stage} stage yet: resume the run")
    return checkpoints
