"""Table of all ablations, in the order in which they run and appear in the report."""

from experiments.ablations import (
    additions,
    additions_emoji,
    attention_depth,
    cost,
    frozen_image_model,
    key_frames,
    multidiffusion,
    resampler_init,
    resampler_init_ucf101,
    style_strength,
    temporal_blocks,
    temporal_resampling,
    window_length,
)
from experiments.ablations.harness.ablation import Ablation

ABLATIONS: dict[str, Ablation] = {
    ablation.name: ablation
    for ablation in (
        resampler_init.ABLATION,
        resampler_init_ucf101.ABLATION,
        temporal_resampling.ABLATION,
        temporal_blocks.ABLATION,
        additions.ABLATION,
        additions_emoji.ABLATION,
        attention_depth.ABLATION,
        frozen_image_model.ABLATION,
        window_length.ABLATION,
        key_frames.ABLATION,
        multidiffusion.ABLATION,
        style_strength.ABLATION,
        cost.ABLATION,
    )
}
