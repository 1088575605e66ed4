"""D4RL's tiers of locomotion data, collected from behaviour policies as Minari datasets.

random acts uniformly; medium is the first snapshot of soft actor-critic whose return passes
R_random + (R_expert - R_random) / 3; medium-replay is up to 8 snapshots until medium, one after
the other, in place of medium's replay buffer; expert is the best policy; medium-expert is half
medium, half expert. Actions are sampled, and episodes are whole. A further tier, scripted, is of
the environments that have a controller (`collect.controllers`).
"""

import logging
import pathlib
import re
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from dawm_jax.collect import controllers
from dawm_jax.collect import episodes as episodes_lib
from dawm_jax.collect.policies import Policies, shipped_environments, shipped_policies
from dawm_jax.data import TIERS, minari_source, minari_writer
from dawm_jax.data.dataset import OfflineDataset
from dawm_jax.data.minari_source import MINARI
from dawm_jax.data.minari_writer import DatasetWriter, Episode
from dawm_jax.data.sources import SOURCES
from dawm_jax.envs.perturbed import UNCHANGED, Physics
from dawm_jax.envs.tasks import TASKS
from dawm_jax.runtime import provenance
from dawm_jax.runtime.metrics import Progress
from dawm_jax.runtime.stopping import Interrupted, StopFlag, stop_on_signals
from dawm_jax.types import Params, UserError

_log = logging.getLogger(__name__)

_NUM_REPORTS = 20  # lines of progress
POLL_S = 0.5  # between looks at another process's lock
# dawm/hopper/medium-replay-v1, or with an explicit size: dawm/hopper/medium-200k-v1
_NAME = re.compile(r"dawm/([a-z0-9_.-]+)/(" + "|".join(TIERS) + r")(?:-(\d+)k)?-v1")

_POLICIES_OF = {
    "random": "uniformly random actions",
    "medium": "sampled actions of soft actor-critic a third of the way from random to expert",
    "expert": "sampled actions of soft actor-critic at its best",
    "medium-expert": "half medium, half expert, sampled actions",
    "medium-replay": "sampled actions of the policies of soft actor-critic up to medium",
    "scripted": "a scripted controller with noise of a deviation that differs between episodes",
}
# Of the tiers that no policies of soft actor-critic act in; the others have "SAC".
_ALGORITHMS = {"random": "random", "scripted": "scripted"}


class Recipe(NamedTuple):
    """What a collected dataset is made of."""

    environment: str  # Gymnasium id
    tier: str  # one of TIERS
    steps: int | None  # at least so many environment steps; None: the tier's default
    max_steps: int = 0  # time limit of an episode; 0: the environment's
    physics: Physics = UNCHANGED  # of the simulator


class Part(NamedTuple):
    """The share of one policy in a tier."""

    policy: str | None  # name in `Policies.actors`; None acts uniformly at random
    share: float  # of the steps


# --- what a tier is -----------------------------------------------------------------------


def recipe_of(name: str) -> Recipe | None:
    """The recipe that a standard dataset name stands for; None for other names.

    Standard names are dawm/TASK/TIER-v1 and dawm/TASK/TIER-STEPSk-v1, where TASK is a registered
    task (`envs.tasks`) that policies ship for or, in the tier scripted, that has a controller.
    """
    match = _NAME.fullmatch(name)
    if match is None or match[1] not in TASKS:
        return None
    environment = TASKS.get(match[1]).environment
    if not needs_policies(match[2]):
        known = match[2] == "random" or controllers.find_controller(environment) is not None
    else:
        known = environment in shipped_environments()
    if not known:
        return None
    return Recipe(environment, match[2], int(match[3]) * 1000 if match[3] else None)


def needs_policies(tier: str) -> bool:
    """Whether policies of soft actor-critic act in a tier."""
    return tier not in _ALGORITHMS


