import importlib
from pathlib import Path

import pytest

from data.pipeline import parse_config
from experiments.configs import base_128, shapes
from experiments.ucf101 import ZeroShotConfig
from stunet.models.unet_config import check_video_shape
from stunet.schema import from_dict, to_dict
from stunet.training.config import parse_train_config
from stunet.training.stages import SpatialSuperResolution, TextToVideo

CONFIGS = Path(__file__).parents[2] / "experiments" / "configs"
OTHERS = {"ucf101_zero_shot": ZeroShotConfig}  # configs of other programs


def plain(value):
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def assert_within(values, parsed, where):
    """Checks that `parsed`, which has defaults too, has every value of `values`."""
    for name, value in values.items():
        if isinstance(value, dict):
            assert_within(value, parsed[name], f"{where}.{name}")
        else:
            assert parsed[name] == value, f"{where}.{name}"


def fields_of(name, *arguments):
    module = importlib.import_module(f"experiments.configs.{name}")
    return module.get_config(*arguments).to_dict()


@pytest.mark.parametrize("name", list(OTHERS))
def test_config_of_another_program(name):
    values = fields_of(name)
    config = from_dict(OTHERS[name], values, name)
    assert_within(plain(values), to_dict(config), name)


WITH_ARGUMENT = {"base_128": base_128.SLICES, "shapes": shapes.STAGES}
NAMES = {path.stem for path in CONFIGS.glob("[!_]*.py")} - {*WITH_ARGUMENT, *OTHERS}
CASES = [(name,) for name in sorted(NAMES)]
CASES += [(name, argument) for name, arguments in WITH_ARGUMENT.items() for argument in arguments]


def flat_fields(config):
    """The inverse of `parse_train_config`."""
    fields = {**to_dict(config), **to_dict(config.stage)}
    return {**fields, "stage": config.stage.name, "data": to_dict(config.data)}


@pytest.mark.parametrize("case", CASES, ids=":".join)
def test_config(case):
    name, values = case[0], fields_of(*case)
    config = parse_train_config(values, parse_config, name)
    parsed = flat_fields(config)
    unset = {"num_examples": None, "sample_prompts": []}  # of other datasets and stages
    assert_within(plain(values), {**unset, **parsed}, name)
    assert parse_train_config(parsed, parse_config, name) == config
    stage, data = config.stage, config.data
    if not stage.init_from:
        unet = stage.architecture(None)
        check_video_shape(unet, data.num_frames, data.resolution, data.resolution)
    elif isinstance(stage, TextToVideo | SpatialSuperResolution):
        assert data.num_frames % stage.temporal.stride == 0
