"""curves.png of a run's folder."""

import matplotlib
import pytest
from matplotlib.figure import Figure
from results_content import results_content, stage_content

from dawm_jax.runtime import results
from dawm_jax.runtime.metrics import MetricsFile
from dawm_jax.training import figures


@pytest.fixture(name="log")
def _log(tmp_path):
    return MetricsFile(tmp_path / "metrics.jsonl")


def _results(*stages):
    trained = {stage: stage_content() for stage in stages}
    return results.of_json(results_content(stages=trained, value_check=None))


@pytest.mark.parametrize("models", [(), ("world_model",), ("world_model", "inverse_dynamics")])
def test_there_is_a_panel_for_what_was_trained_and_no_empty_one(log, tmp_path, monkeypatch, models):
    for step in (1, 2):
        for stage in models:
            log.append(stage, "train", step, {"loss": 0.5})
        log.append("agent", "train", step, {"q_mean": 1.0})
    drawn, save = [], Figure.savefig

    def saved(figure, *args, **kwargs):
        drawn.append(figure)
        save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", saved)
    figures.plot_curves(tmp_path / "curves.png", log, _results(*models, "agent"))
    assert (tmp_path / "curves.png").stat().st_size > 1_000
    axes = [axis for axis in drawn[0].axes if axis.axison]
    assert len(axes) == 2 + len(models)
    assert all(axis.lines and axis.get_title() for axis in axes)


def test_the_callers_backend_stays(log, tmp_path):
    """A notebook shows its own figures with it."""
    before = matplotlib.get_backend()
    matplotlib.use("svg")
    try:
        figures.plot_curves(tmp_path / "curves.png", log, _results("agent"))
        assert matplotlib.get_backend() == "svg"
    finally:
        matplotlib.use(before)
