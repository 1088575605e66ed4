"""Placement of programs and data on devices; the only module that uses meshes and pmap.

Two placements compute the same numbers:
  "mesh"  jit over a ("seed", "data") mesh with named shardings (the default). Random numbers
          and means are those of the global batch, whatever the number of devices.
  "pmap"  jax.pmap, which is in maintenance since JAX 0.8. Every device draws the global batch,
          keeps its slice, and averages gradients.
Model training spreads its batch over all devices. Agents spread their seeds first; on a mesh,
the remaining devices share the generated windows of each seed.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dawm_jax.runtime import provenance
from dawm_jax.types import UserError

Tree = TypeVar("Tree")

_DEVICES = "devices"  # the only axis of pmap
_SEED, _DATA = "seed", "data"  # the axes of the mesh


class Program(Protocol):
    """A jitted function whose first argument is donated."""

    def __call__(self, state: Any, /, *arguments: Any) -> Any: ...

    def lower(self, state: Any, /, *arguments: Any) -> jax.stages.Lowered:
        """Traces the function for arguments of these shapes."""


class Placement(Protocol):
    """How programs and their data are spread over devices."""

    @property
    def num_devices(self) -> int:
        """Devices in use."""

    def jit_batch(self, function: Callable[..., Any]) -> Program:
        """Compiles (state, *arguments) -> result, whose batches all devices share."""

    def jit_seeds(self, function: Callable[..., Any]) -> Program:
        """Compiles (state, key, *shared) -> result over leading seed axes of state and key."""

    def shard(self, batch: Tree) -> Tree:
        """Inside `jit_batch`: a global batch -> what this device works on."""

    def mean(self, values: Tree) -> Tree:
        """Inside `jit_batch`: the mean over devices of what each computed from its part."""

    def shard_windows(self, windows: Tree) -> Tree:
        """Inside `jit_seeds`: spreads a leading axis of windows over a seed's devices."""

    def replicate(self, tree: Tree) -> Tree:
        """Puts a tree on every device."""

    def place_seeds(self, tree: Tree) -> Tree:
        """Puts a tree with a leading seed axis on the devices that compute its seeds."""

    def make_seeds(self, make: Callable[[], Tree]) -> Tree:
        """Makes a tree with a leading seed axis on the devices that compute its seeds."""


def place(mode: str, *, num_seeds: int, batch_sizes: dict[str, int]) -> Placement:
    """Chooses a placement over all devices of all processes.

    Args:
      mode: "mesh" or "pmap".
      num_seeds: agents trained together.
      batch_sizes: setting -> size of every batch that the devices share.

    Raises:
      UserError: a size that the devices cannot share evenly, or pmap with several processes.
    """
    devices = jax.devices()
    count = len(devices)
    for name, size in batch_sizes.items():
        if size % count:
            raise UserError(
                f"{name}: expected a multiple of the {count} devices, got {size}; change it, "
                "or show fewer devices (CUDA_VISIBLE_DEVICES)"
            )
    if mode == "mesh":
        return _MeshPlacement(_make_mesh(devices, num_seeds))
    if jax.process_count() > 1:
        raise UserError("config.parallel: pmap works in one process only; use config.parallel=mesh")
    if num_seeds % count:
        raise UserError(
            f"config.num_seeds: expected a multiple of the {count} devices with "
            f"config.parallel=pmap, got {num_seeds}; use config.parallel=mesh"
        )
    return _PmapPlacement(tuple(devices))


def describe_devices() -> str:
    """Number and kind of the job's devices, for logs and results."""
    devices = jax.local_devices()
    processes = jax.process_count()
    suffix = f", {processes} processes" if processes > 1 else ""
    if devices[0].platform == "cpu":
        # JAX calls every CPU "cpu"; times need the model and the number of cores.
        cpu = f"{provenance.num_cores()} cores, {provenance.cpu_model()}"
        return f"{jax.device_count()} x cpu ({cpu}){suffix}"
    return f"{jax.device_count()} x {devices[0].device_kind} ({devices[0].platform}){suffix}"


def local_copy(tree: Tree) -> Tree:
    """This process's own copy of a tree that `Placement.replicate` placed."""
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)


def on_one_device(tree: Any) -> Any:
    """Shapes of `tree` placed on the first device, to restore a checkpoint into."""
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree
    )


# --- mesh ---------------------------------------------------------------------------------


