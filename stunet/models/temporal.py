"""Temporal modules that inflate the text-to-image U-Net (lumiere.md section 2; paper section 3.1).

All of them read video `[B, T, H, W, C]`. A block ends in a zero-initialised projection and a
resampler starts as nearest-neighbour resampling, so a freshly inflated network computes what
the text-to-image network computes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp

from stunet.errors import UserError
from stunet.models.layers import NORM_EPSILON, GroupNorm, conv3x3, gelu, per_frame
from stunet.models.partitioning import gathered, own_frames, shards_of, with_neighbours

BLOCKS = ("factorised", "conv1d", "conv3d")


@dataclass(frozen=True)
class TemporalConfig:
    """What is added to the text-to-image U-Net, and the choices that the ablations vary.

    Attributes:
      resample: one flag for each spatial resize, finest first: whether time is halved with it.
      resampler_init: "identity" (nearest-neighbour resampling at the start) or "he".
      block: outside the coarsest level: "factorised" (2-D spatial, then 1-D temporal
        convolution), "conv1d" (temporal only) or "conv3d".
      hidden: features inside such a block for each feature of its level, for kinds of blocks to be
        compared at equal parameters; rounded to whole normalisation groups.
      attention_layers: stacked temporal attention layers at the coarsest level and the middle.
      head_dim: width of a temporal attention head.
      text_modulation: whether temporal blocks scale and shift their hidden features by the
        timestep and by the text, which they read for themselves. The paper does not say; a
        text-to-image network trained on single frames has little reason to pass on words of
        motion.
      frame_modulation: whether they also do so by the frame's place in the clip. Attention and
        convolution over time know only how far apart two frames are, and a clip that is still all
        noise looks the same at each: a beginning and an end have to come from here. Off for a
        model that is run over windows of longer clips, where a frame's place means nothing.
      position_encoding: whether they also tell apart the places in a frame. What "left" says of a
        clip's beginning it says of one side of the frame, and convolutions know no side but by the
        padding at the frame's edge. Off for a model that is trained on crops.
      feed_forward: whether each temporal attention layer is followed by a feed-forward layer, as
        in a transformer. Attention averages over frames what the modulation tells them apart by;
        this layer works on each by itself.
      relative: whether what a block adds is counted in units of the features that it is added to
        (`stream_scale`). The paper does not say; a text-to-image network's features grow from block
        to block, in a trained one to hundreds, and what is made of normed features is not heard
        among them before its weights have grown as large.
    """

    resample: tuple[bool, ...]
    resampler_init: str = "identity"
    block: str = "factorised"
    hidden: float = 1.0
    attention_layers: int = 2
    head_dim: int = 64
    text_modulation: bool = False
    frame_modulation: bool = False
    position_encoding: bool = False
    feed_forward: bool = False
    relative: bool = False

    def __post_init__(self):
        for field, value, choices in (
            ("resampler_init", self.resampler_init, RESAMPLER_INITS),
            ("block", self.block, BLOCKS),
        ):
            if value not in choices:
                raise UserError(f"{field} is {value!r}; choose one of {', '.join(choices)}")
        if not self.hidden > 0:
            raise UserError(f"hidden is {self.hidden}; it must be above 0")
        if self.attention_layers < 1:
            raise UserError(f"attention_layers is {self.attention_layers}; at least 1")

    @property
    def stride(self) -> int:
        """How many input frames one frame of the coarsest level stands for."""
        return 2 ** sum(self.resample)

    @property
    def modulated(self) -> bool:
        """Whether temporal blocks are modulated at all."""
        return self.text_modulation or self.frame_modulation


def temporal_conv(
    x: jax.Array,
    features: int,
    name: str,
    dtype: jnp.dtype,
    axis: str | None,
    stride: int = 1,
    **kwargs,
) -> jax.Array:
    """A length-3 convolution over time: `[B, T, H, W, C]` -> `[B, T / stride, H, W, features]`.

    As a 2-D (3, 1) convolution of `[B, T, H*W, C]` it runs 1.5 to 3 times faster than as a 3-D
    one. The explicit padding matters when strided: "SAME" would keep frames 1, 3, 5 where the
    skips and the text-to-image network's equality need 0, 2, 4.
    """
    b, t, h, w, c = x.shape
    x, padding = x.reshape(b, t, h * w, c), (1, 1)
    if axis is not None:
        x, padding = with_neighbours(x, axis), (0, 0)
    conv = nn.Conv(
        features,
        (3, 1),
        strides=(stride, 1),
        padding=(padding, (0, 0)),
        dtype=dtype,
        name=name,
        **kwargs,
    )
    return conv(x).reshape(b, t // stride, h, w, features)


def identity_conv_init(key, shape, dtype=jnp.float32):
    """A temporal kernel `(3, 1, C, C)` that copies its input."""
    del key
    taps, _, c_in, c_out = shape
    return jnp.zeros(shape, dtype).at[taps // 2, 0].set(jnp.eye(c_in, c_out, dtype=dtype))


RESAMPLER_INITS = {"identity": identity_conv_init, "he": nn.initializers.he_normal()}


class TemporalDownsample(nn.Module):
    """Temporal convolution, then every second frame: T -> T/2."""

    resampler_init: str = "identity"
    dtype: jnp.dtype = jnp.float32
    frame_axis: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = RESAMPLER_INITS[self.resampler_init]
        return temporal_conv(
            x, x.shape[-1], "conv", self.dtype, self.frame_axis, stride=2, kernel_init=init
        )


class TemporalUpsample(nn.Module):
    """Frame duplication, then a temporal convolution: T -> 2T."""

    resampler_init: str = "identity"
    dtype: jnp.dtype = jnp.float32
    frame_axis: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = RESAMPLER_INITS[self.resampler_init]
        return RepeatedFramesConv(init, self.dtype, self.frame_axis, name="conv")(x)


class RepeatedFramesConv(nn.Module):
    """`temporal_conv` of frames that are there twice, with its parameters, for 2/3 of its products.

    Of three neighbours two are the same frame, so each of the two frames that one becomes is a
    convolution of length 2, whose kernel is the other's taps added up.
    """

    kernel_init: Callable[..., jax.Array]
    dtype: jnp.dtype = jnp.float32
    frame_axis: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, T, H, W, C]` -> `[B, 2T, H, W, C]`."""
        b, t, h, w, c = x.shape
        kernel = self.param("kernel", self.kernel_init, (3, 1, c, c)).astype(jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (c,))
        x = x.reshape(b, t, h * w, c).astype(self.dtype)
        if self.frame_axis is None:
            x = jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0)))
        else:
            x = with_neighbours(x, self.frame_axis)

        def convolve(first: int, taps: tuple[jax.Array, jax.Array]) -> jax.Array:
            return jax.lax.conv_general_dilated(
                x[:, first : first + t + 1],
                jnp.stack(taps).astype(self.dtype),
                window_strides=(1, 1),
                padding="VALID",
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )

        even = convolve(0, (kernel[0], kernel[1] + kernel[2]))
        odd = convolve(1, (kernel[0] + kernel[1], kernel[2]))
        y = jnp.stack([even, odd], axis=2).reshape(b, 2 * t, h, w, c)
        return y + bias.astype(self.dtype)


