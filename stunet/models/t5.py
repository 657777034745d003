"""T5 v1.1 text encoder (Raffel et al. 2020; gated GELU as in Shazeer 2020) in Flax Linen.

Parameter names follow the published checkpoints: `encoder.block.3.layer.0.SelfAttention.q.weight`
there is `block_3/layer_0/SelfAttention/q/kernel` here, transposed.
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class T5Config:
    """Sizes of a T5 v1.1 encoder; T5-XXL is (32128, 4096, 64, 10240, 24, 64).

    `zero_padding` makes the states of padding zero, so that short captions are not lost in it;
    DeepFloyd IF was trained on T5's own. `dtype` is what the layers compute in ("float32" or
    "bfloat16"); norms and softmax are always float32, and parameters are initialised in float32.
    """

    vocab_size: int
    d_model: int
    d_kv: int
    d_ff: int
    num_layers: int
    num_heads: int
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6
    zero_padding: bool = False
    dtype: str = "float32"

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if field.name not in ("zero_padding", "dtype") and getattr(self, field.name) <= 0:
                raise ValueError(f"{field.name} must be positive, got {getattr(self, field.name)}")
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"dtype must be 'float32' or 'bfloat16', got '{self.dtype}'")
        buckets = self.relative_attention_num_buckets
        # A quarter of the buckets hold exact distances, on each side.
        if buckets % 4 or self.relative_attention_max_distance <= buckets // 4:
            raise ValueError(
                "relative_attention_num_buckets must be a multiple of 4 and less than 4 times "
                f"relative_attention_max_distance, got {buckets} and "
                f"{self.relative_attention_max_distance}"
            )


def relative_position_buckets(length: int, num_buckets: int, max_distance: int) -> np.ndarray:
    """Bucket of every (query, key) pair, `[L, L]` int32 in `[0, num_buckets)`.

    Keys at or before the query use the first half of the buckets, keys after it
    the second. In each half the first half holds one distance a bucket, the rest grow
    logarithmically up to `max_distance`; whatever is further shares the last.
    """
    positions = np.arange(length)
    offset = positions[None, :] - positions[:, None]  # key minus query
    distance = np.abs(offset)
    side = num_buckets // 2
    exact = side // 2
    # In float32, as the checkpoints were trained: distances on a bucket's edge depend on it.
    ratio = np.maximum(distance, 1).astype(np.float32) / np.float32(exact)
    steps = np.log(ratio) / np.float32(math.log(max_distance / exact)) * np.float32(side - exact)
    coarse = np.minimum(exact + steps.astype(np.int32), side - 1)
    bucket = np.where(distance < exact, distance, coarse) + side * (offset > 0)
    return bucket.astype(np.int32)


def _dense(config: T5Config, features: int, stddev: float, name: str) -> nn.Dense:
    """A bias-free projection with T5's initialisation, which is not Flax's default."""
    return nn.Dense(
        features,
        use_bias=False,
        dtype=config.dtype,
        kernel_init=nn.initializers.normal(stddev),
        name=name,
    )


class RMSNorm(nn.Module):
    """Scales by the root mean square, without a mean or a bias; float32 inside."""

    config: T5Config

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., D]` -> `[..., D]` in the config's dtype."""
        weight = self.param("weight", nn.initializers.ones, (x.shape[-1],))
        x = x.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
        x = x * jax.lax.rsqrt(mean_square + self.config.layer_norm_epsilon)
        return (x * weight).astype(self.config.dtype)


class RelativeAttentionBias(nn.Module):
    """A learned number per head and bucket of relative position."""

    config: T5Config

    @nn.compact
    def __call__(self, length: int) -> jax.Array:
        """Returns `[1, num_heads, L, L]` float32, to add to the attention scores."""
        c = self.config
        table = self.param(
            "embedding",
            nn.initializers.normal(c.d_model**-0.5),
            (c.relative_attention_num_buckets, c.num_heads),
        )
        buckets = relative_position_buckets(
            length, c.relative_attention_num_buckets, c.relative_attention_max_distance
        )
        bias = jnp.take(table, buckets, axis=0).astype(jnp.float32)
        return bias.transpose(2, 0, 1)[None]


