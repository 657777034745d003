"""Text to video from DeepFloyd IF: inflates an imported first stage, on your own videos.

    stunet import-if IF-I-M-v1.0 models/if_m
    python -m experiments.cache_text --config=experiments/configs/inflate_if.py \\
        --config.data.source=FOLDER
    python -m experiments.train --config=experiments/configs/inflate_if.py \\
        --config.data.source=FOLDER --workdir=runs/if_m_t2v
"""

from ml_collections import ConfigDict

from experiments.common.clip_data import clip_data


def get_config() -> ConfigDict:
    """Returns the config: 80 frames at 16 per second (as in the paper) of 64x64 pixels."""
    return ConfigDict(
        {
            "stage": "t2v",
            "init_from": "models/if_m",
            "temporal": {"resample": (True, True, True), "attention_layers": 2, "head_dim": 64},
            # T5-XXL runs once, in cache_text.
            "data": clip_data(num_frames=80, resolution=64, fps=16.0, text_states=True),
            # Noise schedule and target of IF. Its variance channels were not trained on the
            # activations that the new temporal blocks produce, so the variance is fixed.
            "diffusion": {
                "prediction": "eps",
                "variance": "fixed_small",
                "schedule": {"kind": "cosine"},
            },
            "optimizer": {
                "name": "adafactor",
                "learning_rate": 1e-4,
                "warmup_steps": 1000,
                "ema_decay": 0.9999,
            },
            "dtype": "bfloat16",
            "remat": "blocks",
            "batch_size": 8,
            "total_steps": 100000,
            "checkpoint_every": 1000,
            "sample_prompts": (),
        }
    )
