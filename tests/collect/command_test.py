"""The collect command as users type it."""

import subprocess
import sys

import jax
import minari
import numpy as np
import pytest

from dawm_jax.collect import sac
from dawm_jax.collect.policies import Policies, save_policies


def collect(*arguments, root):
    """(exit code, standard error, standard output)."""
    import os

    done = subprocess.run(
        [sys.executable, "-m", "dawm_jax.collect", *arguments],
        env={**os.environ, "MINARI_DATASETS_PATH": str(root), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr, done.stdout


@pytest.fixture(name="policies", scope="module")
def _policies(tmp_path_factory):
    """A policies.npz as a training leaves it."""
    actor = sac.make_networks((8,), 3).actor.init(jax.random.key(0), np.zeros((1, 11)))
    card = {"policies": {"medium": {"step": 400, "return_mean": 1.0}}}
    names = ("medium", "expert", "replay-0", "replay-1")
    path = tmp_path_factory.mktemp("policies") / "policies.npz"
    save_policies(Policies("Hopper-v5", dict.fromkeys(names, actor), card), path)
    return path


def test_a_dataset_is_collected_and_read(tmp_path, policies, monkeypatch):
    code, err, _ = collect(
        "--env=Hopper-v5",
        "--tier=medium-replay",
        f"--policies={policies}",
        "--dataset_id=test/hopper/replay-v3",
        root=tmp_path,
    )
    assert code == 0, err
    assert "test/hopper/replay-v3: 4" in err  # its size, 400 steps and the last episode's rest
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    dataset = minari.load_dataset("test/hopper/replay-v3")
    assert dataset.total_steps >= 400  # the card's medium
    code, err, _ = collect(
        "--env=Hopper-v5", "--tier=random", "--dataset_id=test/hopper/replay-v3", root=tmp_path
    )
    assert (code, err.count("\n")) == (1, 1)
    assert "exists already" in err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--tier=medium"], 2, "--env"),
        (["--env=Hopper-v5", "--tier=best"], 2, "best"),
        (["--env=NoSuchTask-v0", "--tier=random"], 1, "cannot be made"),
        (["--env=Swimmer-v5"], 1, "no policies are shipped for Swimmer-v5"),
        (["--env=Hopper-v5", "--steps=0"], 2, "0 is not an integer in the range [1, "),
        (["--env=Hopper-v5", "--steps=-5"], 2, "-5 is not an integer in the range [1, "),
        (["--env=Hopper-v5", "--seed=-1"], 2, "-1 is not an integer in the range [0, "),
        (["--env=Hopper-v5", "--max_steps=-1"], 2, "-1 is not an integer in the range [0, "),
        (["--env=Hopper-v5", "--train", "--steps=127"], 1, "at least a round of 128"),
        (["--env=Hopper-v5", "--policies=/nowhere.npz"], 1, "no policies at /nowhere.npz"),
    ],
)
def test_mistakes_are_one_line(tmp_path, arguments, code, message):
    got, err, _ = collect(*arguments, root=tmp_path)
    lines = [line for line in err.splitlines() if line.startswith("dawm_jax:")]
    assert got == code
    assert len(lines) == 1
    assert message in lines[0]
    assert "Traceback" not in err


def test_help_names_every_flag(tmp_path):
    code, _, out = collect("--help", root=tmp_path)
    assert code == 0
    for flag in (
        "env",
        "tier",
        "steps",
        "max_steps",
        "dataset_id",
        "seed",
        "policies",
        "train",
        "workdir",
    ):
        assert f"--{flag}" in out
