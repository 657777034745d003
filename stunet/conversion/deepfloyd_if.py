"""DeepFloyd IF in diffusers' layout: config, scheduler and parameter names, as ours, and back.

Everything here is said once, as a table of names, and read in both directions. Facts are from the
public sources of diffusers (`UNet2DConditionModel`) and deep-floyd/IF; see lumiere.md section 5.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax

from stunet.conversion.hub_layout import HubParameter
from stunet.diffusion import Schedule, Threshold
from stunet.diffusion.samplers import VARIANCES
from stunet.errors import UserError
from stunet.models.unet import UNetConfig, init_unet
from stunet.schema import from_dict
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


def unet_config_from_diffusers(config: Mapping[str, Any], where: str) -> UNetConfig:
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
    for name in ("block_out_channels", "down_block_types", "up_block_types"):
        if not isinstance(config[name], list) or not config[name]:
            raise UserError(f"{where}: {name} is {config[name]!r}; expected a list")
    for name, (needed, default) in _FIXED.items():
        value = default if config.get(name) is None else config[name]
        if value != needed:
            raise UserError(f"{where}: {name} is {value!r}; DeepFloyd IF's is {needed!r}")
    attention = _attention_levels(
        config["down_block_types"], _DOWN_BLOCKS, f"{where}: down_block_types"
    )
    up = _attention_levels(config["up_block_types"], _UP_BLOCKS, f"{where}: up_block_types")
    if up[::-1] != attention:
        raise UserError(f"{where}: up_block_types do not mirror down_block_types")
    layers = config.get("layers_per_block", 2)
    only_text = _one(config, "only_cross_attention", False, where)
    if (mid := config.get("mid_block_only_cross_attention")) not in (None, only_text):
        raise UserError(
            f"{where}: mid_block_only_cross_attention is {mid!r}, only_cross_attention is "
            f"{only_text!r}; one value is supported"
        )
    once = config.get("resnet_skip_time_act", False)
    if config.get("time_embedding_act_fn") != ("gelu" if once else None):
        raise UserError(
            f"{where}: time_embedding_act_fn is {config.get('time_embedding_act_fn')!r} and "
            f"resnet_skip_time_act is {once!r}; the embedding must be activated once, by 'gelu'"
        )
    class_embedding = config.get("class_embed_type")
    if class_embedding not in (None, "timestep"):
        raise UserError(f"{where}: class_embed_type is {class_embedding!r}; use null or 'timestep'")
    fields = {
        "channels": config["block_out_channels"],
        "layers_per_block": layers if isinstance(layers, list) else [layers] * len(attention),
        "attention_levels": attention,
        "head_dim": _one(config, "attention_head_dim", 8, where),
        "text_dim": config["encoder_hid_dim"],
        "cross_attention_dim": _one(config, "cross_attention_dim", 1280, where),
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
    """Height and width in pixels that a diffusers `config.json` names, or IF's own.

    Raises:
      UserError: they are not one whole number.
    """
    size = config.get("sample_size")
    if size is None:
        return 64 if config.get("class_embed_type") is None else 256
    if isinstance(size, list) and len(set(map(str, size))) == 1:
        size = size[0]
    if type(size) is not int or size < 1:
        raise UserError(f"{where}: sample_size is {size!r}; expected one number of pixels")
    return size


def unet_config_to_diffusers(config: UNetConfig, resolution: int) -> dict[str, Any]:
    """The `config.json` that describes the text-to-image part of a U-Net: undoes `unet_config`.

    Raises:
      UserError: diffusers cannot describe it.
    """
    groups, needed = config.norm_groups, _FIXED["norm_num_groups"][0]
    if groups != needed:
        raise UserError(
            f"the U-Net's norm_groups is {groups}; diffusers' attention always has {needed}, so "
            "this one has no equal there"
        )
    down, up = ({on: name for name, on in blocks.items()} for blocks in (_DOWN_BLOCKS, _UP_BLOCKS))
    only_text = not config.self_attention
    return {
        "_class_name": "UNet2DConditionModel",
        **{name: value for name, (value, _) in _FIXED.items()},
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
    """What a scheduler's config says, in our words; see `stunet.model.Model`."""

    schedule: Schedule
    prediction: str
    variance: str
    threshold: Threshold | None


_PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
_BETAS = "squaredcos_cap_v2"
_SCHEDULER = "DDPMScheduler"


