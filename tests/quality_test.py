"""The quality report of a real small run and of datasets, from the command to the files."""

import json
import os
import pathlib
import subprocess
import sys

import h5py
import jax
import numpy as np
import pytest

from configs import common
from dawm_jax import audit, data, estimate, evaluate, judge, loading, report, study, train
from dawm_jax.types import UserError

_ROOT = pathlib.Path(__file__).resolve().parents[1]
TRANSITIONS = 210


def tiny_config(**overrides):
    config = common.get_config("smoke")
    config.world_model.update(multipliers=(1,), groups=4)
    config.training.update(updates=8, log_updates=8, checkpoint_updates=8)
    config.num_seeds = 1
    for name, value in overrides.items():
        section, _, field = name.rpartition("__")
        setattr(getattr(config, section) if section else config, field, value)
    return config


def trained(workdir, **overrides):
    """A run in `workdir`, without its evaluation and its estimate."""
    with pytest.MonkeyPatch.context() as patch:
        episodes = lambda policy, env, *, num_policies, num_episodes, **rest: np.zeros(
            (num_policies, num_episodes)
        )
        patch.setattr(evaluate, "run_episodes", episodes)
        patch.setattr(estimate, "plan", lambda *args: [])
        patch.setattr(report, "_plot", lambda *args: None)
        train.run(tiny_config(**overrides), workdir)
    return workdir


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        # The samples of real data are most of the time of a small report.
        patch.setattr(judge, "_REAL_ROWS", 2_000)
        patch.setattr(judge, "_HELD_OUT_ROWS", 200)
        patch.setattr(judge, "_FLOOR_ROWS", 200)
        patch.setattr(judge, "_CONTACT_ROWS", 50)
        yield trained(tmp_path_factory.mktemp("run"))


def request(**fields):
    defaults = {
        "workdir": None,
        "dataset_id": None,
        "reference": None,
        "environment": None,
        "transitions": TRANSITIONS,
        "seed": 0,
        "study": False,
    }
    return audit.Request(**{**defaults, **fields})


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_a_run_generates(workdir, tmp_path):
    out = tmp_path / "quality"
    text = audit.make_report(request(workdir=str(workdir), out=out))
    assert names(out) == ["quality.json", "quality.md", "quality.png"]
    assert (out / "quality.md").read_text() == text
    assert (out / "quality.png").read_bytes()[:4] == b"\x89PNG"
    found = json.loads((out / "quality.json").read_text())
    assert found["reference"] == "bundled/hopper/medium-v0"
    assert found["environment"] == "Hopper-v5"
    assert found["windows"] == TRANSITIONS // 7
    assert len(found["dynamics"]["by_step"]["mean"]) == 7
    assert len(found["distribution"]["ks"]["observation"]) == 11
    assert found["settings"]["guidance"] == 1.2
    # A model of twenty steps is far from the simulator, the data is not.
    assert found["dynamics"]["median"] > 0.01 > found["floor"]["dynamics"]["mean"]
    assert found["inverse_dynamics"]["replay_real_action"]["mean"] == pytest.approx(
        found["dynamics"]["by_step"]["mean"][0]
    )
    for row in ("dynamics error of one step", "termination rate", "discounted return of 7 steps"):
        assert f"| {row}" in text
    # Nobody's folders.
    assert str(workdir) not in text + json.dumps(found)


def test_the_same_request_gives_the_same_numbers(workdir, tmp_path):
    run = loading.load_run(workdir)
    reference = judge.prepare(
        data.load_dataset(run.config.dataset), "Hopper-v5", held_out_fraction=0.05, seed=1
    )
    again = [judge.measure_run(run, reference, num_windows=20, seed=s).numbers for s in (3, 3, 4)]
    assert again[0] == again[1] != again[2]


def test_chunks_do_not_show(workdir, monkeypatch):
    """Windows come in the order of their starts, whatever the size of the program's batch."""
    run = loading.load_run(workdir)
    reference = judge.prepare(
        data.load_dataset(run.config.dataset), "Pendulum-v1", held_out_fraction=0.05, seed=0
    )
    monkeypatch.setattr(judge, "_IMAGINE_CHUNK", 4)
    starts = reference.train[[5, 900, 17, 44, 1_000, 3]]
    judged, target = judge.imagine(run, reference, starts, jax.random.key(0))
    assert judged.valid.shape == (6, 7) and target.shape == (6,)
    first = judged.transitions.observation[:, 0]
    np.testing.assert_allclose(first, reference.dataset.observations[starts], atol=1e-4)
    action = judged.transitions.action[:, 0]
    np.testing.assert_allclose(action, reference.dataset.actions[starts], atol=1e-5)


def write_hdf5(path, dataset, rows):
    ends = (dataset.truncations | dataset.terminations)[rows]
    ends[-1] = True
    with h5py.File(path, "w") as file:
        file["observations"] = dataset.observations[rows]
        file["actions"] = dataset.actions[rows]
        file["rewards"] = dataset.rewards[rows]
        file["next_observations"] = dataset.next_observations[rows]
        file["terminals"] = dataset.terminations[rows]
        file["timeouts"] = ends & ~dataset.terminations[rows]
    return path


