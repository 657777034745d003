"""The command `experiments.cache_text`, in one process and in a cluster."""

import dataclasses
import json
import os
import re
import shutil
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from data import pipeline as data
from experiments import train
from experiments.cache_text import cache_text_states, main
from experiments.tpu.programs import read_networks
from stunet.checksums import CHECKSUMS
from stunet.engine.sampling import encode_text
from stunet.errors import UserError
from stunet.model import load
from stunet.text_states import open_text_states
from stunet.training.logs.metrics import read_metrics
from stunet.training.workdir.claim import claim_folder
from stunet.training.workdir.run_model import write_initial_model
from stunet.weights.model_folder import (
    ModelFolder,
    open_model_folder,
    open_text_encoder,
    read_model_folder,
    storing_folder,
    text_encoder_digest,
    write_model_folder,
    write_text_encoder_folder,
)
from stunet.weights.trees import flatten
from tests.experiments.runs import (
    ROOT,
    T2I,
    changed,
    parameters,
    parse,
    train_here,
    write_config,
)
from tests.tiny import UNET, save_tiny_model


@pytest.fixture
def config(tmp_path):
    """Trains a video model on 300 moving shapes, with captions that exceed 12 tokens."""
    model = save_tiny_model(tmp_path / "image", UNET.text_to_image(), num_frames=1)
    return {
        **{name: value for name, value in T2I.items() if name not in ("unet", "text_encoder")},
        "stage": "t2v",
        "init_from": str(model),
        "temporal": {"resample": (True,), "attention_layers": 1, "head_dim": 8},
        "data": T2I["data"]
        | {"data_dir": str(tmp_path / "datasets"), "num_frames": 4, "num_examples": 300},
    }


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_states_of_all_captions(config, tmp_path, capsys):
    folder = cache_text_states(parse(config))
    err = capsys.readouterr().err
    ready = data.prepare(parse(config).data)
    captions = data.captions(ready)
    assert folder == data.text_states_path(ready) and folder.name == "text_states_train"
    distinct = list(dict.fromkeys(captions))
    assert re.search(rf"300 captions, {len(distinct)} distinct\n", err)
    assert re.search(r"\d+ of 300 truncated to the 12 tokens", err)
    states = open_text_states(folder)
    assert states.shape == (len(distinct) + 1, 12, 8)
    expected = np.asarray(encode_text(load(tmp_path / "image"), ["", *distinct]))
    np.testing.assert_allclose(states.lookup(["", *distinct]), expected, rtol=1e-3, atol=1e-3)

    before = contents(folder)
    (folder / "states_00000.npy").unlink()
    cache_text_states(parse(config))
    assert contents(folder) == before
    with claim_folder(folder), pytest.raises(UserError, match=f"^{folder}: in use"):
        cache_text_states(parse(config))


def drop_unet(model, folder):
    """Writes the text encoder of a model to a folder of its own."""
    write_text_encoder_folder(folder, open_text_encoder(model))
    return folder


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def test_training_with_cached_states_never_loads_the_text_encoder(tmp_path, monkeypatch, capsys):
    """Neither on a device nor as a copy. Encoding captions in training gives equal losses."""
    t5 = drop_unet(save_tiny_model(tmp_path / "all", num_frames=4), tmp_path / "models" / "t5")
    config = {name: value for name, value in T2I.items() if name != "text_denoising"} | {
        "text_encoder": str(t5),
        "total_steps": 2,
        "sample_every": 1,
        "sample_prompts": ("a red circle",),
    }
    config = changed(config, data__data_dir=str(tmp_path / "datasets"), data__text_states=True)
    folder = cache_text_states(parse(config))
    assert open_text_states(folder).shape[1:] == (12, 8)

    vocabulary, save, live = (320, 8), train.save, []

    def save_and_record(*arguments):
        live.append({array.shape for array in jax.live_arrays()})
        save(*arguments)

    monkeypatch.setattr(train, "save", save_and_record)
    run = tmp_path / "runs" / "cached"
    assert train_here(config, run) == 0  # saves and draws a sample after each step
    assert len(live) == 2 and all((3, 3, 3, 8) in shapes for shapes in live)
    assert not any(vocabulary in shapes for shapes in live)
    assert len(files(run / "samples")) == 2
    names = ["checksums.json", "config.json", "unet_spatial.safetensors"]
    assert files(run / "initial") == names[:2] and files(run / "model") == names
    before, model = open_model_folder(run / "initial"), load(run)
    assert storing_folder(before.params["text_encoder"]) == t5
    encoder = open_text_encoder(t5)
    jax.tree.map(np.testing.assert_allclose, model.params["text_encoder"], encoder.params)
    assert model.tokenizer.vocab_size <= 320
    after = flatten(model.params["unet"])
    assert not np.array_equal(
        after["conv_in/kernel"], parameters(run, "initial")["unet/conv_in/kernel"]
    )

    # Without cached states the frozen encoder is part of the program, but not of the folders.
    live.clear()
    encoded = tmp_path / "runs" / "encoded"
    config = changed(config, data__text_states=False, sample_prompts=(), sample_every=0)
    assert train_here(config, encoded) == 0
    assert len(live) == 1 and vocabulary in live[0]
    assert files(encoded / "initial") == names[:2] and files(encoded / "model") == names
    jax.tree.map(
        np.testing.assert_array_equal,
        read_model_folder(encoded / "model").params["text_encoder"],
        encoder.params,
    )
    losses = [[row["loss"] for row in read_metrics(w / "metrics.csv")] for w in (run, encoded)]
    np.testing.assert_allclose(*losses, rtol=1e-3)
    assert losses[0][0] != losses[0][1]

    # A stage that starts from the run refers to it, and by way of it to the same folder.
    t2v = {
        "stage": "t2v",
        "init_from": str(run),
        "temporal": {"resample": (True,), "attention_layers": 1, "head_dim": 8},
        "text_encoder": None,
        "unet": None,
    }
    t2v = changed({**config, **t2v}, data__num_frames=4, data__text_states=True)
    cached = cache_text_states(parse(t2v))
    assert open_text_states(cached).encoder == open_text_states(folder).encoder
    _, encoder_config, _, params = read_networks(parse(t2v), backbone=None)
    assert encoder_config is None and params.keys() == {"unet"}
    initial = tmp_path / "runs" / "next" / "initial"
    write_initial_model(parse(t2v), initial, captions=list)
    assert files(initial) == ["checksums.json", "config.json"]
    assert json.loads((initial / "config.json").read_text())["base"] == "../../cached/model"
    assert storing_folder(open_model_folder(initial).params["text_encoder"]) == t5

    # The folder has moved, or contains another text encoder.
    (run / "DONE").unlink()
    t5.rename(tmp_path / "moved")
    config = changed(config, data__text_states=True)
    with pytest.raises(UserError, match=f"^{run}/initial: base: {t5}: .*config.json"):
        train_here(config, run)
    encoder = open_text_encoder(tmp_path / "moved")
    negative = jax.tree.map(lambda leaf: -np.asarray(leaf), encoder.params)
    write_text_encoder_folder(t5, dataclasses.replace(encoder, params=negative))
    digests = [text_encoder_digest(open_text_encoder(f).params) for f in (t5, tmp_path / "moved")]
    with pytest.raises(UserError, match=".*".join(digest[:16] for digest in digests)):
        train_here(config, run)


