"""Networks and samplers compute the same on four devices as on one."""

import os
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh

from stunet.errors import UserError
from stunet.models.partitioning import shard_over_frames
from stunet.models.unet import UNet
from tests.four_devices import CASES, CLIPS
from tests.tiny import UNET

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    path = tmp_path_factory.mktemp("four_devices") / "results.npz"
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    command = [sys.executable, "-m", "tests.four_devices", str(path)]
    subprocess.run(command, env=environment, check=True)
    with np.load(path) as arrays:
        return dict(arrays)


@pytest.mark.parametrize("case", CASES)
def test_sharded_frames_give_the_same_output_and_gradient(results, case):
    names = [name for name in results if name.startswith(f"{case}/unsharded/")]
    assert len(names) > 100
    for name in names:
        expected, result = results[name], results[name.replace("/unsharded/", "/sharded/")]
        # The gradient of the key bias in the text pooling is zero up to rounding.
        atol = max(1e-5 * np.abs(expected).max(), 1e-8)
        np.testing.assert_allclose(result, expected, rtol=0, atol=atol, err_msg=name)


@pytest.mark.parametrize("case", CASES)
def test_only_single_frames_are_exchanged_and_no_video_is_gathered(results, case):
    program = str(results[f"{case}/program"])

    def shapes(kind):
        found = re.findall(rf"= \w+\[([\d,]*)\]\S* {kind}\(", program)
        return {tuple(map(int, shape.split(","))) for shape in found if shape}

    videos = CASES[case][3]
    fine, coarse, embedding = 4 * 8, 2 * 4, 128  # pixels per level; size of the frame modulation
    for shape in shapes("collective-permute"):
        small = shape[1] == 1 or np.prod(shape[1:]) <= embedding
        assert small or (coarse in shape and fine not in shape), shape
    gathered = shapes("all-gather") | shapes("all-to-all")
    large = [s for s in gathered if s[0] >= videos and np.prod(s[1:]) > embedding]
    assert not large


def test_frames_that_do_not_divide_evenly_raise():
    apply = shard_over_frames(UNet(UNET), AbstractMesh((1, 4), ("data", "frames")))
    with pytest.raises(UserError, match=r"^num_frames: 6,.* multiple of 4 .*mesh.frames 4"):
        jax.eval_shape(apply, {}, np.zeros((1, 6, 8, 8, 3)), np.zeros(1), np.zeros((1, 3, 8)))


def test_kernels_are_gathered_inside_the_loop_over_windows(results):
    """Gathered before the loop, every device would hold the whole model."""
    computation, gathering, bodies = "", set(), set()
    for line in str(results["windows/program"]).splitlines():
        if head := re.match(r"(?:ENTRY )?%?([\w.-]+) .*\{$", line):
            computation = head[1]
        if re.search(r"\[3,3,\d+,\d+\]\S* all-gather\(", line):
            gathering.add(computation)
        bodies |= set(re.findall(r" while\(.* body=%?([\w.-]+)", line))
    assert gathering and gathering <= bodies


@pytest.mark.parametrize("case", CLIPS)
def test_four_devices_sample_the_same_clips(results, case):
    np.testing.assert_allclose(results[f"{case}/4"], results[f"{case}/1"], rtol=0, atol=1e-5)
    assert results[f"{case}/programs/4"] == results[f"{case}/programs/1"] == 1
