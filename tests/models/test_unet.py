import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from experiments.common.flops import model_flops
from stunet.errors import UserError
from stunet.models.layers import (
    GroupNorm,
    ResBlock,
    TextAttention,
    TextPooling,
    UpsampledConv,
    conv3x3,
    downsample_space,
    gelu,
    group_norm,
    timestep_features,
    upsample_space,
)
from stunet.models.partitioning import Partitioning
from stunet.models.remat import REMAT_POLICIES
from stunet.models.unet import UNet, init_unet, partitioned_unet
from stunet.models.unet_config import (
    TemporalConfig,
    UNetConfig,
    check_training_shape,
    check_video_shape,
)
from stunet.weights.trees import count_parameters, is_temporal, partition
from tests.tiny import UNET, fast_compiles, random_params


def stage_one(*channels, **fields):
    return UNetConfig(
        channels=channels,
        layers_per_block=(3, 3, 3, 3),
        attention_levels=(False, True, True, True),
        cross_attention_dim=channels[-1],
        **fields,
    )


def shapes(config):
    return jax.eval_shape(lambda: init_unet(config, jax.random.key(0)))


@pytest.mark.parametrize(
    ("name", "channels", "published"),
    [
        ("IF-I-M", (192, 384, 576, 768), "371.6"),
        ("IF-I-L", (320, 640, 960, 1280), "935.4"),
        ("IF-I-XL", (704, 1408, 2112, 2816), "4304.7"),
    ],
)
def test_parameter_counts_equal_the_published(name, channels, published, capsys):
    total = count_parameters(shapes(stage_one(*channels)))
    with capsys.disabled():
        print(f"\n{name}: {total:,} parameters")
    assert f"{total / 1e6:.1f}" == published
    assert name != "IF-I-XL" or total == 4_304_695_110


@pytest.mark.parametrize(("layers", "billions"), [(1, 1.01), (2, 1.27), (4, 1.77)])
def test_inflation_adds_the_parameters_that_the_papers_size_implies(layers, billions):
    temporal = TemporalConfig((True, True, True), attention_layers=layers)
    inflated = shapes(stage_one(704, 1408, 2112, 2816, temporal=temporal))
    assert round(count_parameters(partition(inflated, is_temporal)[0]) / 1e9, 2) == billions


def test_stage_two_depends_on_its_noise_level():
    config = replace(
        UNET.text_to_image(),
        in_channels=6,
        out_channels=6,
        self_attention=False,
        noise_level_embedding=True,
        activate_embedding_once=True,
        output_scale_factor=1.4142,
        mid_output_scale_factor=1.4142,
        time_embedding_dim=24,
    )
    params = random_params(shapes(config))
    names = set(params["down_1_attn_0"])
    assert "text_k" in names and "k" not in names  # text keys only
    x, text = jnp.ones((1, 1, 8, 4, 6)), jnp.ones((1, 3, 8))
    with fast_compiles():
        apply = jax.jit(UNet(config).apply)
        a, b = (
            apply({"params": params}, x, jnp.array([500.0]), text, jnp.array([level]))
            for level in (0.0, 250.0)
        )
    assert a.shape == (1, 1, 8, 4, 6)
    assert np.abs(a - b).max() > 1e-3


def test_timestep_features_are_cosines_then_sines():
    t = np.array([0.0, 1.5, 999.0])
    angles = t[:, None] * np.exp(-np.log(1e4) * np.arange(3) / 3)
    expected = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
    np.testing.assert_allclose(timestep_features(jnp.asarray(t), 6), expected, atol=1e-4)


def test_gelu_is_exact():
    x = np.linspace(-6, 6, 101)
    expected = 0.5 * x * (1 + erf(x / np.sqrt(2)))
    np.testing.assert_allclose(gelu(jnp.asarray(x)), expected, atol=1e-6)


def test_custom_gradient_of_gelu_is_the_derivative():
    x = jnp.linspace(-6, 6, 1001)
    plain = jax.vmap(jax.grad(lambda x: 0.5 * x * (1 + jax.lax.erf(x / math.sqrt(2)))))
    np.testing.assert_allclose(jax.vmap(jax.grad(gelu))(x), plain(x), atol=1e-6)


