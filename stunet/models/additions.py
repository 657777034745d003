"""Our additions to the temporal modules of the paper, each switched on by a `TemporalConfig` field.

With every switch off, `ExtendedConvBlock` and `ExtendedAttentionBlock` compute the same as the
blocks of `stunet.models.temporal`, which they extend through hooks.
"""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from stunet.models.layers import (
    NORM_EPSILON,
    GroupNorm,
    Video,
    average_pool,
    conv3x3,
    gelu,
    per_frame,
    timestep_features,
)
from stunet.models.partitioning import FrameLayout, halo_exchange, local_frames
from stunet.models.temporal import (
    AttentionInflationBlock,
    ConvInflationBlock,
    TemporalAttention,
    norm_gelu,
    zero_projection,
)
from stunet.models.temporal_convolution import temporal_conv
from stunet.models.unet_config import TemporalConfig

FRAME_WAVES = 8  # per clip; convolution and attention over time represent faster changes
POSITION_WAVES = 4  # per frame height, and per frame width
FEED_FORWARD_WIDTH = 2  # times the channels
MIXED_VARIANCE = 12.0  # of the modulation, relative to the product that it is computed from

# The embedding has one frame if it is the same for all frames.
Modulation = Float[Array, "#batch #frames embedding"]
CondVideo = Float[Array, "batch frames height width cond_channels"]


class TemporalModulation(nn.Module):
    """Text and frame modulation: an embedding that scales and shifts norms of temporal blocks.

    The paper does not say how temporal blocks read the text. A text-to-image network that was
    trained on single frames has little reason to pass on words of motion. Convolution and attention
    over time represent only relative time, and a clip that is still all noise looks the same in
    every frame, so its beginning and end have to be marked.

    A motion is a product of text and time: "left" implies opposite positions in the first and the
    last frame. So the two are multiplied. (Added inside one GELU, their product was 0.03 % of the
    variance, and was not learnt in thousands of steps.)

    Evidence: docs/moving_shapes.md, "Words of motion".
    """

    config: TemporalConfig
    width: int
    dtype: DTypeLike = jnp.float32
    frame_axis: str | None = None

    @nn.compact
    def __call__(
        self, text: Float[Array, "batch tokens text_width"], num_frames: int
    ) -> Float[Array, "text_batch local_frames width"]:
        """Computes the embedding.

        Args:
          text: Text states. Each token is transformed, then all are summed, because a mean over the
            caption dilutes the word that names the motion.
          num_frames: Frames of the whole clip.

        Returns:
          The embedding of the local frames; batch 1 without text modulation, one frame without
          frame modulation.
        """
        hidden = 2 * self.width

        def dense(features: int, name: str, variance: float) -> nn.Dense:
            init = nn.initializers.variance_scaling(variance, "fan_in", "normal")
            return nn.Dense(features, dtype=self.dtype, name=name, kernel_init=init)

        norm = {"epsilon": NORM_EPSILON, "use_fast_variance": False, "dtype": self.dtype}
        mixed = jnp.ones((1, 1, hidden), self.dtype)
        if self.config.text_modulation:
            words = nn.LayerNorm(name="text_norm", **norm)(text)
            words = nn.tanh(dense(hidden, "text", 4.0)(words)).sum(1)
            mixed = nn.LayerNorm(name="norm", **norm)(words)[:, None]
        if self.config.frame_modulation:
            waves = local_frames(_waves(num_frames, FRAME_WAVES)[None], self.frame_axis)[0]
            waves = waves.astype(self.dtype)
            mixed = mixed * (1 + dense(hidden, "frame", 18.0)(waves))
        return dense(self.width, "mix", MIXED_VARIANCE)(mixed)


def scale_shift(
    config: TemporalConfig, channels: int, dtype: DTypeLike, embedding: Modulation, name: str
) -> Float[Array, "#batch #frames double_channels"] | None:
    """Projects the embedding to the scale and shift of a norm; None if blocks are not modulated.

    Evidence: docs/moving_shapes.md, "Words of motion".
    """
    if not config.modulated:
        return None
    return nn.Dense(2 * channels, dtype=dtype, name=name)(embedding)


