"""Super-resolution at the paper's size: 128 to 1024 pixels (2401.12945 section 5).

    python -m experiments.train --config=experiments/configs/ssr_1024.py \\
        --config.data.source=FOLDER --workdir=runs/ssr_1024

One model enlarges by the whole factor. For a cascade of two models, change their factors:

    ... --config.data.resolution=512 --config.super_resolution.factor=4 --workdir=runs/ssr_512
    ... --config.super_resolution.factor=2 --workdir=runs/ssr_1024
    stunet generate "PROMPT" --model BASE --upscale runs/ssr_512 --upscale runs/ssr_1024 --out a.mp4
"""

from ml_collections import ConfigDict

from experiments.common.clip_data import clip_data


def get_config() -> ConfigDict:
    """Returns an efficient U-Net with most parameters at its coarse levels, as Imagen's."""
    return ConfigDict(
        {
            "stage": "ssr",
            "super_resolution": {"factor": 8, "noise_level": 250.0},
            "unet": {
                "channels": (128, 256, 512, 1024, 1024),
                "layers_per_block": (2, 4, 8, 8, 8),
                "attention_levels": (False, False, False, False, True),
                "text_dim": 1024,
                "cross_attention_dim": 1024,
                "pooling_heads": 16,
                "in_channels": 6,
                "out_channels": 3,
                "time_embedding_dim": 512,
                "self_attention": False,
                "noise_level_embedding": True,
                "activate_embedding_once": True,
                "output_scale_factor": 1.41,
                "mid_output_scale_factor": 1.41,
            },
            "temporal": {
                "resample": (True, True, False, False),  # 8, 4, 2, 2, 2 frames
                "attention_layers": 1,
                "head_dim": 64,
            },
            "text_encoder": {
                "t5": {
                    "vocab_size": 32128,
                    "d_model": 1024,
                    "d_kv": 64,
                    "d_ff": 2816,
                    "num_layers": 6,
                    "num_heads": 16,
                },
                "max_tokens": 77,
            },
            "data": clip_data(num_frames=8, resolution=1024, crop=256, fps=16.0),
            "diffusion": {
                "prediction": "v",
                "schedule": {"kind": "continuous_cosine", "log_snr_shift": -2.0},
            },
            "optimizer": {
                "name": "adafactor",
                "learning_rate": 1e-4,
                "warmup_steps": 1000,
                "ema_decay": 0.9999,
            },
            "dtype": "bfloat16",
            "remat": "blocks",
            "batch_size": 64,
            "total_steps": 100000,
            "checkpoint_every": 1000,
        }
    )
