"""Guidance: a network's output, led away from that of a worse prediction.

- "cfg": classifier-free guidance (2207.12598), away from the output for the empty prompt, in one
  network call with twice the batch.
- "apg": adaptive projected guidance (2410.02416), which leaves out the part of the difference that
  is parallel to the prediction and oversaturates. Without the paper's momentum and rescaling.
- "image": autoguidance (2406.02507) with the image model inside a video model as the worse network,
  away from frames that do not know one another.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree, Shaped

from stunet.diffusion.prediction import (
    Denoiser,
    PerExample,
    Prediction,
    Video,
    eps_from_x0,
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
    method: str = "cfg",
    worse: Network | None = None,
    interval: tuple[float, float] | None = None,
) -> Denoiser:
    """Returns a denoiser from a network and its conditional and unconditional inputs.

    The guided output is cond + (guidance_scale - 1) (cond - uncond), 2207.12598 eq. 6 with
    w = guidance_scale - 1. The result is the same for eps, x0 and v, which are affine functions of
    each other at fixed x_t. With method "apg", the part of the difference of x0 that is parallel to
    the conditional x0 of the same video is left out (2410.02416 eq. 7 with eta = 0). With "image",
    `uncond` stands for the output of `worse` for `cond`. Learned variance is taken from the
    conditional half, as in IF.

    Args:
      network: See `Network`.
      schedule: Maps timesteps to log-SNR.
      kind: What the network predicts, "eps", "x0" or "v".
      cond: Conditioning of the B examples.
      uncond: The same tree for the empty prompt, with leading axis B or 1. Not used at scale 1.
      guidance_scale: A number, a scalar array, [B], or an array that broadcasts to x_t (a scale per
        pixel). 1 disables guidance; the Python number 1 also skips the unconditional half.
      learned_variance: Whether the network's variance channels were trained.
      method: "cfg", "apg" or "image", see the module.
      worse: The worse network of method "image".
      interval: Lowest and highest IF timestep (inclusive) with guidance (2404.07724). Outside, the
        conditional output is used, and if the whole batch is outside, nothing else is computed.
        None guides at all timesteps.
    """
    guide = not (isinstance(guidance_scale, int | float) and guidance_scale == 1)

    def outputs(x_t: Video, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        if method == "image":
            return network(x_t, t, cond), worse(x_t, t, cond)

        def stack(c: jax.Array, u: jax.Array) -> jax.Array:
            return jnp.concatenate([c, jnp.broadcast_to(u, c.shape)])

        output = network(stack(x_t, x_t), stack(t, t), jax.tree.map(stack, cond, uncond))
        conditional, unconditional = jnp.split(output, 2)
        return conditional, unconditional

    def predict(x_t: Video, t: jax.Array, output: jax.Array) -> Prediction:
        return to_prediction(kind, output, x_t, schedule.log_snr(t), learned_variance)

    def predict_guided(x_t: Video, t: jax.Array) -> Prediction:
        conditional, unconditional = outputs(x_t, t)
        scale = jnp.asarray(guidance_scale, x_t.dtype)
        if scale.ndim < x_t.ndim:
            scale = expand(jnp.broadcast_to(scale, t.shape), x_t.ndim)
        if interval is not None:
            scale = jnp.where(expand(inside(t), x_t.ndim), scale, 1.0)
        if method == "apg":
            prediction = predict(x_t, t, conditional)
            difference = prediction.x0 - predict(x_t, t, unconditional).x0
            x0 = prediction.x0 + (scale - 1) * _orthogonal(difference, prediction.x0)
            return Prediction(x0, eps_from_x0(x_t, x0, schedule.log_snr(t)), prediction.variance)
        conditional, variance = split_output(conditional, x_t.shape[-1], learned_variance)
        unconditional, _ = split_output(unconditional, x_t.shape[-1], learned_variance)
        guided = conditional + (scale - 1) * (conditional - unconditional)
        prediction = to_prediction(kind, guided, x_t, schedule.log_snr(t), False)
        return prediction._replace(variance=variance)

    def predict_unguided(x_t: Video, t: jax.Array) -> Prediction:
        return predict(x_t, t, network(x_t, t, cond))

    def inside(t: jax.Array) -> jax.Array:
        return (interval[0] <= t) & (t <= interval[1])

    def denoiser(x_t: Video, t: PerExample) -> Prediction:
        t = jnp.broadcast_to(jnp.asarray(t), x_t.shape[:1])

        if not guide:
            return predict_unguided(x_t, t)
        if interval is None:
            return predict_guided(x_t, t)
        return jax.lax.cond(inside(t).any(), predict_guided, predict_unguided, x_t, t)

    return denoiser


def _orthogonal(x: Video, direction: Video) -> Video:
    """Returns the part of each video x that is orthogonal to the video `direction`."""
    axes = tuple(range(1, x.ndim))

    def dot(a: Video, b: Video) -> jax.Array:
        return jnp.sum(a * b, axes, keepdims=True)

    tiny = jnp.finfo(x.dtype).tiny
    return x - dot(x, direction) / jnp.maximum(dot(direction, direction), tiny) * direction
