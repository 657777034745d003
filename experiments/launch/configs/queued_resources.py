"""The tiny text-to-image experiment on one v5e host, by queued resources.

    python -m experiments.launch --config=experiments/launch/configs/queued_resources.py --dry-run

Put your own project, bucket and commit in: see `docs/pods.md`. No TPU has run it yet.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """A Spot TPU of 8 chips, which has one host; made anew whenever it is preempted."""
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
                "revision": "main",  # better a commit: a restart then resumes the very same code
            },
            "experiment": "experiments/configs/tiny_t2i.py",
            "overrides": (
                "total_steps=7500",
                'sample_prompts=("a red circle", "a blue star")',
            ),
            "workdir": "gs://my-bucket/runs/tiny_t2i",
        }
    )
