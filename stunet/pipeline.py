"""Text in, video out: sampling from a model, and from a cascade of them.

model, upscaler = load("runs/tiny_t2v"), load("runs/tiny_ssr")
prompts = ["a red star moves left"]
small = generate(model, prompts)  # [1, T, H, W, 3] in [-1, 1]
video = upscale(upscaler, small, prompts)[0]  # [T, 4 H, 4 W, 3]
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stunet.diffusion import (
    AUGMENTATION_NOISE,
    START_NOISE,
    Carry,
    Network,
    Schedule,
    SuperResolution,
    Threshold,
    Windows,
    augmented,
    guided_denoiser,
    in_parts,
    keyed_noise,
    make_sampler,
    run_steps,
    sample_in_chunks,
    thresholded,
    upsampled,
    windowed,
)
from stunet.diffusion.multidiffusion import OVERLAP
from stunet.errors import UserError
from stunet.model import Model, load
from stunet.models.t5 import T5Config, T5Encoder
from stunet.models.unet import UNet, UNetConfig, check_video_shape
from stunet.weights.trees import Tree

__all__ = [
    "DEFAULT_STEPS",
    "ChunkSettings",
    "Model",
    "Sampling",
    "encode_text",
    "generate",
    "load",
    "network",
    "run_chunk",
    "upscale",
    "windows_of",
]

# Steps of each sampler unless told otherwise. DPM-Solver++(2M) converges in 20 to 30
# (2211.01095); 100 ancestral steps are DeepFloyd IF's own setting for its first stage.
DEFAULT_STEPS = {"dpm2m": 25, "ddim": 50, "ancestral": 100}

# (steps done, steps in all, current estimate of x0 [b, T, H, W, 3])
OnChunk = Callable[[int, int, jax.Array], None]


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How to sample: the keyword arguments that `generate` and `upscale` share.

    Video i's noise depends on (seed, i) only: neither the other prompts, nor `batch_size`, nor
    `chunk` change it by more than float rounding. One compile serves all chunks and batches, and
    later calls of the same sizes, also with another seed or guidance scale.

    A clip longer than a window is sampled by MultiDiffusion (`stunet.diffusion.multidiffusion`).

    Attributes:
      sampler: `dpm2m`, `ddim` or `ancestral`.
      steps: by default the sampler's `DEFAULT_STEPS`.
      guidance_scale: of classifier-free guidance; 1 is none, and halves the cost.
      seed: 0 to 2**32 - 1.
      batch_size: videos sampled at a time.
      window: frames of a window; by default as many as the model was trained on. Give the clip's
        own length to have no windows.
      overlap: frames that neighbouring windows share.
      window_weights: "uniform" or "ramp", see `Windows`.
      windows_at_once: windows that the network works on at a time, which is what its memory
        follows; None for all.
      chunk: steps between two calls of `on_chunk`.
      on_chunk: called with (steps done, steps in all, estimate of x0 `[b, T, H, W, 3]` for the
        b videos at work), counted over all batches: once before anything is compiled, with 0
        steps and zeros, then after every chunk. What it raises ends the sampling.
    """

    sampler: str = "dpm2m"
    steps: int | None = None
    guidance_scale: float = 4.0
    seed: int = 0
    batch_size: int = 8
    window: int | None = None
    overlap: int = OVERLAP
    window_weights: str = "uniform"
    windows_at_once: int | None = 1
    chunk: int = 5
    on_chunk: OnChunk | None = None


@dataclasses.dataclass(frozen=True)
class ChunkSettings:
    """All that a chunk of steps is compiled for; hashable.

    Attributes:
      unet, schedule, prediction, variance, threshold: the model's.
      sampler, steps, windows_at_once, chunk: `Sampling`'s.
      guided: whether the guidance scale is another than 1.
      shape: of a video, `(T, H, W, 3)`.
      windows: that it is sampled in.
    """

    unet: UNetConfig
    schedule: Schedule
    prediction: str
    variance: str
    sampler: str
    steps: int
    threshold: Threshold | None
    guided: bool
    shape: tuple[int, int, int, int]
    windows: Windows
    windows_at_once: int | None
    chunk: int


