"""Devices: eight give the numbers of one, on a mesh, with pmap, and in two processes.

The number of devices is fixed when JAX starts, so each configuration runs this file once as
a script (see `_worker`) and leaves its results in an .npz.
"""

import os
import pathlib
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dawm_jax.config import schema
from dawm_jax.data import d4rl
from dawm_jax.data import replay as replaying
from dawm_jax.runtime import distributed, loop, sharding
from dawm_jax.training import setup, stages
from dawm_jax.training.fused import AgentRun, Inputs
from dawm_jax.types import UserError

_DEVICES = 8
_CALLS = 2  # of each program
_STEPS = 2  # a call
_ROUNDS = 2  # a call
_UPDATES = 2  # a round
_BATCH = 16
# Sums over devices are taken in another order: float32 rounding, of values of order 1. A lost
# gradient or a wrong slice moves Adam's parameters by 1e-4 and more, and its moments by a share of
# their own size, to which these are held as well.
_TOLERANCE = 1e-5
_MOMENT_TOLERANCE = 1e-4  # of the array's largest
# The denoiser has parameters whose gradient is next to nothing: its rounding, which Adam scales
# up, moves them.
_DENOISER_TOLERANCE = 1e-4


# --- the script ---------------------------------------------------------------------------


def _worker(mode: str, seed_counts: list[int], path: str) -> None:
    """Trains models and agents over all devices; writes every number of the result.

    Without seeds only the inverse dynamics model, which compiles in a second.
    """
    config = _config()
    replay, normalizer = _replay(config)
    models = setup.make(config, normalizer).method.models
    results = {"num_devices": np.array(jax.device_count())}

    def record(prefix, tree):
        for keys, leaf in jax.tree_util.tree_leaves_with_path(tree):
            results[prefix + jax.tree_util.keystr(keys)] = np.asarray(leaf)

    for name in models if seed_counts else ["inverse_dynamics"]:
        result, sharded = _train_model(models[name], replay, mode)
        record(name, result)
        results[f"{name}_is_sharded"] = np.array(sharded)
    for num_seeds in seed_counts:
        runs, metrics, held = _train_agents(config, normalizer, replay, mode, num_seeds)
        record(f"agents{num_seeds}", (runs, metrics))
        results[f"seeds_held{num_seeds}"] = np.array(held)
    if distributed.is_first():
        np.savez(path, **results)
    distributed.leave()


def _config():
    changes = {
        "horizon": 3,
        # Two channels a group: the normalisation would cancel a lone channel's bias, and Adam
        # would blow the rounding of its zero gradient up to full steps.
        "unet.dim": 16,
        "unet.multipliers": (1,),
        "unet.kernel_size": 3,
        "world_model.batch_size": _BATCH,
        "world_model.warmup_steps": 0,
        "rollout.windows_per_round": _DEVICES,
        "rollout.updates_per_round": _UPDATES,
        "rollout.buffer_capacity": 64,
        "training.batch_size": _BATCH,
        "td3_bc.hidden": (8,),
        "inverse_dynamics.hidden": (8, 8),
        "inverse_dynamics.batch_size": _BATCH,
    }
    return schema.replace(schema.parse(schema.get_config("smoke")), changes)


