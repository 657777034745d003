import importlib
from pathlib import Path

import pytest

from data.pipeline import parse_config
from experiments.configs import base_128, shapes
from experiments.ucf101 import ZeroShotConfig
from stunet.models.unet import check_video_shape
from stunet.schema import from_dict, to_dict
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


def fields_of(name, *arguments):
    module = importlib.import_module(f"experiments.configs.{name}")
    return module.get_config(*arguments).to_dict()


@pytest.mark.parametrize("name", list(OTHERS))
def test_config_that_does_not_train(name):
    said = fields_of(name)
    config = from_dict(OTHERS[name], said, name)
    assert_within(plain(said), to_dict(config), name)


WITH_ARGUMENT = {"base_128": base_128.SLICES, "shapes": shapes.STAGES}
NAMES = {path.stem for path in CONFIGS.glob("[!_]*.py")} - {*WITH_ARGUMENT, *OTHERS}
CASES = [(name,) for name in sorted(NAMES)]
CASES += [(name, argument) for name, those in WITH_ARGUMENT.items() for argument in those]


@pytest.mark.parametrize("case", CASES, ids=":".join)
def test_config(case):
    name, said = case[0], fields_of(*case)
    config = from_dict(TrainConfig, said, name)
    read = to_dict(config)
    assert_within(plain(said), read, name)
    assert from_dict(TrainConfig, read, name) == config
    parse_config(config.data, f"{name}: data")
    if config.unet is not None:
        size = config.data["resolution"]
        check_video_shape(config.unet, config.data["num_frames"], size, size)
    elif config.temporal is not None:
        assert config.data["num_frames"] % config.temporal.stride == 0
