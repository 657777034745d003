"""Encodes texts with a model's text encoder on one and on four devices, in a separate process.

XLA_FLAGS=--xla_force_host_platform_device_count=4 python -m tests.training.encode_on_devices \
    MODEL OUT.npz
"""

import sys
from pathlib import Path
from unittest import mock

import jax
import numpy as np

from stunet.model import model_from_folder
from stunet.training.text_cache import make_local_encoder
from stunet.weights.model_folder import open_model_folder

TEXTS = ["a red circle moves left", "", "something else", "x", "a green star", "y"]


def main(folder: str, out: str) -> None:
    """Saves the states and, for each number of devices, the rows that a device computes."""
    model = model_from_folder(open_model_folder(folder), Path(folder))
    results = {}
    for count in 1, 4:
        devices = jax.local_devices()[:count]
        assert len(devices) == count
        put, shapes = jax.device_put, []

        def device_put(tree, sharding, put=put, shapes=shapes):
            placed = put(tree, sharding)
            shapes += [array.addressable_shards[0].data.shape for array in placed]
            return placed

        with (
            mock.patch("jax.local_devices", lambda devices=devices: devices),
            mock.patch("jax.device_put", device_put),
        ):
            encode = make_local_encoder(
                model.text_encoder, model.tokenizer, model.params["text_encoder"]
            )
            results[f"states/{count}"] = encode(TEXTS)
        results[f"rows/{count}"] = [shape[0] for shape in shapes]
    np.savez(out, **results)


if __name__ == "__main__":
    main(*sys.argv[1:])
