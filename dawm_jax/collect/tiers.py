"""D4RL's tiers of locomotion data, collected again from behaviour policies.

random; medium (soft actor-critic stopped at a third of the expert's score); medium-replay
(what it had seen by then: its policies on the way, one after the other); expert;
medium-expert (half of each). Actions are sampled, episodes are whole.
"""

import logging
import re
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from dawm_jax.collect import train_sac as behaviour
from dawm_jax.collect.train_sac import Policies
from dawm_jax.data import dataset as data
from dawm_jax.data.minari_writer import DatasetWriter
from dawm_jax.envs import simulate
from dawm_jax.runtime.metrics import Progress
from dawm_jax.types import UserError

_log = logging.getLogger(__name__)

TIERS = ("random", "medium", "medium-replay", "expert", "medium-expert")
_MAX_COPIES = 32
_REPORTS = 20  # lines of progress
# Every copy finishes its last episode: with fewer steps each, that would be much more data.
_STEPS_PER_COPY = 10_000


class Episode(NamedTuple):
    """One whole episode of T steps, as Gymnasium returned it."""

    observations: np.ndarray  # [T + 1, S] float64
    actions: np.ndarray  # [T, A] float32
    rewards: np.ndarray  # [T] float64
    terminations: np.ndarray  # [T] bool
    truncations: np.ndarray  # [T] bool


def parts_of(tier: str, policies: Policies | None) -> list[tuple[str | None, float]]:
    """The policies of a tier and each one's share of the steps; None acts at random.

    Raises:
      UserError: an unknown tier.
    """
    if tier == "random":
        return [(None, 1.0)]
    if tier in ("medium", "expert"):
        return [(tier, 1.0)]
    if tier == "medium-expert":
        return [("medium", 0.5), ("expert", 0.5)]
    if tier == "medium-replay" and policies is not None:
        names = [name for name in policies.actors if name.startswith("replay-")]
        return [(name, 1.0 / len(names)) for name in names]
    raise UserError(f"--tier: expected one of {', '.join(TIERS)}, got {tier!r}")


def default_steps(tier: str, policies: Policies | None) -> int:
    """D4RL's size of a tier; of medium-replay, what the training had seen by medium."""
    if tier == "medium-replay" and policies is not None:
        return policies.card["policies"]["medium"]["step"]
    return 2_000_000 if tier == "medium-expert" else 1_000_000


