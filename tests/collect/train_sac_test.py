"""A short online training of soft actor-critic for real."""

import dataclasses
import signal

import jax
import numpy as np
import pytest

from dawm_jax.collect import train_sac
from dawm_jax.collect.policies import load_policies
from dawm_jax.envs import simulate
from dawm_jax.runtime import loop, stopping
from dawm_jax.runtime.checkpoint import Checkpoints
from dawm_jax.types import UserError

SETTINGS = train_sac.Settings(
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


@pytest.fixture(scope="module", name="trained")
def _trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("sac")
    with stopping.stop_on_signals() as stop:
        return workdir, train_sac.train(SETTINGS, workdir, stop)


def test_training_leaves_scored_snapshots_and_policies(trained):
    workdir, policies = trained
    assert sorted(path.name for path in (workdir / "snapshots").iterdir()) == [
        "000000064.npz",
        "000000128.npz",
        "000000192.npz",
    ]
    assert {"medium", "expert", "replay-0"} <= set(policies.actors)
    saved = load_policies(workdir / "policies.npz")
    assert saved.card["trained_steps"] == SETTINGS.steps
    assert saved.card["policies"] == policies.card["policies"]
    snapshots = [
        load_policies(path).actors["actor"] for path in sorted((workdir / "snapshots").iterdir())
    ]
    first, last = (jax.tree.leaves(s)[0] for s in (snapshots[0], snapshots[-1]))
    assert np.abs(first - last).max() > 1e-4  # it learnt


def test_what_is_stored_is_what_happened(trained):
    """The buffer holds the simulator's own transitions, actions scaled to [-1, 1]."""
    workdir, _ = trained
    learner = train_sac.Learner(SETTINGS, state_size=11, action_size=3)
    state = jax.eval_shape(learner.init, jax.random.key(0))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), state)
    bounds = {"action_low": np.zeros(3, np.float32), "action_high": np.zeros(3, np.float32)}
    checkpoints = Checkpoints(workdir / "checkpoints" / "sac")
    saved, step = checkpoints.restore({"state": zeros, "statistics": bounds})
    checkpoints.close()
    buffer = saved["state"].buffer
    assert step == int(buffer.written) == SETTINGS.steps
    rows = buffer.rows
    next_observations, rewards, terminated = simulate.replay(
        "Hopper-v5", np.asarray(rows.observation, np.float64), np.asarray(rows.action)
    )
    # Hopper's bounds are [-1, 1]. Replay starts its contact solver cold, from float32 states.
    np.testing.assert_allclose(rows.next_observation, next_observations, atol=1e-3)
    np.testing.assert_allclose(rows.reward, rewards, atol=1e-3)
    np.testing.assert_array_equal(rows.terminated, terminated)
    assert rows.terminated.sum() > 0


def test_a_stopped_training_resumes(tmp_path):
    with stopping.stop_on_signals() as stop:
        stop.signal = signal.SIGTERM
        with pytest.raises(loop.Interrupted):
            train_sac.train(SETTINGS, tmp_path, stop)
        assert not (tmp_path / "policies.npz").exists()  # nothing was scored yet
        stop.signal = None
        train_sac.train(SETTINGS, tmp_path, stop)
    assert (tmp_path / "policies.npz").is_file()
    with pytest.raises(UserError, match="seed: 0 there, 1 here"):
        train_sac.train(dataclasses.replace(SETTINGS, seed=1), tmp_path, stopping.StopFlag())


def test_whole_rounds_are_told(caplog):
    caplog.set_level("INFO", "dawm_jax")
    train_sac._check(train_sac.Settings("Hopper-v5", steps=1500))
    assert "1,408 steps, which are whole rounds of 128, of the 1,500 asked for" in caplog.text
    with pytest.raises(UserError, match="--steps: expected at least a round of 128"):
        train_sac._check(train_sac.Settings("Hopper-v5", steps=127))


def test_a_stopped_score_is_made_on_resume(tmp_path):
    stop = stopping.StopFlag()
    score = train_sac._score

    def stopped(*args):
        stop.signal = 15
        return score(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_sac, "_score", stopped)
        with pytest.raises(stopping.Interrupted, match="the evaluation of sac at step"):
            train_sac.train(SETTINGS, tmp_path, stop)
    assert not (tmp_path / "policies.npz").exists()
