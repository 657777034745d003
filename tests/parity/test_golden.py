"""Imported networks reproduce the outputs of PyTorch that are stored in `golden/`."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stunet.conversion.convert import import_if
from stunet.conversion.sentence_piece import tokenizer_json
from stunet.diffusion import Ancestral, guided_denoiser, run_steps, thresholded_denoiser
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
    """Imports the stage I pipeline."""
    folder = tmp_path_factory.mktemp("golden")
    import_if(folders.write_pipeline(folder / "if"), folder / "model", None, lambda size: None)
    return load(folder / "model")


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
    params = {"params": imported.params["text_encoder"]}
    states = T5Encoder(imported.text_encoder).apply(params, jnp.asarray(ids), jnp.asarray(mask))
    assert relative_error(states, golden("t5")) <= 1e-4


def test_guided_trajectory(imported):
    start, steps, text, empty = cases.trajectory_inputs()
    params = {"params": imported.params["unet"]}
    denoiser = guided_denoiser(
        lambda x_t, t, text: UNet(imported.unet).apply(params, x_t, t, text),
        imported.schedule,
        imported.prediction,
        jnp.asarray(text),
        jnp.asarray(empty),
        cases.SCALE,
        learned_variance=imported.variance == "learned_range",
    )
    denoiser = thresholded_denoiser(denoiser, imported.schedule, imported.threshold)
    sampler = Ancestral().bind(imported.schedule, cases.STEPS, variance=imported.variance)
    assert imported.variance == "learned_range" and sampler.grid.timesteps[0] == 900
    table = channels_last(steps)
    run = jax.jit(
        lambda x: run_steps(sampler, denoiser, sampler.init(x), 0, cases.STEPS, table.__getitem__)
    )
    got = channels_first(run(channels_last(start)).x)
    expected = golden("trajectory")
    assert expected.std() > 0.1 and np.abs(expected).max() <= 1
    assert np.abs(got - expected).max() <= 1e-3


def test_sentence_piece(tmp_path):
    expected = json.loads((cases.GOLDEN / "spiece_ids.json").read_text())
    path = tmp_path / "tokenizer.json"
    path.write_bytes(tokenizer_json(cases.GOLDEN / "spiece.model"))
    ids, mask = load_tokenizer(path)(list(expected))
    for row, is_token, pieces in zip(ids, mask, expected.values(), strict=True):
        assert row[is_token].tolist() == [*pieces, 1]
