"""Imported networks reproduce the outputs of PyTorch that are stored in `golden/`."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stunet.api import Sampling, generate
from stunet.conversion.convert import import_if
from stunet.conversion.sentence_piece import tokenizer_json
from stunet.model import load
from stunet.models.t5 import T5Encoder
from stunet.models.unet import UNet
from stunet.models.unet_config import UNetConfig
from stunet.schema import from_dict
from stunet.text import load_tokenizer
from stunet.weights.model_folder import read_model_folder
from tests.parity import cases, folders
from tests.tiny import fast_compiles


@pytest.fixture(scope="module", autouse=True)
def _fast_compiles():
    with fast_compiles():
        yield


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """Imports the pipelines of both stages."""
    folder = tmp_path_factory.mktemp("golden")
    found = {}
    for name, stage in cases.STAGES.items():
        source = folders.write_pipeline(folder / f"{name} hub", stage.unet, stage.scheduler)
        import_if(source, folder / name, None, lambda size: None)
        found[name] = load(folder / name)
    return found


def golden(name):
    return np.load(cases.GOLDEN / f"{name}.npy")


def relative_error(got, expected):
    return np.abs(got - expected).max() / np.abs(expected).max()


def channels_last(x):
    """Converts [..., C, H, W] to [..., 1, H, W, C]."""
    return jnp.moveaxis(jnp.asarray(x), -3, -1)[..., None, :, :, :]


def channels_first(x):
    return np.moveaxis(np.asarray(x)[..., 0, :, :, :], -1, -3)


@pytest.mark.parametrize("name", list(cases.UNETS))
def test_unet(tmp_path, name):
    source = folders.write_unet(tmp_path / "unet", cases.UNETS[name], shard_bytes=500_000)
    assert len(list(source.glob("*.safetensors"))) > 1
    import_if(source, tmp_path / "model", None, lambda size: None)
    content = read_model_folder(tmp_path / "model")
    config = from_dict(UNetConfig, content.config["architecture"], name)
    x, t, text, level = cases.unet_inputs(name)
    level = level if config.noise_level_embedding else None
    apply = jax.jit(UNet(config).apply)
    got = channels_first(
        apply({"params": content.params["unet"]}, channels_last(x), t, text, level)
    )
    assert golden(name).std() > 0.1
    assert relative_error(got, golden(name)) <= 1e-4


def test_t5(imported):
    ids, mask = cases.t5_inputs()
    model = imported["stage_one"]
    params = {"params": model.params["text_encoder"]}
    states = T5Encoder(model.text_encoder).apply(params, jnp.asarray(ids), jnp.asarray(mask))
    assert relative_error(states, golden("t5")) <= 1e-4


@pytest.mark.parametrize("name", list(cases.STAGES))
def test_text_preprocessing(imported, name):
    ids, mask = imported[name].tokenizer(cases.TEXTS)
    np.testing.assert_array_equal([ids, mask], golden("token_ids"))


def test_guided_trajectories_of_both_stages(imported):
    """Samples from text to image with IF's sampler, guidance scales and noise level."""
    estimates = {"sampling": [], "enlarging": []}

    def on_progress(report):
        if report.done:
            estimates[report.stage].append(np.asarray(report.estimate))

    sampling = Sampling(
        steps=cases.STAGES["stage_one"].steps,
        upscale_steps=cases.STAGES["stage_two"].steps,
        negative_prompt=cases.NEGATIVE_PROMPT,
        seed=cases.SEED,
        chunk=1,
    )
    with pytest.warns(UserWarning, match="prompt: 1 of 2 truncated to the 77 tokens"):
        result = generate(
            imported["stage_one"],
            cases.PROMPTS,
            upscalers=[imported["stage_two"]],
            sampling=sampling,
            progress=on_progress,
        )
    np.testing.assert_allclose(result.videos, estimates["enlarging"][-1], atol=1e-6)
    for name, found in zip(cases.STAGES, estimates.values(), strict=True):
        expected = golden(f"trajectory_{name}")
        assert expected.std() > 0.5 and np.abs(expected).max() <= 1
        assert np.abs(channels_first(np.stack(found)) - expected).max() <= cases.TOLERANCE


def test_sentence_piece(tmp_path):
    expected = json.loads((cases.GOLDEN / "spiece_ids.json").read_text())
    path = tmp_path / "tokenizer.json"
    path.write_bytes(tokenizer_json(cases.GOLDEN / "spiece.model"))
    ids, mask = load_tokenizer(path)(list(expected))
    for row, is_token, pieces in zip(ids, mask, expected.values(), strict=True):
        assert row[is_token].tolist() == [*pieces, 1]