def add_positions(config: TemporalConfig, x: Video, embedding: Modulation, name: str) -> Video:
    """Adds cosines over height and width, with amplitudes projected from the embedding.

    Words such as "left" refer to absolute position, which convolutions only see through the padding
    at the border of a frame.

    Evidence: docs/moving_shapes.md, "Words of motion": without them, the words of motion did not
    lower the loss.
    """
    if not config.position_encoding:
        return x
    height, width, channels = x.shape[2:]
    rows, columns = (_waves(n, POSITION_WAVES) for n in (height, width))
    shape = (height, width, POSITION_WAVES)
    rows, columns = jnp.broadcast_to(rows[:, None], shape), jnp.broadcast_to(columns, shape)
    waves = jnp.concatenate([rows, columns], axis=-1).astype(x.dtype)
    init = nn.initializers.variance_scaling(0.5, "fan_in", "normal")
    amplitudes = nn.Dense(waves.shape[-1] * channels, dtype=x.dtype, kernel_init=init, name=name)
    amplitudes = amplitudes(embedding).reshape(*embedding.shape[:2], -1, channels)
    return x + jnp.einsum("btkc,hwk->bthwc", amplitudes, waves)


def _waves(length: int, count: int) -> Float[Array, "length count"]:
    """Returns the `count` lowest cosines over `length` positions, with amplitudes 1 / frequency."""
    frequency = jnp.arange(1, count + 1)
    position = (jnp.arange(length)[:, None] + 0.5) / length
    return jnp.cos(math.pi * frequency * position) / frequency


def branch_scale(config: TemporalConfig, x: Video) -> Float[Array, "batch frames 1 1 1"] | float:
    """Returns the scale of a residual branch: the RMS of each frame of its input, or 1.

    In a trained image model activations reach the hundreds. An unscaled branch, which ends in
    normalised features, is negligible until its weights grow to match.

    Evidence: docs/moving_shapes.md, "temporal.relative".
    """
    if not config.relative:
        return 1.0
    power = jnp.square(x.astype(jnp.float32)).mean((2, 3, 4), keepdims=True)
    return jnp.sqrt(power + NORM_EPSILON).astype(x.dtype)


def embed_guidance(
    scale: Float[Array, " batch"], width: int, dtype: DTypeLike
) -> Float[Array, "batch width"]:
    """Embeds a guidance scale, as 2210.03142 (section 3.1) does; zero-initialised.

    Scale 1, no guidance, has the same features as timestep 0, and scale 11 as timestep 1000.
    """
    features = timestep_features(100 * (scale - 1), width).astype(dtype)
    zeros = nn.initializers.zeros
    return nn.Dense(width, dtype=dtype, kernel_init=zeros, name="guidance_embedding")(features)


def add_projected_conditioning(h: Video, cond: CondVideo | None) -> Video:
    """Adds a zero-initialised projection of the conditioning input; returns h if it is None.

    The paper adds the conditioning to the first convolution only, where it is mixed with the noise.
    A narrow first level cannot separate them again.

    Evidence: docs/applications.md, `cond_in_blocks`.
    """
    if cond is None:
        return h
    zeros = nn.initializers.zeros
    project = nn.Dense(h.shape[-1], use_bias=False, dtype=h.dtype, kernel_init=zeros, name="given")
    return h + project(cond.astype(h.dtype))


def inputs_at_level(
    config: TemporalConfig,
    h: Video,
    embedding: Float[Array, "#batch #clip_frames embedding"],
    cond: Float[Array, "batch clip_frames clip_height clip_width cond_channels"] | None,
    layout: FrameLayout,
    level: int,
) -> tuple[
    Float[Array, "#batch #new_frames embedding"],
    CondVideo | None,
]:
    """Selects the frames of the embedding, and pools the conditioning, for one level.

    Args:
      config: Config of the temporal modules.
      h: Activations of the level.
      embedding: Embedding per frame of the clip, or one frame without frame modulation.
      cond: Conditioning at the size of the clip. None if blocks do not read it.
      layout: Frames and sharding of every level.
      level: Index of the level; 0 is the finest.
    """
    if config.frame_modulation:
        stride = layout.num_frames[0] // layout.num_frames[level]
        embedding = layout.reshard(embedding, 0, level)[:, ::stride]
    if cond is not None:
        cond = average_pool(cond, (cond.shape[1], *h.shape[2:4]))
        cond = average_pool(layout.reshard(cond, 0, level), h.shape[1:4])
    return embedding, cond


class ExtendedConvBlock(ConvInflationBlock, kw_only=True):
    """Convolution-based inflation block with our additions."""

    config: TemporalConfig

    @nn.compact
    def __call__(self, x: Video, embedding: Modulation, cond: CondVideo | None = None) -> Video:
        """Applies the block; the embedding and `cond` are those of `inputs_at_level`."""

        def activate(h: jax.Array, groups: int, name: str) -> jax.Array:
            if name == "norm_2":
                features = h.shape[-1]
                modulation = scale_shift(self.config, features, self.dtype, embedding, "modulation")
                return gelu(GroupNorm(groups, name=name)(h, modulation))
            h = norm_gelu(h, groups, name)
            if name == "norm_1":
                h = add_projected_conditioning(h, cond)
                h = add_positions(self.config, h, embedding, "position")
            return h

        branch = self.branch(x, activate)
        return x + branch_scale(self.config, x) * branch


