"""Synthetic datasets of a small run, from its checkpoints to what Minari reads."""

import dataclasses
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import minari
import numpy as np
import pytest
from small_run import small_config, write_run

from dawm_jax import generate as command
from dawm_jax.data import normalizer as normalizing
from dawm_jax.data import replay as replaying
from dawm_jax.data.load import load_dataset
from dawm_jax.data.minari_writer import DatasetWriter
from dawm_jax.runtime import run_folder
from dawm_jax.runtime.checkpoint import Checkpoints
from dawm_jax.training import setup, synthesis
from dawm_jax.training.load_run import load_run
from dawm_jax.types import Condition, Transition, UserError

_ROOT = pathlib.Path(__file__).resolve().parents[2]
ID = "local/hopper/synthetic-v0"
BATCH, H = 16, 7


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path / "minari"


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run"), small_config())


def make(workdir, transitions, dataset_id=ID, **options):
    options = {"batch": BATCH, **options}
    synthesis.generate(workdir, dataset_id, transitions=transitions, **options)
    return list(minari.load_dataset(dataset_id).iterate_episodes())


def arrays(episodes):
    return [(e.observations, e.actions, e.rewards, e.terminations, e.truncations) for e in episodes]


def assert_same(episodes, others):
    jax.tree.map(np.testing.assert_array_equal, arrays(episodes), arrays(others))


def generated(workdir, key):
    """One batch by the run's method, from starts looked up in the raw dataset."""
    run = load_run(workdir)
    dataset = load_dataset(run.config.dataset)
    order, num_train = replaying.split_episodes(dataset.episode_ends, run.config.held_out_fraction)
    key_starts, key_generate = jax.random.split(key)
    rows = order[np.asarray(jax.random.randint(key_starts, (BATCH,), 0, num_train))]
    return_to_go = replaying.returns_to_go(
        dataset.rewards,
        dataset.terminations,
        dataset.truncations,
        discount=run.config.discount,
        timeout_value=run.config.timeout_value,
    )
    starts = dataset.observations[rows], dataset.actions[rows]
    condition = Condition(
        normalizing.normalise_observation(run.normalizer, starts[0]),
        normalizing.normalise_action(run.normalizer, starts[1]),
        return_to_go[rows].astype(np.float32) / run.normalizer.return_scale,
    )
    made = jax.jit(run.setup.generator.generate)(run.models, key_generate, condition)
    windows = normalizing.raw_windows(run.normalizer, *made, num_windows=BATCH)
    return starts, windows


# --- what is written ----------------------------------------------------------------------


def test_windows_are_those_that_the_run_generates(workdir):
    """Of several batches, each with its own key; the last window is cut."""
    total = BATCH * H + 1  # more than one batch
    episodes = iter(make(workdir, total, seed=3))
    written, lengths, batches = 0, [], 0
    while written < total:
        key = jax.random.fold_in(jax.random.key(3), batches)
        batches += 1
        starts, (windows, valid) = generated(workdir, key)
        for i, (length, episode) in enumerate(zip(valid.sum(1), episodes, strict=False)):
            steps = len(episode.rewards)
            assert steps == min(length, total - written) > 0
            written += steps
            lengths.append(steps)
            np.testing.assert_allclose(episode.observations[0], starts[0][i], atol=1e-5)
            np.testing.assert_allclose(episode.actions[0], starts[1][i], atol=1e-6)
            for got, expected in (
                (episode.observations[:-1], windows.observation),
                (episode.observations[1:], windows.next_observation),
                (episode.actions, windows.action),
                (episode.rewards, windows.reward),
                (episode.terminations, windows.terminated),
            ):
                # Starts were normalised in another order of operations.
                np.testing.assert_allclose(got, expected[i, :steps], rtol=1e-3, atol=1e-3)
    assert written == total and batches > 1 and next(episodes, None) is None
    assert min(lengths[:-1]) < max(lengths) <= H  # terminations end windows at different steps


