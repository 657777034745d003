"""T5 v1.1 encoders in transformers' layout: their config and parameter names, as ours."""

from collections.abc import Mapping
from typing import Any

import jax

from stunet.conversion.hub_layout import HubParameter
from stunet.errors import UserError
from stunet.models.t5 import T5Config, init_text_encoder
from stunet.schema import from_dict
from stunet.weights.trees import flatten

# Fields of the same name there, and the defaults that transformers leaves out of a config.json.
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

# A part of a tensor's name that T5 v1.1 does not have -> where such tensors are from.
ORIGIN_HINTS = {
    "DenseReluDense.wi.": "these weights are the first T5's, not v1.1's",
    "text_model.": "these weights are CLIP's",
    "down_blocks.": "these weights are a U-Net's",
}

_EMBEDDING, _ITS_OTHER_NAME = "shared.weight", "encoder.embed_tokens.weight"


def encoder_tensors(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """A T5's tensors without its decoder's, and its embedding under one name."""
    kept = {name: t for name, t in tensors.items() if not name.startswith(("decoder.", "lm_head."))}
    other = kept.pop(_ITS_OTHER_NAME, None)
    return kept if other is None else {_EMBEDDING: other, **kept}


def t5_config_from_transformers(config: Mapping[str, Any], where: str) -> T5Config:
    """Our config of the encoder that a transformers `config.json` describes.

    Raises:
      UserError: it describes another network than a T5 v1.1.
    """
    if (kind := config.get("model_type", "t5")) != "t5":
        raise UserError(f"{where}: model_type is {kind!r}, not 't5'")
    if (kind := config.get("feed_forward_proj", "relu")) != "gated-gelu":
        raise UserError(
            f"{where}: feed_forward_proj is {kind!r}; T5 v1.1's is 'gated-gelu' (the first T5 "
            "is another network)"
        )
    sizes = {name: config.get(name, default) for name, default in _SIZES.items()}
    return from_dict(T5Config, sizes, where)


def hub_parameters(config: T5Config) -> dict[str, HubParameter]:
    """Our path -> its place in transformers' layout, for every parameter of the encoder."""
    shapes = flatten(jax.eval_shape(lambda: init_text_encoder(config, jax.random.key(0))))
    return {path: _renamed(path, leaf.shape) for path, leaf in shapes.items()}


def _renamed(path: str, shape: tuple[int, ...]) -> HubParameter:
    module, leaf = path.rsplit("/", 1)
    name = module.replace("block_", "block.").replace("layer_0", "layer.0")
    name = name.replace("layer_1", "layer.1").replace("/", ".")
    name = name if module == "shared" else f"encoder.{name}"
    if leaf == "kernel":
        return HubParameter(f"{name}.weight", shape[::-1], (1, 0))
    return HubParameter(f"{name}.weight", shape, tuple(range(len(shape))))
