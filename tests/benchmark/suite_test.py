"""What is timed in one run, without the time it takes."""

import pytest

from dawm_jax.benchmark import suite
from dawm_jax.config import schema


def test_units_of_a_call(config):
    # Whole rounds of generation; without generation a call need not be a round.
    rounds = {"rollout.updates_per_round": 64, "training.updates": 64}
    rounds |= {"training.log_updates": 64, "training.checkpoint_updates": 64}
    config = schema.replace(config, rounds)
    assert suite.units_of("td3_bc", config, share=5) == 20
    assert suite.units_of("fused", config) == 128


def test_a_side_that_cannot_run_is_left_out(config, monkeypatch):
    pytest.importorskip("torch", reason="the PyTorch side needs PyTorch")
    from dawm_jax.benchmark import torch_side

    def make(*problem, compiled, **options):
        if compiled:
            raise RuntimeError("no compiler")
        return lambda: None

    monkeypatch.setattr(torch_side, "make", make)
    saved = []
    numbers = suite.run(
        config,
        stages=["td3_bc", "iql"],
        rounds=1,
        seconds=0.0,
        sides=["stock", "compiled"],
        memory=False,
        save=lambda numbers: saved.append(list(numbers["stages"])),
    )
    assert saved == [["td3_bc"], ["td3_bc", "iql"]]
    found = numbers["stages"]["td3_bc"]
    assert list(found["sides"]) == ["jax", "stock"]
    assert list(found["matmul"]) == ["jax", "torch"]
