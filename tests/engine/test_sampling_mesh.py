"""The mesh that sampling uses."""

import math

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from stunet.engine.sampling import sampling_mesh, sampling_shardings, video_shardings

# (devices, rows, frames) -> sizes of axes "fsdp" and "frames"
MESHES = {
    (4, 2, 16): (2, 2),  # a guided video: two rows
    (4, 16, 16): (4, 1),
    (4, 3, 1): (4, 1),  # images have no frames to split: one device computes a copy
    (8, 1, 4): (2, 4),
    (8, 6, 4): (2, 4),  # 3 frames per device instead of 4
    (64, 2, 80): (4, 16),  # 5 frames per device; 32 does not divide 80
}


@pytest.mark.parametrize("case", MESHES)
def test_fewest_frames_per_device_then_fewest_shards(case):
    count, rows, frames = case
    mesh = sampling_mesh(jax.devices() * count, rows, frames)
    assert mesh.size == count and mesh.axis_names == ("fsdp", "frames")
    assert tuple(mesh.shape.values()) == MESHES[case]
    best = min(
        math.ceil(rows / (count // n)) * frames // n
        for n in range(1, count + 1)
        if count % n == frames % n == 0
    )
    fsdp, shards = MESHES[case]
    assert math.ceil(rows / fsdp) * frames // shards == best


def test_one_device_needs_no_mesh():
    assert sampling_mesh(jax.devices()[:1], 2, 16) is None


def test_shardings_split_kernels_and_rows_of_pixels_among_all_devices():
    mesh = sampling_mesh(jax.devices() * 4, 2, 16)
    shapes = {"kernel": (3, 3, 16, 32), "bias": (32,), "odd": (63, 33)}
    params = {name: np.zeros(shape) for name, shape in shapes.items()}
    found = {name: s.spec for name, s in sampling_shardings(mesh, params).items()}
    assert found == {
        "kernel": PartitionSpec(None, None, None, ("fsdp", "frames")),
        "bias": PartitionSpec(),
        "odd": PartitionSpec(),
    }
    videos = {"x": np.zeros((1, 2, 8, 4, 3)), "odd": np.zeros((1, 2, 6, 4, 3)), "t": np.zeros(2)}
    found = {name: s.spec for name, s in video_shardings(mesh, videos).items()}
    assert found == {
        "x": PartitionSpec(None, None, ("fsdp", "frames")),
        "odd": PartitionSpec(),
        "t": PartitionSpec(),
    }
