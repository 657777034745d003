"""Conversion between frozen dataclasses and plain JSON values, with checks of every field."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union

from stunet.errors import UserError

T = TypeVar("T")


def from_dict(cls: type[T], mapping: Mapping[str, Any], where: str) -> T:
    """Builds a dataclass from plain values and checks every field.

    Field types may be `bool`, `int`, `float`, `str`, `dict`, `Any`, a `Literal`, another dataclass
    (from a mapping), a tuple (from a list), or a union of these such as `X | None`. A float field
    accepts an integer.

    Args:
      cls: Dataclass to build. Fields with a default may be missing from `mapping`.
      mapping: Plain values by field name.
      where: Source of the values ("DIR/config.json"), the prefix of every error.

    Raises:
      UserError: A field is unknown, missing or of the wrong type, or the dataclass's
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
    hints = typing.get_type_hints(cls)
    values = {name: _convert(hints[name], value, where, name) for name, value in mapping.items()}
    try:
        return cls(**values)
    except (ValueError, UserError) as error:
        raise UserError(f"{where}: {error}") from error


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
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise _mismatch(where, name, f"the fields of {kind.__name__}", value)
        return from_dict(kind, value, f"{where}: {name}")
    if origin is tuple:
        return _convert_tuple(args, value, where, name)
    plain = origin or kind
    if plain is float and type(value) is int:
        return float(value)
    # Compare exact types: bool is a subclass of int.
    if type(value) is plain or (plain is dict and isinstance(value, Mapping)):
        return value
    raise _mismatch(where, name, "null" if plain is types.NoneType else plain.__name__, value)


def _convert_union(kinds: tuple, value: Any, where: str, name: str) -> Any:
    if value is None and types.NoneType in kinds:
        return None
    members = [kind for kind in kinds if kind is not types.NoneType]
    if len(members) == 1:  # X | None: an error inside X is the more precise message
        return _convert(members[0], value, where, name)
    for member in members:
        try:
            return _convert(member, value, where, name)
        except UserError:
            continue
    expected = " or ".join(getattr(member, "__name__", str(member)) for member in kinds)
    raise _mismatch(where, name, expected, value)


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
    return UserError(f"{where}: {name} is {_show(value)}, expected {expected}")


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _suggest(name: Any, known: list[str]) -> str:
    close = difflib.get_close_matches(str(name), known, n=1)
    return f"did you mean '{close[0]}'?" if close else f"expected one of {', '.join(known)}"
