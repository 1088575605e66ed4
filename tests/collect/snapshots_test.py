"""The choice of D4RL's tiers among the scored snapshots of a training."""

import numpy as np
import pytest

from dawm_jax.collect import snapshots
from dawm_jax.collect.snapshots import Snapshot


@pytest.mark.parametrize(
    ("environment", "medium"),
    # Hopper: a third of the way from -20 to 3234 (D4RL) is 1065, first passed at step 30.
    # A task without references: from 20 to 2900 of this training it is 980, passed at 20.
    [("Hopper-v5", 30), ("DawmOther-v0", 20)],
)
def test_tiers_are_chosen_by_score(tmp_path, environment, medium):
    # Best with its neighbours: step 70 (2900); 40 is a lucky peak between low ones.
    returns = [20, 1000, 1500, 3200, 500, 2800, 2900, 2700]
    scored = [Snapshot(10 * i + 10, r) for i, r in enumerate(returns)]
    for snapshot in scored:
        actor = {"params": {"Dense_0": {"bias": np.full(2, snapshot.step, np.float32)}}}
        snapshots.save_snapshot(tmp_path, snapshot.step, actor)
    settings = {"steps": 80, "hidden": [8]}
    got = snapshots.select(environment, settings, tmp_path, scored)
    chosen = {
        name: int(actor["params"]["Dense_0"]["bias"][0]) for name, actor in got.actors.items()
    }
    replay = {f"replay-{i}": step for i, step in enumerate(range(10, medium + 1, 10))}
    assert chosen == {"expert": 70, "medium": medium, **replay}
    mean = {20: 1000.0, 30: 1500.0}[medium]
    assert got.card["policies"]["medium"] == {"step": medium, "return_mean": mean}
    assert got.card["settings"] == settings
    assert (got.environment, got.card["trained_steps"]) == (environment, 80)


def test_a_training_that_never_gets_to_medium_gives_its_best(tmp_path):
    for step in (10, 20):
        snapshots.save_snapshot(tmp_path, step, {"params": {"bias": np.zeros(2)}})
    scored = [Snapshot(10, 40.0), Snapshot(20, 30.0)]
    card = snapshots.select("Hopper-v5", {}, tmp_path, scored).card
    assert card["policies"]["medium"]["step"] == 10
