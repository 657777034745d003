"""Attention backends: parity of the TPU kernel, precision of the logits, and the choice."""

import functools
from dataclasses import replace
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from stunet.errors import UserError
from stunet.models import attention as attention_module
from stunet.models.attention import attention, choose_backend, platform_of
from stunet.models.layers import TextAttention
from stunet.models.partitioning import Partitioning
from stunet.models.unet import UNet, init_unet, partitioned_unet
from tests.tiny import UNET, fast_compiles, random_params


def arrays(*shapes, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return [jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=True)]


def output_and_gradients(function, target, *inputs):
    """Returns the output and the gradients of its product with a target, jitted."""

    @jax.jit
    def run(target, *inputs):
        output, vjp = jax.vjp(function, *inputs)
        return output, *vjp(target)

    return run(target, *inputs)


def assert_equal(results, expected):
    for a, b in zip(results, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(1.0, np.abs(b).max()))


def test_the_einsum_is_softmax_attention():
    query, key, value = arrays((2, 3, 5, 2, 4), (2, 3, 7, 2, 4), (2, 3, 7, 2, 4))
    result = attention(query, key, value)
    for index in np.ndindex(2, 3):
        for head in range(2):
            q, k, v = (np.asarray(x[index][:, head], np.float64) for x in (query, key, value))
            weights = np.exp(q @ k.T / 2)
            expected = weights / weights.sum(1, keepdims=True) @ v
            np.testing.assert_allclose(result[index][:, head], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("queries", "keys"),
    [(16, 5 + 16), (130, 300)],  # less than a block; several blocks, both with padding
)
def test_the_tpu_kernel_equals_the_einsum(queries, keys, monkeypatch):
    monkeypatch.setattr(attention_module, "QUERY_BLOCK", 128)
    monkeypatch.setattr(attention_module, "KEY_BLOCK", 128)
    inputs = arrays((2, 1, queries, 2, 8), (2, 1, keys, 2, 8), (2, 1, keys, 2, 8))
    (target,) = arrays((2, 1, queries, 2, 8))
    expected = output_and_gradients(functools.partial(attention, backend="einsum"), target, *inputs)
    result = output_and_gradients(functools.partial(attention, backend="flash"), target, *inputs)
    assert_equal(result, expected)


def text_attention(backend):
    def apply(params, x, text):
        attend = functools.partial(attention, backend=backend)
        return TextAttention(8, 2, attend=attend).apply({"params": params}, x, text)

    return apply


def test_text_and_self_keys_of_both_backends_are_equal():
    x, text, target = arrays((1, 2, 3, 5, 16), (1, 7, 6), (1, 2, 3, 5, 16))
    shapes = jax.eval_shape(TextAttention(8, 2).init, jax.random.key(0), x, text)["params"]
    inputs = random_params(shapes), x, text
    expected = output_and_gradients(text_attention("einsum"), target, *inputs)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected[1])) > 0.1
    result = output_and_gradients(text_attention("flash"), target, *inputs)
    assert_equal(jax.tree.leaves(result), jax.tree.leaves(expected))


def test_keys_are_the_text_and_the_frame_itself():
    """Text of one frame changes all frames, pixels of one frame only that frame."""
    x, text = arrays((1, 2, 2, 2, 16), (1, 3, 6))
    shapes = jax.eval_shape(TextAttention(8, 2).init, jax.random.key(0), x, text)["params"]
    apply = functools.partial(text_attention("einsum"), random_params(shapes))
    before = apply(x, text)
    changed = np.abs(apply(x.at[0, 1, 0, 0, 0].add(1.0), text) - before).max((2, 3, 4))[0]
    assert changed[0] == 0 and changed[1] > 1e-3
    changed = np.abs(apply(x, text.at[0, 0, 0].add(1.0)) - before).max((2, 3, 4))[0]
    assert changed.min() > 1e-3


