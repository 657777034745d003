"""`resampler_init` on real clips, UCF-101's, as in the paper; where there is a copy of them.

python -m experiments.ablations --only=resampler_init_ucf101 --ucf101=UCF-101 --workdir=runs/a

The image model that comes with the package has seen shapes only; --t2i names another.
"""

import dataclasses

from ml_collections import ConfigDict

from experiments.ablations import resampler_init

ABLATION = dataclasses.replace(
    resampler_init.ABLATION,
    name="resampler_init_ucf101",
    question=f"{resampler_init.ABLATION.question} On UCF-101",
    options=("--config.init_from=T2I", "--config.data.source=UCF101"),
    shared=False,
    judged=False,
)


def get_config(argument: str) -> ConfigDict:
    """The run of "VARIANT,SEED", or of "VARIANT,SEED,tpu"."""
    config = resampler_init.get_config(argument)
    config.data.name, config.data.source = "ucf101", ""
    if "num_examples" in config.data:
        del config.data.num_examples  # a field of moving_shapes
    if config.sample_prompts:
        config.sample_prompts = ("basketball", "horse riding", "playing guitar", "surfing")
    return config
