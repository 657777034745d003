"""Every config trains all of its parameters: at full depth, no trained parameter lacks a gradient.

Widths, vocabularies and frame sizes are reduced. Levels, layers, attention, temporal settings and
the number of frames are those of the config.
"""

import functools
import importlib
import re
from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.pipeline import parse_config
from experiments.common.networks import IF_M, IF_XL
from stunet.model import load
from stunet.models import remat
from stunet.models.t5 import TextEncoderConfig
from stunet.models.unet_config import UNetConfig, check_training_shape
from stunet.schema import from_dict, to_dict
from stunet.training.config import parse_train_config
from stunet.training.networks import Networks
from stunet.weights.trees import flatten
from tests.experiments.test_configs import CASES
from tests.tiny import CAPTIONS, T5, fast_compiles, random_params, save_tiny_model

# DeepFloyd IF's second stage. Its widths are not published outside of its files.
IF_II_M = replace(
    IF_M,
    channels=(64, 128, 256, 512, 512),
    layers_per_block=(2, 2, 3, 5, 5),
    attention_levels=(False, False, False, True, True),
    in_channels=6,
    self_attention=False,
    noise_level_embedding=True,
    activate_embedding_once=True,
    output_scale_factor=1.4142,
    mid_output_scale_factor=1.4142,
    temporal=None,
)
IMPORTED = {
    "models/if_m": replace(IF_M, temporal=None),
    "models/if_xl": replace(IF_XL, temporal=None),
    "models/if_ii_m": IF_II_M,
}

ROWS = 2

# A bias that all keys of an attention share adds the same number to all of its logits, which the
# softmax removes. Its gradient is rounding error.
SHARED_KEY_BIAS = re.compile("unet/text_pooling/k/bias")
SHARED_KEY_BIAS_WITHOUT_SELF_ATTENTION = re.compile("unet/(text_pooling/k|.*attn_.*/text_k)/bias")
ROUNDING = 1e-7  # of the largest gradient


def read_config(case):
    name, *arguments = case
    values = importlib.import_module(f"experiments.configs.{name}").get_config(*arguments)
    return parse_train_config(values.to_dict(), parse_config, name)


def start_network(init_from):
    """Returns the architecture of a start model: IF's, another config's, or a shipped model's."""
    if init_from in IMPORTED:
        return IMPORTED[init_from]
    if not init_from.startswith("runs/"):
        return load(init_from).unet
    stage = read_config(init_from.removeprefix("runs/").split("/")).stage
    return stage.architecture(start_network(stage.init_from) if stage.init_from else None)


def narrow(unet):
    """Returns the architecture with few channels at every level."""
    temporal = unet.temporal and replace(unet.temporal, head_dim=4)
    return replace(
        unet,
        channels=(8,) * len(unet.channels),
        head_dim=4,
        text_dim=T5.d_model,
        cross_attention_dim=8,
        pooling_heads=2,
        time_embedding_dim=8,
        norm_groups=4,
        temporal=temporal,
    )


def reduce(config, folder):
    """Returns the config with a narrow network, and writes its start model to the folder."""
    stage, changes = config.stage, {}
    if stage.init_from:
        start = narrow(start_network(stage.init_from))
        save_tiny_model(
            folder,
            start,
            num_frames=start.temporal_stride,
            resolution=start.spatial_stride,
            prediction=config.diffusion.prediction,
            schedule=to_dict(config.diffusion.schedule),
            super_resolution=to_dict(stage.super_resolution) if stage.super_resolution else None,
        )
        changes |= {"init_from": str(folder)}
    else:
        start = narrow(stage.unet)
        t5 = replace(T5, num_layers=stage.text_encoder.t5.num_layers)
        changes |= {"unet": start, "text_encoder": TextEncoderConfig(t5, T5.vocab_size // ROWS)}
    if getattr(stage, "temporal", None) is not None:
        changes |= {"temporal": replace(stage.temporal, head_dim=4)}
    if stage.frozen_dtype is not None:
        changes |= {"frozen_dtype": None}
    data = replace(config.data, resolution=2 * start.spatial_stride, crop=None)
    return replace(config, stage=replace(stage, **changes), data=data, dtype="float32")


def initial_model(config):
    """Returns the config, and shapes and types of the parameters, of a run's initial model."""
    made = {}

    def build():
        model = config.stage.initial_model(config, config.data, lambda: CAPTIONS)
        made.update(model.config)
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), model.params)

    shapes = jax.eval_shape(build)
    return made, shapes


