import dataclasses
import json
import re

import jax
import numpy as np
import pytest

from data.pipeline import parse_config
from experiments.configs import inflate_if, inflate_if_ii
from stunet.conversion.deepfloyd_if import (
    hub_parameters,
    resolution_from_diffusers,
    unet_config_from_diffusers,
)
from stunet.errors import UserError
from stunet.models.unet import init_unet
from stunet.models.unet_config import UNetConfig, check_video_shape
from stunet.training.config import parse_train_config
from stunet.weights.trees import count_parameters
from tests.parity import cases

STAGE_ONE = cases.full_size(
    cases.STAGE_ONE,
    [192, 384, 576, 768],
    **cases.blocks((False, True, True, True)),
    layers_per_block=3,
)
STAGE_TWO = cases.full_size(
    cases.STAGE_TWO,
    [64, 128, 256, 512, 512],
    layers_per_block=[2, 2, 3, 5, 5],
    time_embedding_dim=320,
)


def test_stage_one():
    config = unet_config_from_diffusers(STAGE_ONE, "c")
    assert config == UNetConfig(
        channels=(192, 384, 576, 768),
        layers_per_block=(3, 3, 3, 3),
        attention_levels=(False, True, True, True),
    )
    shapes = jax.eval_shape(lambda: init_unet(config, jax.random.key(0)))
    assert count_parameters(shapes) == 371_605_830


def test_stage_two():
    config = unet_config_from_diffusers(json.loads(json.dumps(STAGE_TWO)), "c")
    assert config.layers_per_block == (2, 2, 3, 5, 5)
    assert config.attention_levels == (False, False, False, True, True)
    assert not config.self_attention and config.activate_embedding_once
    assert config.noise_level_embedding and config.time_embedding_dim == 320
    assert config.output_scale_factor == config.mid_output_scale_factor == 1.4142


@pytest.mark.parametrize(
    ("experiment", "fields"), [(inflate_if, STAGE_ONE), (inflate_if_ii, STAGE_TWO)]
)
def test_experiments_inflate_networks_with_that_many_levels(experiment, fields):
    config = parse_train_config(experiment.get_config().to_dict(), parse_config)
    unet = dataclasses.replace(
        unet_config_from_diffusers(fields, "c"), temporal=config.stage.temporal
    )
    size = config.data.resolution
    check_video_shape(unet, config.data.num_frames, size, size)


@pytest.mark.parametrize("fields", [STAGE_ONE, STAGE_TWO])
def test_parameters_have_unique_names_and_survive_a_round_trip(fields):
    table = hub_parameters(unet_config_from_diffusers(fields, "c"))
    assert len({parameter.name for parameter in table.values()}) == len(table)
    for path in ("up_0_res_0/skip/kernel", "mid_attn_0/out/kernel", "conv_in/kernel"):
        parameter = table[path]
        array = np.arange(np.prod(parameter.shape)).reshape(parameter.shape)
        back = parameter.to_hub(parameter.from_hub(array))
        assert back.shape == parameter.shape
        np.testing.assert_array_equal(back, array)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("conv_in/kernel", "conv_in.weight"),
        ("text_pooling/positional_embedding", "add_embedding.pool.positional_embedding"),
        ("text_pooling/q/bias", "add_embedding.pool.q_proj.bias"),
        ("text_proj/kernel", "encoder_hid_proj.weight"),
        ("down_1_res_2/embedding/kernel", "down_blocks.1.resnets.2.time_emb_proj.weight"),
        ("down_2_resample/conv_1/bias", "down_blocks.2.downsamplers.0.conv1.bias"),
        ("mid_attn_0/text_norm/scale", "mid_block.attentions.0.norm_cross.weight"),
        ("up_3_attn_1/out/kernel", "up_blocks.0.attentions.1.to_out.0.weight"),
        ("up_1_resample/norm_2/bias", "up_blocks.2.upsamplers.0.norm2.bias"),
        ("norm_out/scale", "conv_norm_out.weight"),
    ],
)
def test_names(path, name):
    assert hub_parameters(unet_config_from_diffusers(STAGE_ONE, "c"))[path].name == name


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"_class_name": "UNet2DModel"}, "c: _class_name.*'UNet2DModel', .*'UNet2DConditionModel'"),
        ({"block_out_channels": None}, "c: .*'block_out_channels'"),
        ({"act_fn": "silu"}, "c: act_fn.*'silu', .*'gelu'"),
        (
            {"down_block_types": ["DownBlock2D"] * 4},
            "c: down_block_types: .*'DownBlock2D', .*ResnetDownsampleBlock2D",
        ),
        (
            {"up_block_types": STAGE_ONE["up_block_types"][::-1]},
            "c: up_block_types.*down_block_types",
        ),
        ({"attention_head_dim": [32, 64]}, r"c: attention_head_dim.* \[32, 64\]"),
        ({"only_cross_attention": [True, False]}, r"c: only_cross_attention.* \[True, False\]"),
        ({"resnet_skip_time_act": True}, "time_embedding_act_fn.* None, .*'gelu'.* True"),
        ({"time_embedding_act_fn": "silu"}, "time_embedding_act_fn.*'silu', .* None .* False"),
        ({"block_out_channels": 32}, "c: block_out_channels.* 32, .*list"),
        ({"down_block_types": [["x"]] * 4}, r"c: down_block_types: .*\['x'\]"),
        ({"attention_head_dim": None}, "c: head_dim.* None, .*int"),
        ({"attention_head_dim": 0}, "c: head_dim: 0, .* 1 to 65536"),
        ({"encoder_hid_dim": "48"}, "c: text_dim.*'48', .*int"),
        ({"resnet_out_scale_factor": None}, "c: output_scale_factor.* None, .*float"),
        ({"layers_per_block": [3, 3]}, "c: layers_per_block: 2 .*4"),
        ({"class_embed_type": "projection"}, "c: class_embed_type.*'projection', .*'timestep'"),
    ],
)
def test_other_networks_are_rejected(fields, message):
    with pytest.raises(UserError, match=message):
        unet_config_from_diffusers(STAGE_ONE | fields, "c")


@pytest.mark.parametrize(("size", "expected"), [(64, 64), ([128, 128], 128), (None, 64)])
def test_resolution(size, expected):
    assert resolution_from_diffusers(STAGE_ONE | {"sample_size": size}, "c") == expected


@pytest.mark.parametrize("size", [[64, 32], "64", 0])
def test_invalid_resolutions(size):
    with pytest.raises(UserError, match=rf"c: sample_size.* {re.escape(repr(size))}, "):
        resolution_from_diffusers(STAGE_ONE | {"sample_size": size}, "c")
