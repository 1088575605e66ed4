"""Which settings an ablation measures, with which seed."""

import dataclasses

import pytest

from dawm_jax.quality.sampler_ablation import Grid, run_ablation, select_metrics, setting_values


@pytest.fixture
def run(hopper, run_on):
    return run_on(hopper)


def test_one_setting_differs_at_a_time(run, report):
    asked = []

    def measure(run, *, seed):
        settings = run.settings
        asked.append((settings["guidance"], settings["sampling_steps"], seed))
        return dataclasses.replace(report.synthetic, step_size=float(len(asked)))

    grid = Grid(
        guidance=(1.2,),
        sampling_steps=(3, 10_000),
        order=(2,),
        temperature=(1.0,),
        target_factor=(1.2,),
        repeats=2,
    )
    repeats, series = run_ablation(run, measure, grid=grid, seed=5)
    # The run's own settings with two seeds; then every other value, with the first seed.
    assert asked == [(1.2, 2, 5), (1.2, 2, 6), (1.2, 3, 5)]
    assert [metrics.step_size for metrics in repeats] == [1.0, 2.0]
    points = {s.setting: [(p.value, p.metrics.step_size) for p in s.points] for s in series}
    # The own value is added; more steps than the schedule has are left out.
    assert points["guidance"] == [(1.2, 1.0)]
    assert points["sampling_steps"] == [(2, 1.0), (3, 3.0)]
    assert {s.setting: s.own for s in series}["sampling_steps"] == 2


def test_fractions_are_the_values_of_that_rule(run):
    run = run.with_setting("target_rule", "max_fraction").with_setting("target_factor", 0.7)
    assert setting_values(run, Grid(), "target_factor") == (0.6, 0.7, 0.8, 1.0)


def test_only_a_sampler_without_noise_extrapolates(run):
    first_order = run.with_setting("order", 1)
    assert setting_values(first_order, Grid(), "order") == (1, 2)
    assert setting_values(first_order.with_setting("eta", 1.0), Grid(), "order") == (1,)


def test_metrics_without_a_simulator_are_none(report):
    measures = dataclasses.replace(report.synthetic, simulator=None, calibration=None)
    found = select_metrics(measures)
    assert found.dynamics_error is found.termination_recall is found.generated_return is None
    assert found.ks_mean == report.synthetic.distribution.ks.mean
    auc = report.synthetic.distribution.discriminator_auc
    assert (found.discriminator_auc, found.discriminator_auc_std) == (auc.mean, auc.std)
