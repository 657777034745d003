"""Conversion between frozen dataclasses and plain JSON values, with checks of every field.

Every number has a range. It is declared with the field's type:

    strength: Annotated[float, Range(0, 1)]

A number without a `Range` is positive: an integer from 1 to 2**31 - 1, or a float above 0 and up to
1e9. NaN and infinity are never in a range.
"""

import dataclasses
import difflib
import functools
import math
import numbers
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar, Union

from stunet.errors import UserError

T = TypeVar("T")

MAX_INT = 2**31 - 1  # the largest int32, the type of indices and counters in JAX
MAX_SEED = 2**32 - 1  # `jax.random.key` takes the lower 32 bits
_MAX_FLOAT = 1e9


@dataclasses.dataclass(frozen=True)
class Range:
    """Range of a number, as metadata of its type.

    Attributes:
      low: Smallest value.
      high: Largest value. None means 2**31 - 1 for an integer, and 1e9 for a float.
      above_low: Whether `low` itself is excluded.
    """

    low: float
    high: float | None = None
    above_low: bool = False

    def _contains(self, value: float) -> bool:
        high = self._high(type(value))
        return (self.low < value if self.above_low else self.low <= value) and value <= high

    def _high(self, kind: type) -> float:
        if self.high is not None:
            return self.high
        return MAX_INT if kind is int else _MAX_FLOAT

    def _describe(self, kind: type) -> str:
        high, noun = self._high(kind), "an int" if kind is int else "a float"
        low, high = (f"{end:d}" if isinstance(end, int) else f"{end:g}" for end in (self.low, high))
        return f"{noun} {'above' if self.above_low else 'from'} {low} to {high}"


_PLAIN_TYPES = (bool, int, float, str, dict)
_DEFAULT_RANGES = {int: Range(1), float: Range(0, above_low=True)}

# Types of fields of several configs.
Seed = Annotated[int, Range(0, MAX_SEED)]
FrameRate = Annotated[float, Range(0.01, 1000)]  # frames per second that files can represent
GuidanceScale = Annotated[float, Range(-1000, 1000)]
Timestep = Annotated[float, Range(0, 999)]  # on IF's scale


def from_dict(cls: type[T], mapping: Mapping[str, Any], where: str) -> T:
    """Builds a dataclass from plain values and checks every field.

    Field types may be `bool`, `int`, `float`, `str`, `dict`, `Any`, a `Literal`, another dataclass
    (from a mapping), a tuple (from a list), or a union of these such as `X | None`. A float field
    accepts an integer. Numbers have to be in their range, see the module.

    Args:
      cls: Dataclass to build. Fields with a default may be missing from `mapping`.
      mapping: Plain values by field name.
      where: Source of the values ("DIR/config.json"), the prefix of every error.

    Raises:
      UserError: A field is unknown, missing, of the wrong type or out of range, or the dataclass's
        `__post_init__` raised `ValueError` or `UserError`.
    """
    if not isinstance(mapping, Mapping):
        raise UserError(f"{where}: got {_show(mapping)}, expected the fields of {cls.__name__}")
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    for name in mapping:
        if name not in fields:
            raise UserError(f"{where}: unknown field '{name}'; {_suggest(name, list(fields))}")
    missing = [name for name, field in fields.items() if name not in mapping and _required(field)]
    if missing:
        noun = "fields" if len(missing) > 1 else "field"
        raise UserError(f"{where}: missing {noun} {', '.join(missing)}")
    hints = _type_hints(cls)
    values = {name: _convert(hints[name], value, where, name) for name, value in mapping.items()}
    try:
        return cls(**values)
    except (ValueError, UserError) as error:
        raise UserError(f"{where}: {error}") from error


def check_fields(config: Any, prefix: str = "") -> None:
    """Checks the types and ranges of all fields of a dataclass, for its `__post_init__`.

    Fields whose type is another class, which no plain value can have, are not checked.

    Args:
      config: The dataclass.
      prefix: Put before the names of fields in errors: "schedule.".

    Raises:
      UserError: A field has the wrong type or is out of range.
    """
    hints = _type_hints(type(config))
    for field in dataclasses.fields(config):
        kind = hints[field.name]
        if not isinstance(kind, type) or kind in _PLAIN_TYPES or dataclasses.is_dataclass(kind):
            _convert(kind, getattr(config, field.name), "", f"{prefix}{field.name}")


