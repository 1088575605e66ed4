"""Devices: eight give the numbers of one, on a mesh, with pmap, and in two processes.

The number of devices is fixed when JAX starts, so each configuration runs this file once as
a script (see `_worker`) and leaves its results in an .npz.
"""

import functools
import os
import pathlib
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from dawm_jax.data import dataset as data
from dawm_jax.data import windows
from dawm_jax.methods import synthetic as rollout
from dawm_jax.methods.registry import assemble
from dawm_jax.models import optim as learner
from dawm_jax.runtime import parallel
from dawm_jax.training import fused
from dawm_jax.types import UserError

_DEVICES = 8
_CALLS = 2  # of each program
_STEPS = 2  # a call
_ROUNDS = 2  # a call
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
    config = common.get_config("smoke")
    config.horizon = 3
    # Two channels a group: the normalisation would cancel a lone channel's bias, and Adam
    # would blow the rounding of its zero gradient up to full steps.
    config.world_model.update(
        dim=16, multipliers=(1,), kernel_size=3, batch_size=_BATCH, warmup_steps=0
    )
    config.rollout.update(windows_per_round=_DEVICES, updates_per_round=2)
    config.td3_bc.hidden = (8,)
    config.inverse_dynamics.update(hidden=(8, 8), batch_size=_BATCH)
    replay, statistics = _replay(config)
    parts = assemble(config, statistics)
    results = {"num_devices": np.array(jax.device_count())}

    def record(prefix, tree):
        for keys, leaf in jax.tree_util.tree_leaves_with_path(tree):
            results[prefix + jax.tree_util.keystr(keys)] = np.asarray(leaf)

    models = {"inverse": parts.inverse_dynamics}
    if seed_counts:
        models["model"] = parts.world_model
    for name, functions in models.items():
        state, sharded = _train_model(functions, replay, mode)
        record(name, state)
        results[f"{name}_is_sharded"] = np.array(sharded)
    for num_seeds in seed_counts:
        runs, metrics, held = _train_agents(config, parts, replay, mode, num_seeds)
        record(f"agents{num_seeds}", (runs, metrics))
        results[f"seeds_held{num_seeds}"] = np.array(held)
    if parallel.is_first():
        np.savez(path, **results)
    parallel.leave()


