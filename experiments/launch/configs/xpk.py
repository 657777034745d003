"""The tiny text-to-image experiment on one v6e host, by xpk on GKE.

    python -m experiments.launch --config=experiments/launch/configs/xpk.py --dry-run

Put your own project, cluster, bucket and image in: see `docs/pods.md`. No TPU has run it yet.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """A container image that holds a checkout with everything installed."""
    return ConfigDict(
        {
            "launcher": "xpk",
            "name": "tiny-t2i",
            "project": "my-project",
            "zone": "us-east5-a",
            "cluster": "my-cluster",
            "tpu_type": "v6e-4",
            "image": "us-east5-docker.pkg.dev/my-project/stunet/stunet:1",
            "experiment": "experiments/configs/tiny_t2i.py",
            "overrides": (
                "total_steps=7500",
                'sample_prompts=("a red circle", "a blue star")',
            ),
            "workdir": "gs://my-bucket/runs/tiny_t2i",
        }
    )
