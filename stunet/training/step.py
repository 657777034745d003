"""The training state and the update step."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from stunet.training.losses import Batch, mean_by_noise
from stunet.training.settings import OptimizerConfig
from stunet.weights.trees import Tree


class TrainState(NamedTuple):
    """The arrays that an update changes; frozen parameters are not among them.

    Attributes:
      step: Number of updates so far.
      params: The trained parameters.
      ema: Exponential moving average of `params`.
      opt_state: Optimizer state of `params`.
    """

    step: jax.Array
    params: Tree
    ema: Tree
    opt_state: optax.OptState


# Coefficients of Newton-Schulz iterations, fitted one after the other (arXiv:2505.16932, section
# "Greedy is optimal"). Three of them map singular values above 0.01 of a kernel's norm to 0.73 to
# 1.27; the usual five map them to 0.68 to 1.13.
_NEWTON_SCHULZ = (
    (8.0934, -23.6205, 17.4462),
    (3.6366, -2.7219, 0.5365),
    (2.6613, -1.9772, 0.4526),
)


def make_optimizer(config: OptimizerConfig, total_steps: int) -> optax.GradientTransformation:
    """Returns gradient clipping followed by the optimizer.

    Args:
      config: Optimizer and learning rate schedule.
      total_steps: Length of the run, which the cool-down ends with.
    """

    rate = functools.partial(learning_rate, config, total_steps)

    def matrices(params):
        return jax.tree.map(lambda p: p.ndim > 1, params)

    if config.name == "adamw":
        update = optax.adamw(rate, b2=0.99, weight_decay=config.weight_decay, mask=matrices)
    elif config.name == "muon":
        update = optax.contrib.muon(
            rate,
            weight_decay=config.weight_decay,  # applies to matrices only
            adam_b2=0.99,
            muon_weight_dimension_numbers=_matrix_axes,
            ns_coeffs=_NEWTON_SCHULZ,
            # Scales updates to the RMS of AdamW's, for equal learning rates (2502.16982, 2.2).
            consistent_rms=0.2,
        )
    else:
        # `optax.adafactor` does not multiply weight decay by the learning rate.
        update = optax.chain(
            optax.scale_by_factored_rms(),
            optax.clip_by_block_rms(1.0),
            optax.add_decayed_weights(config.weight_decay, matrices),
            optax.scale_by_learning_rate(rate),
        )
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), update)


def learning_rate(config: OptimizerConfig, total_steps: int, count: jax.typing.ArrayLike):
    """Returns the learning rate of the update after `count` updates; traceable.

    Args:
      config: Learning rate schedule.
      total_steps: Length of the run, which the cool-down ends with.
      count: Number of updates so far.
    """
    rise = (count + 1) / max(1, config.warmup_steps)
    fall = (total_steps - count) / max(1, config.cooldown_steps)
    return config.learning_rate * jnp.clip(jnp.minimum(rise, fall), 0.0, 1.0)


def _matrix_axes(params: Tree) -> Tree:
    """Returns how Muon reads each kernel as a matrix: the last axis is the output, others inputs.

    None for vectors, which are left to Adam.
    """

    def axes(leaf):
        inputs = tuple(range(leaf.ndim - 1))
        return optax.contrib.MuonDimensionNumbers(inputs, leaf.ndim - 1) if inputs else None

    return jax.tree.map(axes, params)


def init_state(params: Tree, optimizer: optax.GradientTransformation) -> TrainState:
    """Returns the state before the first update.

    All arrays are float32, whatever type `params` have: bfloat16 would lose small updates. `ema` is
    a copy of the parameters in memory of its own, because the train step donates both.
    """
    params = jax.tree.map(lambda p: p.astype(jnp.float32), params)
    ema = jax.tree.map(jnp.copy, params)
    return TrainState(jnp.zeros((), jnp.int32), params, ema, optimizer.init(params))


def make_train_step(
    loss: Callable[[Tree, Tree, Batch], jax.Array],
    optimizer: optax.GradientTransformation,
    ema_decay: float,
    gradient_accumulation: int = 1,
    *,
    noise_bins: Callable[[Batch], jax.Array] | None = None,
    unrolled: bool = False,
) -> Callable[[TrainState, Tree, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """Returns an update step `(state, frozen, batch) -> (state, metrics)`, to be jitted.

    Gradients are taken with respect to the trained parameters only, so frozen ones cost neither
    gradients nor optimizer state.

    Metrics are float32 on the device: "loss" (mean of the batch), the global norms "grad_norm" (of
    the gradient before clipping), "param_norm" (of the trained parameters after the update) and
    "update_norm" (of their change), and with `noise_bins` those of `mean_by_noise`.

    Args:
      loss: `(trained, frozen, batch) -> [B]` losses.
      optimizer: See `make_optimizer`.
      ema_decay: Decay of the moving average.
      gradient_accumulation: Number of equal parts that the batch is split into. The update is made
        from their mean gradient.
      noise_bins: Returns the bin of each example's noise level `[B]`; see `losses.noise_bins`.
      unrolled: Whether to unroll the loop over the parts. XLA's CPU backend computes gradients of
        convolutions many times slower inside a loop.
    """

    def train_step(state: TrainState, frozen: Tree, batch: Batch):
        def mean_loss(params, part):
            losses = loss(params, frozen, part)
            by_noise = {} if noise_bins is None else mean_by_noise(losses, noise_bins(part))
            return losses.mean(), by_noise

        (value, by_noise), grads = _mean_gradient(
            mean_loss, state.params, batch, gradient_accumulation, unrolled
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        # A smaller decay at first lets the average forget the random initial parameters.
        decay = jnp.minimum(ema_decay, (1.0 + state.step) / (10.0 + state.step))
        ema = optax.incremental_update(params, state.ema, 1.0 - decay)
        metrics = {
            "loss": value,
            "grad_norm": _global_norm(grads),
            "param_norm": _global_norm(params),
            "update_norm": _global_norm(updates),
            **by_noise,
        }
        return TrainState(state.step + 1, params, ema, opt_state), metrics

    return train_step


def _mean_gradient(
    mean_loss: Callable[[Tree, Batch], tuple[jax.Array, dict[str, jax.Array]]],
    params: Tree,
    batch: Batch,
    parts: int,
    unrolled: bool,
) -> tuple[tuple[jax.Array, dict[str, jax.Array]], Tree]:
    """Returns the means (loss, metrics), and the gradient, of a batch processed in `parts`."""
    gradient = jax.value_and_grad(mean_loss, has_aux=True)
    if parts == 1:
        return gradient(params, batch)

    def add(total, part):
        if unrolled:
            # Makes a part depend on the one before; otherwise XLA keeps activations of several.
            zero = 0.0 * _global_norm(total[1])
            part = jax.tree.map(lambda x: x + zero.astype(x.dtype) if _is_number(x) else x, part)
        return jax.tree.map(jnp.add, total, gradient(params, part)), None

    # A part has every parts-th row, so that no rows move between devices.
    split = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)
    shapes = jax.eval_shape(mean_loss, params, jax.tree.map(lambda x: x[0], split))
    start = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (shapes, params))
    total, _ = jax.lax.scan(add, start, split, unroll=parts if unrolled else 1)
    return jax.tree.map(lambda x: x / parts, total)


def _is_number(x: jax.Array) -> bool:
    return jnp.issubdtype(x.dtype, jnp.number)


def _global_norm(tree: Tree) -> jax.Array:
    # Optax renamed its own function between versions.
    return jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree)))
