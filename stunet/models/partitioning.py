"""Partitioning of a network: rematerialisation, FSDP-sharded kernels and sharded frames.

`Partitioning` is the only object that a network needs: it wraps the class of each block, chooses
the backend of attention, and describes how the frames of a clip are sharded.

Sharded frames: a network applied by `shard_over_frames` runs under `jax.shard_map` on the local
frames of each device. Most layers process frames independently. Temporal convolutions exchange one
frame with each neighbour (`halo_exchange`), and temporal attention all-gathers keys and values.
Levels with fewer frames than shards are all-gathered and computed redundantly on every device.
Without `shard_map`, XLA's partitioner all-gathers the video at the first convolution, because time
is folded into the batch there.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Shaped

from stunet.errors import UserError
from stunet.models.attention import attention, check_backend
from stunet.models.remat import REMAT_POLICIES

FRAME_AXIS = "frames"  # mesh axis that shards the time axis of videos


@dataclass(frozen=True)
class FrameLayout:
    """Frames of a clip at each level of the U-Net, and how they are sharded.

    Attributes:
      num_frames: Frames of the whole clip at each level, finest level first.
      axes: Mesh axis that each level's frames are sharded over. None means that every device has
        all frames.
    """

    num_frames: tuple[int, ...]
    axes: tuple[str | None, ...]

    def reshard(
        self, x: Shaped[Array, "batch frames *rest"], source: int, target: int
    ) -> Shaped[Array, "batch new_frames *rest"]:
        """Converts local frames from the sharding of level `source` to that of level `target`."""
        if self.axes[source] == self.axes[target]:
            return x
        if self.axes[target] is None:
            return all_gather_frames(x, self.axes[source])
        return local_frames(x, self.axes[target])


@dataclass(frozen=True)
class Partitioning:
    """How a network is partitioned, and what its backward pass recomputes.

    Attributes:
      remat: Key of `REMAT_POLICIES`. It trades time for memory in training; results are equal.
      mesh: Device mesh. An axis "fsdp" shards the parameters. None means replicated parameters.
      attention: Backend of spatial attention (`stunet.models.attention.BACKENDS`). None chooses by
        device and size.
      frame_axis: Mesh axis that frames are sharded over, inside `jax.shard_map`. None means that
        every device has whole clips.
    """

    remat: str = "none"
    mesh: Mesh | AbstractMesh | None = None
    attention: str | None = None
    frame_axis: str | None = None

    def __post_init__(self):
        if self.remat not in REMAT_POLICIES:
            known = ", ".join(REMAT_POLICIES)
            raise UserError(f"remat: unknown policy {self.remat!r}, expected one of {known}")
        check_backend(self.attention)

    def wrap(self, block: type[nn.Module]) -> type[nn.Module]:
        """Returns a block class that gathers its kernels and is rematerialised."""
        return REMAT_POLICIES[self.remat](gather_kernels(block, self.mesh))

    def wrap_trained(self, block: type[nn.Module]) -> type[nn.Module]:
        """Returns `wrap(block)` for a block whose parameters are trained (a temporal module)."""
        barrier = self.remat in ("convolutions", "blocks")
        return self.wrap(gradient_barrier(block) if barrier else block)

    def attend(self, *query_key_value: jax.Array) -> jax.Array:
        """Returns `attention` of the arguments with the configured backend on the mesh."""
        return attention(*query_key_value, backend=self.attention, mesh=self.mesh)

    def frame_layout(self, local_frames: int, resample: tuple[bool, ...]) -> FrameLayout:
        """Returns the layout of a clip.

        Args:
          local_frames: Frames of the clip on this device, at the finest level.
          resample: For each spatial resize, finest first: whether it also halves time.
        """
        num_frames = [local_frames * num_shards(self.frame_axis)]
        for halved in resample:
            num_frames.append(num_frames[-1] // 2 if halved else num_frames[-1])
        axes = tuple(split_axis(frames, self.frame_axis) for frames in num_frames)
        return FrameLayout(tuple(num_frames), axes)


def gather_kernels(block: type[nn.Module], mesh: Mesh | AbstractMesh | None) -> type[nn.Module]:
    """All-gathers the block's FSDP-sharded kernels for the duration of the call.

    XLA:TPU's partitioner would otherwise convolve with the shards of a wide kernel in a loop, one
    after the other, or sum partial activations (docs/scaling.md).
    """
    if mesh is None or mesh.shape.get("fsdp", 1) == 1:
        return block

    def gather(kernel):
        if kernel.ndim < 2:
            return kernel
        # `jax.shard_map` has its own abstract mesh, in which a NamedSharding of `mesh` is invalid.
        in_shard_map = not jax.sharding.get_abstract_mesh().empty
        sharding = PartitionSpec() if in_shard_map else NamedSharding(mesh, PartitionSpec())
        return jax.lax.with_sharding_constraint(kernel, sharding)

    return nn.map_variables(block, "params", functools.partial(jax.tree.map, gather))


def gradient_barrier(block: type[nn.Module]) -> type[nn.Module]:
    """Computes parameter gradients before propagating the input gradient.

    Otherwise XLA:TPU defers them, because only the optimiser needs them, and keeps the activations
    and activation gradients of every block alive (docs/scaling.md).
    """

    class Barrier(block):
        @nn.compact
        def __call__(self, *inputs):
            def backward(vjp, grad):
                return jax.lax.optimization_barrier(vjp(grad))

            forward = functools.partial(nn.vjp, block.__call__)
            return nn.custom_vjp(block.__call__, forward, backward)(self, *inputs)

    return Barrier


def check_frames(num_frames: int, shards: int) -> None:
    """Checks that the frames of a clip divide evenly among devices. Images always pass.

    Raises:
      UserError: They do not.
    """
    if num_frames > 1 and num_frames % shards:
        raise UserError(
            f"num_frames: {num_frames}, expected a multiple of {shards} (mesh.frames {shards})"
        )


def shard_over_frames(
    network: nn.Module, mesh: Mesh | AbstractMesh | None
) -> Callable[..., jax.Array]:
    """Returns `network.apply` for videos whose frames are sharded over the mesh axis "frames".

    XLA's partitioner handles the other mesh axes, over which the batch and the parameters may be
    sharded.

    Args:
      network: A module with a field `partitioning`, called like `stunet.models.unet.UNet`.
      mesh: Device mesh. None, or a mesh whose axis "frames" is missing or has size 1, means that
        frames are not sharded.

    Raises:
      UserError: By the returned function, if frames do not divide evenly among the devices.
    """
    shards = 1 if mesh is None else mesh.shape.get(FRAME_AXIS, 1)
    if shards == 1:
        return network.apply
    sharded = network.clone(partitioning=replace(network.partitioning, frame_axis=FRAME_AXIS))

    def apply(variables, x, t, text, noise_level=None, cond=None, guidance_scale=None) -> jax.Array:
        num_frames = x.shape[1]
        if num_frames == 1:
            return network.apply(variables, x, t, text, noise_level, cond, guidance_scale)
        check_frames(num_frames, shards)
        video, replicated = PartitionSpec(None, FRAME_AXIS), PartitionSpec()
        return jax.shard_map(
            sharded.apply,
            mesh=mesh,
            in_specs=(replicated, video, replicated, replicated, replicated, video, replicated),
            out_specs=video,
            axis_names={FRAME_AXIS},
            # Outputs of levels that every device computes redundantly are not marked as replicated.
            # Parameter gradients are summed over the axis on leaving `shard_map` either way.
            check_vma=False,
        )(variables, x, t, text, noise_level, cond, guidance_scale)

    return apply


def num_shards(axis: str | None) -> int:
    """Returns the size of a mesh axis inside `shard_map`; 1 for None."""
    return 1 if axis is None else jax.lax.axis_size(axis)


def split_axis(num_frames: int, axis: str | None) -> str | None:
    """Returns the axis if it divides the frames evenly, else None (every device has all frames)."""
    return axis if num_frames % num_shards(axis) == 0 else None


def local_frames(
    x: Shaped[Array, "batch frames *rest"], axis: str | None
) -> Shaped[Array, "batch local_frames *rest"]:
    """Returns this device's shard of the frames of a whole clip; x itself if axis is None.

    It splits and selects, because XLA's partitioner also all-gathers the batch at a slice with a
    device-dependent start. `all_gather_frames` avoids `jax.lax.all_gather` for the same reason.
    """
    if axis is None:
        return x
    shards = jnp.split(x, num_shards(axis), axis=1)
    return jax.lax.select_n(jax.lax.axis_index(axis), *shards)


def all_gather_frames(
    x: Shaped[Array, "batch local_frames *rest"], axis: str | None
) -> Shaped[Array, "batch frames *rest"]:
    """Returns the whole clip from every device's frames, passed around a ring."""
    if axis is None:
        return x
    count, index = num_shards(axis), jax.lax.axis_index(axis)
    ring = [(i, (i + 1) % count) for i in range(count)]
    shards = [x]  # the k-th comes from the device k places before this one
    for _ in range(count - 1):
        shards.append(jax.lax.ppermute(shards[-1], axis, ring))
    in_order = [jax.lax.select_n((index - i) % count, *shards) for i in range(count)]
    return jnp.concatenate(in_order, axis=1)


def halo_exchange(
    x: Shaped[Array, "batch frames *rest"], axis: str | None
) -> tuple[Shaped[Array, "batch new_frames *rest"], tuple[int, int]]:
    """Adds the frames of neighbouring devices that a temporal convolution of length 3 reads.

    Returns:
      For axis None: x, and the zero padding (1, 1) that the convolution has to add. Otherwise:
      `[B, T + 2, ...]` with zeros beyond the ends of the clip, and the padding (0, 0).
    """
    if axis is None:
        return x, (1, 1)
    last = num_shards(axis) - 1
    before = jax.lax.ppermute(x[:, -1:], axis, [(i, i + 1) for i in range(last)])
    after = jax.lax.ppermute(x[:, :1], axis, [(i + 1, i) for i in range(last)])
    return jnp.concatenate([before, x, after], axis=1), (0, 0)
