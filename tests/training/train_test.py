"""The whole program on a tiny configuration: results, resuming, refusals."""

import dataclasses
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import dawm_jax
from dawm_jax.config import schema
from dawm_jax.envs import rollouts
from dawm_jax.runtime import checkpoint, loop, run_folder
from dawm_jax.runtime.results import read, to_json
from dawm_jax.training import artifacts, cost_model, train
from dawm_jax.training.load_run import load_run
from dawm_jax.types import UserError


def tiny_config(**overrides):
    """Seconds to run; every stage still has several chunks and two checkpoints."""
    changes = {"unet.multipliers": (1,), "unet.groups": 4}
    changed = {name.replace("__", "."): value for name, value in overrides.items()}
    return schema.replace(schema.parse(schema.get_config("smoke")), changes | changed)


def fake_episodes(policy, environment, *, seeds, **options):
    """An evaluation without physics, deterministic in the policy and the seeds of the resets."""
    observations = np.repeat(seeds[..., None] / 2**32, 11, axis=-1).astype(np.float32)
    return rollouts.Outcome(np.asarray(policy(observations)).sum(-1).astype(np.float64))


@pytest.fixture(scope="module", autouse=True)
def no_simulator():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rollouts, "run_episodes", fake_episodes)
        # The estimate lowers every program once more and has a test of its own.
        patch.setattr(cost_model, "plan", lambda *args: [])
        patch.setattr(artifacts.figures, "plot_curves", lambda *args: None)
        yield


STAGES = ("world_model", "inverse_dynamics", "agent")
PLOT = artifacts.figures.plot_curves
COMPILED = []  # steps of a call, once for each compilation of the undisturbed run


@pytest.fixture(scope="module")
def undisturbed(no_simulator, tmp_path_factory):
    """What the tiny configuration gives when nothing interrupts it."""
    workdir = tmp_path_factory.mktemp("undisturbed")
    original = loop.JittedSteps.compile

    def counting(self, state, num_steps):
        COMPILED.append(num_steps)
        return original(self, state, num_steps)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(artifacts.figures, "plot_curves", PLOT)
        patch.setattr(loop.JittedSteps, "compile", counting)
        return workdir, train.run(tiny_config(), workdir)


