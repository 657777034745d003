"""Compares factorised, 3-D and 1-D temporal convolutions with equal numbers of parameters.

    python -m experiments.ablations --only=temporal_blocks --workdir=runs/ablations

The factorised block convolves over space, then over time; the 3-D block over both together; the
1-D block over time only.
"""

from ml_collections import ConfigDict

from experiments.ablations.harness.trained import TrainedAblation, base_config, rank_variants

ABLATION = TrainedAblation(
    name="temporal_blocks",
    question="Factorised, 3-D or 1-D temporal convolutions, at equal parameters?",
    paper="Not compared. It factorises: more nonlinearities at less cost than 3-D convolutions.",
    variants=("factorised", "conv3d", "conv1d"),
    verdict=rank_variants,
)

# Width multipliers of the hidden layer that give each block the parameters of the factorised
# block, to 1 %.
HIDDEN = {
    "cpu": {"factorised": 1.0, "conv3d": 0.5, "conv1d": 1.75},
    "tpu": {"factorised": 1.0, "conv3d": 0.46, "conv1d": 3.25},
}


def get_config(argument: str) -> ConfigDict:
    """Returns the config of the run "VARIANT,SEED" or "VARIANT,SEED,tpu"."""
    variant, seed, scale = ABLATION.parse_run(argument)
    config = base_config(seed, scale)
    config.temporal.block = variant
    config.temporal.hidden = HIDDEN[scale][variant]
    return config