def parts_of(tier: str, policies: Policies | None) -> list[Part]:
    """The policies of a tier and their shares of the steps.

    Raises:
      UserError: an unknown tier.
    """
    if not needs_policies(tier):
        return [Part(None, 1.0)]
    if tier in ("medium", "expert"):
        return [Part(tier, 1.0)]
    if tier == "medium-expert":
        return [Part("medium", 0.5), Part("expert", 0.5)]
    if tier == "medium-replay" and policies is not None:
        names = [name for name in policies.actors if name.startswith("replay-")]
        return [Part(name, 1.0 / len(names)) for name in names]
    raise UserError(f"--tier: expected one of {', '.join(TIERS)}, got {tier!r}")


def default_steps(tier: str, policies: Policies | None) -> int:
    """Environment steps of D4RL's dataset; of medium-replay, those of the training to medium."""
    if tier == "medium-replay" and policies is not None:
        return policies.card["policies"]["medium"]["step"]
    return 2_000_000 if tier == "medium-expert" else 1_000_000


# --- collecting ---------------------------------------------------------------------------


def make(
    name: str,
    recipe: Recipe,
    policies: Policies | None,
    *,
    seed: int,
    overwrite: bool = False,
    stop: StopFlag | None = None,
) -> None:
    """Collects a tier into a Minari dataset, which appears only when it is complete.

    Args:
      name: Minari id of the new dataset.
      recipe: what to collect.
      policies: of the environment; may be None for the tiers random and scripted.
      seed: of resets and actions.
      overwrite: replace a dataset of this id.
      stop: looked at before every step.

    Raises:
      UserError: unknown tier, no policies for it, an environment that `episodes.episodes`
        refuses, or the dataset cannot be written.
      Interrupted: `stop` was set; nothing of the dataset is kept.
    """
    parts = parts_of(recipe.tier, policies)
    steps = default_steps(recipe.tier, policies) if recipe.steps is None else recipe.steps
    start = time.monotonic()
    metadata = _metadata(name, recipe, policies, steps=steps, seed=seed)
    with DatasetWriter(
        name,
        environment=recipe.environment,
        metadata=metadata,
        overwrite=overwrite,
        environment_kwargs=episodes_lib.limit_kwargs(recipe.max_steps),
    ) as writer:
        try:
            _write(writer, recipe, parts, policies, steps=steps, seed=seed, stop=stop)
        except Interrupted as interruption:
            where = f"the collection of {name} at step {writer.steps:,}, of which nothing is kept"
            raise Interrupted(where) from interruption
        digest = minari_source.from_episodes(name, list(writer.written())).digest
        seconds = round(time.monotonic() - start, 1)
        metadata["collection"] |= {"digest": digest, "seconds": seconds}
    _log.info("%s has the digest %s", name, digest)


def _write(
    writer: DatasetWriter,
    recipe: Recipe,
    parts: list[Part],
    policies: Policies | None,
    *,
    steps: int,
    seed: int,
    stop: StopFlag | None,
) -> None:
    """Collects the parts one after the other, and reports the progress."""
    progress = Progress("collect", steps, "step")
    reported = 0
    for index, part in enumerate(parts):
        actor = _actor(recipe.tier, policies, part.policy)
        part_seed = int(np.random.SeedSequence((seed, index)).generate_state(1)[0])
        part_steps = round(part.share * steps)
        for episode in _episodes(recipe, actor, steps=part_steps, seed=part_seed, stop=stop):
            writer.add(*episode)
            if writer.steps - reported >= steps // _NUM_REPORTS:
                reported = writer.steps
                progress.report(min(writer.steps, steps), {"return": episode.rewards.sum()})
    progress.close()


