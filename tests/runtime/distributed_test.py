"""Several processes on one machine: the numbers of one, stopped together, resumed anywhere.

Each process is this file run as a script: the command line's program, without physics, that
sends itself a signal at a given step.
"""

import http.server
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

from dawm_jax.runtime import distributed
from dawm_jax.training import load_run as loading
from dawm_jax.types import UserError

_ROOT = pathlib.Path(__file__).resolve().parents[2]
# Sums over devices are taken in another order; see sharding_test.
_TOLERANCE = 1e-5
_CONFIG = (
    f"--config={_ROOT}/configs/hopper.py:smoke",
    "--config.horizon=3",
    # Two channels a group; see sharding_test.
    "--config.unet.multipliers=(1,)",
    "--config.unet.groups=4",
    "--config.unet.kernel_size=3",
    "--config.world_model.steps=10",
    "--config.inverse_dynamics.steps=10",
    "--config.td3_bc.hidden=(8,)",
    "--config.evaluation.interval=40",
)


# --- the script ---------------------------------------------------------------------------


def _worker() -> None:
    from dawm_jax import main
    from dawm_jax.envs import rollouts
    from dawm_jax.runtime import loop
    from dawm_jax.training import artifacts, cost_model

    def episodes(policy, environment, *, seeds, **options):
        observations = np.ones((*seeds.shape, 11), np.float32)
        returns = np.asarray(policy(observations)).sum(-1).astype(np.float64)
        return rollouts.Outcome(returns)

    def endless(policy, *arguments, stop, **options):
        (workdir / "evaluating").touch()
        for step in range(600):
            stop.check(f"an evaluation at step {step}")
            time.sleep(0.1)
        raise UserError("nobody asked to stop")

    def terminate():
        while not (workdir / "evaluating").exists():
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)

    distributed.JOIN_TIMEOUT_S = int(os.environ.get("JOIN_TIMEOUT_S", distributed.JOIN_TIMEOUT_S))
    rollouts.run_episodes = episodes
    cost_model.plan = lambda *args: []
    artifacts.figures.plot_curves = lambda *args: None
    if "EVALUATING" in os.environ:
        workdir = pathlib.Path(os.environ["EVALUATING"])
        rollouts.run_episodes = endless
        if "--process_id=1" in sys.argv:
            threading.Thread(target=terminate).start()
    if "DIE_AT" in os.environ:
        stage, step, number = os.environ["DIE_AT"].split(",")
        original = loop._Recorder.dispatched

        def dispatched(self, reached, metrics):
            original(self, reached, metrics)
            if (self._stage.name, reached) == (stage, int(step)):
                self._checkpoints.wait()  # what is resumed should not depend on the disk
                if number == "fail":
                    raise UserError("alone")
                os.kill(os.getpid(), int(number))

        loop._Recorder.dispatched = dispatched
    main.run()


# --- starting them ------------------------------------------------------------------------


def _start(workdir, *arguments, devices=1, **environment):
    flags = (
        f"--xla_force_host_platform_device_count={devices}",
        # Most of the time is compilation; these programs run for milliseconds.
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
    )
    return subprocess.Popen(
        [sys.executable, __file__, *_CONFIG, f"--workdir={workdir}", *arguments],
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": " ".join(flags),
            "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
            "PYTHONPATH": str(_ROOT),
            **environment,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("localhost", 0))
        return server.getsockname()[1]


def _start_all(workdir, count, *arguments, dying=None, die_at="", devices=1, **environment):
    """`count` processes by the three flags; one of them may die at a step."""
    port = _free_port()
    return [
        _start(
            workdir,
            *arguments,
            f"--coordinator_address=localhost:{port}",
            f"--num_processes={count}",
            f"--process_id={index}",
            devices=devices,
            **({"DIE_AT": die_at} if index == dying else {}),
            **environment,
        )
        for index in range(count)
    ]


def _start_slurm(workdir, count, *arguments):
    """`count` processes as `srun` starts them: by its variables alone."""
    port = _free_port()
    return [
        _start(
            workdir,
            *arguments,
            JAX_COORDINATOR_PORT=str(port),
            SLURM_JOB_ID="7",
            SLURM_STEP_NODELIST="localhost",
            SLURM_STEP_NUM_NODES="1",
            SLURM_NTASKS=str(count),
            SLURM_PROCID=str(index),
            SLURM_LOCALID=str(index),
        )
        for index in range(count)
    ]


