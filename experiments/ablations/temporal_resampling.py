"""Down- and up-sampling in time, or the full frame rate at every level, for the same FLOPs.

python -m experiments.ablations --only=temporal_resampling --t2i=runs/t2i --workdir=runs/ablations

The full rate takes more FLOPs a step, and so it is given fewer steps.
"""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from experiments.ablations.programs import SEEDS
from experiments.ablations.training import Training, base_config, lower_in, variant_and_seed
from experiments.benchmarks.flops import model_flops
from experiments.configs import tiny_t2i
from stunet.config import from_dict
from stunet.models.unet import UNet, UNetConfig, init_unet


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
    t2i = tiny_t2i.get_config()
    fields = {**t2i.unet.to_dict(), "temporal": config.temporal.to_dict()}
    unet = from_dict(UNetConfig, fields, "unet")
    size = config.data.resolution
    tokens = t2i.text_encoder.max_tokens
    params = jax.eval_shape(lambda: init_unet(unet, jax.random.key(0)))
    inputs = [
        jax.ShapeDtypeStruct(shape, jnp.float32)
        for shape in ((1, config.data.num_frames, size, size, 3), (1,), (1, tokens, unet.text_dim))
    ]
    return sum(
        model_flops(lambda p, *a: UNet(unet).apply({"params": p}, *a), params, *inputs).values()
    )


def get_config(argument: str) -> ConfigDict:
    """The run of "VARIANT,SEED"."""
    variant, seed = variant_and_seed(argument, ABLATION.variants)
    config = base_config(seed)
    if variant == "full_rate":
        budget = config.total_steps * forward_flops(config)
        config.temporal.resample = (False,) * len(config.temporal.resample)
        config.total_steps = round(budget / forward_flops(config))
    return config
