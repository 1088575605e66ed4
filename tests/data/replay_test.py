"""Returns-to-go and what is gathered against plain loops; the normaliser against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dawm_jax.data import normalizer as normalizer_lib
from dawm_jax.data import replay as replay_lib
from dawm_jax.data.dataset import OfflineDataset
from dawm_jax.types import Returns, UserError

# Episodes of five kinds: terminated and cut ones, a single step, longer than any horizon.
LENGTHS = (4, 1, 9, 3, 2, 6, 5)
TERMINATED = (True, True, False, True, False, False, True)
LOW, HIGH = np.array([-1.0, 0.0], np.float32), np.array([3.0, 0.5], np.float32)
OPTIONS = {
    "action_low": LOW,
    "action_high": HIGH,
    "discount": 0.9,
    "return_scale": 0.0,
    "timeout_value": "zero",
    "held_out_fraction": 0.0,
}


def _dataset(**fields):
    rng = np.random.default_rng(0)
    steps, ends = sum(LENGTHS), np.cumsum(LENGTHS) - 1
    terminations, truncations = np.zeros((2, steps), bool)
    terminations[ends] = TERMINATED
    truncations[ends] = ~np.array(TERMINATED)
    observations = rng.normal(2.0, 3.0, (steps, 3)).astype(np.float32)
    next_observations = observations + rng.normal(size=(steps, 3)).astype(np.float32)
    observations[:, 2] = next_observations[:, 2] = 7.0  # a constant dimension
    arrays = {
        "observations": observations,
        "next_observations": next_observations,
        "actions": rng.uniform(LOW, HIGH, (steps, 2)).astype(np.float32),
        "rewards": rng.normal(0.5, 1.0, steps).astype(np.float32),
        "terminations": terminations,
        "truncations": truncations,
    }
    return OfflineDataset(name="test", **arrays | fields)


def _episodes(dataset):
    """(first row, last row) of every episode, from the flags alone."""
    first = 0
    for row in range(len(dataset)):
        if dataset.terminations[row] or dataset.truncations[row]:
            yield first, row
            first = row + 1


def _build(dataset=None, **options):
    return replay_lib.build(dataset or _dataset(), **OPTIONS | options)


# --- return-to-go ---------------------------------------------------------------------------


@pytest.mark.parametrize("timeout_value", ["zero", "average"])
@pytest.mark.parametrize("discount", [0.0, 0.9, 0.99])
def test_returns_to_go_equal_a_double_loop(discount, timeout_value):
    dataset = _dataset()
    rewards = dataset.rewards.astype(float)
    expected = np.zeros(len(dataset))
    for first, last in _episodes(dataset):
        for row in range(first, last + 1):
            for later in range(row, last + 1):
                expected[row] += discount ** (later - row) * rewards[later]
            if timeout_value == "average" and dataset.truncations[last]:
                average = rewards[first : last + 1].mean()
                # The geometric series of what follows, summed term by term.
                steps = np.arange(last + 1 - row, 5000)
                expected[row] += (discount**steps * average).sum()
    actual = replay_lib.returns_to_go(
        dataset.rewards,
        dataset.terminations,
        dataset.truncations,
        discount=discount,
        timeout_value=timeout_value,
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-10)  # float64; .99^5000 = 1e-22


def test_timeout_value_changes_cut_episodes_only():
    dataset = _dataset()
    arrays = dataset.rewards, dataset.terminations, dataset.truncations
    zero, average = (
        replay_lib.returns_to_go(*arrays, discount=0.9, timeout_value=value)
        for value in ("zero", "average")
    )
    cut = np.repeat(~np.array(TERMINATED), LENGTHS)
    np.testing.assert_array_equal(zero != average, cut)


@pytest.mark.parametrize("return_scale", [0.0, 4.0])
def test_return_scale(return_scale):
    """Derived, the largest magnitude of the training data becomes 1."""
    dataset = _dataset()
    replay, normalizer = _build(dataset, return_scale=return_scale)
    raw = replay_lib.returns_to_go(
        dataset.rewards,
        dataset.terminations,
        dataset.truncations,
        discount=0.9,
        timeout_value="zero",
    )
    scale = return_scale or np.abs(raw).max()
    np.testing.assert_allclose(normalizer.return_scale, scale, rtol=1e-6)
    np.testing.assert_allclose(replay.return_to_go, raw / scale, rtol=1e-5)
    np.testing.assert_allclose(normalizer.return_low, raw.min() / scale, rtol=1e-5)
    np.testing.assert_allclose(normalizer.return_high, raw.max() / scale, rtol=1e-5)


def test_rewards_all_zero_leave_a_usable_scale():
    replay, normalizer = _build(_dataset(rewards=np.zeros(sum(LENGTHS), np.float32)))
    assert normalizer.return_scale == 1.0
    np.testing.assert_array_equal(replay.return_to_go, 0.0)
    assert normalizer.reward_std > 0.0 and normalizer.return_range > 0.0


# --- windows --------------------------------------------------------------------------------


@pytest.mark.parametrize("horizon", [1, 3, 7])
def test_windows_equal_a_plain_loop_over_every_start(horizon):
    """They never leave their episode, repeat its last state, and mask what is not there."""
    dataset = _dataset()
    replay, normalizer = _build(dataset)
    mean, std = np.asarray(normalizer.observation_mean), np.asarray(normalizer.observation_std)
    states = (dataset.observations - mean) / std
    next_states = (dataset.next_observations - mean) / std
    expected = {"states": [], "rewards": [], "terminated": [], "mask": []}
    for first, last in _episodes(dataset):
        for start in range(first, last + 1):
            window = {"states": [states[start]], "rewards": [], "terminated": [], "mask": []}
            for row in range(start, start + horizon):
                inside = row <= last
                row = min(row, last)
                window["states"].append(next_states[row])
                window["rewards"].append(dataset.rewards[row] if inside else 0.0)
                window["terminated"].append(float(dataset.terminations[row]))
                window["mask"].append(float(inside))
            for key, value in window.items():
                expected[key].append(value)
    actual = replay_lib.gather_windows(replay, jnp.arange(len(dataset)), horizon=horizon)
    for key, value in expected.items():
        np.testing.assert_allclose(getattr(actual, key), value, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(actual.action, replay.transitions.action)
    np.testing.assert_array_equal(actual.return_to_go, replay.return_to_go)
    # Every step's action, the last one repeated past the episode's end.
    ends = np.flatnonzero(dataset.terminations | dataset.truncations)
    for start in range(len(dataset)):
        steps = np.minimum(start + np.arange(horizon), ends[ends >= start][0])
        np.testing.assert_array_equal(actual.actions[start], replay.transitions.action[steps])


def test_windows_of_chosen_starts_are_those_rows():
    replay, _ = _build(held_out_fraction=0.3)
    starts = jnp.array([5, 0, 29, 5])
    every = replay_lib.gather_windows(replay, jnp.arange(len(replay)), horizon=3)
    chosen = replay_lib.gather_windows(replay, starts, horizon=3)
    for whole, part in zip(every, chosen, strict=True):
        np.testing.assert_array_equal(np.asarray(whole)[starts], part)
    condition = replay_lib.gather_conditions(replay, starts)
    np.testing.assert_array_equal(condition.state, chosen.states[:, 0])
    np.testing.assert_array_equal(condition.action, chosen.action)
    np.testing.assert_array_equal(condition.return_to_go, chosen.return_to_go)
    transition = replay_lib.gather_transitions(replay, starts)
    np.testing.assert_array_equal(transition.observation, chosen.states[:, 0])
    np.testing.assert_array_equal(transition.next_observation, chosen.states[:, 1])
    np.testing.assert_array_equal(transition.reward, chosen.rewards[:, 0])
    np.testing.assert_array_equal(transition.terminated, chosen.terminated[:, 0])


# --- the next action ------------------------------------------------------------------------


@pytest.mark.parametrize("fraction", [0.0, 0.3])
def test_next_actions_equal_a_loop_over_the_dataset(fraction):
    """The action of the episode's next step; a last step repeats its own and is not known."""
    dataset = _dataset()
    replay, normalizer = _build(dataset, held_out_fraction=fraction)
    scaled = (dataset.actions - [1.0, 0.25]) / [2.0, 0.25]  # centres, half ranges of the bounds
    next_action, known = np.zeros_like(scaled), np.zeros(len(dataset))
    for first, last in _episodes(dataset):
        for row in range(first, last + 1):
            next_action[row] = scaled[row + 1] if row < last else scaled[row]
            known[row] = row < last
    raw_rows = _row_of(dataset, replay, normalizer)
    got = replay_lib.gather_transitions(replay, jnp.arange(len(replay)), next_action=True)
    np.testing.assert_allclose(got.next_action, next_action[raw_rows], atol=1e-6)
    np.testing.assert_array_equal(got.next_action_known, known[raw_rows])
    assert 0 < known.sum() < len(known) - 1


