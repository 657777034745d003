"""Classifier-free guidance (2207.12598) in one network call of twice the batch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from stunet.diffusion.prediction import Denoiser, Prediction, expand, split_output, to_prediction
from stunet.diffusion.schedule import Schedule

# (x_t [B, ..., C], t [B], conditioning: a tree of [B, ...] arrays) -> [B, ..., C or 2C]
Network = Callable[[jax.Array, jax.Array, Any], jax.Array]


def guided_denoiser(
    network: Network,
    schedule: Schedule,
    kind: str,
    cond: Any,
    uncond: Any,
    guidance_scale: float | jax.Array,
    *,
    learned_variance: bool,
    interval: tuple[float, float] | None = None,
) -> Denoiser:
    """A denoiser from a network and its conditional and unconditional inputs.

    The output is cond + (guidance_scale - 1) (cond - uncond): the same extrapolation in epsilon,
    x0 and v, which are affine in each other at fixed x_t. Learned variance is the conditional
    half's (as IF). A `guidance_scale` that is the Python number 1 skips the unconditional half.

    Args:
      network: see `Network`.
      schedule: gives the log-SNR at a timestep.
      kind: what the network predicts, `eps`, `x0` or `v`.
      cond: tree of conditioning arrays [B, ...], e.g. (text_states, text_mask).
      uncond: the same tree for the empty prompt, leading axis B or 1; unused at scale 1.
      guidance_scale: 1 is no guidance; a number, or an array: a scalar, [B], or one that broadcasts
        to x_t, a scale for each place.
      learned_variance: whether the network's variance channels were trained.
      interval: lowest and highest IF timestep (inclusive) at which to guide (2404.07724);
        outside only the conditional output counts. None guides always.
    """
    guide = not (isinstance(guidance_scale, int | float) and guidance_scale == 1)

    def denoiser(x_t: jax.Array, t: jax.Array) -> Prediction:
        t = jnp.broadcast_to(jnp.asarray(t), x_t.shape[:1])
        log_snr = schedule.log_snr(t)
        if not guide:
            output = network(x_t, t, cond)
            return to_prediction(kind, output, x_t, log_snr, learned_variance)

        def both(c: jax.Array, u: jax.Array) -> jax.Array:
            return jnp.concatenate([c, jnp.broadcast_to(u, c.shape)])

        output = network(both(x_t, x_t), both(t, t), jax.tree.map(both, cond, uncond))
        given, empty = jnp.split(output, 2)
        given, variance = split_output(given, x_t.shape[-1], learned_variance)
        empty, _ = split_output(empty, x_t.shape[-1], learned_variance)
        scale = jnp.asarray(guidance_scale, x_t.dtype)
        if scale.ndim < x_t.ndim:
            scale = expand(jnp.broadcast_to(scale, t.shape), x_t.ndim)
        if interval is not None:
            inside = (interval[0] <= t) & (t <= interval[1])
            scale = jnp.where(expand(inside, x_t.ndim), scale, 1.0)
        guided = given + (scale - 1) * (given - empty)
        return to_prediction(kind, guided, x_t, log_snr, False)._replace(variance=variance)

    return denoiser
