"""Text to video at the paper's size: 80 frames of 128x128 pixels (2401.12945 section 5).

    stunet import-if IF-I-XL-v1.0 models/if_xl
    python -m experiments.cache_text --config=experiments/configs/base_128.py:v5p \\
        --config.data.source=FOLDER
    python -m experiments.train --config=experiments/configs/base_128.py:v5p \\
        --config.data.source=FOLDER --workdir=runs/base_128
    python -m experiments.compile --config=experiments/configs/base_128.py:v5p \\
        --backbone=if_i_xl --topology=v5p:4x4x4

The argument after the colon is a TPU slice: v5p (4x4x4) or v6e (8x8) for IF-I-XL, 5.5 B parameters
with the temporal ones, or v5e (4x4) for IF-I-M. docs/scaling.md has the TPU compiler's figures.

The start model is IF's first stage with all of its layers. `base_128_t2i.py` adapts it to images of
128 pixels first (docs/deepfloyd_if.md). The noise schedule is that of IF, noisier by 2 ln 2 in
log-SNR: averaged to 64 pixels, a frame of 128 then has the SNR of IF's own training.
"""

import math

from ml_collections import ConfigDict

from experiments.configs import inflate_if

SLICES = {
    "v5p": {"batch_size": 32, "mesh": {"fsdp": 32, "frames": 2}, "remat": "convolutions"},
    "v6e": {"batch_size": 16, "mesh": {"fsdp": 16, "frames": 4}, "remat": "convolutions"},
    "v5e": {"batch_size": 8, "mesh": {"fsdp": 8, "frames": 2}, "remat": "blocks"},
}

RESOLUTION = 128  # pixels; IF's first stage was trained at 64


def start_model(chips: str) -> str:
    """Returns the folder of the imported first stage of IF that fits the slice."""
    return "models/if_m" if chips == "v5e" else "models/if_xl"


def schedule() -> ConfigDict:
    """Returns IF's cosine schedule, shifted for the resolution (2301.11093 section 3.1)."""
    shift = -2 * math.log(RESOLUTION / 64)
    return ConfigDict({"kind": "continuous_cosine", "log_snr_shift": shift})


def get_config(chips: str = "v5p") -> ConfigDict:
    """Returns `inflate_if.py` at twice the size, with a part of a video per chip."""
    config = inflate_if.get_config()
    config.data.resolution = RESOLUTION
    config.diffusion.schedule = schedule()
    config.update(
        {
            "init_from": start_model(chips),
            "frozen_dtype": "bfloat16",
            **SLICES[chips],
        }
    )
    return config
