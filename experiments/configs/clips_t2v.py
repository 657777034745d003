"""Text to video on your own videos: inflates the model of `clips_t2i.py`.

    python -m experiments.train --config=experiments/configs/clips_t2v.py \\
        --config.data.source=FOLDER --workdir=runs/clips_t2v
"""

from ml_collections import ConfigDict

from experiments.configs import tiny_t2v
from experiments.configs.clips_t2i import own_clips


def get_config() -> ConfigDict:
    """Returns `tiny_t2v.py` for the videos in `data.source`."""
    config = tiny_t2v.get_config()
    config.data = own_clips(config.data, num_frames=16)
    config.init_from = "runs/clips_t2i"
    config.sample_prompts = ()
    return config
