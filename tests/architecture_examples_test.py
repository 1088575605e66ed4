"""The examples of docs/architecture.md are complete configuration files that parse."""

import pathlib
import re
import subprocess
import sys

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


def test_every_example_registers_itself_and_its_configuration_parses(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", _PAGE.read_text(), re.DOTALL)
    examples = [block for block in blocks if "def get_config" in block]
    assert len(examples) == 5  # an agent, a denoiser, a method, a source and a task
    paths = [tmp_path / f"example_{number}.py" for number in range(len(examples))]
    for path, example in zip(paths, examples, strict=True):
        path.write_text(example)
    # In a process of its own: what the examples register must not reach other tests.
    command = [sys.executable, "-c", _PARSE, *map(str, paths)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.split()) == 3 * len(examples)
