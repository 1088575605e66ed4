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
from dawm_jax.data import dataset as data
from dawm_jax.methods import registry as assembly
from dawm_jax.quality import evaluate as judge
from dawm_jax.quality import run as audit
from dawm_jax.quality import sampler_ablation as study
from dawm_jax.runtime import checkpoint
from dawm_jax.training import load_run as loading
from dawm_jax.types import UserError

_ROOT = pathlib.Path(__file__).resolve().parents[2]
TRANSITIONS = 70


def write_hdf5(path, rows):
    """A piece of the bundled data as a D4RL file."""
    dataset = data.load_dataset("bundled/hopper/medium-v0")
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
def real(tmp_path_factory):
    """The reference, small."""
    return write_hdf5(tmp_path_factory.mktemp("data") / "real.hdf5", slice(0, 3_000))


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A dataset that is not ours; its last 500 steps are the reference's."""
    return write_hdf5(tmp_path_factory.mktemp("data") / "other.hdf5", slice(2_500, 3_500))


def untrained(workdir, dataset, real_fraction=0.0):
    """A run's folder with everything as it was initialised, so that no training is compiled."""
    config = common.get_config("smoke")
    config.dataset = str(dataset)
    config.world_model.update(multipliers=(1,), groups=4)
    config.training.real_fraction = real_fraction
    config.num_seeds = 1
    _, statistics = assembly.build_replay(config, data.load_dataset(config.dataset))
    parts, key = assembly.assemble(config, statistics), jax.random.key(0)
    states = {"agent": jax.vmap(parts.init_run)(jax.random.split(key, 1))}
    if real_fraction < 1.0:
        states["world_model"] = parts.world_model.init(key)
        # As it was initialised it ends every window at once: nothing generated would be left.
        states["world_model"].average["termination"]["params"]["Dense_1"]["bias"] -= 0.5
        states["inverse_dynamics"] = parts.inverse_dynamics.init(key)
    workdir.mkdir(exist_ok=True)
    (workdir / "config.json").write_text(config.to_json())
    for name, state in states.items():
        checkpoints = checkpoint.Checkpoints(workdir / "checkpoints" / name)
        checkpoints.save(1, {"state": state, "statistics": statistics})
        checkpoints.wait()
        checkpoints.close()
    return workdir


@pytest.fixture(scope="module")
def workdir(real, tmp_path_factory):
    return untrained(tmp_path_factory.mktemp("run"), real)


@pytest.fixture(scope="module")
def run(workdir):
    return loading.load_run(workdir)


@pytest.fixture(scope="module", autouse=True)
def small_samples():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judge, "_FLOOR_ROWS", 100)
        patch.setattr(judge, "_CONTACT_ROWS", 40)
        patch.setattr(judge, "_HELD_OUT_ROWS", 100)
        patch.setattr(judge, "_IMAGINE_CHUNK", 4)
        yield


def ask(**fields):
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
    text = audit.make_report(ask(workdir=str(workdir), out=out))
    assert names(out) == ["quality.json", "quality.md", "quality.png"]
    assert (out / "quality.md").read_text() == text
    assert (out / "quality.png").read_bytes()[:4] == b"\x89PNG"
    found = json.loads((out / "quality.json").read_text())
    assert found["reference"] == "real.hdf5"
    assert found["environment"] == "Hopper-v5"
    assert found["windows"] == TRANSITIONS // 7
    assert len(found["dynamics"]["by_step"]["mean"]) == 7
    assert len(found["distribution"]["ks"]["observation"]) == 11
    assert found["settings"]["guidance"] == 1.2
    # An untrained model is far from the simulator, the data is not.
    assert found["dynamics"]["median"] > 0.01 > found["floor"]["dynamics"]["mean"]
    assert found["inverse_dynamics"]["replay_real_action"]["mean"] == pytest.approx(
        found["dynamics"]["by_step"]["mean"][0]
    )
    for row in ("dynamics error of one step", "termination rate", "discounted return of 7 steps"):
        assert f"| {row}" in text
    # Nobody's folders.
    assert str(workdir) not in text + json.dumps(found)


def test_chunks_do_not_show(run):
    """Windows come in the order of their starts, also from a last chunk that is not full."""
    reference = judge.prepare(
        data.load_dataset(run.config.dataset), "Pendulum-v1", held_out_fraction=0.05, seed=0
    )
    starts = reference.train[[5, 900, 17, 44, 1_000, 3]]
    judged, target = judge.imagine(run, reference, starts, jax.random.key(0))
    assert judged.valid.shape == (6, 7) and target.shape == (6,)
    first = judged.transitions.observation[:, 0]
    np.testing.assert_allclose(first, reference.dataset.observations[starts], atol=1e-4)
    action = judged.transitions.action[:, 0]
    np.testing.assert_allclose(action, reference.dataset.actions[starts], atol=1e-5)
    # The same key draws the same windows.
    again, _ = judge.imagine(run, reference, starts, jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, judged, again)


@pytest.mark.parametrize("with_run", [True, False])
def test_a_dataset_is_judged(request, real, other, tmp_path, with_run):
    subject = {"reference": str(real), "environment": "Hopper-v5"}
    if with_run:
        subject = {"workdir": str(request.getfixturevalue("workdir"))}
    text = audit.make_report(ask(dataset_id=str(other), out=tmp_path, **subject))
    found = json.loads((tmp_path / "quality.json").read_text())
    assert (found["judged"], found["reference"]) == ("other.hdf5", "real.hdf5")
    assert str(other.parent) not in text + json.dumps(found)
    assert found["transitions"] == TRANSITIONS
    assert found["windows"] is None
    assert "calibration" not in found
    # Real steps, half of them the reference's.
    assert found["dynamics"]["median"] < 1e-6
    assert found["novelty"]["judged"]["q10"] == 0.0 < found["novelty"]["held_out"]["q10"]


