"""From a text-to-image model to a text-to-video model, from that to a conditional one, and back.

The ways there are merges of trees: what was there stays as it is.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp

from stunet.models.temporal import TemporalConfig
from stunet.models.unet import UNetConfig, init_unet
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
    """Adds freshly initialised temporal parameters to a text-to-image network.

    With `resampler_init="identity"` every N-th frame of the result's output, N the temporal
    stride, equals the text-to-image network's on that frame (lumiere.md section 2).

    Args:
      t2i_params: the text-to-image U-Net's parameters; used as they are, not copied.
      config: the text-to-image U-Net's architecture.
      temporal: what to add.
      key: for the new parameters.

    Returns:
      The STUNet's config and its parameters, of which `t2i_params` is a strict subtree.

    Raises:
      UserError: `t2i_params` do not belong to `config`.
    """
    inflated = replace(config, temporal=temporal)
    spatial = jax.eval_shape(lambda: init_unet(config, key))
    compare_shapes(spatial, t2i_params, "the text-to-image parameters")
    # Inside the jit, so that the spatial parameters, which nobody needs, are never drawn.
    new = jax.jit(lambda key: partition(init_unet(inflated, key), is_temporal)[0])(key)
    return inflated, merge(t2i_params, new)


def add_conditioning(
    params: Tree, config: UNetConfig, cond_channels: int, cond_in_blocks: bool = False
) -> tuple[UNetConfig, Tree]:
    """Adds what shows a text-to-video network what is given.

    It is zero, so that the result computes what the network did, whatever is given.

    Args:
      params: the text-to-video U-Net's parameters; used as they are, not copied.
      config: its architecture.
      cond_channels: of what is given.
      cond_in_blocks: whether to show it to every temporal block and not to the first
        convolution alone.

    Returns:
      The conditional network's config and its parameters.
    """
    conditional = replace(config, cond_channels=cond_channels, cond_in_blocks=cond_in_blocks)
    shapes = jax.eval_shape(lambda: init_unet(conditional, jax.random.key(0)))
    had = flatten(params)
    added, _ = partition(shapes, lambda path: path not in had)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), added)
    return conditional, merge(params, zeros)


def extract_text_to_image(model: ModelFolder) -> ModelFolder:
    """The text-to-image model inside one that was inflated, or made conditional."""
    architecture = from_dict(UNetConfig, model.config["architecture"], "architecture")
    image = {"architecture": to_dict(architecture.text_to_image()), "num_frames": 1, "fps": None}
    unet = partition(model.params["unet"], is_added)[1]
    return ModelFolder(
        {**model.config, **image, "stage": "t2i"}, {**model.params, "unet": unet}, model.tokenizer
    )
