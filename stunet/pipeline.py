"""Text in, video out: sampling from a model.

model = load("runs/tiny_t2v")
video = generate(model, ["a red star moves left"])[0]  # [T, H, W, 3] in [-1, 1]
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from stunet.diffusion import (
    START_NOISE,
    Carry,
    Network,
    Schedule,
    Threshold,
    guided_denoiser,
    keyed_noise,
    make_sampler,
    run_steps,
    sample_in_chunks,
    thresholded,
)
from stunet.errors import UserError
from stunet.model import Model, load
from stunet.models.t5 import T5Config, T5Encoder
from stunet.models.unet import UNet, UNetConfig, check_video_shape
from stunet.weights.trees import Tree

__all__ = ["DEFAULT_STEPS", "Model", "encode_text", "generate", "load", "network"]

# Steps of each sampler unless told otherwise. DPM-Solver++(2M) converges in 20 to 30
# (2211.01095); 100 ancestral steps are DeepFloyd IF's own setting for its first stage.
DEFAULT_STEPS = {"dpm2m": 25, "ddim": 50, "ancestral": 100}

# (steps done, steps in all, current estimate of x0 [b, T, H, W, 3])
OnChunk = Callable[[int, int, jax.Array], None]


@dataclasses.dataclass(frozen=True)
class _Settings:
    """All that a chunk of steps is compiled for; hashable."""

    unet: UNetConfig
    schedule: Schedule
    prediction: str
    variance: str
    sampler: str
    steps: int
    threshold: Threshold | None
    guided: bool
    shape: tuple[int, int, int, int]
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
    """The U-Net as a function (x_t `[B, T, H, W, 3]`, t `[B]`, text states) -> its output."""

    def apply(x_t: jax.Array, t: jax.Array, text: jax.Array) -> jax.Array:
        return UNet(config).apply({"params": params}, x_t, t, text)

    return apply


def generate(
    model: Model,
    prompts: Sequence[str],
    *,
    num_frames: int | None = None,
    sampler: str = "dpm2m",
    steps: int | None = None,
    guidance_scale: float = 4.0,
    seed: int = 0,
    batch_size: int = 8,
    chunk: int = 5,
    on_chunk: OnChunk | None = None,
) -> np.ndarray:
    """Samples one video for each prompt.

    Video i's noise depends on (seed, i) only: neither the other prompts, nor `batch_size`, nor
    `chunk` change it by more than float rounding. One compile serves all chunks and batches,
    and later calls of the same sizes, also with another seed or guidance scale.

    Args:
      model: from `load`.
      prompts: N texts; `""` asks for any video.
      num_frames: 1 (an image) or a multiple of the model's temporal stride; by default what
        the model was trained on.
      sampler: `dpm2m`, `ddim` or `ancestral`.
      steps: by default the sampler's `DEFAULT_STEPS`.
      guidance_scale: of classifier-free guidance; 1 is none, and halves the cost.
      seed: 0 to 2**32 - 1.
      batch_size: videos sampled at a time.
      chunk: steps between two calls of `on_chunk`.
      on_chunk: called with (steps done, steps in all, estimate of x0 `[b, T, H, W, 3]` for the
        b videos at work), counted over all batches: once before anything is compiled, with 0
        steps and zeros, then after every chunk. What it raises ends the sampling.

    Returns:
      `[N, T, H, W, 3]` float32 in [-1, 1].

    Raises:
      UserError: no prompt, a frame count, sampler, number of steps or seed that cannot be, the
        model has no text encoder, or its output is not finite.
    """
    num_frames = model.num_frames if num_frames is None else num_frames
    _check_request(model, prompts, num_frames, seed)
    steps = DEFAULT_STEPS.get(sampler, 1) if steps is None else steps
    course = make_sampler(sampler, model.schedule, steps, variance=model.variance)
    settings = _Settings(
        unet=model.unet,
        schedule=model.schedule,
        prediction=model.prediction,
        variance=model.variance,
        sampler=sampler,
        steps=steps,
        threshold=model.threshold,
        guided=guidance_scale != 1,
        shape=(num_frames, model.resolution, model.resolution, 3),
        chunk=min(chunk, steps),
    )
    count, size = len(prompts), min(len(prompts), batch_size)
    total = -(-count // size) * steps

    def report(batch: int, done: int, x0: jax.Array) -> None:
        # Dispatch is asynchronous: without waiting, progress would run ahead of the work.
        x0 = x0.block_until_ready()[: count - batch * size]
        if on_chunk is not None:
            on_chunk(batch * steps + done, total, x0)

    report(0, 0, jnp.zeros((size, *settings.shape)))
    texts = list(dict.fromkeys(["", *prompts]))
    states = encode_text(model, texts)
    rows = np.array([texts.index(prompt) for prompt in prompts])
    key = jax.random.key(seed)
    videos = []
    for batch, first in enumerate(range(0, count, size)):
        # The last batch is filled up with its last video, to fit what was compiled.
        positions = np.minimum(np.arange(first, first + size), count - 1)
        step = functools.partial(
            _run_chunk,
            settings,
            model.params["unet"],
            states[rows[positions]],
            states[:1],
            jnp.float32(guidance_scale),
            key,
            positions,
        )
        carry = course.init(_start_noise(settings.shape, key, positions))
        callback = functools.partial(report, batch)
        carry = sample_in_chunks(step, carry, steps, settings.chunk, callback)
        videos.append(np.asarray(carry.x)[: count - first])
    result = np.concatenate(videos)
    if not np.isfinite(result).all():
        raise UserError("the model's output is not finite; its parameters are unusable")
    return result


@functools.partial(jax.jit, static_argnums=0)
def _run_chunk(
    settings: _Settings,
    params: Tree,
    text: jax.Array,
    empty: jax.Array,
    guidance_scale: jax.Array,
    key: jax.Array,
    positions: jax.Array,
    carry: Carry,
    start: jax.Array,
) -> Carry:
    s = settings
    denoiser = guided_denoiser(
        network(s.unet, params),
        s.schedule,
        s.prediction,
        text,
        empty,
        guidance_scale if s.guided else 1,
        learned_variance=s.variance == "learned_range",
    )
    if s.threshold is not None:
        denoiser = thresholded(denoiser, s.schedule, s.threshold)
    sampler = make_sampler(s.sampler, s.schedule, s.steps, variance=s.variance)
    noise_fn = keyed_noise(key, positions, s.shape)
    return run_steps(sampler, denoiser, carry, start, s.chunk, noise_fn)


@functools.partial(jax.jit, static_argnums=0)
def _start_noise(shape: tuple[int, ...], key: jax.Array, positions: jax.Array) -> jax.Array:
    return keyed_noise(key, positions, shape)(START_NOISE)


@functools.partial(jax.jit, static_argnums=0)
def _encode(config: T5Config, params: Tree, tokens: jax.Array, mask: jax.Array) -> jax.Array:
    return T5Encoder(config).apply({"params": params}, tokens, mask).astype(jnp.float32)


def _check_text_encoder(model: Model) -> None:
    if model.text_encoder is None:
        raise UserError(
            "the model has no text encoder, which prompts need; "
            "`stunet import-t5 T5_FOLDER MODEL_FOLDER` adds one"
        )


def _check_request(model: Model, prompts: Sequence[str], num_frames: int, seed: int) -> None:
    if not prompts:
        raise UserError("no prompt given; expected at least one")
    _check_text_encoder(model)
    if model.unet.temporal is None and num_frames != 1:
        raise UserError(f"num_frames is {num_frames}; this model makes images, so it must be 1")
    check_video_shape(model.unet, num_frames, model.resolution, model.resolution)
    if not 0 <= seed < 2**32:
        raise UserError(f"seed is {seed}; it must be within 0..{2**32 - 1}")