def _episodes(
    recipe: Recipe, actor: Params | None, *, steps: int, seed: int, stop: StopFlag | None
) -> Iterator[Episode]:
    """Episodes of the controller, of a policy, or of uniformly random actions."""
    if recipe.tier == "scripted":
        return controllers.episodes(
            recipe.environment, steps=steps, seed=seed, max_steps=recipe.max_steps, stop=stop
        )
    return episodes_lib.episodes(
        recipe.environment,
        actor,
        steps=steps,
        seed=seed,
        max_steps=recipe.max_steps,
        physics=recipe.physics,
        stop=stop,
    )


def _actor(tier: str, policies: Policies | None, name: str | None) -> Params | None:
    if name is None:
        return None
    if policies is None:
        raise UserError(f"--tier={tier}: expected policies, which this tier is collected with")
    return policies.actors[name]


def _metadata(
    name: str, recipe: Recipe, policies: Policies | None, *, steps: int, seed: int
) -> dict[str, Any]:
    environment, tier, _, max_steps, physics = recipe
    options = f" --max_steps={max_steps}" if max_steps else ""
    options += f" --physics={physics}" if physics.changed() else ""
    what = _POLICIES_OF[tier]
    return {
        "description": f"{environment}, {what}; whole episodes.",
        "algorithm_name": _ALGORITHMS.get(tier, "SAC"),
        "code_permalink": "",
        "collection": {
            "command": f"python -m dawm_jax.collect --env={environment} --tier={tier} "
            f"--steps={steps} --seed={seed}{options} --dataset_id={name}",
            "tier": tier,
            "seed": seed,
            "physics": physics.changed(),
            "policies": None if policies is None else policies.card,
            "versions": provenance.versions(),
            "cpu": provenance.cpu_model(),
        },
    }


# --- as a source of datasets --------------------------------------------------------------


class TierSource:
    """Collects a dataset of a standard name once, and then reads it with the Minari source."""

    name = "tiers"
    priority = 20

    def matches(self, name: str) -> bool:
        match = _NAME.fullmatch(name)
        return match is not None and match[1] in TASKS

    def fetch(self, name: str) -> tuple[pathlib.Path, ...]:
        if not minari_source.is_local(name):
            recipe = _recipe_or_refuse(name)
            with stop_on_signals() as stop:
                _collect_once(name, recipe, stop)
        return MINARI.fetch(name)

    def load(self, name: str) -> OfflineDataset:
        return MINARI.load(name)


def _recipe_or_refuse(name: str) -> Recipe:
    """`recipe_of` a standard name of a registered task.

    Raises:
      UserError: the package cannot collect this tier of the task.
    """
    if (recipe := recipe_of(name)) is not None:
        return recipe
    match = _NAME.fullmatch(name)
    assert match is not None
    tiers = [tier for tier in TIERS if recipe_of(f"dawm/{match[1]}/{tier}-v1")]
    raise UserError(
        f"dataset {name}: the package can collect {', '.join(tiers)} of this task, not {match[2]}; "
        "choose one of these, or collect it with policies of your own (python -m dawm_jax.collect "
        "--train)"
    )


def _collect_once(name: str, recipe: Recipe, stop: StopFlag) -> None:
    """Collects a dataset, or waits for the process that does.

    Raises:
      Interrupted: `stop` was set.
    """
    policies = shipped_policies(recipe.environment) if needs_policies(recipe.tier) else None
    while not minari_source.is_local(name):
        if minari_writer.is_being_written(name):
            _wait_for_writer(name, stop)  # the lock of a process that died is free
            continue
        _log.info("%s is collected on first use", name)
        try:
            make(name, recipe, policies, seed=0, stop=stop)
        except minari_writer.BeingWrittenError:
            continue
        except minari_writer.ExistsError:
            if not minari_source.is_local(name):
                raise
    stop.check(f"the collection of {name}, which is complete")


def _wait_for_writer(name: str, stop: StopFlag) -> None:
    _log.info("%s is being collected by another process; waiting for it", name)
    while minari_writer.is_being_written(name):
        stop.check(f"the wait for {name}, which another process collects")
        time.sleep(POLL_S)


SOURCES.register(TierSource())
