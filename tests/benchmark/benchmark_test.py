"""The benchmark: counts against closed forms, turns with a fake clock, every stage once."""

import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from dawm_jax.benchmark import flops, growth, jax_side, measure, suite, tables
from dawm_jax.benchmark.measure import Contender
from dawm_jax.types import UserError

_ROOT = pathlib.Path(__file__).resolve().parents[2]

# --- counting -----------------------------------------------------------------------------


def test_a_matrix_product_counts_2mnk():
    count = flops.matmul_flops(jnp.dot, jnp.ones((3, 5)), jnp.ones((5, 7)))
    assert count == 2 * 3 * 5 * 7


def test_a_batched_product_counts_its_batch_once():
    count = flops.matmul_flops(jnp.matmul, jnp.ones((4, 3, 5)), jnp.ones((4, 5, 7)))
    assert count == 4 * 2 * 3 * 5 * 7


def test_a_gradient_is_two_more_products():
    loss = lambda w, x: jnp.square(x @ w).sum()
    gradients = jax.grad(loss, argnums=(0, 1))
    count = flops.matmul_flops(gradients, jnp.ones((5, 7)), jnp.ones((3, 5)))
    assert count == 3 * 2 * 3 * 5 * 7


def test_every_turn_of_a_loop_counts_and_nested_programs_too():
    @jax.jit
    def power(x):
        return jax.lax.scan(lambda y, _: (jax.jit(jnp.dot)(y, x), None), x, None, length=6)[0]

    assert flops.matmul_flops(power, jnp.ones((4, 4))) == 6 * 2 * 4**3


def test_the_dearer_branch_counts():
    def either(x):
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, x)

    assert flops.matmul_flops(either, jnp.ones((4, 4))) == 2 * 2 * 4**3


def test_a_loop_of_unknown_length_is_refused():
    def until(x):
        return jax.lax.while_loop(lambda x: x[0, 0] < 9.0, lambda x: x @ x, x)

    with pytest.raises(ValueError, match="unknown length"):
        flops.matmul_flops(until, jnp.ones((2, 2)))


def test_agrees_with_the_compiler_on_a_network():
    from dawm_jax.models.networks import Mlp

    network, x = Mlp((32, 32), 4), jnp.ones((64, 16))
    params = network.init(jax.random.key(0), x)
    loss = jax.grad(lambda params: jnp.square(network.apply(params, x)).sum())
    analysed = jax.jit(loss).lower(params).cost_analysis()["flops"]
    # The compiler also counts additions, activations and their gradients.
    assert 0.85 * analysed < flops.matmul_flops(loss, params) < analysed


# --- measuring ----------------------------------------------------------------------------


class Clock:
    """Moves only when a call says so."""

    def __init__(self):
        self.now, self.calls = 0.0, []

    def __call__(self):
        return self.now

    def contender(self, name, seconds, units):
        def call():
            self.calls.append(name)
            self.now += seconds

        return Contender(name, call, units)


def test_rates_by_hand_in_rotating_turns():
    clock = Clock()
    sides = [clock.contender("a", 0.5, 10), clock.contender("b", 2.0, 10)]
    rates = measure.in_turns(sides, rounds=2, seconds=1.0, clock=clock)
    assert rates == {"a": [20.0, 20.0], "b": [5.0, 5.0]}
    # A turn is a call that is not counted, then as many as a second holds.
    assert clock.calls == ["a", "a", "a", "b", "b", "b", "b", "a", "a", "a"]


def test_summary():
    found = measure.summary([3.0, 1.0, 2.0])
    assert (found["median"], found["low"], found["high"]) == (2.0, 1.0, 3.0)
    assert found["rounds"] == [3.0, 1.0, 2.0]


def _hold(megabytes):
    def work():
        held = np.ones(megabytes * 2**17)  # every page is written
        return lambda: float(held[0])

    return measure.watch_memory(work)


def test_peak_memory_is_what_the_work_holds():
    found = measure.peak_memory(_hold, 300)
    assert found["device"] == 1.0
    assert 295 * 2**20 < found["host"] < 400 * 2**20


def test_a_program_that_cannot_start_is_reported():
    with pytest.raises(UserError, match=r"failed: .*no file nowhere"):
        measure.seconds_to_first_step("--config=nowhere")


# --- the stages ---------------------------------------------------------------------------


@pytest.fixture(name="problem", scope="module")
def _problem():
    config = common.get_config("smoke")
    config.world_model.update(multipliers=(1,), groups=4)
    return suite.load(config)


@pytest.mark.parametrize("stage", jax_side.STAGES)
def test_a_stage_works_again_and_again(stage, problem):
    problem.config.training.updates = 8
    work = jax_side.make(stage, problem, units=4)
    work.call()
    work.call()
    windows = problem.config.rollout.windows_per_round
    assert work.units == {"sampling": 4 * windows, "pipeline": 1}.get(stage, 4)
    assert work.flops > 0


def test_the_flops_of_a_td3_bc_update_by_hand(problem):
    states, actions, hidden, batch = 11, 3, 16, 16
    layers = lambda size, out: np.array([size * hidden, hidden * hidden, hidden * out])
    actor, critic = layers(states, actions), layers(states + actions, 1)
    forward = lambda network: network.sum()
    weights = lambda network: network.sum()
    inputs = lambda network: network[1:].sum()  # the first layer's input asks for nothing
    of_critics = forward(actor) + 2 * forward(critic)  # the target
    of_critics += 2 * (forward(critic) + weights(critic) + inputs(critic))
    of_actor = forward(actor) + weights(actor) + inputs(actor)
    of_actor += 2 * forward(critic)  # there and back to the action
    expected = 2 * batch * (of_critics + of_actor / 2)  # the policy moves every other update
    work = jax_side.make("td3_bc", problem, units=4)
    np.testing.assert_allclose(work.flops, expected)


