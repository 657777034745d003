"""A style for the moving-shapes world: tunes the model of `tiny_t2i.py` to a few pictures.

    python -m data.moving_shapes.duotone --out=datasets/duotone
    python -m experiments.train --config=experiments/configs/tiny_style.py --workdir=runs/duotone
    stunet generate "a red star" --model runs/tiny_t2v --style runs/duotone --out star.mp4

`--config.adapter_rank=4` trains low-rank adapters instead of the network.
`--config.data.source=FOLDER` trains on a folder of your own pictures with captions.
"""

from ml_collections import ConfigDict

from experiments.common.clip_data import clip_data
from experiments.configs import tiny_t2i


def get_config() -> ConfigDict:
    """Returns the config, which trains the U-Net but not the text encoder."""
    t2i = tiny_t2i.get_config()
    return ConfigDict(
        {
            "stage": "style",
            "init_from": "runs/tiny_t2i",
            "adapter_rank": 0,
            "data": clip_data(source="datasets/duotone", num_frames=1, resolution=16, fps=4.0),
            "diffusion": t2i.diffusion,
            "optimizer": {"learning_rate": 3e-4, "warmup_steps": 20, "ema_decay": 0.99},
            "batch_size": 8,
            "total_steps": 300,
            "checkpoint_every": 100,
        }
    )