def test_next_actions_are_filled_only_when_asked_for():
    replay, _ = _build()
    rows = jnp.array([[3, 0], [12, 3]])
    plain = replay_lib.gather_transitions(replay, rows)
    assert plain.next_action is None and plain.next_action_known is None
    asked = replay_lib.gather_transitions(replay, rows, next_action=True)
    assert asked.next_action.shape == (2, 2, 2) and asked.next_action_known.shape == (2, 2)
    assert asked.next_action_known.dtype == jnp.float32
    for name in ("observation", "action", "reward", "terminated", "next_observation"):
        np.testing.assert_array_equal(getattr(plain, name), getattr(asked, name))


# --- returns over several steps ---------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 3, 50])
def test_returns_equal_a_loop_over_the_episodes(steps):
    """The return ends with the episode, where only an environment's own end is a termination."""
    gamma = 0.9
    replay, _ = _build()
    rows = jnp.arange(len(replay)).reshape(-1, 1)
    got = replay_lib.gather_returns(replay, rows, Returns(steps, gamma), next_action=True)
    got = jax.tree.map(lambda leaf: np.asarray(leaf)[:, 0], got)
    plain = replay_lib.gather_transitions(replay, rows[:, 0], next_action=True)
    plain = jax.tree.map(np.asarray, plain)
    np.testing.assert_array_equal(got.observation, plain.observation)
    np.testing.assert_array_equal(got.action, plain.action)
    ends, cut = np.asarray(replay.episode_end), 0
    for row in range(len(replay)):
        last = min(row + steps - 1, ends[row])
        cut += last < row + steps - 1
        rewards = plain.reward[row : last + 1].astype(np.float64)
        wanted = (gamma ** np.arange(len(rewards)) * rewards).sum()
        np.testing.assert_allclose(got.reward[row], wanted, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(got.discount[row], gamma ** len(rewards), rtol=1e-6)
        for name in ("terminated", "next_observation", "next_action", "next_action_known"):
            np.testing.assert_array_equal(getattr(got, name)[row], getattr(plain, name)[last])
    assert (cut > 0) == (steps > 1)
    assert got.reward.dtype == got.discount.dtype == np.float32


# --- normalizer and the split ---------------------------------------------------------------


def _row_of(dataset, replay, normalizer):
    """Which raw row each row of the replay is, by its observation."""
    raw = normalizer_lib.denormalise_observation(normalizer, replay.transitions.observation)
    distance = np.abs(np.asarray(raw)[:, None] - dataset.observations[None]).max(-1)
    assert distance.min(1).max() < 1e-4  # float32 rounding of numbers of order 10
    return distance.argmin(1)


# ceil(fraction * 7) episodes are held out, but one always stays for training.
@pytest.mark.parametrize(("fraction", "held_out"), [(0.0, 0), (0.1, 1), (0.3, 3), (0.99, 6)])
def test_split_keeps_episodes_whole_and_statistics_see_training_only(fraction, held_out):
    dataset = _dataset()
    replay, normalizer = _build(dataset, held_out_fraction=fraction)
    rows = _row_of(dataset, replay, normalizer)
    assert sorted(rows) == list(range(len(dataset)))
    episode = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
    train, test = rows[: replay.num_train], rows[replay.num_train :]
    assert len(set(episode[test])) == held_out
    assert not set(episode[train]) & set(episode[test])
    # Steps of an episode stay neighbours, in order, and know where it ends.
    ends = [np.flatnonzero(episode[rows] == episode[row]).max() for row in rows]
    np.testing.assert_array_equal(replay.episode_end, ends)
    for number in range(len(LENGTHS)):
        rows_of_episode = rows[episode[rows] == number]
        np.testing.assert_array_equal(rows_of_episode, np.flatnonzero(episode == number))

    observations, successors = dataset.observations[train], dataset.next_observations[train]
    rewards = dataset.rewards[train]
    close = lambda actual, expected: np.testing.assert_allclose(actual, expected, rtol=1e-5)
    close(normalizer.observation_mean, observations.mean(0))
    std = observations.std(0, dtype=float) + 1e-3
    both = np.concatenate([observations, successors])
    std[[len(set(column)) == 1 for column in both.T]] = 1.0  # constant dimensions
    close(normalizer.observation_std, std)
    close(normalizer.observation_low, np.minimum(observations, successors).min(0))
    close(normalizer.observation_high, np.maximum(observations, successors).max(0))
    close(normalizer.reward_mean, rewards.mean())
    close(normalizer.reward_std, rewards.std(dtype=float) + 1e-3)
    close((normalizer.reward_low, normalizer.reward_high), (rewards.min(), rewards.max()))
    close(np.abs(replay.return_to_go[: replay.num_train]).max(), 1.0)
    returns = [dataset.rewards[first : last + 1].sum() for first, last in _episodes(dataset)]
    close(normalizer.return_range, np.ptp(returns))


def test_split_belongs_to_the_dataset():
    first, second = (_build(held_out_fraction=0.3)[0] for _ in range(2))
    np.testing.assert_array_equal(first.episode_end, second.episode_end)
    np.testing.assert_array_equal(first.transitions.reward, second.transitions.reward)


def test_replay_holds_normalised_states_and_raw_rewards():
    dataset = _dataset()
    replay, _ = _build(dataset)
    mean, std = dataset.observations.mean(0), dataset.observations.std(0, dtype=float) + 1e-3
    std[2] = 1.0  # the constant dimension
    held = replay.transitions
    np.testing.assert_allclose(held.observation, (dataset.observations - mean) / std, atol=1e-5)
    np.testing.assert_allclose(
        held.next_observation, (dataset.next_observations - mean) / std, rtol=1e-5, atol=1e-5
    )
    np.testing.assert_array_equal(held.reward, dataset.rewards)
    np.testing.assert_array_equal(held.terminated, dataset.terminations)
    assert len(replay) == replay.num_train == len(dataset)
    assert (replay.state_size, replay.action_size) == (3, 2)


def test_normaliser_inverts_and_survives_constant_dimensions():
    dataset = _dataset()
    replay, normalizer = _build(dataset)
    assert np.all(np.isfinite(replay.transitions.observation))
    np.testing.assert_allclose(replay.transitions.observation[:, 2], 0.0, atol=1e-6)
    for raw in (dataset.observations, dataset.observations[0], dataset.observations[None]):
        normal = normalizer_lib.normalise_observation(normalizer, jnp.asarray(raw))
        assert normal.shape == raw.shape
        back = normalizer_lib.denormalise_observation(normalizer, normal)
        np.testing.assert_allclose(back, raw, atol=1e-5)  # float32 rounding of order 10
    np.testing.assert_allclose(
        normalizer_lib.normalise_observation(normalizer, jnp.asarray(dataset.observations)),
        replay.transitions.observation,
        atol=1e-6,
    )


def test_actions_are_scaled_from_asymmetric_bounds():
    dataset = _dataset()
    replay, normalizer = _build(dataset)
    # [-1, 3] and [0, .5] have centres 1 and .25, half ranges 2 and .25.
    expected = (dataset.actions - [1.0, 0.25]) / [2.0, 0.25]
    np.testing.assert_allclose(replay.transitions.action, expected, atol=1e-6)
    back = normalizer_lib.denormalise_action(normalizer, replay.transitions.action)
    np.testing.assert_allclose(back, dataset.actions, atol=1e-6)
    corners = normalizer_lib.denormalise_action(normalizer, jnp.array([[-1.0, -1.0], [1.0, 1.0]]))
    np.testing.assert_allclose(corners, [LOW, HIGH], atol=1e-6)


def test_rounding_beyond_the_bounds_is_clipped():
    dataset = _dataset()
    # .001 half ranges are tolerated: .0005 of them here.
    dataset.actions[0] = HIGH + 0.0005 * (HIGH - LOW) / 2
    replay, _ = _build(dataset)
    np.testing.assert_array_equal(replay.transitions.action[0], [1.0, 1.0])


# --- mistakes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timeout_value": "mean"}, "timeout_value: expected 'zero' or 'average', got 'mean'"),
        ({"held_out_fraction": 1.0}, r"held_out_fraction: expected \[0, 1\), got 1.0"),
        ({"held_out_fraction": -0.1}, r"held_out_fraction: expected \[0, 1\), got -0.1"),
        (
            {"action_high": np.array([1.0, 0.5], np.float32)},
            "dataset test: actions exceed the environment's bounds by",
        ),
        (
            {"action_low": np.zeros(3), "action_high": np.ones(3)},
            "dataset test has 2 action dimensions, the environment 3",
        ),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(UserError, match=message):
        _build(**options)


# --- starts of windows --------------------------------------------------------------------


def test_weighted_starts_follow_lengths_and_returns():
    """Three episodes of returns 2, 6 and 30; the median is 6, the median distance from it 4."""
    rewards = np.array([1, 1, 2, 2, 2, 30], np.float32)
    ends = np.array([0, 1, 0, 0, 1, 1], bool)
    starts = replay_lib.weighted_starts(rewards, ends, weight=0.5)
    np.testing.assert_array_equal(starts.first, [0, 2, 5])
    np.testing.assert_array_equal(starts.length, [2, 3, 1])
    mass = np.array([2 * np.exp(-0.5), 3 * np.exp(0.0), 1 * np.exp(3.0)])
    np.testing.assert_allclose(starts.cumulative, np.cumsum(mass) / mass.sum(), rtol=1e-6)
    # The exponent 6 of the last episode is cut to 5.
    cut = replay_lib.weighted_starts(rewards, ends, weight=1.0).cumulative
    mass = np.array([2 * np.exp(-1.0), 3 * np.exp(0.0), 1 * np.exp(5.0)])
    np.testing.assert_allclose(cut, np.cumsum(mass) / mass.sum(), rtol=1e-6)


def test_starts_are_drawn_with_these_probabilities():
    rewards = np.array([1, 1, 2, 2, 2, 30], np.float32)
    ends = np.array([0, 1, 0, 0, 1, 1], bool)
    starts = replay_lib.weighted_starts(rewards, ends, weight=0.25)
    draws = np.asarray(starts.draw(jax.random.key(0), 60_000))
    episode = np.exp([-0.25, 0.0, 1.5])[[0, 0, 1, 1, 1, 2]]
    expected = episode / episode.sum()
    found = np.bincount(draws, minlength=6) / len(draws)
    deviation = np.sqrt(expected * (1 - expected) / len(draws))
    np.testing.assert_array_less(np.abs(found - expected), 5 * deviation)
    # Uniform draws would be far outside.
    assert np.abs(1 / 6 - expected).min() > 5 * deviation.max()


def test_equal_returns_and_a_largest_share_are_no_trouble():
    starts = replay_lib.weighted_starts(
        np.ones(4, np.float32), np.array([0, 1, 0, 1], bool), weight=1.0
    )
    np.testing.assert_array_equal(starts.cumulative, [0.5, 1.0])
    draws = starts.draw(jax.random.key(1), 1_000)
    assert set(np.asarray(draws).tolist()) == {0, 1, 2, 3}
