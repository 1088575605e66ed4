"""Judging against a few hundred real simulator steps: what is known must come out."""

import types

import gymnasium as gym
import jax
import numpy as np
import pytest

from configs import common
from dawm_jax.data import dataset as data
from dawm_jax.quality import evaluate as judge
from dawm_jax.types import UserError

ENVIRONMENTS = ("Hopper-v5", "Walker2d-v5", "HalfCheetah-v5")


def rollouts(environment, steps, seed=0, change=lambda model: None, limit=60):
    """Real steps with random actions, as a dataset; episodes are cut after `limit` steps."""
    env = gym.make(environment)
    change(env.unwrapped.model)
    rng = np.random.default_rng(seed)
    rows, ends = [], []
    while len(rows) < steps:
        observation, _ = env.reset(seed=seed + len(rows))
        for step in range(limit):
            action = rng.uniform(env.action_space.low, env.action_space.high).astype(np.float32)
            following, reward, terminated, _, _ = env.step(action)
            rows.append((observation, action, reward, terminated, following))
            observation = following
            if terminated or step == limit - 1:
                ends.append(len(rows) - 1)
                break
    env.close()
    columns = [np.asarray(x) for x in zip(*rows, strict=True)]
    truncated = np.isin(np.arange(len(rows)), ends) & ~columns[3]
    return make_dataset(*columns, truncated, environment=environment)


def make_dataset(
    observation, action, reward, terminated, following, truncated, environment="Hopper-v5"
):
    single = lambda x: np.asarray(x, np.float32)
    return data.OfflineDataset(
        "rollouts",
        single(observation),
        single(action),
        single(reward),
        single(following),
        np.asarray(terminated, bool),
        np.asarray(truncated, bool),
        environment,
    )


def prepare(dataset, environment=None):
    environment = environment or dataset.environment
    return judge.prepare(dataset, environment, held_out_fraction=0.2, seed=0)


@pytest.fixture(scope="module")
def hopper():
    return rollouts("Hopper-v5", 600)


@pytest.fixture(scope="module")
def reference(hopper):
    return prepare(hopper)


def unclipped(dataset):
    """Rows whose velocities the observation does not clip: only they replay exactly."""
    if dataset.environment == "HalfCheetah-v5":
        return np.ones(len(dataset), bool)
    return (np.abs(dataset.observations) < 10.0).all(1)


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_real_steps_replay(environment):
    dataset = rollouts(environment, 200)
    reference = prepare(dataset)
    assert (reference.margin_scale, reference.notes) == (1.0, [])
    assert reference.floor["dynamics_unclipped"]["median"] < 1e-10
    exact = unclipped(dataset)
    assert exact.mean() > 0.2
    # One bound that is reached once cannot be told from an extreme value.
    share = 1.0 - exact[reference.train].mean()
    assert reference.floor["clipped_share"] == pytest.approx(share, abs=0.05)
    judged = judge.Judged(
        judge._rows(dataset, np.flatnonzero(exact)[:, None]), exact[exact][:, None]
    )
    found = judge.measure(judged, reference).numbers
    assert found["dynamics"]["mean"] < 1e-7
    assert found["reward"]["mean"] < 1e-7


def test_errors_grow_by_the_noise_that_is_added(hopper, reference):
    rng = np.random.default_rng(0)
    rows = judge._rows(hopper, np.flatnonzero(unclipped(hopper))[:, None])
    valid = np.ones(rows.reward.shape, bool)
    for noise in (0.1, 0.3):
        draw = lambda like, noise=noise: noise * rng.normal(size=like.shape)
        noisy = rows._replace(
            next_observation=rows.next_observation
            + draw(rows.next_observation) * reference.scales.observation_std,
            reward=rows.reward + draw(rows.reward) * reference.scales.reward_std,
        )
        found = judge.measure(judge.Judged(noisy, valid), reference).numbers
        assert found["dynamics"]["mean"] == pytest.approx(noise**2, rel=0.1)
        assert found["reward"]["mean"] == pytest.approx(noise**2, rel=0.2)


def test_halved_contact_margins_are_recognised(hopper):
    def halve(model):
        model.geom_margin[:] *= 0.5

    reference = prepare(rollouts("Hopper-v5", 600, change=halve))
    assert reference.margin_scale == 0.5
    assert "before MuJoCo 3.5" in reference.notes[0]
    assert reference.floor["dynamics"]["median"] < 1e-10