class AblationConvBlock(ExtendedConvBlock, kw_only=True):
    """Block types to compare with the paper's factorised convolution, of any hidden width.

    Evidence: docs/ablations.md: no difference at equal parameters after 400 steps.
    """

    @nn.nowrap
    def branch(self, x: Video, activate: Callable[..., Array] = norm_gelu) -> Video:
        """Convolutions of the configured type and width, zero-initialised projection."""
        channels = x.shape[-1]
        features = max(1, round(self.config.hidden * channels / self.groups)) * self.groups
        h = activate(x, self.groups, "norm_1")
        for i, convolve in enumerate(CONVOLUTIONS[self.config.block]):
            h = convolve(h, features, self.dtype, self.frame_axis)
            h = activate(h, self.groups, f"norm_{i + 2}")
        return zero_projection(channels, self.dtype)(h)


def _conv_space(h: jax.Array, features: int, dtype: DTypeLike, axis: str | None) -> jax.Array:
    del axis
    return per_frame(conv3x3(features, "conv_space", dtype), h)


def _conv_time(h: jax.Array, features: int, dtype: DTypeLike, axis: str | None) -> jax.Array:
    return temporal_conv(h, features, "conv_time", dtype, axis)


def _conv_space_time(h: jax.Array, features: int, dtype: DTypeLike, axis: str | None) -> jax.Array:
    h, padding = halo_exchange(h, axis)
    padding = (padding, (1, 1), (1, 1))
    return nn.Conv(features, (3, 3, 3), padding=padding, dtype=dtype, name="conv")(h)


CONVOLUTIONS = {
    "factorised": (_conv_space, _conv_time),
    "conv1d": (_conv_time,),
    "conv3d": (_conv_space_time,),
}


def conv_block(config: TemporalConfig) -> type[ExtendedConvBlock]:
    """Returns the class of the convolution-based inflation blocks."""
    paper = config.block == "factorised" and config.hidden == 1.0
    return ExtendedConvBlock if paper else AblationConvBlock


class ExtendedTemporalAttention(TemporalAttention, kw_only=True):
    """Temporal attention layer with our additions.

    The feed-forward layer processes each frame separately. Attention averages over the frames that
    the modulation tells apart. Evidence: docs/moving_shapes.md, "Words of motion".
    """

    config: TemporalConfig

    @nn.compact
    def __call__(self, x: Video, embedding: Modulation, cond: CondVideo | None = None) -> Video:
        """Applies the layer; the embedding and `cond` are those of `inputs_at_level`."""
        channels = x.shape[-1]

        def normalise(x: jax.Array, groups: int, name: str) -> jax.Array:
            suffix = name.removeprefix("norm")
            h = add_positions(self.config, x, embedding, f"position{suffix}")
            modulation = scale_shift(
                self.config, channels, self.dtype, embedding, f"modulation{suffix}"
            )
            return GroupNorm(groups, name=name)(h, modulation)

        def normalise_and_condition(x: jax.Array, groups: int, name: str) -> jax.Array:
            return add_projected_conditioning(normalise(x, groups, name), cond)

        x = super().__call__(x, normalise_and_condition)
        if not self.config.feed_forward:
            return x
        h = normalise(x, self.groups, "norm_feed_forward")
        width = FEED_FORWARD_WIDTH * channels
        h = gelu(nn.Dense(width, dtype=self.dtype, name="feed_forward_1")(h))
        return x + nn.Dense(channels, dtype=self.dtype, name="feed_forward_2")(h)


class ExtendedAttentionBlock(AttentionInflationBlock, kw_only=True):
    """Attention-based inflation block with our additions."""

    config: TemporalConfig

    @nn.compact
    def __call__(self, x: Video, embedding: Modulation, cond: CondVideo | None = None) -> Video:
        """Applies the block; the embedding and `cond` are those of `inputs_at_level`."""

        def attend(h: jax.Array, name: str) -> jax.Array:
            layer = ExtendedTemporalAttention(
                self.head_dim,
                self.groups,
                self.dtype,
                self.frame_axis,
                config=self.config,
                name=name,
            )
            return layer(h, embedding, cond)

        scale = branch_scale(self.config, x)
        return x + scale * self.branch(x / scale, attend)
