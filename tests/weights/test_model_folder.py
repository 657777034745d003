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
from stunet.model import parameter_shapes
from stunet.schema import to_dict
from stunet.weights.bases import Base, check_base, stored_base, weights_digest
from stunet.weights.folder_config import folder_kind
from stunet.weights.low_rank import add_adapters
from stunet.weights.model_folder import (
    ModelFolder,
    StoredTextEncoder,
    open_model_folder,
    open_text_encoder,
    read_model_folder,
    storing_folder,
    text_encoder_digest,
    without_base,
    write_model_folder,
    write_text_encoder_folder,
)
from stunet.weights.safetensors_io import (
    TransformedTensor,
    open_safetensors,
    write_safetensors,
)
from stunet.weights.trees import flatten, is_added, partition, unflatten
from tests.tiny import T5, UNET, random_params, remove_checksums

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
    remove_checksums(folder)
    path = folder / "config.json"
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not ...}))


def test_round_trip_is_bit_exact(folder):
    loaded = read_model_folder(folder)
    assert loaded.config == CONFIG and loaded.tokenizer == MODEL.tokenizer
    assert_bit_equal(loaded.params, PARAMS)
    jax.tree.map(jnp.asarray, loaded.params)  # all dtypes are known to JAX


def test_steps_of_older_super_resolution_models_are_sampling_defaults(folder):
    super_resolution = {"factor": 2, "residual_scale": 0.2}
    edit_config(folder, super_resolution={**super_resolution, "steps": 2})
    config = read_model_folder(folder).config
    assert config["sampling"] == {"steps": 2} and config["super_resolution"] == super_resolution
    edit_config(folder, super_resolution=super_resolution, sampling={"sampler": "ddim"})
    assert read_model_folder(folder).config["sampling"] == {"sampler": "ddim"}


