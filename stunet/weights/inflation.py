"""Inflation of a text-to-image model to a text-to-video model, conditioning, and the inverse.

Inflation and conditioning merge new parameters into the tree; existing ones are unchanged.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp

from stunet.models.unet import init_unet
from stunet.models.unet_config import TemporalConfig, UNetConfig
from stunet.schema import from_dict, to_dict
from stunet.weights.model_folder import ModelFolder
from stunet.weights.trees import (
    Tree,
    compare_shapes,
    flatten,
    is_added,
    is_temporal,
    merge,
    partition,
)


def inflate(
    t2i_params: Tree, config: UNetConfig, temporal: TemporalConfig, key: jax.Array
) -> tuple[UNetConfig, Tree]:
    """Adds newly initialised temporal parameters to a text-to-image U-Net.

    With `resampler_init="identity"` and temporal stride N, every N-th frame of the output equals
    the output of the text-to-image network for that frame (2401.12945 section 3.1).

    Args:
      t2i_params: Parameters of the text-to-image U-Net. Not copied.
      config: Architecture of the text-to-image U-Net.
      temporal: Config of the temporal modules to add.
      key: Random key of the new parameters.

    Returns:
      Config and parameters of the space-time U-Net; `t2i_params` is a strict subtree of them.

    Raises:
      UserError: The shapes of `t2i_params` do not match `config`.
    """
    inflated = replace(config, temporal=temporal)
    spatial = jax.eval_shape(lambda: init_unet(config, key))
    compare_shapes(spatial, t2i_params, "the text-to-image parameters")
    # Partition inside jit, so that XLA eliminates the computation of the unused spatial parameters.
    new = jax.jit(lambda key: partition(init_unet(inflated, key), is_temporal)[0])(key)
    return inflated, merge(t2i_params, new)


def add_conditioning(
    params: Tree, config: UNetConfig, cond_channels: int, cond_in_blocks: bool = False
) -> tuple[UNetConfig, Tree]:
    """Adds zero-initialised inputs for conditioning (known pixels and mask) to a U-Net.

    The new parameters are zero, so that the initial output equals that of the original network for
    any conditioning (2401.12945 section 4.2).

    Args:
      params: Parameters of the text-to-video U-Net. Not copied.
      config: Its architecture.
      cond_channels: Number of conditioning channels.
      cond_in_blocks: Also adds the conditioning to every temporal block; False adds it to the
        first convolution only.

    Returns:
      Config and parameters of the conditional U-Net.
    """
    conditional = replace(config, cond_channels=cond_channels, cond_in_blocks=cond_in_blocks)
    shapes = jax.eval_shape(lambda: init_unet(conditional, jax.random.key(0)))
    existing = flatten(params)
    added, _ = partition(shapes, lambda path: path not in existing)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), added)
    return conditional, merge(params, zeros)


def extract_text_to_image(model: ModelFolder) -> ModelFolder:
    """Returns the text-to-image model that a video model was inflated from."""
    architecture = from_dict(UNetConfig, model.config["architecture"], "architecture")
    image = {"architecture": to_dict(architecture.text_to_image()), "num_frames": 1, "fps": None}
    unet = partition(model.params["unet"], is_added)[1]
    return ModelFolder(
        {**model.config, **image, "stage": "t2i"}, {**model.params, "unet": unet}, model.tokenizer
    )
