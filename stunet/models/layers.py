"""Layers of the text-to-image U-Net, as in DeepFloyd IF.

Video is `[B, T, H, W, C]`. Time is folded into the batch and norm statistics are per frame, so the
result for a frame is independent of other frames. The equality of an inflated network with its
text-to-image network relies on this.
"""

import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Shaped

from stunet.models.attention import attention
from stunet.models.remat import CONVOLUTION, SAVED

Video = Float[Array, "batch frames height width channels"]

NORM_EPSILON = 1e-5  # PyTorch's default, which IF was trained with; Flax's default is 1e-6


@jax.custom_vjp
def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Computes the exact (erf) GELU; Flax's default is the tanh approximation.

    It uses erf instead of erfc as `jax.nn.gelu` does, which costs two polynomials and a select. The
    custom gradient saves only x for the backward pass.
    """
    return 0.5 * x * (1 + jax.lax.erf(x * math.sqrt(0.5)))


def _gelu_backward(x, grad):
    cdf = 0.5 * (1 + jax.lax.erf(x * math.sqrt(0.5)))  # of the standard normal distribution
    density = jnp.exp(-0.5 * jnp.square(x)) * math.sqrt(0.5 / math.pi)
    return (grad * (cdf + x * density),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)


def _group_mean(per_channel: jax.Array, groups: int) -> jax.Array:
    """Averages `[N, 1, ..., 1, C]` within each group of channels; the shape is unchanged."""
    n, c = per_channel.shape[0], per_channel.shape[-1]
    mean = per_channel.reshape(n, groups, c // groups).mean(-1, keepdims=True)
    return jnp.broadcast_to(mean, (n, groups, c // groups)).reshape(per_channel.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def group_norm(
    x: Float[Array, "items *axes channels"],
    scale: Float[Array, "items *ones channels"],
    shift: Float[Array, "items *ones channels"],
    groups: int,
) -> Float[Array, "items *axes channels"]:
    """Normalises each item and group of channels, then scales and shifts.

    Statistics are computed in float32; the result has the dtype of x. Means are computed per
    channel, then per group, and the gradient is custom: XLA's own is three to six times slower on a
    CPU, because it reduces a tensor split into groups and repeats element-wise chains for each sum.

    Args:
      x: `[N, ..., C]`.
      scale: float32 `[N, 1, ..., 1, C]`.
      shift: float32 `[N, 1, ..., 1, C]`.
      groups: Number of groups of channels.
    """
    return _group_norm_forward(x, scale, shift, groups)[0]


def _group_norm_forward(x, scale, shift, groups):
    mean, inverse = (checkpoint_name(a, SAVED) for a in _group_statistics(x, groups))
    y = ((x.astype(jnp.float32) - mean) * (inverse * scale) + shift).astype(x.dtype)
    return y, (x, mean, inverse, scale)


def _group_statistics(x: jax.Array, groups: int) -> tuple[jax.Array, jax.Array]:
    """Returns mean and inverse standard deviation of each group, float32 `[N, 1, ..., 1, C]`.

    Reads x once. The variance within a channel is computed relative to one of its values, because
    the difference of two large squares would lose the variance of channels with a large mean.
    """
    axes = tuple(range(1, x.ndim - 1))
    middle = tuple(slice(n // 2, n // 2 + 1) for n in x.shape[1:-1])
    origin = x[:, *middle].astype(jnp.float32)
    distance = x.astype(jnp.float32) - origin
    offset = distance.mean(axes, keepdims=True)
    variance = jnp.square(distance).mean(axes, keepdims=True) - jnp.square(offset)
    mean = _group_mean(origin + offset, groups)
    variance = _group_mean(variance + jnp.square(origin + offset - mean), groups)
    return mean, jax.lax.rsqrt(variance + NORM_EPSILON)


def _group_norm_backward(groups, residuals, grad):
    x, mean, inverse, scale = residuals
    if x.dtype != jnp.float32:
        # Otherwise XLA keeps the float32 copy of x from the forward pass, at twice the memory.
        x, grad = jax.lax.optimization_barrier((x, grad))
    grad, axes = grad.astype(jnp.float32), tuple(range(1, x.ndim - 1))
    centred = x.astype(jnp.float32) - mean
    grad_shift = grad.sum(axes, keepdims=True)
    grad_scale = (grad * centred).sum(axes, keepdims=True) * inverse
    # Gradient through the mean and the variance of the group: group means of the gradient, and of
    # the gradient times the normalised value.
    count = math.prod(x.shape[1:-1])
    through_mean = _group_mean(grad_shift * scale, groups) / count
    through_variance = _group_mean(grad_scale * scale, groups) / count
    grad_x = inverse * (grad * scale - through_mean) - centred * (inverse**2 * through_variance)
    return grad_x.astype(x.dtype), grad_scale, grad_shift


group_norm.defvjp(_group_norm_forward, _group_norm_backward)


class GroupNorm(nn.Module):
    """Group norm with optional scale-shift modulation.

    Attributes:
      groups: Number of groups of channels.
      batch_axes: Leading axes with separate statistics: 2 (B and T) for video, 1 for text states
        `[B, L, D]`.
    """

    groups: int
    batch_axes: int = 2

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch *axes channels"],
        modulation: Float[Array, "batch *frames double_channels"] | None = None,
    ) -> Float[Array, "batch *axes channels"]:
        """Normalises x.

        Args:
          x: `[B, ..., C]`.
          modulation: `[B, 2C]`, or `[B, T, 2C]` per frame: the first half scales the normalised
            x by 1 + its value, the second half is added.
        """
        lead, channels = x.shape[: self.batch_axes], x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        shift = self.param("bias", nn.initializers.zeros, (channels,))
        if modulation is not None:
            modulation = modulation.astype(jnp.float32).reshape(x.shape[0], -1, 2 * channels)
            factor, offset = jnp.split(modulation, 2, axis=-1)
            scale, shift = scale * (1 + factor), shift * (1 + factor) + offset
        # Height and width are not merged, because XLA:TPU would change the layout (a copy).
        between = x.shape[self.batch_axes : -1]
        ones = (1,) * len(between)
        scale, shift = (
            jnp.broadcast_to(a, (*lead, channels)).reshape(-1, *ones, channels)
            for a in (scale, shift)
        )
        items = x.reshape(-1, *between, channels)
        return group_norm(items, scale, shift, self.groups).reshape(x.shape)


def conv3x3(
    features: int,
    name: str | None,
    dtype: DTypeLike,
    kernel_init: Initializer = nn.linear.default_kernel_init,
    use_bias: bool = True,
    convolution: type[nn.Module] = nn.Conv,
) -> nn.Module:
    """Returns a 3x3 convolution with padding 1 on each side, like PyTorch's."""
    return convolution(
        features,
        (3, 3),
        padding=1,
        dtype=dtype,
        kernel_init=kernel_init,
        use_bias=use_bias,
        name=name,
    )


