"""The comparison of runs, from results.json files alone."""

import csv
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from results_content import results_content, stage_content

from dawm_jax.envs.scores import confidence_interval, reference_returns
from dawm_jax.report import (
    figures,
    fine_tuning,
    over_tasks,
    published,
    runs,
    statistics,
    tables,
)
from dawm_jax.types import UserError

LOW, HIGH = reference_returns("Hopper-v5")


def write_run(folder, scores, **overrides):
    """A results.json as training writes it, of a Hopper run with these normalised scores."""
    returns = [LOW + (HIGH - LOW) * score / 100 for score in scores]
    # The last five evaluations swing about these scores; the best is earlier, ten points above.
    swings = [(HIGH - LOW) / 10, -100.0, 50.0, 0.0, 150.0, -100.0]
    curve = [
        {"update": 100 * (i + 1), "return_per_seed": [value + swing for value in returns]}
        for i, swing in enumerate(swings)
    ]
    fields = {"num_seeds": len(scores), "rollout": {"guidance": 1.2}, "curve": curve, **overrides}
    run = results_content(**fields)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(run))
    return folder


def change_run(folder, change):
    """Rewrites a results.json with the fields that `change` alters."""
    run = json.loads((folder / "results.json").read_text())
    change(run)
    (folder / "results.json").write_text(json.dumps(run))


def group(*folders):
    return runs.group(runs.load(folders))


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({}, "DAWM-TD3+BC, 0 % real"),
        ({"method": "dwm", "agent": "iql"}, "DWM-IQL, 0 % real"),
        ({"method": "dwm", "real_fraction": 0.5}, "DWM-TD3+BC, 50 % real"),
        ({"method": "joint"}, "Joint-TD3+BC, 0 % real"),
        ({"real_fraction": 1.0}, "TD3+BC"),
        ({"real_fraction": 1.0, "return_steps": 7}, "TD3+BC, 7-step returns"),
        (
            {"real_fraction": 0.5, "return_steps": 7},
            "DAWM-TD3+BC, 50 % real, 7-step returns",
        ),
        (
            {"real_fraction": 0.5, "return_steps": 7, "real_return_steps": 1},
            "DAWM-TD3+BC, 50 % real, 7-step returns of generated and 1-step of real rows",
        ),
        ({"return_steps": 7, "real_return_steps": 1}, "DAWM-TD3+BC, 0 % real, 7-step returns"),
        ({"real_fraction": 1.0, "return_steps": 7, "real_return_steps": 1}, "TD3+BC"),
        ({"real_fraction": 0.5}, "DAWM-TD3+BC, 50 % real"),
        ({"real_fraction": 1.0, "agent": "bc", "top_fraction": 0.1}, "10 % BC"),
        (
            {"method": "decision_diffuser", "agent": "planner", "updates": 0},
            "Decision Diffuser",
        ),
        (
            {"method": "decision_diffuser", "updates": 0, "top_fraction": 0.1},
            "10 % Decision Diffuser",
        ),
        ({"top_fraction": 0.5, "real_fraction": 0.5}, "50 % DAWM-TD3+BC, 50 % real"),
        ({"method": "new", "agent": "newer"}, "new-newer, 0 % real"),
        ({"method": "new", "method_label": "New", "agent_label": "N"}, "New-N, 0 % real"),
        ({"method_label": "DAWM 2", "real_fraction": 1.0, "agent": "newer"}, "newer"),
    ],
)
def test_labels(tmp_path, overrides, expected):
    (result,) = group(write_run(tmp_path / "a", [1.0, 2.0], **overrides))
    assert result.method == expected


def test_runs_on_some_episodes_are_a_task_of_their_own(tmp_path):
    write_run(tmp_path / "all", [10.0, 20.0])
    write_run(tmp_path / "few", [30.0], episodes=20)
    found = {result.task: result.last for result in group(tmp_path)}
    assert set(found) == {"dawm/hopper/medium-v0", "dawm/hopper/medium-v0, 20 episodes"}
    np.testing.assert_allclose(found["dawm/hopper/medium-v0, 20 episodes"], [30.0])


def test_runs_in_a_changed_environment_are_a_task_of_their_own(tmp_path):
    write_run(tmp_path / "plain", [10.0, 20.0])
    changed = {"terminate_when_unhealthy": False, "reset_noise_scale": 0.1}
    write_run(tmp_path / "changed", [30.0], environment_kwargs=changed, episodes=20)
    words = "reset_noise_scale=0.1, terminate_when_unhealthy=False"
    assert {result.task: result.num_seeds for result in group(tmp_path)} == {
        "dawm/hopper/medium-v0": 2,
        f"dawm/hopper/medium-v0, {words}, 20 episodes": 1,
    }
    # Published scores are of the unchanged environment.
    write_run(
        tmp_path / "d4rl", [10.0], dataset="/x/hopper_medium-v2.hdf5", environment_kwargs=changed
    )
    text = tables.write(runs.load([tmp_path / "d4rl"]), tmp_path / "report", reference="dawm")
    assert "| hopper_medium-v2.hdf5 | DWM" not in text


