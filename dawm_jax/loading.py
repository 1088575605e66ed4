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

from dawm_jax import fused, parallel, windows
from dawm_jax.assembly import Assembly, assemble, raw_action
from dawm_jax.checkpoint import Checkpoints
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
        if self.config.method in ("dwm", "decision_diffuser"):
            raise UserError(f"method {self.config.method} generates no transitions")
        span = self.statistics.action_high - self.statistics.action_low
        first = 2 * (jnp.asarray(action, jnp.float32) - self.statistics.action_low[None])
        condition = Condition(
            windows.normalise_observation(self.statistics, jnp.asarray(observation, jnp.float32)),
            first / span[None] - 1,
            jnp.asarray(return_to_go, jnp.float32) / self.statistics.return_scale,
        )
        out, valid = self._imagine(self._need_models(), key, condition)
        observe = functools.partial(windows.denormalise_observation, self.statistics)
        out = out._replace(
            observation=observe(out.observation),
            next_observation=observe(out.next_observation),
            action=windows.denormalise_action(self.statistics, out.action),
        )
        split = lambda x: np.asarray(x).reshape(len(first), -1, *x.shape[1:])
        return jax.tree.map(split, out), split(valid)

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
        return jax.jit(self.functions.imagine)

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
