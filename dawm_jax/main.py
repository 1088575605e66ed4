"""DAWM: offline reinforcement learning on synthetic one-step transitions.

Trains a diffusion world model and an inverse dynamics model on a fixed dataset, then an agent
(TD3+BC, IQL, ...) on the transitions they generate, and evaluates the agent.

Examples:
  python -m dawm_jax.main --config=configs/hopper.py:quick
  python -m dawm_jax.main --config=hopper --config.agent=iql --workdir=runs/iql
  python -m dawm_jax.main --config=hopper --config.dataset=mujoco/hopper/medium-v0
  python -m dawm_jax.main --config=hopper --config.dataset=/data/hopper_medium-v2.hdf5
  python -m dawm_jax.main --config=hopper:quick --config.training.real_fraction=1.0
  python -m dawm_jax.main --config=hopper:quick --config.method=dwm
  python -m dawm_jax.main --config=runs/iql/config.json --config.seed=1

Several processes, each with its devices: under SLURM's srun and on the hosts of a Cloud TPU
slice they find each other; elsewhere each gets --coordinator_address=HOST:PORT
--num_processes=N --process_id=I and a --workdir that all can write.

The same command on the same --workdir resumes the run. Variants: hopper (full size, for
a GPU), hopper:quick (minutes on a CPU), hopper:smoke (seconds).
"""

import logging
import re

from absl import flags
from ml_collections import config_flags

from dawm_jax.config import by_name, flag, help, schema
from dawm_jax.runtime import cli, paths

# Host and port of a coordinator: a name, an IPv4 address, or an IPv6 address in brackets.
_ADDRESS = re.compile(r"(\[[0-9a-fA-F:.]+\]|[\w.-]+):([0-9]{1,5})")
_MAX_PORT = 65_535
_MAX_PROCESSES = 100_000

_CONFIG = config_flags.DEFINE_config_file("config", None, flag.HELP)
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Folder of the run: configuration, metrics, results, checkpoints. "
    "Default: runs/ and a name made of the configuration",
)
_MODELS_FROM = flags.DEFINE_string(
    "models_from",
    None,
    "Folder of a run whose trained models are copied, if they are those that this run would train",
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator_address", None, "host:port of process 0, for several processes"
)
_NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes",
    None,
    "Processes of the job",
    lower_bound=1,
    upper_bound=_MAX_PROCESSES,
)
_PROCESS_ID = flags.DEFINE_integer(
    "process_id",
    None,
    "Which of them this is, from 0",
    lower_bound=0,
    upper_bound=_MAX_PROCESSES - 1,
)


def main() -> None:
    """Runs the configured training; see the module's text."""
    from dawm_jax.runtime import backend, distributed, stopping
    from dawm_jax.training import setup, train
    from dawm_jax.types import UserError, first_line

    def fail(message: str, code: int) -> None:
        cli.fail(message, code, distributed.describe_process(), delay=distributed.exit_delay())

    config = schema.parse(_CONFIG.value)
    workdir = paths.expand(_WORKDIR.value or setup.default_workdir(config), "--workdir")
    distributed.join(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    backend.check()
    try:
        cli.log.setLevel(logging.INFO if distributed.is_first() else logging.WARNING)
        cli.log.info("workdir: %s", workdir)
        source = _MODELS_FROM.value
        models_from = None if source is None else paths.expand(source, "--models_from")
        train.run(config, workdir, models_from=models_from)
        distributed.leave()
    except stopping.Interrupted as interruption:
        message = f"stopped in {interruption}; the same command resumes there"
        # All processes stop at the same step: none has to wait for the errors of others.
        cli.fail(message, 143, distributed.describe_process())
    except KeyboardInterrupt:
        fail("interrupted; the same command resumes at the last checkpoint", 130)
    except UserError as error:
        fail(str(error), 1)
    except Exception as error:
        several = distributed.exit_delay() is not None
        if several and distributed.is_from_devices(error):
            fail(
                f"a device failed or another process ended ({first_line(error)}); the same "
                "command resumes at the last checkpoint",
                1,
            )
        kept = f"; what was saved in {workdir} is intact" if isinstance(error, OSError) else ""
        fail(cli.describe(error, folder=workdir) + kept, 1)


def _check() -> None:
    """Refuses what no job could start with."""
    flag.check(_CONFIG)
    for name, value in (("--workdir", _WORKDIR.value), ("--models_from", _MODELS_FROM.value)):
        if value is not None:
            paths.expand(value, name)
    address = _COORDINATOR.value
    if address is None:
        return
    match = _ADDRESS.fullmatch(address)
    if match is None or not 0 < int(match[2]) <= _MAX_PORT:
        raise ValueError(
            f"--coordinator_address: expected HOST:PORT with a port of 1 to {_MAX_PORT}, got "
            f"{address!r}"
        )


def _settings(argv: list[str]) -> str:
    """Every setting, among them those of plug-ins that the file of --config registers."""
    flag.load_file(argv)
    return help.text()


def run() -> None:
    """Entry point of the console script."""
    cli.run(
        main,
        __doc__,
        prepare=by_name.resolve,
        check=_check,
        explain=flag.explain,
        more_help=_settings,
    )


if __name__ == "__main__":
    run()