def test_runs_of_other_seeds_are_seeds_of_one_result(tmp_path, caplog):
    write_run(tmp_path / "a", [10.0, 20.0])
    write_run(tmp_path / "b", [30.0], seed=1)
    write_run(tmp_path / "c", [99.0], seed=1)  # the same seed again
    (result,) = group(tmp_path)
    np.testing.assert_allclose(result.last, [10.0, 20.0, 30.0])
    np.testing.assert_allclose(result.best, [20.0, 30.0, 40.0])
    np.testing.assert_allclose(result.last_return, LOW + (HIGH - LOW) * result.last / 100)
    assert "left out" in caplog.text


def test_the_score_is_the_mean_of_the_last_five_evaluations(tmp_path):
    curve = [{"update": k, "return_per_seed": [100.0 * k, -k]} for k in range(7)]
    (result,) = group(write_run(tmp_path / "a", [1.0, 2.0], curve=curve))
    np.testing.assert_allclose(result.last_return, [400.0, -4.0])  # of 2 to 6
    (result,) = group(write_run(tmp_path / "b", [1.0, 2.0], curve=curve[:1]))
    np.testing.assert_allclose(result.last_return, [0.0, 0.0])


def test_settings_that_differ_name_the_result(tmp_path):
    write_run(tmp_path / "a", [1.0], horizon=7)
    write_run(tmp_path / "b", [2.0], horizon=15)
    write_run(tmp_path / "c", [3.0], real_fraction=1.0, horizon=15)
    found = {result.method for result in group(tmp_path)}
    assert found == {
        "DAWM-TD3+BC, 0 % real, horizon 7",
        "DAWM-TD3+BC, 0 % real, horizon 15",
        "TD3+BC",
    }


def test_series_of_a_study(tmp_path):
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
    results = group(tmp_path)
    assert runs.studied(results) == "horizon"
    found = {
        line.label: [float(result.last[0]) for result in line.results]
        for line in runs.series(results, "horizon")
    }
    assert found == {
        "DAWM-TD3+BC, 0 % real, guidance 1.0": pytest.approx([2.0, 8.0, 16.0]),
        "DAWM-TD3+BC, 0 % real, guidance 2.0": pytest.approx([3.0, 9.0, 17.0]),
        "TD3+BC": pytest.approx([50.0]),
    }
    figures.plot(results, tmp_path / "series.png")
    assert (tmp_path / "series.png").stat().st_size > 1_000


def test_without_a_study_there_are_no_series(tmp_path):
    """A flag that is on or off is no axis."""
    write_run(tmp_path / "a", [1.0], rollout={"real_actions_only": True})
    write_run(tmp_path / "b", [2.0], rollout={"real_actions_only": False})
    assert runs.studied(group(tmp_path)) is None


def test_budgets_are_kept_apart(tmp_path):
    write_run(tmp_path / "a", [1.0], real_fraction=1.0)
    write_run(tmp_path / "b", [2.0], real_fraction=1.0, updates=9, seed=1)
    found = {(result.method, result.updates) for result in group(tmp_path)}
    assert found == {("TD3+BC, updates 1000", 1000), ("TD3+BC, updates 9", 9)}


def test_an_older_run_without_the_newer_fields(tmp_path):
    folder = write_run(tmp_path / "a", [1.0])
    newer = {"method_label", "agent_label", "return_steps", "real_return_steps", "episodes"}
    newer |= {"environment_kwargs", "dataset_digest", "references", "cpu", "settings"}
    assert not newer & json.loads((folder / "results.json").read_text()).keys()
    (run,) = runs.load([folder])
    assert run.label == "DAWM-TD3+BC, 0 % real"
    found = run.results
    assert (found.return_steps, found.real_return_steps, found.episodes) == (1, 1, 0)
    assert (found.dataset_digest, found.environment_kwargs, found.references) == ("", {}, None)


def test_methods_are_ordered_by_label_with_real_data_last(tmp_path):
    write_run(tmp_path / "a", [1.0], real_fraction=1.0, agent="bc", value_check=None)
    write_run(tmp_path / "b", [1.0], method="zeta")
    write_run(tmp_path / "c", [1.0], agent="iql")
    write_run(tmp_path / "d", [1.0], method="unknown")
    expected = ["DAWM-IQL, 0 % real", "unknown-TD3+BC, 0 % real", "zeta-TD3+BC, 0 % real", "BC"]
    assert [result.method for result in group(tmp_path)] == expected
    assert runs.method_names(group(tmp_path)) == expected


def test_nested_settings_of_a_run_are_settings_of_a_study(tmp_path):
    for order in (1, 2):
        write_run(tmp_path / f"{order}", [1.0], rollout={"sampler": {"order": order}})
    assert runs.studied(group(tmp_path)) == "sampler.order"