FRAME_WAVES = 8  # over a clip; what is quicker is left to convolution and attention over time
POSITION_WAVES = 4  # over a frame's height, and over its width
FEED_FORWARD_WIDTH = 2  # times the channels
MIXED_VARIANCE = 12.0  # of the modulation by words and time, over that of what it is made from


def _waves(length: int, count: int) -> jax.Array:
    """The `count` lowest cosines over `length` places, the slower the louder: `[length, count]`."""
    number = jnp.arange(1, count + 1)
    place = (jnp.arange(length)[:, None] + 0.5) / length
    return jnp.cos(math.pi * number * place) / number


class TemporalModulation(nn.Module):
    """What temporal blocks are modulated by beside the timestep: `[B, T, width]`, where T or B is 1
    without frames or without text.

    A motion is a *product* of words and time: what "left" says of the first frame it denies of the
    last. So the two are multiplied, and at a size that the network cannot overlook. (Added inside
    one GELU they left 0.03 % of the variance to that product; in thousands of steps it was not
    learnt.) Each word is read by itself and the readings are added up, since a mean over the
    caption dilutes the one that names the motion. Time is told by the lowest waves over the clip,
    the slower the louder, none of which has a constant part.
    """

    config: TemporalConfig
    width: int
    dtype: jnp.dtype = jnp.float32
    frame_axis: str | None = None

    @nn.compact
    def __call__(self, text: jax.Array, num_frames: int) -> jax.Array:
        """For text states `[B, L, D]` and a clip of num_frames, of which it makes this device's."""
        hidden = 2 * self.width

        def dense(features, name, variance):
            init = nn.initializers.variance_scaling(variance, "fan_in", "normal")
            return nn.Dense(features, dtype=self.dtype, name=name, kernel_init=init)

        norm = {"epsilon": NORM_EPSILON, "use_fast_variance": False, "dtype": self.dtype}
        mixed = jnp.ones((1, 1, hidden), self.dtype)
        if self.config.text_modulation:
            words = nn.LayerNorm(name="text_norm", **norm)(text)
            words = nn.tanh(dense(hidden, "text", 4.0)(words)).sum(1)
            mixed = nn.LayerNorm(name="norm", **norm)(words)[:, None]
        if self.config.frame_modulation:
            waves = own_frames(_waves(num_frames, FRAME_WAVES)[None], self.frame_axis)[0]
            waves = waves.astype(self.dtype)
            mixed = mixed * (1 + dense(hidden, "frame", 18.0)(waves))
        return dense(self.width, "mix", MIXED_VARIANCE)(mixed)


