"""Losses of distillation: a student learns what a teacher computes in several network calls.

- Guidance (2210.03142, section 3.1): the student predicts the output of classifier-free guidance,
  two calls of the teacher, given the guidance scale.
- Steps (progressive distillation, 2202.00512, section 3): the student predicts the x0 with which
  one of its DDIM steps equals two of the teacher's.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from stunet.diffusion import (
    TimeGrid,
    add_noise,
    alpha_sigma,
    sample_training_time,
    simple_loss,
    split_output,
    to_prediction,
)
from stunet.diffusion.prediction import expand
from stunet.text import EOS_ID, PAD_ID
from stunet.training.losses import (
    Batch,
    DrawnInputs,
    MakeInputs,
    draw_inputs,
    text_states,
    weight_by_noise,
)
from stunet.training.networks import Networks
from stunet.training.settings import DiffusionConfig
from stunet.weights.trees import Tree

_GUIDANCE = 5  # stream of random numbers per example, besides those of `losses`


class Teacher(NamedTuple):
    """The network that is imitated.

    Attributes:
      networks: Its architecture.
      params: Parameters of its U-Net.
    """

    networks: Networks
    params: Tree


def guidance_loss(
    networks: Networks,
    teacher: Teacher,
    diffusion: DiffusionConfig,
    params: Tree,
    batch: Batch,
    seed: int,
    make_inputs: MakeInputs,
    scales: tuple[float, float],
) -> jax.Array:
    """Computes the loss `[B]` of predicting the teacher's guided output.

    Known pixels are not guided, as in sampling.

    Args:
      networks: The student's networks, with `guidance_embedding`.
      teacher: A teacher without `guidance_embedding`.
      diffusion: Prediction target, loss and noise schedule.
      params: Parameters of the student's networks.
      batch: See `stunet.training.losses`; needs "tokens".
      seed: Seed of noise levels, noise and guidance scales.
      make_inputs: Derives the inputs of the U-Net from the videos.
      scales: Lowest and highest guidance scale; uniform between them.
    """
    drawn = draw_inputs(networks, params, batch, seed, make_inputs)
    scale = _draw_scales(drawn, scales)
    t, log_snr = sample_training_time(diffusion.schedule, drawn.uniform)
    x_t = add_noise(drawn.inputs.x0, drawn.eps, log_snr)
    empty = jnp.full_like(batch["tokens"], PAD_ID).at[:, 0].set(EOS_ID)
    none = {"tokens": empty, "token_mask": empty == EOS_ID}

    def predict(apply_unet, unet: Tree, text: jax.Array, scale: jax.Array | None) -> jax.Array:
        output = drawn.apply(apply_unet, unet, x_t, t, text, scale)
        return split_output(output, x_t.shape[-1], diffusion.variance == "learned_range")[0]

    conditional, unconditional = (
        predict(teacher.networks.apply_unet, teacher.params, text, None)
        for text in (drawn.text, text_states(networks, params, none))
    )
    weight = expand(scale - 1, x_t.ndim)
    if drawn.inputs.cond is not None:
        weight = jnp.where(drawn.inputs.cond[..., -1:] > 0.5, 0.0, weight)
    target = conditional + weight * (conditional - unconditional)
    output = predict(networks.apply_unet, params["unet"], drawn.text, scale)
    error = jnp.square(output - jax.lax.stop_gradient(target))
    return weight_by_noise(diffusion, error.mean(tuple(range(1, error.ndim))), log_snr)


def step_loss(
    networks: Networks,
    teacher: Teacher,
    diffusion: DiffusionConfig,
    params: Tree,
    batch: Batch,
    seed: int,
    make_inputs: MakeInputs,
    scales: tuple[float, float],
    steps: int,
) -> jax.Array:
    """Computes the loss `[B]` of taking two DDIM steps of the teacher in one.

    The grid of both is `TimeGrid.nested`, as of the sampler "few_steps".

    Args:
      networks: The student's networks, with `guidance_embedding`.
      teacher: A teacher with `guidance_embedding`.
      diffusion: See `guidance_loss`, as all other arguments.
      params: See `guidance_loss`.
      batch: See `stunet.training.losses`.
      seed: See `guidance_loss`.
      make_inputs: See `guidance_loss`.
      scales: See `guidance_loss`.
      steps: Number of steps of the student; the teacher takes twice as many.
    """
    drawn = draw_inputs(networks, params, batch, seed, make_inputs)
    scale = _draw_scales(drawn, scales)
    index = jnp.minimum(jnp.floor(drawn.uniform * steps).astype(jnp.int32), steps - 1)
    grid = TimeGrid.nested(diffusion.schedule, 2 * steps)
    times = jnp.asarray(grid.timesteps, jnp.float32)
    # Clean data, of log-SNR infinity, follows the last level.
    log_snrs = jnp.asarray(np.append(grid.log_snr, np.inf), jnp.float32)
    start, end = log_snrs[2 * index], log_snrs[2 * index + 2]
    x_t = add_noise(drawn.inputs.x0, drawn.eps, start)
    learned = diffusion.variance == "learned_range"

    def teacher_step(x: jax.Array, step: int) -> jax.Array:
        """Returns x at the level after `2 * index + step`."""
        position = 2 * index + step
        output = drawn.apply(
            teacher.networks.apply_unet, teacher.params, x, times[position], drawn.text, scale
        )
        prediction = to_prediction(diffusion.prediction, output, x, log_snrs[position], learned)
        return add_noise(prediction.x0, prediction.eps, log_snrs[position + 1])

    x_end = jax.lax.stop_gradient(teacher_step(teacher_step(x_t, 0), 1))
    x0 = x0_of_step(x_t, x_end, start, end)
    alpha, sigma = alpha_sigma(expand(start, x_t.ndim))
    eps = (x_t - alpha * x0) / sigma
    output = drawn.apply(
        networks.apply_unet, params["unet"], x_t, times[2 * index], drawn.text, scale
    )
    mean, _ = split_output(output, x_t.shape[-1], learned)
    loss = simple_loss(diffusion.prediction, mean, x0, eps, start)
    return weight_by_noise(diffusion, loss, start)


def x0_of_step(x_start: jax.Array, x_end: jax.Array, start: jax.Array, end: jax.Array) -> jax.Array:
    """Returns the x0 with which a DDIM step leads from x_start to x_end (2202.00512, algorithm 2).

    Args:
      x_start: Videos `[B, T, H, W, C]` at the first level.
      x_end: Videos at the second level.
      start: log-SNR `[B]` of the first level.
      end: log-SNR `[B]` of the second level, above `start`; may be infinite.
    """
    alpha_start, sigma_start = alpha_sigma(expand(start, x_start.ndim))
    alpha_end, sigma_end = alpha_sigma(expand(end, x_start.ndim))
    ratio = sigma_end / sigma_start
    return (x_end - ratio * x_start) / (alpha_end - ratio * alpha_start)


def _draw_scales(drawn: DrawnInputs, scales: tuple[float, float]) -> jax.Array:
    """Returns a guidance scale `[B]` for each example."""
    low, high = scales
    keys = jax.vmap(lambda key: jax.random.fold_in(key, _GUIDANCE))(drawn.keys)
    return low + (high - low) * jax.vmap(jax.random.uniform)(keys)
