"""The range of returns that scales IQL's rewards: the plain one, unless it is next to nothing."""

import numpy as np
import pytest

from dawm_jax.data.normalizer import return_range


@pytest.mark.parametrize(
    ("returns", "expected"),
    [
        ([300.0, 3200.0, 1500.0], 2900.0),
        ([-400.0, -20.0], 380.0),
        ([3600.0, 3604.0], 4.0),  # more than a thousandth of 3,604
        ([1e-4, 3e-4], 2e-4),
        ([100.0, 100.01], 0.10001),  # the floor, a thousandth of the largest magnitude
        ([-100.01, -100.0], 0.10001),
        ([100.0, 100.0], 1000.0),  # equal
        ([0.0, 0.0], 1000.0),
        ([5.0], 1000.0),
        ([100.0, 100.0 + 1e-5], 1000.0),  # equal up to rounding
    ],
)
def test_return_range(returns, expected):
    assert return_range(np.array(returns)) == pytest.approx(expected, rel=1e-9)