def test_logits_of_bfloat16_are_not_rounded():
    """Two large logits that differ by less than bfloat16 can resolve, 512 and 513."""
    query = jnp.array([16.0, 1.0]).reshape(1, 1, 1, 2).astype(jnp.bfloat16)
    key = jnp.array([[32.0, 0.0], [32.0, 1.0]]).reshape(1, 2, 1, 2).astype(jnp.bfloat16)
    value = jnp.array([[0.0, 0.0], [1.0, 1.0]]).reshape(1, 2, 1, 2).astype(jnp.bfloat16)
    expected = 1 / (1 + np.exp(-1 / np.sqrt(2)))  # of the second value
    rounded = jnp.einsum("bqhd,bkhd->bhqk", query, key).astype(jnp.float32) / np.sqrt(2)
    assert abs(jax.nn.softmax(rounded)[0, 0, 0, 1] - expected) > 0.1
    result = attention(query, key, value)
    np.testing.assert_allclose(result.astype(np.float32), expected, atol=4e-3)


@pytest.mark.parametrize(
    ("platform", "queries", "keys", "head_dim", "dtype", "expected"),
    [
        ("cpu", 4096, 4173, 64, jnp.bfloat16, "einsum"),
        ("tpu", 4096, 4173, 64, jnp.bfloat16, "flash"),
        ("tpu", 4096, 4173, 64, jnp.float32, "flash"),
        ("tpu", 4096, 77, 64, jnp.bfloat16, "einsum"),
        ("tpu", 1, 4173, 64, jnp.bfloat16, "einsum"),
        ("gpu", 4096, 4173, 64, jnp.bfloat16, "cudnn"),
        ("gpu", 4096, 4173, 64, jnp.float32, "einsum"),
        ("gpu", 4096, 4173, 256, jnp.bfloat16, "einsum"),
        ("gpu", 4096, 4173, 12, jnp.bfloat16, "einsum"),
    ],
)
def test_the_backend_depends_on_device_and_size(platform, queries, keys, head_dim, dtype, expected):
    assert choose_backend(platform, queries, keys, head_dim, dtype) == expected


def test_the_platform_is_that_of_the_mesh():
    tpu = mock.Mock(spec=Mesh, devices=np.array([[mock.Mock(platform="tpu")]]))
    assert platform_of(tpu) == "tpu"
    assert platform_of(None) == jax.default_backend() == "cpu"


def test_cudnn_gets_folded_arrays(monkeypatch):
    query, key, value = arrays((2, 3, 8, 2, 4), (2, 3, 9, 2, 4), (2, 3, 9, 2, 4))

    def kernel(query, key, value, implementation):
        assert implementation == "cudnn"
        assert query.shape == (6, 8, 2, 4) and key.shape == value.shape == (6, 9, 2, 4)
        return dot_product_attention(query, key, value, implementation="xla")

    dot_product_attention = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", kernel)
    result = attention(query, key, value, backend="cudnn")
    np.testing.assert_allclose(result, attention(query, key, value), atol=1e-6)


def test_an_unknown_backend():
    with pytest.raises(UserError, match=r"^attention: .*'xla'.* einsum, flash, cudnn"):
        Partitioning(attention="xla")


def test_a_network_computes_the_same_with_the_kernel():
    """Output and gradients, with rematerialised blocks, which store the output of the kernel."""
    unet = replace(
        UNET, channels=(8,), layers_per_block=(1,), attention_levels=(True,), temporal=None
    )
    params = random_params(jax.eval_shape(lambda: init_unet(unet, jax.random.key(0))))
    x, text, target = arrays((1, 1, 4, 4, 3), (1, 3, UNET.text_dim), (1, 1, 4, 4, 3))

    def run(apply):
        def network(params, x, text):
            return apply({"params": params}, x, jnp.array([500.0]), text)

        return output_and_gradients(network, target, params, x, text)

    with fast_compiles():
        expected = run(UNet(unet).apply)
        result = run(partitioned_unet(unet, remat="blocks", attention="flash"))
    assert_equal(jax.tree.leaves(result), jax.tree.leaves(expected))