def _make_mesh(devices: list[jax.Device], num_seeds: int) -> Mesh:
    """As many rows as seeds can fill evenly; the devices of a row share a seed's windows."""
    seed_devices = math.gcd(num_seeds, len(devices))
    return jax.make_mesh(
        (seed_devices, len(devices) // seed_devices),
        (_SEED, _DATA),
        axis_types=(AxisType.Auto, AxisType.Auto),
        devices=devices,
    )


@dataclasses.dataclass(frozen=True)
class _MeshPlacement:
    mesh: Mesh

    @property
    def num_devices(self) -> int:
        return self.mesh.size

    def jit_batch(self, function: Callable[..., Any]) -> Program:
        return jax.jit(function, donate_argnums=0)

    def jit_seeds(self, function: Callable[..., Any]) -> Program:
        # On one CPU seeds run one after the other (`lax.map`), so that one seed's data stay in
        # cache. Elsewhere seeds share every kernel launch (`vmap`). Both are reasons, not
        # measurements.
        one_cpu = self.num_devices == 1 and self.mesh.devices.flat[0].platform == "cpu"
        mapped = _sequential(function) if one_cpu else _vectorised(function, _SEED)
        return jax.jit(mapped, donate_argnums=0)

    def shard(self, batch: Tree) -> Tree:
        return self._constrain(batch, (_SEED, _DATA))

    def mean(self, values: Tree) -> Tree:
        return values

    def shard_windows(self, windows: Tree) -> Tree:
        return self._constrain(windows, _DATA)

    def replicate(self, tree: Tree) -> Tree:
        return _put(tree, self._sharding())

    def place_seeds(self, tree: Tree) -> Tree:
        return _put(tree, self._sharding(_SEED))

    def make_seeds(self, make: Callable[[], Tree]) -> Tree:
        return jax.jit(make, out_shardings=self._sharding(_SEED))()

    def _sharding(self, *axes: str | tuple[str, ...]) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec(*axes))

    def _constrain(self, tree: Tree, axes: str | tuple[str, ...]) -> Tree:
        if self.num_devices == 1:
            return tree
        sharding = self._sharding(axes)
        return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, sharding), tree)


def _put(tree: Tree, sharding: NamedSharding) -> Tree:
    """`tree` under `sharding`; host arrays must be equal in every process."""
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def put(leaf: Any) -> jax.Array:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return jax.device_put(leaf, sharding)
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(put(jax.random.key_data(leaf)))
        # Each process places its part of its own copy: no data travels between processes.
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(put, tree)


# --- pmap ---------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _PmapPlacement:
    devices: tuple[jax.Device, ...]

    @property
    def num_devices(self) -> int:
        return len(self.devices)

    def jit_batch(self, function: Callable[..., Any]) -> Program:
        def spread(state: Any, *arguments: Any) -> Any:
            # pmap requires an argument with a device axis; `shard` asks for the index itself.
            program = jax.pmap(
                lambda _, *arguments: function(*arguments),
                axis_name=_DEVICES,
                in_axes=(0, None, *[None] * len(arguments)),
                out_axes=None,
                devices=self.devices,
            )
            return program(jnp.arange(self.num_devices), state, *arguments)

        return jax.jit(spread, donate_argnums=0)

    def jit_seeds(self, function: Callable[..., Any]) -> Program:
        count = self.num_devices
        per_device = _sequential if self.devices[0].platform == "cpu" else _vectorised

        def split(leaf: jax.Array) -> jax.Array:
            return leaf.reshape(count, leaf.shape[0] // count, *leaf.shape[1:])

        def join(leaf: jax.Array) -> jax.Array:
            return leaf.reshape(-1, *leaf.shape[2:])

        def mapped(state: Any, key: jax.Array, *shared: Any) -> Any:
            in_axes = (0, 0, *[None] * len(shared))
            program = jax.pmap(per_device(function), in_axes=in_axes, devices=self.devices)
            return jax.tree.map(join, program(jax.tree.map(split, state), split(key), *shared))

        return jax.jit(mapped, donate_argnums=0)

    def shard(self, batch: Tree) -> Tree:
        index = jax.lax.axis_index(_DEVICES)

        def own_part(leaf: jax.Array) -> jax.Array:
            size = leaf.shape[0] // self.num_devices
            return jax.lax.dynamic_slice_in_dim(leaf, index * size, size)

        return jax.tree.map(own_part, batch)

    def mean(self, values: Tree) -> Tree:
        return jax.lax.pmean(values, _DEVICES)

    def shard_windows(self, windows: Tree) -> Tree:
        return windows

    def replicate(self, tree: Tree) -> Tree:
        def whole(value: jax.Array) -> jax.Array:
            leaf = jnp.asarray(value)
            # A program of pmap returns arrays that are spread over the devices by seeds.
            spread = len(leaf.sharding.device_set) > 1
            return jax.device_put(leaf, self.devices[0]) if spread else leaf

        return jax.tree.map(whole, tree)

    def place_seeds(self, tree: Tree) -> Tree:
        return jax.tree.map(jnp.asarray, tree)

    def make_seeds(self, make: Callable[[], Tree]) -> Tree:
        return jax.jit(make)()


def _vectorised(
    function: Callable[..., Any], spmd_axis_name: str | None = None
) -> Callable[..., Any]:
    def mapped(state: Any, key: jax.Array, *shared: Any) -> Any:
        in_axes = (0, 0, *[None] * len(shared))
        return jax.vmap(function, in_axes, spmd_axis_name=spmd_axis_name)(state, key, *shared)

    return mapped


def _sequential(function: Callable[..., Any]) -> Callable[..., Any]:
    def mapped(state: Any, key: jax.Array, *shared: Any) -> Any:
        return jax.lax.map(lambda pair: function(*pair, *shared), (state, key))

    return mapped
