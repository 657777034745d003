"""Temporal resamplers that start as nearest-neighbour resampling, or with He's initialisation.

python -m experiments.ablations --only=resampler_init --workdir=runs/ablations
"""

from ml_collections import ConfigDict

from experiments.ablations.training import Training, base_config, lower_in, read_run


def _verdict(losses: dict) -> str:
    wins = lower_in(losses, "identity", "he")
    seeds = len(losses["he"])
    if wins == seeds:
        return "Agrees with the paper: the identity ends lower with every seed."
    return f"Does not bear the paper out: the identity ends lower with {wins} of {seeds} seeds."


ABLATION = Training(
    name="resampler_init",
    question="Temporal resamplers: identity or He initialisation?",
    paper="The identity's loss is clearly lower; He mixes unrelated frames early in training.",
    variants=("identity", "he"),
    verdict=_verdict,
)


def get_config(argument: str) -> ConfigDict:
    """The run of "VARIANT,SEED", or of "VARIANT,SEED,tpu"."""
    variant, seed, scale = read_run(argument, ABLATION.variants, ABLATION.scales)
    config = base_config(seed, scale)
    config.temporal.resampler_init = variant
    return config
