"""A few hundred real simulator steps, and a run that repeats them as its generated windows."""

import dataclasses

import gymnasium as gym
import numpy as np
import pytest

from dawm_jax.data.dataset import OfflineDataset
from dawm_jax.quality.evaluate import evaluate_run
from dawm_jax.quality.generation import GeneratingRun
from dawm_jax.quality.reference import SampleSizes, prepare
from dawm_jax.quality.types import About, QualityReport
from dawm_jax.quality.windows import Windows, dataset_steps, real_window_rows

SETTINGS = {
    "guidance": 1.2,
    "sampling_steps": 2,
    "order": 2,
    "eta": 0.0,
    "temperature": 1.0,
    "target_rule": "amplified",
    "target_factor": 1.2,
}


def make_dataset(
    observation, action, reward, terminated, next_observation, truncated, environment="Hopper-v5"
):
    single = lambda x: np.asarray(x, np.float32)
    return OfflineDataset(
        "rollouts",
        single(observation),
        single(action),
        single(reward),
        single(next_observation),
        np.asarray(terminated, bool),
        np.asarray(truncated, bool),
        environment,
    )


def make_rollouts(environment, steps, change=lambda model: None, limit=60, **kwargs):
    """Real steps with random actions as a dataset; episodes are cut after `limit` steps."""
    env = gym.make(environment, **kwargs)
    change(env.unwrapped.model)
    rng = np.random.default_rng(0)
    rows, ends = [], []
    while len(rows) < steps:
        observation, _ = env.reset(seed=len(rows))
        for step in range(limit):
            action = rng.uniform(env.action_space.low, env.action_space.high).astype(np.float32)
            next_observation, reward, terminated, _, _ = env.step(action)
            rows.append((observation, action, reward, terminated, next_observation))
            observation = next_observation
            if terminated or step == limit - 1:
                ends.append(len(rows) - 1)
                break
    env.close()
    columns = [np.asarray(x) for x in zip(*rows, strict=True)]
    truncated = np.isin(np.arange(len(rows)), ends) & ~columns[3]
    return make_dataset(*columns, truncated, environment=environment)


def repeat_data(dataset, reward_scale=1.0, **changes):
    """A run of horizon 4 whose windows are the data's, except for scaled rewards.

    Its inferred actions are off by 0.1, and its windows aim at the return of their start.
    """

    def rows_of(observations):
        return np.array(
            [np.flatnonzero((dataset.observations == x).all(1))[0] for x in observations]
        )

    def generate(key, observation, action, return_to_go):
        rows, exists = real_window_rows(dataset, rows_of(observation), 4)
        steps = dataset_steps(dataset, rows)
        return Windows(steps._replace(reward=steps.reward * reward_scale), exists)

    def with_settings(settings):
        return GeneratingRun(
            dataset=dataset.name,
            environment=dataset.environment,
            environment_kwargs={},
            held_out_fraction=0.2,
            has_models=True,
            horizon=4,
            discount=0.99,
            timeout_value="zero",
            diffusion_steps=3,
            settings=settings,
            generate=generate,
            target_return=lambda return_to_go: return_to_go,
            inverse_dynamics=lambda observation, _: dataset.actions[rows_of(observation)] + 0.1,
            with_setting=lambda name, value: with_settings({**settings, name: value}),
        )

    return dataclasses.replace(with_settings(SETTINGS), **changes)


def make_reference(dataset, environment=None, **kwargs):
    environment = environment or dataset.environment
    sizes = SampleSizes(classifier_keys=1)
    return prepare(
        dataset,
        environment,
        environment_kwargs=kwargs,
        held_out_fraction=0.2,
        seed=0,
        sizes=sizes,
    )


@pytest.fixture(scope="session", name="rollouts")
def _rollouts():
    return make_rollouts


@pytest.fixture(scope="session", name="dataset_of")
def _dataset_of():
    return make_dataset


@pytest.fixture(scope="session", name="prepared")
def _prepared():
    return make_reference


@pytest.fixture(scope="session", name="run_on")
def _run_on():
    return repeat_data


@pytest.fixture(scope="session")
def hopper():
    return make_rollouts("Hopper-v5", 600)


@pytest.fixture(scope="session")
def reference(hopper):
    return make_reference(hopper)


@pytest.fixture(scope="session")
def report(hopper, reference):
    """The report of a run that repeats its data with rewards ten per cent too large."""
    run = repeat_data(hopper, reward_scale=1.1)
    evaluation = evaluate_run(run, reference, num_windows=300, seed=0)
    about = About(
        synthetic="a run",
        reference="rollouts",
        environment="Hopper-v5",
        commit=None,
        versions={"jax": "0"},
        seed=0,
        notes=("a note",),
        settings=SETTINGS,
    )
    return QualityReport(about, real=reference.measures, synthetic=evaluation.measures)
