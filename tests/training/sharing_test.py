"""--models_from: a run with another's models equals the run that trains its own."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

from dawm_jax.config import schema
from dawm_jax.data.load import load_dataset
from dawm_jax.envs import rollouts
from dawm_jax.models import inverse_dynamics
from dawm_jax.runtime import results
from dawm_jax.training import artifacts, cost_model, setup, sharing, stages, train
from dawm_jax.training.load_run import load_run
from dawm_jax.types import UserError


def fake_episodes(policy, environment, *, seeds, **options):
    """An evaluation without physics, deterministic in the policy."""
    observations = np.ones((*seeds.shape, 11), np.float32)
    return rollouts.Outcome(np.asarray(policy(observations)).sum(-1).astype(np.float64))


@pytest.fixture(scope="module", autouse=True)
def no_simulator():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rollouts, "run_episodes", fake_episodes)
        patch.setattr(cost_model, "plan", lambda *args: [])
        patch.setattr(artifacts.figures, "plot_curves", lambda *args: None)
        yield


def config(**changes):
    small = {
        "unet.multipliers": (1,),
        "unet.groups": 4,
        "num_seeds": 1,
        "rollout.sampling_steps": 1,
        "world_model.steps": 10,
        "inverse_dynamics.steps": 10,
        "training.updates": 8,
        "evaluation.interval": 8,
    }
    changed = {name.replace("__", "."): value for name, value in changes.items()}
    return schema.replace(schema.parse(schema.get_config("smoke")), small | changed)


@pytest.fixture(scope="module", name="source")
def _source(no_simulator, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("source")
    train.run(config(), workdir)
    return workdir


def no_training(monkeypatch, *names):
    """Fails if one of the models is trained: makes a step of it."""
    original = stages.train_model

    def checked(name, *args):
        state = original(name, *args)
        if name in names:
            log = args[-1].log
            assert all("trained_in" in entry for entry in log.lines(name))
        return state

    monkeypatch.setattr(stages, "train_model", checked)


def refuse(settings, workdir, source, *parts, dataset=None):
    with pytest.raises(UserError) as error:
        train.run(settings, workdir, dataset, models_from=source)
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message
    assert not (workdir / "config.json").exists()  # the folder stays free


def test_a_run_with_shared_models_is_bit_for_bit_the_run_that_trains_them(
    source, tmp_path, monkeypatch
):
    no_training(monkeypatch, "world_model", "inverse_dynamics")
    found = train.run(config(), tmp_path, models_from=source)
    original = results.read(source / "results.json")
    np.testing.assert_array_equal(found.final.returns.values, original.final.returns.values)
    for name in ("world_model", "inverse_dynamics"):
        copied = dataclasses.replace(original.stages[name], trained_in=str(source))
        assert found.stages[name] == copied
    learnt = [jax.device_get((r.policies, r.models)) for r in map(load_run, (source, tmp_path))]
    jax.tree.map(np.testing.assert_array_equal, *learnt)
    # The folder stands for itself: the same call again, also without the other run.
    again = train.run(config(), tmp_path, models_from=source.parent / "gone")
    assert results.to_json(again) == results.to_json(found)


def test_models_that_both_methods_train_alike_are_shared(source, tmp_path, monkeypatch):
    no_training(monkeypatch, "world_model")
    found = train.run(config(method="dwm", agent="iql"), tmp_path, models_from=source)
    assert found.stages["world_model"].trained_in == str(source)


def parts_of(settings):
    dataset = load_dataset(settings.dataset)
    _, normalizer = setup.build_replay(settings, dataset)
    return setup.make(settings, normalizer), train._record(settings, dataset)


@pytest.mark.parametrize(
    ("changes", "shared"),
    [
        ({"method": "decision_diffuser"}, ["inverse_dynamics"]),
        ({"rollout.guidance": 3.0, "agent": "iql"}, ["world_model", "inverse_dynamics"]),
        ({"training.real_fraction": 0.0}, ["world_model", "inverse_dynamics"]),
        ({"world_model.log_steps": 2}, ["world_model", "inverse_dynamics"]),
    ],
)
def test_what_is_shared(source, tmp_path, changes, shared):
    parts, record = parts_of(config(**changes))
    found = sharing.find(parts, tmp_path, source, record)
    assert [model.name for model in found] == shared


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"seed": 1}, "seed: 0 there, 1 here"),
        ({"discount": 0.9}, "discount: 0.99 there, 0.9 here"),
        ({"return_scale": 77.0}, "return_scale"),
        ({"timeout_value": "average"}, "timeout_value"),
        ({"held_out_fraction": 0.2}, "held_out_fraction"),
        ({"top_fraction": 0.5}, "top_fraction: 1.0 there, 0.5 here"),
        ({"horizon": 3}, "world_model.horizon: 7 there, 3 here"),
        (
            {"world_model.learning_rate": 0.5},
            "world_model.settings.learning_rate: 0.004 there, 0.5",
        ),
        ({"world_model.diffusion_steps": 7}, "world_model.process.alpha_bar"),
        ({"world_model.prediction": "x0"}, "prediction: 'v' there, 'x0' here"),
        ({"world_model.denoiser": "residual_mlp"}, "world_model.denoiser"),
        ({"temporal_resnet.width": 24}, "world_model.denoiser"),
        ({"inverse_dynamics.hidden": (9,)}, "inverse_dynamics"),
        (
            {"world_model.state_columns": 11},
            "world_model.settings.state_columns: 0 there, 11 here",
        ),
        ({"method": "joint"}, "world_model.tokens.layout.actions: False there, True here"),
        ({"method": "one_step"}, "world_model: DiffusionWorldModel there, GaussianDynamics here"),
        ({"training.real_fraction": 1.0}, "trains no models"),
    ],
)
def test_other_models_are_refused_with_the_difference(source, tmp_path, changes, part):
    refuse(config(**changes), tmp_path / "run", source, f"--models_from={source}", part)


def test_inverse_dynamics_of_fewer_columns_is_another_model():
    settings = config()
    _, normalizer = setup.build_replay(settings, load_dataset(settings.dataset))
    models = [
        inverse_dynamics.make(settings.inverse_dynamics, normalizer, state_columns=columns)
        for columns in (0, 5)
    ]
    assert sharing._different_fields("inverse_dynamics", *models) == [
        "inverse_dynamics.normalizer: 11 observation columns there, 5 observation columns here"
    ]


def test_models_of_other_data_are_refused(source, tmp_path):
    data = load_dataset(config().dataset)
    data = dataclasses.replace(data, rewards=2 * data.rewards)
    refuse(config(), tmp_path / "run", source, "data: ", dataset=data)


def test_models_of_other_data_are_refused_without_a_digest(source, tmp_path):
    copy = shutil.copytree(source, tmp_path / "old")
    (copy / "dataset.json").unlink()
    (copy / "results.json").unlink()
    data = load_dataset(config().dataset)
    data = dataclasses.replace(data, rewards=2 * data.rewards)
    with pytest.raises(UserError, match="not what the world_model stage was trained on"):
        train.run(config(), tmp_path / "run", data, models_from=copy)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ("no run", "is not a run"),
        ("unfinished", "its inverse_dynamics is not trained to the end (step 10)"),
        ("damaged", "is damaged"),
    ],
)
def test_a_source_that_cannot_be_used(source, tmp_path, change, part):
    copy = tmp_path / "source"
    if change != "no run":
        shutil.copytree(source, copy)
        step = copy / "checkpoints" / "inverse_dynamics" / "10"
        shutil.rmtree(step) if change == "unfinished" else (step / "default/_METADATA").unlink()
    refuse(config(), tmp_path / "run", copy, part)


def test_a_killed_copy_is_repeated(source, tmp_path, monkeypatch):
    parts, record = parts_of(config())
    models = sharing.find(parts, tmp_path, source, record)
    (tmp_path / ".world_model.part" / "10").mkdir(parents=True)
    (tmp_path / "checkpoints" / "world_model" / "10.orbax-checkpoint-tmp").mkdir(parents=True)
    log = train.MetricsFile(tmp_path / "metrics.jsonl")
    log.append("world_model", "train", 5, {"loss": 1.0, "seconds": 1.0})
    sharing.copy(models, tmp_path, log)
    original = train.MetricsFile(source / "metrics.jsonl")
    for name in ("world_model", "inverse_dynamics"):
        found = list(log.lines(name))
        assert found == [{**entry, "trained_in": str(source)} for entry in original.lines(name)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "metrics.jsonl"]
