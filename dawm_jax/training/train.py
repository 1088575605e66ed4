"""The whole training, read from top to bottom.

settings -> data -> models of the method -> agents on what they generate -> results
"""

import contextlib
import logging
import pathlib
from collections.abc import Iterator
from typing import Any

import jax

from dawm_jax.config import schema
from dawm_jax.config.schema import Config
from dawm_jax.data.dataset import describe
from dawm_jax.data.load import load_dataset
from dawm_jax.methods import base as methods
from dawm_jax.runtime import distributed, loop, run_folder, sharding
from dawm_jax.runtime.metrics import MetricsFile, Writer, make_writers
from dawm_jax.training import artifacts, cost_model, setup, stages

_log = logging.getLogger(__name__)


def run(config: Config, workdir: pathlib.Path) -> dict[str, Any]:
    """Trains what `config` asks for, resuming what `workdir` already holds.

    Args:
      config: the run's settings; see `config.schema`.
      workdir: the run's folder, made when absent.

    Returns:
      The content of results.json in process 0, which alone evaluates, logs and writes
      everything but checkpoints; {} in other processes.

    Raises:
      UserError: a mistake in the settings, the data or the folder.
      loop.Interrupted: a signal asked to stop; the same call resumes.
    """
    method = methods.check(config)
    with loop.stop_on_signals() as stop, contextlib.ExitStack() as cleanup:
        own = _own(workdir, config)
        distributed.first_process_then_rest(lambda: cleanup.enter_context(own))

        # --- data ---
        dataset = distributed.first_process_then_rest(lambda: load_dataset(config.dataset))
        _log.info("%s", describe(dataset))
        replay, normalizer = setup.build_replay(config, dataset)

        # --- devices ---
        placement = sharding.place(
            config.parallel,
            num_seeds=config.num_seeds,
            batch_sizes=stages.shared_batch_sizes(config, method),
        )
        parts = setup.make(config, normalizer, shard_windows=placement.shard_windows)
        replay = placement.replicate(replay)
        for line in cost_model.plan(parts, replay):
            _log.info("%s", line)

        # --- the folder ---
        # A run that was refused above leaves no config.json and so does not claim the folder.
        writers = distributed.first_process_then_rest(lambda: _start_recording(workdir, config))
        for writer in writers:
            cleanup.callback(writer.close)
        session = loop.Session(
            workdir=workdir,
            log=MetricsFile(workdir / "metrics.jsonl", active=distributed.is_first()),
            writers=tuple(writers),
            stop=stop,
            constants=placement.replicate(normalizer),
        )

        # --- models, then agents or plans ---
        key = jax.random.key(config.seed)
        models = None
        if method.trains_models(config):
            models = {
                name: stages.train_model(name, model, replay, placement, key, session)
                for name, model in parts.method.models.items()
            }
        if parts.planner is not None:
            stages.evaluate_plans(config, parts.planner, models, key, session.log)
        else:
            stages.train_agents(parts, models, replay, placement, key, session)

        # --- results ---
        if not distributed.is_first():
            return {}
        return artifacts.finish(parts, workdir, session.log, dataset_text=describe(dataset))


@contextlib.contextmanager
def _own(workdir: pathlib.Path, config: Config) -> Iterator[None]:
    """Process 0 locks the folder; the others check that they see it."""
    if distributed.is_first():
        with run_folder.own(workdir, schema.to_dict(config), migrate=schema.migrate):
            yield
    else:
        run_folder.check_shared(workdir)
        yield


def _start_recording(workdir: pathlib.Path, config: Config) -> list[Writer]:
    """Claims the folder for these settings; the optional writers of process 0."""
    if not distributed.is_first():
        return []
    values = schema.to_dict(config)
    writers = make_writers(
        workdir,
        tensorboard=config.tensorboard,
        wandb_project=config.wandb_project,
        config=values,
    )
    run_folder.write_config(workdir, values)
    return writers
