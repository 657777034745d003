"""Reports on folders of clips, with a custom feature extractor and a custom metric."""

import numpy as np
import pytest

from stunet.errors import UserError
from stunet.evaluation.clip_folders import open_clip_folder, read_clip_prompts
from stunet.evaluation.evaluate import evaluate, format_report
from stunet.evaluation.features import Extractor, Resize
from stunet.evaluation.metrics import METRICS, MetricEntry, load_metrics
from stunet.evaluation.network_metrics import FrechetDistance, InceptionScore
from stunet.evaluation.pixel_metrics import Flicker, MotionEnergy, SeamRatio
from stunet.evaluation.scores import frechet_distance
from stunet.video_io import write_video

FRAMES = 6


def brightness(video):
    """Returns a clip of grey frames of the given brightness, in 1/255."""
    grey = np.array(video, np.float32)[:, None, None, None] / 127.5 - 1
    return np.broadcast_to(grey, (len(video), 64, 64, 3))


def first_and_last(videos):
    """Returns features `[B, 2]`: the mean of the first and of the last frame, in 1/255."""
    return 127.5 * videos[:, [0, -1]].mean((2, 3, 4)) + 127.5


EXTRACTOR = Extractor("first and last", first_and_last, Resize(8, "bilinear"), 2, None, "abc")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("clips")
    generated = {"sub/b.mp4": [20, 40, 20, 40, 20, 40, 0], "a.mp4": [100, 100, 100, 160, 160, 160]}
    real = {f"{level}.mp4": [level, *[90] * 4, level + 5] for level in (50, 60, 80)}
    for folder, clips in (("generated", generated), ("real", real)):
        for name, levels in clips.items():
            write_video(root / folder / name, brightness(levels), 10)
    (root / "generated" / "notes.txt").write_text("not a clip")
    (root / "empty").mkdir()
    return root


def test_report(folders):
    clips, real = (open_clip_folder(folders / name, FRAMES) for name in ("generated", "real"))
    metrics = [
        Flicker(),
        MotionEnergy(),
        SeamRatio(length=3, overlap=0),
        FrechetDistance(network=EXTRACTOR),
    ]
    measured = []
    report = evaluate(clips, metrics, real, on_clips=measured.append)
    assert report["clips"] == {
        "folder": str(folders / "generated"),
        "num_clips": 2,
        "frames": FRAMES,
        "fps": [10, 10],
        "retimed": False,
        "sizes": {"256x256": 2},  # as written
    }
    assert sum(measured) == 5 and report["reference"]["num_clips"] == 3
    scores = report["metrics"]
    # a.mp4: a step of 60 between frames 2 and 3, at a seam; b.mp4: 20 up and down
    assert scores["flicker"]["value"] == pytest.approx((20 + (30 + 30) / 4) / 2, abs=0.5)
    assert scores["motion_energy"]["value"] == pytest.approx((60 / 5 + 20) / 2, abs=0.5)
    assert scores["motion_energy"]["reference"] == pytest.approx(
        (2 * (40 + 30 + 10) - 15) / 15, 0.1
    )
    assert scores["seam_ratio"]["value"] == pytest.approx((60 + 20) / (0 + 20), rel=0.02)
    assert "interval" not in scores["seam_ratio"]  # a.mp4 is still except at the seam
    features = ([[100, 160], [20, 40]], [[50, 55], [60, 65], [80, 85]])
    expected = frechet_distance(*map(np.array, features))
    assert scores["fvd"]["value"] == pytest.approx(expected, rel=0.02)
    assert scores["fvd"] == scores["fvd"] | {
        "network": "first and last",
        "weights_sha256": "abc",
        "resize": "bilinear to 8x8, the middle of what is not square",
        "features": 2,
    }
    printed = "\n".join(format_report(report))
    assert "clips: 2 of 6 frames at 10 fps, 256x256" in printed
    for name, score in scores.items():
        assert name in printed and f"{score['value']:.3f}" in printed


class Brightness:
    """A metric from outside the package: mean brightness in 0..255."""

    name = "brightness"
    measures_reference = True

    def check(self, comparison):
        if comparison.num_reference is None:
            raise UserError("brightness: no reference")

    def warning(self, comparison):
        return f"brightness: {comparison.num_clips}"

    def measure(self, clips, batch_size):
        return np.array([127.5 * (clip.mean() + 1) for clip in clips])

    def score(self, measured, reference, prompts):
        return {"value": float(measured.mean()), "reference": float(reference.mean())}


