"""Operations on parameter trees: nested dicts whose leaves are arrays or shape structs.

The path of a leaf is its keys joined by '/': `mid_block/attn_0/to_q/kernel`.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes  # noqa: F401  (NumPy then knows "bfloat16" by name)
import numpy as np

from stunet.errors import UserError

Tree = dict[str, Any]

_MAX_LISTED = 2  # names of each kind in an error message


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Converts `{"a": {"b": leaf}}` to `{"a/b": leaf}`. Empty branches are dropped.

    Raises:
      ValueError: A key is not a string or contains '/', so paths would not be unique.
    """
    flat = {}
    for key, value in tree.items():
        if not isinstance(key, str) or "/" in key:
            raise ValueError(f"parameter tree: invalid key {key!r}, expected a string without '/'")
        if isinstance(value, Mapping):
            flat.update({f"{key}/{path}": leaf for path, leaf in flatten(value).items()})
        else:
            flat[key] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> Tree:
    """Converts `{"a/b": leaf}` to `{"a": {"b": leaf}}`; the inverse of `flatten`.

    Raises:
      ValueError: One path passes through the leaf of another.
    """
    tree: Tree = {}
    for path, leaf in flat.items():
        *branches, name = path.split("/")
        node = tree
        for branch in branches:
            node = node.setdefault(branch, {})
            if not isinstance(node, dict):
                raise ValueError(f"'{path}' passes through another leaf")
        if name in node:
            raise ValueError(f"'{path}' is both a leaf and a branch")
        node[name] = leaf
    return tree


def partition(tree: Mapping[str, Any], predicate: Callable[[str], bool]) -> tuple[Tree, Tree]:
    """Splits a tree by path into (selected, rest); `merge` is the inverse."""
    flat = flatten(tree)
    selected = {path: leaf for path, leaf in flat.items() if predicate(path)}
    rest = {path: leaf for path, leaf in flat.items() if path not in selected}
    return unflatten(selected), unflatten(rest)


def is_temporal(path: str) -> bool:
    """Returns whether a U-Net parameter belongs to a temporal block (was added by inflation)."""
    return any(name.startswith("temporal_") for name in path.split("/"))


def is_added(path: str) -> bool:
    """Returns whether a U-Net parameter was added to the text-to-image network.

    These are temporal blocks, the convolution of the conditioning channels and the embedding of the
    guidance scale.
    """
    added = {"cond_conv_in", "guidance_embedding"}
    return is_temporal(path) or not added.isdisjoint(path.split("/"))


def is_spatial_kernel(path: str, leaf: Any) -> bool:
    """Returns whether a U-Net parameter is a kernel of the text-to-image network."""
    return not is_added(path) and len(leaf.shape) > 1


def cast_spatial_kernels(dtype: str | None, unet: Mapping[str, Any]) -> Tree:
    """Casts the kernels of the text-to-image network inside a U-Net.

    Norms and biases keep their type: they are few, norms read them in float32, and for a network
    that computes in bfloat16 only kernels matter (and what `UpsampledConv` sums before its
    convolution).

    Args:
      dtype: "float32" or "bfloat16"; None changes nothing.
      unet: Parameters of the U-Net: arrays or lazy tensors, which are cast when they are read.
    """
    if dtype is None:
        return dict(unet)
    return unflatten(
        {
            path: leaf.astype(np.dtype(dtype)) if is_spatial_kernel(path, leaf) else leaf
            for path, leaf in flatten(unet).items()
        }
    )


def merge(a: Mapping[str, Any], b: Mapping[str, Any]) -> Tree:
    """Returns a tree with the leaves of both trees.

    Raises:
      ValueError: The trees have a path in common.
    """
    flat_a, flat_b = flatten(a), flatten(b)
    if overlap := sorted(flat_a.keys() & flat_b.keys()):
        raise ValueError(f"both trees contain {_join_names(overlap)}")
    return unflatten(flat_a | flat_b)


def compare_shapes(
    expected: Mapping[str, Any],
    actual: Mapping[str, Any],
    where: str,
    origin_hints: Mapping[str, str] | None = None,
) -> None:
    """Checks that two trees have the same paths and shapes. Dtypes may differ.

    Args:
      expected: Parameters of the network; leaves have a `.shape` (arrays or shape structs).
      actual: Parameters to check.
      where: Source of `actual`, for the error message.
      origin_hints: Substring of an unexpected path -> likely origin of such parameters, for the
        error message.

    Raises:
      UserError: The trees differ. One line names the first two parameters of a wrong shape, missing
        and unexpected, with their shapes.
    """
    flat_expected, flat_actual = flatten(expected), flatten(actual)
    missing = [path for path in flat_expected if path not in flat_actual]
    unexpected = [path for path in flat_actual if path not in flat_expected]
    differences = {
        "wrong shape": [
            f"{path} (expected {_shape(leaf)}, got {_shape(flat_actual[path])})"
            for path, leaf in flat_expected.items()
            if path in flat_actual and _shape(leaf) != _shape(flat_actual[path])
        ],
        "missing": [f"{path} {_shape(flat_expected[path])}" for path in missing],
        "unexpected": [f"{path} {_shape(flat_actual[path])}" for path in unexpected],
    }
    problems = [f"{kind}: {_join_names(names)}" for kind, names in differences.items() if names]
    hints = [
        hint
        for part, hint in (origin_hints or {}).items()
        if any(part in path for path in unexpected)
    ]
    problems = hints[:1] + problems
    if problems:
        raise UserError(f"{where}: parameters do not fit the network; " + "; ".join(problems))


def count_parameters(tree: Mapping[str, Any]) -> int:
    """Returns the number of scalars in a tree."""
    return sum(math.prod(_shape(leaf)) for leaf in flatten(tree).values())


def _shape(leaf: Any) -> tuple[int, ...]:
    return tuple(leaf.shape)


def _join_names(names: list[str]) -> str:
    more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    return ", ".join(names[:_MAX_LISTED]) + more