def test_group_norm_is_per_frame_with_scale_and_shift():
    rng = np.random.default_rng(0)
    x = rng.normal(2.0, 3.0, (2, 3, 4, 4, 6)).astype(np.float32)
    scale, bias, modulation = rng.normal(size=6), rng.normal(size=6), rng.normal(size=(2, 12))
    grouped = x.reshape(2, 3, 16, 2, 3)
    normed = grouped - grouped.mean((2, 4), keepdims=True)
    normed /= np.sqrt(grouped.var((2, 4), keepdims=True) + 1e-5)
    factor, offset = np.split(modulation[:, None, None, None], 2, axis=-1)
    expected = (normed.reshape(x.shape) * scale + bias) * (1 + factor) + offset
    params = {"params": {"scale": scale, "bias": bias}}
    result = GroupNorm(2).apply(params, jnp.asarray(x), jnp.asarray(modulation))
    np.testing.assert_allclose(result, expected, atol=2e-5)


def test_custom_gradient_of_group_norm_is_the_derivative():
    def plain(x, scale, shift):
        grouped = x.reshape(2, 5, 2, 2)
        centred = grouped - grouped.mean((1, 3), keepdims=True)
        normed = centred / jnp.sqrt((centred**2).mean((1, 3), keepdims=True) + 1e-5)
        return normed.reshape(x.shape) * scale + shift

    keys = jax.random.split(jax.random.key(0), 4)
    x, target = (jax.random.normal(key, (2, 5, 4)) for key in keys[:2])
    scale, shift = (jax.random.normal(key, (2, 1, 4)) for key in keys[2:])
    ours = jax.grad(lambda *a: (group_norm(*a, 2) * target).sum(), argnums=(0, 1, 2))
    theirs = jax.grad(lambda *a: (plain(*a) * target).sum(), argnums=(0, 1, 2))
    for a, b in zip(ours(x, scale, shift), theirs(x, scale, shift), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_spatial_downsampling_inverts_upsampling():
    x = jnp.arange(2 * 2 * 4.0).reshape(1, 2, 2, 4, 1)
    up = upsample_space(x)
    np.testing.assert_array_equal(up[0, 1, :, :, 0], np.kron(x[0, 1, :, :, 0], np.ones((2, 2))))
    np.testing.assert_array_equal(downsample_space(up), x)


def test_upsampled_conv_equals_upsampling_and_a_3x3_convolution():
    conv = conv3x3(4, None, jnp.float32)
    x = jax.random.normal(jax.random.key(0), (1, 2, 3, 5, 6))
    params = conv.init(jax.random.key(1), x[0])
    params["params"]["bias"] = jnp.arange(4.0)
    expected = conv.apply(params, upsample_space(x)[0])
    np.testing.assert_allclose(UpsampledConv(4).apply(params, x[0]), expected, atol=1e-5)


def attend(x, text, params, self_attention):
    """Computes one head of attention for a single frame in float64."""

    def norm(y):  # one group: over tokens and channels
        return (y - y.mean()) / np.sqrt(y.var() + 1e-5)

    def dense(name, y):
        return y @ params[name]["kernel"] + params[name]["bias"]

    hidden, text = norm(x), norm(text)
    keys, values = [dense("text_k", text)], [dense("text_v", text)]
    if self_attention:
        keys.append(dense("k", hidden))
        values.append(dense("v", hidden))
    logits = dense("q", hidden) @ np.concatenate(keys).T / np.sqrt(x.shape[-1])
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return x + dense("out", weights @ np.concatenate(values))


@pytest.mark.parametrize("self_attention", [True, False])
def test_text_attention_equals_numpy(self_attention):
    layer = TextAttention(head_dim=4, groups=1, self_attention=self_attention)
    rng = np.random.default_rng(1)
    x, text = (jnp.asarray(rng.normal(size=s)) for s in ((1, 2, 2, 3, 4), (1, 5, 4)))
    params = random_params(jax.eval_shape(lambda: layer.init(jax.random.key(0), x, text)))["params"]
    params["norm"] = params["text_norm"] = {"scale": np.ones(4), "bias": np.zeros(4)}
    got = layer.apply({"params": params}, x, text)
    for frame in range(2):
        expected = attend(np.float64(x[0, frame].reshape(6, 4)), text[0], params, self_attention)
        np.testing.assert_allclose(got[0, frame].reshape(6, 4), expected, atol=1e-5)


def test_text_pooling_of_equal_tokens_is_their_value():
    """With equal tokens and a zero learned query, attention is uniform."""
    layer = TextPooling(heads=2, out_dim=4)
    states = jnp.broadcast_to(jnp.array([1.0, -2.0, 0.5, 3.0]), (1, 7, 4))
    params = random_params(jax.eval_shape(lambda: layer.init(jax.random.key(0), states)))["params"]
    params["positional_embedding"] = np.zeros((1, 4))

    def layer_norm(x, p):
        return (x - x.mean()) / np.sqrt(x.var() + 1e-5) * p["scale"] + p["bias"]

    def dense(name, x):
        return x @ params[name]["kernel"] + params[name]["bias"]

    token = layer_norm(np.asarray(states[0, 0]), params["norm_1"])
    expected = layer_norm(dense("proj", dense("v", token)), params["norm_2"])
    np.testing.assert_allclose(layer.apply({"params": params}, states)[0], expected, atol=1e-5)


def test_bfloat16_is_close_to_float32():
    config = replace(UNET, dtype="bfloat16")
    params = random_params(shapes(UNET))
    x = jax.random.normal(jax.random.key(1), (1, 4, 8, 8, 3))
    text = jax.random.normal(jax.random.key(2), (1, 3, 8))
    with fast_compiles():
        full, half = (
            jax.jit(UNet(c).apply)({"params": params}, x, jnp.array([300.0]), text)
            for c in (UNET, config)
        )
    assert half.dtype == jnp.float32  # the output, for any compute dtype
    assert 0 < np.abs(half - full).max() < 0.05 * np.abs(full).max()


def test_rematerialisation_saves_fewer_residuals_for_the_same_gradient():
    params = random_params(shapes(UNET))
    x = jax.random.normal(jax.random.key(1), (1, 4, 8, 8, 3))
    text = jax.random.normal(jax.random.key(2), (1, 3, 8))
    gradients, residuals = {}, {}
    for remat in REMAT_POLICIES:
        unet = UNet(UNET, Partitioning(remat))

        def loss(params, unet=unet):
            return jnp.square(unet.apply({"params": params}, x, jnp.array([300.0]), text)).sum()

        with fast_compiles():
            gradients[remat] = jax.jit(jax.grad(loss))(params)
        backward = jax.eval_shape(lambda p, f=loss: jax.vjp(f, p)[1], params)
        saved = sum(array.size for array in jax.tree.leaves(backward))
        residuals[remat] = saved - count_parameters(params)
    for remat in REMAT_POLICIES:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
            gradients[remat],
            gradients["none"],
        )
    assert residuals["none"] > 1.5 * residuals["elementwise"]
    assert residuals["elementwise"] > residuals["convolutions"] > residuals["blocks"]
    assert residuals["elementwise"] > 1.5 * residuals["blocks"]


