"""The examples of docs/architecture.md are complete configuration files that parse."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

_PAGE = pathlib.Path(__file__).resolve().parents[1] / "docs" / "architecture.md"
_PARSE = """
import importlib.util, sys
from dawm_jax.config import schema
for number, path in enumerate(sys.argv[1:]):
    spec = importlib.util.spec_from_file_location(f"example_{number}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    for variant in ("", "quick", "smoke"):
        print(schema.parse(module.get_config(variant)).environment)
"""


# What starts the main program: the module, and the function of the console script dawm-jax.
_COMMANDS = (["-m", "dawm_jax.main"], ["-c", "from dawm_jax.main import run; run()"])


def examples():
    blocks = re.findall(r"```python\n(.*?)```", _PAGE.read_text(), re.DOTALL)
    return [block for block in blocks if "def get_config" in block]


@pytest.mark.parametrize("command", _COMMANDS, ids=("module", "script"))
@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("rwc", "--config.rwc.temperature=1.0"),
        ("plain_mlp", "--config.plain_mlp.hidden=(1024,1024)"),
    ],
)
def test_help_lists_the_settings_of_a_files_plug_in(tmp_path, command, name, line):
    (tmp_path / "mine.py").write_text(*[text for text in examples() if f'name="{name}"' in text])
    result = subprocess.run(
        [sys.executable, *command, "--config=mine.py:quick", "--help"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(_PAGE.parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert f"\nconfig.{name}:\n" in result.stdout and f"  {line}\n" in result.stdout


def test_every_example_registers_itself_and_its_configuration_parses(tmp_path):
    found = examples()
    assert len(found) == 5  # an agent, a denoiser, a method, a source and a task
    paths = [tmp_path / f"example_{number}.py" for number in range(len(found))]
    for path, example in zip(paths, found, strict=True):
        path.write_text(example)
    # In a process of its own: what the examples register must not reach other tests.
    command = [sys.executable, "-c", _PARSE, *map(str, paths)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.split()) == 3 * len(found)
