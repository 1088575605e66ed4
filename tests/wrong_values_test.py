"""Wrong values for every setting and for the flags of every command: one line, before any work.

The values are made from the declarations of the settings, so that a new setting is tested without
being named here.
"""

import json
import os
import pathlib
import re
import subprocess
import sys
import typing

import pytest
from absl import flags
from ml_collections import config_flags

from dawm_jax.config import by_name, flag, schema

# The configuration file is loaded by a function that Python will remove.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_FIELDS = dict(schema.fields())

# --- settings -----------------------------------------------------------------------------


def wrong_texts(spec):
    """What a person may type that a setting must refuse."""
    if typing.get_origin(spec.type) is tuple:
        items = ["0", "-1", "1.5", "nan", "'a'", "None", "99999999999999999999", "(1,)"]
        return [*(f"({item},)" for item in items), "abc", "-3", *(["()"] if spec.non_empty else [])]
    if spec.type is bool:
        return ["maybe", "2", "", "None", "1.5"]
    if spec.type is str:
        empty = [""] if spec.non_empty or spec.choices else []
        return [*empty, *(["no such choice", "None", "1"] if spec.choices else [])]
    texts = ["", "abc", "nan", "inf", "-inf", "1e400", "None", "()", "(1,)", "9" * 400]
    if spec.at_least is not None:
        texts += [repr(spec.at_least - 1), "-1e30"]
    if spec.above is not None:
        texts += [repr(spec.above), "1e-320"]
    if spec.at_most is not None:
        texts.append(repr(spec.at_most + 1))
    if spec.below is not None:
        texts += [repr(spec.below), repr(spec.below * (1 - 1e-12))]
    if spec.type is int:
        texts += ["1.5", "1e3", "99999999999999999999", "0x", "1_"]
    return texts


def refusal(name, text):
    """What the command line says to --NAME=TEXT; None if it accepts it."""
    argv = ["main", f"--config={by_name.__file__}:hopper:smoke", f"--{name}={text}"]
    values = flags.FlagValues()
    holder = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    try:
        values(argv)
        flag.check(holder)
        schema.parse(holder.value)
    except Exception as error:
        return flag.explain(error, argv)
    return None


@pytest.mark.parametrize("name", _FIELDS)
def test_wrong_settings_are_refused_by_name_in_one_line(name):
    texts = wrong_texts(_FIELDS[name])
    free_text = _FIELDS[name].type is str and not (_FIELDS[name].choices or _FIELDS[name].non_empty)
    assert texts or free_text
    for text in texts:
        message = refusal(name, text)
        assert message is not None, f"--{name}={text} is accepted"
        assert name in message and "\n" not in message and "Traceback" not in message
        assert len(message) < 1_000


@pytest.mark.parametrize("name", _FIELDS)
def test_defaults_are_accepted_as_they_are_typed(name):
    default = schema.get_config("smoke")
    for part in name.split(".")[1:]:
        default = default[part]
    assert refusal(name, default) is None


# --- flags of the commands ----------------------------------------------------------------

# Starts a command of `module` for each line of arguments, in a fork of one process, because the
# imports take seconds.
_DRIVER = """
import importlib, json, os, sys, tempfile
command = importlib.import_module(sys.argv[1])
answers = []
for line in json.loads(sys.argv[2]):
    with tempfile.TemporaryFile() as file:
        child = os.fork()
        if child == 0:
            os.dup2(file.fileno(), 1), os.dup2(file.fileno(), 2)
            sys.argv = ["command", *line]
            code = 99
            try:
                command.run()
            except SystemExit as end:
                code = end.code
            finally:
                sys.stderr.flush()
                os._exit(code if isinstance(code, int) else 98)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        file.seek(0)
        answers.append([code, file.read().decode()])
print(json.dumps(answers))
"""

_SMOKE, _RUN = "--config=hopper:smoke", "--workdir=run"
_ID = "--dataset_id=local/hopper/synthetic-v0"
_ENV = "--env=Hopper-v5"
_INTEGERS = ("", "abc", "1.5", "-1", "nan", "9" * 30)
_SEEDS = (*_INTEGERS, str(2**32))


def each(flag_name, values, *others):
    """A line of arguments for every value of a flag."""
    return [[*others, f"--{flag_name}={value}"] for value in values]


