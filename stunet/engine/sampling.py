"""Samples videos with a jitted chunk of sampler steps; every call of the engine ends here."""

import dataclasses
import functools
import itertools
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
    run_steps,
    sample_in_chunks,
    thresholded_denoiser,
    windowed_denoiser,
)
from stunet.diffusion.samplers import Sampler, resolve_sampler
from stunet.engine.prompt_schedule import window_texts
from stunet.engine.request import PromptSchedule, Sampling
from stunet.errors import UserError
from stunet.model import Model
from stunet.models.partitioning import FRAME_AXIS
from stunet.models.t5 import T5Config, T5Encoder
from stunet.models.unet import partitioned_unet
from stunet.models.unet_config import UNetConfig, check_video_shape
from stunet.sharding import devices_of, flat_mesh, parameter_shardings, put_array, replicated
from stunet.weights.trees import Tree

# Streams of random numbers of a seed. Editing must not draw the noise that its input may have been
# generated with, and upscaling alone must draw the noise that it draws in a cascade.
BASE_STREAM, EDIT_STREAM, UPSCALE_STREAM = 0, 1, 2  # upscaler i of a job: UPSCALE_STREAM + i
WITH_FRAMES = ("low", "known")  # conditioning [B, T, ...]

# (steps done, total steps, current estimate of x0 [b, T, H, W, 3])
OnChunk = Callable[[int, int, jax.Array], None]
# (key of the seed, row numbers [b]) -> conditioning of these rows, as for `network`
Conditioning = Callable[[jax.Array, np.ndarray], dict[str, jax.Array]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChunkSettings:
    """Static arguments of `run_chunk`; hashable.

    Attributes:
      unet: Architecture.
      schedule: Noise schedule of the model.
      prediction: What the network predicts, "eps", "x0" or "v".
      variance: Variance of the ancestral sampler.
      sampler: Sampler without its grid.
      steps: Sampling steps.
      threshold: Bound on x0. None disables it.
      super_resolution: Super-resolution settings of the model, or None.
      guided: Whether two predictions are combined: the guidance scale differs from 1, and the
        model is not distilled.
      guidance: Method of guidance, see `Sampling`.
      guidance_interval: Timesteps with guidance, see `Sampling`.
      shape: (T, H, W, 3) of a video.
      windows: Windows over time.
      windows_at_once: Windows per network call on each device. None for all.
      chunk: Steps per call.
      mesh: From `sampling_mesh`. None for one device.
    """

    unet: UNetConfig
    schedule: Schedule
    prediction: str
    sampler: Sampler
    steps: int
    shape: tuple[int, int, int, int]
    windows: Windows
    variance: str = "fixed_small"
    threshold: Threshold | None = dataclasses.field(default_factory=Threshold)
    super_resolution: SuperResolution | None = None
    guided: bool = True
    guidance: str = "cfg"
    guidance_interval: tuple[float, float] | None = None
    windows_at_once: int | None = None
    chunk: int = 1
    mesh: Mesh | None = None


def encode_text(model: Model, prompts: Sequence[str]) -> jax.Array:
    """Returns the text encoder's states of N prompts, `[N, L, D]` float32.

    Padding tokens have states, too, unless the encoder zeroes them.

    Raises:
      UserError: The model has no text encoder.
    """
    _check_text_encoder(model)
    tokens, mask = model.tokenizer(prompts)
    params = model.params["text_encoder"]
    devices = devices_of(params)
    # XLA splits the matrix products as the parameters are sharded, and sums activations.
    sharding = replicated(flat_mesh(devices)) if len(devices) > 1 else None
    return _encode(model.text_encoder, sharding, params, tokens, mask)


def network(config: UNetConfig, params: Tree, mesh: Mesh | None = None) -> Network:
    """Returns the U-Net as a function (x_t `[B, T, H, W, 3]`, t `[B]`, conditioning) -> output.

    The conditioning is a dict: `text`, the text encoder's states `[B, L, D]`; for super-resolution
    `low`, the augmented low-resolution clip at the size of x_t, and `noise_level` `[B]`; for a
    conditional model `known`, `[B, T, H, W, 4]` (`stunet.diffusion.mask_conditioning`); for a
    distilled model `guidance_scale` `[B]`. On a mesh,
    B is sharded over axis "fsdp" (padded with copies of the last row), and T over axis "frames".
    """
    unet = partitioned_unet(config, mesh)

    def apply(params: Tree, x_t: jax.Array, t: jax.Array, cond: dict[str, jax.Array]) -> jax.Array:
        x = jnp.concatenate([x_t, cond["low"]], axis=-1) if "low" in cond else x_t
        optional = (cond.get(name) for name in ("noise_level", "known", "guidance_scale"))
        return unet({"params": params}, x, t, cond["text"], *optional)

    if mesh is None:
        return functools.partial(apply, params)

    def apply_sharded(x_t: jax.Array, t: jax.Array, cond: dict[str, jax.Array]) -> jax.Array:
        count, shards = len(x_t), mesh.shape["fsdp"]
        padded = np.minimum(np.arange(-(-count // shards) * shards), count - 1)
        inputs = (x_t, t, cond)
        if len(padded) > count:
            inputs = jax.tree.map(lambda a: a[padded], inputs)
        rows = NamedSharding(mesh, PartitionSpec("fsdp"))
        inputs = jax.lax.with_sharding_constraint(inputs, rows)
        # Ties the parameters to the step. Otherwise XLA may all-gather them before the loops over
        # steps and windows, so that every device holds the whole model.
        own, inputs = jax.lax.optimization_barrier((params, inputs))
        return apply(own, *inputs)[:count]

    return apply_sharded


def frame_by_frame(net: Network) -> Network:
    """Returns a network that processes each frame as a video of one frame: the image model."""

    def apply(x_t: jax.Array, t: jax.Array, cond: dict[str, jax.Array]) -> jax.Array:
        frames = x_t.shape[1]

        def split(name: str, a: jax.Array) -> jax.Array:
            if name in WITH_FRAMES:
                return a.reshape(-1, 1, *a.shape[2:])
            return jnp.repeat(a, frames, axis=0)

        output = net(
            split("low", x_t), split("t", t), {name: split(name, a) for name, a in cond.items()}
        )
        return output.reshape(*x_t.shape[:2], *output.shape[2:])

    return apply


def sampling_mesh(devices: Sequence[jax.Device], rows: int, frames: int) -> Mesh | None:
    """Returns a mesh ("fsdp", "frames") over all devices. None for one device.

    Rows are sharded over "fsdp" and frames over "frames". Of all shapes whose second size divides
    the frames, it has the one with the fewest frames per device, then with the fewest shards of a
    row.

    Args:
      devices: Devices that hold the parameters.
      rows: Rows that the network has to process.
      frames: Frames per row.
    """
    count = len(devices)
    if count == 1:
        return None

    def frames_per_device(shards: int) -> int:
        return -(-rows // (count // shards)) * (frames // shards)

    divisors = [n for n in range(1, count + 1) if count % n == 0 and frames % n == 0]
    shards = min(divisors, key=frames_per_device)
    return Mesh(np.asarray(devices).reshape(-1, shards), ("fsdp", FRAME_AXIS))


def sampling_shardings(mesh: Mesh, params: Tree) -> Tree:
    """Returns shardings of parameters over all devices of a mesh from `sampling_mesh`.

    On `stunet.sharding.flat_mesh` of the same devices, each device has the same shard.
    """
    return parameter_shardings(mesh, params, ("fsdp", FRAME_AXIS))


def stream_key(seed: int, stream: int) -> jax.Array:
    """Returns the key of a stream of random numbers: `BASE_STREAM` has the seed's own key."""
    key = jax.random.key(seed)
    # Keys of videos are folded in from 0 on, so that streams count from the other half.
    return key if stream == BASE_STREAM else jax.random.fold_in(key, 2**31 + stream)


def with_model_defaults(sampling: Sampling, model: Model) -> Sampling:
    """Returns the settings with the model's own sampler, steps and guidance scale for None.

    Raises:
      UserError: The sampler is unknown, or cannot take this number of steps, or the model was
        distilled to other settings.
    """
    own = model.sampling
    sampler = own.sampler if sampling.sampler is None else sampling.sampler
    steps = own.steps if sampling.steps is None else sampling.steps
    for name, value in (("steps", steps), ("sampler", sampler)):
        if own.only and value != (expected := getattr(own, name)):
            raise UserError(f"{name}: {value!r}, expected {expected!r}, as the model is distilled")
    resolved = resolve_sampler(sampler)
    steps = resolved.default_steps if steps is None else steps
    resolved.bind(model.schedule, steps, variance=model.variance)
    scale = own.guidance_scale if sampling.guidance_scale is None else sampling.guidance_scale
    dataclasses.replace(own, guidance_scale=scale)  # checks it
    return dataclasses.replace(sampling, sampler=sampler, steps=steps, guidance_scale=scale)


def video_shardings(mesh: Mesh, tree: Any) -> Any:
    """Returns shardings of the sampler's state and conditioning outside of the network.

    Rows of pixels of videos `[B, T, H, W, C]` are split among all devices if their number divides
    H. A batch may be of one video, and windows of frames overlap. Other arrays are replicated.
    """
    # JAX drops axes of size 1 from the shardings of a program's output. If those of its input named
    # them, the second chunk would compile again.
    axes = tuple(axis for axis, size in mesh.shape.items() if size > 1)

    def sharding(array) -> NamedSharding:
        if len(array.shape) != 5 or array.shape[2] % mesh.size:
            return replicated(mesh)
        return NamedSharding(mesh, PartitionSpec(None, None, axes))

    return jax.tree.map(sharding, tree)


def windows_for(model: Model, num_frames: int, sampling: Sampling) -> Windows:
    """Returns the windows in which a clip is sampled.

    Raises:
      UserError: The model generates images only, or the window settings are invalid.
    """
    if model.unet.temporal is None and num_frames != 1:
        raise UserError(f"num_frames: invalid value {num_frames}, expected 1 (an image model)")
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


def sample(
    model: Model,
    prompts: Sequence[str],
    shape: tuple[int, int, int, int],
    sampling: Sampling,
    *,
    windows: Windows,
    prompt_schedule: PromptSchedule = (),
    conditioning: Conditioning | None = None,
    start: np.ndarray | None = None,
    strength: float = 1.0,
    stream: int = BASE_STREAM,
    on_chunk: OnChunk | None = None,
) -> np.ndarray:
    """Samples one video per prompt.

    Args:
      model: Any model with a text encoder.
      prompts: N texts.
      shape: (T, H, W, 3) of a video.
      sampling: Sampler settings.
      windows: From `windows_for`.
      prompt_schedule: Texts of later windows of all videos, see `Request`.
      conditioning: Conditioning besides the text.
      start: Videos `[N, T, H, W, 3]` to start from (SDEdit, 2108.01073).
      strength: Fraction of the steps that is taken from `start`.
      stream: Stream of random numbers, see `stream_key`.
      on_chunk: Called once before compilation, with 0 steps and zeros, and after every chunk;
        steps are counted over all batches. An exception that it raises ends the sampling.

    Returns:
      `[N, T, H, W, 3]` float32.

    Raises:
      UserError: No prompt, no text encoder, a frame size or number that the model cannot take, an
        invalid sampler setting, or output that is not finite.
    """
    if not prompts:
        raise UserError("prompts: empty, expected at least one text")
    _check_text_encoder(model)
    check_video_shape(model.unet, windows.length, *shape[1:3])
    sampling = with_model_defaults(sampling, model)
    sampler, steps = resolve_sampler(sampling.sampler), sampling.steps
    schedule = sampler.bind(model.schedule, steps, variance=model.variance)
    count, size = len(prompts), min(len(prompts), sampling.batch_size)
    guided = sampling.guidance_scale != 1 and not model.unet.guidance_embedding
    rows = size * len(windows.starts) * _rows_per_video(guided, sampling.guidance)
    mesh = sampling_mesh(devices_of(model.params["unet"]), rows, windows.length)
    settings = ChunkSettings(
        unet=model.unet,
        schedule=model.schedule,
        prediction=model.prediction,
        variance=model.variance,
        sampler=sampler,
        steps=steps,
        threshold=model.threshold,
        super_resolution=model.super_resolution,
        guided=guided,
        guidance=sampling.guidance,
        guidance_interval=sampling.guidance_interval,
        shape=shape,
        windows=windows,
        windows_at_once=sampling.windows_at_once,
        chunk=min(sampling.chunk, steps),
        mesh=mesh,
    )
    first_step = 0 if start is None else steps - round(strength * steps)
    total = -(-count // size) * (steps - first_step)

    def report(batch: int, done: int, x0: jax.Array) -> None:
        # Dispatch is asynchronous: without waiting, progress would run ahead of the computation.
        x0 = x0.block_until_ready()[: count - batch * size]
        if on_chunk is not None:
            on_chunk(batch * (steps - first_step) + done - first_step, total, x0)

    report(0, first_step, jnp.zeros((size, *shape)))
    if first_step == steps:
        return np.array(start, np.float32)
    of_windows = [window_texts(prompt, prompt_schedule, windows) for prompt in prompts]
    texts = list(dict.fromkeys([sampling.negative_prompt, *itertools.chain(*of_windows)]))
    states = encode_text(model, texts)
    text_rows = np.array([[texts.index(text) for text in row] for row in of_windows])  # [N, W]
    if not prompt_schedule or len(windows.starts) == 1:
        text_rows = text_rows[:, 0]
    key = stream_key(sampling.seed, stream)
    params = model.params["unet"]
    put = functools.partial(_put, mesh or devices_of(params)[0])
    if mesh is not None:
        params = jax.device_put(params, sampling_shardings(mesh, params))
    results = []
    for batch, first in enumerate(range(0, count, size)):
        # The last batch is padded with its last video, to fit the compiled program.
        positions = np.minimum(np.arange(first, first + size), count - 1)
        extra = {} if conditioning is None else conditioning(key, positions)
        cond = put({**extra, "text": states[text_rows[positions]]})
        negative = put(jnp.broadcast_to(states[:1], cond["text"].shape))
        to_frames, _ = _frame_transforms(model.super_resolution, cond)
        step = functools.partial(
            run_chunk,
            settings,
            params,
            cond,
            {**cond, "text": negative},
            jnp.float32(sampling.guidance_scale),
            key,
            positions,
        )
        x = _start_noise(shape, key, positions)
        if sampling.window_noise == "shuffled" and stream < UPSCALE_STREAM:
            x = x[:, windows.noise_frames]
        if first_step:
            level = jnp.float32(schedule.grid.log_snr[first_step])
            x = add_noise(jnp.asarray(start[positions], jnp.float32), x, level)

        def callback(done: int, x0: jax.Array, batch: int = batch, to_frames=to_frames) -> None:
            report(batch, done, to_frames(x0))

        carry = put(schedule.init(x))
        carry = sample_in_chunks(step, carry, steps, settings.chunk, callback, first_step)
        videos = to_frames(carry.x)
        if mesh is not None:
            videos = jax.device_put(videos, replicated(mesh))
        results.append(np.asarray(videos)[: count - first])
    result = np.concatenate(results)
    if not np.isfinite(result).all():
        raise UserError("model: its output is not finite, expected usable parameters")
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
    """Takes `settings.chunk` steps of the sampler, from step `start` on.

    The order of operations: guide -> average over windows -> threshold once -> step.

    Args:
      settings: Static.
      params: Parameters of the U-Net.
      cond: Conditioning of the B videos, as for `network`, or `text` `[B, W, L, D]` for each of W
        windows.
      uncond: Conditioning with the empty prompt.
      guidance_scale: Scalar.
      key: Key of the seed.
      positions: `[B]`, the videos' positions in the job.
      carry: State of the sampler, `[B, T, H, W, 3]`.
      start: Index of the first step.
    """
    s, net = settings, network(settings.unet, params, settings.mesh)
    to_frames, from_frames = _frame_transforms(s.super_resolution, cond)
    cond, uncond = ({k: v for k, v in tree.items() if k != "large"} for tree in (cond, uncond))
    if s.unet.guidance_embedding:
        cond["guidance_scale"] = jnp.broadcast_to(guidance_scale, positions.shape)
    several = len(s.windows.starts) > 1
    worse = frame_by_frame(network(settings.unet, params)) if s.guidance == "image" else None
    if several:
        cond, uncond = (_split_conditioning(s.windows, tree) for tree in (cond, uncond))
        rows = _rows_per_call(s, len(positions))
        net, worse = chunked(net, rows), worse and chunked(worse, rows)
    if "known" in cond:
        # Disable guidance on known pixels: the prompt adds no information there, so guidance only
        # amplifies errors.
        guidance_scale = jnp.where(cond["known"][..., -1:] > 0.5, 1.0, guidance_scale)
    denoiser = guided_denoiser(
        net,
        s.schedule,
        s.prediction,
        cond,
        uncond,
        guidance_scale if s.guided else 1,
        learned_variance=s.variance == "learned_range",
        method=s.guidance,
        worse=worse,
        interval=s.guidance_interval,
    )
    if several:
        denoiser = windowed_denoiser(denoiser, s.windows)
    if s.threshold is not None:
        bound = s.threshold
        denoiser = thresholded_denoiser(
            denoiser, s.schedule, lambda x0: from_frames(bound(to_frames(x0)))
        )
    sampler = s.sampler.bind(s.schedule, s.steps, variance=s.variance)
    noise_fn = keyed_noise(key, positions, s.shape)
    carry = run_steps(sampler, denoiser, carry, start, s.chunk, noise_fn)
    if s.mesh is None:
        return carry
    # Keep the sharding of the input, so that the next chunk runs the same program.
    return jax.lax.with_sharding_constraint(carry, video_shardings(s.mesh, carry))


def zero_inputs(settings: ChunkSettings, rows: int, num_tokens: int) -> tuple:
    """Returns the arguments of `run_chunk` after `params`, filled with zeros, to compile it."""
    video = jnp.zeros((rows, *settings.shape))
    cond = {"text": jnp.zeros((rows, num_tokens, settings.unet.text_dim))}
    if settings.super_resolution is not None:
        cond |= {"low": video, "noise_level": jnp.zeros(rows)}
        if settings.super_resolution.residual_scale:
            cond["large"] = video
    if settings.unet.cond_channels:
        cond["known"] = jnp.zeros((*video.shape[:-1], settings.unet.cond_channels))
    sampler = settings.sampler.bind(settings.schedule, settings.steps, variance=settings.variance)
    key, positions = jax.random.key(0), jnp.zeros(rows, jnp.int32)
    return cond, cond, jnp.float32(4), key, positions, sampler.init(video), jnp.int32(0)


def _rows_per_call(settings: ChunkSettings, videos: int) -> int:
    """Rows of a network call on some of the windows; the same number on every device."""
    windows, devices = videos * len(settings.windows.starts), 1
    if settings.mesh is not None:
        devices = settings.mesh.shape["fsdp"]
    per_device = -(-windows // devices)
    if settings.windows_at_once is not None:
        per_device = min(per_device, settings.windows_at_once)
    return per_device * devices * _rows_per_video(settings.guided, settings.guidance)


def _rows_per_video(guided: bool, guidance: str) -> int:
    return 2 if guided and guidance != "image" else 1


def _put(mesh: Mesh | jax.Device, tree: Any) -> Any:
    """Copies arrays, which all processes have, to all devices, sharded by `video_shardings`."""
    if isinstance(mesh, jax.Device):
        # The results of a chunk are committed to the device if the parameters are; if the first
        # chunk's inputs were not, the second chunk would compile again.
        return jax.device_put(tree, mesh)
    shardings = video_shardings(mesh, tree)
    if replicated(mesh).is_fully_addressable:
        return jax.device_put(tree, shardings)
    return jax.tree.map(put_array, tree, shardings)


def _frame_transforms(
    config: SuperResolution | None, cond: dict[str, jax.Array]
) -> tuple[Callable[[jax.Array], jax.Array], Callable[[jax.Array], jax.Array]]:
    """Functions from the diffused variable to frames, and back."""
    if "large" not in cond:
        return (lambda x: x), (lambda x: x)
    large = cond["large"]
    return (lambda x: config.to_frames(x, large)), (lambda x: config.from_frames(x, large))


def _split_conditioning(windows: Windows, cond: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Conditioning per window: splits what has a time axis, repeats the rest."""

    def split(name: str, value: jax.Array) -> jax.Array:
        if name in WITH_FRAMES:
            return windows.split(value)
        if name == "text" and value.ndim == 4:  # windows have texts of their own
            return value.reshape(-1, *value.shape[2:])
        return windows.repeat(value)

    return {name: split(name, value) for name, value in cond.items()}


@functools.partial(jax.jit, static_argnums=0)
def _start_noise(shape: tuple[int, ...], key: jax.Array, positions: jax.Array) -> jax.Array:
    return keyed_noise(key, positions, shape)(START_NOISE)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _encode(
    config: T5Config,
    sharding: NamedSharding | None,
    params: Tree,
    tokens: jax.Array,
    mask: jax.Array,
) -> jax.Array:
    states = T5Encoder(config).apply({"params": params}, tokens, mask).astype(jnp.float32)
    return states if sharding is None else jax.lax.with_sharding_constraint(states, sharding)


def _check_text_encoder(model: Model) -> None:
    if model.text_encoder is None:
        raise UserError(
            "model: no text encoder, expected one to encode prompts "
            "(`stunet import-t5 T5_FOLDER MODEL_FOLDER` adds it)"
        )