def per_frame(
    layer: Callable[[jax.Array], jax.Array], x: Video
) -> Float[Array, "batch frames new_height new_width features"]:
    """Applies an image layer to every frame, with time folded into the batch."""
    y = layer(x.reshape(-1, *x.shape[2:]))
    return y.reshape(*x.shape[:2], *y.shape[1:])


def upsample_space(x: Video) -> Float[Array, "batch frames 2*height 2*width channels"]:
    """Doubles height and width by nearest-neighbour interpolation."""
    b, t, h, w, c = x.shape
    x = jnp.broadcast_to(x[:, :, :, None, :, None], (b, t, h, 2, w, 2, c))
    return x.reshape(b, t, 2 * h, 2 * w, c)


class UpsampledConv(nn.Module):
    """Equals `conv3x3` of `upsample_space(x)` and has its parameters, with 4/9 of its products.

    A 3x3 neighbourhood in the upsampled frame covers 2x2 pixels of the original. So each of the
    four output pixels per input pixel is a 2x2 convolution, whose kernel sums taps of the 3x3
    kernel.
    """

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "items height width channels"]
    ) -> Float[Array, "items 2*height 2*width features"]:
        n, height, width, channels = x.shape
        shape = (3, 3, channels, self.features)
        kernel = self.param("kernel", nn.linear.default_kernel_init, shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        # Taps that read the same input pixel: (0), (1, 2) for even rows, (0, 1), (2) for odd rows.
        merge = jnp.array([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]], jnp.float32)
        kernels = jnp.einsum("iap,jbq,pqcd->ijabcd", merge, merge, kernel.astype(jnp.float32))
        kernels = kernels.astype(self.dtype)

        def convolve(i: int, j: int) -> jax.Array:
            return jax.lax.conv_general_dilated(
                x.astype(self.dtype),
                kernels[i, j],
                window_strides=(1, 1),
                padding=((1 - i, i), (1 - j, j)),
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )

        rows = [jnp.stack([convolve(i, 0), convolve(i, 1)], axis=3) for i in range(2)]
        y = jnp.stack(rows, axis=2).reshape(n, 2 * height, 2 * width, self.features)
        return y + bias.astype(self.dtype)


