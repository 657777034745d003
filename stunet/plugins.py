"""Lookup of extensions by name: from a table, or from any importable module."""

import importlib
from collections.abc import Mapping
from typing import TypeVar

from stunet.errors import UserError

T = TypeVar("T")


def resolve(kind: str, name: str, table: Mapping[str, T]) -> T:
    """Returns the entry of a table, or an object from outside the package.

    Args:
      kind: What the table holds ("sampler"), for error messages.
      name: A key of the table, or "package.module:name".
      table: Entries by name.

    Raises:
      UserError: The name is not in the table, or the module or its attribute does not exist.
    """
    if name in table:
        return table[name]
    module_name, colon, attribute = name.partition(":")
    if not colon:
        raise UserError(
            f"{kind}: unknown name {name!r}, expected one of {', '.join(table)} or "
            "'package.module:name'"
        )
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{kind}: cannot load {name!r} ({error})") from error
