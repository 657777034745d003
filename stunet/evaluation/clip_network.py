"""CLIP (Radford et al., 2103.00020) in Flax Linen: a text and an image transformer.

Modules have the names of transformers' `CLIPModel`, including its misspelt `pre_layrnorm`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from stunet.errors import UserError
from stunet.schema import from_dict

_ACTIVATIONS = {
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
    "gelu": lambda x: nn.gelu(x, approximate=False),
}


@dataclass(frozen=True)
class TowerConfig:
    """Config of one of the two transformers, with the field names of transformers."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    hidden_act: Literal["quick_gelu", "gelu"]
    layer_norm_eps: float

    def __post_init__(self):
        if self.num_attention_heads < 1 or self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size: {self.hidden_size}, expected a multiple of num_attention_heads "
                f"{self.num_attention_heads}"
            )


@dataclass(frozen=True)
class ClipConfig:
    """Config of a CLIP model.

    Attributes:
      text: Text transformer.
      vision: Image transformer.
      vocab_size: Number of tokens in the vocabulary.
      max_tokens: Length of token sequences (`max_position_embeddings` in transformers).
      image_size: Height and width of images in pixels.
      patch_size: Height and width of patches in pixels.
      projection_dim: Dimension of the common embedding space.
    """

    text: TowerConfig
    vision: TowerConfig
    vocab_size: int
    max_tokens: int
    image_size: int
    patch_size: int
    projection_dim: int


# Defaults of transformers, which its config.json files omit: the sizes of ViT-B/32.
_TOWER = {
    "num_hidden_layers": 12,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
_TEXT = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8, **_TOWER}
_VISION = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, **_TOWER}


def clip_config(config: Mapping[str, Any], where: str) -> ClipConfig:
    """Converts the content of a transformers `config.json`.

    Args:
      config: Content of the file.
      where: Path of the file, for errors.

    Raises:
      UserError: the config is not of a CLIP model, or a field is invalid.
    """
    if (kind := config.get("model_type")) != "clip":
        raise UserError(f"{where}: model_type {kind!r}, expected 'clip'")
    # Some files contain a part twice; transformers then uses `..._config_dict`.
    text, vision = (
        config.get(f"{part}_config_dict") or config.get(f"{part}_config") or {}
        for part in ("text", "vision")
    )
    fields = {
        "text": {name: text.get(name, default) for name, default in _TEXT.items()},
        "vision": {name: vision.get(name, default) for name, default in _VISION.items()},
        "vocab_size": text.get("vocab_size", 49408),
        "max_tokens": text.get("max_position_embeddings", 77),
        "image_size": vision.get("image_size", 224),
        "patch_size": vision.get("patch_size", 32),
        "projection_dim": config.get("projection_dim", 512),
    }
    return from_dict(ClipConfig, fields, where)


class TextEncoder(nn.Module):
    """Embeds token sequences."""

    config: ClipConfig

    @nn.compact
    def __call__(self, tokens: jax.Array, ends: jax.Array) -> jax.Array:
        """Maps tokens `[N, L]` int32 with end positions `[N]` to `[N, projection_dim]`."""
        states = _TextModel(self.config, name="text_model")(tokens)
        pooled = jnp.take_along_axis(states, ends[:, None, None], axis=1)[:, 0]
        return nn.Dense(self.config.projection_dim, use_bias=False, name="text_projection")(pooled)


class ImageEncoder(nn.Module):
    """Embeds images."""

    config: ClipConfig

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps normalised images `[N, S, S, 3]` to `[N, projection_dim]`."""
        pooled = _VisionModel(self.config, name="vision_model")(images)
        return nn.Dense(self.config.projection_dim, use_bias=False, name="visual_projection")(
            pooled
        )


class _TextModel(nn.Module):
    config: ClipConfig

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        c = self.config
        x = _TextEmbeddings(c, name="embeddings")(tokens)
        causal = jnp.tril(jnp.ones((tokens.shape[1],) * 2, bool))
        x = _Encoder(c.text, name="encoder")(x, causal)
        return nn.LayerNorm(epsilon=c.text.layer_norm_eps, name="final_layer_norm")(x)


class _TextEmbeddings(nn.Module):
    config: ClipConfig

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        c = self.config
        words = nn.Embed(c.vocab_size, c.text.hidden_size, name="token_embedding")(tokens)
        places = nn.Embed(c.max_tokens, c.text.hidden_size, name="position_embedding")
        return words + places(jnp.arange(tokens.shape[1]))


class _VisionModel(nn.Module):
    config: ClipConfig

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns the state of the class token, `[N, hidden_size]`."""
        eps = self.config.vision.layer_norm_eps
        x = _VisionEmbeddings(self.config, name="embeddings")(images)
        x = nn.LayerNorm(epsilon=eps, name="pre_layrnorm")(x)
        x = _Encoder(self.config.vision, name="encoder")(x, None)
        return nn.LayerNorm(epsilon=eps, name="post_layernorm")(x[:, 0])


class _VisionEmbeddings(nn.Module):
    config: ClipConfig

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        c, width = self.config, self.config.vision.hidden_size
        size = (c.patch_size, c.patch_size)
        patches = nn.Conv(
            width, size, size, padding="VALID", use_bias=False, name="patch_embedding"
        )(images)
        first = self.param("class_embedding", nn.initializers.normal(), (width,))
        first = jnp.broadcast_to(first, (len(images), 1, width))
        x = jnp.concatenate([first, patches.reshape(len(images), -1, width)], axis=1)
        places = nn.Embed(1 + (c.image_size // c.patch_size) ** 2, width, name="position_embedding")
        return x + places(jnp.arange(x.shape[1]))


class _Encoder(nn.Module):
    config: TowerConfig

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None) -> jax.Array:
        for index in range(self.config.num_hidden_layers):
            x = _Layer(self.config, name=f"layers_{index}")(x, mask)
        return x


class _Layer(nn.Module):
    config: TowerConfig

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None) -> jax.Array:
        norms = (
            nn.LayerNorm(epsilon=self.config.layer_norm_eps, name=f"layer_norm{i}") for i in (1, 2)
        )
        x = x + _Attention(self.config, name="self_attn")(next(norms)(x), mask)
        return x + _FeedForward(self.config, name="mlp")(next(norms)(x))


class _Attention(nn.Module):
    config: TowerConfig

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None) -> jax.Array:
        N, L, D = x.shape
        heads = self.config.num_attention_heads
        q, k, v = (
            nn.Dense(D, name=f"{name}_proj")(x).reshape(N, L, heads, D // heads) for name in "qkv"
        )
        attended = jax.nn.dot_product_attention(q, k, v, mask=mask)
        return nn.Dense(D, name="out_proj")(attended.reshape(N, L, D))


class _FeedForward(nn.Module):
    config: TowerConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = nn.Dense(self.config.intermediate_size, name="fc1")(x)
        return nn.Dense(x.shape[-1], name="fc2")(_ACTIVATIONS[self.config.hidden_act](hidden))
