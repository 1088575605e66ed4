"""Random files of whole episodes against a reader of plain loops, and random damage to them.

A file is read as the loops read it, or it is refused in one line.
"""

import types

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dawm_jax.data import replay as replaying
from dawm_jax.data.dataset import OfflineDataset
from dawm_jax.data.flat_arrays import from_mapping
from dawm_jax.data.load import load_dataset
from dawm_jax.data.minari_source import from_episodes
from dawm_jax.types import UserError

HORIZON, DISCOUNT = 3, 0.9
MOST_EPISODES, MOST_STEPS = 5, 6
MOST_ROWS = MOST_EPISODES * MOST_STEPS
# The same examples every time; the fixture of this folder is made once for all of them.
FUZZ = settings(
    max_examples=100,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

# --- random episodes ------------------------------------------------------------------------


@st.composite
def episodes(draw):
    """Episodes as a simulator makes them: T + 1 states, T of everything else, and one end."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    state_size, action_size = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    precision = draw(st.sampled_from([np.float32, np.float64]))
    found = []
    for _ in range(draw(st.integers(1, MOST_EPISODES))):
        steps = draw(st.integers(1, MOST_STEPS))
        found.append(
            {
                "observations": rng.normal(size=(steps + 1, state_size)).astype(precision),
                "actions": rng.uniform(-1, 1, (steps, action_size)).astype(precision),
                "rewards": rng.normal(size=steps).astype(precision),
                "terminated": draw(st.booleans()),
            }
        )
    return found


# --- the plain-loop reader ------------------------------------------------------------------


def plain_steps(found, *, with_successors=True):
    """Rows of dictionaries; without stored successors a cut episode loses its last step."""
    rows = []
    for episode in found:
        steps = len(episode["rewards"])
        kept = steps if with_successors or episode["terminated"] else steps - 1
        for t in range(kept):
            states = episode["observations"].astype(np.float32)
            successor = states[t + 1]
            if not with_successors and episode["terminated"] and t == steps - 1:
                successor = 2 * states[t] - states[max(t - 1, 0)]
            rows.append(
                {
                    "observation": states[t],
                    "action": episode["actions"][t].astype(np.float32),
                    "reward": np.float32(episode["rewards"][t]),
                    "next_observation": successor,
                    "end": t == kept - 1,
                    "terminated": t == kept - 1 and episode["terminated"],
                }
            )
    return rows


def plain_return_to_go(rows, index):
    total, factor = 0.0, 1.0
    for row in rows[index:]:
        total += factor * float(row["reward"])
        factor *= DISCOUNT
        if row["end"]:
            return total
    raise AssertionError("an episode without an end")


def plain_window(rows, index):
    """States [H + 1, S], rewards [H] and mask [H]: the last state repeats past the end."""
    states, rewards, mask = [rows[index]["observation"]], [], []
    for _ in range(HORIZON):
        if mask and (mask[-1] == 0 or rows[index - 1]["end"]):
            states.append(states[-1])
            rewards.append(0.0)
            mask.append(0)
            continue
        states.append(rows[index]["next_observation"])
        rewards.append(float(rows[index]["reward"]))
        mask.append(1)
        index += 1
    return np.stack(states), np.array(rewards), np.array(mask)


def assert_equal(dataset: OfflineDataset, rows):
    assert len(dataset) == len(rows)
    for field, name in (
        ("observations", "observation"),
        ("actions", "action"),
        ("rewards", "reward"),
        ("next_observations", "next_observation"),
    ):
        expected = np.stack([row[name] for row in rows])
        np.testing.assert_array_equal(getattr(dataset, field), expected, err_msg=field)
    ends = [i for i, row in enumerate(rows) if row["end"]]
    assert dataset.episode_ends.tolist() == ends
    assert dataset.terminations.tolist() == [row["terminated"] for row in rows]


@jax.jit
def _gather_all(replay):
    return replaying.gather_windows(replay, jnp.arange(MOST_ROWS), horizon=HORIZON)


def gather(replay):
    """The windows of all rows; rows of zeros fill the replay, so that few shapes are compiled."""
    fill = lambda x: np.pad(x, [(0, MOST_ROWS - len(x))] + [(0, 0)] * (x.ndim - 1))
    filled = jax.tree.map(fill, jax.device_get(replay)).replace(num_train=0)
    return jax.tree.map(lambda x: x[: len(replay)], jax.device_get(_gather_all(filled)))


def assert_windows(dataset: OfflineDataset, rows):
    """Windows and returns-to-go of the replay, whose held-out episodes are moved to the end."""
    size = dataset.actions.shape[1]
    replay, normalizer = replaying.build(
        dataset,
        action_low=-np.ones(size, np.float32),
        action_high=np.ones(size, np.float32),
        discount=DISCOUNT,
        return_scale=1.0,
        timeout_value="zero",
        held_out_fraction=0.4,
    )
    order, num_train = replaying.split_episodes(dataset.episode_ends, 0.4)
    assert replay.num_train == num_train
    windows = gather(replay)
    mean, std = np.asarray(normalizer.observation_mean), np.asarray(normalizer.observation_std)
    for place, row in enumerate(order):
        states, rewards, mask = plain_window(rows, row)
        np.testing.assert_allclose(windows.states[place] * std + mean, states, atol=2e-5)
        np.testing.assert_allclose(windows.rewards[place], rewards, atol=1e-6)
        np.testing.assert_array_equal(windows.mask[place], mask)
        expected = plain_return_to_go(rows, row)
        np.testing.assert_allclose(replay.return_to_go[place], expected, atol=1e-5)


# --- flat files -----------------------------------------------------------------------------


def flat(found, *, with_timeouts, with_successors):
    join = lambda pick: np.concatenate([pick(episode) for episode in found])
    last = lambda episode: np.arange(len(episode["rewards"])) == len(episode["rewards"]) - 1
    arrays = {
        "observations": join(lambda e: e["observations"][:-1]),
        "actions": join(lambda e: e["actions"]),
        "rewards": join(lambda e: e["rewards"]),
        "terminals": join(lambda e: last(e) & e["terminated"]),
    }
    if with_timeouts:
        arrays["timeouts"] = join(lambda e: last(e) & (not e["terminated"]))
    if with_successors:
        arrays["next_observations"] = join(lambda e: e["observations"][1:])
    return arrays


def read(load):
    """The dataset, or None if it was refused in one line; anything else fails the test."""
    try:
        return load()
    except UserError as error:
        assert str(error) and "\n" not in str(error)
        return None


def must_be_refused(rows):
    """No step is left, or no episode has two."""
    return all(row["end"] for row in rows)


@FUZZ
@given(found=episodes(), marks=st.sampled_from(["timeouts", "next_observations", "both"]))
def test_flat_files_are_read_as_plain_loops_read_them(tmp_path, found, marks):
    arrays = flat(
        found, with_timeouts=marks != "next_observations", with_successors=marks != "timeouts"
    )
    path = tmp_path / "flat.hdf5"
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array
    dataset = read(lambda: load_dataset(str(path), cache=False))
    rows = plain_steps(found, with_successors=marks != "timeouts")
    assert (dataset is None) == must_be_refused(rows)
    if dataset is not None:
        assert_equal(dataset, rows)
        assert_windows(dataset, rows)


@FUZZ
@given(found=episodes())
def test_minari_episodes_are_read_as_plain_loops_read_them(found):
    given_episodes = []
    for episode in found:
        last = np.arange(len(episode["rewards"])) == len(episode["rewards"]) - 1
        ended = {"terminations": last & episode["terminated"], "truncations": np.zeros_like(last)}
        fields = {name: x for name, x in episode.items() if name != "terminated"}
        given_episodes.append(types.SimpleNamespace(**fields, **ended))
    dataset = read(lambda: from_episodes("test/fuzz-v0", given_episodes))
    rows = plain_steps(found)
    assert (dataset is None) == must_be_refused(rows)
    if dataset is not None:
        assert_equal(dataset, rows)
        assert_windows(dataset, rows)


# --- damage ---------------------------------------------------------------------------------


DAMAGE = {
    "cut": lambda array, rng: array[: rng.integers(len(array))],
    "scalar": lambda array, rng: array.reshape(-1)[0],
    "axis": lambda array, rng: array[..., None],
    "flat": lambda array, rng: array.reshape(-1),
    "transposed": lambda array, rng: array.T,
    "no columns": lambda array, rng: array.reshape(len(array), -1)[:, :0],
    "text": lambda array, rng: array.astype("S8"),
    "complex": lambda array, rng: array.astype(complex),
    "whole": lambda array, rng: array.astype(np.int64),
    "half": lambda array, rng: array + 0.5,
    "huge": lambda array, rng: array * 1e30 + 1e30,
    "nan": lambda array, rng: np.where(rng.uniform(size=array.shape) < 0.3, np.nan, array),
    "reversed": lambda array, rng: array[::-1],
    "objects": lambda array, rng: array.astype(object),
    "half precision": lambda array, rng: array.astype(np.float16),
}


@FUZZ
@given(
    found=episodes(),
    field=st.sampled_from(
        ["observations", "actions", "rewards", "terminals", "timeouts", "next_observations"]
    ),
    damage=st.sampled_from(sorted(DAMAGE)),
    seed=st.integers(0, 2**16),
)
@pytest.mark.filterwarnings("error")
def test_damaged_arrays_are_whole_episodes_or_one_line(found, field, damage, seed):
    arrays = flat(found, with_timeouts=True, with_successors=True)
    damaged = DAMAGE[damage](np.asarray(arrays[field], np.float64), np.random.default_rng(seed))
    dataset = read(lambda: from_mapping("fuzz", {**arrays, field: damaged}))
    if dataset is None:
        return
    assert dataset.episode_ends[-1] == len(dataset) - 1
    assert not (dataset.terminations & dataset.truncations).any()
    for name in ("observations", "actions", "rewards", "next_observations"):
        array = getattr(dataset, name)
        assert array.dtype == np.float32 and np.isfinite(array).all()
    # Within an episode the successor is the next row, up to the precision of the arrays.
    inside = np.setdiff1d(np.arange(len(dataset)), dataset.episode_ends)
    np.testing.assert_allclose(
        dataset.next_observations[inside], dataset.observations[inside + 1], atol=1e-2
    )
