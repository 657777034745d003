"""Text in, video out: sampling from a model, and from a cascade of them.

model, upscaler = load("runs/tiny_t2v"), load("runs/tiny_ssr")
prompts = ["a red star moves left"]
small = generate(model, prompts)  # [1, T, H, W, 3] in [-1, 1]
video = upscale(upscaler, small, prompts)[0]  # [T, 4 H, 4 W, 3]

Any model of videos also takes `edit`; one of stage "conditional" takes `animate`, `interpolate`,
`inpaint` and `cinemagraph`, which are one function, `fill`, with different pixels given.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stunet.diffusion import (
    AUGMENTATION_NOISE,
    COND_CHANNELS,
    START_NOISE,
    Carry,
    Network,
    Schedule,
    SuperResolution,
    Threshold,
    Windows,
    add_noise,
    augmented,
    given,
    guided_denoiser,
    in_parts,
    keyed_noise,
    make_sampler,
    paste,
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
from stunet.weights.style import interpolate_style
from stunet.weights.trees import Tree

__all__ = [
    "DEFAULT_STEPS",
    "ChunkSettings",
    "Model",
    "Sampling",
    "animate",
    "cinemagraph",
    "edit",
    "encode_text",
    "fill",
    "generate",
    "given_frames",
    "given_still",
    "inpaint",
    "interpolate",
    "load",
    "network",
    "run_chunk",
    "stylised",
    "upscale",
    "whole_strides",
    "windows_of",
]

# Steps of each sampler unless told otherwise. DPM-Solver++(2M) converges in 20 to 30
# (2211.01095); 100 ancestral steps are DeepFloyd IF's own setting for its first stage.
DEFAULT_STEPS = {"dpm2m": 25, "ddim": 50, "ancestral": 100}

FEATHER = 0.02  # of the frame's shorter side, that pasted pixels fade out over

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

    The conditioning is a dict: `text`, the encoder's states `[B, L, D]`; for super-resolution
    `low`, the augmented clip at the size of x_t, and `noise_level` `[B]`; for a conditional model
    `given`, `[B, T, H, W, 4]`.
    """

    def apply(x_t: jax.Array, t: jax.Array, cond: dict[str, jax.Array]) -> jax.Array:
        x = jnp.concatenate([x_t, cond["low"]], axis=-1) if "low" in cond else x_t
        optional = (cond.get(name) for name in ("noise_level", "given"))
        return UNet(config).apply({"params": params}, x, t, cond["text"], *optional)

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
    _check_makes_videos(model)
    shape = (_frames(model, num_frames), model.resolution, model.resolution, 3)
    return _sample(model, prompts, shape, Sampling(**sampling))


def stylised(model: Model, style: Model, strength: float, where: str = "the style") -> Model:
    """The model with its text-to-image weights moved towards another's, tuned to a style.

    Args:
      model: from `load`.
      style: likewise, of images or of videos; only its U-Net's text-to-image part counts.
      strength: 0 leaves the model as it is, 1 swaps the weights; the paper's are 0.5 to 1.
      where: the style's name, for errors.

    Raises:
      UserError: the strength is beyond 0..1.5, or the style is of another network.
    """
    if style.prediction != model.prediction:
        raise UserError(
            f"{where}: predicts {style.prediction!r}, but the model predicts {model.prediction!r}"
        )
    unet = interpolate_style(model.params["unet"], style.params["unet"], strength, where)
    return dataclasses.replace(model, params={**model.params, "unet": unet})


def edit(
    model: Model, videos: np.ndarray, prompts: Sequence[str], *, strength: float, **sampling: Any
) -> np.ndarray:
    """Makes each video over to its prompt, from a noisy version of itself (SDEdit, 2108.01073).

    Args:
      model: from `load`.
      videos: `[N, T, H, W, 3]` in [-1, 1].
      prompts: N texts.
      strength: the share of the sampler's steps that is taken, 0 to 1: 0 gives the video back as
        it is, 1 is `generate`, which does not see it.
      **sampling: fields of `Sampling`.

    Returns:
      As `videos`.

    Raises:
      UserError: as `generate`, or the videos are not as many as the prompts or of a size that
        the model cannot take, or the strength is none.
    """
    _check_makes_videos(model)
    _check_videos("videos", videos, len(prompts))
    if not 0 <= strength <= 1:
        raise UserError(f"strength is {strength}; it must be within 0..1")
    whole = _whole_strides(model, videos)
    made = _sample(model, prompts, whole.shape[1:], Sampling(**sampling), begin=(whole, strength))
    return made[:, : videos.shape[1]]


