"""Sampling loop: a jitted chunk of steps, and a loop over chunks on the host.

A chunk is one `lax.scan` of fixed length with a traced start, so one compilation serves all chunks.
Between chunks the host can report progress, show previews and cancel:

    @jax.jit
    def chunk(params, states, key, carry, start):
        denoiser = ...  # guide -> average over windows -> threshold once
        noise_fn = keyed_noise(key, positions, shape)
        return run_steps(sampler, denoiser, carry, start, 10, noise_fn)

    carry = sampler.init(keyed_noise(key, positions, shape)(START_NOISE))
    step = functools.partial(chunk, params, states, key)
    carry = sample_in_chunks(step, carry, len(sampler.grid), 10, on_progress)
    video = carry.x
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Integer, PRNGKeyArray

from stunet.diffusion.prediction import Denoiser, Video
from stunet.diffusion.samplers import BoundSampler, Carry, StepIndex

# Step index -> standard normal noise, shaped as x.
NoiseFn = Callable[[StepIndex], Video]
# Indices of noise drawn before step 0: the start of a video, and the augmentation of a
# low-resolution clip.
START_NOISE, AUGMENTATION_NOISE = -1, -2


def keyed_noise(
    key: PRNGKeyArray, positions: Integer[ArrayLike, " batch"], shape: tuple[int, ...]
) -> NoiseFn:
    """Returns standard normal noise as a function of the step.

    Noise depends on the key, the example's global position and the step only, not on the rest of
    the batch or the chunk size. The function maps a step index (or `START_NOISE`,
    `AUGMENTATION_NOISE`) to float32 noise [B, *shape].

    Args:
      key: `jax.random.key` of the seed.
      positions: [B] non-negative positions of the examples in the whole job.
      shape: Shape of one example, e.g. (T, H, W, C).
    """
    keys = jax.vmap(lambda position: jax.random.fold_in(key, position))(jnp.asarray(positions))

    def noise_fn(index: StepIndex) -> Video:
        counter = jnp.asarray(index, jnp.int32) + 1  # START_NOISE is 0
        return jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, counter), shape))(keys)

    return noise_fn


def run_steps(
    sampler: BoundSampler,
    denoiser: Denoiser,
    carry: Carry,
    start: StepIndex,
    num_steps: int,
    noise_fn: NoiseFn,
) -> Carry:
    """Takes steps start, ..., start + num_steps - 1 of `sampler`.

    Steps beyond the end of the grid are no-ops without a network call, so the last chunk can have
    the length of the others.

    Args:
      sampler: A sampler bound to a schedule (`Sampler.bind`).
      denoiser: Denoiser of x.
      carry: State with x at level `start`.
      start: Index of the first step on the sampler's grid, may be traced.
      num_steps: Length of the scan, static.
      noise_fn: Maps a step index to the noise of the step.
    """
    total = len(sampler.grid)

    def take_step(carry: Carry, index: Integer[Array, ""]) -> Carry:
        return sampler.step(denoiser, carry, index, noise_fn(index))

    def body(carry: Carry, index: Integer[Array, ""]) -> tuple[Carry, None]:
        return jax.lax.cond(index < total, take_step, lambda carry, _: carry, carry, index), None

    indices = jnp.asarray(start, jnp.int32) + jnp.arange(num_steps, dtype=jnp.int32)
    return jax.lax.scan(body, carry, indices)[0]


def sample_in_chunks(
    chunk_fn: Callable[[Carry, Integer[Array, ""]], Carry],
    carry: Carry,
    num_steps: int,
    chunk: int,
    callback: Callable[[int, Video], bool | None] | None = None,
    start: int = 0,
) -> Carry:
    """Runs steps start..num_steps - 1 from the host, `chunk` steps per call.

    Args:
      chunk_fn: Jitted function (carry, start index) -> carry that runs `run_steps` for `chunk`
        steps.
      carry: State with x at level `start`.
      num_steps: Length of the sampler's grid.
      chunk: Steps per call of `chunk_fn`.
      callback: Called after each chunk with the number of steps done, counted from index 0 (the
        last call receives `num_steps`), and the current estimate of x0. Returning True cancels.
        Exceptions propagate.
      start: Index of the first step.

    Returns:
      The final carry with the video as x. After cancelling, x is still noisy.
    """
    for index in range(start, num_steps, chunk):
        carry = chunk_fn(carry, jnp.int32(index))
        if callback is not None and callback(min(index + chunk, num_steps), carry.x0):
            break
    return carry
