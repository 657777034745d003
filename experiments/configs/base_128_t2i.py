"""Adapts DeepFloyd IF's first stage to images of 128 pixels, before `base_128.py` inflates it.

    stunet import-if IF-I-XL-v1.0 models/if_xl
    python -m experiments.cache_text --config=experiments/configs/base_128_t2i.py:v5p \\
        --config.data.source=FOLDER
    python -m experiments.train --config=experiments/configs/base_128_t2i.py:v5p \\
        --config.data.source=FOLDER --workdir=runs/if_xl_128

The argument after the colon is the TPU slice of `base_128.py`. Trains all of the U-Net on single
frames, with the noise schedule of `base_128.py`.
"""

from ml_collections import ConfigDict

from experiments.common.clip_data import clip_data
from experiments.configs import base_128, inflate_if

# Parameters are sharded over all chips.
SLICES = {
    "v5p": {"batch_size": 256, "mesh": {"fsdp": 64, "frames": 1}},
    "v6e": {"batch_size": 256, "mesh": {"fsdp": 64, "frames": 1}},
    "v5e": {"batch_size": 64, "mesh": {"fsdp": 16, "frames": 1}},
}


def get_config(chips: str = "v5p") -> ConfigDict:
    """Returns the config of a `t2i` run that starts from the model of `base_128.py`."""
    base = inflate_if.get_config()
    return ConfigDict(
        {
            "stage": "t2i",
            "init_from": base_128.start_model(chips),
            "data": clip_data(
                num_frames=1, resolution=base_128.RESOLUTION, fps=16.0, text_states=True
            ),
            # The learned variance needs IF's discrete schedule; with a fixed one, the variance
            # channels of the last layer are not trained.
            "diffusion": {**base.diffusion.to_dict(), "schedule": base_128.schedule()},
            "optimizer": {**base.optimizer.to_dict(), "learning_rate": 1e-5},
            "dtype": base.dtype,
            "remat": "blocks",
            "total_steps": 20000,
            "checkpoint_every": 1000,
            "sample_prompts": (),
            **SLICES[chips],
        }
    )