def test_spatial_and_temporal_weights_are_separate_files(folder):
    assert sorted(os.listdir(folder)) == [
        "checksums.json",
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
    remove_checksums(folder)
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
    remove_checksums(tmp_path / "m")
    with pytest.raises(
        UserError, match=r"unet_spatial-00002-of-00004\.safetensors: .*config\.json"
    ):
        read_model_folder(tmp_path / "m")


def tiny_model(unet=UNET, seed=0):
    """A model whose parameters fit its architecture."""
    config = CONFIG | {"architecture": to_dict(unet), "text_encoder": {"t5": to_dict(T5)}}
    return ModelFolder(config, random_params(parameter_shapes(unet, T5), seed), b"{}")


def test_a_base_stores_shared_parameters(tmp_path):
    base = tiny_model()
    write_model_folder(tmp_path / "base", base)
    conditional = dataclasses.replace(UNET, cond_channels=4)
    model = tiny_model(conditional, seed=1)
    new = {path: leaf for path, leaf in flatten(model.params["unet"]).items() if is_added(path)}
    unet = unflatten(flatten(base.params["unet"]) | new)
    model = dataclasses.replace(model, params={**base.params, "unet": unet})
    rest = without_base(model, tmp_path / "base")
    assert flatten(rest.params).keys() == {f"unet/{path}" for path in new}
    write_model_folder(tmp_path / "other", rest, base=tmp_path / "base")
    names = sorted(path.name for path in (tmp_path / "other").iterdir())
    assert names == ["checksums.json", "config.json", "unet_temporal.safetensors"]
    assert open_safetensors(tmp_path / "other" / "unet_temporal.safetensors").keys() == new.keys()
    again = read_model_folder(tmp_path / "other")
    assert_bit_equal(again.params, model.params)
    assert (again.config, again.tokenizer) == (model.config, model.tokenizer)

    # The image model in it has no temporal parameters, which its architecture lacks.
    images = tiny_model(UNET.text_to_image())
    images.params["unet"] = partition(base.params["unet"], is_added)[1]
    rest = without_base(images, tmp_path / "other")
    assert flatten(rest.params) == {}
    write_model_folder(tmp_path / "images", rest, base=tmp_path / "other")
    assert sorted(os.listdir(tmp_path / "images")) == ["checksums.json", "config.json"]
    assert_bit_equal(read_model_folder(tmp_path / "images").params, images.params)

    # A parameter of another value, type or shape is stored, and so is another text encoder.
    kernel = images.params["unet"]["conv_in"]["kernel"]
    for changed in (kernel + 1, kernel.astype(np.float16), kernel[..., :4]):
        params = unflatten(flatten(images.params) | {"unet/conv_in/kernel": changed})
        rest = without_base(dataclasses.replace(images, params=params), tmp_path / "other")
        assert flatten(rest.params).keys() == {"unet/conv_in/kernel"}
    encoder = flatten(images.params["text_encoder"])
    other = {**images.params, "text_encoder": jax.tree.map(np.negative, unflatten(encoder))}
    for model in (
        dataclasses.replace(images, params=other),
        dataclasses.replace(images, tokenizer=b"[]"),
    ):
        rest = without_base(model, tmp_path / "other")
        assert flatten(rest.params) == {
            f"text_encoder/{path}": leaf
            for path, leaf in flatten(model.params["text_encoder"]).items()
        }
        write_model_folder(tmp_path / "images", rest, base=tmp_path / "other")
        again = read_model_folder(tmp_path / "images")
        assert_bit_equal(again.params, model.params)
        assert again.tokenizer == model.tokenizer


def base_of(folder):
    return json.loads((folder / "config.json").read_text())["base"]


def test_an_unrelated_base_provides_its_text_encoder_only(tmp_path):
    """By a relative path, which remains valid if both folders are moved, or an absolute one."""
    base = tiny_model(dataclasses.replace(UNET, channels=(8, 8), layers_per_block=(2, 2)))
    write_model_folder(tmp_path / "all" / "models" / "base", base)
    model = tiny_model(seed=1)
    no_text = dataclasses.replace(model, params={"unet": model.params["unet"]}, tokenizer=None)
    run = tmp_path / "all" / "runs" / "one"
    write_model_folder(run / "model", no_text, base=tmp_path / "all" / "models" / "base")
    assert base_of(run / "model") == "../../../models/base"
    assert not (run / "model" / "tokenizer.json").exists()
    (tmp_path / "all").rename(tmp_path / "moved")
    folder = tmp_path / "moved" / "runs" / "one" / "model"
    expected = {"unet": model.params["unet"], "text_encoder": base.params["text_encoder"]}
    for name in (base_of(folder), str(tmp_path / "moved" / "models" / "base")):
        edit_config(folder, base=name)
        assert_bit_equal(read_model_folder(folder).params, expected)
    (tmp_path / "link").symlink_to(folder)
    assert_bit_equal(read_model_folder(tmp_path / "link").params, expected)
    # A base without a text encoder, or with another one than the model's config describes.
    write_model_folder(
        tmp_path / "images", ModelFolder(CONFIG | {"text_encoder": None}, {"unet": {}})
    )
    other = dataclasses.replace(no_text, config=no_text.config | {"text_encoder": {"t5": {}}})
    for base, model, message in (
        ("images", no_text, "images: no text encoder"),
        ("moved/models/base", other, "base: text_encoder "),
        ("moved/models/base", dataclasses.replace(no_text, tokenizer=b"[]"), "base: tokenizer"),
    ):
        with pytest.raises(UserError, match=message):
            write_model_folder(tmp_path / "new", model, base=tmp_path / base)
    assert not (tmp_path / "new").exists()


def test_missing_bases_and_loops(tmp_path):
    a, b, c = (tmp_path / name for name in "abc")
    model = tiny_model()
    no_text = dataclasses.replace(model, params={"unet": model.params["unet"]}, tokenizer=None)
    write_model_folder(a, model)
    write_model_folder(b, no_text, base=a)
    write_model_folder(c, no_text, base=b)
    assert storing_folder(open_model_folder(c).params["text_encoder"]) == a
    for base in (a, b, c):
        with pytest.raises(UserError, match=f"{base_folder_chain(a, base)}.* base is .*itself"):
            write_model_folder(a, no_text, base=base)
    edit_config(a, base="c")
    with pytest.raises(UserError, match=f"^{c}: base: {b}: base: {a}/config.json: base is 'c'"):
        read_model_folder(c)
    edit_config(a, base=...)
    a.rename(tmp_path / "gone")
    with pytest.raises(UserError, match=f"^{c}: base: {b}: base: {a}: .*config.json"):
        read_model_folder(c)


def base_folder_chain(folder, base):
    """Folders in the error of a folder that is to inherit from itself through `base`."""
    chain = {"a": "", "b": f"{folder}: base: ", "c": f"{folder}: base: {base}: base: "}
    return chain[base.name]


def test_a_base_with_another_text_encoder_than_before(tmp_path):
    model = tiny_model()
    no_text = dataclasses.replace(model, params={"unet": model.params["unet"]}, tokenizer=None)
    write_model_folder(tmp_path / "base", model)
    write_model_folder(tmp_path / "other", no_text, base=tmp_path / "base")
    before = stored_digest(tmp_path / "base")
    assert stored_digest(tmp_path / "other") == before
    write_model_folder(tmp_path / "base", tiny_model(seed=1))
    after = stored_digest(tmp_path / "base")
    with pytest.raises(
        UserError, match=f"other/config.json: .*'base'.*{after[:16]}.*{before[:16]}"
    ):
        open_model_folder(tmp_path / "other")
    for folder in ("base", "other"):  # either is of an older version
        edit_config(tmp_path / folder, text_encoder_digest=..., digest=...)
        open_model_folder(tmp_path / "other")
        edit_config(tmp_path / "base", text_encoder_digest="0" * 64)


def test_a_text_encoder_folder(tmp_path):
    model = tiny_model()
    encoder = StoredTextEncoder(
        model.config["text_encoder"], model.params["text_encoder"], model.tokenizer
    )
    folder = tmp_path / "t5"
    write_text_encoder_folder(folder, encoder)
    names = sorted(path.name for path in folder.iterdir())
    expected = ["checksums.json", "config.json", "text_encoder.safetensors", "tokenizer.json"]
    assert names == expected
    digest = text_encoder_digest(model.params["text_encoder"])
    assert stored_digest(folder) == digest and text_encoder_digest(encoder.params) == digest
    write_model_folder(tmp_path / "model", model)
    no_text = dataclasses.replace(model, params={"unet": model.params["unet"]}, tokenizer=None)
    write_model_folder(tmp_path / "derived", no_text, base=folder)
    assert_bit_equal(read_model_folder(tmp_path / "derived").params, model.params)
    for source in ("t5", "model", "derived"):
        found = open_text_encoder(tmp_path / source)
        assert (found.config, found.tokenizer) == (encoder.config, encoder.tokenizer)
        assert_bit_equal(found.params, encoder.params)
        stored_in = tmp_path / ("model" if source == "model" else "t5")
        assert storing_folder(found.params) == stored_in
        assert folder_kind(tmp_path / source) == ("text_encoder" if source == "t5" else "model")
    assert folder_kind(tmp_path) is None
    for read in (open_model_folder, read_model_folder):
        with pytest.raises(UserError, match=f"^{folder}: .*text encoder only"):
            read(folder)
    config = CONFIG | {"text_encoder": None}
    write_model_folder(tmp_path / "silent", ModelFolder(config, {"unet": {"a": np.ones(3)}}))
    with pytest.raises(UserError, match=f"^{tmp_path}/silent .*stunet import-t5"):
        open_text_encoder(tmp_path / "silent")
    for changes, message in (
        ({"text_encoder_digest": ...}, "t5/config.json: .*text_encoder_digest"),
        ({"base": "model"}, "t5/config.json: .*'base'"),
    ):
        write_text_encoder_folder(folder, encoder)
        edit_config(folder, **changes)
        with pytest.raises(UserError, match=message):
            open_text_encoder(folder)


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

    # A base's text encoder is not stored again, its digest is.
    config = CONFIG | {"architecture": to_dict(UNET)}
    write_model_folder(
        tmp_path / "style", ModelFolder(config, {"unet": {}}), base=tmp_path / "model"
    )
    assert stored_digest(tmp_path / "style") == "copied"
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

    config = CONFIG | {"architecture": to_dict(UNET), "text_encoder": None}
    kernel, bias = normal(3, 3, 3, 8), normal(8)
    base = ModelFolder(config, {"unet": {"conv_in": {"kernel": kernel, "bias": bias}}})
    write_model_folder(tmp_path / "base", base)
    down, up = normal(27, 2), normal(2, 8).astype(ml_dtypes.bfloat16)
    adapters = {"conv_in": {"kernel": {"down": down, "up": up}}}
    unet = add_adapters(base.params["unet"], adapters)
    unet["conv_in"]["bias"] = 2 * bias
    style = ModelFolder(config, {"unet": unet})
    rest = without_base(style, tmp_path / "base", adapters)
    write_model_folder(tmp_path / "style", rest, base=tmp_path / "base", adapters=adapters)
    assert list(open_safetensors(tmp_path / "style" / "unet_spatial.safetensors")) == [
        "conv_in/bias"
    ]
    again = read_model_folder(tmp_path / "style")
    assert_bit_equal(again.params, style.params)
    change = (again.params["unet"]["conv_in"]["kernel"] - kernel).reshape(27, 8)
    np.testing.assert_allclose(change, down @ up.astype(np.float32), atol=1e-5)

    wide = {"conv_in": {"kernel": {"down": down, "up": normal(2, 9)}}}
    with pytest.raises(UserError, match="base: adapters"):
        without_base(style, tmp_path / "base", wide)
    remove_checksums(tmp_path / "style")
    write_safetensors(tmp_path / "style" / "adapters.safetensors", {"gone/kernel/down": down})
    with pytest.raises(UserError, match="style: adapters"):
        read_model_folder(tmp_path / "style")


def test_an_older_model_is_replaced_completely(folder):
    extract_text_to_image = ModelFolder(CONFIG | {"stage": "t2i"}, {"unet": {"a": np.ones(3)}})
    write_model_folder(folder, extract_text_to_image)
    expected = ["checksums.json", "config.json", "unet_spatial.safetensors"]
    assert sorted(os.listdir(folder)) == expected
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
    remove_checksums(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json: .*JSON"):
        read_model_folder(folder)


@pytest.mark.parametrize("name", ["unet_spatial", "unet_temporal", "text_encoder"])
def test_damaged_weights(folder, name):
    path = folder / f"{name}.safetensors"
    content = path.read_bytes()
    remove_checksums(folder)
    for size in (0, 20, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(UserError, match=rf"{name}\.safetensors: .*safetensors file \("):
            read_model_folder(folder)
    path.unlink()
    with pytest.raises(UserError, match=rf"{name}\.safetensors: .*config\.json"):
        read_model_folder(folder)


def test_missing_files(folder, tmp_path):
    remove_checksums(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer\.json: .*No such file"):
        read_model_folder(folder)
    with pytest.raises(UserError, match=r"nowhere: .*config\.json"):
        read_model_folder(tmp_path / "nowhere")


def test_a_base_with_other_weights_than_before(tmp_path):
    config = CONFIG | {"architecture": to_dict(UNET), "text_encoder": None}
    kernel = np.ones((3, 3, 3, 8), np.float32)
    base = ModelFolder(config, {"unet": {"conv_in": {"kernel": kernel}}})
    empty = ModelFolder(config, {"unet": {}})
    write_model_folder(tmp_path / "base", base)
    write_model_folder(tmp_path / "derived", empty, base=tmp_path / "base")
    write_model_folder(tmp_path / "last", empty, base=tmp_path / "derived")
    before = weights_digest(tmp_path / "base")
    check_base(tmp_path / "derived")

    other = ModelFolder(config, {"unet": {"conv_in": {"kernel": kernel + 1}}})
    write_model_folder(tmp_path / "base", other)
    after = weights_digest(tmp_path / "base")
    message = f"derived/config.json: base {tmp_path}/base .*{after[:16]}.*{before[:16]}"
    for folder in ("derived", "last"):
        with pytest.raises(UserError, match=message):
            open_model_folder(tmp_path / folder)

    edit_config(tmp_path / "base", digest=...)  # of an older version
    write_model_folder(tmp_path / "derived", empty, base=tmp_path / "base")
    check_base(tmp_path / "derived")
    write_model_folder(tmp_path / "base", base)
    edit_config(tmp_path / "base", digest=...)
    open_model_folder(tmp_path / "derived")  # reads no weights
    with pytest.raises(UserError, match="has other weights"):
        check_base(tmp_path / "derived")


def test_kernels_of_a_base_in_another_type(tmp_path):
    config = CONFIG | {"architecture": to_dict(UNET), "text_encoder": None}
    kernel, bias = noise((3, 3, 3, 8), np.float32), noise((8,), np.float32)
    unet = {"conv_in": {"kernel": kernel, "bias": bias}}
    write_model_folder(tmp_path / "base", ModelFolder(config, {"unet": unet}))
    empty = ModelFolder(config, {"unet": {}})
    write_model_folder(tmp_path / "derived", empty, base=tmp_path / "base", base_dtype="bfloat16")
    assert stored_base(tmp_path / "derived") == Base(tmp_path / "base", True, "bfloat16")
    inherited = open_model_folder(tmp_path / "derived").params["unet"]["conv_in"]
    assert_bit_equal(inherited, {"kernel": kernel.astype(ml_dtypes.bfloat16), "bias": bias})
    part = (slice(1, 2), slice(None), slice(0, 3), slice(4, 8))
    expected = kernel[part].astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(inherited["kernel"][part], expected)
    twice = np.asarray(inherited["kernel"].astype("float32"))
    np.testing.assert_array_equal(twice, kernel.astype(ml_dtypes.bfloat16).astype(np.float32))

    write_model_folder(tmp_path / "text", empty, base=tmp_path / "base", base_unet=False)
    assert open_model_folder(tmp_path / "text").params["unet"] == {}
