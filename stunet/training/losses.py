"""Losses of a batch: denoising of videos, and denoising of captions.

Batches have the keys "video" `[B, T, H, W, 3]` uint8, or float32 in [-1, 1]; "position" `[B]`
uint32, the global position of each example in the data's order; and either "text_states"
`[B, L, D]`, or "tokens" `[B, L]` int32 with "token_mask" `[B, L]` bool.

All random numbers depend on (seed, global position) only, so that a resumed run, and any number of
devices or hosts, draws the same numbers.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax

from stunet.diffusion import (
    MaskMixture,
    SuperResolution,
    add_noise,
    augment,
    downsample,
    draw_mask,
    mask_conditioning,
    min_snr_weight,
    sample_training_time,
    simple_loss,
    split_output,
    to_prediction,
    upsample,
    variational_loss,
)
from stunet.models.t5 import T5Config, T5Encoder
from stunet.text import UNK_ID
from stunet.training.networks import Networks
from stunet.training.settings import DiffusionConfig
from stunet.weights.trees import Tree

Batch = dict[str, jax.Array]

NUM_NOISE_BINS = 4  # equal parts of the range of timesteps, from no noise to pure noise
HIDDEN_TOKENS = 0.15  # share of a caption's tokens, as in T5 pre-training (1910.10683, 3.1.4)

# Streams of random numbers per example, folded into its key. Noise uses the key itself.
_HIDDEN_TOKENS, _NOISE_LEVEL, _AUGMENTATION, _MASK = 1, 2, 3, 4


@dataclass(frozen=True)
class DenoisingInputs:
    """The diffused videos of a batch, and the inputs of the U-Net besides noise and text.

    Attributes:
      x0: Videos to diffuse `[B, T, H, W, 3]`.
      low_resolution: Enlarged and noised low-resolution videos `[B, T, H, W, 3]`, which the U-Net
        reads as further channels of its input; None without super-resolution.
      noise_level: Augmentation levels `[B]` of `low_resolution`, or None.
      cond: Known pixels and their mask `[B, T, H, W, 4]`, or None.
    """

    x0: jax.Array
    low_resolution: jax.Array | None = None
    noise_level: jax.Array | None = None
    cond: jax.Array | None = None


# (videos [B, T, H, W, 3], random keys [B]) -> inputs
MakeInputs = Callable[[jax.Array, jax.Array], DenoisingInputs]


def text_to_video_inputs(video: jax.Array, keys: jax.Array) -> DenoisingInputs:
    """Returns inputs without conditioning other than text."""
    del keys
    return DenoisingInputs(video)


def super_resolution_inputs(
    config: SuperResolution, video: jax.Array, keys: jax.Array
) -> DenoisingInputs:
    """Returns inputs with a low-resolution video, noised to a random augmentation level."""

    def draw(key):
        level = jax.random.uniform(
            jax.random.fold_in(key, _NOISE_LEVEL), (), maxval=config.max_noise_level
        )
        return level, jax.random.normal(jax.random.fold_in(key, _AUGMENTATION), video.shape[1:])

    level, eps = jax.vmap(draw)(keys)
    large = upsample(downsample(video, config.factor), config.factor, config.align_corners)
    return DenoisingInputs(config.from_frames(video, large), augment(large, eps, level), level)


def masked_inputs(mixture: MaskMixture, video: jax.Array, keys: jax.Array) -> DenoisingInputs:
    """Returns inputs with the pixels that a mask drawn from the mixture marks as known."""

    def draw(key):
        return draw_mask(mixture, jax.random.fold_in(key, _MASK), video.shape[1:4])

    return DenoisingInputs(video, cond=mask_conditioning(video, jax.vmap(draw)(keys)))


def denoising_loss(
    networks: Networks,
    diffusion: DiffusionConfig,
    params: Tree,
    batch: Batch,
    seed: int,
    make_inputs: MakeInputs = text_to_video_inputs,
) -> jax.Array:
    """Computes the diffusion loss `[B]` of a batch.

    Args:
      networks: The networks that `params` belong to.
      diffusion: Prediction target, loss and noise schedule.
      params: Parameters of all networks.
      batch: See the module's docstring.
      seed: Seed of noise levels and noise.
      make_inputs: Derives the inputs of the U-Net from the videos.
    """
    drawn = draw_inputs(networks, params, batch, seed, make_inputs)
    x0, eps = drawn.inputs.x0, drawn.eps
    t, log_snr = sample_training_time(diffusion.schedule, drawn.uniform)
    x_t = add_noise(x0, eps, log_snr)
    output = drawn.apply(networks.apply_unet, params["unet"], x_t, t, drawn.text)

    learned_variance = diffusion.variance == "learned_range"
    mean, _ = split_output(output, x0.shape[-1], learned_variance)
    loss = simple_loss(diffusion.prediction, mean, x0, eps, log_snr)
    loss = weight_by_noise(diffusion, loss, log_snr)
    if learned_variance:
        prediction = to_prediction(diffusion.prediction, output, x_t, log_snr, learned_variance)
        loss = loss + variational_loss(
            diffusion.schedule, t, x0, x_t, prediction.x0, prediction.variance
        )
    return loss


def weight_by_noise(diffusion: DiffusionConfig, loss: jax.Array, log_snr: jax.Array) -> jax.Array:
    """Returns losses `[B]` with the weights of `diffusion.loss`."""
    if diffusion.loss == "min_snr":
        return loss * min_snr_weight(diffusion.prediction, log_snr)
    return loss


@dataclass(frozen=True)
class DrawnInputs:
    """The random choices of a batch, and what the U-Net reads besides x_t and t.

    Attributes:
      inputs: Videos and conditioning.
      eps: Noise `[B, T, H, W, 3]`.
      uniform: `[B]` in [0, 1), which noise levels are chosen by.
      text: Text encoder states `[B, L, D]`.
      keys: Random keys `[B]`.
    """

    inputs: DenoisingInputs
    eps: jax.Array
    uniform: jax.Array
    text: jax.Array
    keys: jax.Array

    def apply(
        self,
        apply_unet: Callable[..., jax.Array],
        params: Tree,
        x_t: jax.Array,
        t: jax.Array,
        text: jax.Array,
        guidance_scale: jax.Array | None = None,
    ) -> jax.Array:
        """Returns the output of a U-Net with these parameters for x_t `[B, T, H, W, 3]`."""
        inputs = self.inputs
        channels = [x_t] if inputs.low_resolution is None else [x_t, inputs.low_resolution]
        x = jnp.concatenate(channels, axis=-1)
        optional = inputs.noise_level, inputs.cond, guidance_scale
        return apply_unet({"params": params}, x, t, text, *optional)


def draw_inputs(
    networks: Networks, params: Tree, batch: Batch, seed: int, make_inputs: MakeInputs
) -> DrawnInputs:
    """Makes the random choices of a batch; see `denoising_loss` for the arguments."""
    video, keys = video_to_float(batch["video"]), _example_keys(batch, seed)
    eps = jax.vmap(lambda key: jax.random.normal(key, video.shape[1:]))(keys)
    uniform = stratified_uniform(batch["position"], seed)
    text = text_states(networks, params, batch)
    return DrawnInputs(make_inputs(video, keys), eps, uniform, text, keys)


def joint_loss(
    text_denoising: float,
    networks: Networks,
    diffusion: DiffusionConfig,
    params: Tree,
    batch: Batch,
    seed: int,
    make_inputs: MakeInputs = text_to_video_inputs,
) -> jax.Array:
    """Computes `denoising_loss` plus `text_denoising_loss` `[B]`, the latter weighted.

    Args:
      text_denoising: Weight of the text encoder's loss, 0 for a text encoder that is not trained.
      networks: See `denoising_loss`, as all other arguments.
      diffusion: See `denoising_loss`.
      params: See `denoising_loss`.
      batch: See the module's docstring.
      seed: Seed of all random numbers.
      make_inputs: See `denoising_loss`.
    """
    loss = denoising_loss(networks, diffusion, params, batch, seed, make_inputs)
    if text_denoising:
        loss += text_denoising * text_denoising_loss(
            networks.text_encoder, params["text_encoder"], batch, seed
        )
    return loss


def text_states(networks: Networks, params: Tree, batch: Batch) -> jax.Array:
    """Returns text encoder states `[B, L, D]`: those of the batch, or encoded from its tokens."""
    if "text_states" in batch:
        return batch["text_states"].astype(jnp.float32)
    encoder = T5Encoder(networks.text_encoder)
    return encoder.apply({"params": params["text_encoder"]}, batch["tokens"], batch["token_mask"])


def text_denoising_loss(config: T5Config, params: Tree, batch: Batch, seed: int) -> jax.Array:
    """Computes the cross entropy `[B]` of restoring captions with hidden tokens.

    This is a masked-language objective for the encoder alone: logits are products of its states
    with the token embeddings. An encoder trained on single frames only would lose words that a
    single frame does not show, such as those of motion, and a video model trained later on its
    frozen states could not learn them.

    Args:
      config: Architecture of the text encoder.
      params: Its parameters.
      batch: See the module's docstring; needs "tokens" and "token_mask".
      seed: Seed of the hidden positions.
    """
    tokens, mask = batch["tokens"], batch["token_mask"]
    keys = _example_keys(batch, seed)
    draw = jax.vmap(
        lambda key: jax.random.uniform(jax.random.fold_in(key, _HIDDEN_TOKENS), tokens.shape[1:])
    )
    # Our byte-level tokenizers never produce <unk>, which is therefore free to mark hidden tokens.
    corrupted = jnp.where(draw(keys) < HIDDEN_TOKENS, UNK_ID, tokens)
    states = T5Encoder(config).apply({"params": params}, corrupted, mask).astype(jnp.float32)
    logits = states @ params["shared"]["embedding"].T / math.sqrt(config.d_model)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens)
    return jnp.where(mask, losses, 0.0).sum(1) / mask.sum(1)


def stratified_uniform(position: jax.Array, seed: int) -> jax.Array:
    """Returns numbers in [0, 1) that cover it evenly over any run of successive positions.

    Noise levels drawn with them vary less between batches than independent draws, which reduces
    the variance of the gradient (the aim of 2107.00630, appendix I.1). The additive recurrence
    with the golden ratio used here does not depend on the batch size.

    Args:
      position: Global positions `[B]` uint32.
      seed: Seed of the offset.
    """
    key = jax.random.fold_in(jax.random.key(seed), 2**32 - 1)  # differs from all example keys
    start = jax.random.bits(key, dtype=jnp.uint32)
    phase = start + position.astype(jnp.uint32) * jnp.uint32(2654435769)  # 2**32 / golden ratio
    return (phase >> 8).astype(jnp.float32) * 2.0**-24


def noise_bins(position: jax.Array, seed: int) -> jax.Array:
    """Returns the bin `[B]` int32 of each example's time among `NUM_NOISE_BINS` equal ones.

    Args:
      position: Global positions `[B]` uint32.
      seed: Seed of `denoising_loss`.
    """
    return jnp.floor(stratified_uniform(position, seed) * NUM_NOISE_BINS).astype(jnp.int32)


def mean_by_noise(losses: jax.Array, bins: jax.Array) -> dict[str, jax.Array]:
    """Returns sums of losses by noise level, divided by the size of the batch.

    Args:
      losses: Losses `[B]`.
      bins: Bin of each example's noise level `[B]`.

    Returns:
      "noise_loss" and "noise_share" `[NUM_NOISE_BINS]`: means over the batch of the loss in each
      bin, 0 for examples of other bins, and the shares of the examples. The ratio of their sums
      over several batches is the mean loss of a bin.
    """
    inside = [bins == number for number in range(NUM_NOISE_BINS)]
    return {
        "noise_loss": jnp.stack([jnp.where(x, losses, 0.0).mean() for x in inside]),
        "noise_share": jnp.stack([x.astype(losses.dtype).mean() for x in inside]),
    }


def video_to_float(video: jax.Array) -> jax.Array:
    """Converts uint8 pixels to float32 in [-1, 1]; returns other arrays unchanged.

    (2 x - 255) / 255 is `stunet.video_io.to_float` up to rounding: XLA replaces its division by a
    product in any case. This form is rounded once, so that its bits do not depend on fusions.
    """
    if video.dtype != jnp.uint8:
        return video
    return (2 * video.astype(jnp.float32) - 255) * jnp.float32(1 / 255)


def _example_keys(batch: Batch, seed: int) -> jax.Array:
    """Returns a random key `[B]` per example, derived from (seed, global position)."""
    return jax.vmap(lambda p: jax.random.fold_in(jax.random.key(seed), p))(batch["position"])
