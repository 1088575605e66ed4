"""What scripts and notebooks call: the functions that `import dawm_jax` shows."""

import dataclasses
import json
import logging
import subprocess
import sys

import numpy as np
import pytest
from gymnasium.envs.mujoco.hopper_v5 import HopperEnv
from small_run import small_config, write_run

import dawm_jax
from dawm_jax.config import schema
from dawm_jax.envs import rollouts
from dawm_jax.envs.tasks import References
from dawm_jax.report import runs
from dawm_jax.training import artifacts, cost_model
from dawm_jax.training.load_run import LoadedRun, load_run
from dawm_jax.types import UserError


def test_the_package_shows_what_it_offers():
    functions = [
        "dataset_from_arrays",
        "evaluate",
        "get_config",
        "load_dataset",
        "load_run",
        "normalised_score",
        "train",
    ]
    errors = ["Interrupted", "UserError"]
    assert dir(dawm_jax) == sorted([*functions, *errors, "__version__"])
    assert sorted(dawm_jax.__all__) == sorted([*functions, *errors])
    assert all(callable(getattr(dawm_jax, name)) for name in functions)
    assert all(issubclass(getattr(dawm_jax, name), Exception) for name in errors)
    with pytest.raises(AttributeError, match="module 'dawm_jax' has no attribute 'trian'"):
        _ = dawm_jax.trian


def test_importing_the_package_imports_no_jax():
    """So that commands answer --help at once."""
    code = "import sys, dawm_jax; sys.exit('jax' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_get_config_can_be_changed_and_checked():
    config = dawm_jax.get_config("hopper:smoke")
    config.rollout.guidance = 2.0
    assert schema.parse(config).rollout.guidance == 2.0
    with pytest.raises(ValueError, match=r"expected one of .*hopper"):
        dawm_jax.get_config("hoper")


def test_load_dataset():
    dataset = dawm_jax.load_dataset("bundled/hopper/medium-v0")
    assert dataset.observations.shape == (len(dataset), 11)


# --- training -----------------------------------------------------------------------------


def fake_episodes(policy, environment, *, seeds, **options):
    """An evaluation without physics: the first action of each episode's constant observation."""
    assert environment == "Hopper-v5"
    observations = np.full((*seeds.shape, 11), 0.1, np.float32)
    observations += (seeds % 1_000)[..., None].astype(np.float32) / 1e5
    return rollouts.Outcome(np.asarray(policy(observations)).sum(-1).astype(np.float64))


@pytest.fixture(name="no_simulator")
def _no_simulator(monkeypatch):
    monkeypatch.setattr(rollouts, "run_episodes", fake_episodes)
    monkeypatch.setattr(cost_model, "plan", lambda *args: [])
    monkeypatch.setattr(artifacts.figures, "plot_curves", lambda *args: None)


def tiny_config():
    """Agents alone: a few seconds."""
    config = dawm_jax.get_config("hopper:smoke")
    config.training.real_fraction = 1.0
    config.td3_bc.hidden = (8,)
    return config


def test_train_returns_the_loaded_run(no_simulator, tmp_path):
    """A path may be text; a second call resumes what is finished; a typed Config is as good."""
    config, folder = tiny_config(), str(tmp_path / "runs" / "a")
    run = dawm_jax.train(config, folder)
    assert isinstance(run, LoadedRun)
    assert run.config == schema.parse(config)
    assert run.policy(np.zeros((4, 11))).shape == (4, 3)
    assert (tmp_path / "runs" / "a" / "results.json").is_file()
    for again in (
        dawm_jax.train(schema.parse(config), folder),
        dawm_jax.load_run(folder),
    ):
        observation = np.random.default_rng(0).normal(size=11)
        np.testing.assert_array_equal(again.policy(observation), run.policy(observation))
    config.seed = 1
    with pytest.raises(UserError, match="seed: 0 there, 1 here"):
        dawm_jax.train(config, folder)


def arrays(**changes):
    """Ten episodes of eight random steps, as D4RL's files hold them."""
    rng = np.random.default_rng(0)
    return {
        "observations": rng.normal(size=(80, 11)),
        "actions": rng.uniform(-1, 1, (80, 3)),
        "rewards": rng.normal(size=80),
        "terminals": np.zeros(80),
        "timeouts": np.arange(80) % 8 == 7,
        **changes,
    }


def test_arrays_are_a_dataset(caplog):
    found = arrays()
    dataset = dawm_jax.dataset_from_arrays(**found, name="mine", environment="Hopper-v5")
    assert (dataset.name, dataset.environment, len(dataset)) == ("memory:mine", "Hopper-v5", 70)
    assert not caplog.records
    successors = np.roll(found["observations"], -1, axis=0)
    dataset = dawm_jax.dataset_from_arrays(
        **arrays(timeouts=None, next_observations=successors + 0.5 * found["timeouts"][:, None])
    )
    assert len(dataset.episode_ends) == 10
    assert "next_observations of 9 unmarked steps" in caplog.text


