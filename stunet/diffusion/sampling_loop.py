"""The sampling loop: a jitted chunk of steps, and the host's loop over chunks.

A chunk is one `lax.scan` of fixed length with a traced start, so that one compile serves every
chunk, and between chunks the host can report, preview and cancel:

    @jax.jit
    def chunk(params, states, key, carry, start):
        denoiser = ...  # guide -> (average windows) -> threshold once
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

from stunet.diffusion.prediction import Denoiser
from stunet.diffusion.samplers import BoundSampler, Carry

NoiseFn = Callable[[jax.Array], jax.Array]
# Indices of the noise that comes before step 0's: what a video starts from, and what a
# low-resolution clip is augmented with.
START_NOISE, AUGMENTATION_NOISE = -1, -2


def keyed_noise(key: jax.Array, positions: jax.Array, shape: tuple[int, ...]) -> NoiseFn:
    """Standard normal noise keyed by (key, global position of the example, step).

    Returns a function of the step's index (or `START_NOISE`, `AUGMENTATION_NOISE`) to float32
    noise [B, *shape]. An example's noise depends neither on the batch around it nor on the
    chunking.

    Args:
      key: the seed's `jax.random.key`.
      positions: [B] non-negative integers, the example's place in the whole job.
      shape: of one example, e.g. (T, H, W, C).
    """
    keys = jax.vmap(lambda position: jax.random.fold_in(key, position))(jnp.asarray(positions))

    def noise_fn(index: jax.Array) -> jax.Array:
        counter = jnp.asarray(index, jnp.int32) + 1  # the start's is 0
        return jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, counter), shape))(keys)

    return noise_fn


def run_steps(
    sampler: BoundSampler,
    denoiser: Denoiser,
    carry: Carry,
    start: jax.Array | int,
    num_steps: int,
    noise_fn: NoiseFn,
) -> Carry:
    """Takes steps start, start + 1, ..., start + num_steps - 1 of `sampler`.

    Steps beyond the end of the grid are no-ops that cost no network call, so the last chunk needs
    no length of its own. `start` may be traced, `num_steps` is static.

    Args:
      sampler, denoiser: see `samplers` and `prediction.Denoiser`.
      carry: x at level `start`.
      start: index of the first step on the sampler's grid.
      num_steps: length of the scan.
      noise_fn: index of a step to that step's noise, shaped as x.
    """
    total = len(sampler.grid)

    def take(carry: Carry, index: jax.Array) -> Carry:
        return sampler.step(denoiser, carry, index, noise_fn(index))

    def body(carry: Carry, index: jax.Array) -> tuple[Carry, None]:
        return jax.lax.cond(index < total, take, lambda carry, _: carry, carry, index), None

    indices = jnp.asarray(start, jnp.int32) + jnp.arange(num_steps, dtype=jnp.int32)
    return jax.lax.scan(body, carry, indices)[0]


def sample_in_chunks(
    chunk_fn: Callable[[Carry, jax.Array], Carry],
    carry: Carry,
    num_steps: int,
    chunk: int,
    callback: Callable[[int, jax.Array], bool | None] | None = None,
    start: int = 0,
) -> Carry:
    """Runs steps start..num_steps - 1 on the host, `chunk` at a time.

    Args:
      chunk_fn: jitted (carry, start index) -> carry that runs `run_steps` of length `chunk`.
      carry: x at level `start`.
      num_steps: length of the sampler's grid.
      chunk: the length that `chunk_fn` runs.
      callback: called after each chunk with the number of steps done (counted from index 0, so
        the last call gets `num_steps`) and the current estimate of x0, [B, T, H, W, C]; returning
        True cancels, and an exception passes through.
      start: index of the first step.

    Returns:
      The carry, whose x is the video; where cancelled, the carry reached, x still noisy.
    """
    for index in range(start, num_steps, chunk):
        carry = chunk_fn(carry, jnp.int32(index))
        if callback is not None and callback(min(index + chunk, num_steps), carry.x0):
            break
    return carry