def encode_text(model: Model, prompts: Sequence[str]) -> jax.Array:
    """T5 states `[N, L, D]` float32 of N prompts, `""` among them; padding has states too,
    unless the encoder zeroes them.

    Raises:
      UserError: the model has no text encoder.
    """
    _check_text_encoder(model)
    tokens, mask = model.tokenizer(prompts)
    return _encode(model.text_encoder, model.params["text_encoder"], tokens, mask)


def network(config: UNetConfig, params: Tree) -> Network:
    """The U-Net as a function (x_t `[B, T, H, W, 3]`, t `[B]`, conditioning) -> its output.

    The conditioning is a dict: `text`, the encoder's states `[B, L, D]`, and for super-resolution
    `low`, the augmented clip at the size of x_t, and `noise_level` `[B]`.
    """

    def apply(x_t: jax.Array, t: jax.Array, cond: dict[str, jax.Array]) -> jax.Array:
        x = jnp.concatenate([x_t, cond["low"]], axis=-1) if "low" in cond else x_t
        return UNet(config).apply({"params": params}, x, t, cond["text"], cond.get("noise_level"))

    return apply


def generate(
    model: Model, prompts: Sequence[str], *, num_frames: int | None = None, **sampling: Any
) -> np.ndarray:
    """Samples one video for each prompt.

    Args:
      model: from `load`.
      prompts: N texts; `""` asks for any video.
      num_frames: 1 (an image), or any number that a window of it suits; by default what the
        model was trained on.
      **sampling: fields of `Sampling`.

    Returns:
      `[N, T, H, W, 3]` float32 in [-1, 1].

    Raises:
      UserError: no prompt, a frame count, sampler, number of steps, windows or seed that cannot
        be, the model has no text encoder or is for super-resolution, or its output is not finite.
    """
    num_frames = model.num_frames if num_frames is None else num_frames
    if model.super_resolution is not None:
        raise UserError("the model is for super-resolution: it enlarges a video (`upscale`)")
    shape = (num_frames, model.resolution, model.resolution, 3)
    return _sample(model, prompts, shape, Sampling(**sampling))


def upscale(
    model: Model,
    videos: np.ndarray,
    prompts: Sequence[str],
    *,
    noise_level: float | None = None,
    **sampling: Any,
) -> np.ndarray:
    """Enlarges each video by the model's `super_resolution.factor`.

    Args:
      model: from `load`, of the stage "ssr".
      videos: `[N, T, h, w, 3]` in [-1, 1]; h and w need not be those of the training.
      prompts: N texts, what each video shows.
      noise_level: of the augmentation, on IF's timestep scale; by default the model's own. More
        makes up more detail and follows the video less.
      **sampling: fields of `Sampling`. `windows_at_once` bounds the network's memory.

    Returns:
      `[N, T, factor * h, factor * w, 3]` float32 in [-1, 1].

    Raises:
      UserError: as `generate`, or the model is not for super-resolution, the videos are not as
        many as the prompts or of a size that the model cannot take, or the level is not one.
    """
    if model.super_resolution is None:
        raise UserError("the model makes videos; enlarging one takes a super-resolution model")
    if videos.ndim != 5 or videos.shape[-1] != 3 or len(videos) != len(prompts):
        raise UserError(
            f"videos have shape {videos.shape}; expected ({len(prompts)}, T, H, W, 3), one for "
            "each prompt"
        )
    config = model.super_resolution
    noise_level = config.noise_level if noise_level is None else noise_level
    if not 0 <= noise_level <= config.max_noise_level:
        raise UserError(
            f"noise_level is {noise_level}; the model was trained on 0..{config.max_noise_level:g}"
        )
    _, frames, height, width, _ = videos.shape
    # A clip of any length: what the stride leaves over is filled with the last frame, and cut off.
    missing = -frames % model.unet.temporal_stride if frames > 1 else 0
    videos = np.pad(videos, ((0, 0), (0, missing), (0, 0), (0, 0), (0, 0)), mode="edge")
    shape = (frames + missing, config.factor * height, config.factor * width, 3)
    result = _sample(model, prompts, shape, Sampling(**sampling), videos, noise_level)
    return result[:, :frames]