def before_stage(stage, undisturbed, workdir):
    """Makes `workdir` what the undisturbed run's folder was when `stage` began."""
    source = undisturbed[0]
    done = STAGES[: STAGES.index(stage)]
    for name in ("config.json", "dataset.json"):
        shutil.copy(source / name, workdir / name)
    for name in done:
        shutil.copytree(source / "checkpoints" / name, workdir / "checkpoints" / name)
    lines = (source / "metrics.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["stage"] in done]
    (workdir / "metrics.jsonl").write_text("".join(kept))


def learnt(workdir):
    run = load_run(workdir)
    return jax.device_get((run.policies, run.models, run.normalizer))


def recorded(workdir):
    """metrics.jsonl without what depends on the clock."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in x.items() if "seconds" not in k and k != "crc"} for x in lines]


def assert_same_run(workdir, other):
    jax.tree.map(np.testing.assert_array_equal, learnt(workdir), learnt(other))
    assert recorded(workdir) == recorded(other)


class Crash(Exception):
    """Stands for a process that dies."""


def crash(*args, **kwargs):
    raise Crash


class Disturbed:
    """A stage's steps that call `do` once the steps up to `step` are dispatched."""

    def __init__(self, steps, step, do):
        self._steps, self._step, self._do = steps, step, do

    def compile(self, state, num_steps):
        self._steps.compile(state, num_steps)

    def __call__(self, state, first_step, num_steps):
        result = self._steps(state, first_step, num_steps)
        if first_step + num_steps == self._step:
            self._do()
        return result


def disturb(monkeypatch, name, step, do):
    """Calls `do` in the stage `name`, before anything of its steps up to `step` is recorded."""
    run = loop.Session.run

    def disturbed(self, stage, state):
        if stage.name == name:
            stage = dataclasses.replace(stage, steps=Disturbed(stage.steps, step, do))
        return run(self, stage, state)

    monkeypatch.setattr(loop.Session, "run", disturbed)


# --- results ------------------------------------------------------------------------------


def test_the_folder_holds_what_is_promised(undisturbed):
    workdir, results = undisturbed
    names = {path.name for path in workdir.iterdir()}
    assert {"config.json", "metrics.jsonl", "results.json", "returns.npz", "curves.png"} <= names
    assert to_json(read(workdir / "results.json")) == to_json(results)
    assert set(results.stages) == {"world_model", "inverse_dynamics", "agent"}
    assert len(results.final.returns.values) == 2
    # The data's largest discounted return in raw units, 383 on this set.
    assert 300 < results.value_check.largest_return_to_go < 450
    # Every evaluation's returns are kept, by seed and episode.
    returns = np.load(workdir / "returns.npz")
    last = returns[f"update_{returns['updates'][-1]}"]
    assert last.shape == (2, 2)
    np.testing.assert_allclose(last.mean(1), results.final.returns.values)


def test_scores_follow_from_returns(undisturbed):
    _, results = undisturbed
    returns = results.final.returns.values
    expected = 100 * (returns + 20.272305) / (3234.3 + 20.272305)  # D4RL's hopper
    np.testing.assert_allclose(results.final.scores.values, expected)


def test_the_same_command_again_changes_nothing(undisturbed):
    workdir, results = undisturbed
    before = recorded(workdir)
    again = train.run(tiny_config(), workdir)
    assert to_json(again) == to_json(results)
    assert recorded(workdir) == before


def test_real_data_needs_no_models(tmp_path):
    results = train.run(tiny_config(training__real_fraction=1.0), tmp_path)
    assert set(results.stages) == {"agent"}
    run = load_run(tmp_path)
    assert run.models is None
    for use in (
        lambda: run.inverse_dynamics(np.zeros(11), np.zeros(11)),
        lambda: run.generate_from(np.zeros(11), np.zeros(3)),
        lambda: run.generate(10),
    ):
        with pytest.raises(UserError, match="real data only"):
            use()


def test_iql_runs(tmp_path):
    results = train.run(tiny_config(agent="iql"), tmp_path)
    assert np.isfinite(results.final.scores.mean)


@pytest.mark.parametrize(
    "method",
    [
        "decision_diffuser",
        pytest.param("dwm", marks=pytest.mark.slow),
        pytest.param("joint", marks=pytest.mark.slow),
        pytest.param("one_step", marks=pytest.mark.slow),
        pytest.param("one_step_cloned", marks=pytest.mark.slow),
    ],
)
def test_every_method_trains_and_loads(tmp_path, method):
    config = lambda: tiny_config(method=method, planner__horizon=3)
    results = train.run(config(), tmp_path)
    assert results.method == method
    again = train.run(config(), tmp_path)
    assert to_json(again) == to_json(results)
    run = load_run(tmp_path)
    if method == "decision_diffuser":  # its plans have the noise of the run's evaluation
        section = run.config.evaluation
        returns = dawm_jax.evaluate(run, episodes=section.final_episodes, seed=section.seed)
        np.testing.assert_allclose(returns.mean(axis=1), results.final.returns.values, rtol=1e-6)
    observations = np.random.default_rng(0).normal(size=(2, 5, 11))
    actions = run.policy(observations, seed=1)
    assert actions.shape == (2, 5, 3) and np.abs(actions).max() <= 1.0
    if method in ("dwm", "one_step", "decision_diffuser"):
        with pytest.raises(UserError, match="generates no transitions"):
            run.generate_from(observations[0], actions[0])
    else:
        first = np.clip(actions[0], -1, 1)
        windows, _ = run.generate_from(observations[0], first)
        np.testing.assert_allclose(windows.action[:, 0], first, atol=1e-6)


def test_cloning_the_best_episodes(tmp_path):
    """%BC: no models, no values, a tenth of the data."""
    config = tiny_config(agent="bc", training__real_fraction=1.0, top_fraction=0.1)
    results = train.run(config, tmp_path)
    assert set(results.stages) == {"agent"}
    assert results.value_check is None
    assert np.abs(load_run(tmp_path).policy(np.zeros(11))).max() <= 1.0


def test_each_program_is_compiled_once(undisturbed):
    """World model, inverse dynamics, and the fused program of the agents."""
    assert COMPILED == [5, 5, 8]


def test_a_loaded_run_acts_generates_and_infers(undisturbed):
    run = load_run(undisturbed[0])
    observation = np.random.default_rng(0).normal(size=(5, 11))
    for seed in range(2):
        action = run.policy(observation, seed)
        assert action.shape == (5, 3) and np.abs(action).max() <= 1.0
    assert np.abs(run.policy(observation, 0) - run.policy(observation, 1)).max() > 0
    assert run.inverse_dynamics(observation, observation).shape == (5, 3)
    first = np.clip(np.random.default_rng(1).normal(size=(5, 3)), -1, 1)
    windows, valid = run.generate_from(observation, first, return_to_go=np.full(5, 100.0))
    assert valid.shape == (5, 7) and valid[:, 0].all()
    np.testing.assert_allclose(windows.observation[:, 0], observation, atol=1e-5)
    np.testing.assert_allclose(windows.action[:, 0], first, atol=1e-6)
    # A transition ends where the next begins.
    np.testing.assert_array_equal(windows.next_observation[:, :-1], windows.observation[:, 1:])


# --- resuming -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "step"),
    [
        ("inverse_dynamics", 5),  # before the first checkpoint
        ("inverse_dynamics", 15),  # after one, with metrics it must not repeat
        ("agent", 24),  # with a partly filled buffer and an evaluation behind
        ("agent", 40),  # in the last chunk
        ("world_model", 15),
    ],
)
def test_a_killed_run_ends_bit_for_bit_like_an_undisturbed_one(
    undisturbed, tmp_path, monkeypatch, stage, step
):
    before_stage(stage, undisturbed, tmp_path)
    with monkeypatch.context() as patch:
        disturb(patch, stage, step, crash)
        with pytest.raises(Crash):
            train.run(tiny_config(), tmp_path)
    train.run(tiny_config(), tmp_path)
    assert_same_run(tmp_path, undisturbed[0])


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(signal.SIGUSR1, marks=pytest.mark.slow),
    ],
)
def test_a_signal_saves_and_stops(undisturbed, tmp_path, monkeypatch, number):
    before_stage("inverse_dynamics", undisturbed, tmp_path)
    with monkeypatch.context() as patch:
        disturb(patch, "inverse_dynamics", 5, lambda: os.kill(os.getpid(), number))
        with pytest.raises(loop.Interrupted, match="inverse_dynamics at step 5"):
            train.run(tiny_config(), tmp_path)
    # Step 5 is no multiple of the checkpoint interval: it was saved because of the signal.
    assert (tmp_path / "checkpoints" / "inverse_dynamics" / "5").is_dir()
    train.run(tiny_config(), tmp_path)
    assert_same_run(tmp_path, undisturbed[0])


