"""Work that the benchmarks time: forward pass, train step, sampler step and matrix product."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from stunet.diffusion import (
    COND_CHANNELS,
    Ancestral,
    Carry,
    SamplingDefaults,
    Schedule,
    Threshold,
    Windows,
    guided_denoiser,
    keyed_noise,
    run_steps,
    thresholded_denoiser,
)
from stunet.engine.sampling import network
from stunet.model import Model, parameter_shapes
from stunet.models.t5 import T5Config
from stunet.models.unet import UNet, init_unet
from stunet.models.unet_config import UNetConfig
from stunet.text import load_tokenizer, train_tokenizer
from stunet.training.losses import Batch
from stunet.training.networks import Networks
from stunet.training.settings import DiffusionConfig, OptimizerConfig
from stunet.training.stages import TextToVideo
from stunet.training.step import TrainState, init_state, make_optimizer, make_train_step
from stunet.weights.trees import Tree

# Methods to generate a clip, for `program_calls`.
METHODS = ("space-time", "full rate", "cascade")
KEY_FRAMES = 4  # the cascade's first network generates every fourth frame
WINDOW = 16  # frames that the cascade's second network fills in per call


class ProgramCall(NamedTuple):
    """A network program that one sampling step of a whole clip runs `count` times.

    Attributes:
      unet: Configuration of the network.
      frames: Frames per call.
      count: Number of calls.
    """

    unet: UNetConfig
    frames: int
    count: int


def program_calls(method: str, unet: UNetConfig, frames: int) -> list[ProgramCall]:
    """Returns the programs that one sampling step of a clip runs.

    Args:
      method: One of `METHODS`. The windows of "cascade" overlap by `KEY_FRAMES` frames.
      unet: Configuration of the Space-Time U-Net.
      frames: Frames of the clip.
    """
    if method == "space-time":
        return [ProgramCall(unet, frames, 1)]
    full = at_full_rate(unet)
    if method == "full rate":
        return [ProgramCall(full, frames, 1)]
    between = dataclasses.replace(full, cond_channels=COND_CHANNELS)
    windows = Windows.over(frames, WINDOW, overlap=KEY_FRAMES)
    return [
        ProgramCall(full, frames // KEY_FRAMES, 1),
        ProgramCall(between, WINDOW, len(windows.starts)),
    ]


def at_full_rate(unet: UNetConfig) -> UNetConfig:
    """Returns the configuration without temporal resampling."""
    off = (False,) * len(unet.temporal.resample)
    return dataclasses.replace(unet, temporal=dataclasses.replace(unet.temporal, resample=off))


def parameter_structs(config: UNetConfig) -> Tree:
    """Returns the shapes of a network's parameters as a tree of `jax.ShapeDtypeStruct`."""
    return jax.eval_shape(lambda: init_unet(config, jax.random.key(0)))


def random_like(structs: Tree) -> Tree:
    """Returns small random float32 arrays of these shapes, drawn with NumPy.

    Nothing is compiled for it, and no zero-initialised projection stays zero.
    """
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda s: jnp.asarray(0.02 * rng.standard_normal(s.shape, np.float32)), structs
    )


def make_batch(
    config: UNetConfig, batch: int, frames: int, size: int, tokens: int = 16
) -> dict[str, jax.Array]:
    """Returns a training batch of Gaussian noise.

    Keys: "video" `[B, T, size, size, 3]`, "text_states" `[B, tokens, text_dim]`, "position" `[B]`.
    """
    rng = np.random.default_rng(1)
    return {
        "video": jnp.asarray(rng.standard_normal((batch, frames, size, size, 3), np.float32)),
        "text_states": jnp.asarray(
            rng.standard_normal((batch, tokens, config.text_dim), np.float32)
        ),
        "position": jnp.arange(batch, dtype=jnp.uint32),
    }


def forward(config: UNetConfig) -> Callable[[Tree, dict[str, jax.Array]], jax.Array]:
    """Returns the forward pass, (parameters, batch) -> output of the network."""

    def run(params: Tree, batch: dict[str, jax.Array]) -> jax.Array:
        t = jnp.full((batch["video"].shape[0],), 500.0)
        return UNet(config).apply({"params": params}, batch["video"], t, batch["text_states"])

    return run


def train_step(
    config: UNetConfig, remat: str = "none", gradient_accumulation: int = 1
) -> tuple[Callable, Callable[[Tree], tuple[TrainState, Tree]]]:
    """Returns the training loop's step of stage t2v, and a function that initialises its state.

    The second function maps parameters to (train state, frozen parameters).
    """
    networks = Networks(config, text_encoder=None, remat=remat)
    diffusion = DiffusionConfig(prediction="v")
    stage = TextToVideo(init_from="not read", temporal=config.temporal)
    optimizer = make_optimizer(OptimizerConfig(), 10**6)

    def init(params: Tree) -> tuple[TrainState, Tree]:
        trained, frozen = stage.split({"unet": params}, seed=0)
        return init_state(trained, optimizer), frozen

    def loss(trained: Tree, frozen: Tree, batch: Batch) -> jax.Array:
        return stage.loss(networks, diffusion, stage.join(trained, frozen), batch, seed=0)

    unrolled = jax.default_backend() == "cpu"
    step = make_train_step(loss, optimizer, 0.999, gradient_accumulation, unrolled=unrolled)
    return step, init


def sampler_step(
    config: UNetConfig, batch: dict[str, jax.Array]
) -> tuple[Callable[[Tree, Carry, dict[str, jax.Array]], Carry], Carry]:
    """Returns one guided, thresholded ancestral step as `stunet.engine` runs it, and its carry."""
    schedule, shape = Schedule(), batch["video"].shape[1:]
    sampler = Ancestral().bind(schedule, 100)

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
    """Returns a model with random parameters and a two-layer text encoder.

    Writes the model's tokenizer to `folder`.
    """
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
        sampling=SamplingDefaults(),
        super_resolution=None,
        resolution=size,
        num_frames=frames,
        fps=8.0,
        params=random_like(parameter_shapes(config, t5)),
    )


def matmul(size: int, dtype: str) -> tuple[Callable[[], object], float]:
    """Returns a function that runs a `size` x `size` matrix product, and the product's FLOPs.

    Its rate is the reference for the device's peak.
    """
    a = jnp.asarray(np.random.default_rng(0).standard_normal((size, size), np.float32), dtype)
    product = jax.jit(lambda a: a @ a)
    return lambda: product(a).block_until_ready(), 2.0 * size**3