def test_frozen_text_encoders_that_do_not_fit(config, tmp_path):
    t5 = drop_unet(tmp_path / "image", tmp_path / "t5")
    new = changed(T2I | {"text_encoder": str(t5)}, data__data_dir=str(tmp_path / "datasets"))

    def initial(config):
        config = parse(config)
        return config.stage.initial_model(config, config.data, captions=list)

    with pytest.raises(UserError, match="text_dim is 16, .*d_model, 8$"):
        initial(changed(new, unet__text_dim=16))
    with pytest.raises(UserError, match=f"^text_encoder: {tmp_path}/absent: no such folder"):
        initial(new | {"text_encoder": f"{tmp_path}/absent"})
    with pytest.raises(UserError, match=f"^init_from|{t5}: contains a text encoder only"):
        initial(config | {"init_from": str(t5)})
    # An image model that has no text encoder gets one by name.
    model = open_model_folder(tmp_path / "image")
    silent = ModelFolder(model.config | {"text_encoder": None}, {"unet": model.params["unet"]})
    write_model_folder(tmp_path / "silent", silent)
    adapted = new | {"unet": None, "init_from": str(tmp_path / "silent")}
    adapted["diffusion"] = {"prediction": "eps"}
    started = initial(adapted)
    assert storing_folder(started.params["text_encoder"]) == t5
    assert started.config["text_encoder"] == model.config["text_encoder"]
    assert started.tokenizer == model.tokenizer
    states = cache_text_states(parse(adapted))
    digest = text_encoder_digest(model.params["text_encoder"])
    assert open_text_states(states).encoder.startswith(digest)


def test_user_errors(config, tmp_path):
    with pytest.raises(UserError, match="^--config=FILE: missing"):
        main(["cache_text"])
    silent = tmp_path / "silent"
    shutil.copytree(tmp_path / "image", silent)
    for name in ("tokenizer.json", CHECKSUMS):
        (silent / name).unlink()
    path = silent / "config.json"
    no_text = {"text_encoder": None, "tokenizer": None}
    content = json.loads(path.read_text()) | no_text
    content["weights"]["text_encoder"] = []
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"^config.init_from: {silent} .*stunet import-t5"):
        cache_text_states(parse(changed(config, init_from=str(silent), data__text_states=True)))
    with pytest.raises(UserError, match="^config.init_from: empty"):
        cache_text_states(parse(T2I | {"data": config["data"] | {"num_frames": 1}}))


@pytest.mark.cluster
def test_two_processes_write_the_states_of_one(config, tmp_path):
    """With one device each, so that rounding is the same."""
    path = write_config(tmp_path / "config.py", config)
    command = [sys.executable, "-m", "experiments.cache_text", f"--config={path}"]
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}

    def start(*options):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen([*command, *options], cwd=ROOT, env=environment, text=True, **pipes)

    def finish(*processes):
        outputs = [process.communicate(timeout=300) for process in processes]
        assert [process.returncode for process in processes] == [0] * len(processes), outputs
        return [out for out, _ in outputs]

    finish(start())
    folder = data.text_states_path(data.prepare(parse(config).data))
    expected = contents(folder)
    for file in folder.iterdir():
        file.unlink()
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    first, second = finish(*(start(f"--cluster={address},2,{number}") for number in range(2)))
    assert str(folder) in first and str(folder) not in second
    assert contents(folder) == expected
