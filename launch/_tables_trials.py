"""Tables of docs/choices.md: settings that were tried during the development."""

import statistics
from typing import Any

import numpy as np
from _raw import RESULTS, json_lines

from dawm_jax.report import cells as report_cells
from dawm_jax.runtime.markdown import number, table


def world_model_trials() -> str:
    """Settings of the world model that were tried."""
    rows = []
    for trial in json_lines(RESULTS / "world-model" / "trials.jsonl"):
        blocks = f", {trial['blocks']} blocks" if trial["blocks"] else ""
        alone = trial["states"] == "changes" and not trial["state_before"]
        rows.append(
            [
                _short_task(trial),
                f"{trial['denoiser']} {trial['width']}{blocks}",
                trial["states"] + (" alone" if alone else ""),
                f"{trial['steps']:,} x {trial['batch_size']}",
                f"{trial['learning_rate']:g}",
                f"{trial['sampling_steps']} {trial['spacing']}, order {trial['order']}",
                f"{trial['guidance']:g}",
                number(trial["cpu_seconds"]),
                f"{trial['state_auc']:.3f} ± {trial['state_auc_std']:.3f}",
                f"{trial['auc']:.3f}",
                f"{trial['change_ratio']:.2f}",
            ]
        )
    head = ["set", "denoiser", "tokens", "steps x batch", "rate", "sampler", "guidance", "CPU s"]
    return table(
        [*head, "AUC of (s, r, s')", "AUC with a", "change"],
        rows,
    )


def equal_seconds() -> str:
    """Trials of the world model at equal seconds of one core, judged by the quality report."""
    rows = []
    for trial in json_lines(RESULTS / "world-model" / "equal_seconds.jsonl"):
        seconds = trial["core_seconds"]
        rows.append(
            [
                _short_task(trial),
                trial["trial"],
                f"{trial['steps']:,} x {trial['batch_size']}",
                "" if seconds is None else number(seconds),
                str(trial["evaluations"]),
                f"{trial['state_auc']:.3f} ± {trial['state_auc_std']:.3f}",
                f"{trial['auc']:.3f} ± {trial['auc_std']:.3f}",
                f"{trial['auc_real_pairs']:.3f}",
                f"{trial['change_ratio']:.2f}",
                f"{number(trial['dynamics_error'])} ({number(trial['dynamics_error_median'])})",
                f"{number(trial['reward_error'])} ({number(trial['reward_error_median'])})",
            ]
        )
    head = ["set", "trial", "steps x batch", "s", "evaluations", "AUC of (s, r, s')", "AUC with a"]
    errors = ["error of a step, mean (median)", "error of the reward"]
    return table([*head, "AUC, real pairs", "change", *errors], rows)


def best_of() -> str:
    """What the best of several windows of a start claims, and what the simulator gives."""
    names = ("claimed_spread_within", "claimed_gain_of_best", "true_gain_of_best", "corr_within")
    rows = [
        [
            _short_task(found),
            *(f"{found[name]:.2f}" for name in names[:2]),
            f"{found[names[2]]:.2f} ± {found['true_gain_se']:.2f}",
            f"{found[names[3]]:.2f}",
        ]
        for found in json_lines(RESULTS / "world-model" / "best_of.jsonl")
    ]
    head = ["set", "deviation between windows of a start", "gain of the best, generated"]
    return table([*head, "gain of the best, simulator", "correlation within a start"], rows)


def open_loop() -> str:
    """What the simulator makes of the actions of recorded and of generated windows."""
    rows = [
        [
            _short_task(found),
            name,
            f"{found[name]['difference']:.1f} ± {found[name]['se']:.1f}",
            number(found[name]["state_error_median"]),
        ]
        for found in json_lines(RESULTS / "world-model" / "open_loop.jsonl")
        for name in ("recorded actions", "inferred actions of recorded states", "generated")
    ]
    return table(
        ["set", "window", "simulator's J minus its own", "median error of the state"], rows
    )


def disagreement() -> str:
    """Dropping steps at which denoisers disagree more than on 95 % of held-out steps."""
    rows = []
    for found in json_lines(RESULTS / "world-model" / "disagreement.jsonl"):
        beyond, floor = found["q95"], found["floor"]
        rows.append(
            [
                found["kind"],
                f"{found['rank_correlation']:.2f}",
                f"{100 * beyond['beyond_share']:.1f} %",
                *(number(value) for value in (found["error_all"], beyond["error_kept"])),
                *(number(floor[name]) for name in ("all", "kept")),
                *("{:.3f} ± {:.3f}".format(*found[f"auc_{name}"]) for name in ("all", "kept")),
            ]
        )
    head = ["disagreement", "rank correlation with the error", "dropped"]
    errors = ["error, all", "error, kept", "error of real steps, all", "the same, kept"]
    return table([*head, *errors, "AUC, all", "AUC, kept"], rows)


def advantages() -> str:
    """Windows that aim at advantages: what they claim, and what the simulator gives."""
    rows = [
        [
            f"{found['asked']:.1f}",
            f"{found['claimed']:.2f}",
            f"{found['true']:.2f} ± {found['true_se']:.2f}",
        ]
        for found in json_lines(RESULTS / "world-model" / "advantage.jsonl")
        if found["asked"] is not None
    ]
    return table(["advantage asked for", "generated", "simulator"], rows)