def _modulation(config, channels: int, dtype, embedding: jax.Array, name: str = "modulation"):
    """Scale and shift `[B, T, 2C]` for a norm, or None where temporal blocks are not modulated."""
    if not config.modulated:
        return None
    return nn.Dense(2 * channels, dtype=dtype, name=name)(embedding)


def encode_position(config, x: jax.Array, embedding: jax.Array, name: str) -> jax.Array:
    """Video `x` with waves over the frame added, of amplitudes that the modulation chooses."""
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


def stream_scale(config: TemporalConfig, x: jax.Array) -> jax.Array | float:
    """The root mean square of each frame of `[B, T, H, W, C]`, `[B, T, 1, 1, 1]`, where blocks are
    relative; else 1.
    """
    if not config.relative:
        return 1.0
    power = jnp.square(x.astype(jnp.float32)).mean((2, 3, 4), keepdims=True)
    return jnp.sqrt(power + NORM_EPSILON).astype(x.dtype)


def show(h: jax.Array, cond: jax.Array | None) -> jax.Array:
    """Features `h` of `[B, T, H, W, C]` with a projection of what is given there added, zero at
    first; `h` itself without.
    """
    if cond is None:
        return h
    zeros = nn.initializers.zeros
    shown = nn.Dense(h.shape[-1], use_bias=False, dtype=h.dtype, kernel_init=zeros, name="given")
    return h + shown(cond.astype(h.dtype))


def zero_projection(features: int, dtype: jnp.dtype) -> nn.Dense:
    """The projection that ends an inflation block: zero, so the block starts as the identity."""
    return nn.Dense(features, dtype=dtype, kernel_init=nn.initializers.zeros, name="proj")


class TemporalConvBlock(nn.Module):
    """`x + scale * projection(convolutions(x))`, the inflation block outside the coarsest level.

    `cond` is what is given, at this level's size, where the network shows it to its blocks.
    """

    config: TemporalConfig
    groups: int
    dtype: jnp.dtype = jnp.float32
    frame_axis: str | None = None

    @nn.compact
    def __call__(
        self, x: jax.Array, embedding: jax.Array, cond: jax.Array | None = None
    ) -> jax.Array:
        channels = x.shape[-1]
        kind = self.config.block
        hidden = max(1, round(self.config.hidden * channels / self.groups)) * self.groups
        h = show(gelu(GroupNorm(self.groups, name="norm_1")(x)), cond)
        h = encode_position(self.config, h, embedding, "position")
        if kind == "conv3d":
            h = self._conv_3d(h, hidden)
        elif kind == "conv1d":
            h = temporal_conv(h, hidden, "conv_time", self.dtype, self.frame_axis)
        else:
            h = per_frame(conv3x3(hidden, "conv_space", self.dtype), h)
        modulation = _modulation(self.config, hidden, self.dtype, embedding)
        h = gelu(GroupNorm(self.groups, name="norm_2")(h, modulation))
        if kind == "factorised":
            h = temporal_conv(h, hidden, "conv_time", self.dtype, self.frame_axis)
            h = gelu(GroupNorm(self.groups, name="norm_3")(h))
        return x + stream_scale(self.config, x) * zero_projection(channels, self.dtype)(h)

    def _conv_3d(self, x: jax.Array, features: int) -> jax.Array:
        over_time = (1, 1)
        if self.frame_axis is not None:
            x, over_time = with_neighbours(x, self.frame_axis), (0, 0)
        padding = (over_time, (1, 1), (1, 1))
        return nn.Conv(features, (3, 3, 3), padding=padding, dtype=self.dtype, name="conv")(x)


