"""Layers of the text-to-image U-Net, with DeepFloyd IF's semantics.

Video is `[B, T, H, W, C]`. Every layer here sees single frames: time is folded into
the batch, and norm statistics are per frame, so that a frame's result never depends on
its neighbours (what the inflation's equality stands on).
"""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

NORM_EPSILON = 1e-5  # PyTorch's default, which IF's weights were trained with; Flax's is 1e-6


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """The exact (erf) GELU; Flax's default is the tanh approximation.

    By erf, not by erfc as `jax.nn.gelu` has it, which costs two polynomials and a select. The
    gradient is written out so that x alone is kept for it, and none of what lies between.
    """
    return 0.5 * x * (1 + jax.lax.erf(x * math.sqrt(0.5)))


def _gelu_backward(x, grad):
    below = 0.5 * (1 + jax.lax.erf(x * math.sqrt(0.5)))  # how much of a normal variable
    density = jnp.exp(-0.5 * jnp.square(x)) * math.sqrt(0.5 / math.pi)
    return (grad * (below + x * density),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)


def _group_mean(per_channel: jax.Array, groups: int) -> jax.Array:
    """Averages `[N, ..., C]`, 1 between, within each group of channels, in the same shape."""
    n, c = per_channel.shape[0], per_channel.shape[-1]
    mean = per_channel.reshape(n, groups, c // groups).mean(-1, keepdims=True)
    return jnp.broadcast_to(mean, (n, groups, c // groups)).reshape(per_channel.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def group_norm(x: jax.Array, scale: jax.Array, shift: jax.Array, groups: int) -> jax.Array:
    """Normalises each group of channels of `[N, ..., C]` per N, then scales and shifts.

    `scale` and `shift` are float32 `[N, ..., C]` with 1 between. Statistics are float32, the result
    has x's type. Means are taken per channel first and per group after, and the gradient is written
    out: as differentiated by XLA for a CPU it costs three to six times as much, as it reduces a
    tensor split into groups and repeats whole chains of element-wise work for each of its sums.
    """
    return _group_norm_forward(x, scale, shift, groups)[0]


def _group_norm_forward(x, scale, shift, groups):
    centred, places = x.astype(jnp.float32), tuple(range(1, x.ndim - 1))
    mean = _group_mean(centred.mean(places, keepdims=True), groups)
    centred = centred - mean
    variance = _group_mean(jnp.square(centred).mean(places, keepdims=True), groups)
    inverse = jax.lax.rsqrt(variance + NORM_EPSILON)
    y = (centred * (inverse * scale) + shift).astype(x.dtype)
    return y, (x, mean, inverse, scale)


def _group_norm_backward(groups, residuals, grad):
    x, mean, inverse, scale = residuals
    if x.dtype != jnp.float32:
        # Else XLA keeps the forward pass's float32 copy of x until here, at twice the memory.
        x, grad = jax.lax.optimization_barrier((x, grad))
    grad, places = grad.astype(jnp.float32), tuple(range(1, x.ndim - 1))
    centred = x.astype(jnp.float32) - mean
    grad_shift = grad.sum(places, keepdims=True)
    grad_scale = (grad * centred).sum(places, keepdims=True) * inverse
    # Through the group's mean and variance: means over the group of the gradient, and of the
    # gradient times the normalised value.
    count = math.prod(x.shape[1:-1])
    through_mean = _group_mean(grad_shift * scale, groups) / count
    through_variance = _group_mean(grad_scale * scale, groups) / count
    grad_x = inverse * (grad * scale - through_mean) - centred * (inverse**2 * through_variance)
    return grad_x.astype(x.dtype), grad_scale, grad_shift


group_norm.defvjp(_group_norm_forward, _group_norm_backward)


class GroupNorm(nn.Module):
    """Group norm over all axes but the leading `batch_axes` and the channel's group.

    For video `batch_axes` is 2 (B and T: one frame at a time), for text states `[B, L, D]` it is 1.
    A `modulation` `[B, 2C]` (or of each frame, `[B, T, 2C]`) scales the normed video by 1 + its
    first half and adds its second.
    """

    groups: int
    batch_axes: int = 2

    @nn.compact
    def __call__(self, x: jax.Array, modulation: jax.Array | None = None) -> jax.Array:
        lead, channels = x.shape[: self.batch_axes], x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        shift = self.param("bias", nn.initializers.zeros, (channels,))
        if modulation is not None:
            modulation = modulation.astype(jnp.float32).reshape(x.shape[0], -1, 2 * channels)
            factor, offset = jnp.split(modulation, 2, axis=-1)
            scale, shift = scale * (1 + factor), shift * (1 + factor) + offset
        # The axes between stay apart: merged, they would ask a TPU for another layout.
        between = x.shape[self.batch_axes : -1]
        ones = (1,) * len(between)
        scale, shift = (
            jnp.broadcast_to(a, (*lead, channels)).reshape(-1, *ones, channels)
            for a in (scale, shift)
        )
        items = x.reshape(-1, *between, channels)
        return group_norm(items, scale, shift, self.groups).reshape(x.shape)


def conv3x3(features: int, name: str, dtype: jnp.dtype, **kwargs) -> nn.Conv:
    """A 3x3 convolution padded by one on each side, as PyTorch pads."""
    return nn.Conv(features, (3, 3), padding=1, dtype=dtype, name=name, **kwargs)


def per_frame(layer, x: jax.Array) -> jax.Array:
    """Applies an image layer to `[B, T, H, W, C]` with time folded into the batch."""
    y = layer(x.reshape(-1, *x.shape[2:]))
    return y.reshape(*x.shape[:2], *y.shape[1:])


def upsample_space(x: jax.Array) -> jax.Array:
    """Nearest-neighbour x2 in height and width."""
    b, t, h, w, c = x.shape
    x = jnp.broadcast_to(x[:, :, :, None, :, None], (b, t, h, 2, w, 2, c))
    return x.reshape(b, t, 2 * h, 2 * w, c)


class UpsampledConv(nn.Module):
    """`conv3x3` of `upsample_space(x)`, with its parameters, for 4/9 of its products.

    An upsampled frame's 3x3 neighbourhood lies on 2x2 pixels of the frame itself, so each of the
    four pixels that one becomes is a 2x2 convolution, whose kernel is the 3x3 one's taps added up.
    """

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[N, H, W, C]` -> `[N, 2H, 2W, features]`."""
        n, height, width, channels = x.shape
        shape = (3, 3, channels, self.features)
        kernel = self.param("kernel", nn.linear.default_kernel_init, shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        # Which taps fall on the same pixel: of an even row the first is alone, of an odd one
        # the last.
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


def downsample_space(x: jax.Array) -> jax.Array:
    """2x2 average in height and width."""
    b, t, h, w, c = x.shape
    return x.reshape(b, t, h // 2, 2, w // 2, 2, c).mean((3, 5))


def timestep_features(t: jax.Array, dim: int) -> jax.Array:
    """Sinusoids of the raw timestep (0..999, fractional allowed): cosines first, `[B, dim]`."""
    half = dim // 2
    frequencies = jnp.exp(-math.log(10000.0) * jnp.arange(half) / half)
    angles = t.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class TimestepEmbedding(nn.Module):
    """Two-layer MLP on sinusoidal features; IF uses one for t, one for the noise level."""

    features: int
    out_dim: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, t: jax.Array) -> jax.Array:
        h = timestep_features(t, self.features)
        h = gelu(nn.Dense(self.out_dim, dtype=self.dtype, name="linear_1")(h))
        return nn.Dense(self.out_dim, dtype=self.dtype, name="linear_2")(h)


class TextPooling(nn.Module):
    """Attention pooling of text states `[B, L, D]` to one vector `[B, out_dim]`.

    The query is the token mean plus a learned vector; keys and values are that class token
    followed by all tokens (padding takes part too, as in IF).
    """

    heads: int
    out_dim: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, states: jax.Array) -> jax.Array:
        norm = {"epsilon": NORM_EPSILON, "use_fast_variance": False, "dtype": self.dtype}
        states = nn.LayerNorm(name="norm_1", **norm)(states)
        dim = states.shape[-1]
        position = self.param("positional_embedding", nn.initializers.normal(dim**-0.5), (1, dim))
        token = states.mean(1, keepdims=True) + position.astype(states.dtype)
        states = jnp.concatenate([token, states], axis=1)

        def heads(name, x):
            x = nn.Dense(dim, dtype=self.dtype, name=name)(x)
            return x.reshape(*x.shape[:2], self.heads, dim // self.heads)

        query, key, value = heads("q", token), heads("k", states), heads("v", states)
        logits = jnp.einsum("bqhd,bkhd->bhqk", query, key) / math.sqrt(dim // self.heads)
        weights = nn.softmax(logits.astype(jnp.float32)).astype(self.dtype)
        pooled = jnp.einsum("bhqk,bkhd->bqhd", weights, value).reshape(-1, dim)
        pooled = nn.Dense(self.out_dim, dtype=self.dtype, name="proj")(pooled)
        return nn.LayerNorm(name="norm_2", **norm)(pooled)


class ResBlock(nn.Module):
    """IF's residual block, which also resamples: `resample` is None, "up" or "down".

    Both branches are resampled, by nearest neighbour or a 2x2 average, with no convolution of
    their own. `embedding` is `[B, E]` and modulates the second norm: scale first, then shift.
    """

    features: int
    groups: int
    resample: str | None = None
    activate_embedding: bool = True
    output_scale_factor: float = 1.0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, embedding: jax.Array) -> jax.Array:
        h = gelu(GroupNorm(self.groups, name="norm_1")(x))
        if self.resample == "up":
            x = upsample_space(x)
            h = per_frame(UpsampledConv(self.features, self.dtype, name="conv_1"), h)
        else:
            if self.resample == "down":
                x, h = downsample_space(x), downsample_space(h)
            h = per_frame(conv3x3(self.features, "conv_1", self.dtype), h)
        if self.activate_embedding:
            embedding = gelu(embedding)
        modulation = nn.Dense(2 * self.features, dtype=self.dtype, name="embedding")(embedding)
        h = gelu(GroupNorm(self.groups, name="norm_2")(h, modulation))
        h = per_frame(conv3x3(self.features, "conv_2", self.dtype), h)
        if x.shape[-1] != self.features:
            x = nn.Dense(self.features, dtype=self.dtype, name="skip")(x)
        return (x + h) / self.output_scale_factor


class TextAttention(nn.Module):
    """Spatial attention whose keys are `[text ; self]`, or the text alone.

    `x` is `[B, T, H, W, C]`, `text` `[B, L, D]`. Text keys and values are made once per video,
    not once per frame. No mask; the residual is added unscaled.
    """

    head_dim: int
    groups: int
    self_attention: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, text: jax.Array) -> jax.Array:
        b, t, height, width, channels = x.shape
        heads = channels // self.head_dim

        def project(name, y):
            y = nn.Dense(channels, dtype=self.dtype, name=name)(y)
            return y.reshape(*y.shape[:-1], heads, self.head_dim)

        text = GroupNorm(self.groups, batch_axes=1, name="text_norm")(text)
        text_key, text_value = project("text_k", text), project("text_v", text)
        h = GroupNorm(self.groups, name="norm")(x)
        h = h.reshape(b, t, height * width, channels)
        query = project("q", h)
        logits = jnp.einsum("btqhd,blhd->bthql", query, text_key)
        if self.self_attention:
            key, value = project("k", h), project("v", h)
            self_logits = jnp.einsum("btqhd,btkhd->bthqk", query, key)
            logits = jnp.concatenate([logits, self_logits], axis=-1)
        logits = logits.astype(jnp.float32) / math.sqrt(self.head_dim)
        weights = nn.softmax(logits).astype(self.dtype)
        length = text.shape[1]
        h = jnp.einsum("bthql,blhd->btqhd", weights[..., :length], text_value)
        if self.self_attention:
            h = h + jnp.einsum("bthqk,btkhd->btqhd", weights[..., length:], value)
        h = nn.Dense(channels, dtype=self.dtype, name="out")(h.reshape(b, t, -1, channels))
        return x + h.reshape(x.shape)
