"""Compares two initialisations of temporal resamplers: nearest-neighbour resampling and He.

python -m experiments.ablations --only=resampler_init --workdir=runs/ablations
"""

import numpy as np
from ml_collections import ConfigDict

from experiments.ablations.harness.trained import TrainedAblation, base_config, count_lower


def _verdict(losses: dict[str, np.ndarray]) -> str:
    wins = count_lower(losses, "identity", "he")
    seeds = len(losses["he"])
    if wins == seeds:
        return "Agrees with the paper: the identity ends lower with every seed."
    return f"Does not confirm the paper: the identity ends lower with {wins} of {seeds} seeds."


ABLATION = TrainedAblation(
    name="resampler_init",
    question="Temporal resamplers: identity or He initialisation?",
    paper="The loss of the identity is clearly lower; He mixes unrelated frames early in training.",
    variants=("identity", "he"),
    verdict=_verdict,
)


def get_config(argument: str) -> ConfigDict:
    """Returns the config of the run "VARIANT,SEED" or "VARIANT,SEED,tpu"."""
    variant, seed, scale = ABLATION.parse_run(argument)
    config = base_config(seed, scale)
    config.temporal.resampler_init = variant
    return config