def test_data_of_other_physics_is_said_to_be(hopper):
    def lighten(model):
        model.opt.gravity[:] *= 0.5

    reference = prepare(rollouts("Hopper-v5", 200, change=lighten))
    assert reference.margin_scale == 1.0
    assert "do not replay" in reference.notes[0]


def test_an_unknown_environment_is_refused(hopper):
    with pytest.raises(UserError, match="Hoper-v5"):
        prepare(hopper, "Hoper-v5")


def test_without_a_simulator_the_rest_is_measured(hopper):
    reference = prepare(hopper, "Pendulum-v1")
    assert reference.margin_scale is None
    assert "no simulator measures" in reference.notes[0]
    found = judge.measure(judge.dataset_windows(hopper, limit=100, seed=0), reference).numbers
    assert "dynamics" not in found
    assert found["distribution"]["ks"]["mean"] < 0.3


def test_the_data_is_like_itself(hopper, reference):
    found = judge.measure(judge.dataset_windows(hopper, limit=10**6, seed=0), reference).numbers
    # Episodes longer than a window are single steps.
    assert found["windows"] is None
    assert "by_step" not in found["dynamics"]
    assert found["transitions"] == found["drawn"] == len(hopper)
    assert found["distribution"]["ks"]["mean"] < 0.05
    assert found["distribution"]["correlation_similarity"] > 0.98
    assert found["novelty"]["judged"]["q50"] == 0.0 < found["novelty"]["held_out"]["q50"]
    change = hopper.next_observations - hopper.observations
    change = change / reference.scales.observation_std
    assert found["step_size"]["judged"] == pytest.approx(np.square(change).mean(), rel=1e-3)
    assert found["step_size"]["real"] == pytest.approx(found["step_size"]["judged"], rel=0.05)
    termination = found["termination"]
    assert termination["rate"] == pytest.approx(hopper.terminations.mean())
    assert termination["all_windows"]["recall"] == termination["all_windows"]["precision"] == 1.0


def test_short_episodes_are_windows():
    dataset = rollouts("Hopper-v5", 60, limit=5)
    judged = judge.dataset_windows(dataset, limit=10**6, seed=0)
    assert judged.valid.shape == (len(dataset.episode_ends), 5)
    assert judged.valid.sum() == len(dataset)
    np.testing.assert_array_equal(judged.rows(judged.valid).reward, dataset.rewards)
    assert judged.drawn.sum() == len(dataset) - len(dataset.episode_ends)
    found = judge.measure(judged, prepare(dataset)).numbers
    assert len(found["dynamics"]["by_step"]["mean"]) == 5
    assert len(judge.dataset_windows(dataset, limit=15, seed=0).valid) == 3


def test_windows_of_their_real_steps_alone_are_refused(reference, hopper):
    rows = judge._rows(hopper, np.arange(3)[:, None] + np.arange(4)[None])
    first = np.eye(4, dtype=bool)[[0] * 3]
    with pytest.raises(UserError, match="every window ends at its first step"):
        judge.measure(judge.Judged(rows, first), reference)


def test_late_terminations_are_found(reference, hopper):
    """Windows around real falls, whose flags are moved one step later."""
    falls = np.flatnonzero(hopper.terminations)
    falls = falls[falls >= 3]
    steps = falls[:, None] + np.arange(-3, 1)[None]
    real = judge._rows(hopper, steps)
    # After the fall the simulator goes on from a fallen state.
    again = jax.tree.map(lambda x: np.concatenate([x, x[:, -1:]], axis=1), real)
    late = again._replace(terminated=np.eye(5)[[4] * len(falls)])
    judged = judge.Judged(late, np.ones((len(falls), 5), bool))
    found = judge.measure(judged, reference).numbers["termination"]
    assert found["all_windows"]["recall"] == 0.0
    assert found["timing"]["steps_late"] == {"1": len(falls)}
    # What comes after the first end is late, not a claim of its own.
    assert found["ending"]["claimed"] == found["all_windows"]["claimed"] == 0


