"""Temporal resamplers that start as nearest-neighbour resampling, or with He's initialisation.

python -m experiments.ablations --only=resampler_init --t2i=runs/t2i --workdir=runs/ablations
"""

from ml_collections import ConfigDict

from experiments.ablations.programs import SEEDS
from experiments.ablations.training import Training, base_config, lower_in, variant_and_seed


def _verdict(losses: dict) -> str:
    wins = lower_in(losses, "identity", "he")
    if wins == len(SEEDS):
        return "Agrees with the paper: the identity ends lower with every seed."
    return (
        f"Does not bear the paper out: the identity ends lower with {wins} of {len(SEEDS)} seeds."
    )


ABLATION = Training(
    name="resampler_init",
    question="Temporal resamplers: identity or He initialisation?",
    paper="The identity's loss is clearly lower; He mixes unrelated frames early in training.",
    variants=("identity", "he"),
    verdict=_verdict,
)


def get_config(argument: str) -> ConfigDict:
    """The run of "VARIANT,SEED"."""
    variant, seed = variant_and_seed(argument, ABLATION.variants)
    config = base_config(seed)
    config.temporal.resampler_init = variant
    return config