def rotary(x: jax.Array, axis: str | None = None) -> jax.Array:
    """Rotates pairs of features of `[B, T, P, heads, D]` by angles that grow with the frame."""
    half = x.shape[-1] // 2
    frequencies = 10000.0 ** (-jnp.arange(half) / half)
    frames = own_frames(jnp.arange(x.shape[1] * shards_of(axis))[None], axis)
    angles = frames[0, :, None, None, None] * frequencies
    cos, sin = (f(angles).astype(x.dtype) for f in (jnp.cos, jnp.sin))
    first, second = x[..., :half], x[..., half:]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


class TemporalAttention(nn.Module):
    """A residual layer of attention over time, each position of a frame on its own, and one of
    feed-forward where the config says so."""

    config: TemporalConfig
    groups: int
    dtype: jnp.dtype = jnp.float32
    frame_axis: str | None = None

    @nn.compact
    def __call__(
        self, x: jax.Array, embedding: jax.Array, cond: jax.Array | None = None
    ) -> jax.Array:
        b, t, height, width, channels = x.shape
        head_dim = self.config.head_dim

        def normed(suffix):
            h = encode_position(self.config, x, embedding, f"position{suffix}")
            modulation = _modulation(
                self.config, channels, self.dtype, embedding, f"modulation{suffix}"
            )
            return GroupNorm(self.groups, name=f"norm{suffix}")(h, modulation)

        def dense(features, name, h):
            return nn.Dense(features, dtype=self.dtype, name=name)(h)

        h = show(normed(""), cond)

        def project(name):
            y = dense(channels, name, h)
            return y.reshape(b, t, height * width, channels // head_dim, head_dim)

        query, key = (rotary(project(name), self.frame_axis) for name in ("q", "k"))
        key, value = (gathered(y, self.frame_axis) for y in (key, project("v")))
        logits = jnp.einsum("btphd,bsphd->bphts", query, key).astype(jnp.float32)
        weights = nn.softmax(logits / math.sqrt(head_dim)).astype(self.dtype)
        h = jnp.einsum("bphts,bsphd->btphd", weights, value).reshape(x.shape)
        x = x + dense(channels, "out", h)
        if not self.config.feed_forward:
            return x
        h = gelu(dense(FEED_FORWARD_WIDTH * channels, "feed_forward_1", normed("_feed_forward")))
        return x + dense(channels, "feed_forward_2", h)


class TemporalAttentionBlock(nn.Module):
    """`x + scale * projection(attention layers(x / scale))`, the inflation block of the coarsest
    level. `cond` as for `TemporalConvBlock`.
    """

    config: TemporalConfig
    groups: int
    dtype: jnp.dtype = jnp.float32
    frame_axis: str | None = None

    @nn.compact
    def __call__(
        self, x: jax.Array, embedding: jax.Array, cond: jax.Array | None = None
    ) -> jax.Array:
        scale = stream_scale(self.config, x)
        h = x / scale
        for i in range(self.config.attention_layers):
            layer = TemporalAttention(
                self.config, self.groups, self.dtype, self.frame_axis, name=f"attn_{i}"
            )
            h = layer(h, embedding, cond)
        return x + scale * zero_projection(x.shape[-1], self.dtype)(h)
