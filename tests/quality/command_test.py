"""Evaluations of a real small run and of datasets, from the request to the files."""

import json
import os
import pathlib
import subprocess
import sys

import h5py
import jax
import numpy as np
import pytest

from dawm_jax.config import schema
from dawm_jax.data.load import load_dataset
from dawm_jax.quality import generation
from dawm_jax.quality.evaluate import generate_windows
from dawm_jax.quality.reference import SampleSizes
from dawm_jax.quality.run import Request, make_report, read_quality
from dawm_jax.quality.sampler_ablation import Grid
from dawm_jax.quality.types import AblationReport
from dawm_jax.runtime import run_folder
from dawm_jax.runtime.checkpoint import Checkpoints
from dawm_jax.training import setup
from dawm_jax.types import UserError

_ROOT = pathlib.Path(__file__).resolve().parents[2]
TRANSITIONS = 70
SIZES = SampleSizes(held_out=100, replayed=100, contact=40, classifier_keys=2, windows_per_call=4)


def write_hdf5(path, rows):
    """A piece of the bundled data as a D4RL file."""
    dataset = load_dataset("bundled/hopper/medium-v0")
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


def untrained(workdir, dataset, real_fraction=0.0, environment_kwargs=""):
    """A run's folder with everything as it was initialised, so that no training is compiled."""
    values = schema.get_config("smoke")
    values.dataset = str(dataset)
    values.unet.update(multipliers=(1,), groups=4)
    values.training.real_fraction = real_fraction
    values.num_seeds = 1
    values.environment_kwargs = environment_kwargs
    config, key = schema.parse(values), jax.random.key(0)
    _, normalizer = setup.build_replay(config, load_dataset(config.dataset))
    parts = setup.make(config, normalizer)
    states = {"agent": jax.vmap(parts.training.init)(jax.random.split(key, 1))}
    if real_fraction < 1.0:
        states |= {name: model.init(key) for name, model in parts.method.models.items()}
        # The initial classifier ends every window at once: no generated step would be left.
        states["world_model"].average["termination"]["params"]["Dense_1"]["bias"] -= 0.5
    workdir.mkdir(exist_ok=True)
    run_folder.write_config(workdir, schema.to_dict(config))
    for name, state in states.items():
        checkpoints = Checkpoints(workdir / "checkpoints" / name)
        checkpoints.save(1, {"state": state, "statistics": normalizer})
        checkpoints.wait()
        checkpoints.close()
    return workdir


@pytest.fixture(scope="module")
def workdir(real, tmp_path_factory):
    return untrained(tmp_path_factory.mktemp("run"), real)


@pytest.fixture(scope="module")
def run(workdir):
    return generation.load(workdir)


def request(out, **fields):
    return Request(out=out, transitions=TRANSITIONS, sizes=SIZES, **fields)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_a_run_generates(workdir, tmp_path):
    out = tmp_path / "quality"
    text = make_report(request(out, workdir=str(workdir)))
    assert names(out) == ["quality.json", "quality.md", "quality.png"]
    assert (out / "quality.md").read_text() == text
    assert (out / "quality.png").read_bytes()[:4] == b"\x89PNG"
    found = read_quality(out / "quality.json")
    assert found.about.reference == "real.hdf5"
    assert found.about.environment == "Hopper-v5"
    assert found.about.settings["guidance"] == 1.0
    assert found.synthetic.windows == TRANSITIONS // 7
    simulator = found.synthetic.simulator
    assert len(simulator.dynamics.by_step.mean) == 7
    assert len(found.synthetic.distribution.ks.observation) == 11
    assert len(found.synthetic.distribution.discriminator_auc.by_key) == 2
    # An untrained model is far from the simulator, the data are not.
    real = found.real.simulator
    assert simulator.dynamics.all_steps.median > 0.01 > real.dynamics.mean
    # No private folders.
    assert str(workdir) not in text + (out / "quality.json").read_text()


def test_windows_of_a_run_start_where_they_should(run):
    """Windows have the order of their starts, also from a last call that is not full."""
    dataset = load_dataset(run.dataset)
    starts = np.array([5, 900, 17, 44, 1_000, 3])
    generate = lambda: generate_windows(
        run, dataset, starts, np.full(6, 300.0), jax.random.key(0), windows_per_call=4
    )
    windows = generate()
    assert windows.valid.shape == (6, 7)
    first = jax.tree.map(lambda x: x[:, 0], windows.steps)
    np.testing.assert_allclose(first.observation, dataset.observations[starts], atol=1e-4)
    np.testing.assert_allclose(first.action, dataset.actions[starts], atol=1e-5)
    # The same key draws the same windows.
    jax.tree.map(np.testing.assert_array_equal, windows, generate())


def test_the_targets_of_a_run_are_amplified(run):
    """The rule adds (1.2 - 1) of the start's own return, up to the data's largest."""
    targets = run.target_return(np.array([100.0, 200.0]))
    np.testing.assert_allclose(targets, [120.0, 240.0], rtol=1e-5)
    assert run.with_setting("target_factor", 1.5).target_return(np.array([100.0])) == pytest.approx(
        150.0, rel=1e-5
    )


def test_the_windows_of_a_run_are_those_of_its_loaded_run(workdir, run):
    """Both compute the same program from the same key."""
    from dawm_jax.training.load_run import load_run

    dataset = load_dataset(run.dataset)
    starts, returns = np.array([5, 900]), np.array([250.0, 300.0])
    observation, action = dataset.observations[starts], dataset.actions[starts]
    found = run.generate(jax.random.key(3), observation, action, returns)
    expected, valid = load_run(workdir).generate_from(
        observation, action, return_to_go=returns, seed=3
    )
    np.testing.assert_array_equal(found.valid, valid)
    np.testing.assert_array_equal(found.steps.observation, expected.observation)
    np.testing.assert_array_equal(found.steps.terminated, expected.terminated > 0)