def fill(
    model: Model,
    videos: np.ndarray,
    masks: np.ndarray,
    prompts: Sequence[str],
    *,
    paste_back: bool = True,
    feather: float = FEATHER,
    **sampling: Any,
) -> np.ndarray:
    """Makes the part of each video that its mask covers.

    Args:
      model: from `load`, of stage "conditional".
      videos: `[N, T, H, W, 3]` in [-1, 1]; what the mask covers of them does not count.
      masks: `[N, T, H, W, 1]`, 1 where to fill in and 0 where the video is to be kept.
      prompts: N texts.
      paste_back: whether the kept pixels come back to the bit at the end; the model itself
        repeats them closely.
      feather: where they do, how far they fade out into what was filled in, as a share of the
        frame's shorter side.
      **sampling: fields of `Sampling`.

    Returns:
      As `videos`.

    Raises:
      UserError: as `generate`, or the model is not conditional, or videos or masks are not as
        many as the prompts, of one size, and of one that the model can take.
    """
    if model.unet.cond_channels != COND_CHANNELS:
        raise UserError("the model does not look at given pixels; name one of stage 'conditional'")
    _check_videos("videos", videos, len(prompts))
    _check_masked(videos, masks, videos.shape)
    if videos.shape[1] == 1:
        raise UserError("a single frame cannot be filled in: the model is given pixels of videos")
    whole, known = _whole_strides(model, videos), 1 - (_whole_strides(model, masks) > 0.5)

    def shown(key: jax.Array, rows: np.ndarray) -> dict[str, jax.Array]:
        return {"given": given(jnp.asarray(whole[rows]), jnp.asarray(known[rows], jnp.float32))}

    made = _sample(model, prompts, whole.shape[1:], Sampling(**sampling), shown)
    made = made[:, : videos.shape[1]]
    return _paste(made, videos, masks, feather) if paste_back else made


def animate(
    model: Model,
    images: np.ndarray,
    prompts: Sequence[str],
    *,
    num_frames: int | None = None,
    paste_back: bool = False,
    **options: Any,
) -> np.ndarray:
    """Makes a video of each image, which is its first frame: `[N, H, W, 3]` -> `[N, T, H, W, 3]`.

    `options` are those of `fill`, as are the errors.
    """
    clip = given_frames({0: images}, _frames(model, num_frames))
    return fill(model, *clip, prompts, paste_back=paste_back, **options)


def interpolate(
    model: Model,
    first: np.ndarray,
    last: np.ndarray,
    prompts: Sequence[str],
    *,
    num_frames: int | None = None,
    paste_back: bool = False,
    **options: Any,
) -> np.ndarray:
    """Makes a video from a first frame to a last, each `[N, H, W, 3]`; otherwise as `animate`."""
    if first.shape != last.shape:
        raise UserError(f"the first frame has shape {first.shape}, the last one {last.shape}")
    clip = given_frames({0: first, -1: last}, _frames(model, num_frames))
    return fill(model, *clip, prompts, paste_back=paste_back, **options)


def inpaint(
    model: Model, videos: np.ndarray, masks: np.ndarray, prompts: Sequence[str], **options: Any
) -> np.ndarray:
    """`fill` of a region that is the same in all frames, `masks` `[N, H, W, 1]`, or each frame's
    own, `[N, T, H, W, 1]`.
    """
    if masks.ndim == 4:
        masks = np.repeat(masks[:, None], videos.shape[1], axis=1)
    return fill(model, videos, masks, prompts, **options)