def downsample_space(
    x: Video,
) -> Float[Array, "batch frames half_height half_width channels"]:
    """Halves height and width by 2x2 averages."""
    b, t, h, w, c = x.shape
    return x.reshape(b, t, h // 2, 2, w // 2, 2, c).mean((3, 5))


def average_pool(
    video: Video, size: tuple[int, int, int]
) -> Float[Array, "batch new_frames new_height new_width channels"]:
    """Shrinks a video to `size` (T, H, W) by averaging non-overlapping boxes."""
    b, *full, c = video.shape
    boxes = [n for length, count in zip(full, size, strict=True) for n in (count, length // count)]
    return video.reshape(b, *boxes, c).mean((2, 4, 6))


def timestep_features(t: Shaped[Array, " batch"], dim: int) -> Float[Array, "batch dim"]:
    """Returns sinusoidal features of the timestep (0 to 999, fractional allowed), cosines first."""
    half = dim // 2
    frequencies = jnp.exp(-math.log(10000.0) * jnp.arange(half) / half)
    angles = t.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class TimestepEmbedding(nn.Module):
    """Two-layer MLP on sinusoidal features; IF uses one for t and one for the noise level."""

    features: int
    out_dim: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, t: Shaped[Array, " batch"]) -> Float[Array, "batch out_dim"]:
        h = timestep_features(t, self.features)
        h = gelu(nn.Dense(self.out_dim, dtype=self.dtype, name="linear_1")(h))
        return nn.Dense(self.out_dim, dtype=self.dtype, name="linear_2")(h)


class TextPooling(nn.Module):
    """Pools text states to one vector by attention.

    The query is a class token, the mean of the tokens plus a learned vector. Keys and values are
    the class token followed by all tokens, including padding, as in IF.
    """

    heads: int
    out_dim: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, states: Float[Array, "batch tokens width"]) -> Float[Array, "batch out_dim"]:
        norm = {"epsilon": NORM_EPSILON, "use_fast_variance": False, "dtype": self.dtype}
        states = nn.LayerNorm(name="norm_1", **norm)(states)
        dim = states.shape[-1]
        position = self.param("positional_embedding", nn.initializers.normal(dim**-0.5), (1, dim))
        token = states.mean(1, keepdims=True) + position.astype(states.dtype)
        states = jnp.concatenate([token, states], axis=1)

        def heads(name, x):
            x = nn.Dense(dim, dtype=self.dtype, name=name)(x)
            return x.reshape(*x.shape[:2], self.heads, dim // self.heads)

        pooled = attention(heads("q", token), heads("k", states), heads("v", states))
        pooled = pooled.reshape(-1, dim)
        pooled = nn.Dense(self.out_dim, dtype=self.dtype, name="proj")(pooled)
        return nn.LayerNorm(name="norm_2", **norm)(pooled)


class ResBlock(nn.Module):
    """Residual block of IF, with optional spatial resampling.

    Attributes:
      features: Output channels.
      groups: Groups of the group norms.
      resample: "up", "down" or None. Both branches are resampled, by nearest neighbour or 2x2
        averages.
      activate_embedding: Whether to apply GELU to the embedding.
      output_scale_factor: Divisor of the sum of both branches.
      dtype: Compute dtype.
    """

    features: int
    groups: int
    resample: str | None = None
    activate_embedding: bool = True
    output_scale_factor: float = 1.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Video,
        embedding: Float[Array, "batch embedding"],
        encoded: Float[Array, "batch frames height width encoded_channels"] | None = None,
    ) -> Float[Array, "batch frames new_height new_width features"]:
        """Applies the block.

        Args:
          x: Activations.
          embedding: Scales and shifts the output of the second norm.
          encoded: Activations of the encoder to concatenate with x (a skip connection of the
            U-Net). Rematerialisation would store the result of a concatenation outside the block.
        """
        if encoded is not None:
            x = jnp.concatenate([x, encoded], axis=-1)
        h = gelu(GroupNorm(self.groups, name="norm_1")(x))
        if self.resample == "up":
            x = upsample_space(x)
            h = per_frame(UpsampledConv(self.features, self.dtype, name="conv_1"), h)
        else:
            if self.resample == "down":
                x, h = downsample_space(x), downsample_space(h)
            h = per_frame(conv3x3(self.features, "conv_1", self.dtype), h)
        h = checkpoint_name(h, CONVOLUTION)
        if self.activate_embedding:
            embedding = gelu(embedding)
        modulation = nn.Dense(2 * self.features, dtype=self.dtype, name="embedding")(embedding)
        h = gelu(GroupNorm(self.groups, name="norm_2")(h, modulation))
        h = per_frame(conv3x3(self.features, "conv_2", self.dtype), h)
        if x.shape[-1] != self.features:
            x = nn.Dense(self.features, dtype=self.dtype, name="skip")(x)
        return (x + h) / self.output_scale_factor


def _prepend_text(
    text: Float[Array, "batch tokens heads head_dim"],
    frames: Float[Array, "batch frames pixels heads head_dim"],
) -> Float[Array, "batch frames tokens+pixels heads head_dim"]:
    """Concatenates keys or values of the text with those of each frame."""
    b, t = frames.shape[:2]
    text = jnp.broadcast_to(text[:, None], (b, t, *text.shape[1:]))
    return jnp.concatenate([text, frames], axis=2)


class TextAttention(nn.Module):
    """Spatial attention of each frame to the text and to itself, without a mask.

    Text keys and values are computed once per video. The residual is not scaled.

    Attributes:
      head_dim: Width of a head.
      groups: Groups of the group norms.
      self_attention: Whether keys are `[text ; self]`; False means text keys only.
      dtype: Compute dtype.
      attend: Function of query, key and value, such as `stunet.models.attention.attention`.
    """

    head_dim: int
    groups: int
    self_attention: bool = True
    dtype: DTypeLike = jnp.float32
    attend: Callable[..., Array] = attention

    @nn.compact
    def __call__(self, x: Video, text: Float[Array, "batch tokens text_width"]) -> Video:
        b, t, height, width, channels = x.shape
        heads = channels // self.head_dim

        def project(name, y):
            y = nn.Dense(channels, dtype=self.dtype, name=name)(y)
            return y.reshape(*y.shape[:-1], heads, self.head_dim)

        text = GroupNorm(self.groups, batch_axes=1, name="text_norm")(text)
        key, value = project("text_k", text), project("text_v", text)
        h = GroupNorm(self.groups, name="norm")(x)
        h = h.reshape(b, t, height * width, channels)
        query = project("q", h)
        if self.self_attention:
            key = _prepend_text(key, project("k", h))
            value = _prepend_text(value, project("v", h))
        else:  # the same keys for all frames
            query = query.reshape(b, -1, heads, self.head_dim)
        h = self.attend(query, key, value).reshape(b, t, -1, channels)
        h = nn.Dense(channels, dtype=self.dtype, name="out")(h)
        return x + h.reshape(x.shape)
