import importlib
from pathlib import Path

import pytest

from data.pipeline import DataConfig
from experiments.ucf101 import ZeroShotConfig
from stunet.config import from_dict, to_dict
from stunet.models.unet import check_video_shape
from stunet.training.config import TrainConfig

CONFIGS = Path(__file__).parents[2] / "experiments" / "configs"
OTHERS = {"ucf101_zero_shot": ZeroShotConfig}  # that do not train


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


def fields_of(name):
    return importlib.import_module(f"experiments.configs.{name}").get_config().to_dict()


@pytest.mark.parametrize("name", list(OTHERS))
def test_config_that_does_not_train(name):
    said = fields_of(name)
    config = from_dict(OTHERS[name], said, name)
    assert_within(plain(said), to_dict(config), name)


TRAINING = [path for path in sorted(CONFIGS.glob("[!_]*.py")) if path.stem not in OTHERS]


@pytest.mark.parametrize("path", TRAINING, ids=lambda path: path.stem)
def test_config(path):
    said = fields_of(path.stem)
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
