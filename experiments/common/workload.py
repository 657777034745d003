"""The work of a training step and the speed of its devices, for telemetry."""

import dataclasses

import jax
import optax

from experiments.common.flops import model_flops
from experiments.tpu.topologies import CHIPS
from stunet.models.t5 import T5Config
from stunet.models.unet_config import UNetConfig
from stunet.training.config import TrainConfig
from stunet.training.logs.telemetry import Workload
from stunet.training.program import TrainProgram, abstract_batch, make_update
from stunet.training.step import learning_rate

# JAX's device kinds (jax._src.pallas.mosaic.tpu_info) -> keys of CHIPS.
_CHIP_OF_KIND = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
}


def describe_workload(
    config: TrainConfig,
    unet: UNetConfig,
    text_encoder: T5Config | None,
    num_tokens: int,
    program: TrainProgram,
) -> Workload:
    """Returns what a run computes in a step. Traces the step once, without compiling it.

    Args:
      config: The run.
      unet: Architecture of the U-Net.
      text_encoder: Architecture of the text encoder, None if batches contain text states.
      num_tokens: Number of tokens of a caption.
      program: The run's program.
    """
    kind = program.mesh.devices.flat[0].device_kind

    def rate(step: int) -> float:
        return float(learning_rate(config.optimizer, config.total_steps, step - 1))

    return Workload(
        batch_size=config.batch_size,
        total_steps=config.total_steps,
        learning_rate=rate,
        device_kind=kind,
        num_devices=program.mesh.size,
        step_flops=step_flops(config, unet, text_encoder, num_tokens, program),
        device_peak=peak_flops(kind),
    )


def peak_flops(device_kind: str) -> float | None:
    """Returns the FLOP/s in bfloat16 of a device (`jax.Device.device_kind`); None if unknown."""
    chip = _CHIP_OF_KIND.get(device_kind)
    return None if chip is None else CHIPS[chip].peak


def step_flops(
    config: TrainConfig,
    unet: UNetConfig,
    text_encoder: T5Config | None,
    num_tokens: int,
    program: TrainProgram,
) -> float:
    """Counts the model FLOPs of a train step: loss and gradient, without rematerialisation.

    Matrix products of an optimizer do not count. See `describe_workload` for the arguments.
    """
    plain = dataclasses.replace(config, remat="none", attention="einsum", gradient_accumulation=1)
    update = make_update(plain, unet, text_encoder, optax.identity(), mesh=None)
    state = program.state._replace(opt_state=jax.eval_shape(optax.identity().init, None))
    batch = abstract_batch(config, unet, text_encoder, program.mesh, num_tokens)
    return sum(model_flops(update, state, program.frozen, batch).values())