class SelfAttention(nn.Module):
    """Attention without 1/sqrt(d): T5 folds that scale into the initialisation of q."""

    config: T5Config

    @nn.compact
    def __call__(
        self, x: jax.Array, mask: jax.Array, position_bias: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """`[B, L, D]`, keys' mask `[B, L]` -> `[B, L, D]` and the position bias used.

        Where `position_bias` is None (layer 0) it is made from this layer's own table.
        """
        c = self.config
        B, L, _ = x.shape
        inner = c.num_heads * c.d_kv

        def heads(name: str, stddev: float) -> jax.Array:
            return _dense(c, inner, stddev, name)(x).reshape(B, L, c.num_heads, c.d_kv)

        q = heads("q", (c.d_model * c.d_kv) ** -0.5)
        k = heads("k", c.d_model**-0.5)
        v = heads("v", c.d_model**-0.5)
        if position_bias is None:
            position_bias = RelativeAttentionBias(c, name="relative_attention_bias")(L)
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32)
        scores = scores + position_bias
        # The lowest finite number: a row without any valid key must not become NaN.
        scores = jnp.where(mask[:, None, None, :], scores, jnp.finfo(jnp.float32).min)
        weights = jax.nn.softmax(scores, axis=-1).astype(c.dtype)
        attended = jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(B, L, inner)
        return _dense(c, c.d_model, inner**-0.5, "o")(attended), position_bias


class GatedFeedForward(nn.Module):
    """wo(gelu(wi_0 x) * wi_1 x), with the tanh approximation of GELU."""

    config: T5Config

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, L, D]` -> `[B, L, D]`."""
        c = self.config
        gate = nn.gelu(_dense(c, c.d_ff, c.d_model**-0.5, "wi_0")(x), approximate=True)
        hidden = gate * _dense(c, c.d_ff, c.d_model**-0.5, "wi_1")(x)
        return _dense(c, c.d_model, c.d_ff**-0.5, "wo")(hidden)


class _AttentionLayer(nn.Module):
    config: T5Config

    @nn.compact
    def __call__(self, x, mask, position_bias):
        normed = RMSNorm(self.config, name="layer_norm")(x)
        attention = SelfAttention(self.config, name="SelfAttention")
        update, position_bias = attention(normed, mask, position_bias)
        return x + update, position_bias


class _FeedForwardLayer(nn.Module):
    config: T5Config

    @nn.compact
    def __call__(self, x):
        normed = RMSNorm(self.config, name="layer_norm")(x)
        # Named for ReLU in the checkpoints, whatever the activation.
        return x + GatedFeedForward(self.config, name="DenseReluDense")(normed)


class _Block(nn.Module):
    config: T5Config

    @nn.compact
    def __call__(self, x, mask, position_bias):
        x, position_bias = _AttentionLayer(self.config, name="layer_0")(x, mask, position_bias)
        return _FeedForwardLayer(self.config, name="layer_1")(x), position_bias


@dataclasses.dataclass(frozen=True)
class TextEncoderConfig:
    """A text encoder as a model folder and an experiment's config state it.

    Attributes:
      t5: its architecture.
      max_tokens: prompts are padded or cut to this length.
    """

    t5: T5Config
    max_tokens: int


class T5Encoder(nn.Module):
    """Token ids to encoder states, without dropout."""

    config: T5Config

    @nn.compact
    def __call__(self, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        """Encodes a batch of padded captions.

        Args:
          tokens: `[B, L]` int32 in `[0, vocab_size)`.
          mask: `[B, L]` bool, True on tokens and False on padding. Padding is not
            attended to, so it changes no state of a token; it has states itself.

        Returns:
          `[B, L, d_model]` in the config's dtype.
        """
        c = self.config
        x = nn.Embed(
            c.vocab_size,
            c.d_model,
            dtype=c.dtype,
            embedding_init=nn.initializers.normal(1.0),
            name="shared",
        )(tokens)
        position_bias = None  # layer 0 makes it, the others share it
        for i in range(c.num_layers):
            x, position_bias = _Block(c, name=f"block_{i}")(x, mask, position_bias)
        x = RMSNorm(c, name="final_layer_norm")(x)
        return jnp.where(mask[..., None], x, 0) if c.zero_padding else x


def init_text_encoder(config: T5Config, key: jax.Array) -> dict:
    """Initial parameters of the encoder."""
    tokens = jnp.zeros((1, 2), jnp.int32)
    return T5Encoder(config).init(key, tokens, tokens == 0)["params"]
