import dataclasses
import hashlib
import json
import os

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from stunet.errors import UserError
from stunet.weights.low_rank import add_adapters
from stunet.weights.model_folder import (
    ModelFolder,
    open_model_folder,
    read_model_folder,
    text_encoder_digest,
    write_model_folder,
)
from stunet.weights.safetensors_io import (
    TransformedTensor,
    open_safetensors,
    write_safetensors,
)
from stunet.weights.trees import flatten, is_added, partition

CONFIG = {
    "architecture": {"block_out_channels": [32, 64], "temporal": {"hidden": 1}},
    "stage": "t2v",
    "resolution": 32,
    "num_frames": 16,
    "fps": 8,
    "schedule": {"name": "cosine"},
    "prediction": "eps",
    "variance": "fixed_small",
    "text_encoder": {"d_model": 16},
}


def noise(shape, dtype, seed=0):
    """Arbitrary bit patterns, including NaN and infinities."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer(np.random.default_rng(seed).bytes(size), dtype).reshape(shape)


PARAMS = {
    "unet": {
        "conv_in": {"kernel": noise((3, 3, 3, 8), np.float32), "bias": noise((8,), np.float32)},
        "down_0": {
            "conv": {"kernel": noise((8, 8), ml_dtypes.bfloat16)},
            "temporal_0": {"proj": {"kernel": noise((3, 8, 8), np.float32)}},
        },
        "temporal_mid": {"scale": noise((), np.float32)},
    },
    "text_encoder": {"shared": {"embedding": noise((50, 16), np.float32)}},
}
MODEL = ModelFolder(CONFIG, PARAMS, b'{"tokenizer": 1}')


def assert_bit_equal(a, b):
    a, b = flatten(a), flatten(b)
    assert a.keys() == b.keys()
    for path in a:
        assert a[path].dtype == b[path].dtype and a[path].shape == b[path].shape, path
        assert np.asarray(a[path]).tobytes() == np.asarray(b[path]).tobytes(), path


@pytest.fixture
def folder(tmp_path):
    write_model_folder(tmp_path / "model", MODEL)
    return tmp_path / "model"


def edit_config(folder, **changes):
    path = folder / "config.json"
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not ...}))


def test_round_trip_is_bit_exact(folder):
    loaded = read_model_folder(folder)
    assert loaded.config == CONFIG and loaded.tokenizer == MODEL.tokenizer
    assert_bit_equal(loaded.params, PARAMS)
    jax.tree.map(jnp.asarray, loaded.params)  # all dtypes are known to JAX


def test_spatial_and_temporal_weights_are_separate_files(folder):
    assert sorted(os.listdir(folder)) == [
        "config.json",
        "text_encoder.safetensors",
        "tokenizer.json",
        "unet_spatial.safetensors",
        "unet_temporal.safetensors",
    ]
    assert os.listdir(folder.parent) == ["model"]
    content = (folder / "unet_spatial.safetensors").read_bytes()
    assert b"down_0/conv/kernel" in content and b"temporal" not in content
    content = (folder / "unet_temporal.safetensors").read_bytes()
    assert b"down_0/temporal_0/proj/kernel" in content and b"down_0/conv" not in content


def test_all_files_have_the_same_permissions(folder):
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1


def test_overlapping_weight_files(folder):
    spatial = folder / "unet_spatial.safetensors"
    (folder / "unet_temporal.safetensors").write_bytes(spatial.read_bytes())
    with pytest.raises(UserError, match=r"unet_spatial.*unet_temporal.*conv_in/bias"):
        read_model_folder(folder)


def test_jax_arrays_and_other_memory_orders(tmp_path):
    matrix = np.arange(6, dtype=np.float32).reshape(2, 3)
    unet = {"a": matrix.T, "b": jnp.asarray(matrix, jnp.bfloat16), "c": matrix[:, ::2]}
    write_model_folder(tmp_path / "m", ModelFolder(CONFIG, {"unet": unet}))
    loaded = read_model_folder(tmp_path / "m")
    assert_bit_equal(loaded.params, {"unet": unet})
    assert loaded.tokenizer is None


def test_shards(tmp_path):
    unet = {f"layer_{i}": noise((100,), np.float32, seed=i) for i in range(5)}
    unet["large"] = noise((600,), np.float32)
    write_model_folder(tmp_path / "m", ModelFolder(CONFIG, {"unet": unet}), shard_bytes=1000)
    files = sorted((tmp_path / "m").glob("*.safetensors"))
    names = [f"unet_spatial-0000{i}-of-00004.safetensors" for i in (1, 2, 3, 4)]
    assert [file.name for file in files] == names
    assert_bit_equal(read_model_folder(tmp_path / "m").params["unet"], unet)
    files[1].unlink()
    with pytest.raises(
        UserError, match=r"unet_spatial-00002-of-00004\.safetensors: .*config\.json"
    ):
        read_model_folder(tmp_path / "m")


def test_a_base_stores_shared_parameters(tmp_path):
    write_model_folder(tmp_path / "base", MODEL)
    temporal = {"temporal_mid": {"scale": noise((), np.float32, 1)}}
    new = {"cond_conv_in": {"kernel": noise((3, 3, 4, 8), np.float32)}}
    params = {**PARAMS, "unet": {**PARAMS["unet"], **temporal, **new}}
    write_model_folder(
        tmp_path / "other", ModelFolder(CONFIG, params, MODEL.tokenizer), base="base"
    )
    names = sorted(path.name for path in (tmp_path / "other").iterdir())
    assert names == ["config.json", "unet_temporal.safetensors"]
    stored = open_safetensors(tmp_path / "other" / "unet_temporal.safetensors")
    assert sorted(stored) == ["cond_conv_in/kernel", "temporal_mid/scale"]
    again = read_model_folder(tmp_path / "other")
    assert_bit_equal(again.params, params)
    assert (again.config, again.tokenizer) == (CONFIG, MODEL.tokenizer)

    images = partition(PARAMS["unet"], is_added)[1]
    config = CONFIG | {"architecture": {"temporal": None}}
    model = ModelFolder(config, {**PARAMS, "unet": images}, MODEL.tokenizer)
    write_model_folder(tmp_path / "images", model, base="base")
    assert [path.name for path in (tmp_path / "images").iterdir()] == ["config.json"]
    assert_bit_equal(read_model_folder(tmp_path / "images").params, model.params)

    changed = {**params, "text_encoder": {"shared": {"embedding": noise((50, 16), np.float32, 2)}}}
    for wrong, message in (
        (ModelFolder(CONFIG, changed, MODEL.tokenizer), "text_encoder/shared/embedding.*differ"),
        (ModelFolder(CONFIG, {"unet": params["unet"]}, MODEL.tokenizer), "unexpected: text_enc"),
        (ModelFolder(CONFIG, params, b"{}"), "base: tokenizer"),
        (ModelFolder(CONFIG, model.params, MODEL.tokenizer), "unexpected: unet/down_0/temporal_0"),
    ):
        with pytest.raises(UserError, match=message):
            write_model_folder(tmp_path / "other", wrong, base="base")
    assert_bit_equal(read_model_folder(tmp_path / "other").params, params)
    (tmp_path / "base").rename(tmp_path / "gone")
    with pytest.raises(UserError, match=r"other: base: .*base: .*config\.json"):
        read_model_folder(tmp_path / "other")
    path = tmp_path / "other" / "config.json"
    for base in ("../gone", "other"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "base": base}))
        with pytest.raises(UserError, match=f"base is '{base}'"):
            read_model_folder(tmp_path / "other")


def stored_digest(folder):
    return json.loads((folder / "config.json").read_text()).get("text_encoder_digest")


def test_the_digest_is_that_of_the_text_encoder_in_the_folder(folder, tmp_path):
    embedding = PARAMS["text_encoder"]["shared"]["embedding"]
    digest = hashlib.sha256(b"shared/embedding" + embedding.tobytes()).hexdigest()
    assert stored_digest(folder) == digest == text_encoder_digest(PARAMS["text_encoder"])
    write_model_folder(tmp_path / "no_text", ModelFolder(CONFIG, {"unet": PARAMS["unet"]}))
    assert stored_digest(tmp_path / "no_text") is None

    edit_config(folder, text_encoder_digest="copied")  # instead of computed
    lazy = open_model_folder(folder)
    copies = {
        "same": lazy.params["text_encoder"],
        "read": jax.tree.map(np.asarray, lazy.params["text_encoder"]),
        "with another tensor": {**lazy.params["text_encoder"], "norm": embedding[0]},
        "transformed": jax.tree.map(
            lambda leaf: TransformedTensor(leaf, leaf.shape, np.negative),
            lazy.params["text_encoder"],
        ),
        "renamed": {"other": lazy.params["text_encoder"]["shared"]},
    }
    for name, params in copies.items():
        copy = dataclasses.replace(lazy, params={**lazy.params, "text_encoder": params})
        write_model_folder(tmp_path / name, copy)
        stored = read_model_folder(tmp_path / name).params["text_encoder"]
        expected = "copied" if name == "same" else text_encoder_digest(stored)
        assert stored_digest(tmp_path / name) == expected, name

    # A base's text encoder and its digest are not stored again.
    write_model_folder(tmp_path / "style", MODEL, base="model")
    assert stored_digest(tmp_path / "style") is None
    inherited = open_model_folder(tmp_path / "style").params["text_encoder"]
    assert text_encoder_digest(inherited) == "copied"
    edit_config(folder, text_encoder_digest=...)  # a folder of an older version
    assert text_encoder_digest(inherited) == digest
    write_model_folder(tmp_path / "new", lazy)
    assert stored_digest(tmp_path / "new") == digest
    edit_config(folder, text_encoder_digest=1)
    with pytest.raises(UserError, match="text_encoder_digest is 1"):
        open_model_folder(folder)


def test_differences_from_a_base_are_stored_as_adapters_or_in_full(tmp_path):
    rng = np.random.default_rng(0)

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    kernel, bias = normal(3, 3, 3, 8), normal(8)
    base = ModelFolder(CONFIG, {"unet": {"conv_in": {"kernel": kernel, "bias": bias}}})
    write_model_folder(tmp_path / "base", base)
    down, up = normal(27, 2), normal(2, 8).astype(ml_dtypes.bfloat16)
    adapters = {"conv_in": {"kernel": {"down": down, "up": up}}}
    unet = add_adapters(base.params["unet"], adapters)
    unet["conv_in"]["bias"] = 2 * bias
    style = ModelFolder(CONFIG, {"unet": unet})
    write_model_folder(tmp_path / "style", style, base="base", adapters=adapters)
    assert list(open_safetensors(tmp_path / "style" / "unet_spatial.safetensors")) == [
        "conv_in/bias"
    ]
    again = read_model_folder(tmp_path / "style")
    assert_bit_equal(again.params, style.params)
    change = (again.params["unet"]["conv_in"]["kernel"] - kernel).reshape(27, 8)
    np.testing.assert_allclose(change, down @ up.astype(np.float32), atol=1e-5)

    wide = {"conv_in": {"kernel": {"down": down, "up": normal(2, 9)}}}
    with pytest.raises(UserError, match="base: adapters"):
        write_model_folder(tmp_path / "other", style, base="base", adapters=wide)
    write_safetensors(tmp_path / "style" / "adapters.safetensors", {"gone/kernel/down": down})
    with pytest.raises(UserError, match="style: adapters"):
        read_model_folder(tmp_path / "style")


def test_an_older_model_is_replaced_completely(folder):
    extract_text_to_image = ModelFolder(CONFIG | {"stage": "t2i"}, {"unet": {"a": np.ones(3)}})
    write_model_folder(folder, extract_text_to_image)
    assert sorted(os.listdir(folder)) == ["config.json", "unet_spatial.safetensors"]
    assert read_model_folder(folder).config["stage"] == "t2i"
    assert os.listdir(folder.parent) == ["model"]


def test_a_failed_write_keeps_the_older_model(folder):
    class Broken:
        shape, dtype, nbytes = (1,), np.float32, 4

        def __array__(self, dtype=None, copy=None):
            raise OSError("No space left on device")

    broken = dataclasses.replace(MODEL, params={"unet": {"a": np.ones(3), "b": Broken()}})
    with pytest.raises(UserError, match=r"model: .*\(No space left"):
        write_model_folder(folder, broken)
    assert_bit_equal(read_model_folder(folder).params, PARAMS)
    assert os.listdir(folder.parent) == ["model"]


def test_other_folders_are_not_replaced(folder):
    (folder / "holiday.mp4").touch()
    with pytest.raises(UserError, match=r"model: .*'holiday\.mp4'"):
        write_model_folder(folder, MODEL)
    assert (folder / "holiday.mp4").exists()
    with pytest.raises(UserError, match=r"config\.json: is a file"):
        write_model_folder(folder / "config.json", MODEL)


def test_unwritable_place(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file.model: .*Not a directory"):
        write_model_folder(tmp_path / "file" / "model", MODEL)


def test_config_is_checked_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match=r"config: .*'fsp'.*'fps'"):
        write_model_folder(tmp_path / "m", dataclasses.replace(MODEL, config=CONFIG | {"fsp": 1}))
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stage": ...}, r"config\.json: .*missing.* stage"),
        ({"num_frame": 3}, r"config\.json: .*'num_frame'.*'num_frames'"),
        ({"resolution": "32"}, r"config\.json: resolution.*'32'.* int"),
        ({"format_version": 2}, r"config\.json: format_version.* 2, .* 1;"),
        ({"format_version": ...}, r"config\.json: format_version.* None, .*integer"),
        ({"weights": {"unet_spatial": []}}, "weights: .*unet_temporal, text_encoder"),
        ({"tokenizer": "../t.json"}, "tokenizer.*'../t.json'.*'tokenizer.json'"),
        (
            {"weights": {"unet_spatial": ["../x"], "unet_temporal": [], "text_encoder": []}},
            r"config\.json: weights\.unet_spatial: .*'\.\./x'.*unet_spatial\.safetensors",
        ),
    ],
)
def test_bad_config(folder, changes, message):
    edit_config(folder, **changes)
    with pytest.raises(UserError, match=message):
        read_model_folder(folder)


def test_config_with_invalid_json(folder):
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json: .*JSON"):
        read_model_folder(folder)


@pytest.mark.parametrize("name", ["unet_spatial", "unet_temporal", "text_encoder"])
def test_damaged_weights(folder, name):
    path = folder / f"{name}.safetensors"
    content = path.read_bytes()
    for size in (0, 20, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(UserError, match=rf"{name}\.safetensors: .*safetensors file \("):
            read_model_folder(folder)
    path.unlink()
    with pytest.raises(UserError, match=rf"{name}\.safetensors: .*config\.json"):
        read_model_folder(folder)


def test_missing_files(folder, tmp_path):
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer\.json: .*No such file"):
        read_model_folder(folder)
    with pytest.raises(UserError, match=r"nowhere: .*config\.json"):
        read_model_folder(tmp_path / "nowhere")
