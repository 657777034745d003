"""The device mesh, and the shardings of parameters and batches.

Axes: `data` splits the batch, `fsdp` splits the batch and the parameters, `frames` splits the time
axis of each video (`stunet.models.partitioning`). One device is a mesh of shape (1, 1, 1).
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from stunet.errors import UserError
from stunet.models.partitioning import FRAME_AXIS, check_frames
from stunet.weights.trees import Tree

AXES = ("data", "fsdp", FRAME_AXIS)
BATCH = PartitionSpec(("data", "fsdp"))


def make_mesh(fsdp: int = 1, frames: int = 1, devices: Sequence | None = None) -> Mesh:
    """Returns a mesh over all devices.

    Args:
      fsdp: Size of the axis "fsdp".
      frames: Size of the axis "frames". The axis "data" has the remaining factor.
      devices: Devices of the mesh; None for all devices of all processes.

    Raises:
      UserError: a size is below 1, or their product does not divide the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    for name, size in (("fsdp", fsdp), ("frames", frames)):
        if size < 1:
            raise UserError(f"mesh.{name}: {size}, expected at least 1")
    if len(devices) % (fsdp * frames):
        raise UserError(
            f"mesh: fsdp {fsdp} x frames {frames}, expected a divisor of {len(devices)} devices"
        )
    shape = (len(devices) // (fsdp * frames), fsdp, frames)
    return Mesh(np.asarray(devices).reshape(shape), AXES)


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array that every device has a copy of."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array whose leading axis is the batch."""
    return NamedSharding(mesh, BATCH)


def check_batch(mesh: Mesh, batch_size: int, num_frames: int) -> None:
    """Checks that a batch divides evenly among the devices of the mesh.

    Raises:
      UserError: it does not.
    """
    fsdp, frames = mesh.shape["fsdp"], mesh.shape[FRAME_AXIS]
    rows = mesh.shape["data"] * fsdp
    if batch_size % rows:
        raise UserError(
            f"batch_size: {batch_size}, expected a multiple of {rows} ({mesh.size} devices, "
            f"mesh.fsdp {fsdp}, mesh.frames {frames})"
        )
    check_frames(num_frames, frames)


def parameter_shardings(mesh: Mesh, tree: Any) -> Any:
    """Returns shardings of parameters, or of an optimizer state, over the axis "fsdp".

    The largest axis of each array that the size of "fsdp" divides is split. Arrays without such an
    axis, and those of fewer than 1024 entries, are replicated.

    Args:
      mesh: Device mesh.
      tree: Arrays or their shapes.
    """
    size = mesh.shape["fsdp"]

    def sharding(array) -> NamedSharding:
        axes = [a for a, n in enumerate(array.shape) if n % size == 0 and n >= size]
        if size == 1 or not axes or math.prod(array.shape) < 2**10:
            return replicated(mesh)
        largest = max(axes, key=lambda a: array.shape[a])
        return NamedSharding(mesh, PartitionSpec(*[None] * largest, "fsdp"))

    return jax.tree.map(sharding, tree)


def put_parameters(mesh: Mesh, tree: Tree) -> Tree:
    """Copies parameters to the devices of the mesh, sharded by `parameter_shardings`.

    Args:
      mesh: Device mesh.
      tree: Arrays, or `LazyTensor`, which are read from their files one at a time. All processes
        of a cluster pass the same values; each copies only the shards of its own devices.
    """

    def put(leaf, sharding: NamedSharding) -> jax.Array:
        array = np.asarray(leaf)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(put, tree, parameter_shardings(mesh, tree))


def batch_slice(mesh: Mesh) -> tuple[int, int]:
    """Returns which slice of every batch this process reads, and the number of slices.

    Processes that hold different frames of the same videos read the same slice.

    Raises:
      UserError: two processes share some of their videos, but not all.
    """
    rows_of = {}  # process -> rows of the mesh's axes data and fsdp, flattened
    for row, devices in enumerate(mesh.devices.reshape(-1, mesh.shape[FRAME_AXIS])):
        for device in devices:
            rows_of.setdefault(device.process_index, set()).add(row)
    slices = sorted({tuple(sorted(rows)) for rows in rows_of.values()})
    if sum(map(len, slices)) != len(set().union(*rows_of.values())):
        frames, devices = mesh.shape[FRAME_AXIS], mesh.devices.size // len(rows_of)
        raise UserError(
            f"mesh.frames: {frames}, expected a divisor or a multiple of the {devices} devices of "
            "a process"
        )
    own = tuple(sorted(rows_of[jax.process_index()]))
    return slices.index(own), len(slices)


def put_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Makes global arrays from this process's slice of the batch."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, array)
        for name, array in batch.items()
    }


def abstract_arrays(tree: Any, shardings: Any) -> Any:
    """Returns shapes and dtypes with shardings, as a tree of `jax.ShapeDtypeStruct`.

    Args:
      tree: Arrays or their shapes and dtypes.
      shardings: One sharding for all arrays, or a tree of them.
    """
    if isinstance(shardings, Sharding):
        shardings = jax.tree.map(lambda _: shardings, tree)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
        shardings,
    )