def episodes(
    environment: str, actor: Any | None, *, steps: int, seed: int, threads: int = 0
) -> Iterator[Episode]:
    """Whole episodes of one policy, until at least `steps` steps.

    Several copies of the environment are stepped together. Each goes from episode to episode
    until it has made its share of the steps and finishes the one it is in, so that long
    episodes are neither favoured nor cut.

    Args:
      environment: Gymnasium id.
      actor: parameters of a SAC policy, whose actions are sampled; None acts uniformly.
      steps: at least this many.
      seed: of resets and actions; the same seed gives the same episodes, in the same order.
      threads: of the simulator; they change nothing but the speed.
    """
    copies = int(np.clip(steps // _STEPS_PER_COPY, 1, _MAX_COPIES))
    env = simulate.make_environment(environment)
    act = _actions(env.action_space, actor, seed)
    env.close()
    quota = -(-steps // copies)
    simulator = simulate.make_simulator(environment, copies, threads=threads)
    started, made = 0, np.zeros(copies, int)

    def reset(index: int) -> list[np.ndarray]:
        nonlocal started
        started += 1
        return [simulator.reset(index, _reset_seed(seed, started))]

    try:
        observations = [reset(i) for i in range(copies)]
        rows: list[list[tuple]] = [[] for _ in range(copies)]
        active, step = np.arange(copies), 0
        while len(active):
            current = np.stack([observations[i][-1] for i in active]).astype(np.float32)
            actions = act(_padded(current, copies), step)[: len(active)]
            result, step = simulator.step(active, actions), step + 1
            made[active] += 1
            done = []
            for row, i in enumerate(active):
                observations[i].append(result.observations[row])
                ends = (result.rewards[row], result.terminated[row], result.truncated[row])
                rows[i].append((actions[row], *ends))
                if result.terminated[row] or result.truncated[row]:
                    yield _episode(observations[i], rows[i])
                    rows[i] = []
                    if made[i] >= quota:
                        done.append(i)
                    else:
                        observations[i] = reset(int(i))
            active = np.setdiff1d(active, done)
    finally:
        simulator.close()


def _actions(space: Any, actor: Any | None, seed: int):
    """(observations [n, S], step) -> actions [n, A] float32, in environment units."""
    if actor is None:

        def uniform(observations, step):
            rng = np.random.default_rng((seed, step))
            size = (len(observations), *space.shape)
            return rng.uniform(space.low, space.high, size).astype(np.float32)

        return uniform
    sampler, key = behaviour.make_sampler(space), jax.random.key(seed)
    return lambda observations, step: np.asarray(
        sampler(actor, observations, jax.random.fold_in(key, step))
    )


def _padded(rows: np.ndarray, size: int) -> np.ndarray:
    """Zero rows added up to `size`, so that the policy is compiled once."""
    return np.pad(rows, ((0, size - len(rows)), (0, 0)))


def _episode(observations: list[np.ndarray], rows: list[tuple]) -> Episode:
    actions, rewards, terminated, truncated = (np.array(x) for x in zip(*rows, strict=True))
    # Gymnasium may report both at once; a termination is never also a time-out here.
    return Episode(np.array(observations), actions, rewards, terminated, truncated & ~terminated)


def _reset_seed(seed: int, index: int) -> int:
    return int(np.random.SeedSequence((seed, index, 11)).generate_state(1)[0])


# --- datasets -----------------------------------------------------------------------------

# dawm/hopper/medium-replay-v1, or with a size of its own: dawm/hopper/medium-200k-v1
_NAME = re.compile(r"dawm/(\w+)/(" + "|".join(TIERS) + r")(?:-(\d+)k)?-v1")


class Recipe(NamedTuple):
    """What a dataset of a standard name is made of."""

    environment: str
    tier: str
    steps: int | None  # None: the tier's own size


def recipe_of(name: str) -> Recipe | None:
    """The recipe that a dataset's name stands for, or None if it is another dataset."""
    match = _NAME.fullmatch(name)
    environments = {e.split("-")[0].lower(): e for e in behaviour.shipped_environments()}
    if match is None or match[1] not in environments:
        return None
    return Recipe(environments[match[1]], match[2], int(match[3]) * 1000 if match[3] else None)


def ensure(name: str) -> None:
    """Collects a dataset of a standard name that is not there yet; leaves others alone.

    Raises:
      UserError: it cannot be written.
    """
    recipe = recipe_of(name)
    if recipe is None or data.is_local(name):
        return
    _log.info("%s is collected now, once, from the policies in the package", name)
    policies = behaviour.shipped_policies(recipe.environment)
    make(name, recipe, policies, seed=0)


def make(
    name: str, recipe: Recipe, policies: Policies | None, *, seed: int, overwrite: bool = False
) -> None:
    """Collects a tier into a Minari dataset; it appears only when it is complete.

    Args:
      name: Minari id of the new dataset.
      recipe: what to collect.
      policies: of the environment; None suffices for the random tier.
      seed: of resets and actions.
      overwrite: replace a dataset of this id.

    Raises:
      UserError: unknown tier, no policies for it, or it cannot be written.
    """
    environment, tier = recipe.environment, recipe.tier
    parts = parts_of(tier, policies)
    steps = recipe.steps or default_steps(tier, policies)
    start = time.monotonic()
    metadata: dict[str, Any] = {
        "description": _description(recipe, policies),
        "algorithm_name": "random" if tier == "random" else "SAC",
        "code_permalink": "",
        "collection": {
            "command": f"python -m dawm_jax.collect --env={environment} --tier={tier} "
            f"--steps={steps} --seed={seed} --dataset_id={name}",
            "tier": tier,
            "seed": seed,
            "policies": None if policies is None else policies.card,
        },
    }
    with DatasetWriter(
        name, environment=environment, metadata=metadata, overwrite=overwrite
    ) as writer:
        progress = Progress("collect", steps, "step")
        done, reported = 0, 0
        for index, (policy, share) in enumerate(parts):
            actor = None if policy is None else policies.actors[policy]  # type: ignore[union-attr]
            part_seed = int(np.random.SeedSequence((seed, index)).generate_state(1)[0])
            for episode in episodes(environment, actor, steps=round(share * steps), seed=part_seed):
                writer.add(*episode)
                done += len(episode.rewards)
                if done - reported >= steps // _REPORTS:
                    reported = done
                    progress.report(min(done, steps), {"return": episode.rewards.sum()})
        progress.close()
        metadata["collection"]["seconds"] = round(time.monotonic() - start, 1)


def _description(recipe: Recipe, policies: Policies | None) -> str:
    what = {
        "random": "uniformly random actions",
        "medium": "soft actor-critic stopped at a third of the expert's score",
        "expert": "soft actor-critic at its best",
        "medium-expert": "half medium, half expert",
        "medium-replay": "the policies that soft actor-critic went through up to medium",
    }[recipe.tier]
    return f"{recipe.environment}, {what}; sampled actions, whole episodes."
