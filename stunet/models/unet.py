"""The text-to-image U-Net of DeepFloyd IF (Imagen), and its inflation to a Space-Time U-Net.

One module class is both: without `UNetConfig.temporal` it is the text-to-image network, with
it the STUNet, whose extra parameters live under names that start with `temporal_` (and, in a
conditional model, under `cond_conv_in`).
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from stunet.errors import UserError
from stunet.models.layers import (
    GroupNorm,
    ResBlock,
    TextAttention,
    TextPooling,
    TimestepEmbedding,
    conv3x3,
    gelu,
    per_frame,
)
from stunet.models.partitioning import axis_of, gathered, own_frames, shards_of, split_over_frames
from stunet.models.temporal import (
    TemporalAttentionBlock,
    TemporalConfig,
    TemporalConvBlock,
    TemporalDownsample,
    TemporalModulation,
    TemporalUpsample,
)

DTYPES = ("float32", "bfloat16")


def _keep_matmuls(primitive, *_, **__) -> bool:
    return primitive in (jax.lax.conv_general_dilated_p, jax.lax.dot_general_p)


# What the backward pass recomputes, by name: nothing; all but convolutions and matrix products
# (norms, activations, softmax: cheap to do and half of the memory); whole blocks.
REMAT_POLICIES = {
    "none": lambda block: block,
    "elementwise": lambda block: nn.remat(block, policy=_keep_matmuls),
    "blocks": nn.remat,
}


def gradients_at_once(block: type[nn.Module]) -> type[nn.Module]:
    """The block, whose parameters' gradients are there before its input's is passed on.

    Nothing but the optimiser waits for them, and a TPU's compiler would rather put them off, and
    hold every block's features and their gradients till then.
    """

    class AtOnce(block):
        @nn.compact
        def __call__(self, *inputs):
            def backward(vjp, grad):
                return jax.lax.optimization_barrier(vjp(grad))

            forward = functools.partial(nn.vjp, block.__call__)
            return nn.custom_vjp(block.__call__, forward, backward)(self, *inputs)

    return AtOnce


def with_whole_kernels(block: type[nn.Module], mesh: Mesh | None) -> type[nn.Module]:
    """The block, whose kernels lie over the mesh and are put together while it is at work.

    Left to itself a TPU's partitioner would rather convolve with one part of a wide kernel after
    the other, in a loop of as many steps as there are parts, or add up partial sums of features.
    """
    if mesh is None or mesh.shape["fsdp"] == 1:
        return block

    def whole(kernel):
        if kernel.ndim < 2:
            return kernel
        inside = not jax.sharding.get_abstract_mesh().empty  # of `jax.shard_map`, which has its own
        sharding = PartitionSpec() if inside else NamedSharding(mesh, PartitionSpec())
        return jax.lax.with_sharding_constraint(kernel, sharding)

    return nn.map_variables(block, "params", functools.partial(jax.tree.map, whole))


@dataclass(frozen=True)
class UNetConfig:
    """Every width of the network; per-level fields go from the finest level to the coarsest.

    Attributes:
      channels: width of each level (diffusers' `block_out_channels`).
      layers_per_block: residual blocks of each level in the encoder; the decoder has one more.
      attention_levels: whether a level's residual blocks are each followed by attention.
      head_dim: width of a spatial attention head.
      text_dim: width of the text encoder's states.
      cross_attention_dim: width that text states are projected to for keys and values.
      pooling_heads: heads of the attention pooling of text.
      in_channels: 3, or 6 for a super-resolution model (stage II) that sees the noisy and the
        upsampled low-resolution frames side by side.
      out_channels: 3, or 6 with a learned-range variance.
      time_embedding_dim: width of the embedding; None means 4 * channels[0].
      norm_groups: groups of every group norm.
      self_attention: False leaves only the text as keys (stage II).
      noise_level_embedding: whether the network is told the noise level of its conditioning
        input (stage II).
      activate_embedding_once: apply GELU to the summed embedding once, not in every block
        (stage II).
      output_scale_factor: what a residual block's sum is divided by (stage II: sqrt 2, rounded).
      mid_output_scale_factor: the same for the middle's residual blocks.
      dtype: compute type, "float32" or "bfloat16"; norm statistics and softmax are float32
        either way, and so are parameters that are made here (imported ones keep their type).
      temporal: None for a text-to-image network.
      cond_channels: of what a conditional model is given beside the noisy video, known pixels and
        which they are (`stunet.diffusion.conditioning`: 4); 0 for none.
      cond_in_blocks: whether temporal blocks are shown it, too, averaged to their level's size,
        and not the first convolution alone as in the paper. There it is mixed with the noise,
        which a narrow first level cannot take apart again.
    """

    channels: tuple[int, ...]
    layers_per_block: tuple[int, ...]
    attention_levels: tuple[bool, ...]
    head_dim: int = 64
    text_dim: int = 4096
    cross_attention_dim: int = 768
    pooling_heads: int = 64
    in_channels: int = 3
    out_channels: int = 6
    time_embedding_dim: int | None = None
    norm_groups: int = 32
    self_attention: bool = True
    noise_level_embedding: bool = False
    activate_embedding_once: bool = False
    output_scale_factor: float = 1.0
    mid_output_scale_factor: float = 1.0
    dtype: str = "float32"
    temporal: TemporalConfig | None = None
    cond_channels: int = 0
    cond_in_blocks: bool = False

    def __post_init__(self):
        levels = len(self.channels)
        if not levels:
            raise UserError("channels is empty; a U-Net has at least one level")
        for name in ("layers_per_block", "attention_levels"):
            if (entries := len(getattr(self, name))) != levels:
                raise UserError(f"{name} has {entries} entries; channels has {levels}")
        if self.temporal is not None and len(self.temporal.resample) != levels - 1:
            raise UserError(
                f"temporal.resample has {len(self.temporal.resample)} entries; "
                f"{levels} levels have {levels - 1} resizes"
            )
        if self.cond_channels and self.temporal is None:
            raise UserError(
                f"cond_channels is {self.cond_channels}, but a network without temporal modules "
                "makes images, for which nothing is given; leave it 0"
            )
        if self.cond_in_blocks and not self.cond_channels:
            raise UserError("cond_in_blocks is True, but cond_channels is 0: nothing is given")
        if self.dtype not in DTYPES:
            raise UserError(f"dtype is {self.dtype!r}; choose one of {', '.join(DTYPES)}")
        attending = [c for c, on in zip(self.channels, self.attention_levels, strict=True) if on]
        divisions = [("norm_groups", self.norm_groups, (*self.channels, self.cross_attention_dim))]
        divisions += [("head_dim", self.head_dim, (*attending, self.channels[-1]))]
        divisions += [("pooling_heads", self.pooling_heads, (self.text_dim,))]
        if self.temporal is not None:
            divisions += [("temporal.head_dim", self.temporal.head_dim, self.channels[-1:])]
        for name, divisor, widths in divisions:
            for width in widths:
                if divisor < 1 or width < 1 or width % divisor:
                    raise UserError(f"{name} is {divisor}, which does not divide {width}")

    @property
    def temporal_stride(self) -> int:
        """Frame counts other than 1 must be a multiple of this."""
        return 1 if self.temporal is None else self.temporal.stride

    @property
    def spatial_stride(self) -> int:
        """Height and width must be a multiple of this."""
        return 2 ** (len(self.channels) - 1)

    def text_to_image(self) -> "UNetConfig":
        """The configuration of the text-to-image network inside this one."""
        return replace(self, temporal=None, cond_channels=0, cond_in_blocks=False)


def check_video_shape(config: UNetConfig, num_frames: int, height: int, width: int) -> None:
    """Raises `UserError` where the network cannot take video of this size."""
    stride = config.temporal_stride
    if num_frames != 1 and (num_frames < 1 or num_frames % stride):
        raise UserError(
            f"num_frames is {num_frames}; the model's temporal stride is {stride}, so it must be "
            f"1 (an image) or a multiple of {stride}"
        )
    if height % config.spatial_stride or width % config.spatial_stride:
        raise UserError(
            f"frames are {height}x{width}; both must be multiples of {config.spatial_stride}"
        )


class UNet(nn.Module):
    """Predicts from noisy video, timestep and text states; see `UNetConfig`.

    `remat` names one of `REMAT_POLICIES`: memory against time in training, the same result.
    `frame_axis` is set by `stunet.models.partitioning.split_over_frames`; `mesh` is where the
    parameters lie, None for one device or as many copies.
    """

    config: UNetConfig
    remat: str = "none"
    frame_axis: str | None = None
    mesh: Mesh | None = None

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        t: jax.Array,
        text: jax.Array,
        noise_level: jax.Array | None = None,
        cond: jax.Array | None = None,
    ) -> jax.Array:
        """Runs the network.

        Args:
          x: `[B, T, H, W, in_channels]`. T = 1 is an image: every temporal module is bypassed.
            (Of a clip that is split over devices, this one's frames.)
          t: `[B]` timestep on IF's scale 0..999, fractional allowed.
          text: `[B, L, text_dim]` encoder states.
          noise_level: `[B]` noise level of the conditioning input, on the scale of `t`; only
            for networks with `noise_level_embedding`.
          cond: `[B, T, H, W, cond_channels]` what is given; None for nothing, which is what zeros
            say too. An image (T = 1) is made without.

        Returns:
          `[B, T, H, W, out_channels]`, float32.
        """
        cfg = self.config
        dtype = jnp.dtype(cfg.dtype)
        num_frames = x.shape[1] * shards_of(self.frame_axis)
        check_video_shape(cfg, num_frames, *x.shape[2:4])
        temporal = cfg.temporal if num_frames > 1 else None
        coarsest = len(cfg.channels) - 1
        frames = [num_frames]  # of the clip at each level
        for halved in temporal.resample if temporal is not None else ():
            frames.append(frames[-1] // 2 if halved else frames[-1])
        axes = [axis_of(n, self.frame_axis) for n in frames]  # over which each level is split

        embedding = self._embedding(t, text, noise_level)
        modulation = self._temporal_modulation(temporal, embedding, text, num_frames)
        text = nn.Dense(cfg.cross_attention_dim, dtype=dtype, name="text_proj")(text)

        def remat(block):
            return REMAT_POLICIES[self.remat](with_whole_kernels(block, self.mesh))

        def remat_added(block):
            return remat(gradients_at_once(block) if self.remat == "blocks" else block)

        def res(h, name, features, resample=None, scale=cfg.output_scale_factor):
            block = remat(ResBlock)(
                features,
                cfg.norm_groups,
                resample,
                activate_embedding=not cfg.activate_embedding_once,
                output_scale_factor=scale,
                dtype=dtype,
                name=name,
            )
            return block(h, embedding)

        def attend(h, name):
            attention = remat(TextAttention)(
                cfg.head_dim, cfg.norm_groups, cfg.self_attention, dtype, name=name
            )
            return attention(h, text)

        def inflate(h, name, level):
            if temporal is None:
                return h
            block = TemporalAttentionBlock if level == coarsest else TemporalConvBlock
            block = remat_added(block)(
                temporal, cfg.norm_groups, dtype, axes[level], name=f"temporal_{name}"
            )
            embedded, given = modulation, None
            if temporal.frame_modulation:
                embedded = of_frames(modulation, level)[:, :: num_frames // frames[level]]
            if cond is not None and cfg.cond_in_blocks:
                given = averaged(cond, (cond.shape[1], *h.shape[2:4]))
                given = averaged(of_frames(given, level), h.shape[1:4])
            return block(h, embedded, given)

        def of_frames(x, level):
            """`x` of this device's frames, or of the whole clip if the level is not split."""
            return x if axes[level] == self.frame_axis else gathered(x, self.frame_axis)

        def resample_time(h, name, resampler, level, to):
            if temporal is None or not temporal.resample[min(level, to)]:
                return h
            coarser = axes[max(level, to)]
            if axes[level] != coarser:
                h = gathered(h, axes[level])
            resample = remat_added(resampler)(
                temporal.resampler_init, dtype, coarser, name=f"temporal_{name}"
            )
            h = resample(h)
            return own_frames(h, axes[to]) if axes[to] != coarser else h

        h = per_frame(conv3x3(cfg.channels[0], "conv_in", dtype), x.astype(dtype))
        if temporal is not None and cond is not None:
            # Beside `conv_in`, and not as more columns of its kernel, which comes to the same, so
            # that the text-to-image network's parameters stay whole. Zero at first, no bias.
            zeros = nn.initializers.zeros
            added = conv3x3(
                cfg.channels[0], "cond_conv_in", dtype, use_bias=False, kernel_init=zeros
            )
            h = h + per_frame(added, cond.astype(dtype))
        skips = [h]
        for level, features in enumerate(cfg.channels):
            for j in range(cfg.layers_per_block[level]):
                h = res(h, f"down_{level}_res_{j}", features)
                if cfg.attention_levels[level]:
                    h = attend(h, f"down_{level}_attn_{j}")
                h = inflate(h, f"down_{level}_block_{j}", level)
                skips.append(h)
            if level != coarsest:
                h = res(h, f"down_{level}_resample", features, "down")
                h = resample_time(h, f"down_{level}_resample", TemporalDownsample, level, level + 1)
                skips.append(h)

        mid_scale = cfg.mid_output_scale_factor
        h = res(h, "mid_res_0", cfg.channels[-1], scale=mid_scale)
        h = attend(h, "mid_attn_0")
        h = inflate(h, "mid_block_0", coarsest)
        h = res(h, "mid_res_1", cfg.channels[-1], scale=mid_scale)

        for level in reversed(range(len(cfg.channels))):
            features = cfg.channels[level]
            for j in range(cfg.layers_per_block[level] + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = res(h, f"up_{level}_res_{j}", features)
                if cfg.attention_levels[level]:
                    h = attend(h, f"up_{level}_attn_{j}")
                h = inflate(h, f"up_{level}_block_{j}", level)
            if level != 0:
                h = res(h, f"up_{level}_resample", features, "up")
                h = resample_time(h, f"up_{level}_resample", TemporalUpsample, level, level - 1)

        h = gelu(GroupNorm(cfg.norm_groups, name="norm_out")(h))
        return per_frame(conv3x3(cfg.out_channels, "conv_out", dtype), h).astype(jnp.float32)

    def _temporal_modulation(self, temporal, embedding, text, num_frames):
        """What temporal blocks are modulated by, `[B, T, E]`."""
        modulation = embedding[:, None]
        if temporal is None or not temporal.modulated:
            return modulation
        dtype, width = jnp.dtype(self.config.dtype), embedding.shape[-1]
        words_and_time = TemporalModulation(
            temporal, width, dtype, self.frame_axis, name="temporal_modulation"
        )
        return gelu(modulation + words_and_time(text, num_frames))

    def _embedding(self, t, text, noise_level):
        cfg = self.config
        dtype = jnp.dtype(cfg.dtype)
        width = cfg.time_embedding_dim or 4 * cfg.channels[0]
        embedding = TimestepEmbedding(cfg.channels[0], width, dtype, name="time_embedding")(t)
        if cfg.noise_level_embedding:
            if noise_level is None:
                raise ValueError("this network embeds the noise level of its conditioning input")
            level = TimestepEmbedding(cfg.channels[0], width, dtype, name="noise_level_embedding")
            embedding = embedding + level(noise_level)
        pooled = TextPooling(cfg.pooling_heads, width, dtype, name="text_pooling")(text)
        embedding = embedding + pooled
        return gelu(embedding) if cfg.activate_embedding_once else embedding


def averaged(video: jax.Array, size: tuple[int, int, int]) -> jax.Array:
    """`[B, T, H, W, C]` made smaller, to `size` (T, H, W), by the mean over each box of it."""
    b, *full, c = video.shape
    boxes = [
        n for length, n_boxes in zip(full, size, strict=True) for n in (n_boxes, length // n_boxes)
    ]
    return video.reshape(b, *boxes, c).mean((2, 4, 6))


def init_unet(config: UNetConfig, key: jax.Array, num_tokens: int = 8) -> dict:
    """Initial parameters of the network, on the smallest input that touches every module."""
    size = config.spatial_stride
    frames = max(config.temporal_stride, 2) if config.temporal is not None else 1
    x = jnp.zeros((1, frames, size, size, config.in_channels))
    t = jnp.zeros((1,))
    text = jnp.zeros((1, num_tokens, config.text_dim))
    level = t if config.noise_level_embedding else None
    cond = jnp.zeros((*x.shape[:-1], config.cond_channels)) if config.cond_channels else None
    return UNet(config).init(key, x, t, text, level, cond)["params"]


def partitioned_unet(
    config: UNetConfig, mesh: Mesh | None = None, remat: str = "none"
) -> Callable[..., jax.Array]:
    """Returns the network's `apply` function for parameters and videos sharded over a mesh.

    Args:
      config: Architecture.
      mesh: Device mesh; axis "fsdp" shards parameters, axis "frames" shards the time axis of
        videos. None runs on one device.
      remat: One of `REMAT_POLICIES`.

    Returns:
      `(variables, x, t, text, noise_level=None, cond=None) -> output`, as `UNet.__call__`.
    """
    sharded = mesh is not None and "fsdp" in mesh.shape
    return split_over_frames(UNet(config, remat, mesh=mesh if sharded else None), mesh)