def test_updates_that_would_be_counted_but_not_made_are_refused(problem):
    with pytest.raises(ValueError, match="25 updates are not whole"):
        jax_side.make("td3_bc", problem, units=25)


def test_units_of_a_call(problem):
    problem.config.rollout.updates_per_round = 64
    assert suite.units_of("td3_bc", problem.config, share=5) == 20
    assert suite.units_of("fused", problem.config) == 128
    problem.config.rollout.updates_per_round = 4


def test_seeds_beside_each_other_are_more_units_of_the_same_cost(problem):
    one = jax_side.make("td3_bc", problem, units=4)
    three = jax_side.make("td3_bc", problem, units=4, seeds=3)
    three.call()
    assert (one.units, three.units) == (4, 12)
    np.testing.assert_allclose(one.flops, three.flops)


def test_a_side_that_cannot_run_is_left_out(problem, monkeypatch):
    pytest.importorskip("torch", reason="the PyTorch side needs PyTorch")

    def torch_call(stage, problem, name, units):
        if name == "compiled":
            raise RuntimeError("no compiler")
        return lambda: None

    monkeypatch.setattr(suite, "_torch_call", torch_call)
    saved = []
    numbers = suite.run(
        problem.config,
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


def test_growth_times_every_size(problem, monkeypatch):
    axes = {
        "dataset": (growth.AXES["dataset"][0], [100, 1_000], ["td3_bc"]),
        "seeds": (growth.AXES["seeds"][0], [1, 2], ["td3_bc"]),
    }
    monkeypatch.setattr(growth, "AXES", axes)
    numbers = growth.run(problem.config, axes=axes, rounds=1, seconds=0.0)
    for axis, sizes in (("dataset", [100, 1_000]), ("seeds", [1, 2])):
        points = numbers["growth"][axis]["td3_bc"]
        assert [point["size"] for point in points] == sizes
        assert all(point["median"] > 0 for point in points)
    assert "| dataset | 100 | 1,000 |" in tables.growth_markdown(numbers)


@pytest.mark.parametrize("axis", growth.AXES)
def test_an_axis_changes_what_it_says(axis, problem):
    change, sizes, stages = growth.AXES[axis]
    assert set(stages) <= set(jax_side.STAGES)
    size = sizes[1]
    copied = problem._replace(config=problem.config.copy_and_resolve_references())
    config = change(copied, size).config
    found = {
        "batch": config.training.batch_size,
        "horizon": config.horizon,
        "width": config.world_model.dim,
        "dataset": len(change(copied, size).replay),
        "seeds": size,
    }
    assert found[axis] == size


def test_made_up_data_is_whole_episodes(problem):
    replay = growth.AXES["dataset"][0](problem, 1_200).replay
    ends = np.asarray(replay.episode_end)
    assert ends[[0, 499, 500, 1_199]].tolist() == [499, 499, 999, 1_199]


# --- what is written ----------------------------------------------------------------------


def _numbers():
    side = lambda rate, seconds: {**measure.summary([rate]), "compile_seconds": seconds}
    return {
        "environment": "Hopper-v5",
        "variant": "quick",
        "dtype": "float32",
        "device": "1 x cpu",
        "versions": {"jax": "1.0"},
        "commit": "abc",
        "start": {"cold": 30.0, "warm": 10.0},
        "stages": {
            "fused": {
                "unit": "updates",
                "flops_per_unit": 2e9,
                "sides": {"jax": side(12.0, 3), "stock": side(4.0, 1), "tuned": side(6.0, 1)},
                "matmul": {"jax": measure.summary([48e9]), "torch": measure.summary([40e9])},
            }
        },
    }


def test_ratios_and_shares_by_hand(tmp_path):
    numbers = _numbers()
    assert tables.ratios_of(numbers["stages"]["fused"]) == {"stock": 3.0, "tuned": 2.0}
    text = tables.markdown(numbers)
    assert "| 3.00 | 2.00 | **2.00** | 2 | 50 % | 25 % |" in text
    assert "30.0 s with a cold cache" in text
    assert "JAX is 3.00x PyTorch, 2.00x PyTorch tuned" in tables.line(
        "fused", numbers["stages"]["fused"]
    )
    tables.plot_ratios(numbers, tmp_path / "ratios.png")
    assert (tmp_path / "ratios.png").stat().st_size > 1_000


def test_a_table_without_pytorch():
    numbers = _numbers()
    sides = numbers["stages"]["fused"]["sides"]
    del sides["stock"], sides["tuned"], numbers["stages"]["fused"]["matmul"]["torch"]
    assert "| fused, updates | 12 (12 to 12) | 2 | 50 % |" in tables.markdown(numbers)


def _command(*flags):
    return subprocess.run(
        [sys.executable, "-m", "dawm_jax.benchmark", *flags],
        capture_output=True,
        text=True,
        cwd=_ROOT,
    )


def test_the_command(tmp_path):
    flags = ["--config=configs/hopper.py:smoke", "--quick", "--stages=td3_bc", "--torch="]
    done = _command(*flags, f"--out={tmp_path}")
    assert done.returncode == 0, done.stderr
    numbers = json.loads((tmp_path / "benchmark.json").read_text())
    assert list(numbers["stages"]["td3_bc"]["sides"]) == ["jax"]
    assert (tmp_path / "table.md").read_text().strip() in done.stdout
    assert not (tmp_path / "ratios.png").exists()  # nothing to compare with


def test_a_wrong_stage_is_one_line():
    done = _command("--config=configs/hopper.py:smoke", "--stages=training")
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].endswith("got 'training'")