def test_settings_of_the_agent_are_told_apart_and_those_of_the_task_are_not(tmp_path):
    """Also on real data alone. Runs of earlier versions did not record them."""
    for alpha, columns in ((1.0, 27), (2.5, 45)):
        settings = {"td3_bc": {"alpha": alpha}, "world_model": {"state_columns": columns}}
        write_run(tmp_path / f"{alpha}", [1.0], real_fraction=1.0, settings=settings)
    write_run(tmp_path / "earlier", [1.0], real_fraction=1.0)
    expected = {"TD3+BC", "TD3+BC, td3_bc.alpha 1.0", "TD3+BC, td3_bc.alpha 2.5"}
    assert {result.method for result in group(tmp_path)} == expected


def test_settings_that_change_no_number_do_not_tell_runs_apart(tmp_path):
    for steps, clip in ((2000, False), (4000, True)):
        settings = {"world_model": {"checkpoint_steps": steps, "log_steps": steps}}
        settings["clip_actions"] = clip  # the data ask for it
        write_run(tmp_path / f"{steps}", [1.0], seed=steps, settings=settings)
    assert [result.num_seeds for result in group(tmp_path)] == [2]


def test_a_study_of_plans_is_one_series(tmp_path):
    """results.json has the horizon of a plan twice."""
    for horizon in (15, 31):
        write_run(
            tmp_path / f"{horizon}",
            [1.0],
            agent="planner",
            updates=0,
            horizon=horizon,
            settings={"planner": {"horizon": horizon, "target_fraction": 0.9}},
        )
    (line,) = runs.series(group(tmp_path), "horizon")
    assert len(line.results) == 2


def test_comparisons_by_hand(tmp_path):
    """The same agent, or one without a critic; only tasks that both have."""
    write_run(tmp_path / "a", [10.0, 30.0])
    write_run(tmp_path / "b", [40.0, 50.0], dataset="dawm/hopper/expert-v0")
    write_run(tmp_path / "c", [20.0, 5.0], method="dwm")
    write_run(tmp_path / "d", [1.0], method="dwm", agent="iql")
    write_run(tmp_path / "e", [20.0], real_fraction=1.0, agent="bc", value_check=None)
    write_run(tmp_path / "f", [20.0], real_fraction=1.0, updates=9)  # another budget
    planner = {"agent": "planner", "updates": 0, "value_check": None}
    write_run(tmp_path / "g", [20.0], method="planning", **planner)
    results = group(tmp_path)
    found = {one.other: one for one in over_tasks.comparisons(results, "dawm")}
    dwm = "DWM-TD3+BC, 0 % real"
    assert set(found) == {dwm, "BC", "planning"}
    one = found[dwm]
    assert (one.method, len(one.tasks), one.probability) == ("DAWM-TD3+BC, 0 % real", 1, 0.75)
    np.testing.assert_allclose(one.gain.value, 100 * (20.0 / 12.5 - 1))
    # Of seeds that are drawn with replacement: from 10 / 20 to 30 / 5, in per cent.
    np.testing.assert_allclose(one.gain.interval, (-50.0, 500.0))
    assert found["BC"].probability_interval is None and found["BC"].seeds == 1
    others = {one.other for one in over_tasks.comparisons(results, "dwm")}
    assert {"DAWM-TD3+BC, 0 % real", "BC"} <= others
    assert over_tasks.comparisons(results, "absent") == []


def test_world_models_are_drawn_before_their_seeds(tmp_path):
    """Runs of two root seeds are two world models; agents on real data have none."""
    for seed, scores in ((0, [10.0, 10.1, 10.2]), (1, [20.0, 20.1])):
        write_run(tmp_path / f"a{seed}", scores, seed=seed)
        write_run(tmp_path / f"b{seed}", scores, seed=seed, real_fraction=1.0)
    mine, real = group(tmp_path)
    assert (mine.model_seeds, real.model_seeds) == ((3, 2), (5,))
    np.testing.assert_allclose(mine.last, real.last)
    found = {one.method: one for one in over_tasks.aggregates([mine, real])}
    wide, narrow = (np.diff(found[name].iqm_interval) for name in (mine.method, real.method))
    assert wide > narrow
    # One of the two world models is drawn twice in half of the samples: its own seeds alone.
    assert found[mine.method].iqm_interval[0] < 10.2 and found[mine.method].iqm_interval[1] > 20.0
    (one,) = over_tasks.comparisons([mine, real], "dawm")
    low, high = one.gain.interval
    assert low < 100 * (10.1 / 14.08 - 1) < 0 < high
    table = tables.summary([mine, real], reference="dawm")
    assert f"14.1 ({statistics.mean_interval(mine.by_model(mine.last))[0]:.1f} to" in table


def test_scores_of_each_task_stand_beside_the_average(tmp_path):
    expert = "dawm/hopper/expert-v0"
    write_run(tmp_path / "a", [10.0, 30.0])
    write_run(tmp_path / "b", [40.0, 50.0], dataset=expert)
    write_run(tmp_path / "c", [20.0, 5.0], method="dwm")
    text = tables.summary(group(tmp_path), reference="dawm")
    assert f"| method | tasks | seeds | {expert} | dawm/hopper/medium-v0 | average |" in text
    assert "| DAWM-TD3+BC, 0 % real | 2 | 2 | 45.0 | 20.0 | 32.5 |" in text
    assert "| DWM-TD3+BC, 0 % real | 1 | 2 |  | 12.5 | 12.5 |" in text
    assert "| one task |" in text
    assert over_tasks.widest(group(tmp_path)) == (
        (expert, "dawm/hopper/medium-v0"),
        ["DAWM-TD3+BC, 0 % real"],
    )


