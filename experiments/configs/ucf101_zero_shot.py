"""Zero-shot text-to-video on UCF-101, the comparison of 2401.12945.

    python -m experiments.ucf101 --config=experiments/configs/ucf101_zero_shot.py \\
        --config.model=MODEL --config.upscale=MODEL --workdir=runs/ucf101

docs/evaluation.md describes how to convert published weights. Rows of the TSV file are class, tab,
prompt. At the paper's size (10,235 clips, 256 sampling steps) this needs accelerators.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Number of clips and frames as in the paper, which does not state sampler and frame rate."""
    return ConfigDict(
        {
            "model": "runs/t2v",
            "upscale": (),
            "reference": "datasets/UCF-101",
            "prompts": "datasets/ucf101_prompts.tsv",
            "i3d": "weights/i3d.safetensors",
            "c3d": "weights/c3d.safetensors",
            "num_videos": 10235,
            "frames": 16,
            # Real clips have 25 fps, Lumiere's 16; both are compared at the same rate.
            "fps": 16.0,
            "splits": 10,
            "sampler": "ancestral",
            "steps": 256,
            "guidance_scale": 8.0,
            "seed": 0,
            "batch_size": 8,
        }
    )