def cinemagraph(
    model: Model,
    images: np.ndarray,
    masks: np.ndarray,
    prompts: Sequence[str],
    *,
    num_frames: int | None = None,
    loop: bool = False,
    **options: Any,
) -> np.ndarray:
    """Lets a part of each image move, and nothing else.

    Args:
      model: from `load`, of stage "conditional".
      images: `[N, H, W, 3]` in [-1, 1], the first frame.
      masks: `[N, H, W, 1]`, 1 where it moves.
      prompts: N texts.
      num_frames: of the result; by default as the model was trained, less one for a loop.
      loop: whether the last frame leads back to the first.
      **options: of `fill`.

    Returns:
      `[N, T, H, W, 3]` float32 in [-1, 1].

    Raises:
      UserError: as `fill`.
    """
    frames = model.num_frames if num_frames is None else num_frames + loop
    clip = given_still(images, masks, frames, loop)
    made = fill(model, *clip, prompts, **options)
    return made[:, :-1] if loop else made


def given_frames(
    frames: Mapping[int, np.ndarray], num_frames: int
) -> tuple[np.ndarray, np.ndarray]:
    """Videos and masks for `fill` of which some frames, `[N, H, W, 3]` by number, are given."""
    images = next(iter(frames.values()))
    n, height, width, _ = images.shape
    videos = np.zeros((n, num_frames, height, width, 3), np.float32)
    masks = np.ones((n, num_frames, height, width, 1), np.float32)
    for number, image in frames.items():
        videos[:, number], masks[:, number] = image, 0
    return videos, masks


