"""The installed package works from any folder, without the repository."""

import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_COMMANDS = ("", "-collect", "-generate", "-quality", "-report", "-robustness", "-benchmark")


@pytest.fixture(scope="module", name="wheel")
def _wheel(tmp_path_factory):
    folder, source = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("source")
    # Of a copy: setuptools would pack stale files of an earlier build in the repository.
    shutil.copytree(
        _ROOT / "dawm_jax", source / "dawm_jax", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(_ROOT / name, source)
    # The build backend is a development dependency: nothing is downloaded.
    options = ["--no-deps", "--no-build-isolation", "--quiet", f"--wheel-dir={folder}"]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(source)], check=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module", name="installed")
def _installed(wheel, tmp_path_factory):
    """The wheel's content in a folder of its own."""
    folder = tmp_path_factory.mktemp("installed")
    options = ["--no-deps", "--quiet", f"--target={folder}"]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(wheel)], check=True)
    return folder


def run(installed, folder, *command):
    """A console script of the installed package, started in `folder`."""
    environment = {**os.environ, "PYTHONPATH": str(installed), "JAX_PLATFORMS": "cpu"}
    script = installed / "bin" / command[0]
    return subprocess.run(
        [sys.executable, script, *command[1:]],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_wheel_holds_what_runs_need(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for needed in ("py.typed", "data/assets/hopper_medium-v0.npz", "collect/assets/Hopper-v5.npz"):
        assert f"dawm_jax/{needed}" in names
    tops = {name.split("/")[0] for name in names}
    assert all(top.startswith("dawm_jax") for top in tops), tops  # no folder called configs


@pytest.mark.parametrize("command", _COMMANDS)
def test_every_command_explains_itself(installed, tmp_path, command):
    result = run(installed, tmp_path, f"dawm-jax{command}", "--help")
    assert result.returncode == 0, result.stderr
    assert "Flags:" in result.stdout and f"python -m dawm_jax.{command[1:] or 'main'}" in (
        result.stdout
    )


def test_a_run_by_name_beside_a_folder_called_configs(installed, tmp_path):
    """A user's own `configs` package with errors in it is in nobody's way."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "__init__.py").write_text("raise RuntimeError('not for dawm_jax')\n")
    arguments = ("--config=hopper:smoke", "--config.training.real_fraction=1.0", "--workdir=run")
    result = run(installed, tmp_path, "dawm-jax", *arguments)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "run" / "results.json").is_file()
    report = run(installed, tmp_path, "dawm-jax-report", "run", "--out=report")
    assert report.returncode == 0, report.stderr
    assert (tmp_path / "report" / "report.md").is_file()


def test_it_is_the_installed_package_that_runs(installed, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    code = "import dawm_jax; print(dawm_jax.__file__)"
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.startswith(str(installed))


@pytest.mark.slow
def test_a_fresh_environment_runs_every_command(wheel, tmp_path):
    """Installs the wheel with its dependencies, and runs each command for real."""
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    scripts = tmp_path / "venv" / "bin"
    subprocess.run([scripts / "pip", "install", "--quiet", str(wheel)], check=True)
    environment = {**os.environ, "MINARI_DATASETS_PATH": str(tmp_path / "minari")}

    def command(name, *arguments):
        subprocess.run(
            [scripts / f"dawm-jax{name}", *arguments], cwd=tmp_path, env=environment, check=True
        )

    command("", "--config=hopper:smoke", "--workdir=run")
    command("-collect", "--env=Hopper-v5", "--steps=2000", "--dataset_id=local/hopper/small-v0")
    command("-generate", "--workdir=run", "--dataset_id=local/hopper/made-v0", "--transitions=500")
    command("-quality", "--workdir=run", "--transitions=140")
    command("-report", "run", "--out=report")
    command("-benchmark", "--config=hopper:smoke", "--quick", "--stages=inverse_dynamics")
