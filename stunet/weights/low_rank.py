"""Low-rank adapters (LoRA, 2106.09685): the update of a kernel as a product of two thin matrices.

A kernel of shape (..., c_in, c_out), where the leading axes are those of a convolution, is reshaped
to the matrix [... * c_in, c_out]. Its adapter {"down": [... * c_in, r], "up": [r, c_out]} has the
kernel's path in a tree of adapters.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stunet.weights.trees import Tree, flatten, unflatten


def init_adapters(params: Tree, select: Callable[[str], bool], rank: int, key: jax.Array) -> Tree:
    """Initialises adapters for the selected kernels with more than `rank` rows and columns.

    `down` is normal with variance 1 / rows and `up` is zero, so that the initial update is zero.

    Args:
      params: Parameters to adapt.
      select: Returns whether the parameter of a path gets an adapter.
      rank: Rank of every adapter.
      key: Random key.
    """
    adapters = {}
    for number, (path, leaf) in enumerate(sorted(flatten(params).items())):
        if not select(path) or not _has_adapter(leaf, rank):
            continue
        rows, columns = math.prod(leaf.shape[:-1]), leaf.shape[-1]
        down = jax.random.normal(jax.random.fold_in(key, number), (rows, rank)) / math.sqrt(rows)
        adapters |= {f"{path}/down": down, f"{path}/up": jnp.zeros((rank, columns))}
    return unflatten(adapters)


def add_adapters(params: Tree, adapters: Tree) -> Tree:
    """Adds the product of every adapter to its kernel, in float32; kernels keep their dtype."""
    flat, added = dict(flatten(params)), flatten(adapters)
    # Sorted, because a set's order differs between processes and all must trace the same program.
    for path in sorted({path.rpartition("/")[0] for path in added}):
        down, up = (jnp.asarray(added[f"{path}/{part}"], jnp.float32) for part in ("down", "up"))
        change = down @ up
        kernel = jnp.asarray(flat[path])
        changed = kernel.astype(jnp.float32) + change.reshape(kernel.shape)
        flat[path] = changed.astype(kernel.dtype)
    return unflatten(flat)


def nearest_adapters(params: Tree, tuned: Tree, rank: int) -> Tree:
    """Returns the adapters that approximate the update from `params` to `tuned` best.

    Truncates the singular value decomposition of the update of every kernel with more than `rank`
    rows and columns. Vectors (norms, biases) get no adapter.

    Args:
      params: Parameters before fine-tuning.
      tuned: Parameters after it, of the same shapes.
      rank: Rank of every adapter.
    """
    tuned, adapters = flatten(tuned), {}
    for path, leaf in flatten(params).items():
        if not _has_adapter(leaf, rank):
            continue
        change = np.asarray(tuned[path], np.float32) - np.asarray(leaf, np.float32)
        u, s, v = np.linalg.svd(change.reshape(-1, leaf.shape[-1]), full_matrices=False)
        root = np.sqrt(s[:rank])
        adapters |= {f"{path}/down": u[:, :rank] * root, f"{path}/up": root[:, None] * v[:rank]}
    return unflatten(adapters)


def _has_adapter(leaf: Any, rank: int) -> bool:
    shape = leaf.shape
    return len(shape) > 1 and min(math.prod(shape[:-1]), shape[-1]) > rank
