"""Small networks with every feature of the DeepFloyd IF and T5 configs, weights and inputs.

Configs have the format of their publishers. Weights and inputs are reproducible on any machine. The
outputs of PyTorch for them are stored in `golden/`, written by `make_golden.py`.
"""

import dataclasses
import zlib
from pathlib import Path
from typing import Any

import numpy as np

GOLDEN = Path(__file__).parent / "golden"


def blocks(attention):
    """Returns diffusers' block types for levels with and without attention."""
    kinds = {True: "SimpleCrossAttn{}Block2D", False: "Resnet{}sampleBlock2D"}
    down = [kinds[on].format("Down") for on in attention]
    up = [kinds[on].format("Up") for on in reversed(attention)]
    return {"down_block_types": down, "up_block_types": up}


STAGE_ONE = {
    "_class_name": "UNet2DConditionModel",
    "act_fn": "gelu",
    "addition_embed_type": "text",
    "addition_embed_type_num_heads": 4,
    "attention_head_dim": 16,
    "block_out_channels": [32, 64, 96],
    **blocks((False, True, True)),
    "cross_attention_dim": 64,
    "cross_attention_norm": "group_norm",
    "encoder_hid_dim": 48,
    "in_channels": 3,
    "layers_per_block": 2,
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "out_channels": 6,
    "resnet_time_scale_shift": "scale_shift",
    "sample_size": 8,
}
STAGE_TWO = STAGE_ONE | {
    **blocks((False, False, False, True, True)),
    "block_out_channels": [32, 32, 64, 96, 64],
    "class_embed_type": "timestep",
    "in_channels": 6,
    "layers_per_block": [1, 1, 2, 2, 1],
    "mid_block_only_cross_attention": True,
    "mid_block_scale_factor": 1.4142,
    "only_cross_attention": True,
    "resnet_out_scale_factor": 1.4142,
    "resnet_skip_time_act": True,
    "sample_size": 16,
    "time_embedding_act_fn": "gelu",
    "time_embedding_dim": 80,
}
# Compiles quickly.
SMALL = STAGE_ONE | {
    **blocks((False, True)),
    "block_out_channels": [32, 64],
    "layers_per_block": 1,
}
SMALL_STAGE_TWO = STAGE_TWO | {
    **blocks((False, True)),
    "block_out_channels": [32, 64],
    "layers_per_block": 1,
    "sample_size": 32,
}
UNETS = {"stage_one": STAGE_ONE, "stage_two": STAGE_TWO}
SIZES = {"stage_one": (8, 12), "stage_two": (16, 32)}  # not square


def full_size(config, channels, **fields):
    """Returns a config with DeepFloyd's heads and text dimensions, and the given widths."""
    sizes = {
        "addition_embed_type_num_heads": 64,
        "attention_head_dim": 64,
        "block_out_channels": channels,
        "cross_attention_dim": channels[-1],
        "encoder_hid_dim": 4096,
    }
    return config | sizes | fields


SCHEDULER = {
    "_class_name": "DDPMScheduler",
    "beta_end": 0.02,
    "beta_schedule": "squaredcos_cap_v2",
    "beta_start": 0.0001,
    "clip_sample": True,
    "clip_sample_range": 1.0,
    "dynamic_thresholding_ratio": 0.95,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "sample_max_value": 1.5,
    "thresholding": True,
    "trained_betas": None,
    "variance_type": "learned_range",
}

T5 = {
    "architectures": ["T5EncoderModel"],
    "d_ff": 40,
    "d_kv": 8,
    "d_model": 48,
    "dense_act_fn": "gelu_new",
    "feed_forward_proj": "gated-gelu",
    "is_gated_act": True,
    "layer_norm_epsilon": 1e-06,
    "model_type": "t5",
    "num_heads": 4,
    "num_layers": 3,
    "relative_attention_max_distance": 128,
    "relative_attention_num_buckets": 32,
    "vocab_size": 500,
}
LENGTHS = (77, 9, 1)  # valid tokens of three captions of 77 tokens

SENTENCES = (
    "a red circle moving left",
    "A Café, 12½ kilometres away — naïve?",
    "  spaces   between\twords and\nlines ",
    "ﬁne ligatures, ＦＵＬＬ width, e\u0301",  # noqa: RUF001
    "unknown: 語 🙂",
    "",
)


@dataclasses.dataclass(frozen=True)
class Stage:
    """A pipeline of one stage.

    Attributes:
      unet: `config.json` of the U-Net.
      scheduler: `scheduler_config.json`.
      steps: Sampling steps of the stored trajectory, which starts at a timestep of about 900.
    """

    unet: dict[str, Any]
    scheduler: dict[str, Any]
    steps: int


STAGES = {
    "stage_one": Stage(SMALL, SCHEDULER, 10),
    "stage_two": Stage(SMALL_STAGE_TWO, SCHEDULER | {"sample_max_value": 1.0}, 8),
}
SEED = 3
# Largest difference of trajectories in [-1, 1].
TOLERANCE = 2e-3
# Captions as users write them. The second one is truncated.
PROMPTS = ("  A RED Circle   moving LEFT ", "a green square and " * 40)
NEGATIVE_PROMPT = " Blurry, GREY "
# Texts for the rules of IF's pipeline before the vocabulary.
TEXTS = (
    *SENTENCES,
    *PROMPTS,
    NEGATIVE_PROMPT,
    " \t\n ",
    "LINES\n\nand\tTABS\u00a0\u3000",
    "İstanbul ẞ ΣΑΣ",
    "WORD" * 100,
    "A</s>b <pad> <extra_id_3> <unk>",
)


def noise(name, *shape):
    """Returns standard normal numbers, seeded by the name."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    return rng.standard_normal(shape, np.float32)


def weight(name, shape):
    """Returns a tensor of a state dict, scaled for activations near 1. Norms are near identity.

    The predicted noise is scaled to 0.25. Otherwise a random network, unlike a trained one,
    amplifies rounding from step to step: to 0.15 in an image of the second stage.
    """
    drawn = noise(name, *shape)
    if name == "conv_out.weight":
        drawn[:3] *= 0.25
    if "norm" in name and name.endswith("weight"):
        return 1 + 0.1 * drawn
    if len(shape) == 1:
        return 0.1 * drawn
    if name == "shared.weight":
        return drawn
    return drawn / np.sqrt(np.prod(shape[1:], dtype=np.float32))


def unet_inputs(name):
    """Returns x [2, C, H, W], timesteps, text states and noise levels (used by stage II)."""
    config = UNETS[name]
    x = noise(f"{name} x", 2, config["in_channels"], *SIZES[name])
    text = noise(f"{name} text", 2, 77, config["encoder_hid_dim"])
    return x, np.array([900.0, 37.0], np.float32), text, np.array([250.0, 0.0], np.float32)


def t5_inputs():
    """Returns token ids [3, 77] and their mask."""
    rng = np.random.default_rng(5)
    mask = np.arange(77) < np.array(LENGTHS)[:, None]
    ids = rng.integers(3, T5["vocab_size"], mask.shape)
    return np.where(mask, ids, 0).astype(np.int64), mask
