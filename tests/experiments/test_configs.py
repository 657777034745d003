import importlib
import math
from pathlib import Path

import numpy as np
import pytest

from data.pipeline import parse_config
from experiments.configs import base_128, base_128_t2i, emoji, shapes, shapes_distill
from experiments.ucf101 import ZeroShotConfig
from stunet.diffusion import Schedule
from stunet.models.unet_config import check_training_shape
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


WITH_ARGUMENT = {
    "base_128": base_128.SLICES,
    "base_128_t2i": base_128_t2i.SLICES,
    "shapes": shapes.STAGES,
    "emoji": emoji.STAGES,
    "shapes_distill": shapes_distill.PARTS,
}
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
        check_training_shape(unet, data.num_frames, data.resolution, data.resolution)
    elif isinstance(stage, TextToVideo | SpatialSuperResolution):
        assert data.num_frames % stage.temporal.stride == 0
        assert data.num_frames // stage.temporal.stride >= 2


def test_the_schedule_for_128_pixels_is_that_of_if_on_averaged_frames():
    config = parse_train_config(fields_of("base_128", "v5p"), parse_config)
    shifted, original = config.diffusion.schedule, Schedule()
    assert (
        fields_of("base_128_t2i", "v5p")["diffusion"] == fields_of("base_128", "v5p")["diffusion"]
    )
    t = np.arange(50, 951)
    timestep, log_snr = shifted.level_at(t, np)
    # Averaging 2x2 pixels divides the variance of noise by 4: the log-SNR rises by ln 4.
    np.testing.assert_allclose(log_snr + math.log(4), original.log_snr(t, np), atol=0.25)
    # The network receives IF's timestep of the same noise.
    np.testing.assert_allclose(original.log_snr(timestep, np), log_snr, atol=1e-6)
    assert timestep[450] == pytest.approx(701.5, abs=0.1)  # of nominal time 500
