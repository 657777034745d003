"""Which parameters the stages train, and how configs are parsed into stages."""

import dataclasses

import jax
import numpy as np
import pytest

from stunet.diffusion import MaskMixture, SuperResolution
from stunet.errors import UserError
from stunet.model import parameter_shapes
from stunet.models.t5 import TextEncoderConfig
from stunet.schema import to_dict
from stunet.training.config import parse_train_config
from stunet.training.stages import (
    STAGES,
    Conditional,
    SpatialSuperResolution,
    Style,
    TextToImage,
    TextToVideo,
)
from stunet.weights.trees import flatten
from tests.tiny import T5, UNET
from tests.training.external_stage import ModuleTuning


@dataclasses.dataclass(frozen=True)
class Data:
    """A data format (`stunet.training.settings.DataFormat`)."""

    num_frames: int = 4
    resolution: int = 8
    fps: float = 8.0
    crop: int | None = None
    text_states: bool = False


NEW = {"unet": UNET, "text_encoder": TextEncoderConfig(T5, 4)}
START = {"init_from": "a model"}
T2V = {**START, "temporal": UNET.temporal}
SSR = {"temporal": UNET.temporal, "super_resolution": SuperResolution(4)}
PATHS = flatten(parameter_shapes(UNET, T5)).keys()
U_NET = {path for path in PATHS if path.startswith("unet/")}
ADDED = {path for path in PATHS if "/temporal_" in path}
CONV_TIME = {path for path in ADDED if "/conv_time/" in path}


@pytest.mark.parametrize(
    ("stage", "trained"),
    [
        (TextToImage(**NEW), PATHS),
        (TextToImage(unet=UNET, text_encoder="t5"), U_NET),
        (TextToImage(**START), U_NET),
        (TextToImage(**START, text_encoder="t5", frozen=("conv_time",)), U_NET - CONV_TIME),
        (Style(**START), U_NET),
        (TextToVideo(**T2V), ADDED),
        (TextToVideo(**T2V, trained="unet"), U_NET),
        (TextToVideo(**T2V, frozen=("conv_time", "embedding")), ADDED - CONV_TIME),
        (Conditional(**START, conditioning=MaskMixture()), ADDED),
        (SpatialSuperResolution(**SSR, **NEW), PATHS),
        (SpatialSuperResolution(**SSR, unet=UNET, text_encoder="t5"), U_NET),
        (SpatialSuperResolution(**SSR, **START), ADDED),
        (SpatialSuperResolution(**SSR, **START, trained="unet"), U_NET),
        (ModuleTuning(**START), {"unet/conv_out/kernel", "unet/conv_out/bias"}),
    ],
)
def test_trained_parameters(stage, trained):
    params = parameter_shapes(UNET, T5)
    selected, frozen = stage.split(params, seed=0)
    assert flatten(selected).keys() == trained
    assert flatten(frozen).keys() == PATHS - trained
    assert flatten(stage.join(selected, frozen)) == flatten(params)
    assert 0 < len(CONV_TIME) < len(ADDED) < len(U_NET) < len(PATHS)


def test_adapters_of_a_style():
    params = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), parameter_shapes(UNET, T5))
    stage = Style(**START, adapter_rank=2)
    adapters, frozen = stage.split(params, seed=0)
    assert frozen is params and all(path.startswith("unet/") for path in flatten(adapters))
    joined = stage.join(adapters, frozen)
    jax.tree.map(np.testing.assert_array_equal, joined, params)  # adapters start at 0
    with pytest.raises(UserError, match="adapter_rank: 1000,"):
        Style(**START, adapter_rank=1000).split(params, seed=0)
    with pytest.raises(UserError, match="adapter_rank: -1,.* 0"):
        Style(**START, adapter_rank=-1)


def values(stage, **changes):
    """Returns the flat values of a config file."""
    run = {"data": {"num_frames": 2}, "batch_size": 2, "total_steps": 1}
    return {"stage": stage, **run, **changes}


def parse(fields):
    return parse_train_config(fields, lambda mapping, where: Data(**mapping), "file")


def test_configs_are_flat():
    fields = values("t2v", init_from="somewhere", temporal=to_dict(UNET.temporal), seed=3)
    config = parse(fields)
    assert config.stage == TextToVideo(init_from="somewhere", temporal=UNET.temporal)
    assert (config.data, config.seed, config.batch_size) == (Data(num_frames=2), 3, 2)
    outside = values("tests.training.external_stage:ModuleTuning", init_from="a", module="b")
    assert parse(outside).stage == ModuleTuning(init_from="a", module="b")


def test_stages_have_names():
    assert {stage.name: stage for stage in STAGES.values()} == STAGES


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "file: .*stage"),
        ({"stage": "style"}, "file: .*data"),
        (values("t3v"), "file.stage: .*'t3v'.* t2i, style, t2v, conditional, ssr"),
        (values("absent_module:Stage"), "file.stage: .*'absent_module:Stage'"),
        (values("stunet.schema:to_dict"), "file.stage: 'stunet.schema:to_dict' .*Stage"),
        (values("style"), "file .*'style'.*init_from"),
        (values("style", init_from=""), "file .*'style'.*init_from"),
        (values("style", init_from="a", temporal={}), "file: .*'temporal' .*'style'.* t2v, ssr"),
        (values("style", init_from="a", unett=1), "file: .*'unett'"),
        (values("style", init_from="a", batch_sise=1), "file: .*'batch_sise'.*'batch_size'"),
        (values("style", init_from="a", total_steps=0), "file: total_steps: 0,.* 1"),
        (values("style", init_from="a", adapter_rank="x"), "file .*'style'.*adapter_rank.*'x'"),
    ],
)
def test_invalid_configs(fields, message):
    with pytest.raises(UserError, match=message) as error:
        parse(fields)
    assert "\n" not in str(error.value)
