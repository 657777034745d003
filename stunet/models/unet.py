"""The text-to-image U-Net of DeepFloyd IF (Imagen), and its inflation to a Space-Time U-Net.

One module is both (2401.12945 Figure 4a). Without `UNetConfig.temporal` it is the text-to-image
network. With it, it is the Space-Time U-Net, whose additional parameters have names that start with
`temporal_`, `cond_conv_in` in a conditional model, and `guidance_embedding` in a distilled one.
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh
from jaxtyping import Array, Float, Shaped

from stunet.models.additions import (
    ExtendedAttentionBlock,
    Modulation,
    TemporalModulation,
    conv_block,
    embed_guidance,
    inputs_at_level,
)
from stunet.models.layers import (
    GroupNorm,
    ResBlock,
    TextAttention,
    TextPooling,
    TimestepEmbedding,
    Video,
    conv3x3,
    gelu,
    per_frame,
)
from stunet.models.partitioning import (
    FrameLayout,
    Partitioning,
    gather_kernels,
    num_shards,
    shard_over_frames,
)
from stunet.models.temporal import TemporalDownsample, TemporalUpsample
from stunet.models.unet_config import UNetConfig, check_video_shape


class _Context(NamedTuple):
    """What the blocks of the U-Net read besides the activations.

    Attributes:
      embedding: `[B, E]` embedding of the timestep, the pooled text and the noise level.
      text: `[B, L, D]` projected text states.
      layout: Frames of each level. None bypasses the temporal modules (an image).
      modulation: `[B, T, E]` embedding for temporal blocks; T is 1 if it is equal for all frames.
      cond: `[B, T, H, W, C]` conditioning for temporal blocks, or None.
    """

    embedding: jax.Array
    text: jax.Array
    layout: FrameLayout | None
    modulation: jax.Array
    cond: jax.Array | None


class UNet(nn.Module):
    """Space-Time U-Net, or text-to-image U-Net.

    Attributes:
      config: Architecture.
      partitioning: Rematerialisation and sharding; the default is neither.
    """

    config: UNetConfig
    partitioning: Partitioning = Partitioning()

    @nn.compact
    def __call__(
        self,
        x: Video,
        t: Shaped[Array, " batch"],
        text: Float[Array, "batch tokens text_dim"],
        noise_level: Shaped[Array, " batch"] | None = None,
        cond: Float[Array, "batch frames height width cond_channels"] | None = None,
        guidance_scale: Float[Array, " batch"] | None = None,
    ) -> Float[Array, "batch frames height width out_channels"]:
        """Predicts the noise of a noisy video (or v; and the variance, if the model learns it).

        Args:
          x: `[B, T, H, W, in_channels]`: noisy video, under `shard_map` the local frames. T = 1 is
            an image, which bypasses every temporal module.
          t: `[B]` timestep on IF's scale 0 to 999, fractional allowed.
          text: `[B, L, text_dim]` text encoder states.
          noise_level: `[B]` noise level of the low-resolution input, on the scale of `t`; for
            networks with `noise_level_embedding`.
          cond: `[B, T, H, W, cond_channels]` known pixels and mask. None is equivalent to zeros
            (nothing is known). Ignored for images.
          guidance_scale: `[B]` scale of the guidance that the output includes; for networks with
            `guidance_embedding`. None is 1, no guidance.

        Returns:
          `[B, T, H, W, out_channels]` float32.

        Raises:
          UserError: The size of x does not match the strides of the network.
        """
        cfg, coarsest = self.config, len(self.config.channels) - 1
        dtype = jnp.dtype(cfg.dtype)
        context = self._context(x, t, text, noise_level, cond, guidance_scale)

        h = per_frame(self._conv3x3(cfg.channels[0], "conv_in"), x.astype(dtype))
        if context.layout is not None and cond is not None:
            h = h + self._cond_conv_in(cond)

        skips = [h]
        for level in range(coarsest + 1):
            for i in range(cfg.layers_per_block[level]):
                h = self._layer(h, context, f"down_{level}", level, i)
                skips.append(h)
            if level < coarsest:
                h = self._res_block(h, context, f"down_{level}_resample", level, "down")
                h = self._temporal_downsample(h, context, level)
                skips.append(h)

        h = self._res_block(h, context, "mid_res_0", coarsest, scale=cfg.mid_output_scale_factor)
        h = self._text_attention(h, context, "mid_attn_0")
        h = self._inflation_block(h, context, "mid_block_0", coarsest)
        h = self._res_block(h, context, "mid_res_1", coarsest, scale=cfg.mid_output_scale_factor)

        for level in reversed(range(coarsest + 1)):
            for i in range(cfg.layers_per_block[level] + 1):
                h = self._layer(h, context, f"up_{level}", level, i, skips.pop())
            if level > 0:
                h = self._res_block(h, context, f"up_{level}_resample", level, "up")
                h = self._temporal_upsample(h, context, level)

        h = gelu(GroupNorm(cfg.norm_groups, name="norm_out")(h))
        return per_frame(self._conv3x3(cfg.out_channels, "conv_out"), h).astype(jnp.float32)

    def _conv3x3(self, features: int, name: str, **options) -> nn.Module:
        """Returns a convolution outside the blocks, which gathers its kernel like a block."""
        convolution = gather_kernels(nn.Conv, self.partitioning.mesh)
        dtype = jnp.dtype(self.config.dtype)
        return conv3x3(features, name, dtype, convolution=convolution, **options)

    def _layer(
        self,
        h: jax.Array,
        context: _Context,
        prefix: str,
        level: int,
        i: int,
        encoded: jax.Array | None = None,
    ) -> jax.Array:
        """Pre-trained layers of the image model, then an inflation block (Figure 4b and 4c)."""
        h = self._res_block(h, context, f"{prefix}_res_{i}", level, encoded=encoded)
        if self.config.attention_levels[level]:
            h = self._text_attention(h, context, f"{prefix}_attn_{i}")
        return self._inflation_block(h, context, f"{prefix}_block_{i}", level)

    def _res_block(
        self,
        h: jax.Array,
        context: _Context,
        name: str,
        level: int,
        resample: str | None = None,
        scale: float | None = None,
        encoded: jax.Array | None = None,
    ) -> jax.Array:
        cfg = self.config
        block = self.partitioning.wrap(ResBlock)(
            cfg.channels[level],
            cfg.norm_groups,
            resample,
            activate_embedding=not cfg.activate_embedding_once,
            output_scale_factor=cfg.output_scale_factor if scale is None else scale,
            dtype=jnp.dtype(cfg.dtype),
            name=name,
        )
        return block(h, context.embedding, encoded)

    def _text_attention(self, h: jax.Array, context: _Context, name: str) -> jax.Array:
        cfg = self.config
        attention = self.partitioning.wrap(TextAttention)(
            cfg.head_dim,
            cfg.norm_groups,
            cfg.self_attention,
            jnp.dtype(cfg.dtype),
            self.partitioning.attend,
            name=name,
        )
        return attention(h, context.text)

    def _inflation_block(self, h: jax.Array, context: _Context, name: str, level: int) -> jax.Array:
        layout, cfg, temporal = context.layout, self.config, self.config.temporal
        if layout is None:
            return h
        fields = {
            "groups": cfg.norm_groups,
            "dtype": jnp.dtype(cfg.dtype),
            "frame_axis": layout.axes[level],
            "config": temporal,
            "name": f"temporal_{name}",
        }
        if cfg.temporal_attention_levels[level]:
            fields |= {"num_layers": temporal.attention_layers, "head_dim": temporal.head_dim}
            block = self.partitioning.wrap_trained(ExtendedAttentionBlock)(**fields)
        else:
            block = self.partitioning.wrap_trained(conv_block(temporal))(**fields)
        inputs = inputs_at_level(temporal, h, context.modulation, context.cond, layout, level)
        return block(h, *inputs)

    def _temporal_downsample(self, h: jax.Array, context: _Context, level: int) -> jax.Array:
        """Halves time with the spatial resize from `level` to the next coarser level."""
        layout, name = context.layout, f"temporal_down_{level}_resample"
        if layout is None or not self.config.temporal.resample[level]:
            return h
        h = layout.reshard(h, level, level + 1)
        return self._resampler(TemporalDownsample, layout.axes[level + 1], name)(h)

    def _temporal_upsample(self, h: jax.Array, context: _Context, level: int) -> jax.Array:
        """Doubles time with the spatial resize from `level` to the next finer level."""
        layout, name = context.layout, f"temporal_up_{level}_resample"
        if layout is None or not self.config.temporal.resample[level - 1]:
            return h
        h = self._resampler(TemporalUpsample, layout.axes[level], name)(h)
        return layout.reshard(h, level, level - 1)

    def _resampler(self, resampler: type[nn.Module], axis: str | None, name: str) -> nn.Module:
        init, dtype = self.config.temporal.resampler_init, jnp.dtype(self.config.dtype)
        return self.partitioning.wrap_trained(resampler)(init, dtype, axis, name=name)

    def _context(
        self,
        x: jax.Array,
        t: jax.Array,
        text: jax.Array,
        noise_level: jax.Array | None,
        cond: jax.Array | None,
        guidance_scale: jax.Array | None,
    ) -> _Context:
        cfg, local_frames = self.config, x.shape[1]
        num_frames = local_frames * num_shards(self.partitioning.frame_axis)
        check_video_shape(cfg, num_frames, *x.shape[2:4])
        layout = None
        if cfg.temporal is not None and num_frames > 1:
            layout = self.partitioning.frame_layout(local_frames, cfg.temporal.resample)
        embedding = self._embedding(t, text, noise_level, guidance_scale)
        modulation = self._temporal_modulation(embedding, text, layout)
        text = nn.Dense(cfg.cross_attention_dim, dtype=jnp.dtype(cfg.dtype), name="text_proj")(text)
        cond = cond if cfg.cond_in_blocks else None
        return _Context(embedding, text, layout, modulation, cond)

    def _embedding(
        self,
        t: jax.Array,
        text: jax.Array,
        noise_level: jax.Array | None,
        guidance_scale: jax.Array | None,
    ) -> Float[Array, "batch embedding"]:
        cfg = self.config
        dtype = jnp.dtype(cfg.dtype)
        width = cfg.time_embedding_dim or 4 * cfg.channels[0]
        embedding = TimestepEmbedding(cfg.channels[0], width, dtype, name="time_embedding")(t)
        if cfg.noise_level_embedding:
            if noise_level is None:
                raise ValueError("noise_level: None, expected [B] (noise_level_embedding is True)")
            level = TimestepEmbedding(cfg.channels[0], width, dtype, name="noise_level_embedding")
            embedding = embedding + level(noise_level)
        if cfg.guidance_embedding:
            scale = jnp.ones_like(t, jnp.float32) if guidance_scale is None else guidance_scale
            embedding = embedding + embed_guidance(scale, width, dtype)
        pooled = TextPooling(cfg.pooling_heads, width, dtype, name="text_pooling")(text)
        embedding = embedding + pooled
        return gelu(embedding) if cfg.activate_embedding_once else embedding

    def _temporal_modulation(
        self, embedding: jax.Array, text: jax.Array, layout: FrameLayout | None
    ) -> Modulation:
        cfg, modulation = self.config, embedding[:, None]
        if layout is None or not cfg.temporal.modulated:
            return modulation
        text_and_frame = TemporalModulation(
            cfg.temporal,
            embedding.shape[-1],
            jnp.dtype(cfg.dtype),
            self.partitioning.frame_axis,
            name="temporal_modulation",
        )
        return gelu(modulation + text_and_frame(text, layout.num_frames[0]))

    def _cond_conv_in(self, cond: jax.Array) -> Video:
        """First convolution of the conditioning input, zero-initialised, without a bias.

        It is equivalent to additional input channels of `conv_in` (2401.12945 section 4.2), but
        leaves the parameters of the text-to-image network unchanged.
        """
        zeros = {"kernel_init": nn.initializers.zeros, "use_bias": False}
        layer = self._conv3x3(self.config.channels[0], "cond_conv_in", **zeros)
        return per_frame(layer, cond.astype(jnp.dtype(self.config.dtype)))


def init_unet(config: UNetConfig, key: jax.Array, num_tokens: int = 8) -> dict:
    """Initialises the parameters, with the smallest input that reaches every module."""
    size = config.spatial_stride
    frames = max(config.temporal_stride, 2) if config.temporal is not None else 1
    x = jnp.zeros((1, frames, size, size, config.in_channels))
    t = jnp.zeros((1,))
    text = jnp.zeros((1, num_tokens, config.text_dim))
    level = t if config.noise_level_embedding else None
    cond = jnp.zeros((*x.shape[:-1], config.cond_channels)) if config.cond_channels else None
    return UNet(config).init(key, x, t, text, level, cond)["params"]


def partitioned_unet(
    config: UNetConfig,
    mesh: Mesh | AbstractMesh | None = None,
    remat: str = "none",
    attention: str | None = None,
) -> Callable[..., jax.Array]:
    """Returns the network's `apply` function for parameters and videos sharded over a mesh.

    Args:
      config: Architecture.
      mesh: Device mesh; axis "fsdp" shards parameters, axis "frames" shards the time axis of
        videos. Either can be missing. None runs on one device.
      remat: Key of `stunet.models.remat.REMAT_POLICIES`.
      attention: Backend of spatial attention (`stunet.models.attention.BACKENDS`). None chooses by
        device and size.

    Returns:
      `(variables, x, t, text, noise_level=None, cond=None, guidance_scale=None) -> output`, as
      `UNet.__call__`.
    """
    return shard_over_frames(UNet(config, Partitioning(remat, mesh, attention)), mesh)
