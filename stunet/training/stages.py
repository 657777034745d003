"""A stage of training: which parameters it trains, and its loss on a batch.

Stages differ in these values and in nothing else; there is one loop for all of them.
"""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

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
from stunet.errors import UserError
from stunet.models.t5 import T5Config, T5Encoder
from stunet.models.unet import UNetConfig, partitioned_unet
from stunet.text import UNK_ID
from stunet.training.config import DiffusionConfig
from stunet.weights.low_rank import add_adapters, init_adapters
from stunet.weights.trees import Tree, is_added, merge, partition

Batch = dict[str, jax.Array]

HIDDEN_TOKENS = 0.15  # of a caption, as in T5's own pre-training (1910.10683 section 3.1.4)


@dataclass(frozen=True)
class Networks:
    """The networks of a stage.

    Attributes:
      unet: the U-Net.
      text_encoder: None where batches carry text states.
      remat: what the U-Net's backward pass recomputes (`stunet.models.unet.REMAT_POLICIES`).
      super_resolution: for a U-Net that sees a low-resolution clip.
      conditioning: for a U-Net that is given pixels: which ones.
      mesh: of devices, over whose axis "frames" the U-Net's videos are split; None for one device.
    """

    unet: UNetConfig
    text_encoder: T5Config | None
    remat: str = "none"
    super_resolution: SuperResolution | None = None
    conditioning: MaskMixture | None = None
    mesh: Mesh | None = None


@dataclass(frozen=True)
class Stage:
    """A stage of training.

    Attributes:
      name: "t2i", "style", "t2v", "conditional" or "ssr".
      is_trained: whether the parameter at a path such as "unet/conv_in/kernel" is trained.
      loss: `(params, batch, seed) -> [B]` losses, one an example.
      rank: of the adapters that are trained in place of those parameters; 0 for none.
    """

    name: str
    is_trained: Callable[[str], bool]
    loss: Callable[[Tree, Batch, int], jax.Array]
    rank: int = 0

    def split(self, params: Tree, seed: int) -> tuple[Tree, Tree]:
        """What is trained, and what stays as it is.

        Raises:
          UserError: no kernel is larger than the rank.
        """
        if not self.rank:
            return partition(params, self.is_trained)
        adapters = init_adapters(params, self.is_trained, self.rank, jax.random.key(seed))
        if not adapters:
            raise UserError(f"adapter_rank is {self.rank}; no kernel of the network is larger")
        return adapters, params

    def join(self, trained: Tree, frozen: Tree) -> Tree:
        """The networks' parameters, from `split`'s two."""
        return add_adapters(frozen, trained) if self.rank else merge(trained, frozen)


def make_stage(
    name: str,
    networks: Networks,
    diffusion: DiffusionConfig,
    *,
    trains: str,
    frozen: Collection[str] = (),
    text_denoising: float = 0.0,
    adapter_rank: int = 0,
) -> Stage:
    """The stage `name` ("t2i", "style", "t2v", "conditional" or "ssr") for these networks.

    Args:
      trains: "all" parameters, the "unet" alone, or those "added" to a finished model inside it.
      frozen: names of modules of the U-Net that stay as they are all the same.
      text_denoising: weight of `text_denoising_loss`, for a stage that trains the text encoder.
      adapter_rank: for "style", of adapters to train; 0 trains the U-Net itself.
    """

    def loss(params: Tree, batch: Batch, seed: int) -> jax.Array:
        total = denoising_loss(networks, diffusion, params, batch, seed)
        if text_denoising:
            total += text_denoising * text_denoising_loss(
                networks.text_encoder, params["text_encoder"], batch, seed
            )
        return total

    def is_trained(path: str) -> bool:
        return IS_TRAINED[trains](path) and frozen.isdisjoint(path.split("/"))

    frozen = frozenset(frozen)
    return Stage(name, is_trained, loss, adapter_rank)


IS_TRAINED = {
    "all": lambda path: True,
    "unet": lambda path: path.startswith("unet/"),
    "added": is_added,
}


def text_states(networks: Networks, params: Tree, batch: Batch) -> jax.Array:
    """Encoder states `[B, L, D]`: the batch's own, or those of its tokens."""
    if "text_states" in batch:
        return batch["text_states"].astype(jnp.float32)
    encoder = T5Encoder(networks.text_encoder)
    return encoder.apply({"params": params["text_encoder"]}, batch["tokens"], batch["token_mask"])


def _example_keys(batch: Batch, seed: int) -> jax.Array:
    """A key `[B]` for each example, from (seed, its global position) alone."""
    return jax.vmap(lambda p: jax.random.fold_in(jax.random.key(seed), p))(batch["position"])


