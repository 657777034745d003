"""Uploads within limits, and masks that were painted."""

import re

import numpy as np
import pytest
from PIL import Image

from stunet.errors import UserError
from stunet.studio.uploads import (
    Limits,
    canvas,
    check_upload,
    painted_mask,
    real_number,
    received,
    whole_number,
)
from stunet.video_io import VideoInfo, probe, read_comment, write_video

LIMITS = Limits(bytes=100_000, pixels=300 * 300, seconds=2.0, frames=30, total=1.2e6)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uploads")
    rng = np.random.default_rng(0)

    def video(name, frames, fps, side=32):
        write_video(folder / name, np.zeros((frames, side, side, 3), np.float32), fps)

    video("good.mp4", 16, 8)
    video("good.gif", 8, 8)
    video("long.mp4", 9, 4)
    video("fast.mp4", 32, 32)
    video("wide.mp4", 2, 8, 320)
    video("much.mp4", 16, 8, 300)
    noise = rng.integers(0, 255, (250, 250, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "heavy.png")
    Image.new("RGB", (40, 30), "red").save(folder / "good.png")
    Image.new("L", (400, 300)).save(folder / "large.png")
    Image.new("1", (20_000, 20_000)).save(folder / "bomb.png")
    (folder / "words.mp4").write_text("not a video")
    (folder / "empty.png").write_bytes(b"")
    whole = (folder / "good.png").read_bytes()
    (folder / "half.png").write_bytes(whole[: len(whole) // 2])
    return folder


@pytest.mark.parametrize("name", ["good.mp4", "good.gif", "good.png"])
def test_what_is_within_the_limits_is_taken(files, name):
    check_upload(files / name, LIMITS)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("heavy.png", "is 0.179 MiB large; at most 0.0954 are taken"),
        ("large.png", "is 400x300 pixels large; at most 0.09 megapixels are taken"),
        ("bomb.png", "is far too large a picture"),
        ("wide.mp4", "is 320x320 pixels large; at most 0.09 megapixels are taken"),
        ("long.mp4", "lasts 2.2 seconds; at most 2 are taken"),
        ("fast.mp4", "has 32 frames; at most 30 are taken"),
        ("much.mp4", "has 0.00144 gigapixels in its 16 frames; at most 0.0012 are taken"),
        ("gone.mp4", "is not here any more; upload it again"),
        ("words.mp4", "is no picture or video that can be read"),
        ("empty.png", "is no picture or video that can be read"),
        ("half.png", "is no picture or video that can be read"),
    ],
)
def test_what_is_beyond_them_is_refused_without_the_server_s_folder(files, name, message):
    with pytest.raises(UserError, match=f"^{name}: {re.escape(message)}$"):
        check_upload(files / name, LIMITS)


@pytest.mark.parametrize("sent", [None, "good.png", {}, {"path": None}, {"path": "{}/../x.png"}])
def test_only_uploads_are_read_whatever_is_asked_for(files, sent):
    if isinstance(sent, dict) and sent.get("path"):
        sent = {"path": sent["path"].format(files)}
    with pytest.raises(UserError, match="this is no uploaded file"):
        received(sent, files)
    assert received({"path": str(files / "good.png")}, files) == files / "good.png"


def test_extents_are_read_without_decoding(files):
    assert probe(files / "good.mp4") == VideoInfo(256, 256, 16, 2.0)
    assert probe(files / "good.png") == VideoInfo(30, 40, 1, 0.0)
    assert probe(files / "good.gif").seconds == pytest.approx(1.0, abs=0.02)
    assert read_comment(files / "good.mp4") is None


def test_a_mask_is_painted_on_a_canvas_and_comes_back_at_the_picture_s_size(files, tmp_path):
    shown = canvas(files / "good.png")
    assert shown.size == (448, 336) and shown.getpixel((5, 5)) == (255, 0, 0)
    layer = np.zeros((336, 448, 4), np.uint8)
    layer[:168, :112] = [255, 0, 255, 150]  # the upper left quarter's left half
    painted_mask([Image.fromarray(layer)], files / "good.png", tmp_path / "mask.png")
    mask = np.asarray(Image.open(tmp_path / "mask.png"))
    assert mask.shape == (30, 40) and (mask[:15, :10] == 255).all()
    assert mask.sum() == 15 * 10 * 255
    for layers in ([], [Image.fromarray(0 * layer)]):
        with pytest.raises(UserError, match="nothing is painted"):
            painted_mask(layers, files / "good.png", tmp_path / "none.png")


def test_numbers_within_bounds():
    assert whole_number("seed", 7.0, 0, 9) == 7
    assert real_number("strength", 0.5, 0, 1) == 0.5
    for value, message in (
        (1.5, "seed is 1.5; it must be a whole number"),
        (10, "seed is 10; it must be within 0 to 9"),
        (float("nan"), "seed is nan"),
        ("x", "seed is x"),
        (None, "seed is none; it must be within 0 to 9"),
    ):
        with pytest.raises(UserError, match=message):
            whole_number("seed", value, 0, 9)
    with pytest.raises(UserError, match="strength is none; it must be within 0 to 1"):
        real_number("strength", None, 0, 1)
