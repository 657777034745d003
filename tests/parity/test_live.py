"""The installed PyTorch packages reproduce `golden/`. Needs the extra `parity`."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stunet.api import Sampling, generate
from stunet.conversion import deepfloyd_if, t5_v1_1
from stunet.conversion.convert import import_if
from stunet.diffusion import Ancestral
from stunet.evaluation.c3d import C3D
from stunet.evaluation.clip import init_clip
from stunet.evaluation.clip_network import clip_config
from stunet.evaluation.i3d import I3D
from stunet.evaluation.torch_weights import torch_parameters
from stunet.model import load
from tests.parity import cases
from tests.tiny import fast_compiles

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


def golden(name):
    return np.load(cases.GOLDEN / f"{name}.npy")


@pytest.fixture(scope="module")
def pipelines():
    from tests.parity import torch_reference

    return torch_reference.pipelines()


@pytest.mark.parametrize("name", [*cases.UNETS, "t5"])
def test_golden_is_current(name):
    from tests.parity import torch_reference

    output = torch_reference.t5_states() if name == "t5" else torch_reference.unet_output(name)
    np.testing.assert_allclose(output, golden(name), atol=1e-5)


def test_golden_trajectories_are_current(pipelines):
    from tests.parity import torch_reference

    steps = {name: stage.steps for name, stage in cases.STAGES.items()}
    expected = torch_reference.trajectories(pipelines, steps, cases.NEGATIVE_PROMPT)
    for name, estimates in expected.items():
        # Guided steps amplify rounding, which differs between kinds of CPU.
        np.testing.assert_allclose(estimates, golden(f"trajectory_{name}"), atol=5e-4)
    np.testing.assert_array_equal(
        torch_reference.token_ids(pipelines["stage_one"]), golden("token_ids")
    )


def test_default_settings_of_saved_pipelines(pipelines, tmp_path):
    """Both sides use their own steps, guidance scales and noise level, and no negative prompt."""
    from tests.parity import torch_reference

    models = {}
    for name, pipeline in pipelines.items():
        pipeline.save_pretrained(tmp_path / name)
        import_if(tmp_path / name, tmp_path / f"{name} model", None, lambda size: None)
        models[name] = load(tmp_path / f"{name} model")
    estimates = {"sampling": [], "enlarging": []}

    def on_progress(report):
        if report.done:
            estimates[report.stage].append(np.asarray(report.estimate)[:, 0])

    sampling = Sampling(seed=cases.SEED, chunk=1)
    with fast_compiles(), pytest.warns(UserWarning, match="truncated"):
        generate(
            models["stage_one"],
            cases.PROMPTS,
            upscalers=[models["stage_two"]],
            sampling=sampling,
            progress=on_progress,
        )
    expected = torch_reference.trajectories(pipelines, dict.fromkeys(cases.STAGES), None)
    assert {name: len(found) for name, found in expected.items()} == {
        "stage_one": 100,
        "stage_two": 50,
    }
    for (name, found), ours in zip(expected.items(), estimates.values(), strict=True):
        timesteps = Ancestral().bind(models[name].schedule, len(found)).grid.timesteps
        assert timesteps.tolist() == pipelines[name].scheduler.timesteps.tolist()
        difference = np.abs(np.moveaxis(np.stack(ours), -1, -3) - found).max((1, 2, 3, 4))
        # Before, the estimate is the predicted noise times up to 72: 7e-3 at timestep 980.
        assert difference[timesteps <= 900].max() <= cases.TOLERANCE


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
