"""Processes, devices and meshes: the only module that names them.

A job may be several processes, each with its own devices (`join`); jax.distributed connects
them. All run the same program on global arrays, and the first alone writes files and the log.

Two ways to spread the same program, with the same numbers:
  "mesh"  jit over a ("seed", "data") mesh with named shardings (the default); random
          numbers and means are those of the global batch, whatever the device count.
  "pmap"  jax.pmap, in maintenance since JAX 0.8: every device draws the global batch,
          keeps its slice, and averages gradients.
Model training spreads its batch over all devices. Agents spread their seeds first; on a
mesh, devices that seeds leave over share the generated windows.
"""

import importlib.util
import json
import math
import os
import platform
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from dawm_jax.types import UserError, first_line

T = TypeVar("T")

MODES = ("mesh", "pmap")

_AXIS = "devices"  # the only axis of pmap
_SEED, _DATA = "seed", "data"  # the axes of the mesh
_FAREWELL_SECONDS = 20  # that a process which ends waits for the others
_LAST_WORDS_SECONDS = 2.0
_STATUS = re.compile(r"(UNKNOWN|INTERNAL|UNAVAILABLE|ABORTED|CANCELLED|DEADLINE_EXCEEDED): ")


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
      make_seeds: a function of nothing that makes such a tree -> it, made in place.
    """

    num_devices: int
    compile_training: Callable[[Callable], Callable]
    shard: Callable[[Any], Any]
    mean: Callable[[Any], Any]
    map_seeds: Callable[[Callable], Callable]
    shard_windows: Callable[[Any], Any]
    replicate: Callable[[Any], Any]
    place_seeds: Callable[[Any], Any]
    make_seeds: Callable[[Callable[[], Any]], Any]


# --- processes ----------------------------------------------------------------------------


def join(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Connects this process to the others of its job, before anything is computed.

    Does nothing where there are no others. Without arguments the job is what `srun` started
    (SLURM), or the hosts of a Cloud TPU slice.

    Args:
      coordinator_address: host:port of process 0.
      num_processes: of the job.
      process_id: of this one, from 0.

    Raises:
      UserError: only some of the arguments, or the others cannot be reached.
    """
    given = (coordinator_address, num_processes, process_id)
    if any(value is not None for value in given):
        if coordinator_address is None or num_processes is None or process_id is None:
            raise UserError(
                "expected --coordinator_address, --num_processes and --process_id together"
            )
        if not 0 <= process_id < num_processes:
            raise UserError(
                f"--process_id: expected 0 to {num_processes - 1} with "
                f"--num_processes={num_processes}, got {process_id}"
            )
        size = num_processes
    else:
        size = _world_size(os.environ)
    if size == 1:
        return
    # Its own handler of SIGTERM would replace loop.stop_on_signals, and it only tells of
    # steps that grow by one.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            *given,
            local_device_ids=_slurm_devices(os.environ),
            shutdown_timeout_seconds=_FAREWELL_SECONDS,
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(
            f"the {size} processes of this job did not find each other ({first_line(error)}); "
            "check that all were started, and the coordinator's address and port"
        ) from error


def leave() -> None:
    """Waits, however long, for the other processes to come to their end, and disconnects."""
    if jax.distributed.is_initialized():
        exchange(None)
        jax.distributed.shutdown()


def is_first() -> bool:
    """Whether this process is the one that writes files and the log."""
    return jax.process_index() == 0


def linger() -> float | None:
    """Seconds that a failing process waits before its end; None for one that is alone.

    The end of the first one takes all others down: it gives them time to say why they fail.
    """
    if jax.process_count() == 1:
        return None
    return _LAST_WORDS_SECONDS if is_first() else 0.0


def is_from_devices(error: Exception) -> bool:
    """Whether a device or the link to other processes failed.

    What fails while a program runs is JAX's own error; what fails as it is started, such as a
    collective whose peer is gone, is a ValueError that begins with the status code.
    """
    return isinstance(error, jax.errors.JaxRuntimeError) or bool(_STATUS.match(str(error)))


def describe_process() -> str:
    """ " (process 2 of 4)", or nothing for the first or only one."""
    return "" if is_first() else f" (process {jax.process_index()} of {jax.process_count()})"


def anywhere(flag: bool) -> bool:
    """Whether `flag` is set in any process; all must ask at the same point."""
    return bool(multihost_utils.process_allgather(np.int32(flag)).any())


def exchange(value: Any) -> list[Any]:
    """Every process's `value`, in their order; all must call it at the same point.

    Args:
      value: what JSON can hold.
    """
    text = json.dumps(value).encode()
    longest = int(multihost_utils.process_allgather(np.int32(len(text))).max())
    # JSON ignores spaces at its end.
    rows = multihost_utils.process_allgather(np.frombuffer(text.ljust(longest), np.uint8))
    return [json.loads(bytes(row)) for row in rows]


