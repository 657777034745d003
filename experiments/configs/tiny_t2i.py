"""Text to image in the moving-shapes world, small enough for a laptop CPU.

python -m experiments.train --config=experiments/configs/tiny_t2i.py --workdir=runs/tiny_t2i
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the config of the first stage: the image model that `tiny_t2v.py` inflates."""
    return ConfigDict(
        {
            "stage": "t2i",
            "unet": {
                "channels": (32, 32, 128),
                "layers_per_block": (1, 1, 1),
                "attention_levels": (False, False, True),
                "head_dim": 16,
                "text_dim": 64,
                "cross_attention_dim": 96,
                "pooling_heads": 4,
                "out_channels": 3,
                "time_embedding_dim": 128,
                "norm_groups": 8,
            },
            "text_encoder": {
                "t5": {
                    "vocab_size": 512,
                    "d_model": 64,
                    "d_kv": 16,
                    "d_ff": 128,
                    "num_layers": 2,
                    "num_heads": 4,
                    "zero_padding": True,
                },
                "max_tokens": 20,
            },
            "text_denoising": 0.1,
            "data": {
                "name": "moving_shapes",
                "data_dir": "datasets",
                "split": "train",
                "num_examples": 20000,
                "num_frames": 1,
                "resolution": 16,
                "fps": 4.0,
                "seed": 0,
                "caption_dropout": 0.1,
                "text_states": False,
            },
            # Shapes are recognisable at log-SNR -2 to 3, which min-SNR weights emphasise; the
            # unweighted loss of v is mostly about texture (docs/moving_shapes.md).
            "diffusion": {
                "prediction": "v",
                "loss": "min_snr",
                "schedule": {"kind": "continuous_cosine", "log_snr_shift": -1.0},
            },
            "optimizer": {
                "learning_rate": 2e-3,
                "warmup_steps": 100,
                "ema_decay": 0.999,
                "cooldown_steps": 0,
            },
            "batch_size": 32,
            "total_steps": 600,
            "checkpoint_every": 200,
            "sample_prompts": (
                "a red circle on a dark background",
                "a blue star on a light background",
                "a yellow square on a navy background",
                "a green heart on a grey background",
            ),
        }
    )