def _replay(config):
    rng = np.random.default_rng(0)
    steps, length = 240, 12
    observations = np.cumsum(rng.normal(size=(steps, 3)), axis=0)
    # The successor of a step is the next row, as in all data; the last row's is a new state.
    successors = np.concatenate([observations[1:], rng.normal(size=(1, 3))])
    ends = np.arange(steps) % length == length - 1
    dataset = d4rl.from_flat_arrays(
        "walk",
        observations,
        rng.uniform(-1, 1, (steps, 2)),
        rng.normal(size=steps),
        terminals=ends & (np.arange(steps) < steps // 2),
        timeouts=ends,
        next_observations=successors,
    )
    ones = np.ones(2, np.float32)
    return replaying.build(
        dataset,
        action_low=-ones,
        action_high=ones,
        discount=config.discount,
        return_scale=0.0,
        timeout_value="zero",
        held_out_fraction=0.1,
    )


def _train_model(model, replay, mode):
    """The trained state with metrics, and whether the program talks between devices."""
    placement = sharding.place(mode, num_seeds=_DEVICES, batch_sizes={"batch": _BATCH})
    steps = loop.JittedSteps(
        stages.model_steps(model, placement),
        key=placement.replicate(jax.random.key(1)),
        constants=placement.replicate(replay),
        placement=placement,
        over_seeds=False,
    )
    state = placement.replicate(_initial(model.init, seed=0))
    text = steps.lower(state, _STEPS).compile().as_text()
    return _call_twice(steps, state, _STEPS), "all-reduce" in text


def _call_twice(steps, state, num_steps):
    """Twice, as a training goes on: what a call returns must suit the next one."""
    steps.compile(state, num_steps)
    for call in range(_CALLS):
        state, metrics = steps(state, call * num_steps, num_steps)
    return state, metrics


def _initial(init, *, seed):
    """A state like those of `init`, filled by NumPy: compiling the real one takes seconds."""
    rng = np.random.default_rng(seed)

    def fill(path, leaf):
        moments = "opt" in jax.tree_util.keystr(path)
        values = np.zeros(leaf.shape) if moments else rng.normal(scale=0.3, size=leaf.shape)
        return jnp.asarray(values, leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill, jax.eval_shape(init, jax.random.key(0)))


def _train_agents(config, normalizer, replay, mode, num_seeds):
    """The runs, their metrics, and how many seeds the first device holds of the agents."""
    placement = sharding.place(mode, num_seeds=num_seeds, batch_sizes={"batch": _DEVICES})
    parts = setup.make(config, normalizer, shard_windows=placement.shard_windows)
    models = {
        name: _initial(model.init, seed=2 + index).params
        for index, (name, model) in enumerate(parts.method.models.items())
    }
    # As the training does: a seed's numbers do not depend on how many there are.
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(4), jnp.arange(num_seeds))
    agents = [_initial(parts.agent.init, seed=10 + index) for index in range(num_seeds)]
    buffer = jax.vmap(lambda _: parts.training.init_buffer())(jnp.arange(num_seeds))
    runs = AgentRun(jax.tree.map(lambda *leaves: jnp.stack(leaves), *agents), buffer)
    steps = loop.JittedSteps(
        parts.training.step,
        key=placement.place_seeds(keys),
        constants=placement.replicate(Inputs(models, replay)),
        placement=placement,
        over_seeds=True,
    )
    runs, metrics = _call_twice(steps, placement.place_seeds(runs), _ROUNDS * _UPDATES)
    leaf = jax.tree.leaves(runs.agent)[0]
    return runs, metrics, leaf.addressable_shards[0].data.shape[0]


# --- the tests ----------------------------------------------------------------------------

_MODES = ("mesh", "pmap")
_CONFIGURATIONS = {
    ("mesh", 1): [8],  # the reference, of two seeds as well
    ("mesh", _DEVICES): [8, 2],
    ("pmap", _DEVICES): [8],
    ("processes", _DEVICES): [],  # two of four devices, without the world model
}


@pytest.fixture(name="results", scope="module")
def _results(tmp_path_factory):
    """Results by (mode, devices), from one process each."""
    folder = tmp_path_factory.mktemp("sharding")
    processes = {name: _start(folder, *name) for name in _CONFIGURATIONS}
    results = {}
    for (mode, devices), started in processes.items():
        for process in started:
            output, _ = process.communicate()
            assert process.returncode == 0, output
        with np.load(folder / f"{mode}{devices}.npz") as file:
            results[mode, devices] = {key: file[key] for key in file.files}
    return results


