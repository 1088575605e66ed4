"""What a second start of a run answers: the same results, one line, or the rest of the training."""

import dataclasses
import json
import logging
import shutil

import numpy as np
import pytest

from dawm_jax.config import schema
from dawm_jax.data.load import load_dataset
from dawm_jax.envs import rollouts
from dawm_jax.runtime import results
from dawm_jax.training import artifacts, cost_model, setup, stages, train
from dawm_jax.training.load_run import load_run
from dawm_jax.types import UserError


def fake_episodes(policy, environment, *, seeds, **options):
    """An evaluation without physics, deterministic in the policy."""
    observations = np.ones((*seeds.shape, 11), np.float32)
    return rollouts.Outcome(np.asarray(policy(observations)).sum(-1).astype(np.float64))


def plot(path, log, results):
    path.write_bytes(artifacts._PNG_BEGIN + bytes(4) + artifacts._PNG_END)


@pytest.fixture(scope="module", autouse=True)
def no_simulator():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rollouts, "run_episodes", fake_episodes)
        patch.setattr(cost_model, "plan", lambda *args: [])
        patch.setattr(artifacts.figures, "plot_curves", plot)
        yield


CONFIG = schema.replace(
    schema.parse(schema.get_config("smoke")),
    {
        "training.real_fraction": 1.0,
        "td3_bc.hidden": (8,),
        "environment_kwargs": '{"reset_noise_scale": 0.1}',
    },
)
DATA = load_dataset(CONFIG.dataset)
FILES = ("results.json", "returns.npz", "curves.png", "metrics.jsonl", "config.json")


def other_data():
    """The same steps in other units."""
    return dataclasses.replace(
        DATA, observations=2 * DATA.observations, next_observations=2 * DATA.next_observations
    )


@pytest.fixture(scope="module", name="original")
def _original(no_simulator, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("original")
    train.run(CONFIG, workdir)
    return workdir


@pytest.fixture(name="workdir")
def _workdir(original, tmp_path):
    return shutil.copytree(original, tmp_path / "run")


def contents(workdir, names=FILES):
    return {name: (workdir / name).read_bytes() for name in names if (workdir / name).exists()}


def stop_at_24(workdir):
    """Makes a finished run one that was stopped at its last but one checkpoint."""
    shutil.rmtree(workdir / "checkpoints" / "agent" / "40")
    (workdir / "results.json").unlink()


def one_line(error):
    assert "\n" not in str(error.value)


# --- finished -----------------------------------------------------------------------------


def test_a_finished_run_is_answered_without_computing(workdir, monkeypatch, caplog):
    before = contents(workdir)

    def compute(*args, **kwargs):
        raise AssertionError

    for module, name in ((setup, "make"), (setup, "build_replay"), (stages, "train_agents")):
        monkeypatch.setattr(module, name, compute)
    with caplog.at_level(logging.INFO):
        found = train.run(CONFIG, workdir)
    assert results.to_json(found) == results.to_json(results.read(workdir / "results.json"))
    assert found.dataset_digest == DATA.digest
    assert found.environment_kwargs == {"reset_noise_scale": 0.1}
    assert "TD3+BC on real data" in caplog.text
    assert contents(workdir) == before


@pytest.mark.parametrize("name", ["returns.npz", "curves.png"])
@pytest.mark.parametrize("damage", ["gone", "empty", "cut"])
def test_a_missing_file_is_written_again(workdir, name, damage):
    """As after a process of an older version was killed between results.json and returns.npz."""
    before = contents(workdir)
    path = workdir / name
    whole = path.read_bytes()
    path.unlink()
    if damage != "gone":
        path.write_bytes(b"" if damage == "empty" else whole[: len(whole) // 2])
    train.run(CONFIG, workdir)
    after = contents(workdir)
    assert after["results.json"] == before["results.json"]
    with np.load(workdir / "returns.npz") as arrays:
        assert arrays["updates"].tolist() == [24, 40]
    assert after["curves.png"] == before["curves.png"]


def test_results_are_written_last(workdir, monkeypatch):
    (workdir / "results.json").unlink()

    def killed(path, log, results):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(artifacts.figures, "plot_curves", killed)
        with pytest.raises(KeyboardInterrupt):
            train.run(CONFIG, workdir)
    assert not (workdir / "results.json").exists()
    train.run(CONFIG, workdir)
    assert (workdir / "results.json").exists()


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"null", b"42", b"{}"])
def test_damaged_results_are_made_of_the_metrics_again(workdir, content, caplog):
    before = json.loads((workdir / "results.json").read_text())
    (workdir / "results.json").write_bytes(content)
    after = train.run(CONFIG, workdir)
    assert "results.json is damaged" in caplog.text
    for name in ("final", "best", "curve", "stages", "dataset_digest"):
        assert results.to_json(after)[name] == before[name], name


# --- metrics that do not support the results ----------------------------------------------


@pytest.mark.parametrize("change", ["gone", "empty", "cut", "other", "garbage", "null returns"])
def test_results_are_not_replaced_by_less(workdir, change):
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    changed = {
        "empty": "",
        "cut": "".join(lines[:2]),
        "other": "".join(lines).replace('"returns": [[', '"returns": [[9'),
        "garbage": "42\nnull\n",
        "null returns": "".join(
            json.dumps({**entry, "returns": [[None, 1.0]]}) + "\n" if "returns" in entry else line
            for line in lines
            for entry in [json.loads(line)]
        ),
    }
    path.unlink() if change == "gone" else path.write_text(changed[change])
    before = contents(workdir)
    with pytest.raises(UserError, match=r"metrics\.jsonl does not hold what results\.json") as e:
        train.run(CONFIG, workdir)
    one_line(e)
    assert contents(workdir) == before


def test_reversed_lines_and_a_torn_last_line_change_nothing(workdir):
    path = workdir / "metrics.jsonl"
    before = (workdir / "results.json").read_bytes()
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(reversed(lines)) + '{"stage": "ag')
    train.run(CONFIG, workdir)
    assert (workdir / "results.json").read_bytes() == before
    # Results that are made of such a file are the same.
    (workdir / "results.json").unlink()
    again = train.run(CONFIG, workdir)
    for name in ("final", "curve", "stages"):
        assert results.to_json(again)[name] == json.loads(before)[name]


