"""DeepFloyd IF's U-Nets in diffusers' layout: their config and parameter names, ours, and back.

Everything here is said once, as a table of names, and read in both directions. Facts are from the
public sources of diffusers (`UNet2DConditionModel`) and deep-floyd/IF; see lumiere.md section 5.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from stunet.errors import UserError
from stunet.models.unet import UNetConfig, init_unet
from stunet.weights.trees import flatten

# diffusers block type -> whether its level attends; all resize by a residual block
_DOWN_BLOCKS = {"ResnetDownsampleBlock2D": False, "SimpleCrossAttnDownBlock2D": True}
_UP_BLOCKS = {"ResnetUpsampleBlock2D": False, "SimpleCrossAttnUpBlock2D": True}

# What our network computes, and so what a config must say (or leave at diffusers' default).
_FIXED = {
    "act_fn": ("gelu", "silu"),  # (needed, diffusers' default)
    "addition_embed_type": ("text", None),
    "center_input_sample": (False, False),
    "class_embeddings_concat": (False, False),
    "conv_in_kernel": (3, 3),
    "conv_out_kernel": (3, 3),
    "cross_attention_norm": ("group_norm", None),
    "dropout": (0.0, 0.0),
    "encoder_hid_dim_type": ("text_proj", "text_proj"),
    "flip_sin_to_cos": (True, True),
    "freq_shift": (0, 0),
    "mid_block_type": ("UNetMidBlock2DSimpleCrossAttn", "UNetMidBlock2DCrossAttn"),
    "norm_eps": (1e-5, 1e-5),
    "norm_num_groups": (32, 32),
    "resnet_time_scale_shift": ("scale_shift", "default"),
    "time_cond_proj_dim": (None, None),
    "time_embedding_type": ("positional", "positional"),
    "timestep_post_act": (None, None),
}


def unet_config(config: Mapping[str, Any], where: str) -> UNetConfig:
    """Our config of the U-Net that a diffusers `config.json` describes.

    Raises:
      UserError: it describes another network than IF's; names the field, its value and what it
        would have to be.
    """
    if config.get("_class_name", "UNet2DConditionModel") != "UNet2DConditionModel":
        raise UserError(
            f"{where}: _class_name is {config['_class_name']!r}, not UNet2DConditionModel"
        )
    for name in ("block_out_channels", "down_block_types", "up_block_types", "encoder_hid_dim"):
        if config.get(name) is None:
            raise UserError(f"{where}: has no field '{name}', which every DeepFloyd IF U-Net has")
    for name, (needed, default) in _FIXED.items():
        if (value := config.get(name, default)) != needed:
            raise UserError(f"{where}: {name} is {value!r}; DeepFloyd IF's is {needed!r}")
    channels = tuple(config["block_out_channels"])
    levels = len(channels)
    attention = _attention_levels(
        config["down_block_types"], _DOWN_BLOCKS, f"{where}: down_block_types"
    )
    up = _attention_levels(config["up_block_types"], _UP_BLOCKS, f"{where}: up_block_types")
    if up[::-1] != attention:
        raise UserError(f"{where}: up_block_types do not mirror down_block_types")
    layers = config.get("layers_per_block", 2)
    only_cross = config.get("only_cross_attention", False)
    only_cross = {only_cross} if isinstance(only_cross, bool) else set(only_cross)
    only_cross |= {config.get("mid_block_only_cross_attention", None)} - {None}
    if len(only_cross) != 1:
        raise UserError(
            f"{where}: only_cross_attention differs between levels; one value is supported"
        )
    once = config.get("resnet_skip_time_act", False)
    if (config.get("time_embedding_act_fn") == "gelu") != once:
        raise UserError(
            f"{where}: time_embedding_act_fn is {config.get('time_embedding_act_fn')!r} and "
            f"resnet_skip_time_act is {once}; the embedding must be activated exactly once"
        )
    class_embedding = config.get("class_embed_type")
    if class_embedding not in (None, "timestep"):
        raise UserError(f"{where}: class_embed_type is {class_embedding!r}; use null or 'timestep'")
    return UNetConfig(
        channels=channels,
        layers_per_block=(layers,) * levels if isinstance(layers, int) else tuple(layers),
        attention_levels=attention,
        head_dim=_one(config.get("attention_head_dim", 8), f"{where}: attention_head_dim"),
        text_dim=config["encoder_hid_dim"],
        cross_attention_dim=_one(
            config.get("cross_attention_dim", 1280), f"{where}: cross_attention_dim"
        ),
        pooling_heads=config.get("addition_embed_type_num_heads", 64),
        in_channels=config.get("in_channels", 4),
        out_channels=config.get("out_channels", 4),
        time_embedding_dim=config.get("time_embedding_dim"),
        self_attention=not only_cross.pop(),
        noise_level_embedding=class_embedding == "timestep",
        activate_embedding_once=once,
        output_scale_factor=config.get("resnet_out_scale_factor", 1.0),
        mid_output_scale_factor=config.get("mid_block_scale_factor", 1.0),
    )


def _attention_levels(types: list[str], known: Mapping[str, bool], where: str) -> tuple[bool, ...]:
    for name in types:
        if name not in known:
            raise UserError(f"{where} has {name!r}; DeepFloyd IF has {' and '.join(known)}")
    return tuple(known[name] for name in types)


def _one(value: int | list[int], where: str) -> int:
    values = {value} if isinstance(value, int) else set(value)
    if len(values) != 1:
        raise UserError(f"{where} differs between levels ({value}); one value is supported")
    return values.pop()


# Inside a block: our name -> diffusers'.
_RES = {
    "norm_1": "norm1",
    "conv_1": "conv1",
    "embedding": "time_emb_proj",
    "norm_2": "norm2",
    "conv_2": "conv2",
    "skip": "conv_shortcut",
}
_ATTENTION = {
    "norm": "group_norm",
    "text_norm": "norm_cross",
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "text_k": "add_k_proj",
    "text_v": "add_v_proj",
    "out": "to_out.0",
}
_OUTSIDE = {
    "time_embedding/linear_1": "time_embedding.linear_1",
    "time_embedding/linear_2": "time_embedding.linear_2",
    "noise_level_embedding/linear_1": "class_embedding.linear_1",
    "noise_level_embedding/linear_2": "class_embedding.linear_2",
    "text_pooling": "add_embedding.pool",
    "text_pooling/norm_1": "add_embedding.norm1",
    "text_pooling/q": "add_embedding.pool.q_proj",
    "text_pooling/k": "add_embedding.pool.k_proj",
    "text_pooling/v": "add_embedding.pool.v_proj",
    "text_pooling/proj": "add_embedding.proj",
    "text_pooling/norm_2": "add_embedding.norm2",
    "text_proj": "encoder_hid_proj",
    "conv_in": "conv_in",
    "norm_out": "conv_norm_out",
    "conv_out": "conv_out",
}


@dataclass(frozen=True)
class Renamed:
    """A parameter's place in diffusers' layout.

    Attributes:
      name: in the state dict.
      shape: there.
      axes: the transposition that leads from there to ours; None where a 1x1 convolution there
        is a dense layer here.
    """

    name: str
    shape: tuple[int, ...]
    axes: tuple[int, ...] | None

    def to_ours(self, array: np.ndarray) -> np.ndarray:
        """The array as our network has it."""
        return array[:, :, 0, 0].T if self.axes is None else array.transpose(self.axes)

    def to_diffusers(self, array: np.ndarray) -> np.ndarray:
        """The inverse of `to_ours`."""
        if self.axes is None:
            return np.ascontiguousarray(array.T)[:, :, None, None]
        return np.ascontiguousarray(array.transpose(np.argsort(self.axes)))


def renamed(config: UNetConfig) -> dict[str, Renamed]:
    """Our path -> its place in diffusers' layout, for every parameter of the T2I network."""
    config = config.text_to_image()
    shapes = flatten(jax.eval_shape(lambda: init_unet(config, jax.random.key(0))))
    return {path: _renamed(path, leaf.shape, len(config.channels)) for path, leaf in shapes.items()}


