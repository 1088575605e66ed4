"""Real steps against the simulator: data of the same physics replay, other data do not."""

import numpy as np
import pytest

from dawm_jax.quality.evaluate import evaluate_windows
from dawm_jax.quality.windows import Windows, dataset_steps
from dawm_jax.types import UserError


def unclipped(dataset):
    """Rows whose velocities the observation does not clip: only they replay exactly."""
    if dataset.environment == "HalfCheetah-v5":
        return np.ones(len(dataset), bool)
    return (np.abs(dataset.observations) < 10.0).all(1)


@pytest.mark.parametrize("environment", ["Hopper-v5", "Walker2d-v5", "HalfCheetah-v5"])
def test_real_steps_replay(environment, rollouts, prepared):
    dataset = rollouts(environment, 200)
    reference = prepared(dataset)
    assert (reference.margin_scale, reference.notes) == (1.0, ())
    errors = reference.measures.simulator
    assert errors.dynamics_unclipped.median < 1e-10
    exact = unclipped(dataset)
    assert exact.mean() > 0.2
    # A bound that is reached once cannot be told from an extreme value.
    share = 1.0 - exact[reference.train].mean()
    assert errors.clipped_share == pytest.approx(share, abs=0.05)
    steps = dataset_steps(dataset, np.flatnonzero(exact)[:, None])
    found = evaluate_windows(Windows(steps, np.ones(steps.reward.shape, bool)), reference)
    assert found.measures.simulator.dynamics.all_steps.mean < 1e-7
    assert found.measures.simulator.reward.all_steps.mean < 1e-7


def test_contact_forces_do_not_count_as_clipped(rollouts, prepared):
    """Most of Ant's contact forces rest at a bound of their columns, in every step."""
    errors = prepared(rollouts("Ant-v5", 200)).measures.simulator
    assert errors.clipped_share == 0.0
    assert errors.dynamics_unclipped.median < 1e-10


def test_halved_contact_margins_are_recognised(rollouts, prepared):
    def halve(model):
        model.geom_margin[:] *= 0.5

    reference = prepared(rollouts("Hopper-v5", 600, change=halve))
    assert reference.margin_scale == 0.5
    assert "before MuJoCo 3.5" in reference.notes[0]
    assert reference.measures.simulator.dynamics.median < 1e-10


def test_a_note_tells_of_other_physics(rollouts, prepared):
    def lighten(model):
        model.opt.gravity[:] *= 0.5

    reference = prepared(rollouts("Hopper-v5", 200, change=lighten))
    assert reference.margin_scale == 1.0
    assert "do not replay" in reference.notes[0]


def test_the_simulator_has_the_keyword_arguments(rollouts, prepared):
    """Other rewards and terminations replay with the arguments that made them, and not without."""
    kwargs = {"forward_reward_weight": 3.0, "healthy_z_range": [1.2, 2.0]}
    dataset = rollouts("Hopper-v5", 200, **kwargs)
    assert dataset.terminations.sum() > 2
    reference, plain = prepared(dataset, **kwargs), prepared(dataset)
    assert reference.notes == (
        'the simulator is made with {"forward_reward_weight": 3.0, "healthy_z_range": [1.2, 2.0]}',
    )
    assert plain.notes == ()
    errors, wrong = reference.measures.simulator, plain.measures.simulator
    assert errors.reward.median < 1e-10 < 1e-3 < wrong.reward.median
    assert errors.termination.precision == 1.0 > wrong.termination.precision
    # Transitions are judged by the same simulator as the data.
    steps = dataset_steps(dataset, np.flatnonzero(unclipped(dataset))[:, None])
    windows = Windows(steps, np.ones(steps.reward.shape, bool))
    for judge, right in ((reference, True), (plain, False)):
        found = evaluate_windows(windows, judge).measures.simulator
        assert (found.reward.all_steps.mean < 1e-7) == right
        assert (found.termination.precision == 1.0) == right


def test_keyword_arguments_that_the_environment_lacks_are_refused(hopper, prepared):
    with pytest.raises(UserError, match=r"check its name, config\.environment_kwargs"):
        prepared(hopper, gravity=2.0)


def test_an_unknown_environment_is_refused(hopper, prepared):
    with pytest.raises(UserError, match="Hoper-v5"):
        prepared(hopper, "Hoper-v5")


def test_samples_are_of_their_parts(hopper, reference):
    assert not set(reference.train) & set(reference.held_out)
    assert len(reference.columns) == len(reference.train)
    assert len(reference.held_out_distances) == len(reference.held_out)
    assert reference.measures.mean_reward == pytest.approx(hopper.rewards[reference.train].mean())
