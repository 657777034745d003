"""Super-resolution in the moving-shapes world, 32 to 128 pixels, for a laptop CPU.

    python -m experiments.train --config=experiments/configs/tiny_ssr.py --workdir=runs/tiny_ssr
    stunet upscale clip.mp4 "a red star spinning" --model runs/tiny_ssr --out large.mp4

Trains a new network and its text encoder from scratch, on crops of short windows.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the config of a new network, all of which is trained."""
    return ConfigDict(
        {
            "stage": "ssr",
            # Diffuses the difference to the enlarged clip, whose standard deviation is about 0.1:
            # with whole frames a network of this size took too long to learn colours on a laptop
            # (docs/super_resolution.md). More sampling steps than 2 add grain and increase the
            # error: few steps give results close to the mean of the possible frames.
            "super_resolution": {
                "factor": 4,
                "max_noise_level": 200.0,
                "noise_level": 20.0,
                "residual_scale": 0.2,
            },
            "sampling": {"steps": 2},
            "unet": {
                "channels": (16, 32, 64),
                "layers_per_block": (1, 1, 1),
                "attention_levels": (False, False, True),
                "head_dim": 16,
                "text_dim": 32,
                "cross_attention_dim": 32,
                "pooling_heads": 4,
                "in_channels": 6,
                "out_channels": 3,
                "time_embedding_dim": 64,
                "norm_groups": 8,
                "self_attention": False,
                "noise_level_embedding": True,
                "activate_embedding_once": True,
                "output_scale_factor": 1.41,
                "mid_output_scale_factor": 1.41,
            },
            "temporal": {"resample": (True, False), "attention_layers": 1, "head_dim": 16},
            "text_encoder": {
                "t5": {
                    "vocab_size": 512,
                    "d_model": 32,
                    "d_kv": 8,
                    "d_ff": 64,
                    "num_layers": 1,
                    "num_heads": 4,
                    "zero_padding": True,
                },
                "max_tokens": 20,
            },
            "data": {
                "name": "moving_shapes",
                "data_dir": "datasets",
                "split": "train",
                "num_examples": 20000,
                "num_frames": 8,
                "clip_frames": 32,
                "resolution": 128,
                "crop": 64,
                "texture": 0.08,
                "fps": 16.0,
                "seed": 0,
                "caption_dropout": 0.1,
                "text_states": False,
            },
            "diffusion": {
                "prediction": "v",
                "loss": "simple",
                "schedule": {"kind": "continuous_cosine", "log_snr_shift": 0.0},
            },
            "optimizer": {
                "learning_rate": 2e-3,
                "warmup_steps": 100,
                "ema_decay": 0.999,
                "cooldown_steps": 0,
            },
            "batch_size": 2,
            "total_steps": 1000,
            "checkpoint_every": 200,
        }
    )
