"""Repeats `resampler_init` on UCF-101, as in the paper. Needs a copy of the dataset.

    python -m experiments.ablations --only=resampler_init_ucf101 --ucf101=UCF-101 \\
        --workdir=runs/ablations

The image model in the package is trained on shapes only; --t2i takes another.
"""

import dataclasses

from ml_collections import ConfigDict

from experiments.ablations import resampler_init

ABLATION = dataclasses.replace(
    resampler_init.ABLATION,
    name="resampler_init_ucf101",
    question=f"{resampler_init.ABLATION.question} On UCF-101",
    field_inputs={scale: {"init_from": "t2i", "data.source": "ucf101"} for scale in ("cpu", "tpu")},
    shared=False,
    judges=(),
)


def get_config(argument: str) -> ConfigDict:
    """Returns the config of the run "VARIANT,SEED" or "VARIANT,SEED,tpu"."""
    config = resampler_init.get_config(argument)
    config.data.name, config.data.source = "ucf101", ""
    if "num_examples" in config.data:
        del config.data.num_examples  # a field of moving_shapes
    if config.sample_prompts:
        config.sample_prompts = ("basketball", "horse riding", "playing guitar", "surfing")
    return config
