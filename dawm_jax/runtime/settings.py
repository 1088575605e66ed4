"""Settings declared once: name, type, default, range, meaning, unit and source of every field.

A section of the configuration is a frozen dataclass whose fields are made by `setting`. Help,
checks, the documentation's table and the reading of older configurations come from it.

@dataclasses.dataclass(frozen=True)
class Settings:
    learning_rate: float = setting(3e-4, "peak of Adam's rate", above=0.0, quick=2e-3)
    hidden: tuple[int, ...] = setting((256, 256), "units of the hidden layers", at_least=1)
"""

import dataclasses
import math
import struct
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from dawm_jax.types import UserError, one_line

T = TypeVar("T")

# Variants of the configuration, from long to short. A field without a default for a variant takes
# the default of the next longer variant that has one.
SCALES = ("full", "quick", "smoke")
_SPEC = "setting"
_INT32_MAX = 2**31 - 1
_KINDS = {int: "a whole number", float: "a number", bool: "True or False"}
_TYPES = (*_KINDS, str, tuple[int, ...])


@dataclasses.dataclass(frozen=True)
class Spec:
    """The declaration of a field: everything but its name.

    Attributes:
      type: int, float, bool, str or tuple[int, ...].
      help: meaning, with its unit.
      source: the paper that the default is from, or "".
      defaults: variant of `SCALES` -> default; "full" always has one.
      at_least: inclusive lower bound, of each element of a tuple; None is unbounded.
      above: exclusive lower bound.
      at_most: inclusive upper bound.
      below: exclusive upper bound.
      choices: the allowed values; () allows all.
      non_empty: whether an empty tuple or text is refused.
      absent: value that a config.json without the field stands for.
      absent_from: dotted name of the setting whose value it stands for, or "".
      renamed_from: dotted name of the field in older configurations, or "".
      reporting: whether the field changes only what is recorded of a run, not what is trained.
    """

    type: Any
    help: str
    source: str
    defaults: dict[str, Any]
    at_least: float | None
    above: float | None
    at_most: float | None
    below: float | None
    choices: tuple[Any, ...]
    non_empty: bool
    absent: Any
    absent_from: str
    renamed_from: str
    reporting: bool

    def default(self, scale: str) -> Any:
        """The default of a variant, or of the next longer variant that has one."""
        for name in reversed(SCALES[: SCALES.index(scale) + 1]):
            if name in self.defaults:
                return self.defaults[name]
        raise KeyError(scale)

    def describe_range(self) -> str:
        """The allowed values in words."""
        if self.choices:
            return "one of " + ", ".join(map(str, self.choices))
        if self.type is str:
            return "a text that is not empty" if self.non_empty else "a text"
        if self._is_tuple:
            some = "at least one of " if self.non_empty else ""
            return f"{some}whole numbers{self._limits()}"
        return _KINDS[self.type] + self._limits()

    def _limits(self) -> str:
        limits = [
            f"{word} {bound:.0f}" if float(bound).is_integer() else f"{word} {bound:g}"
            for word, bound in (
                ("at least", self.at_least),
                ("above", self.above),
                ("at most", self.at_most),
                ("below", self.below),
            )
            if bound is not None
        ]
        return " " + " and ".join(limits) if limits else ""

    def allows(self, value: Any) -> bool:
        """Whether `value` has the type and lies in the range."""
        if self._is_tuple:
            return (
                isinstance(value, tuple | list)
                and (len(value) > 0 or not self.non_empty)
                and all(_has_type(item, int) and self._in_range(item) for item in value)
            )
        if not _has_type(value, self.type):
            return False
        if self.choices:
            return value in self.choices
        if isinstance(value, str):
            return value != "" or not self.non_empty
        return isinstance(value, bool) or self._in_range(value)

    @property
    def _is_tuple(self) -> bool:
        return typing.get_origin(self.type) is tuple

    def refusal(self, value: Any) -> str:
        """What is wrong with a value, "expected RANGE, got VALUE"; "" if nothing is."""
        allowed = self.allows(value)
        if allowed and self._fits(value):
            return ""
        width = " that 32 bits hold" if allowed else ""
        return f"expected {self.describe_range()}{width}, got {one_line(repr(value))}"

    def _fits(self, value: Any) -> bool:
        """Whether an allowed value is still in its range as JAX computes with it, in 32 bits."""
        if self._is_tuple:
            return all(item <= _INT32_MAX for item in value)
        if self.type is int:
            return bool(value <= (_INT32_MAX if self.at_most is None else self.at_most))
        if self.type is not float:
            return True
        try:
            (single,) = struct.unpack("f", struct.pack("f", float(value)))
        except OverflowError:
            return False
        return self._in_range(single)

    def _in_range(self, value: float) -> bool:
        return (
            (isinstance(value, int) or math.isfinite(value))
            and (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )


class Section(typing.Protocol):
    """A frozen dataclass of settings; `build` calls its `check(name)`, if there is one."""

    __dataclass_fields__: typing.ClassVar[dict[str, Any]]


_UNSET: Any = object()


def setting(
    default: Any,
    help: str,
    *,
    quick: Any = _UNSET,
    smoke: Any = _UNSET,
    source: str = "",
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    choices: tuple[Any, ...] = (),
    non_empty: bool = True,
    absent: Any = _UNSET,
    absent_from: str = "",
    renamed_from: str = "",
    reporting: bool = False,
) -> Any:
    """A field of a section.

    Args:
      default: default at full size, without a variant.
      help: meaning, with its unit.
      quick: default of the quick variant, if it differs.
      smoke: default of the smoke variant, if it differs from the quick one's.
      source: paper that the default is from.
      at_least: inclusive lower bound. All bounds of a tuple are those of each element.
      above: exclusive lower bound.
      at_most: inclusive upper bound.
      below: exclusive upper bound.
      choices: the allowed values.
      non_empty: False allows an empty tuple or text.
      absent: value that a config.json without the field stands for; the default if unset.
      absent_from: dotted name of a setting, in a section that all methods share, whose value a
        config.json without the field stands for; it goes before `absent`.
      renamed_from: dotted name of the field in older configurations.
      reporting: the field changes only what is recorded of a run, so that a resumed run may
        change it.
    """
    defaults = {"full": default, "quick": quick, "smoke": smoke}
    spec = Spec(
        type=None,  # known once the class is: see `specs`
        help=help,
        source=source,
        defaults={name: value for name, value in defaults.items() if value is not _UNSET},
        at_least=at_least,
        above=above,
        at_most=at_most,
        below=below,
        choices=choices,
        non_empty=non_empty,
        absent=default if absent is _UNSET else absent,
        absent_from=absent_from,
        renamed_from=renamed_from,
        reporting=reporting,
    )
    return dataclasses.field(default=default, metadata={_SPEC: spec})


def redefault(
    section: type[Section],
    name: str,
    default: Any,
    *,
    quick: Any = _UNSET,
    smoke: Any = _UNSET,
    help: str = "",
    source: str = "",
) -> Any:
    """A field that a section inherits from `section`, with another default.

    Range and, without `help`, meaning stay those of the inherited field. `absent`, `absent_from`
    and `renamed_from` do not: they say where older configurations have the parent section's field.
    A configuration without this one stands for `default`.
    """
    inherited = specs(section)[name]
    defaults = {"full": default, "quick": quick, "smoke": smoke}
    spec = dataclasses.replace(
        inherited,
        help=help or inherited.help,
        source=source,
        defaults={key: value for key, value in defaults.items() if value is not _UNSET},
        absent=default,
        absent_from="",
        renamed_from="",
    )
    return dataclasses.field(default=default, metadata={_SPEC: spec})


def specs(section: type[Section]) -> dict[str, Spec]:
    """The fields of a section made by `setting`, in their order."""
    hints = typing.get_type_hints(section)
    return {
        field.name: dataclasses.replace(field.metadata[_SPEC], type=hints[field.name])
        for field in dataclasses.fields(section)
        if _SPEC in field.metadata
    }


def check_declared(section: type[Section], name: str) -> None:
    """Checks that every field of a section is made by `setting` and has a type that flags have.

    Raises:
      UserError: a plain field, which no flag, check or help would show, or another type.
    """
    for field in dataclasses.fields(section):
        if _SPEC not in field.metadata:
            raise UserError(
                f"{name}.{field.name}: expected a field made by setting(default, meaning), got a "
                f"plain one in {section.__qualname__}"
            )
    for field_name, spec in specs(section).items():
        if spec.type not in _TYPES:
            known = "int, float, bool, str or tuple[int, ...]"
            raise UserError(
                f"{name}.{field_name}: expected the type {known}, got {spec.type} in "
                f"{section.__qualname__}"
            )


def defaults(section: type[Section], scale: str = "full") -> dict[str, Any]:
    """The section's defaults in a variant of `SCALES`."""
    return {name: spec.default(scale) for name, spec in specs(section).items()}


def build(section: type[T], values: Mapping[str, Any], *, name: str) -> T:
    """A section of `values`, with the types of its fields.

    Args:
      section: the dataclass.
      values: values of all its fields, as a ConfigDict or JSON gives them.
      name: dotted name of the section, for messages: "config.td3_bc".

    Raises:
      UserError: a value of another type or out of its range, a missing or unknown field, or
        what the section's own `check` refuses.
    """
    built = section(**checked(section, values, name=name))
    if (check := getattr(built, "check", None)) is not None:
        check(name)
    return built


def checked(section: type, values: Mapping[str, Any], *, name: str) -> dict[str, Any]:
    """The values of a section's fields with their types; see `build`."""
    known = specs(section)
    if unknown := sorted(set(values) - set(known)):
        raise UserError(f"{name}.{unknown[0]}: unknown setting; expected {', '.join(known)}")
    if missing := [field for field in known if field not in values]:
        raise UserError(f"{name}.{missing[0]} is missing: expected {known[missing[0]].help}")
    for field, spec in known.items():
        if refusal := spec.refusal(values[field]):
            raise UserError(f"{name}.{field}: {refusal}")
    return {field: _convert(values[field], spec.type) for field, spec in known.items()}


def rows(section: type[Section], name: str) -> Iterator[tuple[str, Spec]]:
    """(dotted name, spec) of every field, for help and tables."""
    for field, spec in specs(section).items():
        yield f"{name}.{field}", spec


def _has_type(value: Any, kind: Any) -> bool:
    if isinstance(value, bool):
        return kind is bool
    if kind is float:
        return isinstance(value, int | float)
    return isinstance(kind, type) and isinstance(value, kind)


def _convert(value: Any, kind: Any) -> Any:
    if isinstance(kind, types.GenericAlias):
        return tuple(value)
    return kind(value)
