"""Low-rank adapters (LoRA, 2106.09685): a kernel's change as a product of two thin matrices.

A kernel of shape (..., c_in, c_out), its leading axes those of a convolution, is read as the
matrix [... * c_in, c_out]. Its adapter is {"down": [... * c_in, r], "up": [r, c_out]}, at the
kernel's path.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from stunet.weights.trees import Tree, flatten, unflatten


def make_adapters(params: Tree, chosen: Callable[[str], bool], rank: int, key: jax.Array) -> Tree:
    """Adapters of all chosen kernels that are matrices of more than `rank` rows and columns.

    `up` is zero, so that at first they change nothing.
    """
    adapters = {}
    for number, (path, leaf) in enumerate(sorted(flatten(params).items())):
        rows, columns = math.prod(leaf.shape[:-1]), leaf.shape[-1]
        if not chosen(path) or len(leaf.shape) < 2 or min(rows, columns) <= rank:
            continue
        down = jax.random.normal(jax.random.fold_in(key, number), (rows, rank)) / math.sqrt(rows)
        adapters |= {f"{path}/down": down, f"{path}/up": jnp.zeros((rank, columns))}
    return unflatten(adapters)


def add_adapters(params: Tree, adapters: Tree) -> Tree:
    """The parameters with their adapters' products added, in the parameters' types."""
    flat, added = dict(flatten(params)), flatten(adapters)
    # Sorted: a set's order differs between processes, which have to trace one program.
    for path in sorted({path.rpartition("/")[0] for path in added}):
        change = added[f"{path}/down"] @ added[f"{path}/up"]
        kernel = jnp.asarray(flat[path])
        changed = kernel.astype(jnp.float32) + change.reshape(kernel.shape)
        flat[path] = changed.astype(kernel.dtype)
    return unflatten(flat)
