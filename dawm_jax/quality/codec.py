"""Trees of frozen dataclasses to what JSON holds, and back."""

import dataclasses
import types
import typing
from collections.abc import Mapping

from dawm_jax.types import UserError

T = typing.TypeVar("T")


def encode(value: object) -> object:
    """A tree of dataclasses, tuples, mappings and scalars as dictionaries, lists and scalars."""
    if dataclasses.is_dataclass(value):
        fields = dataclasses.fields(value)
        return {field.name: encode(getattr(value, field.name)) for field in fields}
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(item) for item in value]
    return value


def decode(kind: type[T], stored: object) -> T:
    """The inverse of `encode`.

    Args:
      kind: the dataclass at the root of the tree.
      stored: what `encode` returned, or what JSON made of it. A missing field is None. A field
        that `kind` does not have is ignored.

    Raises:
      UserError: a missing field may not be None, or a value has another type.
    """
    return typing.cast(T, _decode(kind, stored, kind.__name__))


def _decode(kind: typing.Any, stored: object, where: str) -> object:
    """`stored` as the type `kind`; `where` names the value in error messages."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        (some,) = (argument for argument in arguments if argument is not types.NoneType)
        return None if stored is None else _decode(some, stored, where)
    if dataclasses.is_dataclass(kind) and isinstance(stored, Mapping):
        hints = typing.get_type_hints(kind)
        return kind(  # type: ignore[operator]
            **{
                field.name: _decode(
                    hints[field.name], stored.get(field.name), f"{where}.{field.name}"
                )
                for field in dataclasses.fields(kind)
            }
        )
    if origin is tuple and isinstance(stored, (list, tuple)):
        return tuple(_decode(arguments[0], item, where) for item in stored)
    if origin is Mapping and isinstance(stored, Mapping):
        return {arguments[0](k): _decode(arguments[1], v, where) for k, v in stored.items()}
    if kind is object or (origin is None and isinstance(stored, kind)):
        return stored
    if kind is float and isinstance(stored, int):
        return float(stored)
    got = "nothing" if stored is None else type(stored).__name__
    raise UserError(
        f"{where}: expected {getattr(kind, '__name__', kind)}, got {got}; make the report anew"
    )
