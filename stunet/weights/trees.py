"""Pure helpers on parameter trees: nested dicts whose leaves are arrays (or their shapes).

A leaf's path is its keys joined by '/': `mid_block/attn_0/to_q/kernel`.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from stunet.errors import UserError

Tree = dict[str, Any]

_SHOWN = 10  # names of each kind that an error lists


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """`{"a": {"b": leaf}}` -> `{"a/b": leaf}`; empty branches vanish.

    Raises:
      ValueError: a key is no string or contains '/', so paths would not be unique.
    """
    flat = {}
    for key, value in tree.items():
        if not isinstance(key, str) or "/" in key:
            raise ValueError(f"a parameter tree's keys are strings without '/', got {key!r}")
        if isinstance(value, Mapping):
            flat.update({f"{key}/{path}": leaf for path, leaf in flatten(value).items()})
        else:
            flat[key] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> Tree:
    """`{"a/b": leaf}` -> `{"a": {"b": leaf}}`: the inverse of `flatten`.

    Raises:
      ValueError: one path goes through the leaf of another.
    """
    tree: Tree = {}
    for path, leaf in flat.items():
        *branches, name = path.split("/")
        node = tree
        for branch in branches:
            node = node.setdefault(branch, {})
            if not isinstance(node, dict):
                raise ValueError(f"'{path}' goes through another leaf")
        if name in node:
            raise ValueError(f"'{path}' is both a leaf and a branch")
        node[name] = leaf
    return tree


def partition(tree: Mapping[str, Any], predicate: Callable[[str], bool]) -> tuple[Tree, Tree]:
    """Splits a tree by path into (selected, rest); `merge` puts it together again."""
    flat = flatten(tree)
    selected = {path: leaf for path, leaf in flat.items() if predicate(path)}
    rest = {path: leaf for path, leaf in flat.items() if path not in selected}
    return unflatten(selected), unflatten(rest)


def is_temporal(path: str) -> bool:
    """Whether a U-Net's parameter belongs to the inflation, for `partition`."""
    return any(name.startswith("temporal_") for name in path.split("/"))


def is_added(path: str) -> bool:
    """Whether a parameter of a U-Net is none of the text-to-image network inside it."""
    return is_temporal(path) or "cond_conv_in" in path.split("/")


def merge(a: Mapping[str, Any], b: Mapping[str, Any]) -> Tree:
    """The tree with the leaves of both.

    Raises:
      ValueError: the trees overlap.
    """
    flat_a, flat_b = flatten(a), flatten(b)
    if overlap := sorted(flat_a.keys() & flat_b.keys()):
        raise ValueError(f"both trees have {_listed(overlap)}")
    return unflatten(flat_a | flat_b)


def compare_shapes(
    expected: Mapping[str, Any],
    got: Mapping[str, Any],
    where: str,
    families: Mapping[str, str] | None = None,
) -> None:
    """Checks that two trees have the same names and shapes (dtypes may differ).

    Args:
      expected: what the network has; leaves with a `.shape` (`jax.eval_shape`'s will do).
      got: the parameters on offer.
      where: what `got` was read from, named in the error.
      families: a part of a name that no parameter here has -> where such ones are from, for the
        error to name the likely cause.

    Raises:
      UserError: one line with the first ten missing, unexpected and misshapen
        parameters, and their shapes.
    """
    flat_expected, flat_got = flatten(expected), flatten(got)
    missing = [path for path in flat_expected if path not in flat_got]
    unexpected = [path for path in flat_got if path not in flat_expected]
    misshapen = [
        f"{path} (expected {_shape(leaf)}, got {_shape(flat_got[path])})"
        for path, leaf in flat_expected.items()
        if path in flat_got and _shape(leaf) != _shape(flat_got[path])
    ]
    kinds = {
        "another shape": misshapen,
        "missing": [f"{path} {_shape(flat_expected[path])}" for path in missing],
        "unexpected": [f"{path} {_shape(flat_got[path])}" for path in unexpected],
    }
    problems = [f"{kind}: {_listed(names)}" for kind, names in kinds.items() if names]
    causes = [
        cause
        for part, cause in (families or {}).items()
        if any(part in path for path in unexpected)
    ]
    problems = causes[:1] + problems
    if problems:
        raise UserError(f"{where}: parameters do not fit the network; " + "; ".join(problems))


def count(tree: Mapping[str, Any]) -> int:
    """Number of scalars in a tree."""
    return sum(math.prod(_shape(leaf)) for leaf in flatten(tree).values())


def _shape(leaf: Any) -> tuple[int, ...]:
    return tuple(leaf.shape)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
