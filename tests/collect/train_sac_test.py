"""Behaviour policies: their file, their tiers, and a short online training for real."""

import dataclasses
import signal

import jax
import numpy as np
import pytest

from dawm_jax.collect import sac
from dawm_jax.collect import train_sac as behaviour
from dawm_jax.collect.train_sac import Policies
from dawm_jax.runtime import loop
from dawm_jax.types import UserError

SETTINGS = behaviour.Settings(
    "Hopper-v5",
    steps=192,
    copies=2,
    round_steps=2,
    batch_size=8,
    hidden=(8,),
    start_steps=32,
    snapshot_steps=64,
    snapshot_episodes=2,
    checkpoint_steps=64,
)


def make_actor(seed=0):
    networks = sac.make_networks((8, 8), 3)
    return networks.actor.init(jax.random.key(seed), np.zeros((1, 11)))


@pytest.fixture(scope="module", name="trained")
def _trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("sac")
    with loop.stop_on_signals() as stop:
        return workdir, behaviour.train(SETTINGS, workdir, stop)


# --- the file -----------------------------------------------------------------------------


def test_policies_are_read_back_as_rounded(tmp_path):
    actors = {"medium": make_actor(0), "expert": make_actor(1)}
    policies = Policies("Hopper-v5", actors, {"algorithm": "SAC"})
    behaviour.save_policies(policies, tmp_path / "deep" / "policies.npz")
    got = behaviour.load_policies(tmp_path / "deep" / "policies.npz")
    assert (got.environment, got.card) == ("Hopper-v5", {"algorithm": "SAC"})
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a, np.float16(b).astype(np.float32)),
        got.actors,
        actors,
    )


def test_other_files_are_no_policies(tmp_path):
    with pytest.raises(UserError, match=r"no policies at .*expected a policies\.npz"):
        behaviour.load_policies(tmp_path / "policies.npz")
    (tmp_path / "text.npz").write_text("no archive")
    np.savez(tmp_path / "other.npz", weights=np.zeros(3))
    for name in ("text", "other"):
        with pytest.raises(UserError, match="holds no behaviour policies"):
            behaviour.load_policies(tmp_path / f"{name}.npz")


def test_policies_of_another_environment_are_refused():
    with pytest.raises(UserError, match="are for Hopper-v5, --env is Ant-v5"):
        behaviour.check_environment(Policies("Hopper-v5", {}, {}), "Ant-v5")
    with pytest.raises(UserError, match=r"no policies are shipped for Ant-v5.*--train"):
        behaviour.shipped_policies("Ant-v5")


def test_sampled_actions_are_the_policys_in_environment_units():
    import gymnasium as gym

    space = gym.spaces.Box(np.float32([-3, 0, 1]), np.float32([1, 2, 9]))
    actor, key = make_actor(), jax.random.key(5)
    observations = np.random.default_rng(0).normal(size=(6, 11)).astype(np.float32)
    got = behaviour.make_sampler(space)(actor, observations, key)
    noise = jax.random.normal(key, (6, 3))
    action, _ = sac.sample(actor, observations, noise, networks=sac.make_networks((8, 8), 3))
    expected = space.low + (np.asarray(action) + 1) / 2 * (space.high - space.low)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


# --- tiers --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "medium"),
    # Hopper: a third of the way from -20 to 3234 (D4RL) is 1065, first passed at step 30.
    # A task without references: from 20 to its own 2900 it is 980, passed at 20.
    [("Hopper-v5", 30), ("DawmOther-v0", 20)],
)
def test_tiers_are_chosen_by_score(tmp_path, environment, medium):
    # Best with its neighbours: step 70 (2900); 40 is a lucky peak between low ones.
    returns = [20, 1000, 1500, 3200, 500, 2800, 2900, 2700]
    scored = [{"step": 10 * i + 10, "return_mean": r} for i, r in enumerate(returns)]
    for entry in scored:
        actor = {"params": {"Dense_0": {"bias": np.full(2, entry["step"], np.float32)}}}
        path = behaviour._snapshot_path(tmp_path, entry["step"])
        behaviour.save_policies(Policies("", {"actor": actor}, {}), path)
    settings = dataclasses.replace(SETTINGS, environment=environment)
    got = behaviour.select(settings, tmp_path, scored)
    chosen = {
        name: int(actor["params"]["Dense_0"]["bias"][0]) for name, actor in got.actors.items()
    }
    replay = {f"replay-{i}": step for i, step in enumerate(range(10, medium + 1, 10))}
    assert chosen == {"expert": 70, "medium": medium, **replay}
    mean = {20: 1000.0, 30: 1500.0}[medium]
    assert got.card["policies"]["medium"] == {"step": medium, "return_mean": mean}
    assert got.card["settings"] == dataclasses.asdict(settings)


