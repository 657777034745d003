"""A frozen text encoder as the source of cached text states."""

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from stunet.errors import UserError
from stunet.model import Model
from stunet.models.t5 import T5Config, T5Encoder
from stunet.sharding import put_parameters
from stunet.text import Tokenizer
from stunet.text_states import open_text_states
from stunet.training.mesh import batch_sharding, make_mesh
from stunet.weights.trees import Tree


def encoder_identity(digest: str, tokenizer: Tokenizer) -> str:
    """Returns a name that changes with the text encoder's parameters and the tokenizer's rules.

    Args:
      digest: Digest of the parameters (`text_encoder_digest`).
      tokenizer: The text encoder's tokenizer.
    """
    rules = ", lower case" if tokenizer.lower_case else ""
    return f"{digest}, {tokenizer.max_tokens} tokens{rules}"


def make_local_encoder(
    config: T5Config, tokenizer: Tokenizer, params: Tree
) -> Callable[[list[str]], np.ndarray]:
    """Copies a text encoder to every device of this process.

    Args:
      config: Architecture of the text encoder.
      tokenizer: Its tokenizer.
      params: Its parameters: arrays or lazy tensors.

    Returns:
      A function that maps N texts to their states `[N, L, D]` float32. Texts are sharded over the
      devices. It is compiled for each N.
    """
    mesh = make_mesh(devices=jax.local_devices())
    params = put_parameters(mesh, params)
    encoder, rows = T5Encoder(config), batch_sharding(mesh)
    apply = jax.jit(lambda params, *tokens: encoder.apply({"params": params}, *tokens))

    def encode(texts: list[str]) -> np.ndarray:
        padding = [""] * (-len(texts) % mesh.size)
        tokens = jax.device_put(tokenizer([*texts, *padding]), rows)
        return np.asarray(apply(params, *tokens), np.float32)[: len(texts)]

    return encode


def check_text_states(folder: Path, model: Model) -> None:
    """Checks that cached states exist and were computed by the model's text encoder.

    For a model without a text encoder, only the width of the states is checked.

    Raises:
      UserError: There are no states, they have another width than the U-Net reads, or another text
        encoder computed them.
    """
    states = open_text_states(folder)
    hint = "compute them with `python -m experiments.cache_text --config=...`"
    if (width := states.shape[-1]) != model.unet.text_dim:
        raise UserError(
            f"{folder}: text states of width {width}, expected {model.unet.text_dim}; {hint}"
        )
    if model.text_encoder is None:
        return
    expected = encoder_identity(model.text_encoder_digest, model.tokenizer)
    if states.encoder != expected:
        raise UserError(
            f"{folder}: text states of another text encoder ({states.encoder}), expected "
            f"{expected}; {hint}"
        )
