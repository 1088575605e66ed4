"""The Minari writer: what is written is read back, and nothing is left half done."""

import itertools
import os
import pathlib

import gymnasium as gym
import h5py
import minari
import numpy as np
import pytest
from minari.data_collector import EpisodeBuffer

from dawm_jax.data import minari_writer
from dawm_jax.data.load import load_dataset
from dawm_jax.data.minari_writer import DatasetWriter
from dawm_jax.types import UserError

ID = "local/hopper/tiny-v0"


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def episodes():
    """Random actions in the simulator: some fall, one is cut."""
    env = gym.make("Hopper-v5", max_episode_steps=30)
    env.action_space.seed(0)
    found = []
    for seed in range(5):
        observations, steps = [env.reset(seed=seed)[0]], []
        for _ in itertools.count():
            action = env.action_space.sample()
            observation, reward, terminated, truncated, _ = env.step(action)
            observations.append(observation)
            steps.append((action, reward, terminated, truncated))
            if terminated or truncated:
                break
        found.append((np.stack(observations), *map(np.array, zip(*steps, strict=True))))
    env.close()
    ends = [(episode[3][-1], episode[4][-1]) for episode in found]
    assert (True, False) in ends and (False, True) in ends
    return found


def writer(dataset_id=ID, **options):
    return DatasetWriter(dataset_id, **{"environment": "Hopper-v5", "metadata": {}, **options})


def write(episodes, dataset_id=ID, **options):
    with writer(dataset_id, **options) as out:
        for episode in episodes:
            out.add(*episode)


@pytest.mark.parametrize("when", ["write", "close"])
def test_a_full_disk_is_told_in_one_line(root, episodes, monkeypatch, when):
    """h5py raises errors without a file's name, some of them no OSError."""

    def full(*args):
        raise RuntimeError("Can't decrement id ref count (unable to extend file properly)")

    where = minari_writer._EpisodeFile if when == "write" else h5py.File
    with monkeypatch.context() as patch:
        patch.setattr(where, when, full)
        with pytest.raises(UserError, match=r"tiny-v0 cannot be written .*make room") as error:
            write(episodes)
    assert "\n" not in str(error.value)
    assert not list(root.rglob("main_data.hdf5"))
    write(episodes)


def contents(folder):
    """Every file below, and hidden folders; Minari's descriptions of namespaces aside."""
    paths = (str(path.relative_to(folder)) for path in folder.rglob("*"))
    return sorted(
        path
        for path in paths
        if (folder / path).is_file() and not path.endswith("namespace_metadata.json")
    )


def assert_read_back(dataset_id, episodes, precision):
    dataset = minari.load_dataset(dataset_id)
    read = list(dataset.iterate_episodes())
    assert [episode.id for episode in read] == list(range(len(episodes)))
    for got, expected in zip(read, episodes, strict=True):
        arrays = (got.observations, got.actions, got.rewards, got.terminations, got.truncations)
        for array, wanted in zip(arrays, expected, strict=True):
            np.testing.assert_array_equal(array, wanted)
        assert got.observations.dtype == precision
        assert got.terminations.dtype == got.truncations.dtype == bool
        assert all(map(dataset.observation_space.contains, got.observations))
        assert all(map(dataset.action_space.contains, got.actions))
    return dataset


# --- what is read back --------------------------------------------------------------------


@pytest.mark.parametrize("precision", [np.float32, np.float64])
def test_minari_reads_what_was_added(episodes, precision):
    given = [(observations.astype(precision), *rest) for observations, *rest in episodes]
    write(given)
    dataset = assert_read_back(ID, given, precision)
    steps = sum(len(rewards) for _, _, rewards, *_ in given)
    assert (dataset.total_episodes, dataset.total_steps) == (len(given), steps)
    assert dataset.observation_space == gym.spaces.Box(-np.inf, np.inf, (11,), precision)
    assert dataset.env_spec == gym.spec("Hopper-v5")
    # A part of it counts its steps by the episodes' own attributes.
    part = dataset.filter_episodes(lambda episode: episode.terminations[-1])
    assert part.total_steps == sum(len(e[2]) for e in given if e[3][-1])


