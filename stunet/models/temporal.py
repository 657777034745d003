"""The temporal modules of Lumiere (2401.12945 section 3.1, Figure 4), and nothing else.

Inflation blocks start as the identity and resamplers as nearest-neighbour resampling. With a total
temporal stride of N, every N-th output frame of a freshly inflated network therefore equals that of
the text-to-image network. docs/paper.md lists the choices that the paper does not publish.

The arguments `activate`, `attend` and `normalise` are hooks for `stunet.models.additions`.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from stunet.models.attention import attention
from stunet.models.layers import GroupNorm, Video, conv3x3, gelu, per_frame
from stunet.models.partitioning import all_gather_frames, local_frames, num_shards
from stunet.models.temporal_convolution import DuplicatedFramesConv, identity_init, temporal_conv

# Of the temporal resamplers: the paper's, and the one that it compares with.
RESAMPLER_INITS = {"identity": identity_init, "he": nn.initializers.he_normal()}


def norm(x: Video, groups: int, name: str) -> Video:
    """Normalises each frame."""
    return GroupNorm(groups, name=name)(x)


def norm_gelu(x: Video, groups: int, name: str) -> Video:
    """Normalises each frame and applies the non-linearity."""
    return gelu(norm(x, groups, name))


def zero_projection(features: int, dtype: DTypeLike) -> nn.Dense:
    """Returns the zero-initialised linear projection that ends an inflation block."""
    return nn.Dense(features, dtype=dtype, kernel_init=nn.initializers.zeros, name="proj")


class ConvInflationBlock(nn.Module):
    """Convolution-based inflation block: factorised space-time convolution (Figure 4b)."""

    groups: int
    dtype: DTypeLike = jnp.float32
    frame_axis: str | None = None

    @nn.compact
    def __call__(self, x: Video) -> Video:
        return x + self.branch(x)

    @nn.nowrap
    def branch(self, x: Video, activate: Callable[..., Array] = norm_gelu) -> Video:
        """2-D spatial convolution, 1-D temporal convolution, zero-initialised projection."""
        channels = x.shape[-1]
        h = activate(x, self.groups, "norm_1")
        h = per_frame(conv3x3(channels, "conv_space", self.dtype), h)
        h = activate(h, self.groups, "norm_2")
        h = temporal_conv(h, channels, "conv_time", self.dtype, self.frame_axis)
        h = activate(h, self.groups, "norm_3")
        return zero_projection(channels, self.dtype)(h)


class AttentionInflationBlock(nn.Module):
    """Attention-based inflation block: stacked temporal attention layers (Figure 4c)."""

    num_layers: int
    head_dim: int
    groups: int
    dtype: DTypeLike = jnp.float32
    frame_axis: str | None = None

    @nn.compact
    def __call__(self, x: Video) -> Video:
        return x + self.branch(x)

    @nn.nowrap
    def branch(self, x: Video, attend: Callable[..., Array] | None = None) -> Video:
        """Temporal attention layers, zero-initialised projection."""
        for i in range(self.num_layers):
            x = (attend or self.attend)(x, f"attn_{i}")
        return zero_projection(x.shape[-1], self.dtype)(x)

    @nn.nowrap
    def attend(self, x: Video, name: str) -> Video:
        fields = self.head_dim, self.groups, self.dtype, self.frame_axis
        return TemporalAttention(*fields, name=name)(x)


class TemporalAttention(nn.Module):
    """Residual self-attention along time, separately at each spatial position."""

    head_dim: int
    groups: int
    dtype: DTypeLike = jnp.float32
    frame_axis: str | None = None

    @nn.compact
    def __call__(self, x: Video, normalise: Callable[..., Array] = norm) -> Video:
        b, t, height, width, channels = x.shape
        h = normalise(x, self.groups, "norm")

        def project(name: str) -> jax.Array:
            y = nn.Dense(channels, dtype=self.dtype, name=name)(h)
            return y.reshape(b, t, height * width, channels // self.head_dim, self.head_dim)

        query, key = (rotary(project(name), self.frame_axis) for name in ("q", "k"))
        key, value = (all_gather_frames(y, self.frame_axis) for y in (key, project("v")))
        positions_first = (jnp.swapaxes(y, 1, 2) for y in (query, key, value))
        # Kernels need more keys than a clip has frames.
        h = attention(*positions_first, backend="einsum")
        h = jnp.swapaxes(h, 1, 2).reshape(x.shape)
        return x + nn.Dense(channels, dtype=self.dtype, name="out")(h)


def rotary(
    x: Float[Array, "batch frames positions heads head_dim"], axis: str | None = None
) -> Float[Array, "batch frames positions heads head_dim"]:
    """Applies rotary position embeddings along time; `axis` is the axis that shards frames."""
    half = x.shape[-1] // 2
    frequencies = 10000.0 ** (-jnp.arange(half) / half)
    frames = local_frames(jnp.arange(x.shape[1] * num_shards(axis))[None], axis)
    angles = frames[0, :, None, None, None] * frequencies
    cos, sin = (f(angles).astype(x.dtype) for f in (jnp.cos, jnp.sin))
    first, second = x[..., :half], x[..., half:]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


class TemporalDownsample(nn.Module):
    """Temporal convolution with stride 2: T -> T / 2 (Figure 4a, "temporal down-sampling")."""

    resampler_init: str = "identity"
    dtype: DTypeLike = jnp.float32
    frame_axis: str | None = None

    @nn.compact
    def __call__(self, x: Video) -> Float[Array, "batch half_frames height width channels"]:
        init = RESAMPLER_INITS[self.resampler_init]
        return temporal_conv(x, x.shape[-1], "conv", self.dtype, self.frame_axis, 2, init)


class TemporalUpsample(nn.Module):
    """Frame duplication, then temporal convolution: T -> 2T (Figure 4a, "temporal up-sampling")."""

    resampler_init: str = "identity"
    dtype: DTypeLike = jnp.float32
    frame_axis: str | None = None

    @nn.compact
    def __call__(self, x: Video) -> Float[Array, "batch double_frames height width channels"]:
        init = RESAMPLER_INITS[self.resampler_init]
        return DuplicatedFramesConv(init, self.dtype, self.frame_axis, name="conv")(x)
