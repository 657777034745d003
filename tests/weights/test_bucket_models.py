"""Model folders in a bucket."""

import dataclasses
import json

import jax
import ml_dtypes
import numpy as np
import pytest

from stunet import paths
from stunet.errors import UserError
from stunet.weights import bucket_tensors
from stunet.weights.find_model import find_model_folder
from stunet.weights.model_folder import (
    open_model_folder,
    read_model_folder,
    storing_folder,
    text_encoder_digest,
    without_base,
    write_model_folder,
)
from stunet.weights.safetensors_io import open_safetensors, write_safetensors
from stunet.weights.trees import flatten
from tests.tiny import save_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return read_model_folder(save_tiny_model(tmp_path_factory.mktemp("bucket") / "model"))


@pytest.fixture
def folder(bucket):
    return paths.user_path(bucket) / "models/tiny"


def assert_equal(found, expected):
    assert (found.config, found.tokenizer) == (expected.config, expected.tokenizer)
    found, expected = flatten(found.params), flatten(expected.params)
    assert found.keys() == expected.keys()
    for path, leaf in expected.items():
        np.testing.assert_array_equal(np.asarray(found[path]), leaf)


def test_round_trip(model, folder, bucket):
    write_model_folder(str(folder), model, shard_bytes=2000)
    names = paths.list_objects(folder.parent)
    assert sum("unet_spatial-" in name for name in names) > 2
    assert all(name.startswith("tiny/") for name in names)
    assert_equal(read_model_folder(str(folder)), model)
    opened = open_model_folder(folder)
    assert storing_folder(opened.params["text_encoder"]) == folder
    stored = json.loads((folder / "config.json").read_text())["text_encoder_digest"]
    assert text_encoder_digest(opened.params["text_encoder"]) == stored
    write_model_folder(folder, model)  # replaces it, with fewer files
    assert sorted(paths.list_objects(folder)) == [
        "checksums.json",
        "config.json",
        "text_encoder.safetensors",
        "tokenizer.json",
        "unet_spatial.safetensors",
        "unet_temporal.safetensors",
    ]
    assert find_model_folder(str(folder)) == folder
    workdir = paths.user_path(bucket) / "run"
    write_model_folder(workdir / "model", model)
    assert str(find_model_folder(str(workdir))) == f"{workdir}/model"


def test_tensors_and_their_slices(bucket, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    tensors = {
        "a": rng.normal(size=(40, 5, 6)).astype(np.float32),
        "b": rng.normal(size=(3,)).astype(ml_dtypes.bfloat16),
        "c": np.array(True),
        "d": rng.normal(size=(50, 7)).astype(np.float16),
        "e": np.zeros((0, 4), np.int8),
    }
    write_safetensors(tmp_path / "x.safetensors", tensors, {"format": "pt"})
    path = paths.user_path(bucket) / "x.safetensors"
    paths.upload_file(tmp_path / "x.safetensors", path)
    monkeypatch.setattr(bucket_tensors, "_BLOCK_BYTES", 256)  # tensors in one block, in two, direct
    lazy, local = open_safetensors(path), open_safetensors(tmp_path / "x.safetensors")
    for name, tensor in tensors.items():
        assert (lazy[name].shape, lazy[name].dtype) == (tensor.shape, tensor.dtype)
        np.testing.assert_array_equal(np.asarray(lazy[name]), tensor)
    for name, index in (
        ("a", np.s_[7:33, :, :]),
        ("a", np.s_[0:2, 1:3, 2:]),
        ("d", np.s_[49:50, :]),
        ("b", (slice(1, 3),)),
    ):
        np.testing.assert_array_equal(lazy[name][index], tensors[name][index])
        np.testing.assert_array_equal(lazy[name][index], local[name][index])
    assert lazy == open_safetensors(path)
    paths.upload_file(tmp_path / "x.safetensors", path)
    bucket_tensors._read_block.cache_clear()
    for name in "ad":
        with pytest.raises(UserError, match=f"^{path}: has been replaced"):
            np.asarray(lazy[name])


@pytest.mark.parametrize(
    "content", [b"", b"1234567", b"\0" * 30, (99).to_bytes(8, "little") + b"{}", None, b"v"]
)
def test_damaged_file(bucket, tmp_path, content):
    path = paths.user_path(bucket) / "x.safetensors"
    if content is None:
        write_safetensors(tmp_path / "x", {"a": np.zeros(9)})
        content = (tmp_path / "x").read_bytes()[:-1]
    if content == b"v":
        content = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    paths.write_bytes(path, content)
    with pytest.raises(UserError, match=f"^{path}: (not a complete safetensors|is a Git LFS)"):
        open_safetensors(path)


def test_bases(model, folder, bucket, bucket_server, tmp_path):
    from tests.bucket_server import create_bucket

    write_model_folder(folder, model)
    params = jax.tree.map(np.copy, model.params)
    params["unet"]["conv_in"]["bias"] += 1
    changed = dataclasses.replace(model, params=params)
    create_bucket(bucket_server, f"{folder.parts[2]}-b")
    for derived, name in (
        (folder.with_name("derived"), "tiny"),
        (folder.parent / "runs/x/model", "../../../tiny"),
        (paths.user_path(f"{bucket}-b/derived"), str(folder)),
        (tmp_path / "derived", str(folder)),
    ):
        write_model_folder(derived, without_base(changed, folder), base=folder)
        assert json.loads((derived / "config.json").read_text())["base"] == name
        assert_equal(read_model_folder(derived), changed)
    local = tmp_path / "base"
    write_model_folder(local, model)
    with pytest.raises(UserError, match=f"^{folder}: base {local} .*expected a base in a bucket"):
        write_model_folder(folder, without_base(changed, local), base=local)
    assert_equal(read_model_folder(folder), model)
    paths.write_text(folder / "config.json", "{}")
    with pytest.raises(UserError, match=f"{folder}/config.json: damaged"):
        read_model_folder(folder.with_name("derived"))
    (folder / "checksums.json").unlink()
    with pytest.raises(UserError, match=f"{folder}/config.json: format_version"):
        read_model_folder(folder.with_name("derived"))


def test_folders_that_are_no_models(model, folder, bucket):
    with pytest.raises(UserError, match=f"^{folder}: no such folder"):
        find_model_folder(str(folder))
    paths.write_text(folder / "notes.txt", "mine")
    with pytest.raises(UserError, match=f"^{folder}: no model found"):
        find_model_folder(str(folder))
    with pytest.raises(UserError, match=f"^{folder}: contains 'notes.txt'"):
        write_model_folder(folder, model)
    with pytest.raises(UserError, match=f"^{bucket}: not a valid model folder"):
        write_model_folder(bucket, model)
    with pytest.raises(UserError, match=r"^gs://no-such-bucket/.*does not exist"):
        write_model_folder("gs://no-such-bucket/model", model)
    with pytest.raises(UserError, match=r"^gs://no-such-bucket/.*does not exist"):
        find_model_folder("gs://no-such-bucket/model")
    assert paths.list_objects(folder.parent) == {"tiny/notes.txt": 4}
