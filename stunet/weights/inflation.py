"""Inflation of a text-to-image model to a text-to-video model, conditioning, and the inverse.

Inflation and conditioning add new parameters to the tree; existing ones are unchanged.
"""

from dataclasses import replace

import jax

from stunet.models.unet import init_unet
from stunet.models.unet_config import TemporalConfig, UNetConfig
from stunet.schema import from_dict, to_dict
from stunet.weights.model_folder import ModelFolder, unet_shapes
from stunet.weights.trees import Tree, compare_shapes, flatten, is_added, partition, unflatten


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
    compare_shapes(unet_shapes(config), t2i_params, "the text-to-image parameters")
    return inflated, _with_initial_values(t2i_params, inflated, key)


def add_conditioning(
    params: Tree, config: UNetConfig, cond_channels: int, cond_in_blocks: bool = False
) -> tuple[UNetConfig, Tree]:
    """Adds inputs for conditioning (known pixels and mask) to a U-Net.

    The new parameters are initialised to zero, so that the initial output equals that of the
    original network for any conditioning (2401.12945 section 4.2).

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
    return conditional, _with_initial_values(params, conditional, jax.random.key(0))


def with_new_parameters(existing: Tree, unet: UNetConfig) -> Tree:
    """Adds the shapes of the parameters that a U-Net has in addition to existing ones."""
    existing, shapes = flatten(existing), flatten(unet_shapes(unet))
    new = {path: shape for path, shape in shapes.items() if path not in existing}
    return unflatten(existing | new)


def _with_initial_values(existing: Tree, unet: UNetConfig, key: jax.Array) -> Tree:
    """Adds the parameters that a U-Net has in addition to existing ones, as `init_unet` does."""
    params = flatten(with_new_parameters(existing, unet))
    new = [path for path, leaf in params.items() if isinstance(leaf, jax.ShapeDtypeStruct)]

    def init(key: jax.Array) -> dict[str, jax.Array]:
        # Selected inside jit, so that XLA eliminates the computation of the others.
        values = flatten(init_unet(unet, key))
        return {path: values[path] for path in new}

    return unflatten(params | jax.jit(init)(key))


def extract_text_to_image(model: ModelFolder) -> ModelFolder:
    """Returns the text-to-image model that a video model was inflated from."""
    architecture = from_dict(UNetConfig, model.config["architecture"], "architecture")
    image = {"architecture": to_dict(architecture.text_to_image()), "num_frames": 1, "fps": None}
    unet = partition(model.params["unet"], is_added)[1]
    return ModelFolder(
        {**model.config, **image, "stage": "t2i"}, {**model.params, "unet": unet}, model.tokenizer
    )