def test_an_interval_that_draws_tasks_is_that_of_a_loop(tmp_path):
    """Scores do not vary within a task, so that only the two tasks do."""
    for task, mine, theirs in (("medium", 10.0, 20.0), ("expert", 60.0, 20.0)):
        dataset = f"dawm/hopper/{task}-v0"
        write_run(tmp_path / f"a-{task}", [mine] * 2, dataset=dataset)
        write_run(tmp_path / f"b-{task}", [theirs] * 2, dataset=dataset, method="dwm")
    (one,) = over_tasks.comparisons(group(tmp_path), "dawm")
    np.testing.assert_allclose(one.gain.value, 75.0)
    # A quarter of the samples has one task alone, a quarter the other.
    np.testing.assert_allclose(one.gain_interval_of_tasks, (-50.0, 200.0))
    text = tables.summary(group(tmp_path), reference="dawm")
    assert "| +75.0 % (n/a) | -50.0 to 200.0 |" in text


def test_a_learning_curve_holds_the_evaluations_of_all_its_runs(tmp_path):
    for seed, every in ((0, 1), (1, 2)):
        points = range(0, 6, every)
        curve = [{"update": k, "return_per_seed": [LOW + k + seed]} for k in points]
        write_run(tmp_path / f"{seed}", [0.0], seed=seed, curve=curve)
    (result,) = group(tmp_path)
    np.testing.assert_array_equal(result.evaluated, [0, 2, 4])
    returns = np.array([[0.0, 2.0, 4.0], [1.0, 3.0, 5.0]])
    np.testing.assert_allclose(result.curve, 100 * returns / (HIGH - LOW), atol=1e-9)


def test_complete_separation_is_printed_by_task(tmp_path):
    """Its bootstrap interval has no width, whatever the number of seeds."""
    tasks = ("dawm/hopper/medium-v0", "dawm/hopper/expert-v0")
    for task, scores in zip(tasks, ([10.0, 11.0, 12.0], [50.0, 51.0, 53.0]), strict=True):
        write_run(tmp_path / f"a-{scores[0]}", scores, dataset=task)
        write_run(tmp_path / f"b-{scores[0]}", [30.0, 31.0, 33.0], dataset=task, method="dwm")
    text = tables.summary(group(tmp_path), reference="dawm")
    assert "0.50 (n/a; dawm/hopper/expert-v0: 1.00; dawm/hopper/medium-v0: 0.00)" in text
    assert "0.50 to 0.50" not in text


def test_every_gain_has_an_interval_or_the_number_of_seeds(tmp_path):
    write_run(tmp_path / "a", [10.0])
    write_run(tmp_path / "b", [5.0], method="dwm")
    assert "+100.0 % (one seed)" in tables.summary(group(tmp_path), reference="dawm")
    # Averages of bootstrap samples that are not positive have no gain.
    write_run(tmp_path / "a", [10.0, 11.0])
    write_run(tmp_path / "b", [-5.0, 40.0], method="dwm")
    assert " % (" not in tables.summary(group(tmp_path), reference="dawm")


def test_two_seeds_without_reference_returns_have_an_interval(tmp_path):
    folder = write_run(tmp_path / "a", [1.0, 2.0], environment="Pusher-v5", dataset="x/y/z-v0")
    text = tables.runs_table(runs.load([folder]))
    assert "one seed" not in text
    assert " to " in text.splitlines()[-1]


def test_successes_are_shown_of_the_runs_that_have_them(tmp_path):
    plain = write_run(tmp_path / "a", [1.0, 2.0])
    header = lambda *folders: tables.runs_table(runs.load(folders)).splitlines()[0]
    assert "success" not in header(plain)
    # Two seeds of four episodes, of which three and four succeeded.
    success = {"rate_per_seed": [0.75, 1.0]}
    other = write_run(tmp_path / "b", [1.0, 2.0], success=success)
    assert "success, final" in header(plain, other)
    column = [cell.strip() for cell in header(plain, other).split("|")].index("success, final")
    rows = tables.runs_table(runs.load([plain, other])).splitlines()[2:]
    assert [row.split("|")[column].strip() for row in rows] == ["", "88 %"]


