"""Devices and meshes: the only module that names them.

Two ways to spread the same program, with the same numbers:
  "mesh"  jit over a ("seed", "data") mesh with named shardings (the default); random
          numbers and means are those of the global batch, whatever the device count.
  "pmap"  jax.pmap, in maintenance since JAX 0.8: every device draws the global batch,
          keeps its slice, and averages gradients.
Model training spreads its batch over all devices. Agents spread their seeds first; on a
mesh, devices that seeds leave over share the generated windows.
"""

import math
import os
import platform
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from dawm_jax.types import UserError

MODES = ("mesh", "pmap")

_AXIS = "devices"  # the only axis of pmap
_SEED, _DATA = "seed", "data"  # the axes of the mesh


class Placement(NamedTuple):
    """How programs are spread over devices.

    Attributes:
      num_devices: devices in use.
      compile_training: (state, *args) -> result, as one program; the state is donated.
      shard: inside such a program, a global batch -> what this device works on.
      mean: inside it, the mean over devices of what each computed from its part.
      map_seeds: f(run, key, *shared) -> the same over leading seed axes of run and key.
      shard_windows: inside a seed's program, spreads generated windows.
      replicate: puts a tree on every device.
      place_seeds: puts a tree with a leading seed axis where its seeds are computed.
    """

    num_devices: int
    compile_training: Callable[[Callable], Callable]
    shard: Callable[[Any], Any]
    mean: Callable[[Any], Any]
    map_seeds: Callable[[Callable], Callable]
    shard_windows: Callable[[Any], Any]
    replicate: Callable[[Any], Any]
    place_seeds: Callable[[Any], Any]


def describe_devices() -> str:
    """Platform and kind of the local devices, for logs and results."""
    devices = jax.local_devices()
    if devices[0].platform == "cpu":
        # JAX calls every CPU "cpu"; times mean something only with its kind and cores.
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        return f"{len(devices)} x cpu ({cores} cores, {_cpu_model()})"
    return f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})"


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":")[1].strip() for line in file if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def on_one_device(tree: Any) -> Any:
    """Shapes of `tree` placed on the first device, to restore a checkpoint into."""
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree
    )


def place(mode: str, *, num_seeds: int, batch_sizes: dict[str, int]) -> Placement:
    """Chooses a placement over all local devices.

    Args:
      mode: one of MODES.
      num_seeds: agents trained together.
      batch_sizes: configuration name -> size of every batch that devices share.

    Raises:
      UserError: an unknown mode, or a size that the devices cannot share evenly.
    """
    if mode not in MODES:
        raise UserError(f"config.parallel: expected one of {', '.join(MODES)}, got {mode!r}")
    devices = jax.local_devices()
    count = len(devices)
    for name, size in batch_sizes.items():
        if size % count:
            raise UserError(
                f"{name}: expected a multiple of the {count} devices, got {size}; change it, "
                "or show fewer devices (CUDA_VISIBLE_DEVICES)"
            )
    if mode == "pmap":
        if num_seeds % count:
            raise UserError(
                f"config.num_seeds: expected a multiple of the {count} devices with "
                f"config.parallel=pmap, got {num_seeds}; use config.parallel=mesh"
            )
        return _pmap_placement(devices)
    return _mesh_placement(devices, num_seeds)


def _mesh_placement(devices: list[jax.Device], num_seeds: int) -> Placement:
    count = len(devices)
    seed_devices = math.gcd(num_seeds, count)
    mesh = jax.make_mesh(
        (seed_devices, count // seed_devices),
        (_SEED, _DATA),
        axis_types=(AxisType.Auto, AxisType.Auto),
        devices=devices,
    )
    sharding = lambda *axes: NamedSharding(mesh, PartitionSpec(*axes))

    def constrain(tree, *axes):
        if count == 1:
            return tree
        return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, sharding(*axes)), tree)

    # On one CPU a batched matrix product is no faster than its parts, and seeds one after
    # the other keep their data in cache; elsewhere seeds share every kernel launch.
    if count == 1 and devices[0].platform == "cpu":
        over_seeds = _sequentially
    else:
        over_seeds = lambda f: _vmapped(f, spmd_axis_name=_SEED)
    return Placement(
        num_devices=count,
        compile_training=lambda f: jax.jit(f, donate_argnums=0),
        shard=lambda tree: constrain(tree, (_SEED, _DATA)),
        mean=lambda tree: tree,
        map_seeds=lambda f: jax.jit(over_seeds(f), donate_argnums=0),
        shard_windows=lambda tree: constrain(tree, _DATA),
        replicate=lambda tree: jax.device_put(tree, sharding()),
        place_seeds=lambda tree: jax.device_put(tree, sharding(_SEED)),
    )


def _pmap_placement(devices: list[jax.Device]) -> Placement:
    count = len(devices)

    def compile_training(f):
        def spread(state, *args):
            # pmap wants an argument with a device axis, though `own_part` asks the axis itself.
            program = jax.pmap(
                lambda _, *args: f(*args),
                axis_name=_AXIS,
                in_axes=(0, None, *[None] * len(args)),
                out_axes=None,
                devices=devices,
            )
            return program(jnp.arange(count), state, *args)

        return jax.jit(spread, donate_argnums=0)

    def own_part(tree):
        index = jax.lax.axis_index(_AXIS)
        return jax.tree.map(
            lambda x: jax.lax.dynamic_slice_in_dim(
                x, index * (x.shape[0] // count), x.shape[0] // count
            ),
            tree,
        )

    def map_seeds(f):
        per_device = _sequentially if devices[0].platform == "cpu" else _vmapped
        split = lambda x: x.reshape(count, x.shape[0] // count, *x.shape[1:])
        join = lambda x: x.reshape(-1, *x.shape[2:])

        def mapped(run, key, *shared):
            spread = jax.pmap(per_device(f), in_axes=(0, 0, *[None] * len(shared)), devices=devices)
            out = spread(jax.tree.map(split, run), split(key), *shared)
            return jax.tree.map(join, out)

        return jax.jit(mapped, donate_argnums=0)

    return Placement(
        num_devices=count,
        compile_training=compile_training,
        shard=own_part,
        mean=lambda tree: jax.lax.pmean(tree, _AXIS),
        map_seeds=map_seeds,
        shard_windows=lambda tree: tree,
        replicate=lambda tree: jax.tree.map(jnp.asarray, tree),
        place_seeds=lambda tree: jax.tree.map(jnp.asarray, tree),
    )


def _vmapped(f: Callable, spmd_axis_name: str | None = None) -> Callable:
    def mapped(run, key, *shared):
        in_axes = (0, 0, *[None] * len(shared))
        return jax.vmap(f, in_axes=in_axes, spmd_axis_name=spmd_axis_name)(run, key, *shared)

    return mapped


def _sequentially(f: Callable) -> Callable:
    def mapped(run, key, *shared):
        return jax.lax.map(lambda pair: f(*pair, *shared), (run, key))

    return mapped
