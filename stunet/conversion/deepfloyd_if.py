"""DeepFloyd IF in diffusers' layout: conversion of configs, schedulers and parameter names.

Every name is in one table, which is used in both directions. Source: the public code of diffusers
(`UNet2DConditionModel`, `DDPMScheduler`) and of deep-floyd/IF.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax

from stunet.conversion.hub_layout import HubParameter
from stunet.diffusion import SamplingDefaults, Schedule, Threshold
from stunet.diffusion.samplers import VARIANCES
from stunet.errors import UserError
from stunet.models.unet import init_unet
from stunet.models.unet_config import UNetConfig
from stunet.schema import from_dict
from stunet.weights.trees import flatten

# diffusers block type -> whether its level has attention. All resize by a residual block.
_DOWN_BLOCKS = {"ResnetDownsampleBlock2D": False, "SimpleCrossAttnDownBlock2D": True}
_UP_BLOCKS = {"ResnetUpsampleBlock2D": False, "SimpleCrossAttnUpBlock2D": True}

# Fields with one supported value, which a config must have or leave at diffusers' default.
_FIXED = {
    "act_fn": ("gelu", "silu"),  # (supported value, default of diffusers)
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


def unet_config_from_diffusers(config: Mapping[str, Any], where: str) -> UNetConfig:
    """Converts the `config.json` of a diffusers U-Net.

    Args:
      config: Contents of the file.
      where: Path of the file, for error messages.

    Raises:
      UserError: A field has a value that DeepFloyd IF does not have.
    """
    if config.get("_class_name", "UNet2DConditionModel") != "UNet2DConditionModel":
        raise UserError(
            f"{where}: _class_name is {config['_class_name']!r}, expected 'UNet2DConditionModel'"
        )
    for name in ("block_out_channels", "down_block_types", "up_block_types", "encoder_hid_dim"):
        if config.get(name) is None:
            raise UserError(f"{where}: missing field '{name}', expected a DeepFloyd IF U-Net")
    for name in ("block_out_channels", "down_block_types", "up_block_types"):
        if not isinstance(config[name], list) or not config[name]:
            raise UserError(f"{where}: {name} is {config[name]!r}, expected a list")
    for name, (supported, default) in _FIXED.items():
        value = default if config.get(name) is None else config[name]
        if value != supported:
            raise UserError(f"{where}: {name} is {value!r}, expected {supported!r} (DeepFloyd IF)")
    attention = _attention_levels(
        config["down_block_types"], _DOWN_BLOCKS, f"{where}: down_block_types"
    )
    up = _attention_levels(config["up_block_types"], _UP_BLOCKS, f"{where}: up_block_types")
    if up[::-1] != attention:
        raise UserError(
            f"{where}: up_block_types is {config['up_block_types']}, "
            "expected the levels of down_block_types in reverse"
        )
    layers = config.get("layers_per_block", 2)
    only_text = _single_value(config, "only_cross_attention", False, where)
    if (mid := config.get("mid_block_only_cross_attention")) not in (None, only_text):
        raise UserError(
            f"{where}: mid_block_only_cross_attention is {mid!r}, expected {only_text!r} as "
            "only_cross_attention"
        )
    once = config.get("resnet_skip_time_act", False)
    # The time embedding passes one activation: in the blocks, or before them.
    activation = "gelu" if once else None
    if config.get("time_embedding_act_fn") != activation:
        raise UserError(
            f"{where}: time_embedding_act_fn is {config.get('time_embedding_act_fn')!r}, "
            f"expected {activation!r} with resnet_skip_time_act {once!r}"
        )
    class_embedding = config.get("class_embed_type")
    if class_embedding not in (None, "timestep"):
        raise UserError(
            f"{where}: class_embed_type is {class_embedding!r}, expected null or 'timestep'"
        )
    fields = {
        "channels": config["block_out_channels"],
        "layers_per_block": layers if isinstance(layers, list) else [layers] * len(attention),
        "attention_levels": attention,
        "head_dim": _single_value(config, "attention_head_dim", 8, where),
        "text_dim": config["encoder_hid_dim"],
        "cross_attention_dim": _single_value(config, "cross_attention_dim", 1280, where),
        "pooling_heads": config.get("addition_embed_type_num_heads", 64),
        "in_channels": config.get("in_channels", 4),
        "out_channels": config.get("out_channels", 4),
        "time_embedding_dim": config.get("time_embedding_dim"),
        "self_attention": not only_text,
        "noise_level_embedding": class_embedding == "timestep",
        "activate_embedding_once": once,
        "output_scale_factor": config.get("resnet_out_scale_factor", 1.0),
        "mid_output_scale_factor": config.get("mid_block_scale_factor", 1.0),
    }
    return from_dict(UNetConfig, fields, where)


def resolution_from_diffusers(config: Mapping[str, Any], where: str) -> int:
    """Returns the height and width in pixels in a diffusers `config.json`.

    A config without `sample_size` gets DeepFloyd IF's: 64, or 256 for the second stage.

    Raises:
      UserError: `sample_size` is not one positive integer.
    """
    size = config.get("sample_size")
    if size is None:
        return 64 if config.get("class_embed_type") is None else 256
    if isinstance(size, list) and len(set(map(str, size))) == 1:
        size = size[0]
    if type(size) is not int or size < 1:
        raise UserError(f"{where}: sample_size is {size!r}, expected one number of pixels")
    return size


def unet_config_to_diffusers(config: UNetConfig, resolution: int) -> dict[str, Any]:
    """Returns the diffusers `config.json` of the text-to-image part of a U-Net.

    The inverse of `unet_config_from_diffusers`.

    Raises:
      UserError: diffusers does not support the architecture.
    """
    groups, supported = config.norm_groups, _FIXED["norm_num_groups"][0]
    if groups != supported:
        raise UserError(
            f"norm_groups: the U-Net has {groups}, expected {supported} as in diffusers' attention"
        )
    down, up = ({on: name for name, on in blocks.items()} for blocks in (_DOWN_BLOCKS, _UP_BLOCKS))
    only_text = not config.self_attention
    return {
        "_class_name": "UNet2DConditionModel",
        **{name: supported for name, (supported, _) in _FIXED.items()},
        "addition_embed_type_num_heads": config.pooling_heads,
        "attention_head_dim": config.head_dim,
        "block_out_channels": list(config.channels),
        "class_embed_type": "timestep" if config.noise_level_embedding else None,
        "cross_attention_dim": config.cross_attention_dim,
        "down_block_types": [down[on] for on in config.attention_levels],
        "encoder_hid_dim": config.text_dim,
        "in_channels": config.in_channels,
        "layers_per_block": list(config.layers_per_block),
        "mid_block_only_cross_attention": only_text,
        "mid_block_scale_factor": config.mid_output_scale_factor,
        "only_cross_attention": only_text,
        "out_channels": config.out_channels,
        "resnet_out_scale_factor": config.output_scale_factor,
        "resnet_skip_time_act": config.activate_embedding_once,
        "sample_size": resolution,
        "time_embedding_act_fn": "gelu" if config.activate_embedding_once else None,
        "time_embedding_dim": config.time_embedding_dim,
        "up_block_types": [up[on] for on in reversed(config.attention_levels)],
    }


@dataclass(frozen=True)
class DiffusionSettings:
    """Settings of a scheduler's config; `stunet.model.Model` describes the fields."""

    schedule: Schedule
    prediction: str
    variance: str
    threshold: Threshold | None


_PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
_BETAS = "squaredcos_cap_v2"
_SCHEDULER = "DDPMScheduler"


def scheduler_from_diffusers(config: Mapping[str, Any], where: str) -> DiffusionSettings:
    """Converts the `scheduler_config.json` of diffusers.

    Args:
      config: Contents of the file.
      where: Path of the file, for error messages.

    Raises:
      UserError: The samplers of this package do not support a field's value.
    """
    if (kind := config.get("_class_name", _SCHEDULER)) != _SCHEDULER:
        raise UserError(f"{where}: _class_name is {kind!r}, expected {_SCHEDULER!r}")
    if config.get("trained_betas") is not None:
        raise UserError(f"{where}: trained_betas is {config['trained_betas']}, expected null")

    def field(name: str, default: Any) -> Any:
        value = config.get(name, default)
        if type(value) is not type(default) and not (type(value) is int and type(default) is float):
            raise UserError(f"{where}: {name} is {value!r}, expected {type(default).__name__}")
        return value

    if field("rescale_betas_zero_snr", False):
        raise UserError(f"{where}: rescale_betas_zero_snr is True, expected False")
    threshold = None
    if field("thresholding", False):
        limits = {
            "quantile": field("dynamic_thresholding_ratio", 0.995),
            "max_value": field("sample_max_value", 1.0),
        }
        threshold = from_dict(Threshold, limits, where)
    elif field("clip_sample", True):
        if (span := field("clip_sample_range", 1.0)) != 1:
            raise UserError(f"{where}: clip_sample_range is {span}, expected 1.0")
        threshold = Threshold(max_value=1.0)
    prediction = field("prediction_type", "epsilon")
    variance = field("variance_type", "fixed_small")
    for name, value, choices in (
        ("beta_schedule", field("beta_schedule", "linear"), (_BETAS,)),
        ("prediction_type", prediction, _PREDICTIONS),
        ("variance_type", variance, VARIANCES),
    ):
        if value not in choices:
            raise UserError(f"{where}: {name} is {value!r}, expected one of {', '.join(choices)}")
    steps = {"num_timesteps": field("num_train_timesteps", 1000)}
    schedule = from_dict(Schedule, steps, where)
    return DiffusionSettings(schedule, _PREDICTIONS[prediction], variance, threshold)


def default_diffusion_settings(config: UNetConfig) -> DiffusionSettings:
    """Returns DeepFloyd IF's settings, for a U-Net without a scheduler's config."""
    variance = "learned_range" if config.out_channels == 6 else "fixed_small"
    threshold = Threshold(max_value=1.0 if config.noise_level_embedding else 1.5)
    return DiffusionSettings(Schedule(), "eps", variance, threshold)


