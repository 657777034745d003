"""How many frames super-resolution sees at a time, for as many a step; at a TPU's scale only.

python -m experiments.ablations --scale=tpu --only=window_length --workdir=runs/ablations_tpu
"""

from ml_collections import ConfigDict

from experiments.ablations.training import STEPS, Training, ranking, read_run
from experiments.configs import ssr_1024

ABLATION = Training(
    name="window_length",
    question="How long are super-resolution's windows?",
    paper="Not said; neighbours overlap by two frames.",
    variants=("8", "16", "32"),  # frames
    verdict=ranking,
    scales=("tpu",),
    options=("--config.data.source=FOLDER",),
    shared=False,
)


def get_config(argument: str) -> ConfigDict:
    """The run of "VARIANT,SEED,tpu"."""
    frames, seed, scale = read_run(argument, ABLATION.variants, ABLATION.scales)
    config = ssr_1024.get_config()
    config.seed = config.data.seed = seed
    config.total_steps, config.optimizer.cooldown_steps = STEPS[scale], STEPS[scale] // 4
    config.batch_size = config.batch_size * config.data.num_frames // int(frames)
    config.data.num_frames = int(frames)
    return config
