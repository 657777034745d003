"""Training state and the update step."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from stunet.training.config import OptimizerConfig
from stunet.training.mesh import parameter_shardings, put_parameters
from stunet.training.stages import Batch, Stage
from stunet.weights.trees import Tree


class TrainState(NamedTuple):
    """What an update changes; frozen parameters are not part of it.

    Attributes:
      step: updates done so far.
      params: the trained parameters.
      ema: their exponential moving average.
      opt_state: the optimiser's state, of the trained parameters only.
    """

    step: jax.Array
    params: Tree
    ema: Tree
    opt_state: optax.OptState


# Newton-Schulz steps fitted one after the other (arXiv:2505.16932, theorem 4.1): three bring all
# singular values from 0.01 of a kernel's norm up to 0.73 to 1.27, the usual five to 0.68 to 1.13.
_NEWTON_SCHULZ = (
    (8.0934, -23.6205, 17.4462),
    (3.6366, -2.7219, 0.5365),
    (2.6613, -1.9772, 0.4526),
)


def make_optimizer(config: OptimizerConfig, total_steps: int) -> optax.GradientTransformation:
    """Clipping, then the optimiser with linear warm-up and, at the end, cool-down."""

    def rate(count):
        rise = (count + 1) / max(1, config.warmup_steps)
        fall = (total_steps - count) / max(1, config.cooldown_steps)
        return config.learning_rate * jnp.clip(jnp.minimum(rise, fall), 0.0, 1.0)

    def matrices(params):
        return jax.tree.map(lambda p: p.ndim > 1, params)

    if config.name == "adamw":
        update = optax.adamw(rate, b2=0.99, weight_decay=config.weight_decay, mask=matrices)
    elif config.name == "muon":
        update = optax.contrib.muon(
            rate,
            weight_decay=config.weight_decay,  # of matrices
            adam_b2=0.99,
            muon_weight_dimension_numbers=_matrix_of_each,
            ns_coeffs=_NEWTON_SCHULZ,
            # Steps as long as AdamW's, so that its learning rates do (arXiv:2502.16982, 2.2).
            consistent_rms=0.2,
        )
    else:
        # `optax.adafactor` would take weight decay off whole, not times the learning rate.
        update = optax.chain(
            optax.scale_by_factored_rms(),
            optax.clip_by_block_rms(1.0),
            optax.add_decayed_weights(config.weight_decay, matrices),
            optax.scale_by_learning_rate(rate),
        )
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), update)


def _matrix_of_each(params: Tree) -> Tree:
    """How a kernel is a matrix: outputs last, all else inputs. None for vectors, which is Adam."""

    def axes(leaf):
        inputs = tuple(range(leaf.ndim - 1))
        return optax.contrib.MuonDimensionNumbers(inputs, leaf.ndim - 1) if inputs else None

    return jax.tree.map(axes, params)


def init_state(params: Tree, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first update; `ema` starts as a copy of `params`.

    All of it is float32, whatever the model was stored in: small updates would be lost in bfloat16.
    """
    params = jax.tree.map(lambda p: p.astype(jnp.float32), params)
    ema = jax.tree.map(jnp.copy, params)
    return TrainState(jnp.zeros((), jnp.int32), params, ema, optimizer.init(params))


def place_state(mesh: Mesh, params: Tree, optimizer: optax.GradientTransformation) -> TrainState:
    """`init_state` on the mesh: all of it is made where it stays."""
    init = functools.partial(init_state, optimizer=optimizer)
    shardings = parameter_shardings(mesh, jax.eval_shape(init, params))
    return jax.jit(init, out_shardings=shardings)(put_parameters(mesh, params))


def make_train_step(
    stage: Stage,
    optimizer: optax.GradientTransformation,
    ema_decay: float,
    seed: int,
    gradient_accumulation: int = 1,
) -> Callable[[TrainState, Tree, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """An update step `(state, frozen, batch) -> (state, metrics)`, to be jitted.

    Gradients are taken with respect to the trained parameters only, so frozen ones cost
    neither gradients nor optimiser state. The batch goes through in `gradient_accumulation`
    parts of equal size, one after the other, for one update from their mean gradient.
    """

    def train_step(state: TrainState, frozen: Tree, batch: Batch):
        def mean_loss(params, part):
            return stage.loss(stage.join(params, frozen), part, seed).mean()

        loss, grads = _mean_gradient(mean_loss, state.params, batch, gradient_accumulation)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        # Early on the average follows quickly, so that it forgets the random start.
        decay = jnp.minimum(ema_decay, (1.0 + state.step) / (10.0 + state.step))
        ema = optax.incremental_update(params, state.ema, 1.0 - decay)
        metrics = {"loss": loss, "grad_norm": _global_norm(grads)}
        return TrainState(state.step + 1, params, ema, opt_state), metrics

    return train_step


def _mean_gradient(
    mean_loss: Callable[[Tree, Batch], jax.Array], params: Tree, batch: Batch, parts: int
) -> tuple[jax.Array, Tree]:
    """The loss and its gradient over a batch that is taken in `parts`."""
    gradient = jax.value_and_grad(mean_loss)
    if parts == 1:
        return gradient(params, batch)

    # In a loop, XLA's CPU backend works on a convolution's gradient many times slower.
    unrolled = jax.default_backend() == "cpu"

    def add(total, part):
        if unrolled:
            # A part waits for the one before; otherwise XLA holds the activations of several.
            done = 0.0 * _global_norm(total[1])
            part = jax.tree.map(lambda x: x + done.astype(x.dtype) if _floats(x) else x, part)
        return jax.tree.map(jnp.add, total, gradient(params, part)), None

    # Every parts-th row makes a part, so that each device keeps the rows that it has.
    split = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)
    zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
    total, _ = jax.lax.scan(add, zero, split, unroll=parts if unrolled else 1)
    return jax.tree.map(lambda x: x / parts, total)


def _floats(x: jax.Array) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating)


def _global_norm(tree: Tree) -> jax.Array:
    # Optax has it under another name in each of its versions.
    return jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree)))
