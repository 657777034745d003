"""Compares numbers of temporal attention layers at the coarsest level; on TPUs only.

python -m experiments.ablations --scale=tpu --only=attention_depth --workdir=runs/ablations_tpu
"""

from ml_collections import ConfigDict

from experiments.ablations.harness.trained import (
    FIELD_INPUTS,
    TrainedAblation,
    base_config,
    rank_variants,
)

LAYERS = {"two": 2, "one": 1, "four": 4}

ABLATION = TrainedAblation(
    name="attention_depth",
    question="How many stacked layers of temporal attention?",
    paper="Not stated. With two layers the network has the 5.5 billion parameters that it reports.",
    variants=tuple(LAYERS),
    verdict=rank_variants,
    field_inputs={"tpu": FIELD_INPUTS["tpu"]},
)


def get_config(argument: str) -> ConfigDict:
    """Returns the config of the run "VARIANT,SEED,tpu"."""
    variant, seed, scale = ABLATION.parse_run(argument)
    config = base_config(seed, scale)
    config.temporal.attention_layers = LAYERS[variant]
    return config
