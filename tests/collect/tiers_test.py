"""D4RL's tiers: which policy made what, whole episodes, the same data from the same seed."""

import gymnasium as gym
import jax
import minari
import numpy as np
import pytest

from configs import common
from dawm_jax.collect import sac, tiers
from dawm_jax.collect import train_sac as behaviour
from dawm_jax.collect.train_sac import Policies
from dawm_jax.data import dataset as data
from dawm_jax.envs import simulate
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


# --- episodes -----------------------------------------------------------------------------


def test_episodes_are_what_the_environment_does():
    """Every episode again, in Gymnasium, from its start and with its actions."""
    env = gym.make("Hopper-v5").unwrapped
    count = 0
    for episode in tiers.episodes("Hopper-v5", make_actor(0), steps=300, seed=3):
        first = episode.observations[0]
        env.reset(seed=0)
        env.set_state(np.concatenate([[0.0], first[:5]]), first[5:])
        for t, action in enumerate(episode.actions):
            observation, reward, terminated, _, _ = env.step(action)
            # From the same full state, so to rounding: x differs by its initial noise.
            np.testing.assert_allclose(observation, episode.observations[t + 1], atol=1e-8)
            np.testing.assert_allclose(reward, episode.rewards[t], atol=1e-8)
            assert terminated == episode.terminations[t]
        assert episode.observations.shape == (len(episode.actions) + 1, 11)
        assert episode.terminations[-1] != episode.truncations[-1]
        count += 1
    env.close()
    assert count > 5


def test_actions_are_the_policys_on_what_it_saw():
    actor, seed = make_actor(0), 4
    space = gym.spaces.Box(-1, 1, (3,))
    sampler, key = behaviour.make_sampler(space), jax.random.key(seed)
    # 300 steps are one copy: its steps are numbered through all of its episodes.
    step = 0
    for episode in tiers.episodes("Hopper-v5", actor, steps=300, seed=seed):
        for t, action in enumerate(episode.actions):
            seen = episode.observations[t][None].astype(np.float32)
            expected = sampler(actor, seen, jax.random.fold_in(key, step))[0]
            np.testing.assert_array_equal(action, expected)
            step += 1


def test_time_outs_are_truncations(monkeypatch):
    make = simulate.make_simulator

    def short(environment, num, *, threads):
        simulator = make(environment, num, threads=threads)
        simulator._limit = 7
        return simulator

    monkeypatch.setattr(simulate, "make_simulator", short)
    made = list(tiers.episodes("HalfCheetah-v5", None, steps=40, seed=0))
    assert [len(e.rewards) for e in made] == [7] * 6  # the first whole episode past 40 steps
    assert all(e.truncations[-1] and not e.terminations.any() for e in made)


def test_copies_share_the_steps_and_threads_change_nothing(monkeypatch):
    monkeypatch.setattr(tiers, "_STEPS_PER_COPY", 100)
    one, two = (
        list(tiers.episodes("Hopper-v5", make_actor(1), steps=500, seed=1, threads=threads))
        for threads in (1, 2)
    )
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        jax.tree.map(np.testing.assert_array_equal, a, b)
    total = sum(len(e.rewards) for e in one)
    longest = max(len(e.rewards) for e in one)
    assert 500 <= total < 500 + 5 * longest
    starts = {e.observations[0].tobytes() for e in one}
    assert len(starts) == len(one)


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
    sizes = {tier: tiers.default_steps(tier, make_policies()) for tier in tiers.TIERS}
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
        list(tiers.episodes("Hopper-v5", policies.actors[name], steps=400, seed=seed))
        for name, seed in zip(("medium", "expert"), part_seeds, strict=True)
    ]
    assert len(halves[0]) == border
    for got, expected in zip(episodes, halves[0] + halves[1], strict=True):
        np.testing.assert_array_equal(got.observations, expected.observations)
        np.testing.assert_array_equal(got.actions, expected.actions)


def test_the_seed_decides():
    first = data.load_dataset("test/hopper/it-v0", cache=False) if collect("medium") else None
    again = (
        data.load_dataset("test/hopper/it-v0", cache=False)
        if collect("medium", overwrite=True)
        else None
    )
    np.testing.assert_array_equal(first.observations, again.observations)
    collect("medium", seed=1, overwrite=True)
    other = data.load_dataset("test/hopper/it-v0", cache=False)
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
        for episode in list(tiers_episodes(*args, **kwargs))[:2]:
            made.append(episode)
            yield episode
        raise KeyboardInterrupt

    tiers_episodes = tiers.episodes
    monkeypatch.setattr(tiers, "episodes", broken)
    with pytest.raises(KeyboardInterrupt):
        collect("medium")
    assert len(made) == 2
    assert not list((tmp_path / "minari").rglob("*.hdf5"))
    assert not data.is_local("test/hopper/it-v0")


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
    for other in ("dawm/hopper/medium-v0", "mujoco/hopper/medium-v1", "dawm/ant/medium-v1"):
        assert tiers.recipe_of(other) is None


@pytest.mark.parametrize("task", ["hopper", "walker2d", "halfcheetah"])
@pytest.mark.parametrize("tier", ["medium", "medium-replay", "medium-expert"])
def test_the_nine_configured_datasets_need_no_network(task, tier):
    import importlib

    module = importlib.import_module(f"configs.{task}")
    for scale, size in (("", None), (",quick", 200_000)):
        config = module.get_config(tier + scale)
        recipe = tiers.recipe_of(config.dataset)
        assert recipe == (config.environment, tier, size)
        policies = behaviour.shipped_policies(recipe.environment)
        assert tiers.parts_of(tier, policies)
        assert tiers.default_steps(tier, policies) >= 50_000


def test_a_missing_dataset_of_a_standard_name_is_collected(monkeypatch):
    name = "dawm/hopper/random-1k-v1"
    tiers.ensure(name)
    dataset = data.load_dataset(name, cache=False)
    assert 1000 <= len(dataset) < 1200
    monkeypatch.setattr(tiers, "make", None)  # it is there: nothing to make
    tiers.ensure(name)
    tiers.ensure("mujoco/hopper/medium-v0")  # another's dataset


def test_configurations_without_a_tier():
    assert common.get_config().dataset == "bundled/hopper/medium-v0"
    walker = common.get_config("quick", environment="Walker2d-v5", bundled="")
    assert walker.dataset == "dawm/walker2d/medium-200k-v1"
    assert walker.num_seeds == 1
    for wrong in ("fast", "quick,medium", "medium,fast"):
        with pytest.raises(ValueError, match="unknown variant"):
            common.get_config(wrong)
