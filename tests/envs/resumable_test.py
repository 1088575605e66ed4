"""An evaluation that is stopped and resumed has the returns of one that is not."""

import numpy as np
import pytest

from dawm_jax.envs import rollouts
from dawm_jax.envs.resumable import ResumablePolicy
from dawm_jax.runtime.stopping import Interrupted, StopFlag


def _noisy(observations, step):
    """Actions that depend on the step, as plans drawn from a step's key do."""
    noise = np.random.default_rng(step).normal(size=(*observations.shape[:2], 3))
    return (0.3 * noise + 0.1 * observations[..., :3]).astype(np.float32)


def _evaluate(policy, **options):
    seeds = rollouts.reset_seeds(5, 0, 0, num_policies=2, num_episodes=3)
    return rollouts.run_episodes(policy, "Hopper-v5", seeds=seeds, **options).returns


def test_a_stopped_evaluation_is_resumed_bit_for_bit(tmp_path):
    path, stop, planned = tmp_path / "actions.npz", StopFlag(), []

    def stopping(observations, step):
        if step == 7:
            stop.signal = 15
        return _noisy(observations, step)

    def counting(observations, step):
        planned.append(step)
        return _noisy(observations, step)

    expected = _evaluate(ResumablePolicy(_noisy, tmp_path / "other.npz"))
    policy = ResumablePolicy(stopping, path)
    with pytest.raises(Interrupted):
        _evaluate(policy, stop=stop)
    policy.save()
    resumed = ResumablePolicy(counting, path)
    assert resumed.num_kept == 8
    np.testing.assert_array_equal(_evaluate(resumed), expected)
    assert planned[0] == 8  # steps 0 to 7 are repeated
    resumed.discard()
    assert not path.exists()


def test_actions_of_other_states_are_planned_again(tmp_path):
    path = tmp_path / "actions.npz"
    policy = ResumablePolicy(_noisy, path)
    _evaluate(policy, max_steps=4)
    policy.save()
    other = ResumablePolicy(_noisy, path)
    observations = np.ones((2, 3, 11), np.float32)
    np.testing.assert_array_equal(other(observations), _noisy(observations, 0))


def test_a_damaged_file_starts_again(tmp_path, caplog):
    path = tmp_path / "actions.npz"
    path.write_bytes(b"PK damaged")
    assert ResumablePolicy(_noisy, path).num_kept == 0
    assert "damaged" in caplog.text
