"""Trains the base model on two v5p slices of 64 chips by JobSet and Kueue on GKE.

    python -m experiments.launch --config=experiments/launch/configs/jobset.py | kubectl apply -f -

Replace queue, bucket and image by your own (docs/pods.md). Not yet run on a TPU.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the config of a JobSet whose container image holds an installed checkout."""
    return ConfigDict(
        {
            "launcher": "jobset",
            "name": "base-128",
            "queue": "my-queue",
            "tpu_type": "v5p",
            "topology": "4x4x4",
            "num_slices": 2,
            "check": True,
            "image": "us-east5-docker.pkg.dev/my-project/stunet/stunet:1",
            "experiment": "experiments/configs/base_128.py:v5p",
            "overrides": (
                "batch_size=64",
                "init_from=gs://my-bucket/models/if_xl",
                "data.data_dir=gs://my-bucket/datasets",
            ),
            "workdir": "gs://my-bucket/runs/base_128",
        }
    )