def given_still(
    images: np.ndarray, masks: np.ndarray, num_frames: int, loop: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Videos and masks for `fill` in which images stand still but where `masks` `[N, H, W, 1]`
    are 1; the first frame is whole, and the last one too for a `loop`.
    """
    videos = np.repeat(images[:, None], num_frames, axis=1)
    masks = np.repeat(masks[:, None], num_frames, axis=1)
    masks[:, [0, -1] if loop else [0]] = 0
    return videos, masks


def upscale(
    model: Model,
    videos: np.ndarray,
    prompts: Sequence[str],
    *,
    noise_level: float | None = None,
    filled: tuple[np.ndarray, np.ndarray] | None = None,
    feather: float = FEATHER,
    **sampling: Any,
) -> np.ndarray:
    """Enlarges each video by the model's `super_resolution.factor`.

    Args:
      model: from `load`, of the stage "ssr".
      videos: `[N, T, h, w, 3]` in [-1, 1]; h and w need not be those of the training.
      prompts: N texts, what each video shows.
      noise_level: of the augmentation, on IF's timestep scale; by default the model's own. More
        makes up more detail and follows the video less.
      filled: videos and masks as for `fill`, of the result's size: what the masks do not cover
        comes back to the bit.
      feather: of that, as for `fill`.
      **sampling: fields of `Sampling`. `windows_at_once` bounds the network's memory.

    Returns:
      `[N, T, factor * h, factor * w, 3]` float32 in [-1, 1].

    Raises:
      UserError: as `generate`, or the model is not for super-resolution, the videos are not as
        many as the prompts or of a size that the model cannot take, or the level is not one.
    """
    if model.super_resolution is None:
        raise UserError("the model makes videos; enlarging one takes a super-resolution model")
    _check_videos("videos", videos, len(prompts))
    config = model.super_resolution
    noise_level = config.noise_level if noise_level is None else noise_level
    if not 0 <= noise_level <= config.max_noise_level:
        raise UserError(
            f"noise_level is {noise_level}; the model was trained on 0..{config.max_noise_level:g}"
        )
    _, frames, height, width, _ = videos.shape
    videos = _whole_strides(model, videos)
    shape = (videos.shape[1], config.factor * height, config.factor * width, 3)
    if filled is not None:
        _check_masked(*filled, (len(prompts), frames, *shape[1:]))

    def low(key: jax.Array, rows: np.ndarray) -> dict[str, jax.Array]:
        return _augmented(config, shape, key, rows, videos[rows], noise_level)

    result = _sample(model, prompts, shape, Sampling(**sampling), low)[:, :frames]
    return result if filled is None else _paste(result, *filled, feather)


def windows_of(model: Model, num_frames: int, **sampling: Any) -> Windows:
    """The windows that a clip of `num_frames` is sampled in, with these fields of `Sampling`.

    Raises:
      UserError: there are none such.
    """
    return _windows(model, num_frames, Sampling(**sampling))


def whole_strides(model: Model, num_frames: int) -> int:
    """The frames that a given video of `num_frames` is filled up to: whole temporal strides."""
    return num_frames + (-num_frames % model.unet.temporal_stride if num_frames > 1 else 0)


def _sample(
    model: Model,
    prompts: Sequence[str],
    shape: tuple[int, int, int, int],
    sampling: Sampling,
    conditioning: Callable[[jax.Array, np.ndarray], dict[str, jax.Array]] = lambda key, rows: {},
    begin: tuple[np.ndarray, float] | None = None,
) -> np.ndarray:
    """Videos of `shape` for N prompts.

    `conditioning` gives what the network is shown beside the text for some of the videos, by the
    seed's key and their numbers. `begin` is `edit`'s: where not to start from pure noise.
    """
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
    videos, strength = (None, 1.0) if begin is None else begin
    start = steps - round(strength * steps)
    count, size = len(prompts), min(len(prompts), sampling.batch_size)
    total = -(-count // size) * (steps - start)

    def report(batch: int, done: int, x0: jax.Array) -> None:
        # Dispatch is asynchronous: without waiting, progress would run ahead of the work.
        x0 = x0.block_until_ready()[: count - batch * size]
        if sampling.on_chunk is not None:
            sampling.on_chunk(batch * (steps - start) + done - start, total, x0)

    report(0, start, jnp.zeros((size, *shape)))
    if start == steps:
        return np.array(videos, np.float32)
    texts = list(dict.fromkeys(["", *prompts]))
    states = encode_text(model, texts)
    rows = np.array([texts.index(prompt) for prompt in prompts])
    key = jax.random.key(sampling.seed)
    results = []
    for batch, first in enumerate(range(0, count, size)):
        # The last batch is filled up with its last video, to fit what was compiled.
        positions = np.minimum(np.arange(first, first + size), count - 1)
        cond, text = conditioning(key, positions), states[rows[positions]]
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
        x = _start_noise(shape, key, positions)
        if start:
            level = jnp.float32(course.grid.log_snr[start])
            x = add_noise(jnp.asarray(videos[positions], jnp.float32), x, level)
        callback = functools.partial(report, batch)
        carry = sample_in_chunks(step, course.init(x), steps, settings.chunk, callback, start)
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
    has_frames = ("low", "given")
    return {k: windows.cut(v) if k in has_frames else windows.repeat(v) for k, v in cond.items()}


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


def _whole_strides(model: Model, videos: np.ndarray) -> np.ndarray:
    """Clips of any length made a multiple of the temporal stride, by more of the last frame."""
    missing = whole_strides(model, videos.shape[1]) - videos.shape[1]
    return np.pad(videos, ((0, 0), (0, missing), (0, 0), (0, 0), (0, 0)), mode="edge")


def _paste(made: np.ndarray, videos: np.ndarray, masks: np.ndarray, feather: float) -> np.ndarray:
    return paste(made, videos, 1 - (masks > 0.5), feather * min(made.shape[2:4]))


def _check_masked(videos: np.ndarray, masks: np.ndarray, shape: tuple[int, ...]) -> None:
    for name, array, wanted in (("videos", videos, shape), ("masks", masks, (*shape[:-1], 1))):
        if array.shape != wanted:
            raise UserError(f"{name} have shape {array.shape}; expected {wanted}")


def _frames(model: Model, num_frames: int | None) -> int:
    return model.num_frames if num_frames is None else num_frames


def _check_makes_videos(model: Model) -> None:
    if model.super_resolution is not None:
        raise UserError("the model is for super-resolution: it enlarges a video (`upscale`)")


def _check_videos(name: str, videos: np.ndarray, count: int) -> None:
    if videos.ndim != 5 or videos.shape[-1] != 3 or len(videos) != count:
        raise UserError(
            f"{name} have shape {videos.shape}; expected ({count}, T, H, W, 3), one for each prompt"
        )


def _check_text_encoder(model: Model) -> None:
    if model.text_encoder is None:
        raise UserError(
            "the model has no text encoder, which prompts need; "
            "`stunet import-t5 T5_FOLDER MODEL_FOLDER` adds one"
        )
