"""Parameters of a run on its mesh. Each process reads only the shards of its own devices."""

import math
from functools import partial

import jax
from jax.sharding import Mesh

from stunet.model import Model
from stunet.sharding import parameter_shardings, put_parameters
from stunet.training.stages import Stage
from stunet.weights.trees import Tree, flatten, unflatten

# Size on a device of the parameters that one program initialises. The program needs about 1.4 times
# that size in temporary arrays, and each further program is compiled again.
INIT_BYTES = 256 * 2**20


def put_or_init(stage: Stage, model: Model, params: Tree, mesh: Mesh, seed: int) -> Tree:
    """Returns parameters on the mesh, those of other models read and new ones initialised.

    Args:
      stage: The run's stage, which initialises new parameters.
      model: Architectures of the networks.
      params: Some of the networks' parameters: arrays, lazy tensors, or shapes of new ones.
      mesh: Device mesh.
      seed: The run's seed.

    Returns:
      Arrays sharded by `stunet.sharding.parameter_shardings`.
    """
    flat = flatten(params)
    new = {path: leaf for path, leaf in flat.items() if isinstance(leaf, jax.ShapeDtypeStruct)}
    stored = {path: leaf for path, leaf in flat.items() if path not in new}
    arrays = put_parameters(mesh, stored) | init_parameters(stage, model, new, seed, mesh)
    return unflatten({path: arrays[path] for path in flat})


def init_parameters(
    stage: Stage, model: Model, shapes: Tree, seed: int, mesh: Mesh | None = None
) -> dict[str, jax.Array]:
    """Initialises parameters, each shard on its own device.

    Args:
      stage: The run's stage.
      model: Architectures of the networks.
      shapes: Shapes of the parameters by path; XLA eliminates the computation of others.
      seed: The run's seed.
      mesh: Device mesh. None for JAX's default device.
    """
    shardings = None if mesh is None else parameter_shardings(mesh, shapes)

    def init(key: jax.Array, paths: list[str]) -> dict[str, jax.Array]:
        params = flatten(stage.init(model.unet, model.text_encoder, key))
        return {path: params[path] for path in paths}

    arrays = {}
    for paths in _groups(shapes, shardings):
        out = None if shardings is None else {path: shardings[path] for path in paths}
        program = jax.jit(partial(init, paths=paths), out_shardings=out)
        # Waits, so that one group's random bits are freed before the next group's are made.
        arrays |= jax.block_until_ready(program(jax.random.key(seed)))
    return arrays


def _groups(shapes: Tree, shardings: Tree | None) -> list[list[str]]:
    """Splits paths into groups whose parameters have at most `INIT_BYTES` on each device."""
    groups: list[list[str]] = []
    size = INIT_BYTES
    for path, leaf in shapes.items():
        shape = leaf.shape if shardings is None else shardings[path].shard_shape(leaf.shape)
        nbytes = math.prod(shape) * leaf.dtype.itemsize
        if size + nbytes > INIT_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(path)
        size += nbytes
    return groups