def test_only_returns_that_are_not_finite_is_one_line(workdir):
    path = workdir / "metrics.jsonl"
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    for entry in entries:
        del entry["crc"]  # as an older version wrote it
        if entry["kind"] == "assess":
            entry["returns"] = [[None, 1.0], [1.0, None]]
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    (workdir / "results.json").unlink()
    with pytest.raises(UserError, match="expected evaluations with finite returns") as error:
        train.run(CONFIG, workdir)
    one_line(error)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_returns_that_are_not_finite_are_refused_when_they_are_made(value):
    returns = np.array([[1.0, 2.0], [value, 3.0]])
    with pytest.raises(UserError, match=r"update 24: expected finite returns .* 1 of 4") as error:
        artifacts.evaluation_entry("Hopper-v5", rollouts.Outcome(returns), "update 24")
    one_line(error)


def test_a_flipped_digit_in_the_results_is_noticed(workdir, caplog):
    path = workdir / "results.json"
    before = json.loads(path.read_text())
    path.write_text(path.read_text().replace('"return_mean": ', '"return_mean": 9', 1))
    again = train.run(CONFIG, workdir)
    assert "results.json is damaged" in caplog.text
    for name in ("final", "best", "curve"):
        assert results.to_json(again)[name] == before[name], name


@pytest.mark.parametrize("state", ["finished", "stopped"])
def test_a_flipped_digit_in_the_metrics_is_noticed(workdir, state):
    """Of a loss, which no result is made of."""
    if state == "stopped":
        stop_at_24(workdir)
    path = workdir / "metrics.jsonl"
    path.write_text(path.read_text().replace('"critic_loss": ', '"critic_loss": 9', 1))
    before = contents(workdir)
    with pytest.raises(UserError, match=r"metrics\.jsonl: line 1 is damaged: restore") as error:
        train.run(CONFIG, workdir)
    one_line(error)
    assert contents(workdir) == before


@pytest.mark.parametrize("lost", ["all", "the first line"])
def test_a_stopped_run_without_its_metrics_is_not_resumed(workdir, lost):
    stop_at_24(workdir)
    path = workdir / "metrics.jsonl"
    if lost == "all":
        path.unlink()
    else:
        path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    before = contents(workdir)
    with pytest.raises(UserError, match=r"lacks what agent recorded at update 8, .* delete") as e:
        train.run(CONFIG, workdir)
    one_line(e)
    assert contents(workdir) == before
    shutil.rmtree(workdir / "checkpoints" / "agent")
    train.run(CONFIG, workdir)


def test_a_run_that_was_stopped_before_its_first_step_is_resumed(tmp_path, monkeypatch, original):
    from dawm_jax.runtime import stopping

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(stopping.StopFlag, "signal", property(lambda self: 15, lambda *args: None))
        with pytest.raises(stopping.Interrupted, match="agent at update 0"):
            train.run(CONFIG, run, DATA)  # a signal would end the reading of data
    assert (run / "checkpoints" / "agent" / "0").is_dir()
    found = train.run(CONFIG, run)
    expected_returns = results.read(original / "results.json").final.returns.values
    np.testing.assert_array_equal(found.final.returns.values, expected_returns)


def test_a_flipped_bit_in_the_curves_is_noticed():
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.effect_noise((20, 20), 50).save(file, "png")
    content = bytearray(file.getvalue())
    assert artifacts._is_whole_png(bytes(content))
    for place in range(0, len(content), 7):
        content[place] ^= 4
        assert not artifacts._is_whole_png(bytes(content)), place
        content[place] ^= 4


