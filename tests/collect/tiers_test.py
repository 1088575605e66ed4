"""D4RL's tiers: which policy makes which part, and the same data from the same seed."""

import concurrent.futures

import gymnasium as gym
import jax
import minari
import mujoco
import numpy as np
import pytest

from dawm_jax.collect import episodes as episodes_lib
from dawm_jax.collect import sac, tiers
from dawm_jax.collect.policies import Policies, shipped_environments, shipped_policies
from dawm_jax.config import schema
from dawm_jax.data import TIERS, minari_writer
from dawm_jax.data.load import load_dataset
from dawm_jax.data.minari_source import is_local
from dawm_jax.envs import guard
from dawm_jax.envs.perturbed import Physics
from dawm_jax.envs.tasks import task_name
from dawm_jax.runtime.stopping import Interrupted, StopFlag
from dawm_jax.training import setup
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
        ("scripted", [(None, 1.0)]),
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
        "scripted": 1_000_000,
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


@pytest.mark.parametrize("tier", ["random", "medium-expert"])
def test_the_digest_in_the_metadata_is_that_of_the_arrays_a_run_reads(tier):
    collection = collect(tier).storage.metadata["collection"]
    assert collection["digest"] == load_dataset("test/hopper/it-v0", cache=False).digest
    assert {"jax", "mujoco"} <= set(collection["versions"]) and "cpu" in collection
    collect(tier, seed=1, overwrite=True)
    assert load_dataset("test/hopper/it-v0", cache=False).digest != collection["digest"]


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


def test_a_signal_ends_a_collection_at_the_next_step(tmp_path, monkeypatch):
    stop, steps = StopFlag(), []
    step = guard.GuardedSimulator.step

    def stopping(self, indices, actions):
        steps.append(indices)
        stop.signal = 15 if len(steps) == 40 else None
        return step(self, indices, actions)

    monkeypatch.setattr(guard.GuardedSimulator, "step", stopping)
    with pytest.raises(Interrupted, match=r"the collection of test/hopper/it-v0 at step \d+, of"):
        collect("medium", stop=stop)
    assert len(steps) == 40
    assert not list((tmp_path / "minari").rglob("*.hdf5"))
    assert not is_local("test/hopper/it-v0")


def test_a_time_limit_of_the_users(register):
    recipe = tiers.Recipe("Hopper-v5", "random", 30, max_steps=4)
    tiers.make("test/hopper/it-v0", recipe, None, seed=0)
    dataset = minari.load_dataset("test/hopper/it-v0")
    assert {len(episode.rewards) for episode in dataset.iterate_episodes()} == {4}
    assert dataset.env_spec.max_episode_steps == 4
    assert "--max_steps=4 " in dataset.storage.metadata["collection"]["command"]


def test_changed_physics_are_simulated_and_stored(caplog):
    """The first episode is what Gymnasium computes in the changed model; a run on it warns."""
    physics = Physics(gravity=1.5, friction=0.5)
    recipe = tiers.Recipe("Hopper-v5", "random", 30, physics=physics)
    tiers.make("test/hopper/it-v0", recipe, None, seed=0)
    dataset = minari.load_dataset("test/hopper/it-v0")
    collection = dataset.storage.metadata["collection"]
    assert collection["physics"] == {"gravity": 1.5, "friction": 0.5}
    assert "--physics=gravity=1.5,friction=0.5 " in collection["command"]
    episode, env = dataset[0], gym.make("Hopper-v5")
    model, simulator = env.unwrapped.model, env.unwrapped
    model.opt.gravity[:] *= 1.5
    model.geom_friction[:] *= 0.5
    env.reset()
    mujoco.mj_resetData(model, simulator.data)
    start = episode.observations[0]
    simulator.set_state(np.concatenate([[0.0], start[:5]]), start[5:])
    for action, expected in zip(episode.actions[:5], episode.observations[1:], strict=False):
        np.testing.assert_allclose(env.step(action)[0], expected, atol=1e-6)
    env.close()
    config = schema.parse(schema.get_config("smoke", dataset="test/hopper/it-v0"))
    setup.build_replay(config, load_dataset("test/hopper/it-v0", cache=False))
    lines = [message for message in caplog.messages if "changed physics" in message]
    assert len(lines) == 1 and "(gravity=1.5,friction=0.5)" in lines[0]