def recipes() -> str:
    """The quick variant's world model of version 0.1 and the present one."""
    rows = []
    for found in json_lines(RESULTS / "world-model" / "recipes.jsonl"):
        cloned, real = found["cloned_score"], found["real_cloned_score"]
        interval = lambda score: "{:.1f} ({:.1f} to {:.1f})".format(*score)
        rows.append(
            [
                _short_task(found),
                found["recipe"],
                number(found["cpu_seconds"]),
                f"{found['state_auc']:.3f} ± {found['state_auc_std']:.3f}",
                f"{found['auc']:.3f} ± {found['auc_std']:.3f}",
                f"{found['change_ratio']:.2f}",
                interval(cloned),
                interval(real),
            ]
        )
    return table(
        [
            "set",
            "recipe",
            "CPU s",
            "AUC of (s, r, s')",
            "AUC with a",
            "change",
            "BC on generated data",
            "BC on real data",
        ],
        rows,
    )


def critics() -> str:
    """Mean Q of TD3+BC on real data with and without normalised critics."""
    updates = (5_000, 10_000, 15_000, 20_000, 25_000, 30_000, 40_000)
    rows = []
    for found in json_lines(RESULTS / "critics" / "walker2d-real-td3_bc.jsonl"):
        q = {step: statistics.fmean(values) for step, values in found["q_mean"]}
        rows.append(
            [
                f"{found['tau']:g}",
                "yes" if found["critic_norm"] else "no",
                *(f"{q[step]:,.0f}" if step in q else "" for step in updates),
                f"{statistics.fmean(found['score_per_seed']):.1f}",
            ]
        )
    return table(["tau", "normalised", *(f"{step:,}" for step in updates), "score"], rows)


def terminations() -> str:
    """Where generated windows end, with and without the absorbed output."""
    rows = [
        [
            _short_task(found),
            found["classifier"],
            *(f"{found[name]}" for name in ("on_time", "early", "late", "missed", "false")),
            f"{found['reward_error']:.4f}",
            f"{100 * found['termination_rate']:.3f} %",
            f"{100 * found['data_termination_rate']:.3f} %",
        ]
        for found in json_lines(RESULTS / "world-model" / "terminations.jsonl")
    ]
    ends = ("on time", "early", "late", "missed", "false")
    rates = ("terminations", "of the data")
    return table(["set", "a window ends where", *ends, "reward error", *rates], rows)


def held_out_curves() -> str:
    """Held-out errors of the quick world model while it is trained."""
    names = ("error_at_250", "error_at_500", "error_at_749", "termination_loss")
    wanted = (500, 1_000, 2_000, 4_000, 6_000, 8_000, 10_000)
    rows = [
        [
            _short_task(found),
            f"{point['step']:,}",
            *(number(point[name]) for name in names),
        ]
        for found in json_lines(RESULTS / "world-model" / "curves.jsonl")
        for point in found["held_out"]
        if point["step"] in wanted
    ]
    return table(["set", "step", "k = 250", "k = 500", "k = 749", "terminations"], rows)


def start_weights() -> str:
    """Scores of policies cloned from windows with weighted starts."""
    found = json_lines(RESULTS / "world-model" / "start_weight.jsonl")
    tasks = list(dict.fromkeys(trial["dataset"] for trial in found))
    cells: dict[float, dict[str, str]] = {}
    for trial in found:
        cell = report_cells.mean([np.asarray(trial["score_per_seed"])], 1)
        cells.setdefault(trial["start_weight"], {})[trial["dataset"]] = cell
    rows = [[f"{weight:g}", *(row[t] for t in tasks)] for weight, row in sorted(cells.items())]
    return table(["start_weight", *tasks], rows)


def cpu_devices() -> str:
    """Steps of the world model a second with other uses of two cores."""
    rows = [
        [
            f"{found['devices']}",
            "yes" if found["eigen_threads"] else "no",
            f"{found['steps_per_second']:.1f}",
        ]
        for found in json_lines(RESULTS / "world-model" / "cpu_devices.jsonl")
    ]
    return table(["devices", "products on several threads", "steps/s"], rows)


def inverse_dynamics_trials() -> str:
    """Inputs of the inverse dynamics model that were tried."""
    trials = json_lines(RESULTS / "world-model" / "inverse_dynamics.jsonl")
    return table(
        ["inputs", "steps", "CPU s", "unexplained", "AUC, real pairs", "AUC, generated"],
        [
            [
                trial["inputs"],
                f"{trial['steps']:,}",
                number(trial["cpu_seconds"]),
                f"{trial['unexplained']:.4f}",
                f"{trial['auc_real_pairs']:.3f}",
                f"{trial['auc_generated']:.3f}",
            ]
            for trial in trials
        ],
    )


def derived_columns() -> str:
    """World models of Ant with and without its contact forces in the tokens."""
    trials = json_lines(RESULTS / "world-model" / "derived.jsonl")
    names = ("auc_state_columns", "auc_all_columns", "dynamics_error", "reward_error")
    return table(
        ["form", "steps", "AUC, state", "AUC, all columns", "dynamics error", "reward error"],
        [
            [
                trial["form"],
                "" if trial["steps"] is None else f"{trial['steps']:,}",
                *("" if trial[name] is None else f"{trial[name]:.3f}" for name in names),
            ]
            for trial in trials
        ],
    )


def _short_task(found: dict[str, Any]) -> str:
    """The task of a raw number: "hopper" where its dataset is dawm/hopper/medium-200k-v1."""
    return found["dataset"].split("/")[1]