@pytest.fixture(scope="module")
def other(workdir, tmp_path_factory):
    """The bundled data's beginning as a D4RL file: a dataset that is not ours."""
    path = tmp_path_factory.mktemp("data") / "other.hdf5"
    return write_hdf5(path, data.load_dataset("bundled/hopper/medium-v0"), slice(0, 2_000))


@pytest.mark.parametrize("with_run", [True, False])
def test_a_dataset_is_judged(workdir, other, tmp_path, with_run):
    subject = (
        {"workdir": str(workdir)}
        if with_run
        else {"reference": "bundled/hopper/medium-v0", "environment": "Hopper-v5"}
    )
    text = audit.make_report(request(dataset_id=str(other), out=tmp_path, **subject))
    found = json.loads((tmp_path / "quality.json").read_text())
    assert found["judged"] == "other.hdf5"
    assert str(other.parent) not in text + json.dumps(found)
    assert found["transitions"] == TRANSITIONS
    assert found["windows"] is None
    assert "calibration" not in found
    # It is a piece of the reference.
    assert found["dynamics"]["median"] < 1e-6
    assert found["novelty"]["judged"]["q50"] < found["novelty"]["held_out"]["q50"]


def test_a_study(workdir, tmp_path, monkeypatch):
    monkeypatch.setattr(
        study,
        "_VALUES",
        {"guidance": (1.2,), "sampling_steps": (2, 3, 10_000), "temperature": (0.0,)},
    )
    monkeypatch.setattr(study, "_REPEATS", 2)
    text = audit.make_report(request(workdir=str(workdir), out=tmp_path, study=True))
    assert names(tmp_path) == ["study.json", "study.md", "study.png"]
    found = json.loads((tmp_path / "study.json").read_text())
    assert len(found["repeats"]) == 2
    fields = found["fields"]
    # The run's own values are added, more steps than the schedule has are left out.
    assert {k: [one["value"] for one in v] for k, v in fields.items()} == {
        "guidance": [1.2],
        "sampling_steps": [2, 3],
        "temperature": [0.0, 1.0],
    }
    own = {**found["repeats"][0], "value": 1.0}
    assert fields["temperature"][1] == own != {**found["repeats"][1], "value": 1.0}
    assert fields["temperature"][0]["dynamics_error"] != own["dynamics_error"]
    assert "| temperature 1 (own) |" in text


def test_varying_changes_the_sampler_and_not_the_run(workdir):
    run = loading.load_run(workdir)
    varied = study.vary(run, sampling_steps=4)
    assert (run.config.rollout.sampling_steps, varied.config.rollout.sampling_steps) == (2, 4)
    assert varied.functions.world_model.sample.keywords["num_steps"] == 4
    assert varied.models is run.models


def test_fractions_are_the_values_of_that_rule(workdir):
    run = study.vary(loading.load_run(workdir), target_rule="max_fraction", target_factor=0.7)
    assert study._values(run, "target_factor") == sorted({*study._FRACTIONS, 0.7})


def one_line(error):
    return "\n" not in str(error.value)


def test_a_run_without_models_has_nothing_to_judge(tmp_path):
    run = trained(tmp_path / "run", training__real_fraction=1.0)
    with pytest.raises(UserError, match="--dataset_id") as error:
        audit.make_report(request(workdir=str(run), out=tmp_path / "out"))
    assert one_line(error)
    assert not (tmp_path / "out").exists()


def test_datasets_that_do_not_fit_are_refused(tmp_path, other):
    """What cannot be judged is refused, and nothing is written."""
    narrow = tmp_path / "narrow.hdf5"
    dataset = data.load_dataset("bundled/hopper/medium-v0")
    with h5py.File(write_hdf5(narrow, dataset, slice(0, 100)), "r+") as file:
        for name in ("observations", "next_observations"):
            columns = file[name][:, :5]
            del file[name]
            file[name] = columns
    bundled = {"reference": "bundled/hopper/medium-v0", "out": tmp_path / "out"}
    with pytest.raises(UserError, match=r"\(5, 3\).*\(11, 3\)") as error:
        audit.make_report(request(dataset_id=str(narrow), **bundled))
    assert one_line(error)
    with pytest.raises(UserError, match="--environment=Hopper-v5") as error:
        audit.make_report(
            request(dataset_id=str(other), reference=str(other), out=tmp_path / "out")
        )
    assert one_line(error)
    assert names(tmp_path / "out") == []


def test_an_unwritable_folder_is_refused(workdir, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        audit.make_report(request(workdir=str(workdir), out=tmp_path / "file" / "out"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected --workdir, or --dataset_id with --reference and --out"),
        (["--dataset_id=a/b-v0"], "expected --workdir, or --dataset_id with --reference"),
        (["--workdir=x", "--reference=a/b-v0"], "--reference is for judging without --workdir"),
        (["--workdir=x", "--dataset_id=a/b-v0", "--study"], "--study varies what a run generates"),
        (["--workdir=x", "--transitions=many"], "transitions"),
        (["--wrkdir=x"], "wrkdir"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(arguments, message):
    result = subprocess.run(
        [sys.executable, "-m", "dawm_jax.quality", *arguments],
        cwd=_ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(_ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stderr.startswith("dawm_jax: ")
    assert result.stderr.count("\n") == 1
