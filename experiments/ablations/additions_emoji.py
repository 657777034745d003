"""Repeats `additions` on emoji. Needs the built dataset and an image model of emoji.

    python -m experiments.ablations --only=additions_emoji --emoji=datasets \\
        --emoji_t2i=runs/emoji/t2i --workdir=runs/ablations
"""

import dataclasses

from ml_collections import ConfigDict

from experiments.ablations import additions
from experiments.configs import emoji

ABLATION = dataclasses.replace(
    additions.ABLATION,
    name="additions_emoji",
    question=f"{additions.ABLATION.question} On emoji",
    field_inputs={"cpu": {"init_from": "emoji_t2i", "data.data_dir": "emoji"}},
    judges=("experiments.denoising",),
)

EQUAL_FLOPS_STEPS = 622  # of "paper", which take the FLOPs of all steps of "all"


def get_config(argument: str) -> ConfigDict:
    """Returns the config of the run "VARIANT,SEED", for clips of two seconds in 8 frames."""
    config, video = additions.get_config(argument), emoji.get_config("t2v")
    config.data = {**video.data.to_dict(), "seed": config.seed}
    config.temporal.resample = video.temporal.resample
    config.temporal.head_dim = video.temporal.head_dim
    config.diffusion.schedule.log_snr_shift = video.diffusion.schedule.log_snr_shift
    if additions.ABLATION.parse_run(argument).variant == "paper_equal_flops":
        additions.set_steps(config, EQUAL_FLOPS_STEPS)
    config.batch_size = video.batch_size
    config.sample_prompts = video.sample_prompts[:4]
    return config
