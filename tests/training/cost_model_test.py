"""The estimate before a run: right in its FLOPs, silent about what will not run."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_run import small_config

from dawm_jax.config import schema
from dawm_jax.data.load import load_dataset
from dawm_jax.runtime.metrics import format_seconds
from dawm_jax.training import cost_model, setup


@pytest.fixture(scope="module")
def data():
    return setup.build_replay(small_config(), load_dataset("bundled/hopper/medium-v0"))


def test_matmul_rate_is_a_rate():
    rate = cost_model.matmul_rate(size=64, seconds=0.01)
    assert np.isfinite(rate) and rate > 0


@pytest.mark.parametrize(
    "real_fraction, method", [(0.0, "dawm"), (1.0, "dawm"), (0.0, "decision_diffuser")]
)
def test_plan_names_the_stages_that_will_run(data, real_fraction, method):
    replay, normalizer = data
    config = small_config(training__real_fraction=real_fraction, method=method, num_seeds=2)
    plans = method == "decision_diffuser"
    text = "\n".join(cost_model.plan(setup.make(config, normalizer), replay))
    assert ("td3_bc, 2 seed(s) x 40 updates of 16" in text) == (not plans)
    assert ("20 steps of 16" in text) == (real_fraction < 1)
    assert ("generation" in text) == (real_fraction < 1 and not plans)
    assert ("planning, 4 episodes" in text) == plans


@pytest.mark.parametrize(
    ("changes", "first", "each"),
    [
        # 285,000 steps or so in pieces of 1,024; then 8 windows before each of 10 rounds.
        ({"method": "dwm"}, "expansion of {steps:,} training steps for all seeds", 80),
        # Half of both minibatches of 16, for each of 20 updates of the policy.
        ({"method": "dwm", "rollout__expand": "minibatch"}, None, 20 * 2 * 8),
        ({"method": "one_step", "training__real_fraction": 0.0}, None, 20 * 2 * 16),
    ],
)
def test_value_expansions_are_counted(data, changes, first, each):
    replay, normalizer = data
    config = small_config(num_seeds=2, **changes)
    parts = setup.make(config, normalizer, num_train=replay.num_train)
    _, *sweep, generation, updates = cost_model.stages(parts, replay)
    assert generation.text == f"generation, {each} windows for each of 2 seed(s)"
    assert generation.seeds == 2
    assert [stage.text for stage in sweep] == (
        [] if first is None else [first.format(steps=replay.num_train)]
    )
    if first is not None:
        (stage,) = sweep
        assert (stage.steps, stage.seeds) == (-(-replay.num_train // 1024), 1)
        # 128 times the windows of a round.
        np.testing.assert_allclose(stage.flops, 128 * generation.flops, rtol=0.01)
        # A resumed run has its buffer.
        _, *left = cost_model.stages(parts, replay, {"agent": 8})
        assert left[0].text.startswith("generation, 64 windows")
    assert updates.text.startswith("td3_bc, 2 seed(s) x 40 updates")


def test_the_flops_of_a_regression_are_counted(data):
    """Three matrix products of each layer for a training step, two of the first layer's."""
    replay, normalizer = data
    config = small_config(inverse_dynamics__hidden=(512, 512), inverse_dynamics__batch_size=64)
    stages = cost_model.stages(setup.make(config, normalizer), replay)
    (stage,) = (stage for stage in stages if stage.text.startswith("inverse dynamics"))
    layers = [(22, 512), (512, 512), (512, 3)]
    assert stage.parameters == sum(rows * columns + columns for rows, columns in layers)
    assert stage.steps == config.inverse_dynamics.steps
    products = [2 * 64 * rows * columns for rows, columns in layers]
    expected = 3 * sum(products) - products[0]  # no gradient of the inputs
    # The rest is element-wise: activations, Adam, the average.
    assert expected < stage.flops < expected + 100 * stage.parameters