def scheduler_from_diffusers(config: Mapping[str, Any], where: str) -> DiffusionSettings:
    """What a diffusers `scheduler_config.json` says.

    Raises:
      UserError: it names betas, a variance or a clip that samplers here do not have.
    """
    if (kind := config.get("_class_name", _SCHEDULER)) != _SCHEDULER:
        raise UserError(f"{where}: _class_name is {kind!r}; DeepFloyd IF's is {_SCHEDULER}")
    if config.get("trained_betas") is not None:
        raise UserError(f"{where}: trained_betas are not read; DeepFloyd IF's are null")

    def field(name: str, default: Any) -> Any:
        value = config.get(name, default)
        if type(value) is not type(default) and not (type(value) is int and type(default) is float):
            kind = type(default).__name__
            raise UserError(f"{where}: {name} is {value!r}; expected a value of type {kind}")
        return value

    if field("rescale_betas_zero_snr", False):
        raise UserError(f"{where}: rescale_betas_zero_snr is true; DeepFloyd IF's is false")
    threshold = None
    if field("thresholding", False):
        limits = {
            "quantile": field("dynamic_thresholding_ratio", 0.995),
            "max_value": field("sample_max_value", 1.0),
        }
        threshold = from_dict(Threshold, limits, where)
    elif field("clip_sample", True):
        if (span := field("clip_sample_range", 1.0)) != 1:
            raise UserError(f"{where}: clip_sample_range is {span}; only 1.0 is known")
        threshold = Threshold(max_value=1.0)
    prediction = field("prediction_type", "epsilon")
    variance = field("variance_type", "fixed_small")
    for name, value, choices in (
        ("beta_schedule", field("beta_schedule", "linear"), (_BETAS,)),
        ("prediction_type", prediction, _PREDICTIONS),
        ("variance_type", variance, VARIANCES),
    ):
        if value not in choices:
            raise UserError(f"{where}: {name} is {value!r}; known are {', '.join(choices)}")
    steps = {"num_timesteps": field("num_train_timesteps", 1000)}
    schedule = from_dict(Schedule, steps, where)
    return DiffusionSettings(schedule, _PREDICTIONS[prediction], variance, threshold)


def default_diffusion_settings(config: UNetConfig) -> DiffusionSettings:
    """DeepFloyd IF's own settings, for a U-Net that comes without a scheduler."""
    variance = "learned_range" if config.out_channels == 6 else "fixed_small"
    threshold = Threshold(max_value=1.0 if config.noise_level_embedding else 1.5)
    return DiffusionSettings(Schedule(), "eps", variance, threshold)


def scheduler_to_diffusers(diffusion: DiffusionSettings) -> dict[str, Any]:
    """The `scheduler_config.json` of diffusers' `DDPMScheduler`: undoes `read_scheduler`.

    Whether the threshold is the clip's or a frame's is not said: diffusers knows images.

    Raises:
      UserError: diffusers has no such schedule.
    """
    if diffusion.schedule.kind != "cosine":
        raise UserError(
            f"the model's schedule is {diffusion.schedule.kind!r}; diffusers has 'cosine' alone"
        )
    threshold = diffusion.threshold
    theirs = {ours: name for name, ours in _PREDICTIONS.items()}
    return {
        "_class_name": _SCHEDULER,
        "beta_schedule": _BETAS,
        "clip_sample": threshold is not None,
        "clip_sample_range": 1.0,
        "num_train_timesteps": diffusion.schedule.num_timesteps,
        "prediction_type": theirs[diffusion.prediction],
        "thresholding": threshold is not None,
        "dynamic_thresholding_ratio": 0.95 if threshold is None else threshold.quantile,
        "sample_max_value": 1.0 if threshold is None else threshold.max_value,
        "timestep_spacing": "leading",
        "variance_type": diffusion.variance,
    }


def _attention_levels(types: list[Any], known: Mapping[str, bool], where: str) -> tuple[bool, ...]:
    for name in types:
        if not isinstance(name, str) or name not in known:
            raise UserError(f"{where} has {name!r}; DeepFloyd IF has {' and '.join(known)}")
    return tuple(known[name] for name in types)


def _one(config: Mapping[str, Any], name: str, default: Any, where: str) -> Any:
    """The value of a field that may be a list with a value for each level."""
    value = config.get(name, default)
    values = value if isinstance(value, list) else [value]
    if not values or any(other != values[0] for other in values):
        raise UserError(f"{where}: {name} differs between levels ({value}); one value is supported")
    return values[0]


# A part of a tensor's name that IF does not have -> where such tensors are from.
ORIGIN_HINTS = {
    "temporal_": "these are an inflated model's, not diffusers'",
    "motion_modules": "these weights are AnimateDiff's",
    "temp_": "these weights are a video model's of another family",
    "transformer_blocks": "these weights are of the Stable DiffusionSettings family",
    "encoder.block": "these weights are a text encoder's",
    "input_blocks": "these weights are in the layout of before diffusers",
    "lora": "these weights are low-rank adapters, not a whole network",
    "class_embedding": "these weights are a stage II's and config.json a stage I's",
}


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


def hub_parameters(config: UNetConfig) -> dict[str, HubParameter]:
    """Our path -> its place in diffusers' layout, for every parameter of the T2I network."""
    config = config.text_to_image()
    shapes = flatten(jax.eval_shape(lambda: init_unet(config, jax.random.key(0))))
    return {path: _renamed(path, leaf.shape, len(config.channels)) for path, leaf in shapes.items()}


def _renamed(path: str, shape: tuple[int, ...], levels: int) -> HubParameter:
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
        return HubParameter(f"{theirs}.weight", (shape[3], shape[2], *shape[:2]), (2, 3, 1, 0))
    if leaf == "kernel" and module.endswith("/skip"):
        return HubParameter(f"{theirs}.weight", (shape[1], shape[0], 1, 1), None)
    if leaf == "kernel":
        return HubParameter(f"{theirs}.weight", shape[::-1], (1, 0))
    name = {"scale": "weight", "bias": "bias"}.get(leaf, leaf)
    return HubParameter(f"{theirs}.{name}", shape, tuple(range(len(shape))))