def test_each_evaluation_resets_to_start_states_of_its_own(tmp_path, monkeypatch):
    """Those of its update; every resumed run of this file is compared with returns of them."""
    found = []

    def recording(policy, environment, *, seeds, **options):
        found.append(seeds)
        return fake_episodes(policy, environment, seeds=seeds)

    monkeypatch.setattr(rollouts, "run_episodes", recording)
    config = tiny_config(training__real_fraction=1.0, td3_bc__hidden=(8,), seed=4)
    train.run(config, tmp_path)
    with np.load(tmp_path / "returns.npz") as file:
        updates = file["updates"].tolist()
    for update, seeds in zip(updates, found, strict=True):
        expected = rollouts.reset_seeds(
            config.evaluation.seed, 4, update, num_policies=len(seeds), num_episodes=2
        )
        np.testing.assert_array_equal(seeds, expected)
    assert len(updates) > 1 and len(np.unique(found)) == np.size(found)


def test_an_evaluation_lost_to_a_kill_is_made_up_for(undisturbed, tmp_path, monkeypatch):
    """The checkpoint at the evaluation's step was written, the evaluation was not."""
    before_stage("agent", undisturbed, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(rollouts, "run_episodes", crash)
        with pytest.raises(Crash):
            train.run(tiny_config(), tmp_path)
    train.run(tiny_config(), tmp_path)
    assert_same_run(tmp_path, undisturbed[0])


# --- refusals -----------------------------------------------------------------------------


def one_line(error):
    text = str(error.value)
    assert "\n" not in text
    return text


def test_another_configuration_is_refused_with_the_difference(undisturbed):
    workdir, _ = undisturbed
    before = learnt(workdir)
    with pytest.raises(UserError, match=r"seed: 0 there, 1 here.*another --workdir") as error:
        train.run(tiny_config(seed=1), workdir)
    one_line(error)
    jax.tree.map(np.testing.assert_array_equal, learnt(workdir), before)


def test_two_runs_on_one_folder_are_refused(tmp_path):
    with run_folder.own(tmp_path, schema.to_dict(tiny_config())):
        with pytest.raises(UserError, match="in use by another run") as error:
            train.run(tiny_config(), tmp_path)
    one_line(error)


def test_an_unwritable_folder_is_refused(tmp_path):
    # A file where the folder should be: works for root too, unlike permissions.
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written") as error:
        train.run(tiny_config(), tmp_path / "file" / "run")
    one_line(error)


def test_a_full_disk_keeps_what_was_saved(undisturbed, tmp_path, monkeypatch):
    before_stage("inverse_dynamics", undisturbed, tmp_path)
    original = checkpoint.ocp.CheckpointManager.save

    def full(self, step, *args, **kwargs):
        if step == 20 and pathlib.Path(str(self.directory)).name == "inverse_dynamics":
            raise OSError(28, "No space left on device")
        return original(self, step, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.ocp.CheckpointManager, "save", full)
        with pytest.raises(UserError, match=r"disk is full.*make room") as error:
            train.run(tiny_config(), tmp_path)
    one_line(error)
    train.run(tiny_config(), tmp_path)
    assert_same_run(tmp_path, undisturbed[0])


def test_a_diverged_training_stops_before_it_saves(tmp_path):
    config = tiny_config(world_model__learning_rate=1e30, world_model__warmup_steps=0)
    with pytest.raises(
        loop.Diverged, match=r"world_model: loss is not a finite .*no checkpoint is saved"
    ) as error:
        train.run(config, tmp_path)
    one_line(error)


def test_a_dataset_of_another_environment_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"11 observation dimensions, Walker2d-v5 17") as error:
        train.run(tiny_config(environment="Walker2d-v5"), tmp_path)
    one_line(error)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"agent": "sac"},
            "config.agent: expected one of bc, iql, rebrac, rlpd, td3_bc, got 'sac'",
        ),
        ({"horizon": 0}, "config.horizon: expected a whole number at least 1, got 0"),
        ({"parallel": "shards"}, "config.parallel: expected one of mesh, pmap, got 'shards'"),
        ({"discount": 1.0}, "config.discount: expected a number above 0 and below 1, got 1.0"),
        ({"held_out_fraction": 1.0}, "held_out_fraction: expected a number at least 0 and at most"),
        ({"timeout_value": "half"}, "timeout_value: expected one of zero, average"),
        ({"training.real_fraction": 1.5}, "real_fraction: expected a number at least 0 and at mo"),
        ({"training.updates": 41}, "training.updates: expected a multiple"),
        ({"rollout.updates_per_round": 5}, "updates_per_round: expected a multiple of 2"),
        ({"rollout.buffer_capacity": 8}, "buffer_capacity: expected room for a round"),
        ({"rollout.sampling_steps": 5000}, "sampling.steps: expected 1 to 1000"),
        ({"rollout.target_rule": "best"}, "target_rule: expected one of"),
        ({"rollout.eta": 0.5}, r"rollout.eta: expected 0 with config\.rollout\.order 2"),
        ({"world_model.learning_rate": float("nan")}, "learning_rate: expected a number above 0"),
        ({"world_model.learning_rate": float("inf")}, "learning_rate: expected a number above 0"),
        ({"world_model.prediction": "y"}, "world_model.prediction: expected one of"),
        ({"world_model.dtype": "float8"}, "world_model.dtype: expected one of"),
        ({"world_model.schedule": "linear"}, "schedule: expected one of cosine, constant"),
        ({"unet.dim": 6}, "unet.dim: expected a multiple"),
        ({"unet.kernel_size": 4}, "unet.kernel_size: expected an odd number"),
    ],
)
def test_a_wrong_value_is_refused_in_one_line(tmp_path, overrides, message):
    config = dawm_jax.get_config("hopper:smoke")
    config.update_from_flattened_dict(overrides)
    with pytest.raises(UserError, match=message) as error:
        dawm_jax.train(config, tmp_path)
    one_line(error)
    # A refused run does not claim the folder: corrected, it may use it.
    assert not (tmp_path / "config.json").exists()


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="is not a run"):
        load_run(tmp_path)


@pytest.mark.slow
def test_kill_9_loses_at_most_one_checkpoint_interval(undisturbed, tmp_path):
    """A real process, really killed, somewhere in the agent stage; then resumed."""
    code = (
        "import sys; sys.path[:0] = ['tests', 'tests/training']\n"
        "import pathlib, conftest, train_test\n"
        "from dawm_jax.envs import rollouts\n"
        "from dawm_jax.training import artifacts, cost_model, train\n"
        "rollouts.run_episodes = train_test.fake_episodes\n"
        "cost_model.plan = lambda *args: []\n"
        "artifacts.figures.plot_curves = lambda *args: None\n"
        f"train.run(train_test.tiny_config(), pathlib.Path({str(tmp_path)!r}))\n"
    )
    root = pathlib.Path(__file__).resolve().parents[2]
    process = subprocess.Popen([sys.executable, "-c", code], cwd=root)
    metrics = tmp_path / "metrics.jsonl"
    while process.poll() is None:
        if metrics.exists() and '"stage": "agent"' in metrics.read_text():
            process.kill()
            break
        time.sleep(0.01)
    assert process.wait() == -signal.SIGKILL
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)
    assert_same_run(tmp_path, undisturbed[0])
