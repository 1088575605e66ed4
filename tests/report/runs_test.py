"""The comparison of runs from results.json files alone."""

import csv
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from dawm_jax.envs import evaluate
from dawm_jax.report import published
from dawm_jax.report import runs as comparison
from dawm_jax.report import tables as comparison_report
from dawm_jax.types import UserError

LOW, HIGH = evaluate.reference_returns("Hopper-v5")


def write_run(folder, scores, **overrides):
    """A results.json as training writes it, of a Hopper run with these normalised scores."""
    returns = [LOW + (HIGH - LOW) * score / 100 for score in scores]
    best = [value + (HIGH - LOW) / 10 for value in returns]
    summary = lambda values, shift: {
        "return_per_seed": values,
        "return_mean": float(np.mean(values)),
        "score_mean": float(np.mean(scores)) + shift,
        "score_interval": evaluate.confidence_interval(np.array(scores)),
    }
    # The last five evaluations swing about these scores; an earlier one does not count.
    swings = [700.0, -100.0, 50.0, 0.0, 150.0, -100.0]
    run = {
        "environment": "Hopper-v5",
        "dataset": "dawm/hopper/medium-v0",
        "method": "dawm",
        "agent": "td3_bc",
        "seed": 0,
        "num_seeds": len(scores),
        "updates": 1000,
        "real_fraction": 0.0,
        "top_fraction": 1.0,
        "horizon": 7,
        "target_return": {"rule": "amplified", "factor": 1.2},
        "rollout": {"guidance": 1.2},
        "curve": [{"return_per_seed": [v + swing for v in returns]} for swing in swings],
        "final": summary(returns, 0.0),
        "best": summary(best, 10.0),
        "stages": {"agent": {"seconds": 12.0}},
        "device": "1 x cpu",
        "commit": "abc",
        **overrides,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(run))
    return folder


def group(*folders):
    return comparison.group(comparison.load(folders))


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({}, "DAWM-TD3+BC"),
        ({"method": "dwm", "agent": "iql"}, "DWM-IQL"),
        ({"real_fraction": 1.0}, "TD3+BC"),
        ({"real_fraction": 0.5}, "DAWM-TD3+BC, 50 % real"),
        ({"real_fraction": 1.0, "agent": "bc", "top_fraction": 0.1}, "10 % BC"),
        ({"method": "decision_diffuser", "agent": "planner"}, "Decision Diffuser"),
    ],
)
def test_labels(tmp_path, overrides, expected):
    (entry,) = group(write_run(tmp_path / "a", [1.0, 2.0], **overrides))
    assert entry.method == expected


def test_runs_of_other_seeds_are_seeds_of_one_entry(tmp_path, caplog):
    write_run(tmp_path / "a", [10.0, 20.0])
    write_run(tmp_path / "b", [30.0], seed=1)
    write_run(tmp_path / "c", [99.0], seed=1)  # the same seed again
    (entry,) = group(tmp_path)
    np.testing.assert_allclose(entry.last, [10.0, 20.0, 30.0])
    np.testing.assert_allclose(entry.best, [20.0, 30.0, 40.0])
    np.testing.assert_allclose(entry.last_return, LOW + (HIGH - LOW) * entry.last / 100)
    assert "left out" in caplog.text


def test_the_score_is_the_mean_of_the_last_five_evaluations(tmp_path):
    curve = [{"return_per_seed": [100.0 * k, -k]} for k in range(7)]
    (entry,) = group(write_run(tmp_path / "a", [1.0, 2.0], curve=curve))
    np.testing.assert_allclose(entry.last_return, [400.0, -4.0])  # of 2 to 6
    (entry,) = group(write_run(tmp_path / "b", [1.0, 2.0], curve=curve[:1]))
    np.testing.assert_allclose(entry.last_return, [0.0, 0.0])


def test_settings_that_differ_name_the_entry(tmp_path):
    write_run(tmp_path / "a", [1.0], horizon=7)
    write_run(tmp_path / "b", [2.0], horizon=15)
    write_run(tmp_path / "c", [3.0], real_fraction=1.0, horizon=15)
    found = {entry.method for entry in group(tmp_path)}
    assert found == {"DAWM-TD3+BC, horizon 7", "DAWM-TD3+BC, horizon 15", "TD3+BC"}


def test_lines_of_a_study(tmp_path):
    """Along the setting of most values; a run without it stands alone."""
    for horizon in (15, 1, 7):
        for guidance in (1.0, 2.0):
            write_run(
                tmp_path / f"{horizon}-{guidance}",
                [horizon + guidance],
                horizon=horizon,
                rollout={"guidance": guidance},
            )
    write_run(tmp_path / "real", [50.0], real_fraction=1.0)
    entries = group(tmp_path)
    assert comparison.studied(entries) == "horizon"
    found = {
        line.label: [float(entry.last[0]) for entry in line.entries]
        for line in comparison.lines(entries, "horizon")
    }
    assert found == {
        "DAWM-TD3+BC, guidance 1.0": pytest.approx([2.0, 8.0, 16.0]),
        "DAWM-TD3+BC, guidance 2.0": pytest.approx([3.0, 9.0, 17.0]),
        "TD3+BC": pytest.approx([50.0]),
    }
    comparison_report.plot(entries, tmp_path / "lines.png")
    assert (tmp_path / "lines.png").stat().st_size > 1_000


def test_without_a_study_there_are_no_lines(tmp_path):
    """A flag that is on or off is no axis."""
    write_run(tmp_path / "a", [1.0], rollout={"real_actions_only": True})
    write_run(tmp_path / "b", [2.0], rollout={"real_actions_only": False})
    assert comparison.studied(group(tmp_path)) is None


