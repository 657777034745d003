"""The programs that `experiments.compile` compiles for TPUs, and the compiler's figures of them."""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, SingleDeviceSharding

from experiments.common.flops import model_flops
from experiments.common.networks import IF_M, IF_XL
from experiments.tpu.topologies import CHIPS, compiler_figures, describe_topology
from stunet.diffusion import Windows, resolve_sampler
from stunet.engine.sampling import (
    ChunkSettings,
    run_chunk,
    sampling_mesh,
    sampling_shardings,
    video_shardings,
    zero_inputs,
)
from stunet.errors import UserError
from stunet.model import model_from_folder, parameter_shapes
from stunet.models.t5 import T5Config, TextEncoderConfig
from stunet.models.unet_config import UNetConfig, check_training_shape
from stunet.schema import from_dict
from stunet.text import MAX_TOKENS
from stunet.training.config import TrainConfig
from stunet.training.initial_model import open_named_text_encoder, with_dtype
from stunet.training.mesh import abstract_arrays, check_batch, make_mesh
from stunet.training.program import abstract_batch, build_program, make_update
from stunet.training.step import make_optimizer
from stunet.weights.find_model import find_model_folder
from stunet.weights.model_folder import open_model_folder
from stunet.weights.trees import (
    Tree,
    cast_spatial_kernels,
    count_parameters,
    flatten,
    unflatten,
)

STEPS = 100  # sampling steps
# The compiler's lowest effort: a step of 0.3 B parameters compiled in a quarter of the time.
EFFORT = -1.0

# Architectures that can stand for a model in `init_from` that is not on this machine.
ARCHITECTURES = {"if_i_m": IF_M, "if_i_xl": IF_XL}


class Program(NamedTuple):
    """A program to compile.

    Attributes:
      mesh: Device mesh, None for one device.
      function: The jitted function.
      arguments: Shapes, types and shardings of its arguments.
      unsharded: The same function for one device, not jitted and without rematerialisation, whose
        trace has the FLOPs of the model.
    """

    mesh: Mesh | None
    function: Any
    arguments: tuple
    unsharded: Callable


def compile_for(
    topology: str,
    what: str,
    config: TrainConfig,
    unet: UNetConfig,
    text_encoder: T5Config | None,
    num_tokens: int,
    params: Tree | None = None,
    num_slices: int = 1,
) -> dict[str, Any]:
    """Compiles a program for a TPU topology and returns the compiler's figures for one device.

    Args:
      topology: Topology of a slice, such as "v5p:4x4x4".
      what: A key of `PROGRAMS`.
      config: The training run.
      unet: Architecture of the U-Net, with the stage's additions.
      text_encoder: Architecture of the text encoder, None for text states.
      num_tokens: Number of tokens of a caption.
      params: Shapes and types of the initial model's parameters; None for those of a new model.
      num_slices: Number of slices.

    Raises:
      UserError: the topology is unknown, its number of chips does not suit the config's mesh and
        batch, or the program exceeds a chip's memory.
    """
    chip, devices = describe_topology(topology, num_slices)
    program = PROGRAMS[what](config, devices, unet, text_encoder, num_tokens, params)
    chips = 1 if program.mesh is None else program.mesh.size
    start = time.perf_counter()
    lowered = program.function.lower(*program.arguments)
    try:
        compiled = lowered.compile({"exec_time_optimization_effort": EFFORT})
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        line = next(line for line in str(error).splitlines() if "RESOURCE_EXHAUSTED" in line)
        raise UserError(f"--topology={topology}: out of memory: {line.strip()[:300]}") from error
    report = {
        "topology": topology,
        "slices": num_slices,
        "chips": chips,
        "mesh": {} if program.mesh is None else dict(program.mesh.shape),
        "what": f"{what} {config.stage.name}",
        "compile_s": time.perf_counter() - start,
        "parameters": count_parameters(parameter_shapes(unet, text_encoder)),
        **compiler_figures(compiled, chip),
    }
    report["model_flops"] = sum(model_flops(program.unsharded, *program.arguments).values()) / chips
    seconds, peak = report["estimated_s"], CHIPS[chip].peak
    report["estimated_share_of_peak"] = report["model_flops"] / (seconds * peak)
    report["estimated_hardware_share"] = report["hardware_flops"] / (seconds * peak)
    return report


