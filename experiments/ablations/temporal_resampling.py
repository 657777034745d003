"""Down- and up-sampling in time, or the full frame rate at every level, for the same FLOPs.

python -m experiments.ablations --only=temporal_resampling --t2i=runs/t2i --workdir=runs/ablations

The full rate takes more FLOPs a step, and so it is given fewer steps.
"""

import functools

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from experiments.ablations.programs import SEEDS
from experiments.ablations.training import (
    Training,
    base_config,
    lower_in,
    network,
    variant_and_seed,
)
from experiments.benchmarks.flops import model_flops
from experiments.configs import tiny_t2i
from stunet.models.unet import UNet


def _verdict(losses: dict) -> str:
    wins = lower_in(losses, "resampled", "full_rate")
    return (
        f"For the same FLOPs of training, resampling in time ends lower with {wins} of "
        f"{len(SEEDS)} seeds."
    )


ABLATION = Training(
    name="temporal_resampling",
    question="Temporal resampling or the full frame rate, at equal FLOPs?",
    paper="Not asked: the paper resamples, for the memory and time that it saves.",
    variants=("resampled", "full_rate"),
    verdict=_verdict,
)


def forward_flops(config: ConfigDict) -> float:
    """Model FLOPs of the network on one clip of `config`."""
    unet, params = network(config)
    size, tokens = config.data.resolution, tiny_t2i.get_config().text_encoder.max_tokens
    inputs = [
        jax.ShapeDtypeStruct(shape, jnp.float32)
        for shape in ((1, config.data.num_frames, size, size, 3), (1,), (1, tokens, unet.text_dim))
    ]
    return sum(
        model_flops(lambda p, *a: UNet(unet).apply({"params": p}, *a), params, *inputs).values()
    )


@functools.cache
def equal_steps() -> int:
    """How many steps the full rate may take for the FLOPs of the resampled network's run."""
    resampled = base_config(0)
    return round(resampled.total_steps * forward_flops(resampled) / forward_flops(_full(resampled)))


def _full(config: ConfigDict) -> ConfigDict:
    config = config.copy_and_resolve_references()
    config.temporal.resample = (False,) * len(config.temporal.resample)
    return config


def get_config(argument: str) -> ConfigDict:
    """The run of "VARIANT,SEED"."""
    variant, seed = variant_and_seed(argument, ABLATION.variants)
    config = base_config(seed)
    if variant == "full_rate":
        config = _full(config)
        config.total_steps = equal_steps()
    return config
