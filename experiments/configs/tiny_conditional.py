"""Filling in around known pixels in the moving-shapes world: tunes the model of `tiny_t2v.py`.

python -m experiments.train --config=experiments/configs/tiny_conditional.py --workdir=runs/fill
stunet animate star.png "a red star moving left" --model runs/fill --out star.mp4
"""

from ml_collections import ConfigDict

from experiments.configs import tiny_t2v


def get_config() -> ConfigDict:
    """Returns the config, which trains temporal modules and the inputs for known pixels."""
    t2v = tiny_t2v.get_config()
    return ConfigDict(
        {
            "stage": "conditional",
            "init_from": "runs/tiny_t2v",
            "conditioning": {
                "first_frame": 0.3,
                "first_and_last": 0.1,
                "every_kth": 0.05,
                "moving_box": 0.1,
                "static_box": 0.15,
                "brush": 0.1,
                "half_plane": 0.1,
                "none": 0.1,
            },
            "cond_in_blocks": True,
            "data": t2v.data,
            "diffusion": t2v.diffusion,
            "optimizer": t2v.optimizer,
            "batch_size": 8,
            "total_steps": 3000,
            "checkpoint_every": 500,
        }
    )
