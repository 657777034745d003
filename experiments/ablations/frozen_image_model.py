"""Compares frozen and trained text-to-image weights; on TPUs only.

    python -m experiments.ablations --scale=tpu --only=frozen_image_model \\
        --workdir=runs/ablations_tpu
"""

from ml_collections import ConfigDict

from experiments.ablations.harness.trained import (
    FIELD_INPUTS,
    TrainedAblation,
    base_config,
    rank_variants,
)

TRAINED = {"frozen": "added", "trained": "unet"}

ABLATION = TrainedAblation(
    name="frozen_image_model",
    question="Freeze or train the text-to-image weights?",
    paper="Frozen. Only the added weights are trained, and a style's weights can replace the rest.",
    variants=tuple(TRAINED),
    verdict=rank_variants,
    field_inputs={"tpu": FIELD_INPUTS["tpu"]},
    shared=False,
)


def get_config(argument: str) -> ConfigDict:
    """Returns the config of the run "VARIANT,SEED,tpu".

    Both variants keep the text-to-image weights in the type of the model that they start from.
    """
    variant, seed, scale = ABLATION.parse_run(argument)
    config = base_config(seed, scale)
    config.frozen_dtype, config.trained = None, TRAINED[variant]
    return config
