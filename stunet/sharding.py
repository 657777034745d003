"""Shardings of parameters over a device mesh."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array that every device has a copy of."""
    return NamedSharding(mesh, PartitionSpec())


def parameter_shardings(mesh: Mesh, tree: Any, axes: Sequence[str] = ("fsdp",)) -> Any:
    """Returns shardings of parameters, or of an optimizer state, over axes of the mesh.

    The largest axis of each array that the size of `axes` divides is split. Arrays without such an
    axis, and those of fewer than 1024 entries, are replicated.

    Args:
      mesh: Device mesh.
      tree: Arrays or their shapes.
      axes: Axes of the mesh to shard over, together.
    """
    size = math.prod(mesh.shape[axis] for axis in axes)

    def sharding(array) -> NamedSharding:
        divisible = [a for a, n in enumerate(array.shape) if n % size == 0 and n >= size]
        if size == 1 or not divisible or math.prod(array.shape) < 2**10:
            return replicated(mesh)
        largest = max(divisible, key=lambda a: array.shape[a])
        split = axes[0] if len(axes) == 1 else tuple(axes)
        return NamedSharding(mesh, PartitionSpec(*[None] * largest, split))

    return jax.tree.map(sharding, tree)


def put_parameters(mesh: Mesh, tree: Any) -> Any:
    """Copies parameters to the devices of the mesh, sharded by `parameter_shardings`.

    Args:
      mesh: Device mesh.
      tree: Arrays, or `LazyTensor`, which are read from their files one at a time. All processes
        of a cluster pass the same values; each reads and copies only the shards of its own devices.
    """
    return jax.tree.map(put_array, tree, parameter_shardings(mesh, tree))


def put_array(leaf: Any, sharding: NamedSharding) -> jax.Array:
    """Copies an array that all processes have to the devices of a sharding.

    Reads only the slices of this process's devices from a lazy tensor, each of them once.
    """
    slices: dict[str, np.ndarray] = {}

    def read(index: tuple[slice, ...]) -> np.ndarray:
        key = str(index)
        if key not in slices:
            slices[key] = np.asarray(leaf[index])
        return slices[key]

    return jax.make_array_from_callback(tuple(leaf.shape), sharding, read)


def flat_mesh(devices: Sequence[jax.Device]) -> Mesh:
    """Returns a mesh with the one axis "fsdp"."""
    return Mesh(np.asarray(devices), ("fsdp",))


def devices_of(tree: Any) -> list[jax.Device]:
    """Returns the devices that hold arrays; those of this process if they are not JAX arrays."""
    held = {d for a in jax.tree.leaves(tree) if isinstance(a, jax.Array) for d in a.devices()}
    return [device for device in jax.devices() if device in held] or jax.local_devices()