def test_the_files_of_a_report(tmp_path):
    write_run(tmp_path / "runs" / "a", [10.0, 30.0])
    write_run(
        tmp_path / "runs" / "b", [5.0, 20.0], method="dwm", dataset="/some/hopper_medium-v2.hdf5"
    )
    out = tmp_path / "report"
    text = tables.write(runs.load([tmp_path / "runs"]), out, reference="dawm")
    assert (out / "report.md").read_text() == text
    for name in ("report.png", "curves.png", "profiles.png"):
        assert (out / name).stat().st_size > 1_000
    assert not (out / "episodes.png").exists()
    # Published scores stand beside ours; only data that are not D4RL's are warned of.
    assert "| hopper_medium-v2.hdf5 | DWM-TD3+BC | 12.5 | 65.0 |  |" in text
    assert "Not D4RL's data: dawm/hopper/medium-v0.**" in text
    assert "/some" not in text
    rows = list(csv.DictReader((out / "report.csv").open()))
    first = next(row for row in rows if row["method"] == "DAWM-TD3+BC, 0 % real")
    np.testing.assert_allclose(float(first["score_last_mean"]), 20.0)
    interval = confidence_interval(np.array([10.0, 30.0]))
    np.testing.assert_allclose(float(first["score_last_low"]), interval[0])
    np.testing.assert_allclose(float(first["score_best_mean"]), 30.0)


def test_scores_against_the_number_of_episodes(tmp_path, monkeypatch):
    """A panel for each dataset and agent of several numbers of episodes; all episodes come last."""
    from matplotlib.axes import Axes

    drawn = {}

    def errorbar(axis, at, means, errors, *, label, **style):
        axis.plot(at, means, label=label)
        drawn.setdefault(axis, {})[label] = list(at), list(means), np.asarray(errors)

    monkeypatch.setattr(Axes, "errorbar", errorbar)
    scores = {0: [10.0, 20.0], 20: [40.0, 60.0], 5: [30.0, 34.0]}
    folders = [
        write_run(tmp_path / f"dawm-{count}", own, episodes=count) for count, own in scores.items()
    ]
    folders.append(write_run(tmp_path / "real", [80.0, 90.0], real_fraction=1.0, episodes=20))
    # IQL has runs of one number of episodes alone, and no panel.
    folders.append(write_run(tmp_path / "iql", [80.0, 90.0], agent="iql", episodes=20))
    path = tmp_path / "episodes.png"
    figures.plot_episodes(group(*folders), path)
    assert path.stat().st_size > 1_000
    ((axis, lines),) = drawn.items()
    assert axis.get_title() == "dawm/hopper/medium-v0, TD3+BC"
    assert [label.get_text() for label in axis.get_xticklabels()] == ["5", "20", "all"]
    at, means, errors = lines["DAWM-TD3+BC, 0 % real"]
    np.testing.assert_allclose(at, [-0.075, 0.925, 1.925])
    np.testing.assert_allclose(means, [32.0, 50.0, 15.0])
    ends = [confidence_interval(np.array(scores[count])) for count in (5, 20, 0)]
    np.testing.assert_allclose(means - errors[0], [low for low, _ in ends])
    np.testing.assert_allclose(means + errors[1], [high for _, high in ends])
    assert lines["TD3+BC"][:2] == ([1.075], [85.0])
    # Runs of one number of episodes have no figure, and an older one is deleted.
    figures.plot_episodes(group(folders[-1], folders[-2]), path)
    assert not path.exists()


def test_published_scores_stand_beside_runs_on_all_episodes_alone(tmp_path):
    data = "/some/hopper_medium-v2.hdf5"
    write_run(tmp_path / "a", [10.0], dataset=data, episodes=5)
    text = tables.write(runs.load([tmp_path / "a"]), tmp_path / "report", reference="dawm")
    assert "## Published scores\n\nNone for these tasks." in text
    # The same file under another digest is still D4RL's.
    for name, digest in (("b", "one"), ("c", "two")):
        write_run(tmp_path / name, [10.0], dataset=data, dataset_digest=digest)
    text = tables.write(
        runs.load([tmp_path / "b", tmp_path / "c"]), tmp_path / "report", reference="dawm"
    )
    assert "[one] | DWM-TD3+BC |  | 65.0" in text
    assert "Not D4RL's data" not in text


def test_a_report_of_new_agents_alone(tmp_path):
    """The command of RLPD; a report that was there had other runs."""
    write_run(tmp_path / "b", [1.0], online=_online([[1.0], [2.0]]))
    tables.write(runs.load([tmp_path / "b"]), tmp_path / "report", reference="dawm")
    anew = _online([[20.0, 30.0], [40.0, 50.0]], first=100, fresh_agent=True)
    write_run(tmp_path / "a", [1.0, 2.0], real_fraction=1.0, agent="rlpd", online=anew)
    text = tables.write(runs.load([tmp_path / "a"]), tmp_path / "report", reference="dawm")
    assert text.startswith("# Comparison\n\n## Fine-tuning\n")
    assert not (tmp_path / "report" / "report.png").exists()
    # Without a fine-tuned run nothing of an earlier report's fine-tuning stays.
    write_run(tmp_path / "c", [1.0])
    tables.write(runs.load([tmp_path / "c"]), tmp_path / "report", reference="dawm")
    assert not list((tmp_path / "report").glob("fine_tuning.*"))