def windows_of(model: Model, num_frames: int, **sampling: Any) -> Windows:
    """The windows that a clip of `num_frames` is sampled in, with these fields of `Sampling`.

    Raises:
      UserError: there are none such.
    """
    return _windows(model, num_frames, Sampling(**sampling))


def _sample(
    model: Model,
    prompts: Sequence[str],
    shape: tuple[int, int, int, int],
    sampling: Sampling,
    videos: np.ndarray | None = None,
    noise_level: float = 0.0,
) -> np.ndarray:
    """Videos of `shape` for N prompts; `videos` `[N, T, h, w, 3]` are what to enlarge."""
    if not prompts:
        raise UserError("no prompt given; expected at least one")
    _check_text_encoder(model)
    if not 0 <= sampling.seed < 2**32:
        raise UserError(f"seed is {sampling.seed}; it must be within 0..{2**32 - 1}")
    if sampling.windows_at_once is not None and sampling.windows_at_once < 1:
        raise UserError(f"windows_at_once is {sampling.windows_at_once}; it must be at least 1")
    windows = _windows(model, shape[0], sampling)
    check_video_shape(model.unet, windows.length, *shape[1:3])
    name = sampling.sampler
    steps = DEFAULT_STEPS.get(name, 1) if sampling.steps is None else sampling.steps
    course = make_sampler(name, model.schedule, steps, variance=model.variance)
    settings = ChunkSettings(
        unet=model.unet,
        schedule=model.schedule,
        prediction=model.prediction,
        variance=model.variance,
        sampler=name,
        steps=steps,
        threshold=model.threshold,
        guided=sampling.guidance_scale != 1,
        shape=shape,
        windows=windows,
        windows_at_once=sampling.windows_at_once,
        chunk=min(sampling.chunk, steps),
    )
    count, size = len(prompts), min(len(prompts), sampling.batch_size)
    total = -(-count // size) * steps

    def report(batch: int, done: int, x0: jax.Array) -> None:
        # Dispatch is asynchronous: without waiting, progress would run ahead of the work.
        x0 = x0.block_until_ready()[: count - batch * size]
        if sampling.on_chunk is not None:
            sampling.on_chunk(batch * steps + done, total, x0)

    report(0, 0, jnp.zeros((size, *shape)))
    texts = list(dict.fromkeys(["", *prompts]))
    states = encode_text(model, texts)
    rows = np.array([texts.index(prompt) for prompt in prompts])
    key = jax.random.key(sampling.seed)
    results = []
    for batch, first in enumerate(range(0, count, size)):
        # The last batch is filled up with its last video, to fit what was compiled.
        positions = np.minimum(np.arange(first, first + size), count - 1)
        cond, text = {}, states[rows[positions]]
        if videos is not None:
            cond = _augmented(
                model.super_resolution, shape, key, positions, videos[positions], noise_level
            )
        step = functools.partial(
            run_chunk,
            settings,
            model.params["unet"],
            {**cond, "text": text},
            {**cond, "text": jnp.broadcast_to(states[:1], text.shape)},
            jnp.float32(sampling.guidance_scale),
            key,
            positions,
        )
        carry = course.init(_start_noise(shape, key, positions))
        callback = functools.partial(report, batch)
        carry = sample_in_chunks(step, carry, steps, settings.chunk, callback)
        results.append(np.asarray(carry.x)[: count - first])
    result = np.concatenate(results)
    if not np.isfinite(result).all():
        raise UserError("the model's output is not finite; its parameters are unusable")
    return result


@functools.partial(jax.jit, static_argnums=0)
def run_chunk(
    settings: ChunkSettings,
    params: Tree,
    cond: dict[str, jax.Array],
    uncond: dict[str, jax.Array],
    guidance_scale: jax.Array,
    key: jax.Array,
    positions: jax.Array,
    carry: Carry,
    start: jax.Array,
) -> Carry:
    """Takes `settings.chunk` steps from step `start` on.

    Args:
      settings: static.
      params: the U-Net's.
      cond: of `network`, for each of the B videos; `uncond` the same for the empty prompt.
      uncond: see `cond`.
      guidance_scale: a scalar.
      key: the seed's.
      positions: `[B]`, the videos' places in the job.
      carry: the sampler's, `[B, T, H, W, 3]`.
      start: index of the first step.
    """
    s, net = settings, network(settings.unet, params)
    many = len(s.windows.starts) > 1
    if many:
        cond, uncond = (_of_windows(s.windows, tree) for tree in (cond, uncond))
        if s.windows_at_once is not None:
            net = in_parts(net, s.windows_at_once * (2 if s.guided else 1))
    denoiser = guided_denoiser(
        net,
        s.schedule,
        s.prediction,
        cond,
        uncond,
        guidance_scale if s.guided else 1,
        learned_variance=s.variance == "learned_range",
    )
    if many:
        denoiser = windowed(denoiser, s.windows)
    if s.threshold is not None:
        denoiser = thresholded(denoiser, s.schedule, s.threshold)
    sampler = make_sampler(s.sampler, s.schedule, s.steps, variance=s.variance)
    noise_fn = keyed_noise(key, positions, s.shape)
    return run_steps(sampler, denoiser, carry, start, s.chunk, noise_fn)


def _of_windows(windows: Windows, cond: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The conditioning of each window: its frames of what has frames, all of the rest."""
    return {k: windows.cut(v) if k == "low" else windows.repeat(v) for k, v in cond.items()}


@functools.partial(jax.jit, static_argnums=0)
def _start_noise(shape: tuple[int, ...], key: jax.Array, positions: jax.Array) -> jax.Array:
    return keyed_noise(key, positions, shape)(START_NOISE)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _augmented(
    config: SuperResolution,
    shape: tuple[int, ...],
    key: jax.Array,
    positions: jax.Array,
    videos: jax.Array,
    level: float,
) -> dict[str, jax.Array]:
    """What a super-resolution network is shown: noised once for the clip, not for each window."""
    levels = jnp.full(len(videos), level, jnp.float32)
    eps = keyed_noise(key, positions, shape)(AUGMENTATION_NOISE)
    large = upsampled(jnp.asarray(videos, jnp.float32), config.factor, config.align_corners)
    low = augmented(large, eps, levels)
    return {"low": low, "noise_level": levels}


@functools.partial(jax.jit, static_argnums=0)
def _encode(config: T5Config, params: Tree, tokens: jax.Array, mask: jax.Array) -> jax.Array:
    return T5Encoder(config).apply({"params": params}, tokens, mask).astype(jnp.float32)


def _windows(model: Model, num_frames: int, sampling: Sampling) -> Windows:
    if model.unet.temporal is None and num_frames != 1:
        raise UserError(f"num_frames is {num_frames}; this model makes images, so it must be 1")
    window = model.num_frames if sampling.window is None else sampling.window
    if num_frames <= window:
        return Windows.over(num_frames, num_frames, overlap=0)
    return Windows.over(
        num_frames,
        window,
        overlap=sampling.overlap,
        weights=sampling.window_weights,
        stride=model.unet.temporal_stride,
    )


def _check_text_encoder(model: Model) -> None:
    if model.text_encoder is None:
        raise UserError(
            "the model has no text encoder, which prompts need; "
            "`stunet import-t5 T5_FOLDER MODEL_FOLDER` adds one"
        )
