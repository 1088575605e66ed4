"""A fault of every kind at every place, with other random choices than the published ones."""

import pytest
from faults import harness

pytestmark = pytest.mark.slow

SEED = 1_000
FAULTS = [(kind, place) for kind in harness.KINDS for place in harness.places(kind)]


@pytest.fixture(name="lab", scope="module")
def _lab(tmp_path_factory):
    lab = harness.Lab(tmp_path_factory.mktemp("lab"))
    yield lab
    lab.close()


@pytest.mark.parametrize(("kind", "place"), FAULTS, ids=[f"{k}-{p}" for k, p in FAULTS])
def test_a_fault_ends_right_or_in_one_line(lab, kind, place):
    fault = harness.try_fault(lab, kind, place, SEED)
    assert fault.held, fault.ending