@pytest.mark.parametrize("with_run", [True, False])
def test_a_dataset_is_evaluated(workdir, real, other, tmp_path, with_run):
    subject = {"reference": str(real), "environment": "Hopper-v5"}
    if with_run:
        subject = {"workdir": str(workdir)}
    text = make_report(request(tmp_path, dataset_id=str(other), **subject))
    found = read_quality(tmp_path / "quality.json")
    assert (found.about.synthetic, found.about.reference) == ("other.hdf5", "real.hdf5")
    assert str(other.parent) not in text + (tmp_path / "quality.json").read_text()
    assert found.synthetic.transitions == TRANSITIONS
    assert found.synthetic.windows is found.synthetic.calibration is found.about.settings is None
    # Real steps, half of them the reference's.
    assert found.synthetic.simulator.dynamics.all_steps.median < 1e-6
    assert found.synthetic.distances.q10 == 0.0 < found.real.distances.q10


def test_an_ablation(workdir, tmp_path):
    grid = Grid(
        guidance=(1.2,),
        sampling_steps=(1,),
        order=(2,),
        temperature=(1.0,),
        target_factor=(1.2,),
        repeats=1,
    )
    text = make_report(request(tmp_path, workdir=str(workdir), ablation=True, grid=grid))
    assert names(tmp_path) == ["ablation.json", "ablation.md", "ablation.png"]
    assert (tmp_path / "ablation.md").read_text() == text
    found = AblationReport.from_json(json.loads((tmp_path / "ablation.json").read_text()))
    assert found.windows == TRANSITIONS // 7
    points = {series.setting: series.points for series in found.series}
    one, own = points["sampling_steps"]
    assert (one.value, own.value) == (1, 2)
    assert own.metrics == found.repeats[0] != one.metrics


def one_line(error):
    return "\n" not in str(error.value)


def test_a_run_is_judged_in_its_own_environment(real, other, tmp_path):
    """With its keyword arguments, which are not those of an environment that a flag names."""
    kwargs = '{"forward_reward_weight": 2.0}'
    run = str(untrained(tmp_path / "run", real, real_fraction=1.0, environment_kwargs=kwargs))
    own = make_report(request(tmp_path / "own", workdir=run, dataset_id=str(other)))
    assert f"the simulator is made with {kwargs}" in own
    # The data have another weight.
    found = read_quality(tmp_path / "own" / "quality.json")
    assert found.synthetic.simulator.reward.all_steps.median > 0.01
    assert found.real.simulator.reward.median > 0.01
    named = request(tmp_path / "named", workdir=run, dataset_id=str(other), environment="Hopper-v5")
    assert "is made with" not in make_report(named)
    found = read_quality(tmp_path / "named" / "quality.json")
    assert found.synthetic.simulator.reward.all_steps.median < 1e-6


def test_a_run_without_models_generates_nothing(real, tmp_path):
    run = untrained(tmp_path / "run", real, real_fraction=1.0)
    with pytest.raises(UserError, match="--dataset_id") as error:
        make_report(request(tmp_path / "out", workdir=str(run)))
    assert one_line(error)
    assert not (tmp_path / "out").exists()


def test_datasets_that_do_not_fit_are_refused(tmp_path, real, other):
    """Datasets of other sizes, or of an unknown environment, are refused; nothing is written."""
    narrow = write_hdf5(tmp_path / "narrow.hdf5", slice(0, 100))
    with h5py.File(narrow, "r+") as file:
        for name in ("observations", "next_observations"):
            columns = file[name][:, :5]
            del file[name]
            file[name] = columns
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"\(5, 3\).*\(11, 3\)") as error:
        make_report(request(out, dataset_id=str(narrow), reference=str(real)))
    assert one_line(error)
    with pytest.raises(UserError, match="--environment=Hopper-v5") as error:
        make_report(request(out, dataset_id=str(other), reference=str(real)))
    assert one_line(error)
    assert names(out) == []


def test_an_unwritable_folder_is_refused(real, other, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        make_report(request(tmp_path / "file" / "out", dataset_id=str(other), reference=str(real)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected --workdir, or --dataset_id with --reference and --out"),
        (["--dataset_id=a/b-v0"], "expected --workdir, or --dataset_id with --reference"),
        (["--workdir=x", "--reference=a/b-v0"], "--reference is for use without --workdir"),
        (
            ["--workdir=x", "--dataset_id=a/b-v0", "--ablation"],
            "--ablation varies what a run generates",
        ),
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
def test_train_then_evaluate(tmp_path):
    workdir = tmp_path / "run"
    trained = command("main", "--config=configs/hopper.py:smoke", f"--workdir={workdir}")
    assert trained.returncode == 0, trained.stderr
    evaluated = command("quality", f"--workdir={workdir}", "--transitions=140")
    assert evaluated.returncode == 0, evaluated.stderr
    assert names(workdir / "quality") == ["quality.json", "quality.md", "quality.png"]
    assert evaluated.stdout.strip() == (workdir / "quality" / "quality.md").read_text().strip()
    ablation = command("quality", f"--workdir={workdir}", "--transitions=70", "--ablation")
    assert ablation.returncode == 0, ablation.stderr
    assert "ablation.json" in names(workdir / "quality")
    refused = command("quality", f"--workdir={tmp_path}")
    assert refused.returncode == 1
    assert "is not a run" in refused.stderr and refused.stderr.count("\n") == 1