def test_the_number_of_transitions_is_exact_and_the_seed_decides(workdir):
    episodes = make(workdir, 100)
    assert sum(len(e.rewards) for e in episodes) == 100
    assert_same(make(workdir, 100, "local/again-v0"), episodes)
    other = make(workdir, 100, "local/other-v0", seed=1)
    assert np.abs(other[0].observations[0] - episodes[0].observations[0]).max() > 1e-3


def test_a_run_can_be_trained_on_it(workdir):
    make(workdir, 70)
    dataset = load_dataset(ID, cache=False)
    assert (len(dataset), dataset.environment) == (70, "Hopper-v5")
    config = load_run(workdir).config
    replay, _ = setup.build_replay(config, dataset)
    assert len(replay) == 70


def test_the_command_has_a_flag_for_every_setting_that_is_written_down():
    assert tuple(flag.name for flag in command._ROLLOUT) == synthesis.ROLLOUT_FIELDS


def test_other_settings_have_an_effect_and_are_written_down(workdir):
    plain = make(workdir, 30, "local/plain-v0", seed=5)
    changed = make(workdir, 30, seed=5, rollout={"guidance": 3.0})
    np.testing.assert_array_equal(plain[0].observations[0], changed[0].observations[0])
    assert np.abs(plain[0].observations[1] - changed[0].observations[1]).max() > 1e-3
    found = minari.load_dataset(ID).storage.metadata
    made = found["dawm_jax"]
    run = run_folder.read_config(workdir)
    assert made["trained_on"] == run["dataset"] == "bundled/hopper/medium-v0"
    assert made["generation"] == {
        "transitions": 30,
        "seed": 5,
        "batch": BATCH,
        "guidance": 3.0,
        "sampling_steps": 1,
        "temperature": run["rollout"]["temperature"],
        "target_rule": run["rollout"]["target_rule"],
        "target_factor": run["rollout"]["target_factor"],
    }
    run["rollout"]["guidance"] = 3.0
    assert made["config"] == run
    assert all(speed > 0 for speed in made["transitions_per_second"].values())
    assert made["versions"]["jax"] == jax.__version__
    assert found["ref_max_score"] == 3234.3
    assert run["dataset"] in found["description"]


def test_generated_terminations_end_episodes(workdir):
    count, length = 3, np.array([2, 4, 4])  # the second falls in its last step, the third never
    rng = np.random.default_rng(0)
    states = rng.normal(size=(count, 5, 11)).astype(np.float32)
    terminated = np.zeros((count, 4), np.float32)
    terminated[0, 1] = terminated[1, 3] = 1.0
    terminated[0, 3] = 1.0  # after the end: not valid
    windows = Transition(
        observation=states[:, :-1],
        action=rng.uniform(-1, 1, (count, 4, 3)).astype(np.float32),
        reward=rng.normal(size=(count, 4)).astype(np.float32),
        terminated=terminated,
        next_observation=states[:, 1:],
    )
    valid = np.arange(4) < length[:, None]
    with DatasetWriter(ID, environment="Hopper-v5", metadata={}) as writer:
        synthesis.write_windows(writer, windows, valid, limit=100)
    episodes = list(minari.load_dataset(ID).iterate_episodes())
    expected = [
        (
            states[i, : n + 1],
            windows.action[i, :n],
            windows.reward[i, :n],
            np.arange(n) == (n - 1 if i < 2 else -1),
            np.arange(n) == (n - 1 if i == 2 else -1),
        )
        for i, n in enumerate(length)
    ]
    jax.tree.map(np.testing.assert_array_equal, arrays(episodes), expected)


def test_a_window_cut_before_its_termination_is_truncated():
    windows = Transition(
        observation=np.zeros((1, 2, 11)),
        action=np.zeros((1, 2, 3)),
        reward=np.zeros((1, 2)),
        terminated=np.array([[0.0, 1.0]]),
        next_observation=np.zeros((1, 2, 11)),
    )
    with DatasetWriter(ID, environment="Hopper-v5", metadata={}) as writer:
        synthesis.write_windows(writer, windows, np.ones((1, 2), bool), limit=1)
    episode = minari.load_dataset(ID)[0]
    assert episode.truncations.tolist() == [True] and episode.terminations.tolist() == [False]