def test_a_study(workdir, tmp_path, monkeypatch):
    """Which settings are measured with which seed, without generating; slow tests do."""
    asked = []

    def measured(run, reference, *, num_windows, seed):
        roll = run.config.rollout
        asked.append((roll.guidance, roll.sampling_steps, seed, num_windows))
        numbers = {
            "dynamics": {"mean": float(len(asked)), "median": 0.0},
            "reward": {"mean": 0.25, "median": 0.0},
            "distribution": {"ks": {"mean": 0.1}, "discriminator_auc": 0.7},
            "step_size": {"judged": 0.05},
            "novelty": {"median_ratio": 1.0},
            "termination": {"ending": {"recall": 0.5, "precision": None}},
            "calibration": {"generated_mean": 20.0},
        }
        return judge.Measured(numbers, {})

    monkeypatch.setattr(judge, "measure_run", measured)
    monkeypatch.setattr(study, "_VALUES", {"guidance": (1.2,), "sampling_steps": (3, 10_000)})
    monkeypatch.setattr(study, "_REPEATS", 2)
    text = audit.make_report(ask(workdir=str(workdir), out=tmp_path, study=True, seed=5))
    assert names(tmp_path) == ["study.json", "study.md", "study.png"]
    # The run's own settings twice, with other noise; then what differs, with the first's.
    assert asked == [(1.2, 2, 5, 10), (1.2, 2, 6, 10), (1.2, 3, 5, 10)]
    found = json.loads((tmp_path / "study.json").read_text())
    assert [one["dynamics_error"] for one in found["repeats"]] == [1.0, 2.0]
    # The run's own values are added, more steps than the schedule has are left out.
    fields = {
        name: [(one["value"], one["dynamics_error"]) for one in some]
        for name, some in found["fields"].items()
    }
    assert fields == {"guidance": [(1.2, 1.0)], "sampling_steps": [(2, 1.0), (3, 3.0)]}
    assert "| sampling_steps 2 (own) | 1 | 0.25 | 0.1 | 0.7 | 0.05 | 1 | 0.5 | - | 20 |" in text


def test_fractions_are_the_values_of_that_rule(run):
    run = run.with_rollout(target_rule="max_fraction", target_factor=0.7)
    assert study._values(run, "target_factor") == sorted({*study._FRACTIONS, 0.7})


def test_only_a_sampler_without_noise_extrapolates(run):
    assert study._values(run.with_rollout(order=1, eta=1.0), "order") == [1]
    assert study._values(run.with_rollout(order=1, eta=0.0), "order") == [1, 2]


def one_line(error):
    return "\n" not in str(error.value)


def test_a_run_without_models_has_nothing_to_judge(real, tmp_path):
    run = untrained(tmp_path / "run", real, real_fraction=1.0)
    with pytest.raises(UserError, match="--dataset_id") as error:
        audit.make_report(ask(workdir=str(run), out=tmp_path / "out"))
    assert one_line(error)
    assert not (tmp_path / "out").exists()


def test_datasets_that_do_not_fit_are_refused(tmp_path, real, other):
    """What cannot be judged is refused, and nothing is written."""
    narrow = write_hdf5(tmp_path / "narrow.hdf5", slice(0, 100))
    with h5py.File(narrow, "r+") as file:
        for name in ("observations", "next_observations"):
            columns = file[name][:, :5]
            del file[name]
            file[name] = columns
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"\(5, 3\).*\(11, 3\)") as error:
        audit.make_report(ask(dataset_id=str(narrow), reference=str(real), out=out))
    assert one_line(error)
    with pytest.raises(UserError, match="--environment=Hopper-v5") as error:
        audit.make_report(ask(dataset_id=str(other), reference=str(real), out=out))
    assert one_line(error)
    assert names(out) == []


def test_an_unwritable_folder_is_refused(real, other, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        audit.make_report(
            ask(dataset_id=str(other), reference=str(real), out=tmp_path / "file" / "out")
        )


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
    result = command("quality", *arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stderr.startswith("dawm_jax: ")
    assert result.stderr.count("\n") == 1


def command(module, *arguments):
    return subprocess.run(
        [sys.executable, "-m", f"dawm_jax.{module}", *arguments],
        cwd=_ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(_ROOT)},
        capture_output=True,
        text=True,
        timeout=1_200,
    )


@pytest.mark.slow
def test_train_then_judge(tmp_path):
    workdir = tmp_path / "run"
    trained = command("main", "--config=configs/hopper.py:smoke", f"--workdir={workdir}")
    assert trained.returncode == 0, trained.stderr
    judged = command("quality", f"--workdir={workdir}", "--transitions=140")
    assert judged.returncode == 0, judged.stderr
    assert names(workdir / "quality") == ["quality.json", "quality.md", "quality.png"]
    assert judged.stdout.strip() == (workdir / "quality" / "quality.md").read_text().strip()
    studied = command("quality", f"--workdir={workdir}", "--transitions=70", "--study")
    assert studied.returncode == 0, studied.stderr
    numbers = json.loads((workdir / "quality" / "study.json").read_text())
    own = numbers["repeats"][0]
    one_step = numbers["fields"]["sampling_steps"][0]
    assert one_step["value"] == 1 and one_step["dynamics_error"] != own["dynamics_error"]
    refused = command("quality", f"--workdir={tmp_path}")
    assert refused.returncode == 1
    assert "is not a run" in refused.stderr and refused.stderr.count("\n") == 1
