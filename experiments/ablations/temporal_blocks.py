"""Convolution over space then time, over both at once, or over time alone, at equal parameters.

python -m experiments.ablations --only=temporal_blocks --t2i=runs/t2i --workdir=runs/ablations

Each kind of block is made as wide inside as has it come nearest to the factorised one's parameters.
"""

import bisect
import functools

from ml_collections import ConfigDict

from experiments.ablations.training import Training, base_config, network, variant_and_seed
from stunet.weights.trees import flatten, is_temporal

WIDTHS = tuple(n / 4 for n in range(1, 25))  # a quarter is a normalisation group of 32 channels


def _verdict(losses: dict) -> str:
    ranked = sorted(losses, key=lambda variant: losses[variant].mean())
    first, second = losses[ranked[0]], losses[ranked[1]]
    clearly = "in every seed" if (first < second).all() else "in the mean, not in every seed"
    return f"{ranked[0]} ends lowest; {ranked[1]} comes next, behind it {clearly}."


ABLATION = Training(
    name="temporal_blocks",
    question="Factorised, 3-D or 1-D temporal convolutions, at equal parameters?",
    paper="Not asked: it factorises, for more nonlinearities at less cost than 3-D convolutions.",
    variants=("factorised", "conv3d", "conv1d"),
    verdict=_verdict,
)


def num_added(config: ConfigDict) -> int:
    """How many parameters inflation adds."""
    _, params = network(config)
    return sum(leaf.size for path, leaf in flatten(params).items() if is_temporal(path))


@functools.cache
def equal_hidden(block: str) -> float:
    """The width inside blocks of this kind at which there are as many parameters, or nearly."""
    config = base_config(0)
    wanted = num_added(config)
    config.temporal.block = block

    @functools.cache
    def added(hidden: float) -> int:
        config.temporal.hidden = hidden
        return num_added(config)

    above = bisect.bisect_left(WIDTHS, wanted, key=added)
    return min(WIDTHS[above - 1 : above + 1], key=lambda hidden: abs(added(hidden) - wanted))


def get_config(argument: str) -> ConfigDict:
    """The run of "VARIANT,SEED"."""
    variant, seed = variant_and_seed(argument, ABLATION.variants)
    config = base_config(seed)
    config.temporal.block = variant
    if variant != "factorised":
        config.temporal.hidden = equal_hidden(variant)
    return config