def test_agents_that_are_thrown_away_are_no_method(tmp_path):
    """`fresh_agent` throws the agents of the offline training away."""
    anew = _online([[20.0, 30.0], [40.0, 50.0]], first=100, fresh_agent=True)
    write_run(tmp_path / "a", [1.0, 2.0], real_fraction=1.0, agent="rlpd", online=anew)
    write_run(tmp_path / "b", [1.0, 2.0])
    found = runs.load([tmp_path / "a", tmp_path / "b"])
    text = tables.write(found, tmp_path / "report", reference="dawm")
    before, tuned = text.split("## Fine-tuning")
    assert "rlpd" not in before and "rlpd" in tuned.split("## Published scores")[0]


def test_a_task_without_references_is_reported_by_returns(tmp_path):
    write_run(tmp_path / "a", [1.0, 2.0], environment="Pusher-v5", dataset="x/pusher/expert-v0")
    text = tables.write(runs.load([tmp_path / "a"]), tmp_path / "report", reference="dawm")
    assert "None for these tasks." in text
    assert not (tmp_path / "report" / "profiles.png").exists()


def _online(curve, *, step=100, first=0, fresh_agent=False, **settings):
    """The field `online` of a run whose evaluations have these scores, [evaluations, seeds]."""
    points = [[LOW + (HIGH - LOW) * score / 100 for score in scores] for scores in curve]
    at = [first + step * index for index in range(len(curve))]
    defaults = {"fresh_agent": fresh_agent, "steps": at[-1], "updates_per_step": 2, "log_steps": 50}
    return {
        "settings": {**defaults, **settings},
        "curve": [{"step": k, "return_per_seed": p} for k, p in zip(at, points, strict=True)],
        "updates": 2 * at[-1],
        "seconds_per_step": 0.25,
    }


def _cells(text, start):
    """Cells of the first row of a table that begins with `start`."""
    row = next(line for line in text.splitlines() if line.startswith(f"| {start}"))
    return [cell.strip() for cell in row.split("|")[1:-1]]


def _fine_tuning(*folders):
    """The section of these runs, and the method of every row of its table."""
    tuned = _tuned(*folders)
    return fine_tuning.section(tuned, reference="dawm"), sorted(x.method for x in tuned)


def _tuned(*folders):
    return fine_tuning.results(runs.load(folders))


def test_fine_tuned_runs_have_a_section_of_their_own(tmp_path):
    online = _online([[10.0, 20.0], [20.0, 40.0], [50.0, 70.0]])
    write_run(tmp_path / "runs" / "a", [10.0, 20.0], real_fraction=0.5, online=online)
    online = _online([[10.0, 30.0], [20.0, 20.0], [30.0, 10.0]])
    write_run(tmp_path / "runs" / "b", [10.0, 30.0], real_fraction=1.0, online=online)
    out = tmp_path / "report"
    text = tables.write(runs.load([tmp_path / "runs"]), out, reference="dawm")
    before, section = text.split("## Fine-tuning")
    row = _cells(section, "dawm/hopper/medium-v0 | DAWM")
    # Mean heights by hand: (10 + 2 x 20 + 50) / 4 and (20 + 2 x 40 + 70) / 4.
    means = [np.mean([10.0, 20.0]), np.mean([50.0, 70.0]), np.mean([25.0, 42.5])]
    for cell, mean in zip(row[5:8], means, strict=True):
        assert cell.startswith(f"{mean:.1f} ("), row
    low, high = confidence_interval(np.array([25.0, 42.5]))
    assert row[7] == f"{np.mean([25.0, 42.5]):.1f} ({low:.1f} to {high:.1f})"
    assert row[2:5] == ["200", "2", "2"] and row[8] == "250"
    gains = _cells(section, "DAWM-TD3+BC, 50 % real, online | TD3+BC, online")
    assert gains[2] == "1"
    assert gains[3].startswith("+200.0 % (")  # 60 against 20
    assert gains[4].startswith("+68.8 % (")  # 33.75 against 20
    # The offline training's scores stay in the table of the offline trainings.
    assert _cells(before, "dawm/hopper/medium-v0 | DAWM")[4].startswith("15.0 (")
    assert (out / "fine_tuning.png").stat().st_size > 1_000
    numbers = list(csv.DictReader((out / "fine_tuning.csv").open()))
    dawm = next(row for row in numbers if row["source"] == "dawm")
    names = [f"{kind}_mean" for kind in ("before", "last", "mean")]
    np.testing.assert_allclose([float(dawm[name]) for name in names], means)
    ends = [float(dawm["mean_low"]), float(dawm["mean_high"])]
    np.testing.assert_allclose(ends, (low, high))
    assert [dawm[name] for name in ("steps", "updates_per_step", "unit")] == ["200", "2", "score"]
    assert (dawm["success"], float(dawm["seconds_per_step"])) == ("", 0.25)


def test_the_curve_of_agents_that_begin_anew_starts_at_their_first_evaluation(tmp_path):
    anew = _online([[20.0, 30.0], [40.0, 50.0]], first=100, fresh_agent=True)
    write_run(tmp_path / "a", [1.0, 2.0], real_fraction=1.0, agent="rlpd", online=anew)
    tuned = _online([[0.0, 0.0], [60.0, 70.0], [70.0, 90.0]])
    write_run(tmp_path / "b", [1.0, 2.0], real_fraction=0.5, online=tuned)
    text, _ = _fine_tuning(tmp_path)
    row = _cells(text, "dawm/hopper/medium-v0 | rlpd")
    assert row[5] == "" and row[6].startswith("45.0 (") and row[7].startswith("35.0 (")
    # Over steps 100 and 200 alone: (65 + 80) / 2 against 35.
    gains = _cells(text, "DAWM-TD3+BC, 50 % real, online | rlpd, online")
    assert gains[3].startswith("+77.8 % (") and gains[4].startswith("+107.1 % (")


