"""The data config of real clips with all fields, so that flags can override each."""

from typing import Any

from ml_collections import config_dict


def clip_data(**fields: Any) -> dict[str, Any]:
    """Returns the data config of a folder of videos.

    Args:
      fields: Fields to set, in addition to or instead of the defaults.
    """
    defaults = {
        "name": "video_folder",
        "source": "",
        "dataset": config_dict.placeholder(str),
        "layout": config_dict.placeholder(str),
        "filter": config_dict.placeholder(str),
        "storage": "encoded",
        "scene_cuts": False,
        "min_motion": 0.0,
        "part_size": 1000,
        "data_dir": "datasets",
        "split": "train",
        "seed": 0,
        "caption_dropout": 0.1,
        "text_states": False,
        "workers": config_dict.placeholder(int),
    }
    return {**defaults, **fields}
