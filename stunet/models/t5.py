"""T5 v1.1 text encoder (1910.10683; gated GELU as in 2002.05202) in Flax Linen.

Parameter names follow the published checkpoints: `encoder.block.3.layer.0.SelfAttention.q.weight`
is `block_3/layer_0/SelfAttention/q/kernel` here, transposed.
"""

import dataclasses
import math
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from stunet.errors import UserError
from stunet.schema import Range, check_fields


@dataclasses.dataclass(frozen=True)
class T5Config:
    """Sizes of a T5 v1.1 encoder; T5-XXL is (32128, 4096, 64, 10240, 24, 64).

    Attributes:
      vocab_size: Number of tokens.
      d_model: Width of the states.
      d_kv: Width of an attention head.
      d_ff: Width of the feed-forward layers.
      num_layers: Number of blocks.
      num_heads: Number of attention heads.
      relative_attention_num_buckets: Number of buckets of relative positions.
      relative_attention_max_distance: Distance from which on all positions share a bucket.
      layer_norm_epsilon: Epsilon of the norms.
      zero_padding: Zeroes the states of padding, which otherwise dominate short captions. False for
        DeepFloyd IF, which was trained with them.
      dtype: Compute dtype, "float32" or "bfloat16". Norms, softmax and initial parameters are
        float32 in either case.
    """

    vocab_size: int
    d_model: int
    d_kv: int
    d_ff: int
    num_layers: Annotated[int, Range(1, 1000)]
    num_heads: int
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6
    zero_padding: bool = False
    dtype: str = "float32"

    def __post_init__(self):
        check_fields(self)
        if self.dtype not in ("float32", "bfloat16"):
            raise UserError(f"dtype: {self.dtype!r}, expected float32 or bfloat16")
        buckets = self.relative_attention_num_buckets
        # A quarter of the buckets hold exact distances, on each side.
        if buckets % 4 or self.relative_attention_max_distance <= buckets // 4:
            raise UserError(
                f"relative_attention_num_buckets: {buckets}, expected a multiple of 4 below 4 x "
                f"relative_attention_max_distance ({self.relative_attention_max_distance})"
            )


def relative_position_buckets(length: int, num_buckets: int, max_distance: int) -> np.ndarray:
    """Returns the bucket of every (query, key) pair, `[L, L]` int32 in `[0, num_buckets)`.

    Keys up to the query use the first half of the buckets, later keys the second half. The first
    half of each holds one distance per bucket; the rest grow logarithmically up to `max_distance`,
    and larger distances share the last one.
    """
    positions = np.arange(length)
    offset = positions[None, :] - positions[:, None]  # key minus query
    distance = np.abs(offset)
    side = num_buckets // 2
    exact = side // 2
    # In float32, like the checkpoints: distances at the edge of a bucket depend on rounding.
    ratio = np.maximum(distance, 1).astype(np.float32) / np.float32(exact)
    steps = np.log(ratio) / np.float32(math.log(max_distance / exact)) * np.float32(side - exact)
    coarse = np.minimum(exact + steps.astype(np.int32), side - 1)
    bucket = np.where(distance < exact, distance, coarse) + side * (offset > 0)
    return bucket.astype(np.int32)


def _dense(config: T5Config, features: int, stddev: float, name: str) -> nn.Dense:
    """Returns a projection without bias, with T5's initialisation."""
    return nn.Dense(
        features,
        use_bias=False,
        dtype=config.dtype,
        kernel_init=nn.initializers.normal(stddev),
        name=name,
    )


class RMSNorm(nn.Module):
    """Normalises by the root mean square, without a mean or a bias, in float32."""

    config: T5Config

    @nn.compact
    def __call__(self, x: Float[Array, "*axes width"]) -> Float[Array, "*axes width"]:
        weight = self.param("weight", nn.initializers.ones, (x.shape[-1],))
        x = x.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
        x = x * jax.lax.rsqrt(mean_square + self.config.layer_norm_epsilon)
        return (x * weight).astype(self.config.dtype)


