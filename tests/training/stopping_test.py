"""Signals during evaluations: obeyed at once, and the run ends as if nothing had happened."""

import json
import os
import shutil
import signal

import jax
import numpy as np
import pytest
from small_run import small_config

from dawm_jax.config import schema
from dawm_jax.envs import rollouts
from dawm_jax.envs.resumable import ResumablePolicy
from dawm_jax.runtime import stopping
from dawm_jax.training import artifacts, cost_model, stages, train
from dawm_jax.training.load_run import load_run
from dawm_jax.types import UserError


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(cost_model, "plan", lambda *args: [])
    monkeypatch.setattr(artifacts.figures, "plot_curves", lambda *args: None)


def signal_at(monkeypatch, call, number):
    """The process gets a signal while the policies choose the actions of a step."""
    original, calls = rollouts.run_episodes, []

    def run_episodes(policy, *args, **options):
        def signalled(observations):
            calls.append(observations)
            if len(calls) == call:
                os.kill(os.getpid(), number)
            return policy(observations)

        return original(signalled, *args, **options)

    monkeypatch.setattr(rollouts, "run_episodes", run_episodes)
    return calls


def recorded(workdir):
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in x.items() if "seconds" not in k and k != "crc"} for x in lines]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_an_evaluation_of_agents_is_stopped_and_made_on_resume(tmp_path, monkeypatch, number):
    config = small_config(training__real_fraction=1.0, training__checkpoint_updates=40)
    train.run(config, tmp_path / "undisturbed")
    with monkeypatch.context() as patch:
        calls = signal_at(patch, 3, number)
        with pytest.raises(stopping.Interrupted, match="the evaluation of agent at update 24"):
            train.run(config, tmp_path / "stopped")
        assert len(calls) == 3
    # Update 24 is no multiple of the checkpoint interval.
    assert (tmp_path / "stopped" / "checkpoints" / "agent" / "24").is_dir()
    assert not any(line["kind"] == "assess" for line in recorded(tmp_path / "stopped"))
    train.run(config, tmp_path / "stopped")
    assert recorded(tmp_path / "stopped") == recorded(tmp_path / "undisturbed")
    policies = [
        jax.device_get(load_run(tmp_path / name).policies) for name in ("stopped", "undisturbed")
    ]
    jax.tree.map(np.testing.assert_array_equal, *policies)


def test_an_evaluation_of_plans_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    config = small_config(method="decision_diffuser", num_seeds=2)
    with monkeypatch.context() as patch:
        signal_at(patch, 4, signal.SIGTERM)
        with pytest.raises(stopping.Interrupted, match="planner, an evaluation at step 4"):
            train.run(config, tmp_path / "stopped")
    shutil.copytree(tmp_path / "stopped", tmp_path / "undisturbed")
    (tmp_path / "undisturbed" / "planner_actions.npz").unlink()  # it plans from the start
    train.run(config, tmp_path / "undisturbed")
    with np.load(tmp_path / "stopped" / "planner_actions.npz") as file:
        assert len(file["actions"]) == 4
    train.run(config, tmp_path / "stopped")
    assert recorded(tmp_path / "stopped") == recorded(tmp_path / "undisturbed")
    assert not (tmp_path / "stopped" / "planner_actions.npz").exists()


def test_the_generation_before_the_first_update_is_stopped_between_its_calls(tmp_path, monkeypatch):
    config = small_config(rollout__prefill_transitions=9 * 56)  # nine rounds of eight windows
    calls, ready = [], jax.block_until_ready

    def signalled(buffer):
        calls.append(buffer)
        os.kill(os.getpid(), signal.SIGTERM)
        return ready(buffer)

    train.run(config, tmp_path / "undisturbed")
    with monkeypatch.context() as patch:
        patch.setattr(stages.jax, "block_until_ready", signalled)
        with pytest.raises(stopping.Interrupted, match="the generation before the first update"):
            train.run(config, tmp_path / "stopped")
    assert len(calls) == 1
    assert not list((tmp_path / "stopped" / "checkpoints" / "agent").iterdir())
    train.run(config, tmp_path / "stopped")
    assert recorded(tmp_path / "stopped") == recorded(tmp_path / "undisturbed")


@pytest.mark.parametrize(
    ("rounds", "per_call"), [(1, 1), (2, 2), (8, 8), (9, 3), (28, 7), (45, 5), (47, 47)]
)
def test_rounds_of_one_call(rounds, per_call):
    assert stages.rounds_per_call(rounds) == per_call


def test_the_reading_of_data_is_stopped_at_once(tmp_path, monkeypatch):
    def load(name):
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("it went on")

    monkeypatch.setattr(train, "load_dataset", load)
    config = small_config(training__real_fraction=1.0)
    with pytest.raises(stopping.Interrupted, match="the reading of the dataset bundled/hopper"):
        train.run(config, tmp_path)
    assert not (tmp_path / "config.json").exists()


def test_plans_report_the_time_left_and_are_kept_on_the_way(tmp_path, caplog):
    caplog.set_level("INFO", "dawm_jax")
    policy = ResumablePolicy(lambda observations, step: observations, tmp_path / "actions.npz")
    report = stages._PlanReport(policy)
    for step in range(1, 5):
        policy(np.full((1, 2, 3), step, np.float32))
        report(step, 100, 2)
    lines = [record.message.split() for record in caplog.records]
    assert [line[:3] for line in lines] == [
        ["planner", "2/100", "step"],
        ["planner", "4/100", "step"],
    ]
    assert all("left" in line for line in lines)
    assert ResumablePolicy(lambda observations, step: observations, policy._path).num_kept == 4


def test_an_environment_without_a_time_limit_is_refused_before_the_data_is_read(tmp_path, register):
    import gymnasium as gym

    class Endless(gym.Env):
        observation_space = gym.spaces.Box(-np.inf, np.inf, (11,))
        action_space = gym.spaces.Box(-1, 1, (3,))

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return np.zeros(11, np.float32), {}

        def step(self, action):
            return np.zeros(11, np.float32), 1.0, False, False, {}

    name = register("DawmEndless-v0", Endless)
    config = small_config(environment=name, dataset="no/such-v0", training__real_fraction=1.0)
    with pytest.raises(UserError, match=r"expected a time limit.*config\.evaluation\.max_steps"):
        train.run(config, tmp_path / "refused")
    limited = schema.replace(
        config, {"dataset": "bundled/hopper/medium-v0", "evaluation.max_steps": 6}
    )
    assert train.run(limited, tmp_path / "limited").final.returns.mean == 6.0


def test_returns_that_are_nan_never_reach_the_results(tmp_path, register):
    import gymnasium as gym

    class Broken(gym.Env):
        observation_space = gym.spaces.Box(-np.inf, np.inf, (11,))
        action_space = gym.spaces.Box(-1, 1, (3,))

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return np.zeros(11, np.float32), {}

        def step(self, action):
            return np.zeros(11, np.float32), np.nan, False, False, {}

    name = register("DawmBroken-v0", Broken, max_episode_steps=9)
    config = small_config(environment=name, training__real_fraction=1.0)
    for _ in range(2):  # and when it is resumed
        with pytest.raises(UserError, match=r"DawmBroken-v0: .* reward with nan at step 1 "):
            train.run(config, tmp_path)
    assert not any(line["kind"] == "assess" for line in recorded(tmp_path))
