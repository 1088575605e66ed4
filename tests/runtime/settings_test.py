"""Sections of settings: what is declared once is checked, described and defaulted."""

import dataclasses
import math

import numpy as np
import pytest

from dawm_jax.runtime import settings
from dawm_jax.runtime.settings import redefault, setting
from dawm_jax.types import UserError


@dataclasses.dataclass(frozen=True)
class Sizes:
    """A section with a field of every type."""

    count: int = setting(10, "how many", quick=5, smoke=1, at_least=1, source="Someone 2020")
    rate: float = setting(0.5, "per step", quick=0.25, above=0.0, below=1.0)
    share: float = setting(0.0, "of all", smoke=0.1, at_least=0.0, at_most=1.0)
    any_number: float = setting(-1.0, "of either sign")
    hidden: tuple[int, ...] = setting((4, 4), "units", smoke=(2,), at_least=1)
    skipped: tuple[int, ...] = setting((), "none is allowed", non_empty=False)
    mode: str = setting("fast", "of two", choices=("fast", "slow"))
    order: int = setting(1, "of two", choices=(1, 2))
    name: str = setting("x", "not empty")
    note: str = setting("", "may be empty", non_empty=False)
    on: bool = setting(False, "a switch", absent=True, renamed_from="other.switch")
    computed: int = 7  # no setting


@dataclasses.dataclass(frozen=True)
class Child(Sizes):
    """A section with another default, and a check of its own."""

    count: int = redefault(Sizes, "count", 20, smoke=2, help="how many children")
    on: bool = redefault(Sizes, "on", False)
    extra: int = setting(1, "more", at_least=0)

    def check(self, name):
        if self.extra > self.count:
            raise UserError(f"{name}.extra: expected at most {self.count}, got {self.extra}")


def build(section=Sizes, **changes):
    return settings.build(section, {**settings.defaults(section), **changes}, name="config.sizes")


def test_defaults_of_every_scale():
    """A scale without a default of its own takes that of the next longer one."""
    full, quick, smoke = (settings.defaults(Sizes, scale) for scale in settings.SCALES)
    assert (full["count"], quick["count"], smoke["count"]) == (10, 5, 1)
    assert (full["rate"], quick["rate"], smoke["rate"]) == (0.5, 0.25, 0.25)
    assert (full["share"], quick["share"], smoke["share"]) == (0.0, 0.0, 0.1)
    assert (full["hidden"], smoke["hidden"]) == ((4, 4), (2,))
    assert "computed" not in full
    assert settings.defaults(Sizes) == full
    assert build() == Sizes()


def test_specs_know_the_type_and_more():
    specs = settings.specs(Sizes)
    assert list(specs)[:2] == ["count", "rate"]
    assert (specs["count"].type, specs["count"].source) == (int, "Someone 2020")
    assert specs["hidden"].type == tuple[int, ...]
    assert (specs["on"].absent, specs["on"].renamed_from) == (True, "other.switch")
    assert specs["count"].absent == 10  # the default where nothing else is said
    # The older name was that of the parent's section.
    assert settings.specs(Child)["on"].renamed_from == ""


