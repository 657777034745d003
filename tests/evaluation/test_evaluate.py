"""Reports on folders of clips, with a feature extractor of one's own."""

import numpy as np
import pytest

from stunet.diffusion import Windows
from stunet.errors import UserError
from stunet.evaluation.clip_folders import open_folder, read_prompts
from stunet.evaluation.evaluate import Metrics, evaluate, table
from stunet.evaluation.features import Extractor, Resize
from stunet.evaluation.scores import frechet_distance
from stunet.video_io import write_video

FRAMES = 6


def brightness(video):
    """A clip of grey frames by the brightness of each, in steps of 1/255."""
    grey = np.array(video, np.float32)[:, None, None, None] / 127.5 - 1
    return np.broadcast_to(grey, (len(video), 64, 64, 3))


def first_and_last(videos):
    """Features: the mean of the first frame and of the last, in steps of 1/255."""
    return 127.5 * videos[:, [0, -1]].mean((2, 3, 4)) + 127.5


MINE = Extractor("first and last", first_and_last, Resize(8, "bilinear"), 2, None, "abc")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("clips")
    made = {"sub/b.mp4": [20, 40, 20, 40, 20, 40, 0], "a.mp4": [100, 100, 100, 160, 160, 160]}
    real = {f"{level}.mp4": [level, *[90] * 4, level + 5] for level in (50, 60, 80)}
    for folder, clips in (("made", made), ("real", real)):
        for name, levels in clips.items():
            write_video(root / folder / name, brightness(levels), 10)
    (root / "made" / "notes.txt").write_text("no clip")
    (root / "empty").mkdir()
    return root


def test_report(folders):
    clips, real = (open_folder(folders / name, FRAMES) for name in ("made", "real"))
    done = []
    windows = Windows.over(FRAMES, 3, overlap=0)
    report = evaluate(clips, Metrics(frechet=MINE, windows=windows), real, on_clips=done.append)
    assert report["clips"] == {
        "folder": str(folders / "made"),
        "num_clips": 2,
        "frames": FRAMES,
        "fps": [10, 10],
        "retimed": False,
        "sizes": {"256x256": 2},  # as written
    }
    assert sum(done) == 5 and report["reference"]["num_clips"] == 3
    scores = report["metrics"]
    # a.mp4: a step of 60 between frames 2 and 3, at the window's edge; b.mp4: 20 up and down
    assert scores["flicker"]["value"] == pytest.approx((20 + (30 + 30) / 4) / 2, abs=0.5)
    assert scores["motion_energy"]["value"] == pytest.approx((60 / 5 + 20) / 2, abs=0.5)
    assert scores["motion_energy"]["reference"] == pytest.approx(
        (2 * (40 + 30 + 10) - 15) / 15, 0.1
    )
    assert scores["seam_ratio"]["value"] == pytest.approx((60 + 20) / (0 + 20), rel=0.02)
    assert "interval" not in scores["seam_ratio"]  # drawn of a.mp4 alone, nothing moves elsewhere
    features = ([[100, 160], [20, 40]], [[50, 55], [60, 65], [80, 85]])
    expected = frechet_distance(*map(np.array, features))
    assert scores["fvd"]["value"] == pytest.approx(expected, rel=0.02)
    assert scores["fvd"] == scores["fvd"] | {
        "network": "first and last",
        "weights_sha256": "abc",
        "resize": "bilinear to 8x8, the middle of what is not square",
        "features": 2,
    }
    printed = "\n".join(table(report))
    assert "clips: 2 of 6 frames at 10 fps, 256x256" in printed
    for name, score in scores.items():
        assert name in printed and f"{score['value']:.3f}" in printed


def test_prompts_by_the_names_of_files(folders, tmp_path):
    names = open_folder(folders / "made", FRAMES).names
    assert names == ("a.mp4", "sub/b.mp4")
    table = tmp_path / "prompts.tsv"
    table.write_text("sub/b.mp4\tflickering \n\na.mp4\ta step\nc.mp4\tanother\n")
    assert read_prompts(table, names) == ["a step", "flickering"]
    for text, message in (
        ("a.mp4\ta step\n", r"prompts\.tsv: has no text for sub/b\.mp4$"),
        ("b.mp4\tx\n", r"no text for a\.mp4, nor for 1 others"),
        ("a.mp4 a step\n", "row 1 must be a file's name, a tab and a text"),
    ):
        table.write_text(text)
        with pytest.raises(UserError, match=message):
            read_prompts(table, names)


def test_what_stands_still_has_no_seam_ratio(tmp_path):
    write_video(tmp_path / "step.mp4", brightness([50, 50, 50, 90, 90, 90]), 10)
    with pytest.raises(UserError, match="no clip moves; there is no seam ratio"):
        evaluate(open_folder(tmp_path, FRAMES), Metrics(windows=Windows.over(FRAMES, 3, overlap=0)))


def test_what_cannot_be_measured(folders):
    clips = open_folder(folders / "made", FRAMES)
    one = open_folder(folders / "made" / "sub", FRAMES)
    for metrics, made, real, message in (
        (Metrics(frechet=MINE), clips, None, "takes a reference"),
        (Metrics(frechet=MINE), clips, one, "2 clips or more on both sides, got 2 and 1"),
        (Metrics(classifier=MINE), clips, None, "in 10 parts takes as many clips, got 2"),
        (
            Metrics(windows=Windows.over(FRAMES, 6)),
            clips,
            None,
            "windows of 6 frames have no seams",
        ),
        (Metrics(), open_folder(folders / "made", 2), None, "2 frames of a clip are too few"),
        (Metrics(), open_folder(folders / "made", 7), None, r"a\.mp4: has 6 frames, but 7"),
        (Metrics(), open_folder(folders / "made", 7, 20.0), None, None),
    ):
        if message is None:
            assert evaluate(made, metrics, real)["clips"]["fps"] == [20, 20]
            continue
        with pytest.raises(UserError, match=message):
            evaluate(made, metrics, real)
    with pytest.raises(UserError, match="empty: holds no video"):
        open_folder(folders / "empty", FRAMES)
    with pytest.raises(UserError, match="nowhere: no such folder"):
        open_folder(folders / "nowhere", FRAMES)
