"""Video whose time axis lies split over devices: each holds as many frames, in the clip's order.

A network applied by `split_over_frames` runs on every device's own frames. Its layers see frame by
frame, but for those of `stunet.models.temporal`: convolutions and resamplers over time take one
frame from each neighbour, attention gathers the coarsest level's. They know the split by the mesh
axis's name, which is None where a device has the whole clip: a level of too few frames to go round
is gathered before the resampler that leads to it, and every device works out all of it. (Left to
XLA's partitioner, time that is folded into the batch is gathered on every device before the first
convolution.)
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from stunet.errors import UserError

AXIS = "frames"


def check_frames(frames: int, shards: int) -> None:
    """Raises a UserError if a clip's frames, unless it is an image, do not divide among devices."""
    if frames > 1 and frames % shards:
        raise UserError(
            f"num_frames is {frames}, which mesh.frames {shards} devices cannot share alike; "
            f"choose a multiple of {shards}"
        )


def split_over_frames(network: nn.Module, mesh: Mesh | None) -> Callable[..., jax.Array]:
    """`network.apply`, with videos split over the mesh's axis "frames".

    The batch and the parameters may lie over the mesh's other axes, as XLA's partitioner has it.

    Args:
      network: with fields `config` (a `UNetConfig`) and `frame_axis`; called as `UNet` is.
      mesh: None, or of one device along "frames", for a network that is not split.

    Raises:
      UserError: by the function: the clip's frames do not divide among the devices.
    """
    shards = 1 if mesh is None else mesh.shape[AXIS]
    if shards == 1:
        return network.apply
    split = network.clone(frame_axis=AXIS)

    def apply(variables, x, t, text, noise_level=None, cond=None) -> jax.Array:
        frames = x.shape[1]
        if frames == 1:  # an image
            return network.apply(variables, x, t, text, noise_level, cond)
        check_frames(frames, shards)
        video, whole = PartitionSpec(None, AXIS), PartitionSpec()
        return jax.shard_map(
            split.apply,
            mesh=mesh,
            in_specs=(whole, video, whole, whole, whole, video),
            out_specs=video,
            axis_names={AXIS},
            # What a device makes of its own frames is nothing that all have: the parameters'
            # gradients are added up where they leave.
            check_vma=False,
        )(variables, x, t, text, noise_level, cond)

    return apply


def shards_of(axis: str | None) -> int:
    """How many devices share the clip."""
    return 1 if axis is None else jax.lax.axis_size(axis)


def axis_of(num_frames: int, axis: str | None) -> str | None:
    """The axis if so many frames can be split over it, else None: every device holds them all."""
    return axis if num_frames % shards_of(axis) == 0 else None


def own_frames(x: jax.Array, axis: str | None) -> jax.Array:
    """This device's part of `[B, T, ...]`, of which it holds the whole clip.

    Parts are selected, here and below, since at a slice whose place depends on the device, as at an
    all-gather, XLA's partitioner gathers the batch, too.
    """
    if axis is None:
        return x
    parts = jnp.split(x, shards_of(axis), axis=1)
    return jax.lax.select_n(jax.lax.axis_index(axis), *parts)


def gathered(x: jax.Array, axis: str | None) -> jax.Array:
    """`[B, T, ...]` of the whole clip, from every device's part, which are handed round a ring."""
    if axis is None:
        return x
    shards, own = shards_of(axis), jax.lax.axis_index(axis)
    ring = [(i, (i + 1) % shards) for i in range(shards)]
    parts = [x]  # the k-th from k devices before this one
    for _ in range(shards - 1):
        parts.append(jax.lax.ppermute(parts[-1], axis, ring))
    in_order = [jax.lax.select_n((own - i) % shards, *parts) for i in range(shards)]
    return jnp.concatenate(in_order, axis=1)


def with_neighbours(x: jax.Array, axis: str) -> jax.Array:
    """`[B, T + 2, ...]`: the frame before and the one after, zero beyond the clip's ends."""
    last = shards_of(axis) - 1
    before = jax.lax.ppermute(x[:, -1:], axis, [(i, i + 1) for i in range(last)])
    after = jax.lax.ppermute(x[:, :1], axis, [(i + 1, i) for i in range(last)])
    return jnp.concatenate([before, x, after], axis=1)
