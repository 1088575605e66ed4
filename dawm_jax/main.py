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

Several processes, each with its devices: under SLURM's srun and on the hosts of a Cloud TPU
slice they find each other; elsewhere each gets --coordinator_address=HOST:PORT
--num_processes=N --process_id=I and a --workdir that all can write.

The same command on the same --workdir resumes the run. Variants: hopper (the full protocol, for
a GPU), hopper:quick (minutes on a CPU), hopper:smoke (seconds).
"""

import hashlib
import json
import logging
import pathlib

from absl import flags
from ml_collections import config_flags

from dawm_jax.config import by_name, flag, help, schema
from dawm_jax.envs.tasks import task_name
from dawm_jax.methods.base import METHODS
from dawm_jax.runtime import cli

_CONFIG = config_flags.DEFINE_config_file("config", None, flag.HELP)
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

    from dawm_jax.runtime import distributed, loop
    from dawm_jax.training import train
    from dawm_jax.types import UserError, first_line

    def fail(message: str, code: int) -> None:
        cli.fail(message, code, distributed.describe_process(), delay=distributed.exit_delay())

    config = schema.parse(_CONFIG.value)
    workdir = pathlib.Path(_WORKDIR.value or _default_workdir(config)).expanduser()
    try:
        distributed.join(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
        cli.log.setLevel(logging.INFO if distributed.is_first() else logging.WARNING)
        cli.log.info("workdir: %s", workdir)
        train.run(config, workdir)
        distributed.leave()
    except UserError as error:
        fail(str(error), 1)
    except OSError as error:
        fail(f"{workdir}: {error.strerror or error}; what was saved is intact", 1)
    except loop.Interrupted as interruption:
        message = f"stopped in {interruption}; the same command resumes there"
        # All processes stop at the same step: none has to wait for the errors of others.
        cli.fail(message, 143, distributed.describe_process())
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        if distributed.exit_delay() is None or not distributed.is_from_devices(error):
            raise  # a fault of this program
        fail(
            f"a device failed or another process ended ({first_line(error)}); the same "
            "command resumes at the last checkpoint",
            1,
        )
    except KeyboardInterrupt:
        fail("interrupted; the same command resumes at the last checkpoint", 130)


def _default_workdir(config: schema.Config) -> str:
    """A folder below runs/ for these settings: the same settings have the same folder."""
    text = json.dumps(schema.to_dict(config), sort_keys=True)
    method = METHODS.get(config.method)
    words = [
        task_name(config.environment),
        *config.variant.split(","),
        config.method,
        "" if method.plans else config.agent,
        hashlib.sha256(text.encode()).hexdigest()[:8],
    ]
    return "runs/" + "-".join(filter(None, words))


def run() -> None:
    """Entry point of the console script."""
    cli.run(
        main,
        __doc__,
        prepare=by_name.resolve,
        check=lambda: flag.check(_CONFIG),
        explain=flag.explain,
        more_help=help.text,
    )


if __name__ == "__main__":
    run()
