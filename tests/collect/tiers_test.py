"""D4RL's tiers: which policy makes which part, and the same data from the same seed."""

import jax
import minari
import numpy as np
import pytest

from dawm_jax.collect import episodes as episodes_lib
from dawm_jax.collect import sac, tiers
from dawm_jax.collect.policies import Policies, shipped_environments, shipped_policies
from dawm_jax.config import schema
from dawm_jax.data import TIERS
from dawm_jax.data.load import load_dataset
from dawm_jax.data.minari_source import is_local
from dawm_jax.envs.tasks import task_name
from dawm_jax.types import UserError


def make_actor(seed):
    networks = sac.make_networks((8,), 3)
    return networks.actor.init(jax.random.key(seed), np.zeros((1, 11)))


def make_policies():
    names = ("medium", "expert", "replay-0", "replay-1")
    actors = {name: make_actor(seed) for seed, name in enumerate(names)}
    card = {"policies": {"medium": {"step": 1234, "return_mean": 1.0}}}
    return Policies("Hopper-v5", actors, card)


@pytest.fixture(autouse=True)
def _root(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))


def collect(tier, steps=600, seed=0, **options):
    recipe = tiers.Recipe("Hopper-v5", tier, steps)
    tiers.make("test/hopper/it-v0", recipe, make_policies(), seed=seed, **options)
    return minari.load_dataset("test/hopper/it-v0")


# --- tiers --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tier", "expected"),
    [
        ("random", [(None, 1.0)]),
        ("medium", [("medium", 1.0)]),
        ("expert", [("expert", 1.0)]),
        ("medium-expert", [("medium", 0.5), ("expert", 0.5)]),
        ("medium-replay", [("replay-0", 0.5), ("replay-1", 0.5)]),
    ],
)
def test_a_tiers_policies(tier, expected):
    assert tiers.parts_of(tier, make_policies()) == expected


def test_sizes_of_tiers():
    sizes = {tier: tiers.default_steps(tier, make_policies()) for tier in TIERS}
    assert sizes == {
        "random": 1_000_000,
        "medium": 1_000_000,
        "expert": 1_000_000,
        "medium-expert": 2_000_000,
        "medium-replay": 1234,
    }


def test_medium_expert_is_half_of_each():
    dataset = collect("medium-expert", steps=800)
    episodes = list(dataset.iterate_episodes())
    lengths = np.cumsum([len(e.rewards) for e in episodes])
    border = int(np.searchsorted(lengths, 400)) + 1
    policies, part_seeds = make_policies(), []
    for index in range(2):
        part_seeds.append(int(np.random.SeedSequence((0, index)).generate_state(1)[0]))
    halves = [
        list(episodes_lib.episodes("Hopper-v5", policies.actors[name], steps=400, seed=seed))
        for name, seed in zip(("medium", "expert"), part_seeds, strict=True)
    ]
    assert len(halves[0]) == border
    for got, expected in zip(episodes, halves[0] + halves[1], strict=True):
        np.testing.assert_array_equal(got.observations, expected.observations)
        np.testing.assert_array_equal(got.actions, expected.actions)


def test_the_seed_decides():
    first = load_dataset("test/hopper/it-v0", cache=False) if collect("medium") else None
    again = (
        load_dataset("test/hopper/it-v0", cache=False)
        if collect("medium", overwrite=True)
        else None
    )
    np.testing.assert_array_equal(first.observations, again.observations)
    collect("medium", seed=1, overwrite=True)
    other = load_dataset("test/hopper/it-v0", cache=False)
    assert not np.array_equal(first.observations[:50], other.observations[:50])


def test_metadata_tells_how_it_was_made():
    dataset = collect("medium-replay")
    metadata = dataset.storage.metadata
    assert metadata["ref_max_score"] == 3234.3
    assert "--tier=medium-replay --steps=600 --seed=0" in metadata["collection"]["command"]
    assert metadata["collection"]["policies"]["policies"]["medium"]["step"] == 1234
    assert dataset.env_spec.id == "Hopper-v5"
    assert dataset.total_steps >= 600


def test_an_interrupted_collection_leaves_nothing(tmp_path, monkeypatch):
    made = []

    def broken(*args, **kwargs):
        for episode in list(complete(*args, **kwargs))[:2]:
            made.append(episode)
            yield episode
        raise KeyboardInterrupt

    complete = episodes_lib.episodes
    monkeypatch.setattr(episodes_lib, "episodes", broken)
    with pytest.raises(KeyboardInterrupt):
        collect("medium")
    assert len(made) == 2
    assert not list((tmp_path / "minari").rglob("*.hdf5"))
    assert not is_local("test/hopper/it-v0")


def test_unknown_tiers():
    with pytest.raises(UserError, match=r"--tier: expected one of random, .* got 'best'"):
        collect("best")


# --- names --------------------------------------------------------------------------------


def test_standard_names_are_recipes():
    assert tiers.recipe_of("dawm/hopper/medium-v1") == ("Hopper-v5", "medium", None)
    assert tiers.recipe_of("dawm/walker2d/medium-replay-200k-v1") == (
        "Walker2d-v5",
        "medium-replay",
        200_000,
    )
    others = ("hopper/medium-v0", "ant/medium-v1", "humanoid/medium-v1", "hopper/best-v1")
    for other in ("mujoco/hopper/medium-v1", *(f"dawm/{name}" for name in others)):
        assert tiers.recipe_of(other) is None


def test_policies_of_every_shipped_environment_make_datasets_of_standard_names():
    """Every one is a registered task."""
    assert len(shipped_environments()) >= 3
    for environment in shipped_environments():
        recipe = tiers.recipe_of(f"dawm/{task_name(environment)}/expert-v1")
        assert recipe == (environment, "expert", None)


@pytest.mark.parametrize("task", ["hopper", "walker2d", "halfcheetah"])
@pytest.mark.parametrize("tier", ["medium", "medium-replay", "medium-expert"])
def test_the_nine_configured_datasets_need_no_network(task, tier):
    import importlib

    module = importlib.import_module(f"configs.{task}")
    for scale, size in (("", None), (",quick", 200_000)):
        config = module.get_config(tier + scale)
        recipe = tiers.recipe_of(config.dataset)
        assert recipe == (config.environment, tier, size)
        policies = shipped_policies(recipe.environment)
        assert tiers.parts_of(tier, policies)
        assert tiers.default_steps(tier, policies) >= 50_000


def test_a_missing_dataset_of_a_standard_name_is_collected(monkeypatch):
    name = "dawm/hopper/random-1k-v1"
    dataset = load_dataset(name, cache=False)
    assert 1000 <= len(dataset) < 1200
    assert dataset.environment == "Hopper-v5"
    monkeypatch.setattr(tiers, "make", None)  # it exists: nothing to make
    np.testing.assert_array_equal(load_dataset(name, cache=False).rewards, dataset.rewards)


def test_only_the_random_tier_needs_no_policies():
    with pytest.raises(UserError, match="only the random tier can be collected without policies"):
        tiers.make("test/hopper/it-v0", tiers.Recipe("Hopper-v5", "expert", 100), None, seed=0)
    assert not is_local("test/hopper/it-v0")


def test_configurations_without_a_tier():
    assert schema.get_config().dataset == "bundled/hopper/medium-v0"
    walker = schema.get_config("quick", environment="Walker2d-v5")
    assert walker.dataset == "dawm/walker2d/medium-200k-v1"
    assert walker.num_seeds == 1
    for wrong in ("fast", "quick,medium", "medium,fast"):
        with pytest.raises(ValueError, match="unknown variant"):
            schema.get_config(wrong)
