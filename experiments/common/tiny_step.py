"""A train step of a tiny network on the mesh of a run, for `experiments.pod_check`."""

import math
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from stunet.models.partitioning import FRAME_AXIS
from stunet.sharding import parameter_shardings, put_parameters
from stunet.training.mesh import BATCH, batch_slice, make_mesh, put_batch
from stunet.training.settings import MeshConfig, OptimizerConfig
from stunet.training.step import init_state, make_optimizer, make_train_step

CHANNELS = 32


def time_tiny_step(config: MeshConfig) -> tuple[float, float]:
    """Runs the train step of a tiny network twice on a mesh. All processes have to call this.

    Uses the collectives of training: gradients are reduced over all devices, kernels are sharded
    over the mesh axis "fsdp", and neighbours along the axis "frames" exchange frames.

    Args:
      config: The run's mesh.

    Returns:
      The loss of the second step, and its time in seconds.
    """
    mesh = make_mesh(config.fsdp, config.frames)
    rows, frames = mesh.shape["data"] * config.fsdp, 2 * config.frames
    width = math.lcm(CHANNELS, config.fsdp)
    sharding = NamedSharding(mesh, PartitionSpec(*BATCH, FRAME_AXIS))

    def loss(trained, frozen, batch):
        x = jax.lax.with_sharding_constraint(batch["video"], sharding)
        x = jnp.tanh((x + jnp.roll(x, 1, axis=1)) @ trained["in"]) @ trained["out"]
        return jnp.square(x - batch["video"]).mean(axis=(1, 2))

    optimizer = make_optimizer(OptimizerConfig(warmup_steps=0), total_steps=2)
    rng = np.random.default_rng(0)  # the same values in all processes
    shapes = {"in": (CHANNELS, width), "out": (width, CHANNELS)}
    trained = {name: rng.normal(0, 0.1, shape).astype(np.float32) for name, shape in shapes.items()}
    shardings = parameter_shardings(mesh, jax.eval_shape(lambda: init_state(trained, optimizer)))
    params = put_parameters(mesh, trained)
    state = jax.jit(lambda p: init_state(p, optimizer), out_shardings=shardings)(params)
    update = make_train_step(loss, optimizer, ema_decay=0.99)
    step = jax.jit(update, donate_argnums=0, out_shardings=(shardings, None))

    index, count = batch_slice(mesh)
    video = rng.normal(size=(rows, frames, CHANNELS)).astype(np.float32)
    batch = put_batch(mesh, {"video": video[index * rows // count : (index + 1) * rows // count]})
    for _ in range(2):  # the first one compiles
        start = time.monotonic()
        state, metrics = step(state, {}, batch)
        value = float(metrics["loss"])
    return value, time.monotonic() - start