# --- other data ---------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["finished", "stopped"])
def test_other_data_of_the_same_name_are_refused(workdir, state):
    if state == "stopped":
        stop_at_24(workdir)
    before = contents(workdir)
    with pytest.raises(UserError, match="the data is not what the run was trained on") as error:
        train.run(CONFIG, workdir, other_data())
    one_line(error)
    assert contents(workdir) == before
    assert sorted(path.name for path in (workdir / "checkpoints" / "agent").iterdir())[0] == "24"


@pytest.mark.parametrize("state", ["finished", "stopped"])
def test_a_run_of_an_older_version_is_compared_by_its_statistics(workdir, state):
    (workdir / "dataset.json").unlink()
    content = json.loads((workdir / "results.json").read_text())
    del content["dataset_digest"], content["results_digest"]
    (workdir / "results.json").write_text(json.dumps(content))
    if state == "stopped":
        stop_at_24(workdir)
    before = contents(workdir)
    with pytest.raises(UserError, match="the data is not what the agent stage was") as error:
        train.run(CONFIG, workdir, other_data())
    one_line(error)
    assert {**contents(workdir), "config.json": b""} == {**before, "config.json": b""}
    train.run(CONFIG, workdir)
    assert json.loads((workdir / "dataset.json").read_text())["digest"] == DATA.digest
    if state == "finished":
        assert (workdir / "results.json").read_bytes() == before["results.json"]


def test_a_loaded_run_refuses_other_data(workdir):
    run = load_run(workdir, other_data())
    for use in (run.training_data, lambda: run.check_data(other_data())):
        with pytest.raises(UserError, match="the data is not what the run was trained on") as e:
            use()
        one_line(e)
    run.check_data(DATA)


def test_stages_on_different_data_are_not_loaded(workdir, tmp_path, monkeypatch):
    from dawm_jax.runtime.checkpoint import Checkpoints

    entry, calls = Checkpoints.entry, []

    def drifting(self, name):
        calls.append(name)
        found = entry(self, name)
        return {**found, "reward_mean": found["reward_mean"] + len(calls)}

    monkeypatch.setattr(Checkpoints, "entry", drifting)
    (workdir / "checkpoints" / "world_model").symlink_to(workdir / "checkpoints" / "agent")
    monkeypatch.setattr(
        "dawm_jax.training.finished.last_steps", lambda config: {"world_model": 40, "agent": 40}
    )
    with pytest.raises(UserError, match="world_model and agent were trained on different data"):
        load_run(workdir)


# --- damaged checkpoints ------------------------------------------------------------------


def flip(workdir, step="40"):
    files = (workdir / "checkpoints" / "agent" / step).rglob("d/*")
    path = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 8
    path.write_bytes(content)


def test_a_damaged_last_checkpoint_is_trained_again(original, workdir, caplog):
    expected = load_run(original).policy(np.ones(11))
    flip(workdir)
    np.testing.assert_equal(load_run(workdir).policy(np.ones(11)) == expected, False)
    caplog.clear()
    found = train.run(CONFIG, workdir)
    assert "is damaged" in caplog.text and "results_former.json" in caplog.text
    expected_returns = results.read(original / "results.json").final.returns.values
    np.testing.assert_array_equal(found.final.returns.values, expected_returns)
    np.testing.assert_array_equal(load_run(workdir).policy(np.ones(11)), expected)
    assert (workdir / "results_former.json").read_bytes() == contents(original)["results.json"]


def test_loading_falls_back_to_the_checkpoint_before(workdir, caplog):
    (workdir / "checkpoints" / "agent" / "40" / "default" / "_METADATA").write_bytes(b"")
    run = load_run(workdir)
    assert run.policy(np.ones(11)).shape == (3,)
    (line,) = caplog.messages
    assert "40 cannot be restored" in line


def test_a_stage_without_a_good_checkpoint_says_how_to_start_it_anew(workdir):
    for step in ("24", "40"):
        flip(workdir, step)
    for use in (lambda: train.run(CONFIG, workdir), lambda: load_run(workdir)):
        with pytest.raises(UserError, match=r"delete .*checkpoints/agent") as error:
            use()
        one_line(error)
    shutil.rmtree(workdir / "checkpoints" / "agent")
    train.run(CONFIG, workdir)


def test_a_run_without_its_checkpoints_keeps_its_results(workdir):
    shutil.rmtree(workdir / "checkpoints")
    before = contents(workdir)
    train.run(CONFIG, workdir)
    assert contents(workdir) == before
    with pytest.raises(UserError, match=r"no checkpoint of its agent stage: delete results\.json"):
        load_run(workdir)


def test_processes_must_read_the_same_data(tmp_path, monkeypatch):
    monkeypatch.setattr(train.distributed, "exchange", lambda value: [value, "other"])
    with pytest.raises(UserError, match="the processes read different data"):
        train._record(CONFIG, DATA)