def test_unknown_tiers():
    with pytest.raises(UserError, match=r"--tier: expected one of random, .* got 'best'"):
        collect("best")


# --- names --------------------------------------------------------------------------------


def test_standard_names_are_recipes():
    assert tiers.recipe_of("dawm/hopper/medium-v1") == tiers.Recipe("Hopper-v5", "medium", None)
    sized = tiers.Recipe("Walker2d-v5", "medium-replay", 200_000)
    assert tiers.recipe_of("dawm/walker2d/medium-replay-200k-v1") == sized
    others = (
        "hopper/medium-v0",
        "pointmaze_umaze/medium-v1",
        "swimmer/medium-v1",
        "hopper/best-v1",
    )
    for other in ("mujoco/hopper/medium-v1", *(f"dawm/{name}" for name in others)):
        assert tiers.recipe_of(other) is None


def test_policies_of_every_shipped_environment_make_datasets_of_standard_names():
    """Every one is a registered task."""
    assert len(shipped_environments()) >= 5
    for environment in shipped_environments():
        recipe = tiers.recipe_of(f"dawm/{task_name(environment)}/expert-v1")
        assert recipe == tiers.Recipe(environment, "expert", None)


@pytest.mark.parametrize("task", ["hopper", "walker2d", "halfcheetah", "ant", "humanoid"])
@pytest.mark.parametrize("tier", ["medium", "medium-replay", "medium-expert"])
def test_the_configured_datasets_need_no_network(task, tier):
    import importlib

    module = importlib.import_module(f"configs.{task}")
    for scale, size in (("", None), (",quick", 200_000)):
        config = module.get_config(tier + scale)
        recipe = tiers.recipe_of(config.dataset)
        assert recipe == tiers.Recipe(config.environment, tier, size)
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


def test_processes_that_need_the_same_dataset_wait_for_the_one_that_collects_it(
    monkeypatch, caplog
):
    name, made = "dawm/hopper/random-1k-v1", []
    original = tiers.make

    def make(*args, **options):
        made.append(args)
        original(*args, **options)

    monkeypatch.setattr(tiers, "make", make)
    monkeypatch.setattr(tiers, "POLL_S", 0.01)
    caplog.set_level("INFO", "dawm_jax")
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        loaded = list(pool.map(lambda _: load_dataset(name, cache=False), range(3)))
    for other in loaded[1:]:
        np.testing.assert_array_equal(loaded[0].observations, other.observations)
    assert caplog.text.count("is collected on first use") == len(made)
    assert "is being collected by another process; waiting for it" in caplog.text


def test_a_collector_that_dies_is_replaced(monkeypatch):
    """The lock ends with its process; the one that waits collects."""
    name = "dawm/hopper/random-1k-v1"
    dying = minari_writer.DatasetWriter(name, environment="Hopper-v5", metadata={})
    dying.__enter__()
    looks = []

    def sleep(seconds):
        looks.append(seconds)
        dying._lock.close()  # as the system does with a dead process

    monkeypatch.setattr(tiers.time, "sleep", sleep)
    assert len(load_dataset(name, cache=False)) >= 1000
    assert len(looks) == 1


def test_the_wait_for_another_process_can_be_stopped():
    name = "dawm/hopper/random-1k-v1"
    other = minari_writer.DatasetWriter(name, environment="Hopper-v5", metadata={})
    other.__enter__()
    with pytest.raises(Interrupted, match=f"the wait for {name}"):
        tiers._collect_once(name, tiers.recipe_of(name), StopFlag(15))
    other._lock.close()


def test_the_tiers_of_a_training_need_its_policies():
    with pytest.raises(UserError, match="--tier=expert: expected policies"):
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
