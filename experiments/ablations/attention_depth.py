"""How many layers of temporal attention the coarsest level's blocks stack; at a TPU's scale only.

python -m experiments.ablations --scale=tpu --only=attention_depth --workdir=runs/ablations_tpu
"""

from ml_collections import ConfigDict

from experiments.ablations.training import Training, base_config, ranking, read_run

LAYERS = {"two": 2, "one": 1, "four": 4}

ABLATION = Training(
    name="attention_depth",
    question="How many stacked layers of temporal attention?",
    paper="Not said; two make up the 5.5 billion parameters that it gives.",
    variants=tuple(LAYERS),
    verdict=ranking,
    scales=("tpu",),
)


def get_config(argument: str) -> ConfigDict:
    """The run of "VARIANT,SEED,tpu"."""
    variant, seed, scale = read_run(argument, ABLATION.variants, ABLATION.scales)
    config = base_config(seed, scale)
    config.temporal.attention_layers = LAYERS[variant]
    return config
