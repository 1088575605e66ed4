"""DAWM: offline reinforcement learning on synthetic one-step transitions.

Trains a diffusion world model and an inverse dynamics model on a fixed dataset, then TD3+BC
or IQL on the transitions they generate, and evaluates the agents.

Examples:
  python -m dawm_jax.main --config=configs/hopper.py:quick
  python -m dawm_jax.main --config=configs/hopper.py --config.agent=iql --workdir=runs/iql
  python -m dawm_jax.main --config=configs/hopper.py --config.dataset=mujoco/hopper/medium-v0
  python -m dawm_jax.main --config=configs/hopper.py --config.dataset=/data/hopper_medium-v2.hdf5
  python -m dawm_jax.main --config=configs/hopper.py:quick --config.training.real_fraction=1.0
  python -m dawm_jax.main --config=configs/hopper.py:quick --config.method=dwm

Several processes, each with its devices: under SLURM's srun and on the hosts of a Cloud TPU
slice they find each other; elsewhere each gets --coordinator_address=HOST:PORT
--num_processes=N --process_id=I and a --workdir that all can write.

The same command on the same --workdir resumes the run. Variants: configs/X.py (the full
protocol, for a GPU), configs/X.py:quick (minutes on a CPU), configs/X.py:smoke (seconds).
"""

import difflib
import hashlib
import logging
import pathlib
import re
import sys

from absl import flags

from dawm_jax.runtime import cli

_ROOT = pathlib.Path(__file__).resolve().parents[1]
# Environment files import configs.common, from wherever the program is started.
if str(_ROOT) not in sys.path:
    sys.path.append(str(_ROOT))

from ml_collections import config_flags  # noqa: E402

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "A configuration file, with an optional variant: configs/hopper.py:quick"
)
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Folder of the run: configuration, metrics, results, checkpoints. "
    "Default: runs/ and a name made of the configuration",
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator_address", None, "host:port of process 0, for several processes"
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Processes of the job")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0")


def main() -> None:
    """Runs the configured training; see the module's text."""
    import jax

    from dawm_jax import train
    from dawm_jax.runtime import loop, parallel
    from dawm_jax.types import UserError, first_line

    def fail(message: str, code: int) -> None:
        cli.fail(message, code, parallel.describe_process(), linger=parallel.linger())

    config = _CONFIG.value
    workdir = pathlib.Path(_WORKDIR.value or _default_workdir(config)).expanduser()
    try:
        parallel.join(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
        cli.log.setLevel(logging.INFO if parallel.is_first() else logging.WARNING)
        cli.log.info("workdir: %s", workdir)
        train.run(config, workdir)
        parallel.leave()
    except UserError as error:
        fail(str(error), 1)
    except OSError as error:
        fail(f"{workdir}: {error.strerror or error}; what was saved is intact", 1)
    except loop.Interrupted as interruption:
        message = f"stopped in {interruption}; the same command resumes there"
        cli.fail(message, 143, parallel.describe_process())  # all stop here: no hurry
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        if parallel.linger() is None or not parallel.is_from_devices(error):
            raise  # a fault of this program
        fail(
            f"a device failed or another process ended ({first_line(error)}); the same "
            "command resumes at the last checkpoint",
            1,
        )
    except KeyboardInterrupt:
        fail("interrupted; the same command resumes at the last checkpoint", 130)


def run() -> None:
    """Entry point of the console script."""
    cli.run(main, __doc__, check=_check_config, explain=_with_suggestion, more_help=_config_fields)


def _check_config() -> None:
    """Reading the value raises what went wrong while the file was loaded."""
    if _CONFIG.value is None:
        raise ValueError("--config is missing: expected e.g. --config=configs/hopper.py:quick")
    _CONFIG.value.to_dict()


def _with_suggestion(message: str, argv: list[str]) -> str:
    """A mistake on the command line, with the nearest valid name."""
    config_path = next((m[1] for m in map(re.compile(r"--?config=([^:]*)").match, argv) if m), "")
    if config_path and not pathlib.Path(config_path).is_file():
        known = sorted(str(p.relative_to(_ROOT)) for p in _ROOT.glob("configs/*.py"))
        known = [k for k in known if not k.endswith(("__init__.py", "common.py"))]
        return f"--config: no file {config_path}; expected one of {', '.join(known)}"
    names = list(_flatten_fields())
    for argument in argv[1:]:
        match = re.match(r"--?(config\.[\w.]+)", argument)
        if match and match.group(1).removeprefix("config.") not in names:
            wrong = match.group(1)
            near = difflib.get_close_matches(wrong, [f"config.{n}" for n in names], 1, 0.0)
            return f"unknown flag --{wrong}: did you mean --{near[0]}?"
    # What a configuration file raised stands at the end of a quoted traceback.
    return message.rsplit("Error: ", 1)[-1] if "Traceback" in message else message


def _flatten_fields() -> dict[str, object]:
    from configs import common

    flat = {}

    def visit(prefix, node):
        for name, value in node.items():
            if hasattr(value, "items"):
                visit(f"{prefix}{name}.", value)
            else:
                flat[f"{prefix}{name}"] = value

    visit("", common.get_config())
    return flat


def _config_fields() -> str:
    """Every field as a flag with its default, unit and source, from configs/common.py."""
    text = (_ROOT / "configs" / "common.py").read_text()
    prefixes, lines = {"config": "config"}, []
    for line in text[: text.index("    if tier or not bundled")].splitlines():
        if section := re.match(r"    (\w+) = (config\.\w+) = ml_collections", line):
            prefixes[section[1]] = section[2]
        elif field := re.match(r"    (\w+)\.(\w+) = (.*?)  # (.*)", line):
            flag = f"--{prefixes[field[1]]}.{field[2]}={field[3]}"
            lines.append(f"  {flag:<58} {field[4]}")
        elif heading := re.match(r"    # --- (.*) ---", line):
            lines.append(f"\n{heading[1]}:")
    return "Configuration fields and their defaults:\n" + "\n".join(lines)


def _default_workdir(config) -> str:
    name = config.environment.split("-")[0].lower()
    digest = hashlib.sha256(config.to_json(sort_keys=True).encode()).hexdigest()[:8]
    method = "" if config.method == "dawm" else config.method
    parts = ["runs/" + name, *config.variant.split(","), method, config.agent, digest]
    return "-".join(filter(None, parts))


if __name__ == "__main__":
    run()