def test_metadata(root, episodes):
    metadata = {"description": "d", "author": ["a", "b"], "made_by": {"steps": [1, 2]}}
    with writer(metadata=metadata) as out:
        out.add(*episodes[0])
        metadata["made_by"]["speed"] = 3.0  # known only at the end
    dataset = minari.load_dataset(ID)
    found = dataset.storage.metadata
    assert found["description"] == "d" and found["author"] == {"a", "b"}
    assert found["made_by"] == {"steps": [1, 2], "speed": 3.0}
    assert found["dataset_id"] == ID and found["minari_version"] == minari.__version__
    file = root / ID / "data" / "main_data.hdf5"
    assert found["dataset_size"] == pytest.approx(file.stat().st_size / 1e6, abs=0.06)
    assert f"gymnasium=={gym.__version__}" in found["requirements"]
    # D4RL's references of Hopper.
    score = minari.get_normalized_score(dataset, np.array([-20.272305, 3234.3]))
    np.testing.assert_allclose(score, [0.0, 1.0], atol=1e-12)
    env = dataset.recover_environment()
    assert env.spec.id == "Hopper-v5"
    env.close()
    assert list(minari.list_local_datasets()) == [ID]


def test_a_task_without_references_has_no_scores():
    episode = (np.zeros((3, 3)), np.zeros((2, 1)), np.zeros(2), [False, False], [False, True])
    write([episode], environment="Pendulum-v1")
    assert "ref_max_score" not in minari.load_dataset(ID).storage.metadata


def test_keys_are_in_the_order_of_the_episodes(root, episodes):
    write(episodes[:1] * 12)  # episode_10 would come before episode_2
    with h5py.File(root / ID / "data" / "main_data.hdf5") as file:
        assert list(file) == [f"episode_{i}" for i in range(12)]


def test_this_program_reads_it(episodes):
    write(episodes)
    dataset = load_dataset(ID, cache=False)
    assert dataset.environment == "Hopper-v5"
    join = lambda pick: np.concatenate([pick(episode) for episode in episodes])
    for field, expected in (
        ("observations", join(lambda e: e[0][:-1]).astype(np.float32)),
        ("next_observations", join(lambda e: e[0][1:]).astype(np.float32)),
        ("actions", join(lambda e: e[1])),
        ("rewards", join(lambda e: e[2]).astype(np.float32)),
        ("terminations", join(lambda e: e[3])),
        ("truncations", join(lambda e: e[4])),
    ):
        np.testing.assert_array_equal(getattr(dataset, field), expected)


def test_minari_can_add_to_it(episodes):
    write(episodes[:2])
    names = ("observations", "actions", "rewards", "terminations", "truncations")
    buffer = EpisodeBuffer(**dict(zip(names, episodes[2], strict=True)))
    minari.load_dataset(ID).update_dataset_from_buffer([buffer])
    assert_read_back(ID, episodes[:3], np.float64)


# --- whole or not at all ------------------------------------------------------------------


def test_nothing_is_visible_before_the_end_and_no_scrap_after(root, episodes):
    with writer() as out:
        out.add(*episodes[0])
        assert not minari.list_local_datasets()
        assert not (root / ID).exists()
    assert contents(root) == [f"{ID}/data/main_data.hdf5", f"{ID}/data/metadata.json"]


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt, OSError])
def test_an_exception_leaves_nothing(root, episodes, kind):
    with pytest.raises(kind), writer() as out:
        out.add(*episodes[0])
        raise kind
    assert contents(root) == []
    write(episodes)  # and does not stand in the way
    assert_read_back(ID, episodes, np.float64)


def test_no_episode_is_no_dataset(root):
    with pytest.raises(UserError, match="no episode"), writer():
        pass
    assert contents(root) == []