@pytest.mark.parametrize(
    "given", [lambda: arrays(), lambda: dawm_jax.dataset_from_arrays(**arrays())]
)
def test_train_takes_arrays_and_stores_their_name(no_simulator, tmp_path, given):
    config = tiny_config()
    run = dawm_jax.train(config, tmp_path, dataset=given())
    assert run.config.dataset == "memory:arrays"
    assert len(run.training_data()) == 70
    # The same call resumes; without the arrays the name alone is refused in one line.
    dawm_jax.train(config, tmp_path, dataset=given())
    config.dataset = "memory:arrays"
    with pytest.raises(UserError, match=r"pass them as dataset= to dawm_jax\.train"):
        dawm_jax.train(config, tmp_path)
    loaded = dawm_jax.load_run(tmp_path)
    assert loaded.policy(np.zeros(11)).shape == (3,)
    with pytest.raises(UserError, match=r"dawm_jax\.load_run"):
        loaded.training_data()
    for data in (arrays(), dawm_jax.dataset_from_arrays(**arrays())):
        again = dawm_jax.load_run(tmp_path, dataset=data)
        assert len(again.training_data()) == 70


def test_references_of_the_data_score_a_task_without_its_own(register, monkeypatch, tmp_path):
    """In the run's log and results, and in the report, which reads results.json alone."""
    name = register("DawmLeg-v0", HopperEnv, max_episode_steps=50)
    monkeypatch.setattr(
        rollouts,
        "run_episodes",
        lambda *args, seeds, **rest: rollouts.Outcome(np.full((len(seeds), 2), 4.0)),
    )
    monkeypatch.setattr(cost_model, "plan", lambda *args: [])
    monkeypatch.setattr(artifacts.figures, "plot_curves", lambda *args: None)
    config = tiny_config()
    config.environment = name
    dataset = dataclasses.replace(
        dawm_jax.dataset_from_arrays(**arrays()), references=References(3.0, 5.0)
    )
    dawm_jax.train(config, tmp_path, dataset=dataset)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["references"] == [3.0, 5.0]
    assert results["final"]["score_per_seed"] == [50.0, 50.0]
    (row,) = runs.group(runs.load([tmp_path]))
    np.testing.assert_array_equal(row.last, 50.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rewards": [[1.0], [1.0, 2.0]]}, "rewards is no array"),
        ({"rewards": "text"}, "expected numbers in rewards"),
        ({"terminals": np.full(80, 0.5)}, "expected 0 or 1 in terminals"),
        ({"actions": np.zeros((80, 3), int)}, "discrete actions are not supported"),
    ],
)
def test_wrong_arrays_are_one_line(tmp_path, change, message):
    with pytest.raises(UserError, match=message) as error:
        dawm_jax.train(tiny_config(), tmp_path / "run", dataset=arrays(**change))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="got no rewards"):
        dawm_jax.train(tiny_config(), tmp_path / "run", dataset={"observations": 0, "actions": 0})


def test_train_refuses_wrong_settings_before_it_makes_a_folder(tmp_path):
    config = tiny_config()
    config.training.batch_size = 0
    with pytest.raises(UserError, match=r"config\.training\.batch_size: expected"):
        dawm_jax.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


# --- evaluation ---------------------------------------------------------------------------


@pytest.fixture(name="run", scope="module")
def _run(tmp_path_factory):
    config = small_config(num_seeds=3, training__real_fraction=1.0)
    return load_run(write_run(tmp_path_factory.mktemp("run"), config))


def test_evaluation_gives_the_returns_of_every_seed(run, no_simulator):
    returns = dawm_jax.evaluate(run, episodes=4)
    assert returns.shape == (3, 4) and np.isfinite(returns).all()
    # Each seed's own agent acts.
    resets = rollouts.reset_seeds(10_000, run.config.seed, 0, num_policies=3, num_episodes=4)
    for seed in range(3):
        observations = np.full((4, 11), 0.1, np.float32)
        observations += (resets[seed] % 1_000)[:, None].astype(np.float32) / 1e5
        expected = run.policy(observations, seed).sum(-1)
        np.testing.assert_allclose(returns[seed], expected, rtol=1e-6)
    assert np.abs(returns[0] - returns[1]).max() > 0
    # An episode does not depend on how many there are, but on its seed.
    np.testing.assert_allclose(dawm_jax.evaluate(run, episodes=2), returns[:, :2], rtol=1e-6)
    assert np.abs(dawm_jax.evaluate(run, episodes=4, seed=0) - returns).max() > 0


def test_the_callers_log_handlers_are_used(no_simulator, tmp_path, caplog, monkeypatch):
    """`caplog` is one of them."""
    log = logging.getLogger("dawm_jax")
    monkeypatch.setattr(log, "handlers", [])  # as in a process that runs no command
    monkeypatch.setattr(log, "propagate", True)
    config = small_config(training__real_fraction=1.0)
    with caplog.at_level(logging.INFO):
        dawm_jax.train(config, tmp_path / "run")
    assert "results, curves and checkpoints are in" in caplog.text
    assert log.propagate and not log.handlers


def test_evaluation_in_the_simulator(run):
    returns = dawm_jax.evaluate(run, episodes=2, environment="Hopper-v5")
    assert returns.shape == (3, 2) and np.isfinite(returns).all()
    np.testing.assert_array_equal(dawm_jax.evaluate(run, episodes=2), returns)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"episodes": 0}, "episodes: expected at least 1, got 0"),
        ({"seed": -1}, "seed: expected at least 0, got -1"),
        ({"environment": "NoSuchTask-v5"}, "NoSuchTask-v5"),
    ],
)
def test_evaluations_that_cannot_be(run, options, message):
    with pytest.raises(UserError, match=message) as error:
        dawm_jax.evaluate(run, **options)
    assert "\n" not in str(error.value)
