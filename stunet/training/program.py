"""The program of a training run, for `experiments.train` to run and for others to compile."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from stunet.models.t5 import T5Config
from stunet.models.unet_config import UNetConfig
from stunet.sharding import parameter_shardings
from stunet.training.config import TrainConfig
from stunet.training.losses import Batch, noise_bins
from stunet.training.mesh import abstract_arrays, batch_sharding
from stunet.training.networks import Networks
from stunet.training.step import TrainState, init_state, make_optimizer, make_train_step
from stunet.weights.trees import Tree


@dataclass(frozen=True, eq=False)
class TrainProgram:
    """A jitted train step and the shapes of its arguments.

    Attributes:
      mesh: Device mesh.
      step: The jitted update `(state, frozen, batch) -> (state, metrics)`. It donates the state.
      state: Shapes, types and shardings of the state.
      frozen: Shapes, types and shardings of the frozen parameters.
      init: `trained parameters on the mesh -> state before the first update`, jitted, with the
        shardings of `state`.
    """

    mesh: Mesh
    step: Callable[[TrainState, Tree, Batch], tuple[TrainState, dict[str, jax.Array]]]
    state: TrainState
    frozen: Tree
    init: Callable[[Tree], TrainState]


def build_program(
    config: TrainConfig,
    unet: UNetConfig,
    text_encoder: T5Config | None,
    trained: Tree,
    frozen: Tree,
    mesh: Mesh,
) -> TrainProgram:
    """Builds the program of a training run.

    Args:
      config: The run.
      unet: Architecture of the U-Net.
      text_encoder: Architecture of the text encoder, None if batches contain text states.
      trained: Trained parameters (`Stage.split`): arrays, or their shapes and types.
      frozen: Frozen parameters, or their shapes and types.
      mesh: Device mesh.
    """
    optimizer = make_optimizer(config.optimizer, config.total_steps)

    def init(params: Tree) -> TrainState:
        return init_state(params, optimizer)

    state = jax.eval_shape(init, trained)
    state_shardings = parameter_shardings(mesh, state)
    step = make_update(config, unet, text_encoder, optimizer, mesh)
    return TrainProgram(
        mesh=mesh,
        # Without `out_shardings` the partitioner may return replicated parameters.
        step=jax.jit(step, donate_argnums=0, out_shardings=(state_shardings, None)),
        state=abstract_arrays(state, state_shardings),
        frozen=abstract_arrays(frozen, parameter_shardings(mesh, frozen)),
        init=jax.jit(init, out_shardings=state_shardings),
    )


def make_update(
    config: TrainConfig,
    unet: UNetConfig,
    text_encoder: T5Config | None,
    optimizer: optax.GradientTransformation,
    mesh: Mesh | None,
) -> Callable[[TrainState, Tree, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """Returns the update of a training run, before `jax.jit`.

    Args:
      config: The run.
      unet: Architecture of the U-Net.
      text_encoder: Architecture of the text encoder, None if batches contain text states.
      optimizer: The run's optimizer.
      mesh: Device mesh, None for one device.
    """
    stage, networks = (
        config.stage,
        Networks(unet, text_encoder, mesh, config.remat, config.attention),
    )

    def loss(trained: Tree, frozen: Tree, batch: Batch) -> jax.Array:
        params = stage.loss_params(trained, frozen)
        return stage.loss(networks, config.diffusion, params, batch, config.seed)

    platform = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
    return make_train_step(
        loss,
        optimizer,
        config.optimizer.ema_decay,
        config.gradient_accumulation,
        noise_bins=lambda batch: noise_bins(batch["position"], config.seed),
        unrolled=platform == "cpu",
    )


def abstract_batch(
    config: TrainConfig,
    unet: UNetConfig,
    text_encoder: T5Config | None,
    mesh: Mesh,
    num_tokens: int,
) -> dict[str, Any]:
    """Returns shapes, types and shardings of the run's batches.

    Args:
      config: The run.
      unet: Architecture of the U-Net.
      text_encoder: Architecture of the text encoder. None for batches with text states.
      mesh: Device mesh.
      num_tokens: Number of tokens of a caption.
    """
    rows, data = config.batch_size, config.data
    size = data.crop or data.resolution
    shapes = {
        "video": ((rows, data.num_frames, size, size, 3), data.video_dtype),
        "position": ((rows,), jnp.uint32),
    }
    if data.text_states or text_encoder is None:
        shapes["text_states"] = ((rows, num_tokens, unet.text_dim), jnp.float16)
    else:
        shapes["tokens"] = ((rows, num_tokens), jnp.int32)
        shapes["token_mask"] = ((rows, num_tokens), jnp.bool_)
    batch = {name: jax.ShapeDtypeStruct(*shape) for name, shape in shapes.items()}
    return abstract_arrays(batch, batch_sharding(mesh))
