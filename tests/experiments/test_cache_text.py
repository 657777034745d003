"""The command `experiments.cache_text`, in one process and in a cluster."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest

from data import pipeline as data
from experiments.cache_text import cache_text_states, main
from stunet.engine.sampling import encode_text
from stunet.errors import UserError
from stunet.model import load
from stunet.text_states import open_text_states
from stunet.training.claim import claim_folder
from tests.experiments.runs import ROOT, T2I, changed, parse, write_config
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


def test_user_errors(config, tmp_path):
    with pytest.raises(UserError, match="^--config=FILE: missing"):
        main(["cache_text"])
    silent = tmp_path / "silent"
    shutil.copytree(tmp_path / "image", silent)
    (silent / "tokenizer.json").unlink()
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