def read_networks(
    config: TrainConfig, backbone: str | None
) -> tuple[UNetConfig, T5Config | None, int, Tree]:
    """Returns the networks of a training run without making its initial model.

    Args:
      config: The training run.
      backbone: Key of `ARCHITECTURES` to use instead of the model in `init_from`, with cached text
        states. None reads the model.

    Returns:
      Architecture of the U-Net, architecture of the text encoder or None (cached text states),
      number of tokens of a caption, and shapes and types of the initial model's parameters.

    Raises:
      UserError: there is no model in `init_from` and no backbone is given, or the frames do not
        suit the network.
    """
    stage, size = config.stage, config.data.crop or config.data.resolution
    start, text_encoder, num_tokens, stored = None, None, MAX_TOKENS, {}
    if stage.trains_text_encoder:
        text_encoder, num_tokens = stage.text_encoder.t5, stage.text_encoder.max_tokens
    elif backbone is not None:
        start = ARCHITECTURES[backbone]
    elif stage.init_from:
        try:
            folder = find_model_folder(stage.init_from)
        except UserError as error:
            raise UserError(f"{error} (or name its architecture by --backbone)") from error
        content = open_model_folder(folder)
        model = model_from_folder(content, folder)
        start, text_encoder, stored = model.unet, model.text_encoder, flatten(content.params)
        num_tokens = MAX_TOKENS if model.tokenizer is None else model.tokenizer.max_tokens
    if config.data.text_states:
        text_encoder = None
    elif isinstance(stage.text_encoder, str):
        encoder = open_named_text_encoder(stage.text_encoder)
        text = from_dict(TextEncoderConfig, encoder.config, stage.text_encoder)
        text_encoder, num_tokens = text.t5, text.max_tokens
        stored |= flatten({"text_encoder": encoder.params})
    unet = with_dtype(stage.architecture(start), config)
    check_training_shape(unet, config.data.num_frames, size, size)
    # Parameters of `init_from` have its types, added ones those of a new network.
    params = {
        path: jax.ShapeDtypeStruct(leaf.shape, stored[path].dtype) if path in stored else leaf
        for path, leaf in flatten(parameter_shapes(unet, text_encoder)).items()
    }
    return unet, text_encoder, num_tokens, unflatten(params)


def train_program(
    config: TrainConfig,
    devices: Sequence,
    unet: UNetConfig,
    text_encoder: T5Config | None,
    num_tokens: int,
    params: Tree | None = None,
) -> Program:
    """Returns the train step that `experiments.train` runs. See `compile_for` for arguments."""
    mesh = make_mesh(config.mesh.fsdp, config.mesh.frames, devices)
    check_batch(mesh, config.batch_size, config.data.num_frames)
    params = parameter_shapes(unet, text_encoder) if params is None else params
    cast = functools.partial(cast_spatial_kernels, config.stage.frozen_dtype)
    params = {**params, "unet": jax.eval_shape(cast, params["unet"])}
    trained, frozen = config.stage.split(params, config.seed)
    program = build_program(config, unet, text_encoder, trained, frozen, mesh)
    batch = abstract_batch(config, unet, text_encoder, mesh, num_tokens)
    plain = dataclasses.replace(config, remat="none")
    optimizer = make_optimizer(config.optimizer, config.total_steps)
    unsharded = make_update(plain, unet, text_encoder, optimizer, mesh=None)
    return Program(mesh, program.step, (program.state, program.frozen, batch), unsharded)


def sample_program(
    config: TrainConfig,
    devices: Sequence,
    unet: UNetConfig,
    text_encoder: T5Config | None,
    num_tokens: int,
    params: Tree | None = None,
) -> Program:
    """Returns one guided step of the ancestral sampler for `batch_size` videos.

    See `compile_for` for arguments. `text_encoder` and `params` have no effect: the sampler reads
    text states, and its parameters have the compute type of the U-Net.
    """
    del text_encoder, params
    rows, frames, size = config.batch_size, config.data.num_frames, config.data.resolution
    mesh = sampling_mesh(devices, 2 * rows, frames)
    settings = ChunkSettings(
        unet=unet,
        schedule=config.diffusion.schedule,
        prediction=config.diffusion.prediction,
        sampler=resolve_sampler("ancestral"),
        steps=STEPS,
        super_resolution=config.stage.super_resolution,
        shape=(frames, size, size, 3),
        windows=Windows.over(frames, frames, overlap=0),
        mesh=mesh,
    )
    params = parameter_shapes(unet, None)["unet"]
    if unet.dtype == "bfloat16":  # halves the memory of a model that is sampled only
        params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), params)
    inputs = jax.eval_shape(lambda: zero_inputs(settings, rows, num_tokens))

    if mesh is None:
        arguments = abstract_arrays((params, *inputs), SingleDeviceSharding(devices[0]))
    else:
        params = abstract_arrays(params, sampling_shardings(mesh, params))
        arguments = (params, *abstract_arrays(inputs, video_shardings(mesh, inputs)))

    def step(mesh: Mesh | None) -> Callable:
        return functools.partial(run_chunk, dataclasses.replace(settings, mesh=mesh))

    return Program(mesh, jax.jit(step(mesh)), arguments, step(None))


PROGRAMS = {"train": train_program, "sample": sample_program}
