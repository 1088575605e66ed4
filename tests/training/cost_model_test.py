"""The estimate before a run: right in its FLOPs, silent about what will not run."""

import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from dawm_jax.data import dataset as data
from dawm_jax.data import windows
from dawm_jax.methods.registry import assemble
from dawm_jax.training import cost_model as estimate


def test_cost_counts_the_flops_of_a_matrix_product():
    flops, operations = estimate._cost(lambda a, b: a @ b, jnp.ones((8, 16)), jnp.ones((16, 4)))
    assert flops == 2 * 8 * 16 * 4
    assert operations >= 1


def test_matmul_rate_is_a_rate():
    assert np.isfinite(estimate.matmul_rate(size=64, seconds=0.01))
    assert estimate.matmul_rate(size=64, seconds=0.01) > 0


@pytest.mark.parametrize(
    "real_fraction, method", [(0.0, "dawm"), (1.0, "dawm"), (0.0, "decision_diffuser")]
)
def test_plan_names_the_stages_that_will_run(real_fraction, method):
    config = common.get_config("smoke")
    config.training.real_fraction, config.method = real_fraction, method
    plans = method == "decision_diffuser"
    dataset = data.load_dataset("bundled/hopper/medium-v0")
    replay, statistics = windows.build(
        dataset,
        action_low=-np.ones(3, np.float32),
        action_high=np.ones(3, np.float32),
        discount=0.99,
        return_scale=0.0,
        timeout_value="zero",
        held_out_fraction=0.05,
    )
    text = "\n".join(estimate.plan(config, assemble(config, statistics), replay))
    assert ("td3_bc, 2 seed(s) x 40 updates of 16" in text) == (not plans)
    assert ("20 steps of 16" in text) == (real_fraction < 1)
    assert ("generation" in text) == (real_fraction < 1 and not plans)
    assert ("planning, 4 episodes" in text) == plans


def test_a_long_run_names_the_shorter_variant(monkeypatch):
    monkeypatch.setattr(estimate, "matmul_rate", lambda: 1e9)
    stage = estimate.StageCost("everything", 1_000_000, 1e9, 1)
    monkeypatch.setattr(estimate, "stages", lambda *args: [stage])
    config = common.get_config("")
    seconds = 1_000_000 * 1e9 / (estimate._EFFICIENCY * 1e9)
    lines = estimate.plan(config, None, None)
    assert ":quick" in lines[-1]
    assert f"{int(seconds / 3600)} h" in lines[-2]
