"""From published weights to a trained video model, with `inflate_if.py`."""

import dataclasses
import functools
import re

import numpy as np
import pytest

from data import pipeline as data
from experiments.configs import inflate_if
from stunet import cli
from stunet.engine.sampling import encode_text
from stunet.errors import UserError
from stunet.model import load
from stunet.training.text_cache import check_text_states, write_text_states
from stunet.video_io import write_video
from stunet.weights.model_folder import read_model_folder
from stunet.weights.trees import flatten, is_temporal
from tests.experiments.runs import changed, parse, train_here
from tests.parity import cases, folders


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
    data_config = parse(config).data
    data.prepare(data_config)
    with pytest.raises(UserError, match="text_states_train.npy: .*cache_text"):
        train_here(config, tmp_path / "run")
    imported = load(model)
    path = data.text_states_path(data_config)
    encode = functools.partial(encode_text, imported)
    write_text_states(path, data.captions(data_config), imported, encode)
    assert train_here(config, tmp_path / "run") == 0
    before, after = (
        flatten(read_model_folder(tmp_path / "run" / name).params) for name in ("initial", "model")
    )
    for name, leaf in after.items():
        assert np.array_equal(leaf, before[name]) != is_temporal(name), name
    trained = load(tmp_path / "run")
    assert trained.unet.dtype == "bfloat16" and trained.variance == "fixed_small"
    assert trained.threshold == imported.threshold
    # States of another text encoder are refused.
    params = {**imported.params, "text_encoder": {"shared": {"embedding": np.zeros((1, 1))}}}
    with pytest.raises(UserError, match=f"{re.escape(str(path))}: .*another"):
        check_text_states(path, dataclasses.replace(imported, params=params))
    check_text_states(path, dataclasses.replace(imported, text_encoder=None, params={}))


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
