import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stunet.errors import UserError
from stunet.models.t5 import T5Config, T5Encoder, relative_position_buckets

CONFIG = T5Config(
    vocab_size=50,
    d_model=24,
    d_kv=6,
    d_ff=40,
    num_layers=3,
    num_heads=4,
    relative_attention_num_buckets=8,
    relative_attention_max_distance=16,
)
LENGTHS = (20, 13, 1)
L = 20


@pytest.fixture(scope="module")
def params():
    tokens = jnp.zeros((1, L), jnp.int32)
    params = jax.jit(T5Encoder(CONFIG).init)(jax.random.key(0), tokens, tokens == 0)["params"]
    # Norm weights differ from one, so that the comparison covers them.
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: np.float32(x + 0.1 * rng.normal(size=x.shape)), params)


@pytest.fixture(scope="module")
def encode(params):
    return jax.jit(lambda tokens, mask: T5Encoder(CONFIG).apply({"params": params}, tokens, mask))


@pytest.fixture
def batch():
    tokens = np.random.default_rng(0).integers(3, 50, (len(LENGTHS), L)).astype(np.int32)
    mask = np.arange(L) < np.array(LENGTHS)[:, None]
    return np.where(mask, tokens, 0), mask


def numpy_bucket(offset, num_buckets, max_distance):
    """Computes one bucket in double precision from the definition."""
    side = num_buckets // 2
    exact = side // 2
    bucket = abs(offset)
    if bucket >= exact:
        share = math.log(bucket / exact) / math.log(max_distance / exact)
        bucket = min(side - 1, exact + math.floor(share * (side - exact) + 1e-6))
    return bucket + (side if offset > 0 else 0)


def numpy_t5(params, tokens, length, config):
    """Encodes one caption of `length` tokens without padding, head by head, in float64."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

    def norm(x, weight):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * weight

    def gelu(x):
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    table = p["block_0"]["layer_0"]["SelfAttention"]["relative_attention_bias"]["embedding"]
    buckets, distance = (
        config.relative_attention_num_buckets,
        config.relative_attention_max_distance,
    )
    x = p["shared"]["embedding"][tokens[:length]]
    for i in range(config.num_layers):
        layer = p[f"block_{i}"]["layer_0"]
        h = norm(x, layer["layer_norm"]["weight"])
        q, k, v = (h @ layer["SelfAttention"][name]["kernel"] for name in "qkv")
        attended = np.zeros_like(q)
        for head in range(config.num_heads):
            part = slice(head * config.d_kv, (head + 1) * config.d_kv)
            scores = q[:, part] @ k[:, part].T
            for a in range(length):
                for b in range(length):
                    scores[a, b] += table[numpy_bucket(b - a, buckets, distance), head]
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            attended[:, part] = weights / weights.sum(-1, keepdims=True) @ v[:, part]
        x = x + attended @ layer["SelfAttention"]["o"]["kernel"]
        layer = p[f"block_{i}"]["layer_1"]
        h = norm(x, layer["layer_norm"]["weight"])
        ff = {name: leaf["kernel"] for name, leaf in layer["DenseReluDense"].items()}
        x = x + (gelu(h @ ff["wi_0"]) * (h @ ff["wi_1"])) @ ff["wo"]
    return norm(x, p["final_layer_norm"]["weight"])


def test_equals_numpy(params, encode, batch):
    tokens, mask = batch
    states = np.asarray(encode(tokens, mask))
    assert states.shape == (3, L, 24) and states.dtype == np.float32
    for row, length in enumerate(LENGTHS):
        expected = numpy_t5(params, tokens[row], length, CONFIG)
        assert expected.std() > 0.5
        np.testing.assert_allclose(states[row, :length], expected, atol=1e-5, rtol=1e-5)


def test_padding_tokens_do_not_affect_the_states_of_others(encode, batch):
    tokens, mask = batch
    other = np.where(mask, tokens, np.random.default_rng(1).integers(3, 50, tokens.shape))
    states, changed = encode(tokens, mask), encode(other.astype(np.int32), mask)
    np.testing.assert_array_equal(states[mask], changed[mask])
    assert np.abs(states - changed)[~mask].max() > 0.1  # the states of padding changed


def test_padding_can_be_zeroed(params, encode, batch):
    tokens, mask = batch
    config = dataclasses.replace(CONFIG, zero_padding=True)
    zeroed = jax.jit(lambda *args: T5Encoder(config).apply({"params": params}, *args))(*batch)
    states = np.asarray(encode(tokens, mask))
    assert np.abs(states[~mask]).min(-1).max() > 0
    np.testing.assert_allclose(zeroed, np.where(mask[..., None], states, 0), atol=1e-6)


def test_states_of_an_empty_caption_are_finite(encode, batch):
    tokens, mask = batch
    assert np.isfinite(encode(tokens, np.zeros_like(mask))).all()


def test_buckets_equal_hand_computed_values():
    buckets = relative_position_buckets(200, num_buckets=32, max_distance=128)
    # Beyond 8 the bucket is 8 + floor(2 log2(distance / 8)), at most 15.
    by_distance = {0: 0, 1: 1, 7: 7, 8: 8, 11: 8, 12: 9, 15: 9, 16: 10, 22: 10, 23: 11}
    by_distance |= {31: 11, 32: 12, 45: 12, 46: 13, 63: 13, 64: 14, 90: 14, 91: 15, 199: 15}
    for distance, bucket in by_distance.items():
        assert buckets[distance, 0] == bucket  # the key precedes the query
        assert buckets[0, distance] == bucket + (16 if distance else 0)
    assert buckets.min() == 0 and buckets.max() == 31


def test_xxl_has_the_published_parameter_count():
    D, d_kv, d_ff, layers, heads, vocab = 4096, 64, 10240, 24, 64, 32128
    config = T5Config(vocab, D, d_kv, d_ff, layers, heads)
    tokens = jax.ShapeDtypeStruct((1, 77), jnp.int32)
    mask = jax.ShapeDtypeStruct((1, 77), bool)
    shapes = jax.eval_shape(T5Encoder(config).init, jax.random.key(0), tokens, mask)
    per_layer = 4 * D * heads * d_kv + 3 * D * d_ff + 2 * D
    closed_form = vocab * D + layers * per_layer + 32 * heads + D
    assert sum(math.prod(x.shape) for x in jax.tree.leaves(shapes)) == closed_form
    assert closed_form == 4_762_310_656


def test_bfloat16_is_close_to_float32(params, encode, batch):
    tokens, mask = batch
    config = dataclasses.replace(CONFIG, dtype="bfloat16")
    states = jax.jit(T5Encoder(config).apply)({"params": params}, tokens, mask)
    assert states.dtype == jnp.bfloat16
    difference = (states.astype(jnp.float32) - encode(tokens, mask))[mask]
    assert 0 < np.sqrt((difference**2).mean()) < 0.05  # states have a mean square near 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "float16"}, "^dtype: 'float16'.* float32 .*bfloat16"),
        ({"num_heads": 0}, "^num_heads: 0,"),
        ({"relative_attention_num_buckets": 6}, "^relative_attention_num_buckets: 6,.* 4 .*16"),
    ],
)
def test_invalid_config_raises(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(CONFIG, **change)
