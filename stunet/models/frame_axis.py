"""Video whose time axis lies split over devices: each holds as many frames, in the clip's order.

A network applied by `split_over_frames` runs on every device's own frames. Its layers see frame by
frame, but for those of `stunet.models.temporal`: convolutions and resamplers over time take one
frame from each neighbour, attention gathers the coarsest level's. They know the split by the mesh
axis's name, which is None where a device has the whole clip. (Left to XLA's partitioner, time that
is folded into the batch is gathered on every device before the first convolution.)
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from stunet.errors import UserError

AXIS = "frames"


def split_over_frames(network: nn.Module, mesh: Mesh | None) -> Callable[..., jax.Array]:
    """`network.apply`, with videos split over the mesh's axis "frames".

    The batch and the parameters may lie over the mesh's other axes, as XLA's partitioner has it.

    Args:
      network: with fields `config` (a `UNetConfig`) and `frame_axis`; called as `UNet` is.
      mesh: None, or of one device along "frames", for a network that is not split.

    Raises:
      UserError: by the function: the clip's frames do not divide into parts of a multiple of the
        network's temporal stride.
    """
    shards = 1 if mesh is None else mesh.shape[AXIS]
    if shards == 1:
        return network.apply
    split, stride = network.clone(frame_axis=AXIS), network.config.temporal_stride

    def apply(variables, x, t, text, noise_level=None, cond=None) -> jax.Array:
        frames = x.shape[1]
        if frames == 1:  # an image
            return network.apply(variables, x, t, text, noise_level, cond)
        if frames % (shards * stride):
            raise UserError(
                f"num_frames is {frames}; over mesh.frames {shards} devices it must be a multiple "
                f"of {shards * stride}, the temporal stride of {stride} on each"
            )
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


def own_frames(x: jax.Array, axis: str | None) -> jax.Array:
    """This device's part of `[T, ...]`, what is known of each of the clip's frames."""
    if axis is None:
        return x
    count = x.shape[0] // shards_of(axis)
    return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(axis) * count, count)


def all_frames(x: jax.Array, axis: str | None) -> jax.Array:
    """`[B, T, ...]` of the whole clip, from every device's part, each device's own frames first.

    Parts are handed round a ring: at an all-gather XLA's partitioner gathers the batch, too.
    """
    shards = shards_of(axis)
    ring = [(i, (i + 1) % shards) for i in range(shards)]
    parts = [x]
    for _ in range(shards - 1):
        parts.append(jax.lax.ppermute(parts[-1], axis, ring))
    return jnp.concatenate(parts, axis=1)


def with_neighbours(x: jax.Array, axis: str) -> jax.Array:
    """`[B, T + 2, ...]`: the frame before and the one after, zero beyond the clip's ends."""
    last = shards_of(axis) - 1
    before = jax.lax.ppermute(x[:, -1:], axis, [(i, i + 1) for i in range(last)])
    after = jax.lax.ppermute(x[:, :1], axis, [(i + 1, i) for i in range(last)])
    return jnp.concatenate([before, x, after], axis=1)
