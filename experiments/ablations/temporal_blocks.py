"""Convolution over space then time, over both at once, or over time alone, at equal parameters.

python -m experiments.ablations --only=temporal_blocks --workdir=runs/ablations

Each kind of block is as wide inside as makes its parameters as many as the factorised one's.
"""

from ml_collections import ConfigDict

from experiments.ablations.training import Training, base_config, ranking, read_run

ABLATION = Training(
    name="temporal_blocks",
    question="Factorised, 3-D or 1-D temporal convolutions, at equal parameters?",
    paper="Not asked: it factorises, for more nonlinearities at less cost than 3-D convolutions.",
    variants=("factorised", "conv3d", "conv1d"),
    verdict=ranking,
)


# Features inside a block for each feature of its level, at which there are as many parameters as
# with the factorised kind, to 1 %.
HIDDEN = {
    "cpu": {"factorised": 1.0, "conv3d": 0.5, "conv1d": 1.75},
    "tpu": {"factorised": 1.0, "conv3d": 0.46, "conv1d": 3.25},
}


def get_config(argument: str) -> ConfigDict:
    """The run of "VARIANT,SEED", or of "VARIANT,SEED,tpu"."""
    variant, seed, scale = read_run(argument, ABLATION.variants, ABLATION.scales)
    config = base_config(seed, scale)
    config.temporal.block = variant
    config.temporal.hidden = HIDDEN[scale][variant]
    return config
