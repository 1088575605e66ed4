"""Several chips: bytes counted in programs written by hand, and the model's arithmetic."""

import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from dawm_jax.benchmark import jax_side, scaling
from dawm_jax.config import schema
from dawm_jax.training import cost_model, setup
from dawm_jax.training.cost_model import StageCost

_PROGRAM = """HloModule jit_f

%sum (a: f32[], b: f32[]) -> f32[] {
  ROOT %add = f32[] add(%a, %b)
}

%inner (p: (s32[], f32[8,3])) -> (s32[], f32[8,3]) {
  %all-gather.1 = f32[8,3]{1,0} all-gather(%x), dimensions={0}
  ROOT %t = (s32[], f32[8,3]) tuple(%i, %all-gather.1)
}

%outer (p: (s32[], f32[])) -> (s32[], f32[]) {
  %all-reduce.1 = (f32[10]{0}, bf16[4]{0}) all-reduce(%a, %b), to_apply=%sum
  %while.1 = (s32[], f32[8,3]) while(%t), condition=%c, body=%inner, TURNS(5)
}

%c (p: (s32[], f32[])) -> pred[] {
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (x: f32[2]) -> f32[2] {
  %while.2 = (s32[], f32[]) while(%t), condition=%c, body=%outer, TURNS(3)
  %call.1 = f32[] call(%x), to_apply=%called
  %all-reduce.9 = f32[] all-reduce(%x), to_apply=%sum
}

%called (x: f32[]) -> f32[] {
  %collective-permute.1 = pred[7]{0} collective-permute(%x), source_target_pairs={{0,1}}
}
"""

_PROGRAM = re.sub(r"TURNS\((\d)\)", r'backend_config={"known_trip_count":{"n":"\1"}}', _PROGRAM)


def test_collectives_count_as_often_as_their_loops_turn():
    assert scaling.count_collectives(_PROGRAM) == {
        "all-reduce": 3 * (10 * 4 + 4 * 2) + 4,
        "all-gather": 3 * 5 * 8 * 3 * 4,
        "collective-permute": 7,
    }


def test_a_collective_in_an_endless_loop_is_an_error():
    unknown = re.sub(r', backend_config=.*"5".*', "", _PROGRAM)
    with pytest.raises(ValueError, match="inner: a collective in a loop of unknown length"):
        scaling.count_collectives(unknown)


def test_a_program_of_one_device_sends_nothing():
    step = lambda x, _: (jnp.sin(x) @ x, None)
    program = jax.jit(lambda x: jax.lax.scan(step, x, None, length=4)[0])
    assert not scaling.count_collectives(program.lower(jnp.ones((8, 8))).compile().as_text())


_MACHINE = scaling.Machine("eight", 8, flops=1e12, memory=1e12, link=1e9)


def _stage(**changes):
    stage = StageCost("s", steps=10, flops=1e12, operations=0, parameters=1000, exchanged=1200)
    return stage._replace(**changes)


def test_a_batch_is_shared_and_its_gradients_exchanged():
    found = scaling.predict(_stage(), _MACHINE)
    compute = 1e12 / 8 / (scaling.PEAK_SHARE * 1e12)
    exchange = 2 * 7 * (4800 / 8 / 1e9 + scaling.HOP_SECONDS)
    assert found.seconds == pytest.approx(10 * (compute + exchange))
    assert found.communication == pytest.approx(exchange / (compute + exchange))
    assert found.collective_bytes == 4800 and found.busy_chips == 8


@pytest.mark.parametrize(
    ("seeds", "shared", "busy", "share"),
    [
        (16, False, 8, 2),  # two seeds a chip, nothing sent
        (4, False, 4, 1),  # four chips have nothing to do
        (4, True, 8, 1 / 2),  # two chips a seed
        (5, False, 1, 5),  # five seeds do not spread over eight chips
    ],
)
def test_seeds_come_first(seeds, shared, busy, share):
    found = scaling.predict(_stage(seeds=seeds, shared=shared, exchanged=0), _MACHINE)
    assert found.busy_chips == busy
    assert found.seconds == pytest.approx(10 * share / scaling.PEAK_SHARE)
    assert found.communication == 0 and found.collective_bytes == 0


def test_small_steps_take_their_launches_however_many_chips():
    stage = _stage(flops=1.0, operations=1000, exchanged=0, parameters=0)
    launches = 1000 * scaling.OPERATION_SECONDS
    assert scaling.predict(stage, _MACHINE).seconds == pytest.approx(10 * launches)
    stage = _stage(flops=1.0, operations=0, parameters=10**9)
    assert scaling.predict(stage, _MACHINE._replace(chips=1)).seconds == pytest.approx(
        10 * scaling.PARAMETER_PASSES * 4e9 / 1e12
    )


# --- the counts ---------------------------------------------------------------------------

_ROOT = pathlib.Path(__file__).resolve().parents[2]


def _exchanged_per_parameter(variant):
    """Values that the cost model lets devices exchange for each parameter, by model."""
    problem = jax_side.load(schema.parse(schema.get_config(variant)))
    parts = setup.make(problem.config, problem.normalizer)
    costs = zip(parts.method.models, cost_model.stages(parts, problem.replay), strict=False)
    return {name: cost.exchanged / cost.parameters for name, cost in costs}


def _exchanged(found, model, per_parameter):
    """All-reduced bytes of a model's step: counted, and predicted by the cost model."""
    label = f"{model.replace('_', ' ')}, steps"
    counted, parameters = found[label]["bytes_per_step"], found["parameters"][label]
    assert set(counted) == {"all-reduce"}
    stage = _stage(parameters=parameters, exchanged=round(parameters * per_parameter))
    return counted["all-reduce"], scaling.predict(stage, _MACHINE).collective_bytes


def test_the_model_exchanges_what_was_counted():
    path = _ROOT / "results" / "scaling" / "quick" / "scaling.json"
    per_parameter = _exchanged_per_parameter("quick")
    for devices, found in json.loads(path.read_text()).items():
        if devices == "1":
            continue
        for model, share in per_parameter.items():
            counted, predicted = _exchanged(found, model, share)
            # Beside the gradients only a few scalars: the loss, and sums of its mask.
            assert predicted <= counted < predicted + 256
        # Each device has its own seeds, which exchange nothing.
        assert found["a seed a device, rounds"]["bytes_per_step"] == {}


@pytest.mark.slow
def test_the_counts_of_a_smaller_program():
    output = subprocess.check_output(
        [sys.executable, "launch/scaling.py", "--here", "--variant=smoke"],
        cwd=_ROOT,
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        },
        text=True,
    )
    found = json.loads(output.splitlines()[-1])
    for model in ("world_model", "inverse_dynamics"):
        counted, predicted = _exchanged(found, model, 1.0)
        assert predicted <= counted < predicted + 256
    assert found["a seed a device, rounds"]["bytes_per_step"] == {}