def _finish(processes, timeout=900):
    """Exit codes and outputs; nothing is left running."""
    try:
        outputs = [process.communicate(timeout=timeout)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], outputs


def _learnt(workdir):
    run = loading.load_run(workdir)
    return jax.device_get((run.policies, run.models, run.normalizer))


def _recorded(workdir):
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in x.items() if "seconds" not in k and k != "crc"} for x in lines]


def _assert_same_run(workdir, reference):
    def close(got, want):
        scale = max(1.0, np.abs(want).max())
        np.testing.assert_allclose(got, want, rtol=0, atol=_TOLERANCE * scale)

    jax.tree.map(close, _learnt(workdir), _learnt(reference))
    lines, expected = _recorded(workdir), _recorded(reference)
    assert len(lines) == len(expected) >= 6
    for line, want in zip(lines, expected, strict=True):
        assert line.keys() == want.keys()
        for name, value in want.items():
            if isinstance(value, str):
                assert line[name] == value
            else:
                np.testing.assert_allclose(line[name], value, rtol=1e-4, atol=1e-4, err_msg=name)
    results = json.loads((workdir / "results.json").read_text())
    assert len(results["final"]["return_per_seed"]) == 2


# --- end to end ---------------------------------------------------------------------------

_REAL = "--config.training.real_fraction=1.0"  # no models: the agents alone, in seconds


@pytest.fixture(name="undisturbed", scope="module")
def _undisturbed(tmp_path_factory):
    """Folders of one process's runs: on real data, and with models where a test asks."""
    made = {}

    def run(*arguments):
        if arguments not in made:
            made[arguments] = tmp_path_factory.mktemp("undisturbed")
            codes, outputs = _finish([_start(made[arguments], *arguments)])
            assert codes == [0], outputs
        return made[arguments]

    return run


def test_a_signal_to_one_stops_both_and_slurm_resumes_them(undisturbed, tmp_path):
    """SIGTERM reaches the second process only; the first has the log and the files."""
    reference = undisturbed(_REAL)  # first: it compiles what the two can read
    term = f"agent,16,{int(signal.SIGTERM)}"
    codes, outputs = _finish(_start_all(tmp_path, 2, _REAL, dying=1, die_at=term))
    assert codes == [143, 143], outputs
    # Update 16 is no multiple of the checkpoint interval of 20.
    assert [path.name for path in (tmp_path / "checkpoints" / "agent").glob("[0-9]*")] == ["16"]
    for output in outputs:
        assert "stopped in agent at update 16" in output
    assert "agent                   16/40" in outputs[0]
    assert "16/40" not in outputs[1]
    codes, outputs = _finish(_start_slurm(tmp_path, 2, _REAL))
    assert codes == [0, 0], outputs
    assert "agent: resumed at update 16 of 40" in outputs[0]
    assert "2 processes" in json.loads((tmp_path / "results.json").read_text())["device"]
    _assert_same_run(tmp_path, reference)


def test_a_signal_to_one_that_waits_stops_the_evaluation_of_the_other(undisturbed, tmp_path):
    """Process 0 alone steps environments; SIGTERM reaches the second process only."""
    reference, run = undisturbed(_REAL), tmp_path / "run"
    processes = _start_all(run, 2, _REAL, EVALUATING=str(tmp_path))
    codes, outputs = _finish(processes)
    assert codes == [143, 143], outputs
    for output in outputs:
        assert "stopped in the evaluation of agent at update 40" in output
    assert [path.name for path in (run / "checkpoints" / "agent").glob("[0-9]*")][-1:] == ["40"]
    assert not (run / ".stop").exists()
    codes, outputs = _finish(_start_all(run, 2, _REAL))
    assert codes == [0, 0], outputs
    _assert_same_run(run, reference)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "die_at", "dying", "count", "restarted", "devices"),
    [
        ((_REAL,), "agent,32", 1, 2, 2, 1),
        ((_REAL,), "agent,32", 0, 2, 1, 2),  # resumed by one process with as many devices
        ((), "inverse_dynamics,5", 1, 2, 4, 1),  # resumed by more processes
        ((), "agent,32", 2, 4, 2, 1),
    ],
)
def test_a_killed_process_ends_the_others_and_the_job_is_resumed(
    undisturbed, tmp_path, arguments, die_at, dying, count, restarted, devices
):
    kill = f"{die_at},{int(signal.SIGKILL)}"
    codes, outputs = _finish(_start_all(tmp_path, count, *arguments, dying=dying, die_at=kill))
    assert codes[dying] == -signal.SIGKILL
    assert 0 not in codes, outputs
    # The first process is the coordinator: without it JAX itself may end the others first, with
    # a stack trace above the line of this program.
    for index, output in enumerate(outputs):
        if index != dying:
            assert re.match(r"dawm_jax.*: .*another process.* ended", output.splitlines()[-1])
            assert codes[index] == 1
    codes, outputs = _finish(_start_all(tmp_path, restarted, *arguments, devices=devices))
    assert set(codes) == {0}, outputs
    assert "resumed at" in outputs[0]
    _assert_same_run(tmp_path, undisturbed(*arguments))