# --- refusals -----------------------------------------------------------------------------


def copy_with(workdir, folder, **changes):
    """The run's folder with another config.json."""
    shutil.copytree(workdir, folder)
    run_folder.write_config(folder, {**run_folder.read_config(folder), **changes})
    return folder


def nothing_in(root):
    return not [path for path in root.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("dataset_id", "options", "message"),
    [
        ("synthetic", {}, "expected a Minari id with a version"),
        ("bundled/hopper/medium-v0", {}, "names real data"),
        ("dawm/hopper/medium-v1", {}, "names real data"),
        (ID, {"rollout": {"target_rule": "best"}}, "target_rule: expected one of amplified"),
        (ID, {"rollout": {"sampling_steps": 1001}}, "expected 1 to 1000"),
        (
            ID,
            {"rollout": {"guidence": 1.0}},
            "rollout.guidence: unknown setting; expected .*guidance",
        ),
        (
            ID,
            {"rollout": {"sampling_steps": 0}},
            "sampling_steps: expected a whole number at least 1",
        ),
    ],
)
def test_refused_requests(workdir, root, dataset_id, options, message):
    with pytest.raises(UserError, match=message) as error:
        make(workdir, 10, dataset_id, **options)
    assert "\n" not in str(error.value)
    assert nothing_in(root)


def test_no_run(tmp_path, root):
    with pytest.raises(UserError, match="is not a run"):
        make(tmp_path, 10)
    assert nothing_in(root)


def test_data_that_is_not_what_the_run_was_trained_on(workdir, tmp_path, root):
    # As if other data stood under the same name: the scale of its returns differs.
    changed = copy_with(workdir, tmp_path / "run", discount=0.9)
    with pytest.raises(UserError, match="is not what the run was trained on"):
        make(changed, 10)
    assert nothing_in(root)


def test_a_run_without_models(workdir):
    run = dataclasses.replace(load_run(workdir), models=None)
    with pytest.raises(UserError, match="real data only"):
        run.generator(None, BATCH)


def test_models_that_generate_nonsense(workdir, root, monkeypatch):

    def spoilt(path):
        run = load_run(path)
        return dataclasses.replace(run, models=jax.tree.map(lambda x: x * np.nan, run.models))

    monkeypatch.setattr(synthesis, "load_run", spoilt)
    with pytest.raises(UserError, match="not finite"):
        make(workdir, 10)
    assert nothing_in(root)


def test_the_command(workdir, root):
    def command(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "dawm_jax.generate", f"--dataset_id={ID}", *arguments],
            cwd=_ROOT,
            env={
                **os.environ,
                "JAX_PLATFORMS": "cpu",
                "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
                # The test compares bits with what its own process generates; see conftest.py.
                "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
                "PYTHONPATH": str(_ROOT),
            },
            capture_output=True,
            text=True,
            timeout=300,
        )

    arguments = (f"--workdir={workdir}", "--transitions=50", f"--batch={BATCH}", "--seed=2")
    result = command(*arguments, "--guidance=3.0")
    assert result.returncode == 0, result.stderr
    expected = make(workdir, 50, "local/same-v0", seed=2, rollout={"guidance": 3.0})
    last = f"50 transitions in {len(expected)} episodes; generation"
    assert last in result.stderr.splitlines()[-1]
    assert_same(list(minari.load_dataset(ID).iterate_episodes()), expected)
    again = command(*arguments)
    assert again.returncode == 1
    assert again.stderr.startswith("dawm_jax: ") and again.stderr.count("\n") == 1
    assert "exists already" in again.stderr and "overwrite" in again.stderr


def test_a_run_of_another_version_is_refused(workdir, monkeypatch):
    entry = Checkpoints.entry

    def older(self, name):
        return {**entry(self, name), "termination_rate": np.float32(0)}

    monkeypatch.setattr(Checkpoints, "entry", older)
    with pytest.raises(UserError, match=r"another version of dawm_jax .*in termination_rate"):
        load_run(workdir)
