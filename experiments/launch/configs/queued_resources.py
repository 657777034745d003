"""Trains the tiny text-to-image model on one v5e host by queued resources.

    python -m experiments.launch --config=experiments/launch/configs/queued_resources.py --dry-run

Replace project, bucket and repository by your own (docs/pods.md). Not yet run on a TPU.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the config of a Spot TPU with 8 chips on one host, recreated after a preemption."""
    return ConfigDict(
        {
            "launcher": "queued_resources",
            "name": "tiny-t2i",
            "project": "my-project",
            "zone": "us-west4-a",
            "tpu_type": "v5litepod-8",
            "runtime_version": "v2-alpha-tpuv5-lite",
            "spot": True,
            "checkout": {
                "repository": "https://github.com/me/stunet.git",
                "revision": "main",  # use a commit so that a restart runs the same code
            },
            "experiment": "experiments/configs/tiny_t2i.py",
            "overrides": (
                "total_steps=7500",
                'sample_prompts=("a red circle", "a blue star")',
            ),
            "workdir": "gs://my-bucket/runs/tiny_t2i",
        }
    )