@pytest.mark.slow
def test_a_mistake_ends_all_in_one_line_each(tmp_path):
    """Only the first process reads the folder's owner; the error reaches every one."""
    (tmp_path / "config.json").write_text('{"seed": 1}')
    codes, outputs = _finish(_start_all(tmp_path, 2, _REAL))
    assert codes == [1, 1]
    for index, output in enumerate(outputs):
        who = "" if index == 0 else " (process 1 of 2)"
        last = output.strip().splitlines()[-1]
        assert last.startswith(f"dawm_jax{who}: {tmp_path} holds a run of another configuration")


@pytest.mark.slow
@pytest.mark.parametrize("failing", [0, 1])
def test_a_process_that_fails_alone_says_why_and_ends_the_other(tmp_path, failing):
    processes = _start_all(tmp_path, 2, _REAL, dying=failing, die_at="agent,16,fail")
    codes, outputs = _finish(processes)
    assert codes[failing] == 1 and codes[1 - failing] != 0
    assert ": alone\n" in outputs[failing]


def test_what_the_loss_of_a_peer_looks_like():
    gloo = "UNKNOWN: Gloo AllGather failed: [pair.cc:547] Connection closed by peer"
    assert distributed.is_from_devices(jax.errors.JaxRuntimeError(gloo))
    assert distributed.is_from_devices(ValueError(gloo))
    assert not distributed.is_from_devices(ValueError("Incompatible shapes: UNKNOWN: (3,)"))


@pytest.mark.parametrize("process_id", [0, 1])
def test_a_process_that_stays_alone_says_so(tmp_path, process_id):
    address = f"localhost:{_free_port()}"
    process = _start(
        tmp_path,
        f"--coordinator_address={address}",
        *("--num_processes=2", f"--process_id={process_id}"),
        JOIN_TIMEOUT_S="1",
    )
    (code,), (output,) = _finish([process])
    waiting, end = output.splitlines()
    assert code == 1
    assert f"process {process_id} of 2: waiting for the others at {address} (--coord" in waiting
    assert end.startswith("dawm_jax: the 2 processes of this job did not find each other (")
    assert not list(tmp_path.iterdir())


