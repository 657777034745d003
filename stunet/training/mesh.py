"""The device mesh and how arrays lie on it.

Axes: `data` splits the batch, `fsdp` splits the batch and the parameters, `frames` splits the time
axis of each video (`stunet.models.partitioning`). One device is a mesh of shape (1, 1, 1).
"""

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from stunet.errors import UserError
from stunet.models.partitioning import AXIS, check_frames
from stunet.weights.trees import Tree

AXES = ("data", "fsdp", AXIS)
BATCH = PartitionSpec(("data", "fsdp"))


def make_mesh(fsdp: int = 1, frames: int = 1) -> Mesh:
    """A mesh over all devices; what `fsdp` and `frames` leave over is `data`.

    Raises:
      UserError: the axes are not positive, or do not divide the number of devices.
    """
    return mesh_over(jax.devices(), fsdp, frames)


def mesh_over(devices: Sequence, fsdp: int, frames: int) -> Mesh:
    """`make_mesh` over these devices, such as those of a TPU that is not there."""
    if min(fsdp, frames) < 1:
        raise UserError(f"mesh.fsdp is {fsdp} and mesh.frames {frames}; both must be at least 1")
    if len(devices) % (fsdp * frames):
        raise UserError(
            f"mesh.fsdp {fsdp} x mesh.frames {frames} does not divide {len(devices)} devices"
        )
    shape = (len(devices) // (fsdp * frames), fsdp, frames)
    return Mesh(np.asarray(devices).reshape(shape), AXES)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of an array whose leading axis is the batch."""
    return NamedSharding(mesh, BATCH)


def check_batch(mesh: Mesh, batch_size: int, num_frames: int) -> None:
    """Raises a UserError if the mesh's devices cannot share such a batch alike."""
    fsdp, frames = mesh.shape["fsdp"], mesh.shape[AXIS]
    rows = mesh.shape["data"] * fsdp
    if batch_size % rows:
        raise UserError(
            f"batch_size is {batch_size}; on {mesh.size} devices with mesh.fsdp {fsdp} and "
            f"mesh.frames {frames} it must be a multiple of {rows}"
        )
    check_frames(num_frames, frames)


def parameter_shardings(mesh: Mesh, tree):
    """Splits each array's largest axis that `fsdp` divides; arrays without one are replicated."""
    size = mesh.shape["fsdp"]

    def sharding(array) -> NamedSharding:
        axes = [a for a, n in enumerate(array.shape) if n % size == 0 and n >= size]
        if size == 1 or not axes or math.prod(array.shape) < 2**10:
            return replicated(mesh)
        largest = max(axes, key=lambda a: array.shape[a])
        return NamedSharding(mesh, PartitionSpec(*[None] * largest, "fsdp"))

    return jax.tree.map(sharding, tree)


def put_parameters(mesh: Mesh, tree: Tree) -> Tree:
    """Lays arrays over the mesh, or tensors that are still in their files, one at a time.

    In a cluster all processes give the same, and each keeps what its own devices hold.
    """

    def put(leaf, sharding: NamedSharding) -> jax.Array:
        whole = np.asarray(leaf)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    return jax.tree.map(put, tree, parameter_shardings(mesh, tree))


def batch_slice(mesh: Mesh) -> tuple[int, int]:
    """Which part of every batch this process reads, and how many parts there are.

    Processes that hold the same videos, and each only some of their frames, read the same part.

    Raises:
      UserError: processes hold some of their videos in common and others not.
    """
    rows_of = {}  # process -> rows of the batch, of as many as data and fsdp together
    for row, devices in enumerate(mesh.devices.reshape(-1, mesh.shape[AXIS])):
        for device in devices:
            rows_of.setdefault(device.process_index, set()).add(row)
    parts = sorted({tuple(sorted(rows)) for rows in rows_of.values()})
    if sum(map(len, parts)) != len(set().union(*rows_of.values())):
        frames, devices = mesh.shape[AXIS], mesh.devices.size // len(rows_of)
        raise UserError(
            f"mesh.frames is {frames}, which neither divides the {devices} devices of a process "
            "nor is a multiple of them"
        )
    own = tuple(sorted(rows_of[jax.process_index()]))
    return parts.index(own), len(parts)


def put_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Makes global arrays of this process's slice of the batch."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, array)
        for name, array in batch.items()
    }