def _start(folder, mode, devices):
    """The processes of one configuration."""
    several = mode == "processes"
    count = 2 if several else 1
    flags = (
        f"--xla_force_host_platform_device_count={devices // count}",
        # Most of the time is compilation; these programs run for milliseconds.
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
    )
    seeds = ",".join(map(str, _CONFIGURATIONS[mode, devices]))
    command = [sys.executable, __file__, "mesh" if several else mode, seeds]
    command.append(str(folder / f"{mode}{devices}.npz"))
    with socket.socket() as server:
        server.bind(("localhost", 0))
        address = f"localhost:{server.getsockname()[1]}"
    return [
        subprocess.Popen(
            [*command, address, str(count), str(index)] if several else command,
            env={
                **os.environ,
                "JAX_PLATFORMS": "cpu",
                "XLA_FLAGS": " ".join(flags),
                # `_train_model` compiles a program twice.
                "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir),
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
                "PYTHONPATH": str(pathlib.Path(__file__).parents[2]),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(count)
    ]


def _assert_close(got, expected, prefix, *, reference=None, rows=None):
    """Every array of one part, seeds of the reference cut to `rows`."""
    names = [name for name in got if name.startswith(prefix)]
    assert len(names) > 20  # networks, moments, buffers, metrics: nothing was lost on the way
    for name in names:
        want = expected[name.replace(prefix, reference or prefix, 1)]
        want = want[:rows] if rows else want
        assert np.isfinite(want).all(), name
        largest = np.abs(want).max()
        moments = "opt" in name
        rounding = _DENOISER_TOLERANCE if "denoiser" in name and not moments else _TOLERANCE
        atol = rounding * max(1.0, largest)
        if moments:
            atol = min(atol, _MOMENT_TOLERANCE * largest)
        np.testing.assert_allclose(got[name], want, rtol=0, atol=atol, err_msg=name)


def test_processes_saw_their_devices(results):
    for (_, devices), found in results.items():
        assert found["num_devices"] == devices


@pytest.mark.parametrize("mode", _MODES)
def test_world_model_training(results, mode):
    _assert_spread(results, mode, "world_model")


@pytest.mark.parametrize("mode", (*_MODES, "processes"))
def test_inverse_dynamics_training(results, mode):
    _assert_spread(results, mode, "inverse_dynamics")


def _assert_spread(results, mode, name):
    found = results[mode, _DEVICES]
    _assert_close(found, results["mesh", 1], f"{name}[")
    # Equal numbers alone would also come from eight devices that all do everything.
    assert found[f"{name}_is_sharded"]
    assert not results["mesh", 1][f"{name}_is_sharded"]


@pytest.mark.parametrize("mode", _MODES)
def test_agents_with_a_device_each(results, mode):
    found = results[mode, _DEVICES]
    _assert_close(found, results["mesh", 1], "agents8[")
    assert found["seeds_held8"] == 1


def test_agents_with_four_devices_each(results):
    """Two seeds of eight devices; the reference trained the same two among eight."""
    found = results["mesh", _DEVICES]
    _assert_close(found, results["mesh", 1], "agents2[", reference="agents8[", rows=2)
    assert found["seeds_held2"] == 1


# --- what cannot be spread ----------------------------------------------------------------


@pytest.fixture(name="eight_devices")
def _eight_devices(monkeypatch):
    """Pretends, for checks that run before any device is used."""
    monkeypatch.setattr(jax, "devices", lambda: jax.local_devices()[:1] * _DEVICES)


@pytest.mark.parametrize(
    ("mode", "num_seeds", "batch", "message"),
    [
        ("mesh", 8, 12, r"config\.batch: expected a multiple of the 8 devices, got 12"),
        ("pmap", 8, 12, r"config\.batch: expected a multiple of the 8 devices, got 12"),
        ("pmap", 2, 16, r"config\.num_seeds: expected a multiple of the 8 devices .* got 2"),
    ],
)
def test_sizes_that_do_not_divide(eight_devices, mode, num_seeds, batch, message):
    with pytest.raises(UserError, match=message) as error:
        sharding.place(mode, num_seeds=num_seeds, batch_sizes={"config.batch": batch})
    assert "\n" not in str(error.value)


if __name__ == "__main__":
    if sys.argv[4:]:
        distributed.join(sys.argv[4], int(sys.argv[5]), int(sys.argv[6]))
    _worker(sys.argv[1], [int(count) for count in sys.argv[2].split(",") if count], sys.argv[3])