@pytest.mark.parametrize(("remat", "recomputed"), [("convolutions", 0), ("blocks", 1)])
def test_convolutions_that_the_gradient_of_a_frozen_residual_block_recomputes(remat, recomputed):
    block = Partitioning(remat).wrap(ResBlock)(8, 4)
    x, embedding = jnp.ones((1, 2, 4, 4, 8)), jnp.ones((1, 8))
    params = jax.eval_shape(block.init, jax.random.key(0), x, embedding)
    gradient = jax.grad(lambda x, params: block.apply(params, x, embedding).sum())
    flops = model_flops(gradient, x, params)
    convolutions = [path for path in flops if "conv_" in path]
    each = 2.0 * 2 * 16 * 9 * 8 * 8
    assert sum(flops[path] for path in convolutions) == (4 + recomputed) * each


def test_unknown_remat_policies_raise():
    with pytest.raises(UserError, match=r"^remat: .*'all'.* convolutions, blocks"):
        Partitioning("all")


def test_a_mesh_without_parameter_sharding_changes_nothing():
    """Sampling meshes have no axis "fsdp"."""
    mesh = jax.make_mesh((1, 1), ("data", "frames"))
    x, t, text = jnp.ones((1, 4, 8, 8, 3)), jnp.array([300.0]), jnp.ones((1, 3, 8))
    params = random_params(shapes(UNET))
    with fast_compiles():
        a, b = (
            jax.jit(apply)({"params": params}, x, t, text)
            for apply in (partitioned_unet(UNET, mesh), UNet(UNET).apply)
        )
    np.testing.assert_array_equal(a, b)