def test_mean_heights_do_not_depend_on_the_evaluations_of_other_runs(tmp_path):
    often = _online([[10.0], [90.0], [90.0], [90.0], [90.0]])
    write_run(tmp_path / "a", [10.0], real_fraction=0.5, online=often)
    seldom = _online([[10.0], [90.0]], step=400)
    write_run(tmp_path / "b", [10.0], real_fraction=0.5, seed=1, online=seldom)
    write_run(tmp_path / "c", [10.0], real_fraction=1.0, online=seldom)
    text, _ = _fine_tuning(tmp_path)
    # Each on its own evaluations, 80 and 50; a gain is over the evaluations of both.
    assert _cells(text, "dawm/hopper/medium-v0 | DAWM")[7].startswith("65.0 (")
    assert _cells(text, "DAWM-TD3+BC, 50 % real, online | TD3+BC, online")[4] == "+0.0 % (one seed)"


def test_fine_tunings_with_other_settings_are_told_apart(tmp_path):
    """By settings of either stage; what changes no agent does not count."""
    base = {"cloning_decay": 1.0, "evaluation_interval": 100}
    for name, overrides, settings in (
        ("a", {}, base),
        ("b", {}, {**base, "cloning_decay": 0.1}),
        ("c", {"horizon": 15}, base),
        ("d", {"seed": 1}, {**base, "evaluation_interval": 50}),
        ("e", {"real_fraction": 1.0}, {**base, "refit_every": 100}),
        ("f", {"real_fraction": 1.0, "seed": 1}, {**base, "refit_every": 0}),
        ("g", {"real_fraction": 1.0, "seed": 2, "updates": 9_000}, base),
    ):
        online = _online([[1.0, 2.0], [20.0, 30.0]], **settings)
        overrides = {"real_fraction": 0.5, **overrides, "online": online}
        write_run(tmp_path / name, [1.0, 2.0], **overrides)
    _, methods = _fine_tuning(tmp_path)
    dawm = "DAWM-TD3+BC, 50 % real, online, horizon {}, online.cloning_decay {}"
    assert methods == [
        dawm.format(15, 1.0),
        dawm.format(7, 0.1),
        dawm.format(7, 1.0),
        "TD3+BC, online, updates 1000",
        "TD3+BC, online, updates 9000",
    ]


def test_gains_of_fine_tuning_are_of_scores_of_the_same_task_agent_and_steps(tmp_path):
    def tune(name, *, curve, step=100, **overrides):
        online = _online(curve, step=step)
        write_run(tmp_path / name, curve[0], online=online, **{"real_fraction": 0.5, **overrides})

    def real(name, **arguments):
        tune(name, real_fraction=1.0, **arguments)

    tune("a", curve=[[1.0], [60.0]])
    real("b", curve=[[1.0], [30.0]])
    unscored = {"environment": "Pusher-v5", "dataset": "x/pusher/expert-v0"}
    tune("c", curve=[[1.0], [50.0]], **unscored)
    real("d", curve=[[1.0], [50.0]], **unscored)
    other = {"environment": "Walker2d-v5"}
    tune("e", curve=[[1.0], [50.0]], **other)
    real("f", curve=[[1.0], [50.0]], **other, step=200)
    real("g", curve=[[1.0], [50.0]], agent="iql")
    text, _ = _fine_tuning(tmp_path)
    rows = [line for line in text.splitlines() if line.startswith("| DAWM")]
    assert rows == [
        "| DAWM-TD3+BC, 50 % real, online | TD3+BC, online, online.steps 100 | 1 | "
        "+100.0 % (one seed) | +96.8 % (one seed) |"
    ]


def test_the_last_success_of_a_fine_tuning_has_a_column(tmp_path):
    online = {**_online([[1.0], [2.0]]), "success": {"rate_per_seed": [0.5, 1.0]}}
    write_run(tmp_path / "a", [1.0], success={"rate_per_seed": [0.25]}, online=online)
    text, _ = _fine_tuning(tmp_path / "a")
    assert _cells(text, "dawm/hopper/medium-v0")[8] == "75 %"
    (row,) = csv.DictReader(fine_tuning.csv_text(_tuned(tmp_path / "a")).splitlines())
    assert float(row["success"]) == 0.75
    assert (row["last_low"], row["last_high"]) == ("", "")  # one seed


def test_the_seconds_of_a_run_are_those_of_its_offline_training(tmp_path):
    stages = {"agent": stage_content(), "online": stage_content(seconds=100.0)}
    write_run(tmp_path / "a", [1.0], stages=stages, online=_online([[1.0], [2.0]]))
    (run,) = runs.load([tmp_path / "a"])
    assert run.results.training_seconds == 12.0