def test_what_a_killed_writer_left_is_removed(root, episodes):
    killed = writer()
    killed.__enter__()
    killed.add(*episodes[0])
    killed._lock.close()  # as the system does with a dead process
    assert contents(root)
    write(episodes[1:])
    assert_read_back(ID, episodes[1:], np.float64)
    assert all(path.startswith(ID) for path in contents(root))


def test_two_writers_of_one_id(episodes):
    with writer() as first:
        first.add(*episodes[0])
        with pytest.raises(UserError, match="being written by another process"), writer():
            pass
        first.add(*episodes[1])
        write(episodes, "local/hopper/other-v0")  # another id is free
    assert_read_back(ID, episodes[:2], np.float64)


def test_overwriting(episodes):
    write(episodes[:2])
    with pytest.raises(UserError, match=r"exists already.*overwrite"):
        writer()
    with pytest.raises(RuntimeError), writer(overwrite=True) as out:
        out.add(*episodes[2])
        raise RuntimeError
    assert_read_back(ID, episodes[:2], np.float64)  # the old one is whole
    write(episodes[2:], overwrite=True)
    assert_read_back(ID, episodes[2:], np.float64)


class Killed(BaseException):
    """Stands for a process that dies."""


@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "two renames"])
@pytest.mark.parametrize("moment", range(4))
def test_a_writer_killed_while_it_overwrites(root, episodes, monkeypatch, exchange, moment):
    """Before and after each change of a folder's name; a rerun just after succeeds."""
    write(episodes[:2])
    changes = []
    rename, original = pathlib.Path.rename, minari_writer._exchange

    def counted(change, *folders):
        for when in ("before", "after"):
            if len(changes) == moment:
                raise Killed
            changes.append(when)
            if when == "before":
                result = change(*folders)
        return result

    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "rename", lambda *folders: counted(rename, *folders))
        one_step = (lambda *folders: counted(original, *folders)) if exchange else no_exchange
        patch.setattr(minari_writer, "_exchange", one_step)
        # A dead process cleans nothing up.
        patch.setattr(minari_writer.DatasetWriter, "_release", lambda self: self._lock.close())
        try:
            write(episodes[2:], overwrite=True)
        except Killed:
            pass
    if exchange or moment not in (1, 2):  # else it is back once a writer has looked
        visible = len(list(minari.load_dataset(ID).iterate_episodes()))
        assert visible in (2, len(episodes) - 2)
    with pytest.raises(UserError, match="exists already"), writer() as out:
        out.add(*episodes[0])
    write(episodes[1:], overwrite=True)
    assert_read_back(ID, episodes[1:], np.float64)
    assert contents(root) == [f"{ID}/data/main_data.hdf5", f"{ID}/data/metadata.json"]


def no_exchange(one, other):
    """A file system that cannot exchange two folders in one step."""
    return False


def test_this_system_exchanges_folders_in_one_step(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text("")
    assert minari_writer._exchange(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a" / "b").exists() and (tmp_path / "b" / "a").exists()
    assert not minari_writer._exchange(tmp_path / "a", tmp_path / "absent")


def test_who_writes_is_seen(episodes):
    assert not minari_writer.is_being_written(ID)
    with writer() as out:
        out.add(*episodes[0])
        assert minari_writer.is_being_written(ID)
    assert not minari_writer.is_being_written(ID)


def test_a_dataset_that_appears_meanwhile_is_not_written_over(root, episodes):
    late = writer()
    write(episodes[:2])
    with pytest.raises(minari_writer.ExistsError, match="exists already"), late as out:
        out.add(*episodes[2])
    assert_read_back(ID, episodes[:2], np.float64)
    assert contents(root) == [f"{ID}/data/main_data.hdf5", f"{ID}/data/metadata.json"]


# --- refusals -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dataset_id",
    ["hopper", "local/hopper", "", "../outside-v0", "/tmp/x-v0", "a b-v0", "bundled/hopper/x-v0"],
)
def test_refused_ids(root, dataset_id):
    with pytest.raises(UserError, match="dataset id") as error:
        writer(dataset_id)
    assert "\n" not in str(error.value)
    assert contents(root) == []


def test_a_namespace_is_not_overwritten(root, episodes):
    write(episodes, "local/hopper-v0/inner-v0")
    with pytest.raises(UserError, match="exists already"):
        writer("local/hopper-v0", overwrite=True)
    assert_read_back("local/hopper-v0/inner-v0", episodes, np.float64)


def test_a_folder_that_cannot_be_written(root, monkeypatch):
    # A file where a folder should be: works for root too, unlike permissions.
    (root / "local").write_text("")
    with pytest.raises(UserError, match=r"cannot be written.*MINARI_DATASETS_PATH"):
        writer()
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(root / "local" / "below"))
    with pytest.raises(UserError, match=r"cannot be written.*MINARI_DATASETS_PATH"):
        writer()


