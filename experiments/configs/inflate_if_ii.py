"""Super-resolution of video from DeepFloyd IF: inflates its second stage, 64 to 256 pixels.

    stunet import-if IF-II-M-v1.0 models/if_ii_m
    python -m experiments.cache_text --config=experiments/configs/inflate_if_ii.py \\
        --config.data.source=FOLDER
    python -m experiments.train --config=experiments/configs/inflate_if_ii.py \\
        --config.data.source=FOLDER --workdir=runs/if_ii_m_ssr
"""

from ml_collections import ConfigDict

from experiments.configs import inflate_if


def get_config() -> ConfigDict:
    """Returns the config, for windows of 8 frames, which tile 80 frames with an overlap of 2."""
    base = inflate_if.get_config()
    return ConfigDict(
        {
            **base.to_dict(),
            "stage": "ssr",
            "init_from": "models/if_ii_m",
            "super_resolution": {"factor": 4, "noise_level": 250.0, "align_corners": True},
            "temporal": {
                "resample": (True, True, False, False),  # 8, 4, 2, 2, 2 frames
                "attention_layers": 1,
                "head_dim": 64,
            },
            "data": {**base.data.to_dict(), "num_frames": 8, "resolution": 256},
            "sample_videos": 0,
        }
    )
