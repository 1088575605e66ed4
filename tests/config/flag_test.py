"""Configuration files that cannot be used: one line that names the file, the place and the fix."""

import re
import sys

import pytest
from absl import flags
from ml_collections import config_flags

from dawm_jax.config import by_name, flag, schema

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of loading a file


def message(config, *arguments):
    """What the command line says to --config=CONFIG; None if it accepts it."""
    argv = by_name.resolve(["main", f"--config={config}", *arguments])
    sys.modules.pop("config_config", None)  # a second file would be loaded into the first one
    values = flags.FlagValues()
    holder = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    try:
        values(argv)
        flag.check(holder)
        schema.parse(holder.value)
    except Exception as error:
        return flag.explain(error, argv)
    return None


_GOOD = """
from dawm_jax.config import schema
def get_config(variant=""):
    config = schema.get_config(variant)
    config.unlock()
    {change}
    return config
"""


def test_a_good_file(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(_GOOD.format(change="config.seed = 3"))
    monkeypatch.chdir(tmp_path)
    for config in ("mine.py", "mine.py:smoke", str(tmp_path / "mine.py")):
        assert message(config, "--config.seed=4") is None


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("def get_config(:\n", "mine.py: invalid syntax in line 1; expected a Python file"),
        (b"\x7fELF\0\0", "mine.py: source code string cannot contain null bytes"),
        (b"x = '\xff'", "mine.py: .*; expected a Python file with get_config"),
        ("x = 1\n1 / 0\n", "mine.py, line 2: ZeroDivisionError: division by zero"),
        ("import no_such_module\n", "mine.py, line 1: ModuleNotFoundError: No module named"),
        ("# a text\n", r"mine.py has no get_config: expected get_config\(variant\)"),
        ("def get_config(v=''):\n  raise KeyError('x')\n", "mine.py, line 2: KeyError: 'x'"),
        ("def get_config(v=''):\n  raise TypeError('x')\n", "mine.py, line 2: TypeError: x"),
        ("def get_config(v=''):\n  open('/nowhere/x')\n", "mine.py, line 2: FileNotFoundError"),
        ("def get_config(v):\n  pass\n", r"mine.py: get_config\(\) missing 1 required"),
        ("def get_config(v=''):\n  pass\n", "to return a ConfigDict, .* got None"),
        ("def get_config(v=''):\n  return {'a': 1}\n", r"to return a ConfigDict, .* got {'a': 1}"),
        ("def get_config(v=''):\n  return object()\n", "to return a ConfigDict, .* got <object"),
        (
            "import ml_collections\ndef get_config(v=''):\n  return ml_collections.ConfigDict()\n",
            "config.world_model: expected a section of settings, got None",
        ),
        (_GOOD.format(change="del config.method"), "config.method is missing: expected what is"),
        (
            _GOOD.format(change="config.rollout = 3"),
            "mine.py, line 6: TypeError: Could not override",
        ),
        (_GOOD.format(change="config.sede = 3"), "config.sede: unknown setting; expected"),
        (_GOOD.format(change="config.lock(); config.sede = 3"), "mine.py, line 6: AttributeError"),
        (
            _GOOD.format(change="config.seed = -3"),
            "config.seed: expected a whole number at least 0",
        ),
        (
            _GOOD.format(
                change="from ml_collections import config_dict as c; "
                "config.seed = c.required_placeholder(int)"
            ),
            "None value found in required reference|a placeholder without a value",
        ),
        (
            "from dawm_jax.config import schema\ndef get_config(v=''):\n"
            "  return schema.get_config('fast')\n",
            "--config: unknown variant 'fast': expected quick, smoke",
        ),
    ],
)
def test_a_bad_file(tmp_path, monkeypatch, content, expected):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mine.py"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    found = message("mine.py")
    assert re.search(expected, found), found
    assert "\n" not in found and "Traceback" not in found


@pytest.mark.parametrize("flag_given", ["--config.dataset=x", "--config.agent=iql"])
def test_a_flag_of_a_setting_that_the_file_lacks(tmp_path, monkeypatch, flag_given):
    monkeypatch.chdir(tmp_path)
    for body in ("return {'a': 1}", "pass", "import ml_collections as m; return m.ConfigDict()"):
        (tmp_path / "mine.py").write_text(f"def get_config(v=''):\n  {body}\n")
        found = message("mine.py", flag_given)
        assert found.startswith("--config=mine.py: it has no setting ")
        assert "expected get_config to return a ConfigDict" in found and "\n" not in found


def test_what_is_no_file_names_the_tasks_and_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text("# A title\n\nText with a comma, and more.\n")
    found = message("configs/hopper.py:smoke")
    assert f"no such file in the current folder, {tmp_path}" in found
    assert "--config=hopper" in found and "--config=walker2d" in found
    assert message("/nowhere/mine.py").startswith("--config=/nowhere/mine.py: no such file; ")
    assert message("./").startswith("--config=./: a folder; ")
    assert message(str(tmp_path)).startswith(f"--config={tmp_path}: a folder; ")
    assert message("README.md").startswith("--config=README.md: invalid syntax in line 3; ")
    for nothing in ("", ":smoke"):
        assert message(nothing) == "--config is missing: expected e.g. --config=hopper:quick"
