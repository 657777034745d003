"""Scene cuts and static clips."""

import importlib.util
import itertools
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from data import scenes
from stunet.errors import UserError
from stunet.video_io import decode_frames

VIDEOS = Path(__file__).parents[3] / "shared" / "videos"
needs_scenedetect = pytest.mark.skipif(
    importlib.util.find_spec("scenedetect") is None, reason="needs the extra `scenes`"
)
needs_videos = pytest.mark.skipif(not VIDEOS.is_dir(), reason="needs ../shared/videos")


def starts(frames, fps=16):
    """Returns the indices of the frames that start a scene."""
    return [
        index for index, (is_start, _) in enumerate(scenes.split_scenes(frames, fps)) if is_start
    ]


def pan(seed, count=20, side=64, step=1.0, brightness=1.0):
    """A window that moves over a texture, `step` pixels a frame, `[T, side, side, 3]` uint8."""
    rng = np.random.default_rng(seed)
    texture = rng.integers(0, 256, (side // 8, side // 4, 3)).repeat(8, 0).repeat(8, 1)
    frames = []
    for index in range(count):
        whole, part = divmod(index * step, 1)
        left, right = (texture[:, int(whole) + i :][:, :side] for i in (0, 1))
        frames.append((1 - part) * left + part * right)
    return np.round(brightness * np.stack(frames)).astype(np.uint8)


@needs_scenedetect
@pytest.mark.parametrize("brightness", [1.0, 0.3])
def test_cuts_between_moving_scenes(brightness):
    parts = [
        pan(seed, count, brightness=brightness) for seed, count in enumerate((9, 20, 3, 30, 1))
    ]
    frames = list(np.concatenate(parts))
    assert starts(frames) == [0, 9, 29, 32, 62]
    marked = list(scenes.split_scenes(iter(frames), 16))
    assert all(frame is other for (_, frame), other in zip(marked, frames, strict=True))


@needs_scenedetect
@pytest.mark.parametrize("count", [0, 1, 2, 3, 30])
def test_the_first_frame_starts_the_only_scene(count):
    assert starts(pan(0, count) if count else []) == [0][:count]
    assert starts([np.zeros((64, 64, 3), np.uint8)] * count) == [0][:count]


@needs_scenedetect
def test_grey_videos_have_cuts():
    grey = [np.repeat(pan(seed)[..., :1], 3, -1) for seed in range(3)]
    assert starts(np.concatenate(grey)) == [0, 20, 40]


@needs_scenedetect
def test_frames_are_read_as_they_are_needed():
    read = []
    frames = (read.append(i) or frame for i, frame in enumerate(itertools.cycle(pan(0))))
    marked = scenes.split_scenes(frames, 16)
    for index in range(500):
        next(marked)
        assert len(read) <= index + 3
    tracemalloc.start()
    for _ in itertools.islice(marked, 300):
        pass
    assert tracemalloc.get_traced_memory()[1] < 40 * 64 * 64 * 3
    tracemalloc.stop()


@needs_scenedetect
@needs_videos
@pytest.mark.parametrize("resolution", [64, 128])
@pytest.mark.parametrize(
    ("fps", "cuts"), [(16, (0, 19, 49, 88, 120, 155)), (24, (0, 29, 73, 132, 180, 232))]
)
def test_real_cuts(resolution, fps, cuts):
    frames = list(decode_frames(VIDEOS / "bikes.mp4", fps, resolution))
    assert starts(frames, fps) == list(cuts)
    if fps == 16:  # spans that start and end next to a cut
        assert [18 + i for i in starts(frames[18:50])] == [18, 19, 49]
        assert [87 + i for i in starts(frames[87:122])] == [87, 88, 120]


@needs_scenedetect
@needs_videos
@pytest.mark.parametrize("name", ["bigbuckbunny.mp4", "realshort.mp4"])
def test_real_scenes_without_cuts(name):
    assert starts(decode_frames(VIDEOS / name, 16, 64)) == [0]


@needs_scenedetect
@needs_videos
def test_a_handheld_camera_has_few_cuts():
    """Its first and last frames, and two swift turns, may be split off."""
    cuts = starts(decode_frames(VIDEOS / "cockatoo.mp4", 16, 64))
    assert set(cuts) <= {0, 1, 2, 107, 126, 222, 223}


@pytest.mark.parametrize("module", ["scenedetect", "cv2"])
def test_a_missing_package_is_named_before_frames_are_read(monkeypatch, module):
    if module == "cv2" and importlib.util.find_spec("scenedetect") is None:
        pytest.skip("needs the extra `scenes`")
    for name in [name for name in sys.modules if name.startswith("scenedetect")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    for call in (lambda: scenes.split_scenes([], 16), scenes.check_installed):
        with pytest.raises(UserError, match=rf"{module}.*\[scenes\]"):
            call()


def test_motion_in_closed_form():
    # 16x16 pixels in blocks of 2x2: 7 of the 64 blocks flash between 0 and 100, so that they
    # deviate from their mean by 50. 6 blocks are a tenth.
    frames = np.full((10, 16, 16, 3), 7, np.uint8)
    frames[:, 2:4, :14] = 0
    frames[1::2, 2:4, :14] = 100
    assert scenes.motion(frames) == pytest.approx(50)
    frames[:, 2:4, 6:14] = 0  # 3 of the 6 are still
    assert scenes.motion(frames) == pytest.approx(25)
    # Blocks of which a quarter flashes.
    frames[:, 2:4] = 0
    frames[1::2, 2, :12:2] = 100
    assert scenes.motion(frames) == pytest.approx(12.5)


@pytest.mark.parametrize("shape", [(1, 64, 64, 3), (5, 64, 64, 3), (5, 30, 17, 3), (5, 4, 4, 3)])
def test_stills_do_not_move(shape):
    frames = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    assert scenes.motion(np.repeat(frames[:1], len(frames), 0)) == 0
    assert (scenes.motion(frames) > 0) == (len(frames) > 1)


def test_noise_and_flicker_are_static_and_slow_motion_is_not():
    rng = np.random.default_rng(0)
    still = np.clip(pan(0, 1).astype(float), 30, 225)
    for spread, shape in ((2, (80, 64, 64, 3)), (10, (80, 64, 64, 3)), (2, (80, 1, 1, 1))):
        noisy = np.round(still + rng.normal(0, spread, shape)).clip(0, 255).astype(np.uint8)
        assert 0 < scenes.motion(noisy) < scenes.STATIC_MOTION
    assert scenes.motion(pan(0, 80, step=0.1)) > 4 * scenes.STATIC_MOTION
    object_only = np.repeat(pan(0, 1), 80, 0)
    for index in range(80):
        object_only[index, 20:26, index // 2 : index // 2 + 6] = 255
    assert scenes.motion(object_only) > 2 * scenes.STATIC_MOTION


@needs_videos
@pytest.mark.parametrize(
    ("name", "span", "least"),
    [
        ("bigbuckbunny.mp4", (2.8, 3.9), 4),  # almost still
        ("bikes.mp4", (4.6, 5.5), 8),  # someone who waits
        ("bikes.mp4", (5.5, 7.5), 20),
        ("cockatoo.mp4", (0, 5), 20),
        ("realshort.mp4", (0, 1.2), 20),
    ],
)
def test_motion_of_real_scenes(name, span, least):
    frames = np.stack(list(decode_frames(VIDEOS / name, 16, 64, span)))
    assert scenes.motion(frames) > least > scenes.STATIC_MOTION