BRIGHTNESS = MetricEntry(load=lambda options: Brightness())


def test_metric_from_outside_the_package(folders):
    clips, real = (open_clip_folder(folders / name, FRAMES) for name in ("generated", "real"))
    metrics = load_metrics({}, [f"{__name__}:BRIGHTNESS"])
    assert [metric.name for metric in metrics] == ["flicker", "motion_energy", "brightness"]
    score = evaluate(clips, metrics, real)["metrics"]["brightness"]
    assert score["value"] == pytest.approx((130 + 30) / 2, abs=1)
    assert score["reference"] == pytest.approx((50 + 60 + 80 + 3 * 4 * 90 + 205) / 18, abs=1)
    with pytest.raises(UserError, match="brightness: no reference"):
        evaluate(clips, metrics)


def test_named_metrics():
    with pytest.raises(UserError, match=r"'blur'.*flicker, .*clip_similarity"):
        load_metrics({}, ["blur"])
    with pytest.raises(UserError, match=r"'fvd'.*i3d"):
        load_metrics({}, ["fvd"])
    with pytest.raises(UserError, match=rf"'{__name__}:FRAMES'.*6.*MetricEntry"):
        load_metrics({}, [f"{__name__}:FRAMES"])
    metrics = load_metrics({"windows": (3, 0)}, ["seam_ratio"])
    assert [metric.name for metric in metrics] == list(METRICS)[:3]


def test_prompts_by_file_name(folders, tmp_path):
    names = open_clip_folder(folders / "generated", FRAMES).names
    assert names == ("a.mp4", "sub/b.mp4")
    table = tmp_path / "prompts.tsv"
    table.write_text("sub/b.mp4\tflickering \n\na.mp4\ta step\nc.mp4\tanother\n")
    assert read_clip_prompts(table, names) == ["a step", "flickering"]
    for text, message in (
        ("a.mp4\ta step\n", r"prompts\.tsv: .* sub/b\.mp4,"),
        ("b.mp4\tx\n", r"prompts\.tsv: .* a\.mp4 and 1 others"),
        ("a.mp4 a step\n", r"prompts\.tsv.* line 1 .*a file's name, a tab and a prompt"),
    ):
        table.write_text(text)
        with pytest.raises(UserError, match=message):
            read_clip_prompts(table, names)


def test_still_clips_have_no_seam_ratio(tmp_path):
    write_video(tmp_path / "step.mp4", brightness([50, 50, 50, 90, 90, 90]), 10)
    with pytest.raises(UserError, match="seam_ratio: undefined"):
        evaluate(open_clip_folder(tmp_path, FRAMES), [SeamRatio(length=3, overlap=0)])


def test_unsuitable_clips(folders):
    clips = open_clip_folder(folders / "generated", FRAMES)
    single = open_clip_folder(folders / "generated" / "sub", FRAMES)
    frechet, inception = FrechetDistance(network=EXTRACTOR), InceptionScore(network=EXTRACTOR)
    for metric, generated, real, message in (
        (frechet, clips, None, "fvd: no reference"),
        (frechet, clips, single, "fvd: 2 clips and 1 reference clips, expected 2"),
        (inception, clips, None, "inception_score: 2 clips in 10 splits"),
        (SeamRatio(length=6, overlap=2), clips, None, "windows: length 6, .* 6 frames"),
        (Flicker(), open_clip_folder(folders / "generated", 2), None, "frames: 2 .* 3 or more"),
        (Flicker(), open_clip_folder(folders / "generated", 7), None, r"a\.mp4: 6 frames, .* 7"),
        (Flicker(), open_clip_folder(folders / "generated", 7, 20.0), None, None),
    ):
        if message is None:
            assert evaluate(generated, [metric], real)["clips"]["fps"] == [20, 20]
            continue
        with pytest.raises(UserError, match=message):
            evaluate(generated, [metric], real)
    with pytest.raises(UserError, match=r"metrics: flicker"):
        evaluate(clips, [Flicker(), Flicker()])
    with pytest.raises(UserError, match=r"empty: no videos, .*\.mp4"):
        open_clip_folder(folders / "empty", FRAMES)
    with pytest.raises(UserError, match="nowhere: no such folder"):
        open_clip_folder(folders / "nowhere", FRAMES)
