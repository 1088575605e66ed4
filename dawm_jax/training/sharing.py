"""Trained models of another run: checked to be those that this run would train, and copied."""

import dataclasses
import hashlib
import logging
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from dawm_jax.config import schema
from dawm_jax.config.schema import Config
from dawm_jax.methods.base import METHODS
from dawm_jax.models.sampler import Sampler
from dawm_jax.runtime import checkpoint, run_folder
from dawm_jax.runtime.metrics import MetricsFile
from dawm_jax.runtime.run_folder import DatasetRecord
from dawm_jax.training.setup import Setup
from dawm_jax.types import Normalizer, UserError

_log = logging.getLogger(__name__)

# Settings outside sections that change nothing of a model's training. A model itself holds those
# that it is built with, such as the horizon; data are compared by their digest.
_WITHOUT_EFFECT = (
    "variant",
    "dataset",
    "method",
    "agent",
    "num_seeds",
    "horizon",
    "parallel",
    "tensorboard",
    "wandb_project",
)
# How often a model is saved and logged changes no number of it.
_REPORTING = ("checkpoint_steps", "log_steps")
_FLAG = "--models_from"


@dataclasses.dataclass(frozen=True)
class SharedModel:
    """A trained model of another run.

    Attributes:
      name: of the model and its stage.
      steps: of its training, and of its last checkpoint.
      source: folder of the run that trained it.
    """

    name: str
    steps: int
    source: pathlib.Path

    @property
    def checkpoint(self) -> pathlib.Path:
        """The folder of its last checkpoint."""
        return self.source / "checkpoints" / self.name / str(self.steps)


def find(
    parts: Setup, workdir: pathlib.Path, source: pathlib.Path, dataset: DatasetRecord
) -> list[SharedModel]:
    """Models of another run that equal, bit for bit, those that this run would train.

    A run of the same method must share all models. A run of another method may lack some, or have
    some of another kind under the same name: this run trains these.

    Args:
      parts: what this run computes with.
      workdir: its folder; a model that has a checkpoint there is left out.
      source: folder of the other run.
      dataset: the data of this run.

    Raises:
      UserError: no model of the other run fits, and why; or it is not trained to its end.
    """
    config = parts.config
    if not METHODS.get(config.method).trains_models(config):
        raise UserError(f"{_FLAG}={source}: this run on real data only trains no models; leave out")
    missing = [
        name
        for name in parts.method.models
        if checkpoint.newest_step(workdir / "checkpoints" / name) is None
    ]
    if not missing:
        return []
    other = schema.of_run(source)
    _check_data(source, dataset)
    _refuse(source, _different_settings(other, config))
    theirs = METHODS.get(other.method).make(other, parts.normalizer).models
    found, differences = [], []
    for name in missing:
        if name not in theirs or not METHODS.get(other.method).trains_models(other):
            differences.append(f"it has no {name}")
        elif unlike := _different_fields(name, theirs[name], parts.method.models[name]):
            differences += unlike
        else:
            found.append(SharedModel(name, parts.method.models[name].settings.steps, source))
    if differences and (other.method == config.method or not found):
        _refuse(source, differences)
    for model in found:
        _check_trained(model)
    return found


def copy(models: list[SharedModel], workdir: pathlib.Path, log: MetricsFile) -> None:
    """Copies the last checkpoints of `models` and what was recorded of their training.

    Each model appears in the folder whole or not at all; a killed call can be repeated.

    Args:
      models: what `find` found.
      workdir: the folder of the run that they are copied to.
      log: its metrics.jsonl; the lines get the field "trained_in".
    """
    for model in models:
        part = workdir / f".{model.name}.part"
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(model.checkpoint, part / str(model.steps))
        log.rewind(model.name, -1)
        for entry in MetricsFile(model.source / "metrics.jsonl").lines(model.name):
            values = {k: v for k, v in entry.items() if k not in ("stage", "kind", "step")}
            log.append(
                model.name,
                entry["kind"],
                entry["step"],
                {"trained_in": str(model.source), **values},
            )
        target = workdir / "checkpoints" / model.name
        shutil.rmtree(target, ignore_errors=True)  # without any complete checkpoint
        target.parent.mkdir(exist_ok=True)
        part.replace(target)
        _log.info("%s: trained in %s, copied", model.name, model.source)


# --- checks -------------------------------------------------------------------------------


def _check_data(source: pathlib.Path, dataset: DatasetRecord) -> None:
    """Refuses a run on other data; statistics in its checkpoints are compared in any case."""
    stored = run_folder.read_dataset(source)
    if stored is not None and stored.digest != dataset.digest:
        _refuse(source, [f"data: {stored.summary} there, {dataset.summary} here"])


def _check_trained(model: SharedModel) -> None:
    if checkpoint.newest_step(model.checkpoint.parent) != model.steps:
        raise UserError(
            f"{_FLAG}={model.source}: its {model.name} is not trained to the end (step "
            f"{model.steps:,}): finish that run first"
        )
    if found := checkpoint.damage(model.checkpoint):
        raise UserError(
            f"{_FLAG}={model.source}: {model.checkpoint} is damaged ({found}): run that run's "
            "command to train it again"
        )


def _refuse(source: pathlib.Path, differences: list[str]) -> None:
    if differences:
        raise UserError(
            f"{_FLAG}={source}: its models are not those of this run ("
            f"{'; '.join(differences[:4])}{'; …' if len(differences) > 4 else ''}); name another "
            f"run, or leave out {_FLAG}"
        )


def _different_settings(there: Config, here: Config) -> list[str]:
    """Settings outside sections that change what models learn."""
    old, new = schema.to_dict(there), schema.to_dict(here)
    names = [name for name in new if name not in _WITHOUT_EFFECT]
    names = [name for name in names if not isinstance(new[name], Mapping)]
    return [
        f"{name}: {old[name]!r} there, {new[name]!r} here"
        for name in names
        if old[name] != new[name]
    ]


def _different_fields(name: str, there: object, here: object) -> list[str]:
    """Fields in which two models differ."""
    old, new = dict(_fields(there, name)), dict(_fields(here, name))
    paths = [path for path in dict.fromkeys([*new, *old]) if old.get(path) != new.get(path)]
    return [f"{p}: {old.get(p, 'absent')} there, {new.get(p, 'absent')} here" for p in paths]


def _fields(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """(dotted name, value in words) of everything that a model's training depends on."""
    if isinstance(value, Sampler):
        return  # how the model is used
    if isinstance(value, Normalizer):  # the data decide its values
        yield path, f"{value.observation_mean.shape[0]} observation columns"
        return
    if dataclasses.is_dataclass(value):
        yield path, type(value).__name__
        # A module of flax also has a parent and a name.
        names = [field.name for field in dataclasses.fields(value)]
        skipped = (*_REPORTING, "parent", "name")
        for name in names:
            if name not in skipped:
                yield from _fields(getattr(value, name), f"{path}.{name}")
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        for name, item in zip(value._fields, value, strict=True):
            yield from _fields(item, f"{path}.{name}")
    elif isinstance(value, jax.Array | np.ndarray):
        array = np.asarray(value)
        digest = hashlib.sha256(array.tobytes()).hexdigest()[:12]
        yield path, f"{array.dtype}{list(array.shape)} {digest}"
    elif callable(value):
        yield path, getattr(value, "__qualname__", type(value).__name__)
    else:
        yield path, repr(value)