def test_a_training_that_never_gets_to_medium_gives_its_best(tmp_path):
    for step in (10, 20):
        behaviour._save_snapshot(tmp_path, step, make_actor(step))
    scored = [{"step": 10, "return_mean": 40.0}, {"step": 20, "return_mean": 30.0}]
    card = behaviour.select(SETTINGS, tmp_path, scored).card
    assert card["policies"]["medium"]["step"] == 10


# --- training -----------------------------------------------------------------------------


def test_training_leaves_scored_snapshots_and_policies(trained):
    workdir, policies = trained
    assert sorted(path.name for path in (workdir / "snapshots").iterdir()) == [
        "000000064.npz",
        "000000128.npz",
        "000000192.npz",
    ]
    assert {"medium", "expert", "replay-0"} <= set(policies.actors)
    saved = behaviour.load_policies(workdir / "policies.npz")
    assert saved.card["trained_steps"] == SETTINGS.steps
    assert saved.card["policies"] == policies.card["policies"]
    snapshots = [
        behaviour.load_policies(path).actors["actor"]
        for path in sorted((workdir / "snapshots").iterdir())
    ]
    first, last = (jax.tree.leaves(s)[0] for s in (snapshots[0], snapshots[-1]))
    assert np.abs(first - last).max() > 1e-4  # it learnt


def test_what_is_stored_is_what_happened(trained):
    """The buffer holds the simulator's own transitions, actions scaled to [-1, 1]."""
    from dawm_jax.envs import simulate
    from dawm_jax.runtime.checkpoint import Checkpoints

    workdir, _ = trained
    functions = behaviour._bind(SETTINGS, 11, 3)
    state = jax.eval_shape(functions.init, jax.random.key(0))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), state)
    bounds = {"action_low": np.zeros(3, np.float32), "action_high": np.zeros(3, np.float32)}
    checkpoints = Checkpoints(workdir / "checkpoints" / "sac")
    saved, step = checkpoints.restore({"state": zeros, "statistics": bounds})
    checkpoints.close()
    buffer = saved["state"].buffer
    assert step == int(buffer.written) == SETTINGS.steps
    rows = buffer.transitions
    following, rewards, terminated = simulate.replay(
        "Hopper-v5", np.asarray(rows.observation, np.float64), np.asarray(rows.action)
    )
    # Hopper's bounds are [-1, 1]. Replay starts its contact solver cold, from float32 states.
    np.testing.assert_allclose(rows.next_observation, following, atol=1e-3)
    np.testing.assert_allclose(rows.reward, rewards, atol=1e-3)
    np.testing.assert_array_equal(rows.terminated, terminated)
    assert rows.terminated.sum() > 0


def test_a_stopped_training_resumes(tmp_path):
    with loop.stop_on_signals() as stop:
        stop.signal = signal.SIGTERM
        with pytest.raises(loop.Interrupted):
            behaviour.train(SETTINGS, tmp_path, stop)
        assert not (tmp_path / "policies.npz").exists()  # nothing was scored yet
        stop.signal = None
        behaviour.train(SETTINGS, tmp_path, stop)
    assert (tmp_path / "policies.npz").is_file()
    with pytest.raises(UserError, match="seed: 0 there, 1 here"):
        behaviour.train(dataclasses.replace(SETTINGS, seed=1), tmp_path, loop.StopFlag())