def _replay(config):
    rng = np.random.default_rng(0)
    steps, length = 240, 12
    observations = np.cumsum(rng.normal(size=(steps, 3)), axis=0)
    ends = np.arange(steps) % length == length - 1
    dataset = data.from_flat_arrays(
        "walk",
        observations,
        rng.uniform(-1, 1, (steps, 2)),
        rng.normal(size=steps),
        terminals=ends & (np.arange(steps) < steps // 2),
        timeouts=ends,
        next_observations=observations + rng.normal(size=(steps, 3)),
    )
    ones = np.ones(2, np.float32)
    return windows.build(
        dataset,
        action_low=-ones,
        action_high=ones,
        discount=config.discount,
        return_scale=0.0,
        timeout_value="zero",
        held_out_fraction=0.1,
    )


def _train_model(functions, replay, mode):
    """The trained state, and whether the compiled program talks between devices."""
    placement = parallel.place(mode, num_seeds=_DEVICES, batch_sizes={"batch": _BATCH})

    def train(state, replay, first_step):
        def one_step(state, index):
            key = jax.random.fold_in(jax.random.key(1), index)
            return functions.step(state, key, replay, placement.shard, placement.mean)

        return learner.scan_steps(one_step, state, first_step, _STEPS)

    state = placement.replicate(_initial(functions.init, seed=0))
    replay = placement.replicate(replay)
    program = placement.compile_training(train).lower(state, replay, jnp.int32(0)).compile()
    # Twice, as a training goes on: what a call returns must suit the next one.
    for call in range(_CALLS):
        state, metrics = program(state, replay, jnp.int32(call * _STEPS))
    return (state, metrics), "all-reduce" in program.as_text()


def _initial(init, *, seed):
    """A state like those of `init`, filled by NumPy: compiling the real one takes seconds."""
    rng = np.random.default_rng(seed)

    def fill(path, leaf):
        moments = "opt" in jax.tree_util.keystr(path)
        values = np.zeros(leaf.shape) if moments else rng.normal(scale=0.3, size=leaf.shape)
        return jnp.asarray(values, leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill, jax.eval_shape(init, jax.random.key(0)))


def _train_agents(config, parts, replay, mode, num_seeds):
    """The runs, their metrics, and how many seeds the first device holds of the agents."""
    placement = parallel.place(mode, num_seeds=num_seeds, batch_sizes={"batch": _DEVICES})
    models = fused.Models(
        world_model=_initial(parts.world_model.init, seed=2).params,
        inverse_dynamics=_initial(parts.inverse_dynamics.init, seed=3).params,
    )
    models, replay = placement.replicate((models, replay))
    # As the training does: a seed's numbers do not depend on how many there are.
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(4), jnp.arange(num_seeds))
    empty = rollout.empty_buffer(64, replay.state_size, replay.action_size)
    buffer = jax.tree.map(lambda leaf: jnp.zeros((num_seeds, *leaf.shape), leaf.dtype), empty)
    agents = [_initial(parts.agent.init, seed=10 + index) for index in range(num_seeds)]
    runs = fused.Run(jax.tree.map(lambda *leaves: jnp.stack(leaves), *agents), buffer)
    runs, keys = placement.place_seeds((runs, keys))
    train = functools.partial(
        fused.train_rounds,
        agent=parts.agent,
        imagine=parts.imagine,
        num_rounds=_ROUNDS,
        updates_per_round=config.rollout.updates_per_round,
        num_windows=config.rollout.windows_per_round,
        batch_size=_BATCH,
        real_fraction=0.5,
        shard=placement.shard_windows,
    )
    program = placement.map_seeds(train)
    program = program.lower(runs, keys, jnp.int32(0), models, replay).compile()
    for call in range(_CALLS):
        runs, metrics = program(runs, keys, jnp.int32(call * _ROUNDS), models, replay)
    leaf = jax.tree.leaves(runs.agent)[0]
    return runs, metrics, leaf.addressable_shards[0].data.shape[0]


# --- the tests ----------------------------------------------------------------------------

_CONFIGURATIONS = {
    ("mesh", 1): [8],  # the reference, of two seeds as well
    ("mesh", _DEVICES): [8, 2],
    ("pmap", _DEVICES): [8],
    ("processes", _DEVICES): [],  # two of four devices, without the world model
}


@pytest.fixture(name="results", scope="module")
def _results(tmp_path_factory):
    """Results by (mode, devices), from one process each."""
    folder = tmp_path_factory.mktemp("parallel")
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


@pytest.mark.parametrize("mode", parallel.MODES)
def test_world_model_training(results, mode):
    _assert_spread(results, mode, "model")


@pytest.mark.parametrize("mode", (*parallel.MODES, "processes"))
def test_inverse_dynamics_training(results, mode):
    _assert_spread(results, mode, "inverse")


def _assert_spread(results, mode, name):
    found = results[mode, _DEVICES]
    _assert_close(found, results["mesh", 1], f"{name}[")
    # Equal numbers alone would also come from eight devices that all do everything.
    assert found[f"{name}_is_sharded"]
    assert not results["mesh", 1][f"{name}_is_sharded"]


@pytest.mark.parametrize("mode", parallel.MODES)
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
        parallel.place(mode, num_seeds=num_seeds, batch_sizes={"config.batch": batch})
    assert "\n" not in str(error.value)


def test_unknown_mode():
    with pytest.raises(UserError, match="mesh, pmap, got 'xmap'") as error:
        parallel.place("xmap", num_seeds=1, batch_sizes={})
    assert "\n" not in str(error.value)


if __name__ == "__main__":
    if sys.argv[4:]:
        parallel.join(sys.argv[4], int(sys.argv[5]), int(sys.argv[6]))
    _worker(sys.argv[1], [int(count) for count in sys.argv[2].split(",") if count], sys.argv[3])