def test_temporal_attention_levels():
    """Attention-based inflation blocks at two levels: their parameters, and that frames mix."""
    temporal = replace(UNET.temporal, attention_levels=(True, True))
    config = replace(UNET, temporal=temporal)
    params = random_params(shapes(config))
    blocks = {name for name in params if name.startswith("temporal_") and "_block_" in name}
    assert len(blocks) == 7 and all(set(params[name]) == {"attn_0", "proj"} for name in blocks)
    default = shapes(UNET)
    assert set(default["temporal_down_1_block_0"]) == {"attn_0", "proj"}
    assert set(default["temporal_mid_block_0"]) == {"attn_0", "proj"}
    assert "conv_time" in default["temporal_down_0_block_0"]
    only_finest = replace(UNET, temporal=replace(temporal, attention_levels=(True, False)))
    assert "conv_time" in shapes(only_finest)["temporal_mid_block_0"]

    x, t, text = jnp.ones((1, 4, 8, 8, 3)), jnp.array([300.0]), jnp.ones((1, 3, 8))
    with fast_compiles():
        apply = jax.jit(UNet(config).apply)
        a, b = (apply({"params": params}, y, t, text) for y in (x, x.at[:, 3].add(1)))
    assert np.isfinite(a).all() and np.abs(a - b)[:, 0].max() > 1e-4


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layers_per_block": (1,)}, "^layers_per_block: 1 .*2.*channels"),
        ({"dtype": "float16"}, "^dtype: 'float16'.*float32, bfloat16"),
        ({"norm_groups": 3}, "^norm_groups: 3,.* 8$"),
        ({"temporal": TemporalConfig((True, True))}, "^temporal.resample: 2 .*1.*channels"),
        (
            {"temporal": replace(UNET.temporal, attention_levels=(True,))},
            "^temporal.attention_levels: 1 .*2.*channels",
        ),
        (
            {"temporal": TemporalConfig((True,), head_dim=3)},
            "^temporal.head_dim: 3,.* 16$",
        ),
        (
            {"temporal": TemporalConfig((True,), head_dim=16, attention_levels=(True, True))},
            "^temporal.head_dim: 16,.* 8$",
        ),
        ({"cond_in_blocks": True}, "^cond_in_blocks: True,.*cond_channels.*0"),
        ({"cond_channels": 4, "temporal": None}, "^cond_channels: 4,.*0"),
    ],
)
def test_contradictory_configs_raise(fields, message):
    with pytest.raises(UserError, match=message):
        replace(UNET, **fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"resampler_init": "xavier"}, "^resampler_init: 'xavier'.*identity, he"),
        ({"block": "conv"}, "^block: 'conv'.*factorised, conv1d, conv3d"),
        ({"hidden": 0}, "^hidden: 0,.*0"),
        ({"attention_layers": 0}, "^attention_layers: 0,.*1"),
    ],
)
def test_invalid_temporal_configs_raise(fields, message):
    with pytest.raises(UserError, match=message):
        TemporalConfig((True,), **fields)


def test_video_shapes():
    config = replace(UNET, temporal=TemporalConfig((True,), head_dim=8))
    for num_frames in (1, 2, 16):
        check_video_shape(config, num_frames, 8, 6)
    with pytest.raises(UserError, match="^num_frames: 5,.* 2 "):
        check_video_shape(config, 5, 8, 8)
    with pytest.raises(UserError, match="8x7,.* 2$"):
        check_video_shape(config, 2, 8, 7)


@pytest.mark.parametrize(
    ("resample", "num_frames", "size", "message"),
    [
        ((True, False), 4, 8, None),
        ((True, False), 2, 8, r"^data.num_frames: 2,.*\(True, False\) leaves 1 at level 1,.* 4 "),
        ((False, True), 2, 8, r"^data.num_frames: 2,.*\(False, True\) leaves 1 at level 2,.* 4 "),
        ((False, False), 1, 8, "^data.num_frames: 1,.* leaves 1 at level 0,.* 2 "),
        ((False, False), 2, 8, None),
        ((False, False), 2, 4, "^frame size: 4x4 leaves 1x1 pixels at level 2,.* 8x8$"),
    ],
)
def test_sizes_that_do_not_train_every_parameter(resample, num_frames, size, message):
    temporal = TemporalConfig(resample, head_dim=8)
    config = UNetConfig(
        (8,) * 3, (1,) * 3, (False,) * 3, 8, 8, 8, 2, norm_groups=4, temporal=temporal
    )
    check_video_shape(config, num_frames, size, size)
    if message is None:
        check_training_shape(config, num_frames, size, size)
    else:
        with pytest.raises(UserError, match=message):
            check_training_shape(config, num_frames, size, size)
