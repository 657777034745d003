"""UCF-101, zero-shot: the paper's comparison of text-to-video models.

    python -m experiments.ucf101 --config=experiments/configs/ucf101_zero_shot.py \\
        --config.model=MODEL --config.upscale=MODEL --workdir=runs/ucf101

Weights are made from published ones as docs/evaluation.md says; the TSV has a class and a prompt in
each row. At the paper's size this is work for accelerators: 10,235 clips, sampled in 256 steps.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The paper's counts; what it leaves open (sampling, rate) is ours."""
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
            # Real clips have 25 a second, Lumiere's 16; compared are 16 frames of equal rate.
            "fps": 16.0,
            "splits": 10,
            "sampler": "ancestral",
            "steps": 256,
            "guidance_scale": 8.0,
            "seed": 0,
            "batch_size": 8,
        }
    )