def test_the_line_of_this_program_is_the_last_of_an_abort():
    """JAX's client aborts from a thread of its own, while Python waits."""
    script = (
        "import ctypes, threading, time\n"
        "from dawm_jax.runtime import distributed\n"
        "distributed._explain_aborts()\n"
        "threading.Thread(target=ctypes.CDLL(None).abort).start()\n"
        "time.sleep(60)\n"
    )
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", script],
        env={**os.environ, "PYTHONPATH": str(_ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("dawm_jax: another process of this job ended")


# --- who there is -------------------------------------------------------------------------

_STEP = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "n[1-2]",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
}


@pytest.mark.parametrize(
    ("environment", "size"),
    [
        ({}, 1),
        (_STEP, 2),
        ({**_STEP, "SLURM_NTASKS": "1"}, 1),
        # An interactive step of one task in an allocation of four.
        ({**_STEP, "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "1"}, 1),
        # The body of a batch script: nobody started the other tasks.
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_PROCID": "0"}, 1),
    ],
)
def test_processes_of_a_job(environment, size):
    assert distributed._found_job({"JAX_PLATFORMS": "cpu", **environment}).size == size


def test_hosts_of_a_tpu_slice(monkeypatch):
    monkeypatch.setattr(distributed.importlib.util, "find_spec", lambda name: name)
    assert distributed._found_job({"TPU_WORKER_HOSTNAMES": "a,b,c"}).size == 3
    assert distributed._found_job({"TPU_WORKER_HOSTNAMES": "a,b", "JAX_PLATFORMS": "cpu"}).size == 1

    class Metadata(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            assert self.headers["Metadata-Flavor"] == "Google"
            assert self.path.endswith("/attributes/worker-network-endpoints")
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"u:8470:10.0.0.1,u:8470:10.0.0.2,u:8470:10.0.0.3,u:8470:10.0.0.4")

        def log_message(self, *args):
            pass

    with http.server.HTTPServer(("localhost", 0), Metadata) as server:
        threading.Thread(target=server.handle_request).start()
        address = f"localhost:{server.server_port}"
        assert distributed._found_job({"GCE_METADATA_IP": address}).size == 4
    # Nobody answers: a TPU that is no part of a slice.
    assert distributed._found_job({"GCE_METADATA_IP": f"localhost:{_free_port()}"}).size == 1


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("node001", "node001"),
        ("node001,host2", "node001"),
        ("node[001-015],host2", "node001"),
        ("n-a[7,9-15]", "n-a7"),
    ],
)
def test_the_coordinator_of_a_slurm_step_is_jaxs(monkeypatch, nodes, host):
    from jax._src.clusters.slurm_cluster import SlurmCluster

    step = {**_STEP, "SLURM_STEP_NODELIST": nodes, "SLURM_JOB_ID": "123456"}
    job = distributed._found_job(step)
    monkeypatch.setattr(os, "environ", step)
    assert job.address == SlurmCluster.get_coordinator_address(None, None)
    assert job.address.startswith(f"{host}:")
    assert (job.size, job.process_id) == (2, 0)
    assert distributed._found_job({**step, "JAX_COORDINATOR_PORT": "9"}).address == f"{host}:9"


@pytest.mark.parametrize(
    ("environment", "devices"),
    [
        ({}, None),
        # One task a node takes all its GPUs, a task a GPU its own.
        (
            {"SLURM_NTASKS": "2", "SLURM_STEP_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "4"},
            [0, 1, 2, 3],
        ),
        ({"SLURM_NTASKS": "8", "SLURM_STEP_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "4"}, None),
        ({"SLURM_NTASKS": "2", "SLURM_STEP_NUM_NODES": "2"}, None),
    ],
)
def test_gpus_of_a_slurm_task(environment, devices):
    assert distributed._slurm_devices(environment) == devices


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("localhost:1", 2, None), "--num_processes and --process_id together"),
        ((None, 2, 0), "together"),
        (("localhost:1", 2, 2), "--process_id: expected 0 to 1 with --num_processes=2, got 2"),
        (("localhost:1", 2, -1), "--process_id: expected 0 to 1"),
    ],
)
def test_half_a_description_is_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        distributed.join(*arguments)


def test_one_process_is_alone():
    distributed.join("localhost:1", 1, 0)  # nobody to connect to
    assert (
        distributed.is_first()
        and distributed.describe_process() == ""
        and distributed.exit_delay() is None
    )
    assert distributed.exchange({"a": [1]}) == [{"a": [1]}]
    assert distributed.any_process(True) and not distributed.any_process(False)
    assert distributed.first_process_then_rest(lambda: 3) == 3
    with pytest.raises(UserError, match="wrong"):
        distributed.first_process_then_rest(_fail)


def _fail():
    raise UserError("wrong")


def test_a_process_that_waits_does_something_meanwhile():
    calls = []
    done = threading.Event()

    def meanwhile():
        calls.append(threading.current_thread())
        done.set()

    assert distributed._in_thread(lambda: done.wait() and 3, meanwhile) == 3
    assert set(calls) == {threading.main_thread()}
    with pytest.raises(UserError, match="wrong"):
        distributed._in_thread(_fail, meanwhile)


if __name__ == "__main__":
    _worker()