def test_every_iteration_of_a_scan_is_counted():
    """Also of a scan inside of another, with what stands beside them."""
    x = jnp.ones((16, 16))
    product = 2 * 16**3

    def inner(x, _):
        return x @ x, None

    def outer(x, _):
        return jax.lax.scan(inner, x, None, length=3)[0] @ x, None

    def program(x):
        return jax.jit(lambda x: jax.lax.scan(outer, x, None, length=5)[0])(x @ x)

    flops, operations = cost_model._cost(program, x)
    np.testing.assert_allclose(flops, (1 + 5 * (1 + 3)) * product, rtol=0.01)
    assert operations >= 1 + 5 * (1 + 3)


def test_a_long_run_names_the_shorter_variant(monkeypatch):
    """An hour of float32 products and more, at a rate far below any device's."""
    monkeypatch.setattr(cost_model, "matmul_rate", lambda: 1e9)
    stage = cost_model.StageCost("everything", 1_000_000, 1e9, 1)
    monkeypatch.setattr(cost_model, "stages", lambda *args: [stage])
    parts = types.SimpleNamespace(config=small_config(variant=""))
    lines = cost_model.plan(parts, None)
    assert ":quick" in lines[-1]
    # Programs reach half of the rate.
    assert format_seconds(1_000_000 / 0.5) in lines[-2]
    parts.config = small_config(variant="quick")
    assert ":quick" not in cost_model.plan(parts, None)[-1]


def test_a_resumed_run_counts_what_is_left(data, tmp_path):
    replay, normalizer = data
    config = small_config(num_seeds=2)
    parts = setup.make(config, normalizer)
    whole = list(cost_model.stages(parts, replay))
    for stage, step in (("world_model", 10), ("world_model", 20), ("agent", 8), ("agent", 24)):
        (tmp_path / "checkpoints" / stage / str(step)).mkdir(parents=True)
    (tmp_path / "checkpoints" / "agent" / "32.tmp").mkdir()
    done = cost_model.steps_done(tmp_path)
    assert done == {"world_model": 20, "agent": 24}
    fitting, generation, updates = cost_model.stages(parts, replay, done)
    assert fitting.text.startswith("inverse dynamics") and fitting.steps == whole[1].steps
    # 16 of 40 updates are left, 4 between generations, 2 for each update of the policy.
    assert (generation.steps, updates.steps) == (4, 8)
    assert "2 seed(s) x the last 16 of 40 updates" in updates.text
    assert (updates.flops, generation.flops) == (whole[3].flops, whole[2].flops)


@pytest.mark.parametrize(
    ("changes", "done", "refits"),
    [
        ({}, 0, 2),  # after 80 and 160 of 200 steps
        ({}, 80, 2),  # the refit at 80 follows the checkpoint
        ({}, 100, 1),
        ({"refit_every": 100}, 0, 1),  # none after the last step
        ({"refit_every": 0}, 0, 0),
        ({"generated_fraction": 0.0, "online_fraction": 0.75}, 0, 0),
    ],
)
def test_a_fine_tuning_counts_its_refits(data, changes, done, refits):
    replay, normalizer = data
    settings = {"online.steps": 200, **{f"online.{name}": x for name, x in changes.items()}}
    config = schema.replace(small_config(num_seeds=2), settings)
    finished = {"world_model": 20, "inverse_dynamics": 20, "agent": 40, "online": done}
    parts = setup.make(config, normalizer)
    updates, *found = cost_model.stages(parts, replay, finished)
    assert updates.steps == (200 - done) // 2  # two critic updates a call
    assert len(found) == (2 if refits else 0)
    fits = list(cost_model.stages(parts, replay))
    for stage, fit in zip(found, fits, strict=False):
        assert stage.steps == refits * config.online.refit_steps
        assert (stage.flops, stage.seeds) == (fit.flops, 2)
        assert stage.text.startswith(f"{refits} refits of ")


def test_a_finished_run_has_nothing_left(data, monkeypatch):
    replay, normalizer = data
    monkeypatch.setattr(cost_model, "matmul_rate", lambda: pytest.fail("measured for nothing"))
    parts = setup.make(small_config(), normalizer)
    done = {"world_model": 20, "inverse_dynamics": 20, "agent": 40}
    assert cost_model.plan(parts, replay, done) == ["all stages are trained"]