def test_permissions_are_looked_at(root, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: pathlib.Path(path) != root)
    with pytest.raises(UserError, match="cannot be written"):
        writer()


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"array": np.zeros(2)}, "JSON"),
        ({"total_steps": 3, "env_spec": ""}, "env_spec, total_steps is set"),
    ],
)
def test_refused_metadata(metadata, message):
    with pytest.raises(UserError, match=message):
        writer(metadata=metadata)


def test_an_unknown_environment():
    with pytest.raises(UserError, match="cannot be made"):
        writer(environment="Hoper-v5")


class Point(gym.Env):
    observation_space = gym.spaces.Box(-np.inf, np.inf, (4,))
    action_space = gym.spaces.Box(-1, 1, (2,))


def test_an_environment_that_cannot_be_described_is_refused_at_once(root, register):
    """Minari stores how it is made; a class or a function as entry point has no text."""
    name = register("DawmPoint-v0", Point, max_episode_steps=5)
    with pytest.raises(UserError, match=r'DawmPoint-v0.*entry_point="module:Class"') as error:
        writer(environment=name)
    assert "\n" not in str(error.value)
    assert contents(root) == []


def test_keyword_arguments_of_the_environment_are_stored(episodes):
    kwargs = {"forward_reward_weight": 2.0, "max_episode_steps": 30}
    write(episodes, environment_kwargs=kwargs)
    recorded = load_dataset(ID, cache=False).recorded
    assert recorded is not None
    assert (recorded.kwargs, recorded.max_episode_steps) == ({"forward_reward_weight": 2.0}, 30)


def spoil(episode, index, change):
    arrays = [np.array(array) for array in episode]
    arrays[index] = change(arrays[index])
    return arrays


def with_value(array, position, value):
    array = array.copy()
    array[position] = value
    return array


@pytest.mark.parametrize(
    ("index", "change", "message"),
    [
        (0, lambda x: x[:-1], "expected observations of shape"),
        (0, lambda x: x[:, :-1], "expected observations of shape"),
        (1, lambda x: x[..., None], "expected actions of shape"),
        (4, lambda x: x[:-1], "expected truncations of shape"),
        (0, lambda x: with_value(x, -1, np.nan), "observations holds numbers that are not finite"),
        (2, lambda x: with_value(x, 0, np.inf), "rewards holds numbers that are not finite"),
        (3, lambda x: with_value(x, 0, True), "expected its only end at step"),
        (3, lambda x: with_value(x, -1, False), "expected its only end at step"),
    ],
)
def test_refused_episodes(root, episodes, index, change, message):
    fallen = next(episode for episode in episodes if episode[3][-1])
    with pytest.raises(UserError, match=f"episode 1: {message}"), writer() as out:
        out.add(*fallen)
        out.add(*spoil(fallen, index, change))
    assert contents(root) == []


def test_an_empty_episode_is_refused():
    with pytest.raises(UserError, match="episode 0"), writer() as out:
        out.add(np.zeros((1, 11)), np.zeros((0, 3)), np.zeros(0), np.zeros(0), np.zeros(0))