def text_denoising_loss(config: T5Config, params: Tree, batch: Batch, seed: int) -> jax.Array:
    """Cross entropy `[B]` of restoring captions of which a share of the tokens is hidden.

    The masked-language objective of T5's family, with the encoder alone (the tokens' embeddings
    read its states). Trained for pictures only, an encoder loses the words that a single picture
    does not show, such as those of motion, and a video model that comes after it cannot learn
    them. Which tokens are hidden depends on (seed, global position) alone.
    """
    tokens, mask = batch["tokens"], batch["token_mask"]
    keys = _example_keys(batch, seed)
    draw = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 1), tokens.shape[1:]))
    # Our tokenizers write every character in bytes, so that <unk> is free to mean "hidden".
    corrupted = jnp.where(draw(keys) < HIDDEN_TOKENS, UNK_ID, tokens)
    states = T5Encoder(config).apply({"params": params}, corrupted, mask).astype(jnp.float32)
    logits = states @ params["shared"]["embedding"].T / math.sqrt(config.d_model)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens)
    return jnp.where(mask, losses, 0.0).sum(1) / mask.sum(1)


def spread_uniform(position: jax.Array, seed: int) -> jax.Array:
    """Uniform numbers in [0, 1) that cover it evenly over any run of successive positions.

    A batch's noise levels so differ less from batch to batch than independent draws do, and
    with them the gradient (the aim of 2107.00630 appendix I.1, here by an additive recurrence
    with the golden ratio, which knows no batch). `position` is `[B]` uint32.
    """
    key = jax.random.fold_in(jax.random.key(seed), 2**32 - 1)  # no position's
    start = jax.random.bits(key, dtype=jnp.uint32)
    phase = start + position.astype(jnp.uint32) * jnp.uint32(2654435769)  # 2**32 / golden ratio
    return (phase >> 8).astype(jnp.float32) * 2.0**-24


def denoising_loss(
    networks: Networks, diffusion: DiffusionConfig, params: Tree, batch: Batch, seed: int
) -> jax.Array:
    """The loss `[B]` of predicting noise (or x0, v) from noisy video.

    Noise level and noise of an example depend on (seed, its global position) alone, so any
    number of devices and hosts, and a resumed run, draw the same.
    """
    video = x0 = batch["video"]
    keys = _example_keys(batch, seed)
    eps = jax.vmap(lambda key: jax.random.normal(key, x0.shape[1:]))(keys)
    t, log_snr = sample_training_time(diffusion.schedule, spread_uniform(batch["position"], seed))

    states = text_states(networks, params, batch)
    low, level = [], None
    if networks.super_resolution is not None:
        x0, augmented_low, level = _super_resolution(networks.super_resolution, video, keys)
        low = [augmented_low]
    x_t = add_noise(x0, eps, log_snr)
    inputs = jnp.concatenate([x_t, *low], axis=-1)
    cond = None
    if networks.conditioning is not None:
        cond = mask_conditioning(video, _masks(networks.conditioning, video, keys))
    apply = partitioned_unet(networks.unet, networks.mesh, networks.remat)
    output = apply({"params": params["unet"]}, inputs, t, states, level, cond)
    learned = diffusion.variance == "learned_range"
    mean, _ = split_output(output, x0.shape[-1], learned)
    loss = simple_loss(diffusion.prediction, mean, x0, eps, log_snr)
    if diffusion.loss == "min_snr":
        loss = loss * min_snr_weight(diffusion.prediction, log_snr)
    if learned:
        prediction = to_prediction(diffusion.prediction, output, x_t, log_snr, learned)
        loss = loss + variational_loss(
            diffusion.schedule, t, x0, x_t, prediction.x0, prediction.variance
        )
    return loss


def _super_resolution(
    config: SuperResolution, video: jax.Array, keys: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What is diffused for a video, what the network sees beside it, and the levels `[B]` of
    noise in that.
    """

    def draw(key):
        level = jax.random.uniform(jax.random.fold_in(key, 2), (), maxval=config.max_noise_level)
        return level, jax.random.normal(jax.random.fold_in(key, 3), video.shape[1:])

    level, eps = jax.vmap(draw)(keys)
    large = upsample(downsample(video, config.factor), config.factor, config.align_corners)
    return config.diffused(video, large), augment(large, eps, level), level


def _masks(mixture: MaskMixture, x0: jax.Array, keys: jax.Array) -> jax.Array:
    """Which pixels of each example are known, `[B, T, H, W, 1]`."""
    return jax.vmap(lambda key: draw_mask(mixture, jax.random.fold_in(key, 4), x0.shape[1:4]))(keys)
