"""Down- and up-sampling in time, or the full frame rate at every level, for the same FLOPs.

python -m experiments.ablations --only=temporal_resampling --workdir=runs/ablations

The full rate takes more FLOPs a step, and so it is given fewer steps.
"""

from ml_collections import ConfigDict

from experiments.ablations.training import Training, base_config, lower_in, read_run


def _verdict(losses: dict) -> str:
    wins = lower_in(losses, "resampled", "full_rate")
    return (
        f"For the same FLOPs of training, resampling in time ends lower with {wins} of "
        f"{len(losses['full_rate'])} seeds."
    )


ABLATION = Training(
    name="temporal_resampling",
    question="Temporal resampling or the full frame rate, at equal FLOPs?",
    paper="Not asked: the paper resamples, for the memory and time that it saves.",
    variants=("resampled", "full_rate"),
    verdict=_verdict,
)


FULL_RATE_STEPS = {"cpu": 261, "tpu": 11410}  # for the FLOPs of the resampled network's


def get_config(argument: str) -> ConfigDict:
    """The run of "VARIANT,SEED", or of "VARIANT,SEED,tpu"."""
    variant, seed, scale = read_run(argument, ABLATION.variants, ABLATION.scales)
    config = base_config(seed, scale)
    if variant == "full_rate":
        config.temporal.resample = (False,) * len(config.temporal.resample)
        config.total_steps = FULL_RATE_STEPS[scale]
    return config