class Rememberer:
    """A run that imagines exactly what its data did, except for scaled rewards."""

    def __init__(self, dataset, reward_scale=1.0):
        self.config = common.get_config("smoke")
        self.config.horizon = 4
        self.config.rollout.target_factor = 1.0
        self.dataset, self.reward_scale = dataset, reward_scale
        ones = lambda size: np.ones(size, np.float32)
        self.statistics = types.SimpleNamespace(
            return_scale=ones(()), return_high=1e6 * ones(()), return_low=ones(())
        )

    def imagine(self, key, observation, action, return_to_go):
        rows = [np.flatnonzero((self.dataset.observations == x).all(1))[0] for x in observation]
        steps, valid = judge._real_windows(self.dataset, np.array(rows), 4)
        found = judge._rows(self.dataset, steps)
        return found._replace(reward=found.reward * self.reward_scale), valid

    def inverse_dynamics(self, observation, next_observation):
        rows = [np.flatnonzero((self.dataset.observations == x).all(1))[0] for x in observation]
        return self.dataset.actions[rows] + 0.1


def test_a_run_that_remembers_its_data(hopper, reference):
    run = Rememberer(hopper, reward_scale=1.1)
    found = judge.measure_run(run, reference, num_windows=300, seed=0).numbers
    assert found["windows"] == 300
    assert found["dynamics"]["median"] < 1e-10
    assert found["distribution"]["ks"]["mean"] < 0.1
    assert found["novelty"]["judged"]["q50"] == 0.0
    # It ends its windows when the data does, and so does the simulator.
    termination = found["termination"]
    assert termination["ending"]["recall"] == termination["ending"]["precision"] == 1.0
    assert termination["ending"]["true"] == termination["timing"]["windows"]
    assert set(termination["timing"]["steps_late"]) == {"0"}
    calibration = found["calibration"]
    assert calibration["generated_mean"] == pytest.approx(1.1 * calibration["real_mean"], rel=1e-5)
    assert calibration["generated_on_real"]["slope"] == pytest.approx(1.1, rel=1e-4)
    assert calibration["target_mean"] == pytest.approx(calibration["own_mean"], rel=1e-5)
    inverse = found["inverse_dynamics"]
    np.testing.assert_allclose(inverse["mse"], 0.01, rtol=1e-4)
    np.testing.assert_allclose(
        inverse["mean_action_mse"], hopper.actions[reference.held_out].var(0), rtol=1e-5
    )
    # Wrong actions lead elsewhere.
    assert inverse["replay_real_pairs"]["median"] > 100 * found["dynamics"]["median"]


def test_returns_are_compared_with_the_real_windows(hopper, reference):
    run = Rememberer(hopper)
    rewards, ends = hopper.rewards.astype(np.float64), hopper.episode_ends
    starts = np.array([0, ends[0] + 1])
    judged, target = judge.imagine(run, reference, starts, jax.random.key(0))
    stops = ends[:2] + 1
    expected = [
        (rewards[a:b] * 0.99 ** np.arange(b - a)).sum() for a, b in zip(starts, stops, strict=True)
    ]
    np.testing.assert_allclose(target, expected, rtol=1e-5)
    np.testing.assert_array_equal(
        judged.transitions.reward, hopper.rewards[starts[:, None] + np.arange(4)]
    )


def test_a_cut_window_has_no_known_return():
    """An episode of three steps that is cut, one that ends, one of six steps that is cut."""
    size = 3 + 3 + 6
    ends = np.isin(np.arange(size), [2, 5, 11])
    terminated = np.arange(size) == 5
    zeros = np.zeros((size, 11))
    dataset = make_dataset(
        zeros, zeros[:, :3], np.ones(size), terminated, zeros, ends & ~terminated
    )
    reference = types.SimpleNamespace(dataset=dataset)
    run = Rememberer(dataset)
    starts = np.array([0, 3, 6, 7, 8, 9])
    judged = judge.Judged(judge._rows(dataset, np.zeros((6, 4), int)), np.ones((6, 4), bool))
    found, arrays = judge._calibration(run, reference, starts, judged, np.arange(6.0))
    assert found["windows"] == 4
    np.testing.assert_array_equal(arrays["target"], [1, 2, 3, 4])
    np.testing.assert_allclose(arrays["real_return"][0], 1 + 0.99 + 0.99**2)


def test_starts_before_terminations(hopper, reference):
    rows = judge._before_terminations(reference, 3)
    falls = np.flatnonzero(hopper.terminations)
    expected = {fall - back for fall in falls for back in range(3)} & set(reference.train.tolist())
    assert set(rows.tolist()) == expected
    assert len(set(rows.tolist())) == len(rows) > 0
