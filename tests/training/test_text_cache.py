import dataclasses
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from stunet.engine.sampling import encode_text
from stunet.errors import UserError
from stunet.model import load, model_from_folder
from stunet.text_states import open_text_states, write_text_states
from stunet.training.text_cache import check_text_states, encoder_identity, make_local_encoder
from stunet.training.workdir.run_model import export_model
from stunet.weights.model_folder import open_model_folder, read_model_folder, text_encoder_digest
from tests.experiments.runs import T2I, changed, parse
from tests.tiny import MAX_TOKENS, T5, UNET, remove_checksums, save_tiny_model
from tests.training.encode_on_devices import TEXTS

CAPTIONS = ["a red circle", "a blue square spinning", "something else"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = save_tiny_model(tmp_path_factory.mktemp("encoder") / "model")
    return model_from_folder(open_model_folder(folder), folder)


def identity(model):
    return encoder_identity(model.text_encoder_digest, model.tokenizer)


def write_states(folder, model):
    encode = make_local_encoder(model.text_encoder, model.tokenizer, model.params["text_encoder"])
    write_text_states(folder, CAPTIONS, encode, identity(model), captions_per_shard=2)


def test_cached_states_belong_to_one_text_encoder(model, tmp_path):
    folder = tmp_path / "text_states_train"
    with pytest.raises(UserError, match=f"^{folder}: .*cache_text"):
        check_text_states(folder, model)
    write_states(folder, model)
    check_text_states(folder, model)
    states = open_text_states(folder)
    assert states.shape == (4, MAX_TOKENS, T5.d_model)
    expected = np.asarray(encode_text(model_on_device(model), [*CAPTIONS, ""]))
    np.testing.assert_allclose(states.lookup([*CAPTIONS, ""]), expected, rtol=1e-3, atol=1e-3)

    replaced = jax.tree.map(lambda leaf: np.asarray(leaf) + 1, model.params["text_encoder"])
    other = dataclasses.replace(model, params={**model.params, "text_encoder": replaced})
    tokenizer = dataclasses.replace(model.tokenizer, max_tokens=MAX_TOKENS + 1)
    for wrong in other, dataclasses.replace(model, tokenizer=tokenizer):
        with pytest.raises(UserError, match=f"^{folder}: .*another.*{identity(wrong)}"):
            check_text_states(folder, wrong)

    # A model without a text encoder reads any states of its width.
    no_encoder = dataclasses.replace(model, text_encoder=None, tokenizer=None, params={})
    assert no_encoder.text_encoder_digest is None
    check_text_states(folder, no_encoder)
    wide = dataclasses.replace(no_encoder, unet=dataclasses.replace(UNET, text_dim=16))
    with pytest.raises(UserError, match=f"^{folder}: .*width 8, expected 16"):
        check_text_states(folder, wide)


def model_on_device(model):
    return dataclasses.replace(model, params=jax.tree.map(np.asarray, model.params))


def test_four_devices_share_the_texts(model, tmp_path):
    folder = save_tiny_model(tmp_path / "model")
    out = tmp_path / "states.npz"
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    command = [sys.executable, "-m", "tests.training.encode_on_devices", str(folder), str(out)]
    subprocess.run(command, env=environment, check=True)
    with np.load(out) as results:
        assert results["rows/1"].tolist() == [6, 6] and results["rows/4"].tolist() == [2, 2]
        np.testing.assert_allclose(results["states/4"], results["states/1"], atol=1e-6)
        expected = np.asarray(encode_text(model_on_device(model), TEXTS))
        np.testing.assert_allclose(results["states/4"], expected, atol=1e-6)


def test_the_digest_is_read_from_the_model_folder(tmp_path):
    """Only for parameters that are those of the folder."""
    folder = save_tiny_model(tmp_path / "model")
    true = text_encoder_digest(read_model_folder(folder).params["text_encoder"])
    lazy = open_model_folder(folder)
    assert model_from_folder(lazy, folder).text_encoder_digest == true
    config = folder / "config.json"
    remove_checksums(folder)
    content = json.loads(config.read_text())
    assert content["text_encoder_digest"] == true
    config.write_text(json.dumps(content | {"text_encoder_digest": "0" * 64}))
    assert model_from_folder(lazy, folder).text_encoder_digest == "0" * 64
    assert load(folder).text_encoder_digest == true
    # A folder of an older version.
    config.write_text(json.dumps({k: v for k, v in content.items() if k != "text_encoder_digest"}))
    assert model_from_folder(open_model_folder(folder), folder).text_encoder_digest == true


@pytest.mark.parametrize("stage", ["t2i", "t2v"])
def test_a_saved_model_has_the_digest_of_its_own_text_encoder(stage, tmp_path):
    """A stage that trains the text encoder computes it at each export, others copy it."""
    unet = UNET if stage == "t2v" else UNET.text_to_image()
    num_frames = 4 if stage == "t2v" else 1
    initial = save_tiny_model(tmp_path / "initial", unet, num_frames)
    config = {**T2I, "unet": T2I["unet"] | {"channels": (8, 16)}}
    if stage == "t2v":
        config = changed(config, stage="t2v", data__num_frames=4)
        del config["unet"], config["text_encoder"]
        config |= {"init_from": "initial", "temporal": {"resample": (True,), "head_dim": 8}}
    path = initial / "config.json"
    remove_checksums(initial)
    marker = "0" * 64  # what a digest that is not computed again would be
    path.write_text(json.dumps(json.loads(path.read_text()) | {"text_encoder_digest": marker}))
    content, run = open_model_folder(initial), parse(config)
    trained, _ = run.stage.split(content.params, 0)
    ema = jax.tree.map(lambda leaf: np.asarray(leaf) + 1, trained)
    export_model(run, initial, ema, tmp_path / "model")
    stored = json.loads((tmp_path / "model" / "config.json").read_text())["text_encoder_digest"]
    saved = read_model_folder(tmp_path / "model").params["text_encoder"]
    assert stored == (text_encoder_digest(saved) if stage == "t2i" else marker)
