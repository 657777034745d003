import json
import shutil

import jax
import numpy as np
import pytest

from stunet.diffusion import SamplingDefaults
from stunet.errors import UserError
from stunet.model import load
from stunet.weights.trees import flatten
from tests.tiny import FPS, NUM_FRAMES, UNET, remove_checksums, save_tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model") / "model")


def test_load_accepts_a_model_folder_or_a_workdir(folder, tmp_path):
    model = load(folder)
    assert (model.unet, model.num_frames, model.fps) == (UNET, NUM_FRAMES, FPS)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(model.params))
    (tmp_path / "checkpoints").mkdir()
    shutil.copytree(folder, tmp_path / "model")
    again = flatten(load(tmp_path).params)
    for path, leaf in flatten(model.params).items():
        np.testing.assert_array_equal(again[path], leaf)


def test_sampling_defaults(folder, tmp_path):
    assert load(folder).sampling == SamplingDefaults("dpm2m", None, 4.0)
    # A sampler from outside the package is imported when it is used.
    sampling = {"sampler": "nowhere:Euler", "steps": 3, "guidance_scale": 2.5}
    model = load(save_tiny_model(tmp_path / "model", sampling=sampling))
    assert model.sampling == SamplingDefaults("nowhere:Euler", 3, 2.5)


def test_missing_models(tmp_path):
    with pytest.raises(UserError, match="nowhere: .*shapes, shapes-fill, shapes-ssr, "):
        load(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"config\.json .*model/"):
        load(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match=r"model/.*checkpoint"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prediction": "noise"}, r"config\.json: prediction.*'noise'.*eps, x0, v"),
        ({"variance": "learned"}, r"config\.json: variance.*'learned'.*fixed_small"),
        ({"variance": "learned_range"}, r"out_channels.* 3, .* 6 .*'learned_range'"),
        ({"num_frames": 3}, r"config\.json: num_frames.* 3,.* 2 .*stride"),
        ({"text_encoder": None}, r"tokenizer.* no text_encoder"),
        ({"sampling": {"sampler": "euler"}}, r"config\.json: sampling: .*'euler'.*dpm2m, ddim"),
        ({"sampling": {"steps": 0}}, r"config\.json: sampling: steps: 0, .* 1"),
        ({"sampling": {"guidance": 2.0}}, r"config\.json: sampling: .*'guidance'"),
        ({"schedule": {"kind": "linear"}}, r"config\.json: schedule: .*'linear'.*cosine"),
        ({"architecture.text_dim": 16}, r"text_dim.* 16, .*d_model.* 8"),
        ({"architecture.in_channels": 6}, r"in_channels.* 6 .*False, .* 3 .*without super"),
        ({"text_encoder.t5.vocab_size": 8}, r"vocab_size.* 8, .* 30\d "),
        ({"architecture.widths": [8]}, r"config\.json: architecture: .*'widths'"),
        (
            {"architecture.head_dim": 4, "architecture.channels": [8, 24]},
            r"wrong shape: unet/down_1_.*\(expected \(.*24.*\), got \(.*16.*\)\)",
        ),
    ],
)
def test_contradictory_configs(folder, tmp_path, change, message):
    broken = tmp_path / "model"
    shutil.copytree(folder, broken)
    config = json.loads((broken / "config.json").read_text())
    for name, value in change.items():
        *sections, field = name.split(".")
        section = config
        for key in sections:
            section = section[key]
        section[field] = value
    remove_checksums(broken)
    (broken / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=message) as error:
        load(broken)
    assert str(broken) in str(error.value) and "\n" not in str(error.value)


def test_a_git_lfs_pointer_in_place_of_a_file(folder, tmp_path):
    for name in sorted(path.name for path in folder.iterdir()):
        copy = tmp_path / name
        shutil.copytree(folder, copy)
        (copy / name).write_text("version https://git-lfs.github.com/spec/v1\nsize 1\n")
        with pytest.raises(UserError, match=rf"{name}/{name}: .*git lfs pull"):
            load(copy)


def test_home_directory(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert load(f"~/{folder.name}").unet == UNET
