"""Low-rank adapters (LoRA, 2106.09685): a kernel's change as a product of two thin matrices.

A kernel of shape (..., c_in, c_out), its leading axes those of a convolution, is read as the
matrix [... * c_in, c_out]. Its adapter is {"down": [... * c_in, r], "up": [r, c_out]}, at the
kernel's path.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stunet.weights.trees import Tree, flatten, unflatten


def init_adapters(params: Tree, chosen: Callable[[str], bool], rank: int, key: jax.Array) -> Tree:
    """Adapters of all chosen kernels that are matrices of more than `rank` rows and columns.

    `up` is zero, so that at first they change nothing.
    """
    adapters = {}
    for number, (path, leaf) in enumerate(sorted(flatten(params).items())):
        if not chosen(path) or not _has_adapter(leaf, rank):
            continue
        rows, columns = math.prod(leaf.shape[:-1]), leaf.shape[-1]
        down = jax.random.normal(jax.random.fold_in(key, number), (rows, rank)) / math.sqrt(rows)
        adapters |= {f"{path}/down": down, f"{path}/up": jnp.zeros((rank, columns))}
    return unflatten(adapters)


def add_adapters(params: Tree, adapters: Tree) -> Tree:
    """The parameters with their adapters' products added, in the parameters' types."""
    flat, added = dict(flatten(params)), flatten(adapters)
    # Sorted: a set's order differs between processes, which have to trace one program.
    for path in sorted({path.rpartition("/")[0] for path in added}):
        down, up = (jnp.asarray(added[f"{path}/{part}"], jnp.float32) for part in ("down", "up"))
        change = down @ up
        kernel = jnp.asarray(flat[path])
        changed = kernel.astype(jnp.float32) + change.reshape(kernel.shape)
        flat[path] = changed.astype(kernel.dtype)
    return unflatten(flat)


def nearest_adapters(params: Tree, tuned: Tree, rank: int) -> Tree:
    """Adapters of `params` that come as near to `tuned`, of the same shapes, as any of their rank.

    The singular vectors of each kernel's change; vectors, such as norms have, are left as they are.
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