class RelativeAttentionBias(nn.Module):
    """Learned attention bias per head and bucket of relative position."""

    config: T5Config

    @nn.compact
    def __call__(self, length: int) -> Float[Array, "1 heads {length} {length}"]:
        """Returns the float32 bias of the attention logits."""
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
    """Attention without the scale 1/sqrt(d), which T5 folds into the initialisation of q."""

    config: T5Config

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch tokens width"],
        mask: Bool[ArrayLike, "batch tokens"],
        position_bias: Float[Array, "1 heads tokens tokens"] | None,
    ) -> tuple[Float[Array, "batch tokens width"], Float[Array, "1 heads tokens tokens"]]:
        """Applies the layer.

        Args:
          x: `[B, L, D]`.
          mask: `[B, L]`, True for keys to attend to.
          position_bias: Bias of the logits. None (layer 0) computes it from this layer's table.

        Returns:
          The output, and the position bias for later layers.
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
        # Not -inf, which makes rows without any valid key NaN.
        scores = jnp.where(mask[:, None, None, :], scores, jnp.finfo(jnp.float32).min)
        weights = jax.nn.softmax(scores, axis=-1).astype(c.dtype)
        attended = jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(B, L, inner)
        return _dense(c, c.d_model, inner**-0.5, "o")(attended), position_bias


class GatedFeedForward(nn.Module):
    """Computes wo(gelu(wi_0 x) * wi_1 x), with the tanh approximation of GELU."""

    config: T5Config

    @nn.compact
    def __call__(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch tokens width"]:
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
        # The checkpoints use this name for every activation.
        return x + GatedFeedForward(self.config, name="DenseReluDense")(normed)


class _Block(nn.Module):
    config: T5Config

    @nn.compact
    def __call__(self, x, mask, position_bias):
        x, position_bias = _AttentionLayer(self.config, name="layer_0")(x, mask, position_bias)
        return _FeedForwardLayer(self.config, name="layer_1")(x), position_bias


@dataclasses.dataclass(frozen=True)
class TextEncoderConfig:
    """Text encoder of a model folder or a training config.

    Attributes:
      t5: Architecture.
      max_tokens: Length that prompts are padded or truncated to.
      lower_case: Whether prompts are lower-cased and stripped, as by DeepFloyd IF's pipeline.
    """

    t5: T5Config
    max_tokens: Annotated[int, Range(1, 2**16)]
    lower_case: bool = False


class T5Encoder(nn.Module):
    """T5 encoder without dropout."""

    config: T5Config

    @nn.compact
    def __call__(
        self, tokens: Int[ArrayLike, "batch tokens"], mask: Bool[ArrayLike, "batch tokens"]
    ) -> Float[Array, "batch tokens width"]:
        """Encodes a batch of padded captions.

        Args:
          tokens: Token ids in `[0, vocab_size)`.
          mask: True for tokens, False for padding. Padding is not attended to, so it does not
            affect the states of tokens. Its own states are zero only with `zero_padding`.

        Returns:
          States in the config's dtype.
        """
        c = self.config
        x = nn.Embed(
            c.vocab_size,
            c.d_model,
            dtype=c.dtype,
            embedding_init=nn.initializers.normal(1.0),
            name="shared",
        )(tokens)
        position_bias = None  # layer 0 computes it, all layers share it
        for i in range(c.num_layers):
            x, position_bias = _Block(c, name=f"block_{i}")(x, mask, position_bias)
        x = RMSNorm(c, name="final_layer_norm")(x)
        return jnp.where(mask[..., None], x, 0) if c.zero_padding else x


def init_text_encoder(config: T5Config, key: jax.Array) -> dict:
    """Initialises the parameters of the encoder."""
    tokens = jnp.zeros((1, 2), jnp.int32)
    return T5Encoder(config).init(key, tokens, tokens == 0)["params"]
