"""What scripts and notebooks call: the functions that `import dawm_jax` shows."""

import subprocess
import sys

import numpy as np
import pytest
from small_run import small_config, write_run

import dawm_jax
from dawm_jax.config import schema
from dawm_jax.envs import rollouts
from dawm_jax.training import artifacts, cost_model
from dawm_jax.training.load_run import LoadedRun, load_run
from dawm_jax.types import UserError


def test_the_package_shows_what_it_offers():
    functions = ["evaluate", "get_config", "load_dataset", "load_run", "train"]
    assert dir(dawm_jax) == sorted([*functions, "__version__"])
    assert sorted(dawm_jax.__all__) == functions
    assert all(callable(getattr(dawm_jax, name)) for name in functions)
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
    with pytest.raises(ValueError, match="expected a configuration file or one of .*hopper"):
        dawm_jax.get_config("hoper")


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:minari.*")
def test_load_dataset():
    dataset = dawm_jax.load_dataset("bundled/hopper/medium-v0")
    assert dataset.observations.shape == (len(dataset), 11)


# --- training -----------------------------------------------------------------------------


def fake_episodes(policy, environment, *, num_policies, num_episodes, seed):
    """An evaluation without physics: the first action of each episode's constant observation."""
    assert environment == "Hopper-v5"
    observations = np.full((num_policies, num_episodes, 11), 0.1, np.float32)
    observations += np.arange(seed, seed + num_episodes, dtype=np.float32)[None, :, None] / 1e5
    return np.asarray(policy(observations)).sum(-1).astype(np.float64)


@pytest.fixture(name="no_simulator")
def _no_simulator(monkeypatch):
    monkeypatch.setattr(rollouts, "run_episodes", fake_episodes)
    monkeypatch.setattr(cost_model, "plan", lambda *args: [])
    monkeypatch.setattr(artifacts, "plot_curves", lambda *args: None)


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
    observations = np.full((4, 11), 0.1, np.float32)
    observations += np.arange(10_000, 10_004, dtype=np.float32)[:, None] / 1e5
    for seed in range(3):
        expected = run.policy(observations, seed).sum(-1)
        np.testing.assert_allclose(returns[seed], expected, rtol=1e-6)
    assert np.abs(returns[0] - returns[1]).max() > 0
    # An episode does not depend on how many there are, but on its seed.
    np.testing.assert_allclose(dawm_jax.evaluate(run, episodes=2), returns[:, :2], rtol=1e-6)
    assert np.abs(dawm_jax.evaluate(run, episodes=4, seed=0) - returns).max() > 0


def test_evaluation_in_the_simulator(run):
    returns = dawm_jax.evaluate(run, episodes=2, environment="Hopper-v5")
    assert returns.shape == (3, 2) and np.isfinite(returns).all()
    np.testing.assert_array_equal(dawm_jax.evaluate(run, episodes=2), returns)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"episodes": 0}, "episodes: expected at least 1, got 0"),
        ({"environment": "NoSuchTask-v5"}, "NoSuchTask-v5"),
    ],
)
def test_evaluations_that_cannot_be(run, options, message):
    with pytest.raises(UserError, match=message) as error:
        dawm_jax.evaluate(run, **options)
    assert "\n" not in str(error.value)
