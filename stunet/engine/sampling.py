"""From prompts to arrays by a jitted sampler: what all calls of the pipeline share."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from stunet.diffusion import (
    START_NOISE,
    Carry,
    Network,
    Schedule,
    SuperResolution,
    Threshold,
    Windows,
    add_noise,
    chunked,
    guided_denoiser,
    keyed_noise,
    make_sampler,
    run_steps,
    sample_in_chunks,
    thresholded_denoiser,
    windowed_denoiser,
)
from stunet.diffusion.multidiffusion import OVERLAP
from stunet.errors import UserError
from stunet.model import Model
from stunet.models.partitioning import AXIS
from stunet.models.t5 import T5Config, T5Encoder
from stunet.models.unet import UNetConfig, check_video_shape, partitioned_unet
from stunet.weights.trees import Tree

# Steps of each sampler unless told otherwise. Of DPM-Solver++(2M) 10 are the fewest that show what
# is asked for as often as 250 ancestral ones, within a point; 15 flicker a little less
# (docs/moving_shapes.md), and its authors have 15 to 20 (2211.01095). 100 ancestral steps are
# DeepFloyd IF's own for its first stage.
DEFAULT_STEPS = {"dpm2m": 10, "ddim": 50, "ancestral": 100}

# (steps done, steps in all, current estimate of x0 [b, T, H, W, 3])
OnChunk = Callable[[int, int, jax.Array], None]


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How to sample: the keyword arguments that `generate` and `upscale` share.

    Video i's noise depends on (seed, i) only: neither the other prompts, nor `batch_size`, nor
    `chunk` change it by more than float rounding. One compile serves all chunks and batches, and
    later calls of the same sizes, also with another seed or guidance scale.

    A clip longer than a window is sampled by MultiDiffusion (`stunet.diffusion.multidiffusion`).
    This process's devices share the work: videos, the two predictions of guidance and windows are
    spread over them, and where these do not suffice a clip's frames.

    Attributes:
      sampler: `dpm2m`, `ddim` or `ancestral`.
      steps: by default the sampler's `DEFAULT_STEPS`.
      guidance_scale: of classifier-free guidance; 1 is none, and halves the cost. Given pixels
        are not guided.
      seed: 0 to 2**32 - 1.
      batch_size: videos sampled at a time.
      window: frames of a window; by default as many as the model was trained on. Give the clip's
        own length to have no windows.
      overlap: frames that neighbouring windows share.
      window_weights: "uniform" or "ramp", see `Windows`.
      windows_at_once: windows that the network works on at a time on each device, which is what
        its memory follows; None for all.
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
    window_weights: str = "ramp"
    windows_at_once: int | None = 1
    chunk: int = 5
    on_chunk: OnChunk | None = None


@dataclasses.dataclass(frozen=True)
class ChunkSettings:
    """All that a chunk of steps is compiled for; hashable.

    Attributes:
      unet, schedule, prediction, variance, threshold, super_resolution: the model's.
      sampler, steps, windows_at_once, chunk: `Sampling`'s.
      guided: whether the guidance scale is another than 1.
      shape: of a video, `(T, H, W, 3)`.
      windows: that it is sampled in.
      mesh: `devices_for`'s.
    """

    unet: UNetConfig
    schedule: Schedule
    prediction: str
    variance: str
    sampler: str
    steps: int
    threshold: Threshold | None
    super_resolution: SuperResolution | None
    guided: bool
    shape: tuple[int, int, int, int]
    windows: Windows
    windows_at_once: int | None
    chunk: int
    mesh: Mesh | None = None


def encode_text(model: Model, prompts: Sequence[str]) -> jax.Array:
    """T5 states `[N, L, D]` float32 of N prompts, `""` among them; padding has states too,
    unless the encoder zeroes them.

    Raises:
      UserError: the model has no text encoder.
    """
    _check_text_encoder(model)
    tokens, mask = model.tokenizer(prompts)
    return _encode(model.text_encoder, model.params["text_encoder"], tokens, mask)


def network(config: UNetConfig, params: Tree, mesh: Mesh | None = None) -> Network:
    """The U-Net as a function (x_t `[B, T, H, W, 3]`, t `[B]`, conditioning) -> its output.

    The conditioning is a dict: `text`, the encoder's states `[B, L, D]`; for super-resolution
    `low`, the augmented clip at the size of x_t, and `noise_level` `[B]`; for a conditional model
    `given`, `[B, T, H, W, 4]`. On a mesh B is spread over its axis "data", T over "frames".
    """
    unet = partitioned_unet(config, mesh)

    def apply(x_t: jax.Array, t: jax.Array, cond: dict[str, jax.Array]) -> jax.Array:
        if mesh is not None:
            rows = NamedSharding(mesh, PartitionSpec("data"))
            x_t, t, cond = jax.lax.with_sharding_constraint((x_t, t, cond), rows)
        x = jnp.concatenate([x_t, cond["low"]], axis=-1) if "low" in cond else x_t
        optional = (cond.get(name) for name in ("noise_level", "known"))
        return unet({"params": params}, x, t, cond["text"], *optional)

    return apply


def devices_for(devices: Sequence[jax.Device], rows: int, frames: int, many: bool) -> Mesh | None:
    """A mesh ("data", "frames") of some of the devices, or None where one can be used.

    Args:
      devices: of this process.
      rows: of the batches that the network is called on.
      frames: of a row's video.
      many: whether the rows are so many windows that they are called part by part, and may be
        filled up to any number.
    """

    def most(count: int, fits: Callable[[int], bool]) -> int:
        return max(n for n in range(1, count + 1) if count % n == 0 and fits(n))

    data = min(len(devices), rows) if many else most(len(devices), lambda n: rows % n == 0)
    split = most(len(devices) // data, lambda n: frames % n == 0)
    if data * split == 1:
        return None
    return Mesh(np.asarray(devices[: data * split]).reshape(data, split), ("data", AXIS))


def windows_of(model: Model, num_frames: int, **sampling: Any) -> Windows:
    """The windows that a clip of `num_frames` is sampled in, with these fields of `Sampling`.

    Raises:
      UserError: there are none such.
    """
    return _windows(model, num_frames, Sampling(**sampling))


def sample(
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
    count, size = len(prompts), min(len(prompts), sampling.batch_size)
    guided, many = sampling.guidance_scale != 1, len(windows.starts) > 1
    called_on = size * len(windows.starts) * (2 if guided else 1)
    mesh = devices_for(jax.local_devices(), called_on, windows.length, many)
    settings = ChunkSettings(
        unet=model.unet,
        schedule=model.schedule,
        prediction=model.prediction,
        variance=model.variance,
        sampler=name,
        steps=steps,
        threshold=model.threshold,
        super_resolution=model.super_resolution,
        guided=guided,
        shape=shape,
        windows=windows,
        windows_at_once=sampling.windows_at_once,
        chunk=min(sampling.chunk, steps),
        mesh=mesh,
    )
    videos, strength = (None, 1.0) if begin is None else begin
    start = steps - round(strength * steps)
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
    on_devices = functools.partial(_on_devices, mesh)
    params = on_devices(model.params["unet"])
    results = []
    for batch, first in enumerate(range(0, count, size)):
        # The last batch is filled up with its last video, to fit what was compiled.
        positions = np.minimum(np.arange(first, first + size), count - 1)
        cond = on_devices({**conditioning(key, positions), "text": states[rows[positions]]})
        empty = on_devices(jnp.broadcast_to(states[:1], cond["text"].shape))
        frames, _ = _frames_and_back(model.super_resolution, cond)
        step = functools.partial(
            run_chunk,
            settings,
            params,
            cond,
            {**cond, "text": empty},
            jnp.float32(sampling.guidance_scale),
            key,
            positions,
        )
        x = _start_noise(shape, key, positions)
        if start:
            level = jnp.float32(course.grid.log_snr[start])
            x = add_noise(jnp.asarray(videos[positions], jnp.float32), x, level)

        def callback(done: int, x0: jax.Array, batch: int = batch, frames=frames) -> None:
            report(batch, done, frames(x0))

        carry = on_devices(course.init(x))
        carry = sample_in_chunks(step, carry, steps, settings.chunk, callback, start)
        results.append(np.asarray(frames(carry.x))[: count - first])
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
    s, net = settings, network(settings.unet, params, settings.mesh)
    frames, diffused = _frames_and_back(s.super_resolution, cond)
    cond, uncond = ({k: v for k, v in tree.items() if k != "large"} for tree in (cond, uncond))
    many = len(s.windows.starts) > 1
    if many:
        cond, uncond = (_of_windows(s.windows, tree) for tree in (cond, uncond))
        net = chunked(net, _rows_at_once(s, len(positions)))
    if "known" in cond:
        # Of given pixels words say nothing: guidance would only magnify the network's errors.
        guidance_scale = jnp.where(cond["known"][..., -1:] > 0.5, 1.0, guidance_scale)
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
        denoiser = windowed_denoiser(denoiser, s.windows)
    if s.threshold is not None:
        bound = s.threshold
        denoiser = thresholded_denoiser(
            denoiser, s.schedule, lambda x0: diffused(bound(frames(x0)))
        )
    sampler = make_sampler(s.sampler, s.schedule, s.steps, variance=s.variance)
    noise_fn = keyed_noise(key, positions, s.shape)
    carry = run_steps(sampler, denoiser, carry, start, s.chunk, noise_fn)
    if s.mesh is None:
        return carry
    # As it came, so that the next chunk runs the same program.
    return jax.lax.with_sharding_constraint(carry, NamedSharding(s.mesh, PartitionSpec()))


def _rows_at_once(settings: ChunkSettings, videos: int) -> int:
    """Rows of a call of the network on some of the windows; on every device as many."""
    windows, devices = videos * len(settings.windows.starts), 1
    if settings.mesh is not None:
        devices = settings.mesh.shape["data"]
    on_each = -(-windows // devices)
    if settings.windows_at_once is not None:
        on_each = min(on_each, settings.windows_at_once)
    return on_each * devices * (2 if settings.guided else 1)


def _on_devices(mesh: Mesh | None, tree: Any) -> Any:
    """The arrays, whole on every device of the mesh."""
    return tree if mesh is None else jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def _frames_and_back(
    config: SuperResolution | None, cond: dict[str, jax.Array]
) -> tuple[Callable[[jax.Array], jax.Array], Callable[[jax.Array], jax.Array]]:
    """From what is diffused to frames, and from frames to what is diffused."""
    if "large" not in cond:
        return (lambda x: x), (lambda x: x)
    large = cond["large"]
    return (lambda x: config.frames(x, large)), (lambda x: config.diffused(x, large))


def _of_windows(windows: Windows, cond: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The conditioning of each window: its frames of what has frames, all of the rest."""
    has_frames = ("low", "known")
    return {k: windows.cut(v) if k in has_frames else windows.repeat(v) for k, v in cond.items()}


@functools.partial(jax.jit, static_argnums=0)
def _start_noise(shape: tuple[int, ...], key: jax.Array, positions: jax.Array) -> jax.Array:
    return keyed_noise(key, positions, shape)(START_NOISE)


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


def frames_of(model: Model, num_frames: int | None) -> int:
    """The frames to make: as many as the model was trained on, unless told otherwise."""
    return model.num_frames if num_frames is None else num_frames


def check_makes_videos(model: Model) -> None:
    """Raises a UserError if the model is for super-resolution."""
    if model.super_resolution is not None:
        raise UserError("the model is for super-resolution: it enlarges a video (`upscale`)")


def _check_text_encoder(model: Model) -> None:
    if model.text_encoder is None:
        raise UserError(
            "the model has no text encoder, which prompts need; "
            "`stunet import-t5 T5_FOLDER MODEL_FOLDER` adds one"
        )
