"""From published weights to a trained video model, with `inflate_if.py`."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest

from data import pipeline as data
from experiments.cache_text import cache_text_states
from experiments.configs import inflate_if
from stunet import cli
from stunet.errors import UserError
from stunet.model import load
from stunet.training.text_cache import check_text_states
from stunet.video_io import write_video
from stunet.weights.model_folder import read_model_folder, text_encoder_digest
from stunet.weights.trees import is_temporal
from tests.experiments.runs import changed, parameters, parse, train_here
from tests.parity import cases, folders
from tests.tiny import remove_checksums


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Two captioned videos of noise."""
    folder = tmp_path_factory.mktemp("clips")
    for i in range(2):
        video = np.clip(cases.noise(f"clip {i}", 8, 16, 16, 3), -1, 1)
        write_video(folder / f"{i}.mp4", video, fps=16)
        (folder / f"{i}.txt").write_text(f"noise number {i}")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    source = folders.write_pipeline(tmp_path_factory.mktemp("hub") / "IF", unet=cases.SMALL)
    assert cli.main(["import-if", str(source), str(source.with_name("model"))]) == 0
    return source.with_name("model")


@pytest.fixture(scope="module")
def config(clips, model):
    """The config with few small frames."""
    config = inflate_if.get_config().to_dict()
    temporal = {"resample": (True,), "attention_layers": 1, "head_dim": 16}
    return changed(
        config,
        init_from=str(model),
        temporal=temporal,
        data__source=str(clips),
        data__data_dir=str(clips.with_name("datasets")),
        data__num_frames=4,
        data__resolution=8,
        batch_size=2,
        total_steps=2,
        optimizer__warmup_steps=0,
    )


def test_training_on_cached_text_states(config, model, tmp_path):
    """In bfloat16, with rematerialised blocks, without running the text encoder."""
    ready = data.prepare(parse(config).data)
    folder = data.text_states_path(ready)
    with pytest.raises(UserError, match="text_states_train: .*cache_text"):
        train_here(config, tmp_path / "run")
    assert cache_text_states(parse(config)) == folder
    assert train_here(config, tmp_path / "run") == 0
    before, after = (parameters(tmp_path / "run", name) for name in ("initial", "model"))
    for name, leaf in after.items():
        assert np.array_equal(leaf, before[name]) != is_temporal(name), name
    trained, imported = load(tmp_path / "run"), load(model)
    assert trained.unet.dtype == "bfloat16" and trained.variance == "fixed_small"
    assert trained.threshold == imported.threshold
    assert trained.text_encoder_digest == imported.text_encoder_digest
    # States of another text encoder are refused.
    params = {**imported.params, "text_encoder": {"shared": {"embedding": np.zeros((1, 1))}}}
    with pytest.raises(UserError, match=f"{re.escape(str(folder))}: .*another"):
        check_text_states(folder, dataclasses.replace(imported, params=params))
    check_text_states(folder, dataclasses.replace(imported, text_encoder=None, params={}))


def test_importing_a_text_encoder_replaces_the_digest(model, tmp_path):
    target = tmp_path / "model"
    shutil.copytree(model, target)
    path = target / "config.json"
    remove_checksums(target)
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"text_encoder_digest": "of another"}))
    text = model.with_name("IF") / "text_encoder"
    assert cli.main(["import-t5", str(text), str(target)]) == 0
    expected = text_encoder_digest(read_model_folder(model).params["text_encoder"])
    assert json.loads(path.read_text())["text_encoder_digest"] == expected
    assert content["text_encoder_digest"] == expected


def test_a_model_without_text_encoder_needs_cached_states(config, model, tmp_path):
    assert cli.main(["import-if", str(model.with_name("IF") / "unet"), str(tmp_path / "m")]) == 0
    config = changed(config, init_from=str(tmp_path / "m"))
    started = initial_model(config)
    assert started.config["text_encoder"] is None and started.tokenizer is None
    assert started.config["architecture"]["dtype"] == "bfloat16"
    config = changed(config, data__text_states=False)
    with pytest.raises(UserError, match=f"init_from: {tmp_path}/m .*captions.*stunet import-t5"):
        initial_model(config)


def initial_model(config):
    config = parse(config)
    return config.stage.initial_model(config, config.data, captions=list)