def in_turn(function: Callable[[], T]) -> T:
    """`function()` on the first process, and when it is done on the others.

    What the first downloads, caches or creates is there for the others.

    Raises:
      UserError: of any process, on all of them.
    """
    turns = (is_first(), not is_first()) if jax.process_count() > 1 else (True,)
    for turn in turns:
        message = None
        if turn:
            try:
                result = function()
            except UserError as error:
                message = str(error)
        messages = [text for text in exchange(message) if text is not None]
        if messages:
            raise UserError(messages[0])
    return result


def local_copy(tree: Any) -> Any:
    """This process's own copy of a tree that `Placement.replicate` placed."""
    return jax.tree.map(lambda x: x.addressable_data(0), tree)


def _world_size(environment: Mapping[str, str]) -> int:
    """Processes of this job, from what started it."""
    step = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
    # Without a step, as in the body of a batch script, nobody started the other tasks.
    if all(name in environment for name in step):
        return int(environment["SLURM_NTASKS"])
    platforms = environment.get("JAX_PLATFORMS", "tpu")
    if "tpu" in platforms.split(",") and importlib.util.find_spec("libtpu") is not None:
        return _tpu_hosts(environment)
    return 1


def _tpu_hosts(environment: Mapping[str, str]) -> int:
    """Hosts of this TPU slice: on Kubernetes a variable, else the machine's metadata."""
    if names := environment.get("TPU_WORKER_HOSTNAMES"):
        return len(names.split(","))
    server = environment.get("GCE_METADATA_IP", "metadata.google.internal")
    request = urllib.request.Request(
        f"http://{server}/computeMetadata/v1/instance/attributes/worker-network-endpoints",
        headers={"Metadata-Flavor": "Google"},
    )
    try:
        with urllib.request.urlopen(request, timeout=5.0) as answer:
            return len(answer.read().decode().split(","))
    except (urllib.error.URLError, OSError):
        return 1  # a TPU machine outside that cloud


def _slurm_devices(environment: Mapping[str, str]) -> list[int] | None:
    """All GPUs of the node where it runs one task; None leaves it to JAX: one GPU a task."""
    tasks, nodes = environment.get("SLURM_NTASKS"), environment.get("SLURM_STEP_NUM_NODES")
    if tasks is None or tasks != nodes or "SLURM_GPUS_ON_NODE" not in environment:
        return None
    return list(range(int(environment["SLURM_GPUS_ON_NODE"])))


# --- devices ------------------------------------------------------------------------------


def describe_devices() -> str:
    """Number and kind of the job's devices, for logs and results."""
    devices = jax.local_devices()
    processes = jax.process_count()
    suffix = f", {processes} processes" if processes > 1 else ""
    if devices[0].platform == "cpu":
        # JAX calls every CPU "cpu"; times mean something only with its kind and cores.
        return f"{jax.device_count()} x cpu ({num_cores()} cores, {_cpu_model()}){suffix}"
    return f"{jax.device_count()} x {devices[0].device_kind} ({devices[0].platform}){suffix}"


def num_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
    """Chooses a placement over all devices of all processes.

    Args:
      mode: one of MODES.
      num_seeds: agents trained together.
      batch_sizes: configuration name -> size of every batch that devices share.

    Raises:
      UserError: an unknown mode, or a size that the devices cannot share evenly.
    """
    if mode not in MODES:
        raise UserError(f"config.parallel: expected one of {', '.join(MODES)}, got {mode!r}")
    devices = jax.devices()
    count = len(devices)
    for name, size in batch_sizes.items():
        if size % count:
            raise UserError(
                f"{name}: expected a multiple of the {count} devices, got {size}; change it, "
                "or show fewer devices (CUDA_VISIBLE_DEVICES)"
            )
    if mode == "pmap":
        if jax.process_count() > 1:
            raise UserError(
                "config.parallel: pmap works in one process only; use config.parallel=mesh"
            )
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
        replicate=lambda tree: _put(tree, sharding()),
        place_seeds=lambda tree: _put(tree, sharding(_SEED)),
        make_seeds=lambda make: jax.jit(make, out_shardings=sharding(_SEED))(),
    )


def _put(tree: Any, sharding: NamedSharding) -> Any:
    """`tree` under `sharding`; its host arrays must be the same in every process."""
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def put(leaf):
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return jax.device_put(leaf, sharding)
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(put(jax.random.key_data(leaf)))
        # Every process takes its part of what it has: nothing travels between them.
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(put, tree)


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
        make_seeds=lambda make: jax.jit(make)(),
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