def to_dict(config: Any) -> dict[str, Any]:
    """Converts the fields of a dataclass to plain JSON values; the inverse of `from_dict`."""
    return {
        field.name: _plain(getattr(config, field.name))
        for field in dataclasses.fields(config)
        if field.init
    }


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_dict(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


@functools.cache
def _type_hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls, include_extras=True)


def _required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _convert(kind: Any, value: Any, where: str, name: str) -> Any:
    """Converts `value` to the type `kind`. `name` is the field for error messages."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):
        return _convert_union(args, value, where, name)
    if origin is Literal:
        # Compare types too: True == 1, but a JSON true is not the number.
        if any(value == choice and type(value) is type(choice) for choice in args):
            return value
        raise _mismatch(where, name, "one of " + ", ".join(map(repr, args)), value)
    if origin is Annotated:
        limits = next((note for note in args[1:] if isinstance(note, Range)), None)
        return _convert_number(args[0], limits, value, where, name)
    if kind in _DEFAULT_RANGES:
        return _convert_number(kind, _DEFAULT_RANGES[kind], value, where, name)
    if dataclasses.is_dataclass(kind):
        if isinstance(value, kind):  # checked when it was made
            return value
        if not isinstance(value, Mapping):
            raise _mismatch(where, name, f"the fields of {kind.__name__}", value)
        return from_dict(kind, value, f"{where}: {name}")
    if origin is tuple:
        return _convert_tuple(args, value, where, name)
    plain = origin or kind
    if isinstance(value, str) and "\0" in value:
        raise _mismatch(where, name, "a text without NUL characters", value)
    # Compare exact types: bool is a subclass of int.
    if type(value) is plain or (plain is dict and isinstance(value, Mapping)):
        return value
    raise _mismatch(where, name, "null" if plain is types.NoneType else plain.__name__, value)


def _convert_number(kind: type, limits: Range, value: Any, where: str, name: str) -> Any:
    """Converts a number, also one of NumPy, to `int` or `float` and checks its range."""
    accepted = numbers.Integral if kind is int else numbers.Real
    if not isinstance(value, accepted) or isinstance(value, bool):
        raise _mismatch(where, name, kind.__name__, value)
    try:
        number = kind(value)
    except OverflowError:  # an integer that is too large for a float
        number = math.inf
    if not limits._contains(number):
        place = f"{where}: {name}" if where else name
        raise UserError(f"{place}: {_show(value)}, expected {limits._describe(kind)}")
    return number


def _convert_union(kinds: tuple, value: Any, where: str, name: str) -> Any:
    if value is None and types.NoneType in kinds:
        return None
    members = [kind for kind in kinds if kind is not types.NoneType]
    if isinstance(value, Mapping):  # an error inside a dataclass is the more precise message
        members = [kind for kind in members if dataclasses.is_dataclass(kind)] or members
    if len(members) == 1:
        return _convert(members[0], value, where, name)
    for member in members:
        try:
            return _convert(member, value, where, name)
        except UserError:
            continue
    raise _mismatch(where, name, " or ".join(map(_kind_name, kinds)), value)


def _kind_name(kind: Any) -> str:
    if typing.get_origin(kind) is Annotated:
        kind = typing.get_args(kind)[0]
    return getattr(kind, "__name__", str(kind))


def _convert_tuple(kinds: tuple, value: Any, where: str, name: str) -> tuple:
    if not isinstance(value, list | tuple):
        raise _mismatch(where, name, "a list", value)
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = (kinds[0],) * len(value)
    elif not kinds:
        kinds = (Any,) * len(value)
    elif len(kinds) != len(value):
        raise _mismatch(where, name, f"a list of {len(kinds)}", value)
    return tuple(
        _convert(kind, item, where, f"{name}[{i}]")
        for i, (kind, item) in enumerate(zip(kinds, value, strict=True))
    )


def _mismatch(where: str, name: str, expected: str, value: Any) -> UserError:
    place = f"{where}: {name} is" if where else f"{name}:"
    return UserError(f"{place} {_show(value)}, expected {expected}")


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _suggest(name: Any, known: list[str]) -> str:
    close = difflib.get_close_matches(str(name), known, n=1)
    return f"did you mean '{close[0]}'?" if close else f"expected one of {', '.join(known)}"
