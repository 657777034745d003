"""The installed PyTorch packages reproduce `golden/`. Needs the extra `parity`."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stunet.conversion import deepfloyd_if, t5_v1_1
from stunet.evaluation.c3d import C3D
from stunet.evaluation.clip import init_clip
from stunet.evaluation.clip_network import clip_config
from stunet.evaluation.i3d import I3D
from stunet.evaluation.torch_weights import torch_parameters
from tests.parity import cases

torch = pytest.importorskip("torch", reason="needs torch, diffusers, transformers, sentencepiece")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
sentencepiece = pytest.importorskip("sentencepiece")

# Published widths, layers and heads; diffusers' defaults for fields that DeepFloyd's files omit.
STAGE_ONE = cases.blocks((False, True, True, True)) | {"layers_per_block": 3}
REAL = {
    "IF-I-M": cases.full_size(cases.STAGE_ONE, [192, 384, 576, 768], **STAGE_ONE),
    "IF-I-L": cases.full_size(cases.STAGE_ONE, [320, 640, 960, 1280], **STAGE_ONE),
    "IF-I-XL": cases.full_size(cases.STAGE_ONE, [704, 1408, 2112, 2816], **STAGE_ONE),
} | {
    f"stage II, {name}": cases.full_size(
        cases.STAGE_TWO,
        channels,
        layers_per_block=[2, 2, 3, 5, 5],
        time_embedding_dim=5 * channels[-1],
    )
    for name, channels in {
        "narrow": [128, 256, 384, 512, 768],
        "wide": [192, 384, 768, 1152, 1536],
    }.items()
}


@pytest.mark.parametrize("name", [*cases.UNETS, "t5", "trajectory"])
def test_golden_is_current(name):
    from tests.parity import torch_reference

    output = {
        "t5": torch_reference.t5_states,
        "trajectory": torch_reference.trajectory,
    }.get(name, lambda: torch_reference.unet_output(name))()
    # Ten guided steps amplify rounding: PyTorch on two kinds of CPU differed by 1.6e-4.
    atol = 5e-4 if name == "trajectory" else 1e-5
    np.testing.assert_allclose(output, np.load(cases.GOLDEN / f"{name}.npy"), atol=atol)


def test_golden_pieces_are_current():
    pieces = sentencepiece.SentencePieceProcessor(str(cases.GOLDEN / "spiece.model"))
    stored = json.loads((cases.GOLDEN / "spiece_ids.json").read_text())
    assert stored == {text: pieces.encode(text) for text in cases.SENTENCES}


@pytest.mark.parametrize("name", list(REAL))
def test_parameter_names_of_a_published_unet(name):
    with torch.device("meta"):
        module = diffusers.UNet2DConditionModel.from_config(REAL[name])
    expected = {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
    table = deepfloyd_if.hub_parameters(deepfloyd_if.unet_config_from_diffusers(REAL[name], name))
    assert {parameter.name: parameter.shape for parameter in table.values()} == expected
    assert len(table) == len(expected)  # no parameter is read twice


def test_parameter_names_of_t5():
    with torch.device("meta"):
        module = transformers.T5EncoderModel(transformers.T5Config.from_dict(cases.T5))
    expected = {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
    expected.pop("encoder.embed_tokens.weight", None)  # tied to shared.weight
    table = t5_v1_1.hub_parameters(t5_v1_1.t5_config_from_transformers(cases.T5, "t5"))
    assert {parameter.name: parameter.shape for parameter in table.values()} == expected


@pytest.mark.parametrize("name", ["i3d", "c3d", "clip_quick_gelu", "clip_gelu", "clip_picture"])
def test_golden_metrics_are_current(name):
    from tests.parity import torch_metrics

    output = torch_metrics.OUTPUTS[name]()
    np.testing.assert_allclose(output, np.load(cases.GOLDEN / f"{name}.npy"), atol=1e-5, rtol=1e-4)


def test_golden_tokens_of_clip_are_current():
    from tests.parity import torch_metrics

    tokenizer, ids = torch_metrics.clip_tokenizer()
    assert json.loads((cases.GOLDEN / "clip_ids.json").read_text()) == ids
    assert json.loads((cases.GOLDEN / "clip_tokenizer.json").read_text()) == json.loads(tokenizer)


@pytest.mark.parametrize("name", ["I3D", "C3D"])
def test_parameter_names_of_a_video_classifier(name):
    from tests.parity import torch_metrics

    network, clip = {"I3D": (I3D(), (1, 9, 224, 224, 3)), "C3D": (C3D(), (1, 16, 128, 128, 3))}[
        name
    ]
    with torch.device("meta"):
        module = getattr(torch_metrics, name)()
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), jnp.zeros(clip))["params"])
    assert_same_names(shapes, module)


# Sizes of openai/clip-vit-base-patch32 and openai/clip-vit-large-patch14.
CLIPS = {
    "ViT-B/32": {"text_config": {}, "vision_config": {}, "projection_dim": 512},
    "ViT-L/14": {
        "text_config": {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_attention_heads": 12,
        },
        "vision_config": {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_attention_heads": 16,
            "num_hidden_layers": 24,
            "patch_size": 14,
        },
        "projection_dim": 768,
    },
}


@pytest.mark.parametrize("name", list(CLIPS))
def test_parameter_names_of_clip(name):
    with torch.device("meta"):
        module = transformers.CLIPModel(transformers.CLIPConfig(**CLIPS[name]))
    config = clip_config({"model_type": "clip", **CLIPS[name]}, name)
    assert_same_names(jax.eval_shape(lambda: init_clip(config, jax.random.key(0))), module)


def test_clip_config_with_two_text_configs():
    content = {
        "model_type": "clip",
        "text_config": {"hidden_act": "gelu", "hidden_size": 768},
        "text_config_dict": {"hidden_size": 256},
    }
    expected = transformers.CLIPConfig.from_dict(content).text_config
    text_config = clip_config(content, "config").text
    for name, value in dataclasses.asdict(text_config).items():
        assert getattr(expected, name) == value, name


def assert_same_names(shapes, module):
    ignored = ("num_batches_tracked", "logit_scale", "position_ids")
    expected = {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
    expected = {key: shape for key, shape in expected.items() if not key.endswith(ignored)}
    table = torch_parameters(shapes)
    assert {parameter.name: parameter.shape for parameter in table.values()} == expected
    assert len(table) == len(expected)