def random_batch(config):
    """Returns a batch in which every token of the vocabulary occurs."""
    rng, data = np.random.default_rng(0), config.data
    shape = (ROWS, data.num_frames, data.resolution, data.resolution, 3)
    batch = {
        "video": rng.integers(256, size=shape, dtype=np.uint8),
        "position": np.arange(ROWS, dtype=np.uint32),
    }
    if data.text_states:
        return batch | {"text_states": rng.normal(size=(ROWS, 4, T5.d_model)).astype(np.float16)}
    tokens = rng.permutation(T5.vocab_size).reshape(ROWS, -1).astype(np.int32)
    return batch | {"tokens": tokens, "token_mask": np.ones(tokens.shape, bool)}


def gradients(config, unet, shapes):
    """Returns the gradient of every trained parameter, by its path."""
    stage = config.stage
    params = jax.tree.map(jnp.float32, random_params(shapes))
    trained, frozen = stage.split(params, config.seed)
    text = stage.text_encoder
    t5 = text.t5 if isinstance(text, TextEncoderConfig) else T5
    networks, batch = Networks(unet, t5), jax.tree.map(jnp.asarray, random_batch(config))

    def loss(trained):
        params = stage.loss_params(trained, frozen)
        return jnp.mean(stage.loss(networks, config.diffusion, params, batch, config.seed))

    with fast_compiles():
        found = jax.jit(jax.grad(loss))(trained)
    return {path: np.asarray(leaf) for path, leaf in flatten(found).items()}


@pytest.fixture
def _compile_each_block_once(monkeypatch):
    """Traces equal blocks once."""
    monkeypatch.setitem(remat.REMAT_POLICIES, "none", functools.cache(nn.jit))


@pytest.fixture(scope="module")
def tested():
    """Networks and data that an earlier case has tested."""
    return set()


@pytest.mark.usefixtures("_compile_each_block_once")
@pytest.mark.parametrize("case", CASES, ids=":".join)
def test_every_trained_parameter_receives_a_gradient(case, tested, tmp_path):
    full = read_config(case)
    size = full.data.crop or full.data.resolution
    start = start_network(full.stage.init_from) if full.stage.init_from else None
    network = full.stage.architecture(start)
    check_training_shape(network, full.data.num_frames, size, size)

    config = reduce(full, tmp_path / "start")
    made, shapes = initial_model(config)
    unet = from_dict(UNetConfig, made["architecture"], "architecture")
    assert unet == replace(narrow(network), dtype="float32")
    trained = flatten(config.stage.split(shapes, config.seed)[0]).keys()
    key = repr((unet, trained, config.data.num_frames, config.data.text_states))
    if key in tested:
        return
    tested.add(key)

    found = gradients(config, unet, shapes)
    assert found.keys() == trained
    exceptions = SHARED_KEY_BIAS if unet.self_attention else SHARED_KEY_BIAS_WITHOUT_SELF_ATTENTION
    largest = {path: np.abs(leaf).max() for path, leaf in found.items()}
    rounding = ROUNDING * max(largest.values())
    for path, leaf in found.items():
        if exceptions.fullmatch(path):
            assert largest[path] < rounding, path
            continue
        if path.startswith("unet/conv_out/") and unet.out_channels == 6:
            leaf = leaf[..., :3]  # channels of a variance that is fixed
        # The bias of distance 0 is in the half of the buckets for the tokens before.
        unused = leaf.shape[1] if "relative_attention_bias" in path else 0
        assert largest[path] > rounding, path
        assert np.count_nonzero(leaf) == leaf.size - unused, path