def sampling_defaults(config: UNetConfig) -> SamplingDefaults:
    """Returns the steps and the guidance scale of DeepFloyd IF's pipelines for a U-Net's stage."""
    if config.noise_level_embedding:
        return SamplingDefaults("ancestral", steps=50, guidance_scale=4.0)
    return SamplingDefaults("ancestral", steps=100, guidance_scale=7.0)


def scheduler_to_diffusers(diffusion: DiffusionSettings) -> dict[str, Any]:
    """Returns the `scheduler_config.json` of diffusers' `DDPMScheduler`.

    The inverse of `scheduler_from_diffusers`, except for `threshold.over`, because diffusers'
    scheduler samples images.

    Raises:
      UserError: diffusers does not support the noise schedule.
    """
    if diffusion.schedule.kind != "cosine":
        raise UserError(
            f"schedule: kind is {diffusion.schedule.kind!r}, expected 'cosine' as in diffusers"
        )
    threshold = diffusion.threshold
    predictions = {prediction: name for name, prediction in _PREDICTIONS.items()}
    return {
        "_class_name": _SCHEDULER,
        "beta_schedule": _BETAS,
        "clip_sample": threshold is not None,
        "clip_sample_range": 1.0,
        "num_train_timesteps": diffusion.schedule.num_timesteps,
        "prediction_type": predictions[diffusion.prediction],
        "thresholding": threshold is not None,
        "dynamic_thresholding_ratio": 0.95 if threshold is None else threshold.quantile,
        "sample_max_value": 1.0 if threshold is None else threshold.max_value,
        "timestep_spacing": "leading",
        "variance_type": diffusion.variance,
    }


def _attention_levels(types: list[Any], known: Mapping[str, bool], where: str) -> tuple[bool, ...]:
    for name in types:
        if not isinstance(name, str) or name not in known:
            raise UserError(f"{where}: unknown block {name!r}, expected one of {', '.join(known)}")
    return tuple(known[name] for name in types)


def _single_value(config: Mapping[str, Any], name: str, default: Any, where: str) -> Any:
    """Returns the value of a field that may be a list of equal values for the levels."""
    value = config.get(name, default)
    values = value if isinstance(value, list) else [value]
    if not values or any(other != values[0] for other in values):
        raise UserError(f"{where}: {name} is {value}, expected one value for all levels")
    return values[0]


# Substring of an unexpected tensor name -> likely origin, for error messages.
ORIGIN_HINTS = {
    "temporal_": "these are weights of an inflated model, not of diffusers",
    "motion_modules": "these are AnimateDiff weights",
    "temp_": "these are weights of another family of video models",
    "transformer_blocks": "these are weights of the Stable Diffusion family",
    "encoder.block": "these are weights of a text encoder",
    "input_blocks": "these weights have the layout of the original repository, not of diffusers",
    "lora": "these are low-rank adapters, not a complete network",
    "class_embedding": "these are stage II weights, but config.json is of stage I",
}


# Modules of a block: name in this package -> name in diffusers.
_RESIDUAL = {
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
# Modules outside of blocks.
_TOP_LEVEL = {
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


def hub_parameters(config: UNetConfig) -> dict[str, HubParameter]:
    """Returns a table of path -> parameter in diffusers' layout, for the text-to-image network."""
    config = config.text_to_image()
    shapes = flatten(jax.eval_shape(lambda: init_unet(config, jax.random.key(0))))
    levels = len(config.channels)
    return {path: _hub_parameter(path, leaf.shape, levels) for path, leaf in shapes.items()}


def _hub_parameter(path: str, shape: tuple[int, ...], levels: int) -> HubParameter:
    module, leaf = path.rsplit("/", 1)
    hub_module = _hub_module(module, levels)
    if leaf == "kernel" and len(shape) == 4:
        return HubParameter(f"{hub_module}.weight", (shape[3], shape[2], *shape[:2]), (2, 3, 1, 0))
    if leaf == "kernel" and module.endswith("/skip"):
        return HubParameter(f"{hub_module}.weight", (shape[1], shape[0], 1, 1), None)
    if leaf == "kernel":
        return HubParameter(f"{hub_module}.weight", shape[::-1], (1, 0))
    name = {"scale": "weight", "bias": "bias"}.get(leaf, leaf)
    return HubParameter(f"{hub_module}.{name}", shape, tuple(range(len(shape))))


def _hub_module(module: str, levels: int) -> str:
    """Converts a module's path: "up_0_res_1/conv_1" -> "up_blocks.3.resnets.1.conv1"."""
    if module in _TOP_LEVEL:
        return _TOP_LEVEL[module]
    block, inner = module.split("/")
    part, *rest = block.split("_")
    if part == "mid":
        kind, index = rest
        level_name = "mid_block"
    else:
        level, kind, *index = rest
        index = index[0] if index else "0"
        level_name = f"{part}_blocks.{level if part == 'down' else levels - 1 - int(level)}"
    group = {"res": "resnets", "attn": "attentions", "resample": f"{part}samplers"}[kind]
    return f"{level_name}.{group}.{index}.{(_ATTENTION if kind == 'attn' else _RESIDUAL)[inner]}"
