"""The device mesh, and the sharding of batches.

Axes: `data` splits the batch, `fsdp` splits the batch and the parameters
(`stunet.sharding`), `frames` splits the time axis of each video (`stunet.models.partitioning`). One
device is a mesh of shape (1, 1, 1).

On TPUs, neighbours in the mesh are neighbours in the torus. Slices of a pod are connected by the
data centre network, which is much slower: only `data` extends over slices, and therefore only the
gradients are reduced between them.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from stunet.errors import UserError
from stunet.models.partitioning import FRAME_AXIS, check_frames

AXES = ("data", "fsdp", FRAME_AXIS)
BATCH = PartitionSpec(("data", "fsdp"))


def make_mesh(fsdp: int = 1, frames: int = 1, devices: Sequence | None = None) -> Mesh:
    """Returns a mesh over all devices.

    Args:
      fsdp: Size of the axis "fsdp".
      frames: Size of the axis "frames". The axis "data" has the remaining factor.
      devices: Devices of the mesh; None for all devices of all processes.

    Raises:
      UserError: a size is below 1, or their product does not divide the number of devices of a
        slice.
    """
    devices = jax.devices() if devices is None else devices
    for name, size in (("fsdp", fsdp), ("frames", frames)):
        if size < 1:
            raise UserError(f"mesh.{name}: {size}, expected at least 1")
    slices = count_slices(devices)
    per_slice = len(devices) // slices
    if per_slice % (fsdp * frames):
        of_a_slice = "" if slices == 1 else f" of each of {slices} slices"
        raise UserError(
            f"mesh: fsdp {fsdp} x frames {frames}, expected a divisor of {per_slice} devices"
            f"{of_a_slice}"
        )
    shape = (per_slice // (fsdp * frames), fsdp, frames)
    # An axis may extend over parts of two axes of the torus.
    if slices == 1:
        grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    else:
        grid = mesh_utils.create_hybrid_device_mesh(
            shape, (slices, 1, 1), devices, allow_split_physical_axes=True
        )
    return Mesh(grid, AXES)


def count_slices(devices: Sequence) -> int:
    """Returns the number of TPU slices that devices belong to; 1 for other devices."""
    # One slice has no index; devices of other kinds may have one with another meaning.
    return len({getattr(d, "slice_index", None) for d in devices if d.platform == "tpu"}) or 1


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
