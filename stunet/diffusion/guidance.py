"""Classifier-free guidance (2207.12598) in one network call with twice the batch."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree, Shaped

from stunet.diffusion.prediction import (
    Denoiser,
    PerExample,
    Prediction,
    Video,
    expand,
    split_output,
    to_prediction,
)
from stunet.diffusion.schedule import Schedule

# Tree of arrays [B, ...], for example {"text": encoder states [B, L, D]}
Conditioning = PyTree[Shaped[Array, "..."]]
# (x_t [B, ..., C], t [B], conditioning [B, ...]) -> [B, ..., C or 2C]
Network = Callable[
    [Float[Array, "batch ..."], Float[Array, " batch"], Conditioning], Float[Array, "batch ..."]
]


def guided_denoiser(
    network: Network,
    schedule: Schedule,
    kind: str,
    cond: Conditioning,
    uncond: Conditioning,
    guidance_scale: float | Float[Array, "..."],
    *,
    learned_variance: bool,
    interval: tuple[float, float] | None = None,
) -> Denoiser:
    """Returns a denoiser from a network and its conditional and unconditional inputs.

    The guided output is cond + (guidance_scale - 1) (cond - uncond), 2207.12598 eq. 6 with
    w = guidance_scale - 1. The result is the same for eps, x0 and v, which are affine functions of
    each other at fixed x_t. Learned variance is taken from the conditional half, as in IF.

    Args:
      network: See `Network`.
      schedule: Maps timesteps to log-SNR.
      kind: What the network predicts, "eps", "x0" or "v".
      cond: Conditioning of the B examples.
      uncond: The same tree for the empty prompt, with leading axis B or 1. Not used at scale 1.
      guidance_scale: A number, a scalar array, [B], or an array that broadcasts to x_t (a scale per
        pixel). 1 disables guidance; the Python number 1 also skips the unconditional half.
      learned_variance: Whether the network's variance channels were trained.
      interval: Lowest and highest IF timestep (inclusive) with guidance (2404.07724). Outside, the
        conditional output is used. None guides at all timesteps.
    """
    guide = not (isinstance(guidance_scale, int | float) and guidance_scale == 1)

    def denoiser(x_t: Video, t: PerExample) -> Prediction:
        t = jnp.broadcast_to(jnp.asarray(t), x_t.shape[:1])
        log_snr = schedule.log_snr(t)
        if not guide:
            output = network(x_t, t, cond)
            return to_prediction(kind, output, x_t, log_snr, learned_variance)

        def stack(c: jax.Array, u: jax.Array) -> jax.Array:
            return jnp.concatenate([c, jnp.broadcast_to(u, c.shape)])

        output = network(stack(x_t, x_t), stack(t, t), jax.tree.map(stack, cond, uncond))
        conditional, unconditional = jnp.split(output, 2)
        conditional, variance = split_output(conditional, x_t.shape[-1], learned_variance)
        unconditional, _ = split_output(unconditional, x_t.shape[-1], learned_variance)
        scale = jnp.asarray(guidance_scale, x_t.dtype)
        if scale.ndim < x_t.ndim:
            scale = expand(jnp.broadcast_to(scale, t.shape), x_t.ndim)
        if interval is not None:
            inside = (interval[0] <= t) & (t <= interval[1])
            scale = jnp.where(expand(inside, x_t.ndim), scale, 1.0)
        guided = conditional + (scale - 1) * (conditional - unconditional)
        return to_prediction(kind, guided, x_t, log_snr, False)._replace(variance=variance)

    return denoiser
