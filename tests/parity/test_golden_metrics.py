"""Networks of the metrics reproduce the outputs of PyTorch that are stored in `golden/`."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from stunet.errors import UserError
from stunet.evaluation.c3d import C3D, load_c3d
from stunet.evaluation.clip import MEAN, STD, init_clip, load_clip
from stunet.evaluation.clip_network import ImageEncoder, TextEncoder, clip_config
from stunet.evaluation.features import Resize
from stunet.evaluation.i3d import I3D, load_i3d
from stunet.evaluation.torch_weights import load_parameters, open_torch_weights, torch_parameters
from tests.parity import metric_cases as cases
from tests.tiny import fast_compiles


@pytest.fixture(scope="module", autouse=True)
def _fast_compiles():
    with fast_compiles():
        yield


def golden(name):
    return np.load(cases.GOLDEN / f"{name}.npy")


def assert_close(got, expected, tolerance=1e-5):
    assert got.shape == expected.shape and expected.std() > 0.05
    assert np.abs(got - expected).max() <= tolerance * np.abs(expected).max()


def shapes(network, *inputs):
    return jax.eval_shape(lambda: network.init(jax.random.key(0), *inputs)["params"])


NETWORKS = {
    "i3d": (I3D(cases.I3D_STEM), cases.I3D_SHAPE),
    "c3d": (C3D(cases.C3D_WIDTH), cases.C3D_SHAPE),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Writes the weights of the narrow networks and returns their paths by name."""
    root = tmp_path_factory.mktemp("weights")
    return {
        name: cases.write_weights(
            root / f"{name}.safetensors", torch_parameters(shapes(network, jnp.zeros(shape)))
        )
        for name, (network, shape) in NETWORKS.items()
    }


@pytest.mark.parametrize("name", list(NETWORKS))
def test_network(files, name):
    network, shape = NETWORKS[name]
    video = cases.video(name, shape)
    params = load_parameters(
        lambda: network.init(jax.random.key(0), video)["params"],
        open_torch_weights(files[name]),
        files[name],
        {},
    )
    got = jax.jit(network.apply)({"params": params}, video)
    assert_close(np.asarray(got), golden(name))


def test_c3d_returns_class_probabilities(files):
    extractor = load_c3d(files["c3d"])
    video = cases.video("c3d", cases.C3D_SHAPE)  # has the size that clips are resized to
    logits = golden("c3d").astype(np.float64)
    expected = np.exp(logits - logits.max(1, keepdims=True))
    expected /= expected.sum(1, keepdims=True)
    np.testing.assert_allclose(extractor(list(video), 2), expected, atol=1e-3)


@pytest.fixture(scope="module", params=["quick_gelu", "gelu"])
def activation(request):
    return request.param


def test_clip(tmp_path, activation):
    config = clip_config(cases.clip(activation), "config")
    table = torch_parameters(jax.eval_shape(lambda: init_clip(config, jax.random.key(0))))
    folder = cases.write_clip(tmp_path / "clip", activation, table)
    clip = load_clip(folder)
    assert clip.config == config
    images, ids, ends = cases.clip_inputs()
    params = {"params": clip.params}
    embedded = np.concatenate(
        [
            jax.jit(ImageEncoder(config).apply)(params, images),
            jax.jit(TextEncoder(config).apply)(params, jnp.asarray(ids), ends),
        ]
    )
    embedded /= np.linalg.norm(embedded, axis=-1, keepdims=True)
    assert_close(embedded, golden(f"clip_{activation}"))

    tokens, ends = clip.tokenize(cases.SENTENCES)
    expected = json.loads((cases.GOLDEN / "clip_ids.json").read_text())
    assert tokens.tolist() == expected
    assert [row.index(cases.TOKENS - 1) for row in expected] == ends.tolist()
    assert max(ends) == 15  # one sentence is truncated


def test_clip_preprocessing():
    """Compares the normalised image with that of transformers after resizing and cropping."""
    resized = Resize(28, "bicubic")(cases.picture()[None] / np.float32(127.5) - 1)[0]
    got = ((resized + 1) / 2 - np.array(MEAN)) / np.array(STD)
    assert_close(got, golden("clip_picture"))


def test_clip_embeddings_have_unit_length(tmp_path):
    config = clip_config(cases.clip("gelu"), "config")
    table = torch_parameters(jax.eval_shape(lambda: init_clip(config, jax.random.key(0))))
    clip = load_clip(cases.write_clip(tmp_path / "clip", "gelu", table))
    frames = clip.images(list(cases.video("frames", (1, 3, 40, 52, 3))), 2)
    texts = clip.embed_texts(["a star", "a red star", "a star"])
    assert frames.shape == (1, 3, 20) and texts.shape == (3, 20)
    np.testing.assert_allclose(np.linalg.norm(frames, axis=-1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(texts, axis=-1), 1, rtol=1e-5)
    np.testing.assert_array_equal(texts[0], texts[2])
    assert np.abs(texts[0] - texts[1]).max() > 0.01


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.pop("Mixed_4c.b2b.bn.running_var"),
            r"missing: Mixed_4c\.b2b\.bn\.running_var",
        ),
        (
            lambda t: t.update({"logits.conv3d.bias": np.zeros(7, np.float32)}),
            r"logits\.conv3d\.bias \(expected \(400,\), got \(7,\)\)",
        ),
        (lambda t: t.update({"conv3a.weight": np.zeros(1)}), "C3D weights"),
    ],
)
def test_errors_of_mismatched_weights_are_one_line(files, tmp_path, change, message):
    tensors = load_file(files["i3d"])
    change(tensors)
    path = tmp_path / "changed.safetensors"
    save_file(tensors, path)
    with pytest.raises(UserError, match=message) as error:
        load_i3d(path)
    assert len(str(error.value).splitlines()) == 1


def test_errors_of_unusable_files(tmp_path, files):
    pickle = tmp_path / "rgb_imagenet.pt"
    pickle.write_bytes(b"")
    with pytest.raises(UserError, match=r"rgb_imagenet\.pt: .*pickle.*python -c"):
        load_i3d(pickle)
    with pytest.raises(UserError, match="no such file"):
        load_c3d(tmp_path / "absent.safetensors")
    pickle.rename(tmp_path / "cut.safetensors")
    with pytest.raises(UserError, match="safetensors"):
        load_c3d(tmp_path / "cut.safetensors")
    with pytest.raises(UserError, match="I3D weights"):
        load_c3d(files["i3d"])