def test_rows_have_dotted_names():
    names = [name for name, _ in settings.rows(Sizes, "config.sizes")]
    assert names == [f"config.sizes.{name}" for name in settings.specs(Sizes)]


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("count", "a whole number at least 1"),
        ("rate", "a number above 0 and below 1"),
        ("share", "a number at least 0 and at most 1"),
        ("any_number", "a number"),
        ("hidden", "at least one of whole numbers at least 1"),
        ("skipped", "whole numbers"),
        ("mode", "one of fast, slow"),
        ("order", "one of 1, 2"),
        ("name", "a text that is not empty"),
        ("note", "a text"),
        ("on", "True or False"),
    ],
)
def test_ranges_in_words(field, text):
    assert settings.specs(Sizes)[field].describe_range() == text


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("count", 1),
        ("rate", 0.001),
        ("share", 0),
        ("share", 1.0),
        ("any_number", -1e30),
        ("hidden", (1,)),
        ("hidden", [3, 2]),
        ("skipped", ()),
        ("mode", "slow"),
        ("order", 2),
        ("note", ""),
        ("on", True),
    ],
)
def test_values_that_are_allowed(field, value):
    built = getattr(build(**{field: value}), field)
    assert built == (tuple(value) if isinstance(value, list) else value)
    declared = settings.specs(Sizes)[field].type
    assert isinstance(built, tuple if field in ("hidden", "skipped") else declared)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("count", 0),
        ("count", 1.0),
        ("count", "1"),
        ("count", True),
        ("count", None),
        ("rate", 0.0),
        ("rate", 1),
        ("rate", math.nan),
        ("rate", "0.5"),
        ("share", -1e-9),
        ("share", 1.01),
        ("any_number", math.inf),
        ("any_number", -math.inf),
        ("any_number", math.nan),
        ("any_number", False),
        ("hidden", ()),
        ("hidden", (0,)),
        ("hidden", (4, 2.0)),
        ("hidden", (True,)),
        ("hidden", 4),
        ("hidden", "44"),
        ("mode", "medium"),
        ("mode", 1),
        ("order", 3),
        ("order", True),
        ("name", ""),
        ("note", 3),
        ("on", 1),
        ("on", "True"),
    ],
)
def test_values_that_are_refused(field, value):
    with pytest.raises(UserError) as error:
        build(**{field: value})
    expected = settings.specs(Sizes)[field].describe_range()
    assert str(error.value) == f"config.sizes.{field}: expected {expected}, got {value!r}"


def test_missing_and_unknown_settings():
    values = settings.defaults(Sizes)
    del values["rate"]
    with pytest.raises(UserError, match=r"^config\.sizes\.rate is missing: expected per step$"):
        settings.build(Sizes, values, name="config.sizes")
    for name in ("raet", "computed"):
        with pytest.raises(UserError, match=f"sizes.{name}: unknown setting; expected count, rate"):
            build(**{name: 1})


def test_another_default_keeps_range_and_place():
    assert list(settings.specs(Child)) == [*settings.specs(Sizes), "extra"]
    spec = settings.specs(Child)["count"]
    assert [spec.default(scale) for scale in settings.SCALES] == [20, 20, 2]
    assert (spec.help, spec.source, spec.absent) == ("how many children", "", 20)
    with pytest.raises(UserError, match="count: expected a whole number at least 1, got 0"):
        build(Child, count=0)
    assert build(Child) == Child() and Child().count == 20
    assert settings.specs(Sizes)["count"].default("full") == 10


def test_a_section_checks_its_settings_against_each_other():
    assert build(Child, extra=20).extra == 20
    with pytest.raises(UserError, match=r"^config\.sizes\.extra: expected at most 20, got 21$"):
        build(Child, extra=21)


def test_a_built_section_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        build().count = 3


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("count", 2**31),
        ("count", 10**400),
        ("hidden", (4, 2**31)),
        ("any_number", 1e300),
        ("any_number", 10**400),
        ("rate", 1e-300),  # 0 in 32 bits
        ("rate", 1 - 1e-12),  # 1 in 32 bits
    ],
)
def test_numbers_that_32_bits_do_not_hold_are_refused(field, value):
    with pytest.raises(UserError, match=rf"^s\.{field}: expected .* that 32 bits hold, got ") as e:
        settings.build(Sizes, {**settings.defaults(Sizes), field: value}, name="s")
    assert "\n" not in str(e.value) and len(str(e.value)) < 400


def test_the_largest_numbers_are_allowed():
    values = {**settings.defaults(Sizes), "count": 2**31 - 1, "any_number": 3e38}
    assert settings.build(Sizes, values, name="s").count == 2**31 - 1


def test_a_value_of_many_lines_is_refused_in_one():
    with pytest.raises(UserError) as error:
        settings.build(Sizes, {**settings.defaults(Sizes), "rate": np.zeros((9, 9))}, name="s")
    assert "\n" not in str(error.value)


def test_a_type_that_no_flag_has_is_refused():
    @dataclasses.dataclass(frozen=True)
    class Section:
        limit: float | None = settings.setting(None, "no flag can be None or a number")

    with pytest.raises(UserError, match=r"config\.x\.limit: expected the type int, float, .*got"):
        settings.check_declared(Section, "config.x")
