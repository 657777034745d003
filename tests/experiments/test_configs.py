import importlib
from pathlib import Path

import pytest

from data.pipeline import DataConfig
from stunet.config import from_dict, to_dict
from stunet.models.unet import check_video_shape
from stunet.training.config import TrainConfig

CONFIGS = Path(__file__).parents[2] / "experiments" / "configs"


def plain(value):
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def assert_within(said, read, where):
    """Every value of `said` stands in `read`, which has the defaults too."""
    for name, value in said.items():
        if isinstance(value, dict):
            assert_within(value, read[name], f"{where}.{name}")
        else:
            assert read[name] == value, f"{where}.{name}"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("[!_]*.py")), ids=lambda path: path.stem)
def test_config(path):
    said = importlib.import_module(f"experiments.configs.{path.stem}").get_config().to_dict()
    config = from_dict(TrainConfig, said, path.name)
    read = to_dict(config)
    assert_within(plain(said), read, path.stem)
    assert from_dict(TrainConfig, read, path.name) == config
    from_dict(DataConfig, config.data, f"{path.name}: data")
    if config.unet is not None:
        size = config.data["resolution"]
        check_video_shape(config.unet, config.data["num_frames"], size, size)
    elif config.temporal is not None:
        assert config.data["num_frames"] % config.temporal.stride == 0
