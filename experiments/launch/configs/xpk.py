"""Trains the tiny text-to-image model on one v6e host by xpk on GKE.

    python -m experiments.launch --config=experiments/launch/configs/xpk.py --dry-run

Replace project, cluster, bucket and image by your own (docs/pods.md). Not yet run on a TPU.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the config of a workload whose container image holds an installed checkout."""
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
