"""The programs that `experiments.compile` compiles, and what the compiler says of them."""

import dataclasses
import functools
import json
import time
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, Sharding, SingleDeviceSharding

from experiments.common.flops import model_flops
from experiments.common.networks import IF_M, IF_XL
from experiments.tpu.topologies import CHIPS, describe_topology, measures
from stunet.diffusion import COND_CHANNELS, Threshold, Windows, make_sampler
from stunet.engine import ChunkSettings, devices_for, run_chunk
from stunet.errors import UserError
from stunet.model import parameter_shapes
from stunet.models.t5 import T5Config
from stunet.models.unet import UNetConfig, check_video_shape
from stunet.schema import from_dict
from stunet.training.config import TrainConfig
from stunet.training.initial_model import with_frozen_kernels_in
from stunet.training.mesh import (
    batch_sharding,
    check_batch,
    mesh_over,
    parameter_shardings,
    replicated,
)
from stunet.training.stages import Networks, make_stage
from stunet.training.step import init_state, make_optimizer, make_train_step
from stunet.weights.model_folder import find_model_folder
from stunet.weights.trees import count

STEPS = 100
# The compiler's least: a step of 0.3 B parameters took a quarter of the time to compile.
EFFORT = -1.0

ATTENTION_SIZE = 32  # pixels; the largest frames that IF's first stages attend over

# Models that a stage may start from, by name, where they are not there.
ARCHITECTURES = {"if_i_m": IF_M, "if_i_xl": IF_XL}


def compile_for(
    topology: str,
    what: str,
    config: TrainConfig,
    unet: UNetConfig,
    t5: T5Config | None,
    tokens: int,
) -> dict[str, Any]:
    """Figures of one device, of the program `what` ("train" or "sample").

    Raises:
      UserError: there is no such topology, its number of chips does not suit the config's mesh and
        batch, or the program does not fit a chip's memory.
    """
    chip, devices = describe_topology(topology)
    program = {"train": train_program, "sample": sample_program}[what]
    mesh, function, arguments, plain = program(config, devices, unet, t5, tokens)
    chips = 1 if mesh is None else mesh.size
    start = time.perf_counter()
    lowered = function.lower(*arguments)
    try:
        compiled = lowered.compile({"exec_time_optimization_effort": EFFORT})
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        line = next(line for line in str(error).splitlines() if "RESOURCE_EXHAUSTED" in line)
        raise UserError(f"it does not fit: {line.strip()[:300]}") from error
    report = {
        "topology": topology,
        "chips": chips,
        "mesh": {} if mesh is None else dict(mesh.shape),
        "what": f"{what} {config.stage}",
        "compile_s": time.perf_counter() - start,
        "parameters": count(parameter_shapes(unet, t5)),
        **measures(compiled, chip),
    }
    report["model_flops"] = sum(model_flops(plain, *arguments).values()) / chips
    seconds, peak = report["estimated_s"], CHIPS[chip].peak
    report["estimated_share_of_peak"] = report["model_flops"] / (seconds * peak)
    report["estimated_hardware_share"] = report["hardware_flops"] / (seconds * peak)
    return report


def networks_of(
    config: TrainConfig, backbone: str | None
) -> tuple[UNetConfig, T5Config | None, int]:
    """The U-Net that the stage trains, the text encoder or None, and tokens of a caption.

    Args:
      config: the stage's.
      backbone: of `ARCHITECTURES`, to stand for the model in `init_from`; None to read that.

    Raises:
      UserError: the model that the stage starts from is not there and no backbone is given, or the
        frames do not suit the network.
    """
    size = config.data.get("crop") or config.data["resolution"]
    if config.unet is not None:
        unet, text = config.unet, config.text_encoder
        t5, tokens = text.t5, text.max_tokens
    elif backbone is not None:
        unet, t5, tokens = laid_out(ARCHITECTURES[backbone], size), None, 77
    else:
        try:
            path = find_model_folder(config.init_from) / "config.json"
        except UserError as error:
            raise UserError(f"{error}; or say what it is by --backbone") from error
        content = json.loads(path.read_text())
        unet = from_dict(UNetConfig, content["architecture"], str(path))
        t5, tokens = None, (content["text_encoder"] or {"max_tokens": 77})["max_tokens"]
    unet = dataclasses.replace(
        unet,
        temporal=config.temporal or unet.temporal,
        dtype=config.dtype or unet.dtype,
    )
    if config.stage == "conditional":
        unet = dataclasses.replace(
            unet, cond_channels=COND_CHANNELS, cond_in_blocks=config.cond_in_blocks
        )
    check_video_shape(unet, config.data["num_frames"], size, size)
    return unet, t5, tokens


def laid_out(unet: UNetConfig, size: int) -> UNetConfig:
    """A first stage of IF for frames of `size` pixels: attention where they are at most 32 wide.

    At IF's own 64 pixels that is its layout. What 128 pixels would take where they are 64 wide is
    written in docs/scaling.md.
    """
    levels = range(len(unet.channels))
    return dataclasses.replace(
        unet, attention_levels=tuple(size >> level <= ATTENTION_SIZE for level in levels)
    )


