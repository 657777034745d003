"""Four devices compute what one does."""

import os
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh

from stunet.errors import UserError
from stunet.models.partitioning import split_over_frames
from stunet.models.unet import UNet
from tests.four_devices import CASES, CLIPS
from tests.tiny import UNET

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    path = tmp_path_factory.mktemp("split") / "found.npz"
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    command = [sys.executable, "-m", "tests.four_devices", str(path)]
    subprocess.run(command, env=environment, check=True)
    with np.load(path) as found:
        return dict(found)


@pytest.mark.parametrize("case", CASES)
def test_split_over_devices_it_is_the_same_network_with_the_same_gradient(found, case):
    names = [name for name in found if name.startswith(f"{case}/whole/")]
    assert len(names) > 100
    for name in names:
        whole, split = found[name], found[name.replace("/whole/", "/split/")]
        # Keys' bias in the pooling of text has no gradient but rounding's.
        atol = max(1e-5 * np.abs(whole).max(), 1e-8)
        np.testing.assert_allclose(split, whole, rtol=0, atol=atol, err_msg=name)


@pytest.mark.parametrize("case", CASES)
def test_neighbours_exchange_single_frames_and_nothing_gathers_a_video(found, case):
    program = str(found[f"{case}/program"])

    def shapes(kind):
        found = re.findall(rf"= \w+\[([\d,]*)\]\S* {kind}\(", program)
        return {tuple(map(int, shape.split(","))) for shape in found if shape}

    videos = CASES[case][3]
    fine, coarse, words = 4 * 8, 2 * 4, 128  # pixels of a level; numbers that frames are told
    for shape in shapes("collective-permute"):
        small = shape[1] == 1 or np.prod(shape[1:]) <= words
        assert small or (coarse in shape and fine not in shape), shape
    gathered = shapes("all-gather") | shapes("all-to-all")
    assert not [shape for shape in gathered if shape[0] >= videos and np.prod(shape[1:]) > words]


def test_frames_that_do_not_divide_are_refused():
    apply = split_over_frames(UNet(UNET), AbstractMesh((1, 4), ("data", "frames")))
    with pytest.raises(UserError, match=r"num_frames is 6, .* 4 devices .* multiple of 4"):
        jax.eval_shape(apply, {}, np.zeros((1, 6, 8, 8, 3)), np.zeros(1), np.zeros((1, 3, 8)))


@pytest.mark.parametrize("case", CLIPS)
def test_four_devices_make_the_clips_that_one_makes(found, case):
    np.testing.assert_allclose(found[f"{case}/4"], found[f"{case}/1"], rtol=0, atol=1e-5)
    assert found[f"{case}/programs of 4"] == found[f"{case}/programs of 1"] == 1
