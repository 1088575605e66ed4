"""What `train.run` refuses before it reads the data."""

import sys

import pytest
from small_run import small_config

from dawm_jax.config import schema
from dawm_jax.runtime import run_folder
from dawm_jax.training import train
from dawm_jax.types import UserError


@pytest.fixture(name="no_data", autouse=True)
def _no_data(monkeypatch):
    monkeypatch.setattr(train, "load_dataset", lambda name: pytest.fail("the data was read"))


@pytest.mark.parametrize(
    ("changes", "package"),
    [({"tensorboard": True}, "tensorboardX"), ({"wandb_project": "p"}, "wandb")],
)
def test_a_missing_package_leaves_no_folder(tmp_path, monkeypatch, changes, package):
    """So that the same folder takes the same run without the setting."""
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=f"needs {package}: pip install"):
        train.run(small_config(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"environment": "Nowhere-v0"}, "environment 'Nowhere-v0' cannot be made"),
        ({"environment": "CartPole-v1"}, "CartPole-v1: expected a flat Box space of actions"),
        ({"rollout__sampling_steps": 2_000}, "sampling_steps"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_data(tmp_path, changes, message):
    with pytest.raises(UserError, match=message) as error:
        train.run(small_config(**changes), tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run" / "config.json").exists()


def test_only_settings_of_reporting_may_change_on_resume(tmp_path):
    old = small_config()
    run_folder.write_config(tmp_path, schema.to_dict(old))
    changes = {
        "tensorboard": True,
        "wandb_project": "p",
        "evaluation.interval": 4,
        "evaluation.episodes": 3,
        "evaluation.final_episodes": 5,
    }
    assert set(changes) == schema.reporting_names()
    with train._own(tmp_path, schema.replace(old, changes)):
        pass
    for name, value in {"evaluation.seed": 1, "seed": 1, "training.updates": 44}.items():
        with pytest.raises(UserError, match=f"another configuration .{name}: "):
            with train._own(tmp_path, schema.replace(old, {name: value})):
                pass