def train_program(
    config: TrainConfig, devices: list, unet: UNetConfig, t5: T5Config | None, tokens
):
    """The mesh, the jitted training step, its arguments' shapes, and the step for one device, which
    recomputes nothing.
    """
    mesh = mesh_over(devices, config.mesh.fsdp, config.mesh.frames)
    check_batch(mesh, config.batch_size, config.data["num_frames"])

    def step(remat: str, mesh: Mesh | None):
        networks = Networks(unet, t5, remat, config.super_resolution, config.conditioning, mesh)
        stage = make_stage(
            config.stage,
            networks,
            config.diffusion,
            trains=config.trains,
            frozen=config.frozen,
            text_denoising=config.text_denoising,
            adapter_rank=config.adapter_rank,
        )
        update = make_train_step(
            stage,
            optimizer,
            config.optimizer.ema_decay,
            config.seed,
            gradient_accumulation=config.gradient_accumulation,
        )
        return stage, update

    optimizer = make_optimizer(config.optimizer, config.total_steps)
    stage, update = step(config.remat, mesh)
    params = parameter_shapes(unet, t5)
    cast = functools.partial(with_frozen_kernels_in, config.frozen_dtype)
    params["unet"] = jax.eval_shape(cast, params["unet"])
    trained, frozen = stage.split(params, config.seed)
    state = jax.eval_shape(lambda params: init_state(params, optimizer), trained)
    size = config.data.get("crop") or config.data["resolution"]
    rows, data = config.batch_size, config.data
    batch: dict[str, Any] = {
        "video": _struct((rows, data["num_frames"], size, size, 3), jnp.float32),
        "position": _struct((rows,), jnp.uint32),
    }
    if t5 is None:
        batch["text_states"] = _struct((rows, tokens, unet.text_dim), jnp.float16)
    else:
        batch["tokens"] = _struct((rows, tokens), jnp.int32)
        batch["token_mask"] = _struct((rows, tokens), jnp.bool_)
    arguments = (
        _lying(state, parameter_shardings(mesh, state)),
        _lying(frozen, parameter_shardings(mesh, frozen)),
        _lying(batch, batch_sharding(mesh)),
    )
    # Where the state lies it stays, as `experiments.train` finds it again after each step.
    outputs = (parameter_shardings(mesh, state), None)
    step_fn = jax.jit(update, donate_argnums=0, out_shardings=outputs)
    return mesh, step_fn, arguments, step("none", None)[1]


def sample_program(
    config: TrainConfig, devices: list, unet: UNetConfig, t5: T5Config | None, tokens
):
    """The mesh, a jitted sampler's step, its arguments' shapes, and the step for one device."""
    enlarging, rows = config.super_resolution, config.batch_size
    frames, size = config.data["num_frames"], config.data["resolution"]
    mesh = devices_for(devices, 2 * rows, frames, many=False)
    shape = (frames, size, size, 3)
    settings = ChunkSettings(
        unet=unet,
        schedule=config.diffusion.schedule,
        prediction=config.diffusion.prediction,
        variance="fixed_small",
        sampler="ancestral",
        steps=STEPS,
        threshold=Threshold(),
        super_resolution=enlarging,
        guided=True,
        shape=shape,
        windows=Windows.over(frames, frames, overlap=0),
        windows_at_once=None,
        chunk=1,
        mesh=mesh,
    )
    sampler = make_sampler("ancestral", settings.schedule, STEPS, variance="fixed_small")
    params = parameter_shapes(unet, None)["unet"]
    if unet.dtype == "bfloat16":  # as a model for sampling may lie in memory
        params = jax.tree.map(lambda leaf: _struct(leaf.shape, jnp.bfloat16), params)

    def inputs():
        video = jnp.zeros((rows, *shape))
        cond = {"text": jnp.zeros((rows, tokens, unet.text_dim))}
        if enlarging is not None:
            cond |= {"low": video, "noise_level": jnp.zeros(rows)}
            cond |= {"large": video} if enlarging.residual_scale else {}
        if unet.cond_channels:
            cond["known"] = jnp.zeros((*video.shape[:-1], unet.cond_channels))
        key, positions = jax.random.key(0), jnp.zeros(rows, jnp.int32)
        return cond, cond, jnp.float32(4), key, positions, sampler.init(video), jnp.int32(0)

    # As the pipeline has it: on every device whole.
    everywhere = SingleDeviceSharding(devices[0]) if mesh is None else replicated(mesh)
    arguments = (_lying(params, everywhere), *_lying(jax.eval_shape(inputs), everywhere))

    def step(mesh: Mesh | None):
        return functools.partial(run_chunk, dataclasses.replace(settings, mesh=mesh))

    return mesh, jax.jit(step(mesh)), arguments, step(None)


def _struct(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def _lying(tree: Any, shardings: Any) -> Any:
    """Shapes with where their arrays lie; one sharding for all, or a tree of them."""
    if isinstance(shardings, Sharding):
        shardings = jax.tree.map(lambda _: shardings, tree)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
        shardings,
    )
