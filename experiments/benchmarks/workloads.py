"""The work that benchmarks time: networks, and their forward pass, train step and sampler."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from stunet.diffusion import (
    COND_CHANNELS,
    Carry,
    Schedule,
    Threshold,
    Windows,
    guided_denoiser,
    keyed_noise,
    make_sampler,
    run_steps,
    thresholded_denoiser,
)
from stunet.engine import network
from stunet.model import Model, parameter_shapes
from stunet.models.t5 import T5Config
from stunet.models.temporal import TemporalConfig
from stunet.models.unet import UNet, UNetConfig, init_unet
from stunet.text import load_tokenizer, train_tokenizer
from stunet.training.config import DiffusionConfig, OptimizerConfig
from stunet.training.stages import Networks, make_stage
from stunet.training.step import TrainState, init_state, make_optimizer, make_train_step
from stunet.weights.trees import Tree, partition

# lumiere-pytorch's rival: what both sides of `peers` inflate.
PEERS = UNetConfig(
    channels=(64, 128, 256),
    layers_per_block=(2, 2, 2),
    attention_levels=(False, True, True),
    text_dim=256,
    cross_attention_dim=256,
    pooling_heads=4,
    out_channels=3,
    temporal=TemporalConfig(resample=(True, True)),
)
PEERS_FRAMES, PEERS_SIZE = 16, 32

# DeepFloyd IF's first stages, inflated.
IF_M = UNetConfig(
    channels=(192, 384, 576, 768),
    layers_per_block=(3, 3, 3, 3),
    attention_levels=(False, True, True, True),
    temporal=TemporalConfig(resample=(True, True, True)),
)
IF_XL = dataclasses.replace(IF_M, channels=(704, 1408, 2112, 2816), cross_attention_dim=2816)

# IF-I-XL's number of blocks, most of them and of the width where frames are few: a layout that
# the paper's memory figure holds for.
LATE = dataclasses.replace(IF_M, channels=(128, 1024, 2816, 2816), layers_per_block=(1, 2, 3, 6))

# How a clip may be made, for `calls`.
WAYS = ("space-time", "full rate", "cascade")
KEY_FRAMES = 4  # the cascade's first network makes every fourth frame
WINDOW = 16  # frames that its second one fills in at a time


class Call(NamedTuple):
    """A program that is called `count` times for one step of the whole clip."""

    unet: UNetConfig
    frames: int
    count: int


def calls(way: str, unet: UNetConfig, frames: int) -> list[Call]:
    """The programs that a step of `frames` takes, in one of `WAYS`.

    The cascade's windows share the key frame at which they meet, and those around it.
    """
    if way == "space-time":
        return [Call(unet, frames, 1)]
    rate = (False,) * len(unet.temporal.resample)
    full = dataclasses.replace(unet, temporal=dataclasses.replace(unet.temporal, resample=rate))
    if way == "full rate":
        return [Call(full, frames, 1)]
    between = dataclasses.replace(full, cond_channels=COND_CHANNELS)
    windows = Windows.over(frames, WINDOW, overlap=KEY_FRAMES)
    return [Call(full, frames // KEY_FRAMES, 1), Call(between, WINDOW, len(windows.starts))]


def parameter_structs(config: UNetConfig) -> Tree:
    """Shapes of the network's parameters."""
    return jax.eval_shape(lambda: init_unet(config, jax.random.key(0)))


def random_like(structs: Tree) -> Tree:
    """Small random arrays, drawn without compiling anything; no projection is zero."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda s: jnp.asarray(0.02 * rng.standard_normal(s.shape, np.float32)), structs
    )


def make_batch(
    config: UNetConfig, batch: int, frames: int, size: int, tokens: int = 16
) -> dict[str, jax.Array]:
    """A batch of noise as the training data's."""
    rng = np.random.default_rng(1)
    return {
        "video": jnp.asarray(rng.standard_normal((batch, frames, size, size, 3), np.float32)),
        "text_states": jnp.asarray(
            rng.standard_normal((batch, tokens, config.text_dim), np.float32)
        ),
        "position": jnp.arange(batch, dtype=jnp.uint32),
    }


def forward(config: UNetConfig) -> Callable[[Tree, dict[str, jax.Array]], jax.Array]:
    """(parameters, batch) -> the network's output."""

    def run(params: Tree, batch: dict[str, jax.Array]) -> jax.Array:
        t = jnp.full((batch["video"].shape[0],), 500.0)
        return UNet(config).apply({"params": params}, batch["video"], t, batch["text_states"])

    return run


def train_step(
    config: UNetConfig, remat: str = "none", gradient_accumulation: int = 1
) -> tuple[Callable, Callable[[Tree], tuple[TrainState, Tree]]]:
    """The training loop's own step of stage t2v, and parameters -> (its state, frozen ones)."""
    networks, diffusion = Networks(config, None, remat), DiffusionConfig(prediction="v")
    stage = make_stage("t2v", networks, diffusion, trains="added")
    optimizer = make_optimizer(OptimizerConfig(), 10**6)

    def init(params: Tree) -> tuple[TrainState, Tree]:
        trained, frozen = partition({"unet": params}, stage.is_trained)
        return init_state(trained, optimizer), frozen

    step = make_train_step(
        stage, optimizer, 0.999, seed=0, gradient_accumulation=gradient_accumulation
    )
    return step, init


def sampler_step(
    config: UNetConfig, batch: dict[str, jax.Array]
) -> tuple[Callable[[Tree, Carry, dict[str, jax.Array]], Carry], Carry]:
    """One guided ancestral step, as `stunet.engine` takes them; returns (step, carry)."""
    schedule, shape = Schedule(), batch["video"].shape[1:]
    sampler = make_sampler("ancestral", schedule, 100)

    def step(params: Tree, carry: Carry, batch: dict[str, jax.Array]) -> Carry:
        text = batch["text_states"]
        denoiser = guided_denoiser(
            network(config, params),
            schedule,
            "v",
            {"text": text},
            {"text": text[:1]},
            4.0,
            learned_variance=False,
        )
        denoiser = thresholded_denoiser(denoiser, schedule, Threshold())
        noise_fn = keyed_noise(jax.random.key(0), batch["position"], shape)
        return run_steps(sampler, denoiser, carry, 0, 1, noise_fn)

    return step, sampler.init(batch["video"])


def random_model(config: UNetConfig, size: int, frames: int, folder: Path) -> Model:
    """A model with random parameters and a small text encoder; writes a tokenizer to `folder`."""
    t5 = T5Config(512, config.text_dim, 16, 2 * config.text_dim, num_layers=2, num_heads=4)
    train_tokenizer(["a red circle moves left"], t5.vocab_size, folder / "tokenizer.json")
    return Model(
        unet=config,
        text_encoder=t5,
        tokenizer=load_tokenizer(folder / "tokenizer.json", 16),
        schedule=Schedule(),
        prediction="v",
        variance="fixed_small",
        threshold=Threshold(),
        super_resolution=None,
        resolution=size,
        num_frames=frames,
        fps=8.0,
        params=random_like(parameter_shapes(config, t5)),
    )


def matmul(size: int, dtype: str) -> tuple[Callable[[], object], float]:
    """A square matrix product held ready, and its FLOPs: what the device can do at most."""
    a = jnp.asarray(np.random.default_rng(0).standard_normal((size, size), np.float32), dtype)
    product = jax.jit(lambda a: a @ a)
    return lambda: product(a).block_until_ready(), 2.0 * size**3
