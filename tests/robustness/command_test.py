"""The command on real folders of small runs, from the request to the files."""

import json

import numpy as np
import pytest
from results_content import results_content
from small_run import small_config, write_run

from dawm_jax.robustness import store, sweeps
from dawm_jax.robustness.run import Request, make_report
from dawm_jax.robustness.store import EpisodeProtocol, Record
from dawm_jax.runtime.stopping import Interrupted, StopFlag
from dawm_jax.types import UserError

PROTOCOL = EpisodeProtocol(episodes=2, seed=3)


def finished(folder, *, agent="bc", updates=40, **changes):
    """A run's folder with checkpoints and what the report reads of its results."""
    config = small_config(
        agent=agent, training__real_fraction=1.0, num_seeds=2, evaluation__max_steps=12, **changes
    )
    write_run(folder, config)
    results = results_content(
        environment=config.environment,
        dataset=config.dataset,
        agent=agent,
        num_seeds=2,
        seed=config.seed,
        updates=updates,
        real_fraction=1.0,
        curve=[{"update": updates, "return_per_seed": [1.0, 2.0]}],
    )
    (folder / "results.json").write_text(json.dumps(results))
    return folder


@pytest.fixture(name="folders", scope="module")
def _folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return [str(finished(root / agent, agent=agent)) for agent in ("bc", "td3_bc")]


def request(folders, out, changes="gravity,action", protocol=PROTOCOL):
    return Request(tuple(folders), str(out), sweeps.parse(changes), protocol)


def test_files_and_what_they_say(folders, tmp_path):
    text = make_report(request(folders, tmp_path), StopFlag())
    assert text == (tmp_path / "robustness.md").read_text()
    assert "0 is a return of -20.3, 100 one of 3234.3" in text and "unchanged environment" in text
    assert text.count("| BC | 2 |") == text.count("| TD3+BC | 2 |") == 2  # two tables
    assert (tmp_path / "robustness.png").stat().st_size > 10_000
    records = store.read(tmp_path / "robustness.json", PROTOCOL)
    assert [record.label for record in records.values()] == ["BC", "TD3+BC"]
    for record in records.values():
        assert len(record.returns) == 1 + 9 + 4
        assert all(values.shape == (2, 2) for values in record.returns.values())


def test_a_repeated_command_keeps_levels_and_plays_what_is_new(folders, tmp_path):
    make_report(request(folders[:1], tmp_path, "action"), StopFlag())
    path = tmp_path / "robustness.json"
    ((digest, record),) = store.read(path, PROTOCOL).items()
    marked = {**record.returns, "action=0.1": np.full((2, 2), 32343.0)}
    store.write(path, PROTOCOL, {digest: Record("a", "b", "c", "d", marked)})
    text = make_report(request(folders, tmp_path, "action,gravity"), StopFlag())
    assert "994.4" in text  # the score of 32,343, which no episode has
    kept = store.read(path, PROTOCOL)
    np.testing.assert_array_equal(kept[digest].returns["action=0.1"], 32343.0)
    assert len(kept) == 2 and "gravity=0.5" in kept[digest].returns
    make_report(request(folders[1:], tmp_path, "gravity"), StopFlag())
    assert len(store.read(path, PROTOCOL)) == 2  # what was not asked for is still there


def test_a_stopped_command_keeps_the_runs_that_are_complete(folders, tmp_path):
    make_report(request(folders[:1], tmp_path, "action"), StopFlag())
    stop = StopFlag()
    stop.signal = 15
    with pytest.raises(Interrupted, match="td3_bc"):
        make_report(request(folders, tmp_path, "action"), stop)
    assert len(store.read(tmp_path / "robustness.json", PROTOCOL)) == 1


def test_another_protocol_is_refused(folders, tmp_path):
    make_report(request(folders[:1], tmp_path, "action"), StopFlag())
    with pytest.raises(UserError, match="was made with --episodes=2 --seed=3: repeat these"):
        make_report(request(folders, tmp_path, protocol=EpisodeProtocol(2, 4)), StopFlag())


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"protocol": {"episodes": 2, "seed": 3}}'])
def test_a_damaged_file_is_one_line(tmp_path, text):
    path = tmp_path / "robustness.json"
    path.write_text(text)
    with pytest.raises(UserError, match="expected what this command wrote") as error:
        store.read(path, PROTOCOL)
    assert "\n" not in str(error.value)


def test_a_planner_is_refused_before_anything_is_loaded(folders, tmp_path):
    planner = finished(tmp_path / "plans", agent="td3_bc")
    results = json.loads((planner / "results.json").read_text())
    results |= {"agent": "planner", "method": "decision_diffuser", "updates": 0}
    (planner / "results.json").write_text(json.dumps(results))
    with pytest.raises(UserError, match="Decision Diffuser plans every action") as error:
        make_report(request([*folders, str(planner)], tmp_path / "out"), StopFlag())
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_results_without_checkpoints_are_refused(tmp_path):
    copy = finished(tmp_path / "copy")
    (copy / "checkpoints" / "agent").rename(tmp_path / "agent")
    with pytest.raises(UserError, match="has no checkpoint of its agent stage") as error:
        make_report(request([str(copy)], tmp_path / "out"), StopFlag())
    assert "\n" not in str(error.value)


def test_a_run_that_repeats_another_is_not_played(folders, tmp_path, caplog):
    copy = finished(tmp_path / "copy")
    (copy / "checkpoints").rename(tmp_path / "checkpoints")
    make_report(request([folders[0], str(copy)], tmp_path / "out"), StopFlag())
    assert f"{copy} repeats {folders[0]}: left out" in caplog.text
    assert len(json.loads((tmp_path / "out" / "robustness.json").read_text())["runs"]) == 1
