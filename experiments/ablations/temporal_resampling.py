"""Compares temporal down- and up-sampling with the full frame rate at all levels, at equal FLOPs.

    python -m experiments.ablations --only=temporal_resampling --workdir=runs/ablations

The full rate takes more FLOPs per step, so it trains for fewer steps.
"""

import numpy as np
from ml_collections import ConfigDict

from experiments.ablations.harness.trained import TrainedAblation, base_config, count_lower


def _verdict(losses: dict[str, np.ndarray]) -> str:
    wins = count_lower(losses, "resampled", "full_rate")
    return (
        f"For the same training FLOPs, temporal resampling ends lower with {wins} of "
        f"{len(losses['full_rate'])} seeds."
    )


ABLATION = TrainedAblation(
    name="temporal_resampling",
    question="Temporal resampling or the full frame rate, at equal FLOPs?",
    paper="Not compared. It resamples to save memory and time.",
    variants=("resampled", "full_rate"),
    verdict=_verdict,
)

# Steps that take the FLOPs of all steps of the resampled network.
FULL_RATE_STEPS = {"cpu": 261, "tpu": 11173}


def get_config(argument: str) -> ConfigDict:
    """Returns the config of the run "VARIANT,SEED" or "VARIANT,SEED,tpu"."""
    variant, seed, scale = ABLATION.parse_run(argument)
    config = base_config(seed, scale)
    if variant == "full_rate":
        config.temporal.resample = (False,) * len(config.temporal.resample)
        config.total_steps = FULL_RATE_STEPS[scale]
    return config
