"""The whole training, read from top to bottom.

settings -> data -> models of the method -> agents on what they generate -> online -> results
"""

import contextlib
import logging
import pathlib
from collections.abc import Iterator

import jax

from dawm_jax.config import schema
from dawm_jax.config.schema import Config
from dawm_jax.data.dataset import OfflineDataset, describe
from dawm_jax.data.load import load_dataset
from dawm_jax.data.replay import Replay
from dawm_jax.envs import guard
from dawm_jax.methods import base as methods
from dawm_jax.methods.base import METHODS, MethodSpec
from dawm_jax.runtime import distributed, loop, run_folder, sharding, stopping
from dawm_jax.runtime.metrics import MetricsFile, Writer, check_writers, make_writers
from dawm_jax.runtime.results import Results
from dawm_jax.runtime.run_folder import DatasetRecord
from dawm_jax.runtime.sharding import Placement
from dawm_jax.training import artifacts, cost_model, finished, online, setup, sharing, stages
from dawm_jax.training.setup import Setup
from dawm_jax.training.sharing import SharedModel
from dawm_jax.types import UserError

_log = logging.getLogger(__name__)


def run(
    config: Config,
    workdir: pathlib.Path,
    dataset: OfflineDataset | None = None,
    *,
    models_from: pathlib.Path | None = None,
) -> Results | None:
    """Trains what `config` asks for, resuming what `workdir` already holds.

    A finished run is answered with its stored results.

    Args:
      config: the run's settings; see `config.schema`.
      workdir: the run's folder, made when absent.
      dataset: what to train on; None loads `config.dataset`.
      models_from: folder of a run whose trained models are copied; they must be those that this
        run would train.

    Returns:
      The results in process 0, which alone evaluates, logs and writes everything but
      checkpoints; None in other processes.

    Raises:
      UserError: a mistake in the settings, the data or the folder; data that are not what the
        run was trained on.
      stopping.Interrupted: a signal asked to stop; the same call resumes.
    """
    method = methods.check(config)
    check_writers(tensorboard=config.tensorboard, wandb_project=config.wandb_project)
    with stopping.stop_on_signals() as stop, contextlib.ExitStack() as cleanup:
        own = _own(workdir, config)
        distributed.first_process_then_rest(lambda: cleanup.enter_context(own))
        if jax.process_count() > 1:
            stop.request = run_folder.stop_request(workdir)
        placement = _check_settings(config, method)

        # --- data ---
        if dataset is None:
            dataset = distributed.first_process_then_rest(lambda: _load(config.dataset, stop))
        _log.info("%s", describe(dataset))
        record = _record(config, dataset)

        # --- what an earlier call left ---
        log = MetricsFile(workdir / "metrics.jsonl", active=distributed.is_first())
        earlier = distributed.first_process_then_rest(
            lambda: finished.look_up(config, workdir, log, record)
        )
        if distributed.any_process(earlier.is_finished):
            return _stored(earlier, workdir, log)

        # --- what is computed ---
        replay, normalizer = setup.build_replay(config, dataset)
        parts = setup.make(
            config,
            normalizer,
            num_train=replay.num_train,
            shard_windows=placement.shard_windows,
            references=dataset.references,
        )
        shared = _shared_models(parts, workdir, models_from, record)
        replay = placement.replicate(replay)
        done = cost_model.steps_done(workdir) | {model.name: model.steps for model in shared}
        for line in cost_model.plan(parts, replay, done):
            _log.info("%s", line)

        # --- the folder ---
        # A run that was refused above leaves no config.json and so does not claim the folder.
        writers = distributed.first_process_then_rest(
            lambda: _start_recording(workdir, config, record)
        )
        for writer in writers:
            cleanup.callback(writer.close)
        distributed.on_first_process(lambda: sharing.copy(shared, workdir, log))

        # --- models, then agents or plans ---
        session = loop.Session(
            workdir=workdir,
            log=log,
            writers=tuple(writers),
            stop=stop,
            constants=placement.replicate(normalizer),
        )
        _train(parts, replay, placement, session)

        # --- results ---
        if not distributed.is_first():
            return None
        # The statistics in all checkpoints are those of the data at hand.
        run_folder.write_dataset(workdir, record)
        if earlier.results is not None:
            return _stored(earlier, workdir, log)
        return artifacts.finish(parts, workdir, log, dataset=record)


def _check_settings(config: Config, method: MethodSpec) -> Placement:
    """Refuses what can be refused without the data; where the run computes."""
    setup.check(config)
    online.check(config, method)
    online.tell(config)
    placement = sharding.place(
        config.parallel,
        num_seeds=config.num_seeds,
        batch_sizes=stages.shared_batch_sizes(config, method),
    )
    guard.episode_limit(
        config.environment,
        config.environment_arguments,
        max_steps=config.evaluation.max_steps,
    )
    return placement


def _shared_models(
    parts: Setup, workdir: pathlib.Path, source: pathlib.Path | None, record: DatasetRecord
) -> list[SharedModel]:
    """The models that are copied from another run."""
    if source is None:
        return []
    return distributed.first_process_then_rest(lambda: sharing.find(parts, workdir, source, record))


def _train(parts: Setup, replay: Replay, placement: Placement, session: loop.Session) -> None:
    """Trains the models of the method, then agents, online as well, or evaluates plans."""
    config = parts.config
    key = jax.random.key(config.seed)
    models = None
    if METHODS.get(config.method).trains_models(config):
        models = {
            name: stages.train_model(name, model, replay, placement, key, session)
            for name, model in parts.method.models.items()
        }
    if parts.planner is not None:
        stages.evaluate_plans(parts, models, key, session)
        return
    trained = stages.train_agents(parts, models, replay, placement, key, session)
    if config.online.steps:
        online.fine_tune(parts, trained, models, replay, placement, key, session)


def _load(name: str, stop: stopping.StopFlag) -> OfflineDataset:
    with stop.at_once(f"the reading of the dataset {name}"):
        return load_dataset(name)


def _record(config: Config, dataset: OfflineDataset) -> DatasetRecord:
    """What the folder stores of the data.

    Raises:
      UserError: processes read different data.
    """
    if len(set(distributed.exchange(dataset.digest))) > 1:
        raise UserError(
            f"dataset {config.dataset}: the processes read different data; give all of them the "
            "same files"
        )
    return DatasetRecord(config.dataset, dataset.digest, describe(dataset))


def _stored(earlier: finished.Earlier, workdir: pathlib.Path, log: MetricsFile) -> Results | None:
    """The results of a finished run, whose other files are written if they are missing."""
    if earlier.results is not None:
        artifacts.complete(earlier.results, workdir, log)
        artifacts.announce(earlier.results, workdir)
    return earlier.results


@contextlib.contextmanager
def _own(workdir: pathlib.Path, config: Config) -> Iterator[None]:
    """Process 0 locks the folder; the others check that they see it."""
    if distributed.is_first():
        with run_folder.own(
            workdir,
            schema.to_dict(config),
            migrate=schema.migrate,
            reporting=schema.reporting_names(),
        ):
            yield
    else:
        run_folder.check_shared(workdir)
        yield


def _start_recording(workdir: pathlib.Path, config: Config, record: DatasetRecord) -> list[Writer]:
    """Claims the folder for these settings and data; the optional writers of process 0."""
    if not distributed.is_first():
        return []
    values = schema.to_dict(config)
    writers = make_writers(
        workdir,
        tensorboard=config.tensorboard,
        wandb_project=config.wandb_project,
        config=values,
    )
    run_folder.claim(workdir, values, record)
    return writers
