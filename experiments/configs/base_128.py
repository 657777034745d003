"""Text to video at the paper's size: 80 frames of 128x128 pixels (2401.12945 section 5).

    python -m experiments.train --config=experiments/configs/base_128.py:v5p \\
        --config.init_from=MODEL --config.data.source=FOLDER --workdir=runs/base_128
    python -m experiments.compile --config=experiments/configs/base_128.py:v5p \\
        --backbone=if_i_xl --topology=v5p:4x4x4

The argument after the colon is a TPU slice: v5p (4x4x4) or v6e (8x8) for IF-I-XL, 5.5 B parameters
with the temporal ones, or v5e (4x4) for IF-I-M. All three fit by the TPU compiler's figures
(docs/scaling.md).

MODEL generates images of 128 pixels: the first stage of IF with levels at 128, 64, 32 and 16 pixels
and attention at the last two.
"""

from ml_collections import ConfigDict

from experiments.configs import inflate_if

SLICES = {
    "v5p": {"batch_size": 64, "mesh": {"fsdp": 64, "frames": 1}},
    "v6e": {"batch_size": 16, "mesh": {"fsdp": 16, "frames": 4}},
    "v5e": {"batch_size": 4, "mesh": {"fsdp": 4, "frames": 4}},
}


def get_config(chips: str = "v5p") -> ConfigDict:
    """Returns `inflate_if.py` at twice the size, with a video or a quarter of one per chip."""
    config = inflate_if.get_config()
    config.data.resolution = 128
    config.update(
        {
            "init_from": "models/if_m_128" if chips == "v5e" else "models/if_xl_128",
            "frozen_dtype": "bfloat16",
            "remat": "blocks",
            **SLICES[chips],
        }
    )
    return config