def test_budgets_are_kept_apart(tmp_path):
    write_run(tmp_path / "a", [1.0], real_fraction=1.0)
    write_run(tmp_path / "b", [2.0], real_fraction=1.0, updates=9, seed=1)
    found = {(entry.method, entry.updates) for entry in group(tmp_path)}
    assert found == {("TD3+BC, updates 1000", 1000), ("TD3+BC, updates 9", 9)}


def test_an_older_run_without_the_newer_fields(tmp_path):
    folder = write_run(tmp_path / "a", [1.0])
    run = json.loads((folder / "results.json").read_text())
    for name in ("method", "top_fraction", "rollout", "horizon"):
        del run[name]
    (folder / "results.json").write_text(json.dumps(run))
    (entry,) = group(folder)
    assert entry.method == "DAWM-TD3+BC"


def test_duels_by_hand(tmp_path):
    """The same agent, or none that learns values; only tasks that both have."""
    write_run(tmp_path / "a", [10.0, 30.0])
    write_run(tmp_path / "b", [40.0, 50.0], dataset="dawm/hopper/expert-v0")
    write_run(tmp_path / "c", [20.0, 5.0], method="dwm")
    write_run(tmp_path / "d", [1.0], method="dwm", agent="iql")
    write_run(tmp_path / "e", [20.0], real_fraction=1.0, agent="bc")
    write_run(tmp_path / "f", [20.0], real_fraction=1.0, updates=9)  # another budget
    found = {duel.other: duel for duel in comparison.duels(group(tmp_path))}
    assert set(found) == {"DWM-TD3+BC", "BC"}
    duel = found["DWM-TD3+BC"]
    assert (duel.method, duel.tasks, duel.probability) == ("DAWM-TD3+BC", 1, 0.75)
    np.testing.assert_allclose(duel.gain, 100 * (20.0 / 12.5 - 1))
    assert found["BC"].interval is None  # one seed


def test_the_three_files(tmp_path):
    write_run(tmp_path / "runs" / "a", [10.0, 30.0])
    write_run(
        tmp_path / "runs" / "b", [5.0, 20.0], method="dwm", dataset="/some/hopper_medium-v2.hdf5"
    )
    out = tmp_path / "report"
    text = comparison_report.write(comparison.load([tmp_path / "runs"]), out)
    assert (out / "report.md").read_text() == text
    assert (out / "report.png").stat().st_size > 1_000
    # Published scores stand beside ours; only data that are not D4RL's are warned of.
    assert "| hopper_medium-v2.hdf5 | DWM-TD3+BC | 12.5 | 65.0 |  |" in text
    assert "Not D4RL's data: dawm/hopper/medium-v0.**" in text
    assert "/some" not in text
    rows = list(csv.DictReader((out / "report.csv").open()))
    first = next(row for row in rows if row["method"] == "DAWM-TD3+BC")
    np.testing.assert_allclose(float(first["score_last_mean"]), 20.0)
    interval = evaluate.confidence_interval(np.array([10.0, 30.0]))
    np.testing.assert_allclose(float(first["score_last_low"]), interval[0])
    np.testing.assert_allclose(float(first["score_best_mean"]), 30.0)


def test_a_task_without_references_is_reported_by_returns(tmp_path):
    write_run(tmp_path / "a", [1.0, 2.0], environment="Pusher-v5", dataset="x/pusher/expert-v0")
    text = comparison_report.write(comparison.load([tmp_path / "a"]), tmp_path / "report")
    assert "None for these tasks." in text


def test_no_results_and_broken_results_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"expected a results\.json"):
        comparison.load([tmp_path])
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(UserError, match="is not a run's"):
        comparison.load([tmp_path])


@pytest.mark.parametrize(
    ("environment", "dataset", "task", "same"),
    [
        ("Hopper-v5", "/data/hopper_medium_replay-v2.hdf5", "hopper-medium-replay", True),
        ("Walker2d-v5", "dawm/walker2d/medium-expert-v1", "walker2d-medium-expert", False),
        ("HalfCheetah-v5", "dawm/halfcheetah/medium-200k-v1", "halfcheetah-medium", False),
        ("Hopper-v5", "mujoco/hopper/expert-v0", None, False),
        ("Ant-v5", "mujoco/ant/medium-v0", None, False),
    ],
)
def test_which_published_task_the_data_stand_for(environment, dataset, task, same):
    assert published.task_of(environment, dataset) == task
    assert published.is_same_data(dataset) == same


def test_published_averages_are_the_papers():
    """DWM's paper prints its averages: the table was copied without a slip."""
    tasks = published._TASKS
    mean = lambda method: np.mean([published.scores_of(task)[method][0] for task in tasks])
    for method, average in (
        ("DWM-TD3+BC", 67.9),
        ("DWM-IQL", 64.1),
        ("Decision Diffuser", 67.7),
        ("TD3+BC", 69.3),
        ("IQL", 60.1),
        ("One-step-TD3+BC", 36.8),
        ("One-step-IQL", 43.2),
    ):
        # Cells and averages are rounded: a slip of two in one cell would show.
        np.testing.assert_allclose(mean(method), average, atol=0.11)


def test_the_command_refuses_in_one_line(tmp_path):
    command = [sys.executable, "-m", "dawm_jax.report", str(tmp_path / "none"), "--out=unused"]
    root = pathlib.Path(__file__).resolve().parents[2]
    process = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert process.returncode == 1
    assert process.stderr.startswith("dawm_jax: ") and process.stderr.count("\n") == 1
    assert not (root / "unused").exists()