def _renamed(path: str, shape: tuple[int, ...], levels: int) -> Renamed:
    module, leaf = path.rsplit("/", 1)
    if module in _OUTSIDE:
        theirs = _OUTSIDE[module]
    else:
        block, inner = module.split("/")
        part, *rest = block.split("_")
        if part == "mid":
            kind, index = rest
            where = "mid_block"
        else:
            level, kind, *index = rest
            index = index[0] if index else "0"
            where = f"{part}_blocks.{level if part == 'down' else levels - 1 - int(level)}"
        group = {"res": "resnets", "attn": "attentions", "resample": f"{part}samplers"}[kind]
        theirs = f"{where}.{group}.{index}.{(_ATTENTION if kind == 'attn' else _RES)[inner]}"
    if leaf == "kernel" and len(shape) == 4:
        return Renamed(f"{theirs}.weight", (shape[3], shape[2], *shape[:2]), (2, 3, 1, 0))
    if leaf == "kernel" and module.endswith("/skip"):
        return Renamed(f"{theirs}.weight", (shape[1], shape[0], 1, 1), None)
    if leaf == "kernel":
        return Renamed(f"{theirs}.weight", shape[::-1], (1, 0))
    name = {"scale": "weight", "bias": "bias"}.get(leaf, leaf)
    return Renamed(f"{theirs}.{name}", shape, tuple(range(len(shape))))
