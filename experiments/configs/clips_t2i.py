"""Text to image on the frames of your own videos (docs/training.md, "Your own clips").

    python -m experiments.train --config=experiments/configs/clips_t2i.py \\
        --config.data.source=FOLDER --workdir=runs/clips_t2i
"""

from ml_collections import ConfigDict

from experiments.common.clip_data import clip_data
from experiments.configs import tiny_t2i


def get_config() -> ConfigDict:
    """Returns `tiny_t2i.py` for the videos in `data.source`."""
    config = tiny_t2i.get_config()
    config.data = own_clips(config.data, num_frames=1)
    config.sample_prompts = ()
    return config


def own_clips(data: ConfigDict, num_frames: int) -> ConfigDict:
    """Returns the data config of a folder of videos, at the paper's frame rate."""
    own = {name: value for name, value in data.items() if name != "num_examples"}
    own |= {"name": "video_folder", "resolution": 32, "fps": 16.0, "num_frames": num_frames}
    return ConfigDict(clip_data(**own))
