"""Compares the number of frames per window of super-resolution; on TPUs only.

    python -m experiments.ablations --scale=tpu --only=window_length --workdir=runs/ablations_tpu

All variants train on the same number of frames per step.
"""

from ml_collections import ConfigDict

from experiments.ablations.harness.trained import STEPS, TrainedAblation, rank_variants
from experiments.configs import ssr_1024

ABLATION = TrainedAblation(
    name="window_length",
    question="How long are the windows of super-resolution?",
    paper="Not stated. Neighbouring windows overlap by two frames.",
    variants=("8", "16", "32"),  # frames
    verdict=rank_variants,
    field_inputs={"tpu": {"data.source": "folder"}},
    shared=False,
)


def get_config(argument: str) -> ConfigDict:
    """Returns the config of the run "VARIANT,SEED,tpu"."""
    frames, seed, scale = ABLATION.parse_run(argument)
    config = ssr_1024.get_config()
    config.seed = config.data.seed = seed
    config.total_steps, config.optimizer.cooldown_steps = STEPS[scale], STEPS[scale] // 4
    config.batch_size = config.batch_size * config.data.num_frames // int(frames)
    config.data.num_frames = int(frames)
    return config