def test_a_run_stands_by_its_last_stage(tmp_path):
    """A policy that was fine-tuned is not pooled with one that was not."""
    write_run(tmp_path / "a", [1.0])
    write_run(tmp_path / "b", [1.0], seed=1, online=_online([[1.0], [2.0]]))
    methods = [key[2] for key in runs.pooled(runs.latest(runs.load([tmp_path])))]
    assert methods == ["DAWM-TD3+BC, 0 % real", "DAWM-TD3+BC, 0 % real, online"]


def test_a_report_without_fine_tuning_does_not_speak_of_it(tmp_path):
    write_run(tmp_path / "a", [1.0, 2.0])
    text = tables.write(runs.load([tmp_path / "a"]), tmp_path / "report", reference="dawm")
    assert "Fine-tuning" not in text
    assert not list((tmp_path / "report").glob("fine_tuning.*"))


@pytest.mark.parametrize(
    "damage",
    [
        lambda online: online.pop("curve"),
        lambda online: online.update(curve=online["curve"][:1]),  # not at the last step
        lambda online: online["curve"].reverse(),
        lambda online: online["curve"][0].update(step=-100),
        lambda online: online["curve"][0].update(return_per_seed=[1.0, 2.0]),
        lambda online: online["curve"][0].update(return_per_seed=[float("nan")]),
        lambda online: [point.update(return_per_seed=[]) for point in online["curve"]],
        lambda online: online.pop("seconds_per_step"),
        lambda online: online.update(settings=[]),
        lambda online: online["settings"].update(fresh_agent="False"),
    ],
)
def test_a_damaged_fine_tuning_is_one_line(tmp_path, damage):
    online = _online([[1.0], [2.0]])
    damage(online)
    write_run(tmp_path / "a", [1.0], online=online)
    with pytest.raises(UserError, match=r"a/results\.json: expected a run's results\.json, got "):
        runs.load([tmp_path / "a"])


def test_an_unfinished_run_is_skipped_with_a_warning(tmp_path, caplog):
    write_run(tmp_path / "runs" / "a", [1.0])
    unfinished = tmp_path / "runs" / "b"
    unfinished.mkdir()
    (unfinished / "config.json").write_text("{}")
    for paths in ([tmp_path / "runs"], [tmp_path / "runs" / "a", unfinished]):
        caplog.clear()
        assert len(runs.load(paths)) == 1
        assert f"{unfinished} has no results.json: skipped" in caplog.text


def test_nothing_to_report_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no finished run in .*: expected a results"):
        runs.load([tmp_path])
    with pytest.raises(UserError, match="does not exist"):
        runs.load([tmp_path / "absent"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "JSONDecodeError"),
        ("[]", "[] in place of an object"),
        ("{}", "no field 'method'"),
        ({"agent": 3}, "agent = 3, expected text"),
        ({"curve": []}, "a curve without evaluations"),
        ({"curve": [{"return_per_seed": [1.0, float("nan")]}]}, "not a finite number"),
        (
            {
                "curve": [
                    {"update": 1, "return_per_seed": [1.0]},
                    {"update": 2, "return_per_seed": [1.0, 2.0]},
                ]
            },
            "evaluations of [1, 2] seeds",
        ),
        ({"results_digest": "0"}, "its content is not what was written"),
        ({"real_fraction": "half"}, "real_fraction = half, expected a finite number"),
        ({"rollout": [1]}, "expected an object"),
    ],
)
def test_a_damaged_results_file_is_refused_in_one_line(tmp_path, text, message):
    folder = write_run(tmp_path / "a", [1.0, 2.0])
    if isinstance(text, str):
        (folder / "results.json").write_text(text)
    else:
        change_run(folder, lambda run: run.update(text))
    with pytest.raises(UserError, match=r"expected a run's results\.json, got") as caught:
        runs.load([folder])
    assert message in str(caught.value) and "\n" not in str(caught.value)


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
    scores = [score for task in published.TASKS for score in published.scores_of(task)]
    mean = lambda method: np.mean([s.dwm_paper for s in scores if s.method == method])
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


def test_data_of_the_same_name_and_another_content_are_told_apart(tmp_path, caplog):
    for name, digest in (("a", "1" * 64), ("b", "2" * 64), ("c", "1" * 64)):
        write_run(tmp_path / name, [10.0], dataset_digest=digest, seed=ord(name))
    write_run(tmp_path / "old", [10.0], seed=9)  # of a version that stored no digest
    found = {run.path.name: run.task for run in runs.load([tmp_path])}
    assert found["a"] == found["c"] == "dawm/hopper/medium-v0 [11111111]"
    assert found["b"] == "dawm/hopper/medium-v0 [22222222]"
    assert found["old"] == "dawm/hopper/medium-v0"
    (line,) = caplog.messages
    assert "trained on different data of this name" in line
    caplog.clear()
    assert {run.task for run in runs.load([tmp_path / "a", tmp_path / "old"])} == {
        "dawm/hopper/medium-v0"
    }
    assert not caplog.messages
