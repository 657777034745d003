"""Filters of clips by numeric columns of their tables, such as "aesthetic score>5"."""

import ast
import contextlib
import math
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from data.tables import parse_json, replace_surrogates
from stunet.errors import UserError

_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
}


class Condition(NamedTuple):
    """A condition on a numeric column, such as "aesthetic score>5"."""

    column: str
    symbol: str
    limit: float

    def __str__(self) -> str:
        return f"{self.column}{self.symbol}{self.limit:g}"

    def holds(self, row: Mapping[str, Any], index: int | None, place: str) -> bool:
        """Returns whether a clip fulfils the condition.

        Args:
          row: Values by the names of the columns in lower case.
          index: Position of the clip in columns that contain a list. None if they contain none.
          place: Where the row stands, for messages.

        Raises:
          UserError: the column does not exist or its value is not a number.
        """
        value = _item(row.get(self.column), index)
        if _is_number(value):
            return _COMPARISONS[self.symbol](float(value), self.limit)
        problem = f"{str(value)[:40]!r}" if self.column in row else "absent"
        numeric = [name for name, other in row.items() if _is_number(_item(other, index))]
        raise UserError(
            f"config.data.filter: column {self.column!r} is {problem} in {place}, expected a "
            f"number (numeric columns: {', '.join(numeric) or 'none'})"
        )


def parse_filters(text: str | None) -> tuple[Condition, ...]:
    """Parses conditions that are joined by commas, such as "aesthetic score>5,fps>=24".

    Raises:
      UserError: a condition is not COLUMN, an operator and a number.
    """
    conditions = []
    for part in text.split(",") if text else ():
        match = re.fullmatch(r"\s*(.+?)\s*(>=|<=|==|!=|>|<)\s*(.+?)\s*", part)
        if match is None or not _is_number(match[3]):
            raise UserError(
                f"config.data.filter: {part!r}, expected COLUMN, one of {' '.join(_COMPARISONS)} "
                'and a number, as in "aesthetic score>5"'
            )
        conditions.append(Condition(match[1].lower(), match[2], float(match[3])))
    return tuple(conditions)


def parse_list(value: Any) -> list:
    """Returns a list, which may be stored as its JSON or Python literal.

    Strings of literals contain U+FFFD instead of lone surrogates.

    Raises:
      ValueError: the value is no list.
    """
    items = value
    if isinstance(value, str):
        try:
            items = parse_json(value)
        except ValueError:
            with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
                items = replace_surrogates(ast.literal_eval(value.strip()))
    if not isinstance(items, list | tuple):
        raise ValueError(f"{str(value)[:60]!r}, expected a list")
    return list(items)


def _item(value: Any, index: int | None) -> Any:
    """Returns a clip's own value of a column that contains a list, else the value."""
    if index is not None:
        with contextlib.suppress(ValueError, IndexError):
            return parse_list(value)[index]
    return value


def _is_number(value: Any) -> bool:
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError, OverflowError):
        return False
