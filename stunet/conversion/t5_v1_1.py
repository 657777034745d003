"""T5 v1.1 encoders in transformers' layout: conversion of configs and parameter names."""

from collections.abc import Mapping
from typing import Any

import jax

from stunet.conversion.hub_layout import HubParameter
from stunet.errors import UserError
from stunet.models.t5 import T5Config, init_text_encoder
from stunet.schema import from_dict
from stunet.weights.trees import flatten

# Fields with the same name in transformers, and its defaults, which a config.json can omit.
_SIZES = {
    "vocab_size": 32128,
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 2048,
    "num_layers": 6,
    "num_heads": 8,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
}

# Substring of an unexpected tensor name -> likely origin, for error messages.
ORIGIN_HINTS = {
    "DenseReluDense.wi.": "these are weights of the original T5, not of v1.1",
    "text_model.": "these are CLIP weights",
    "down_blocks.": "these are U-Net weights",
}

_EMBEDDING, _EMBEDDING_ALIAS = "shared.weight", "encoder.embed_tokens.weight"


def encoder_tensors(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Drops the decoder of a T5 and merges the two names of its embedding."""
    decoder = ("decoder.", "lm_head.")
    encoder = {name: t for name, t in tensors.items() if not name.startswith(decoder)}
    embedding = encoder.pop(_EMBEDDING_ALIAS, None)
    return encoder if embedding is None else {_EMBEDDING: embedding, **encoder}


def t5_config_from_transformers(config: Mapping[str, Any], where: str) -> T5Config:
    """Converts the `config.json` of a transformers T5 encoder.

    Args:
      config: Contents of the file.
      where: Path of the file, for error messages.

    Raises:
      UserError: The model is not a T5 v1.1.
    """
    if (kind := config.get("model_type", "t5")) != "t5":
        raise UserError(f"{where}: model_type is {kind!r}, expected 't5'")
    if (kind := config.get("feed_forward_proj", "relu")) != "gated-gelu":
        raise UserError(
            f"{where}: feed_forward_proj is {kind!r}, expected 'gated-gelu' (the original T5 is "
            "not supported)"
        )
    sizes = {name: config.get(name, default) for name, default in _SIZES.items()}
    return from_dict(T5Config, sizes, where)


def hub_parameters(config: T5Config) -> dict[str, HubParameter]:
    """Returns a table of path -> parameter in transformers' layout, for the encoder."""
    shapes = flatten(jax.eval_shape(lambda: init_text_encoder(config, jax.random.key(0))))
    return {path: _hub_parameter(path, leaf.shape) for path, leaf in shapes.items()}


def _hub_parameter(path: str, shape: tuple[int, ...]) -> HubParameter:
    module, leaf = path.rsplit("/", 1)
    name = module.replace("block_", "block.").replace("layer_0", "layer.0")
    name = name.replace("layer_1", "layer.1").replace("/", ".")
    name = name if module == "shared" else f"encoder.{name}"
    if leaf == "kernel":
        return HubParameter(f"{name}.weight", shape[::-1], (1, 0))
    return HubParameter(f"{name}.weight", shape, tuple(range(len(shape))))
