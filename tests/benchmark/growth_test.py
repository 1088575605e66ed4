"""Each axis changes its size, and every size is timed."""

import dataclasses

import numpy as np
import pytest

from dawm_jax.benchmark import growth, jax_side, tables
from dawm_jax.config import schema
from dawm_jax.types import UserError


def test_every_size_is_timed(config):
    axes = {
        "dataset": dataclasses.replace(
            growth.AXES["dataset"], sizes=(100, 1_000), stages=("td3_bc",)
        ),
        "seeds": dataclasses.replace(growth.AXES["seeds"], sizes=(1, 2), stages=("td3_bc",)),
    }
    numbers = growth.run(config, axes=axes, rounds=1, seconds=0.0)
    for name, axis in axes.items():
        points = numbers["growth"][name]["td3_bc"]
        assert tuple(point["size"] for point in points) == axis.sizes
        assert all(point["median"] > 0 for point in points)
    assert "| dataset | 100 | 1,000 |" in tables.growth_markdown(numbers)


@pytest.mark.parametrize("name", growth.AXES)
def test_an_axis_changes_its_size(name, problem):
    axis = growth.AXES[name]
    assert set(axis.stages) <= set(jax_side.STAGES)
    size = axis.sizes[1]
    changed = axis.change(problem, size)
    config = changed.config
    found = {
        "batch": {config.training.batch_size, config.world_model.batch_size},
        "horizon": {config.horizon},
        "width": {config.sections["temporal_resnet"].width},
        "dataset": {len(changed.replay)},
        "seeds": {size},
    }
    assert found[name] == {size}


def test_made_up_data_is_whole_episodes(problem):
    replay = growth.AXES["dataset"].change(problem, 1_200).replay
    ends = np.asarray(replay.episode_end)
    assert ends[[0, 499, 500, 1_199]].tolist() == [499, 499, 999, 1_199]


def test_the_width_of_another_denoiser_is_refused(config):
    other = schema.replace(config, {"world_model.denoiser": "transformer"})
    growth.check(other, ["batch"])
    with pytest.raises(UserError, match=r"--axes: with width, expected .*temporal_resnet or unet"):
        growth.check(other, ["batch", "width"])
