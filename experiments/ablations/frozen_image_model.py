"""The image model kept as it is, or trained with what is added to it; at a TPU's scale only.

python -m experiments.ablations --scale=tpu --only=frozen_image_model --workdir=runs/ablations_tpu
"""

from ml_collections import ConfigDict

from experiments.ablations.training import Training, base_config, ranking, read_run

TRAINED = {"frozen": "added", "trained": "unet"}

ABLATION = Training(
    name="frozen_image_model",
    question="The image model: frozen or trained, too?",
    paper="Frozen: only what is added is trained, and a style's weights can take its place.",
    variants=tuple(TRAINED),
    verdict=ranking,
    scales=("tpu",),
    shared=False,
)


def get_config(argument: str) -> ConfigDict:
    """The run of "VARIANT,SEED,tpu"; both keep the image model in the same type."""
    variant, seed, scale = read_run(argument, ABLATION.variants, ABLATION.scales)
    config = base_config(seed, scale)
    config.frozen_dtype, config.trained = None, TRAINED[variant]
    return config