WRONG = {
    "dawm_jax.main": [
        *each(
            "coordinator_address", ["nonsense", "", "a:", ":1", "a:99999", "a:0", "a b:1"], _SMOKE
        ),
        *each("num_processes", ["0", *_INTEGERS], _SMOKE),
        *each("process_id", _INTEGERS, _SMOKE),
        *each("workdir", ["", "~no-such-user/run"], _SMOKE),
        *each("models_from", ["", "~no-such-user/run"], _SMOKE),
        *each("debug", ["maybe"], _SMOKE),
        *each("config", ["", "hoper", "nowhere.py", "hopper:fast", "/", "hopper:smoke:smoke"]),
        [_SMOKE, "--process_id=0"],
        [_SMOKE, "--num_processes=2", "--coordinator_address=localhost:5000", "--process_id=2"],
        [_SMOKE, "--config.rollout=3"],
        [_SMOKE, "--config.agent=sac"],
        [_SMOKE, "--config.method=magic"],
        [_SMOKE, "--config.world_model.denoiser=magic"],
    ],
    "dawm_jax.generate": [
        [],
        [_ID, "--overwrite"],
        [_RUN, "--overwrite"],
        *each("transitions", ["0", *_INTEGERS], _RUN, _ID),
        *each("seed", _SEEDS, _RUN, _ID),
        *each("batch", ["0", *_INTEGERS], _RUN, _ID),
        *each("guidance", ["", "abc", "nan", "inf", "-1", "1e300"], _RUN, _ID),
        *each("sampling_steps", ["0", *_INTEGERS], _RUN, _ID),
        *each("temperature", ["", "abc", "nan", "inf", "-1"], _RUN, _ID),
        *each("target_rule", ["", "magic"], _RUN, _ID),
        *each("target_factor", ["", "abc", "nan", "inf"], _RUN, _ID),
        *each("workdir", ["", "~no-such-user/run", "nowhere"], _ID),
        *each("overwrite", ["maybe"], _RUN, _ID),
    ],
    "dawm_jax.quality.__main__": [
        [],
        *each("transitions", ["15", *_INTEGERS], _RUN),
        *each("seed", _SEEDS, _RUN),
        *each("workdir", ["", "~no-such-user/run", "nowhere"]),
        *each("dataset_id", [""], _RUN),
        *each("environment", [""], _RUN),
        *each("out", ["", "~no-such-user/out"], _RUN),
        *each("reference", ["", "x.hdf5"], _RUN),
        *each("ablation", ["maybe"], _RUN),
    ],
    "dawm_jax.report.__main__": [
        [],
        ["nowhere"],
        *each("out", ["", "~no-such-user/out"], "nowhere"),
    ],
    "dawm_jax.robustness.__main__": [
        [],
        ["nowhere"],
        *each("out", ["", "~no-such-user/out"], "nowhere"),
        *each("changes", ["", "wind", "gravity,", "gravity,gravity", "gravity=2"], "nowhere"),
        *each("episodes", ["0", *_INTEGERS], "nowhere"),
        *each("seed", _SEEDS, "nowhere"),
    ],
    "dawm_jax.collect.__main__": [
        *each("physics", ["", "wind=2", "gravity", "gravity=0", "gravity=nan"], _ENV, _ID),
        [_ENV, "--tier=random", "--physics=gravity=2"],
        [_ENV, "--tier=random", "--physics=gravity=2", "--dataset_id=dawm/hopper/random-v1"],
        [_ENV, "--train", "--physics=gravity=2"],
        ["--env=Pendulum-v1", "--tier=random", _ID, "--physics=gravity=2"],
    ],
    "dawm_jax.benchmark.__main__": [
        *each("rounds", ["0", *_INTEGERS]),
        *each("seconds", ["", "abc", "-1", "nan", "inf", "601"]),
        *each("stages", ["magic"]),
        *each("torch", ["magic"]),
        *each("axes", ["magic"]),
        *each("out", ["", "/dev/null/out"], "--quick"),
        *each("config", ["", "hoper"]),
    ],
    "dawm_jax.benchmark.latency": [
        [],
        *each("seconds", ["", "abc", "-1", "nan", "inf", "601"], _SMOKE),
        *each("out", ["", "/dev/null/out"], _SMOKE),
    ],
}


def answers(folder, module, lines):
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _DRIVER, module, json.dumps(lines)],
        cwd=folder,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(_ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize("module", WRONG)
def test_wrong_flags_are_refused_in_one_line(tmp_path, module):
    lines = WRONG[module]
    for line, (code, output) in zip(lines, answers(tmp_path, module, lines), strict=True):
        assert code in (1, 2), (line, output)
        assert output.startswith("dawm_jax: ") and output.count("\n") == 1, (line, output)
        assert "Traceback" not in output and "unexpected error" not in output, (line, output)
        named = re.fullmatch(r"--(\w+)=.*", line[-1]) if line else None
        if named and named[1] not in ("reference", "workdir"):
            assert named[1] in output, (line, output)
    assert list(tmp_path.iterdir()) == []


# --- launchers ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sweep.py", "grid.toml", "--jobs=0"], "--jobs: expected 1 to 1000, got 0"),
        (["sweep.py", "grid.toml", "--jobs=x"], "--jobs"),
        (["sweep.py", "grid.toml", "--jobs=1000000"], "--jobs"),
        (["sweep.py", "grid.toml", "--gpus="], "--gpus: expected different GPUs"),
        (["sweep.py", "grid.toml", "--gpus=0,0"], "--gpus"),
        (["sweep.py", "grid.toml", "--gpus=a"], "--gpus"),
        (["sweep.py", "nowhere.toml"], "nowhere.toml"),
        (["scaling.py", "--count=out.json", "--variant=fast"], "--variant: unknown variant"),
        (["scaling.py", "--predict=/dev/null/out.json"], "/dev/null"),
        (["scaling.py", "--overwrite", "--count=."], "is a folder"),
        (["datasets.py", "--describe=/dev/null/out.json"], "/dev/null"),
        (["datasets.py", "--collect", "--describe=out.json"], "not allowed with"),
    ],
)
def test_wrong_arguments_of_launchers_are_one_line(tmp_path, arguments, message):
    script, *rest = arguments
    result = subprocess.run(
        [sys.executable, _ROOT / "launch" / script, *rest],
        cwd=tmp_path,
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "MINARI_DATASETS_PATH": str(tmp_path / "minari"),
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode in (1, 2)
    assert message in result.stderr
    assert result.stderr.startswith(f"{script}: ") and result.stderr.count("\n") == 1
