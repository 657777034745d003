"""Limits and confinement of uploads, and painted masks."""

import numpy as np
import pytest
from PIL import ExifTags, Image

from stunet.errors import UserError
from stunet.studio.uploads import (
    Limits,
    check_upload,
    editor_background,
    uploaded_path,
    write_painted_mask,
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
    video("many_pixels.mp4", 16, 8, 300)
    noise = rng.integers(0, 255, (250, 250, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "heavy.png")
    Image.new("RGB", (40, 30), "red").save(folder / "good.png")
    Image.new("L", (400, 300)).save(folder / "large.png")
    Image.new("1", (20_000, 20_000)).save(folder / "bomb.png")
    (folder / "text.mp4").write_text("not a video")
    (folder / "empty.png").write_bytes(b"")
    for suffix in ("webp", "avif", "heic"):
        Image.new("RGB", (400, 300)).save(folder / f"large.{suffix}")
    orientation = Image.Exif()
    orientation[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (400, 300)).save(folder / "turned.jpg", exif=orientation)
    colors = [Image.new("RGB", (16, 16), (6 * i, 0, 0)) for i in range(40)]
    still, *others = colors[:5]
    for suffix in ("webp", "avif", "png"):
        path = folder / f"long.{suffix}"
        still.save(path, save_all=True, append_images=others, duration=500)
    colors[0].save(folder / "fast.webp", save_all=True, append_images=colors[1:], duration=20)
    contents = (folder / "good.png").read_bytes()
    (folder / "half.png").write_bytes(contents[: len(contents) // 2])
    return folder


@pytest.mark.parametrize("name", ["good.mp4", "good.gif", "good.png"])
def test_files_within_the_limits_are_accepted(files, name):
    check_upload(files / name, LIMITS)


@pytest.mark.parametrize(
    ("name", "found", "limit"),
    [
        ("heavy.png", "0.179 MiB", "0.0954 MiB"),
        ("large.png", "400x300", "0.09 megapixels"),
        ("bomb.png", "too large", "fewer pixels"),
        ("wide.mp4", "320x320", "0.09 megapixels"),
        ("long.mp4", "2.2 seconds", "2 seconds"),
        ("fast.mp4", "32 frames", "30 frames"),
        ("many_pixels.mp4", "0.00144 gigapixels in 16 frames", "0.0012 gigapixels"),
        ("gone.mp4", "no longer on the server", "a new upload"),
        ("half.png", "truncated PNG", "a complete image"),
        ("large.webp", "400x300", "0.09 megapixels"),
        ("large.avif", "400x300", "0.09 megapixels"),
        ("large.heic", "400x300", "0.09 megapixels"),
        ("turned.jpg", "300x400", "0.09 megapixels"),
        ("long.webp", "2.5 seconds", "2 seconds"),
        ("long.png", "2.5 seconds", "2 seconds"),
        ("long.avif", "2.5 seconds", "2 seconds"),
        ("fast.webp", "40 frames", "30 frames"),
    ],
)
def test_files_beyond_the_limits_are_refused_without_the_server_s_folder(files, name, found, limit):
    with pytest.raises(UserError) as error:
        check_upload(files / name, LIMITS)
    problem, expected = str(error.value).split(", expected ")
    assert problem.startswith(f"{name}: ") and found in problem
    assert limit in expected and "\n" not in problem + expected


@pytest.mark.parametrize("name", ["text.mp4", "empty.png"])
def test_files_of_other_kinds_are_refused(files, name):
    with pytest.raises(UserError, match=rf"^{name}: .*\(Invalid data"):
        check_upload(files / name, LIMITS)


@pytest.mark.parametrize("value", [None, "good.png", {}, {"path": None}, {"path": "{}/../x.png"}])
def test_only_uploads_are_read(files, value):
    if isinstance(value, dict) and value.get("path"):
        value = {"path": value["path"].format(files)}
    with pytest.raises(UserError, match="upload"):
        uploaded_path(value, files)
    assert uploaded_path({"path": str(files / "good.png")}, files) == files / "good.png"


def test_probe_reads_extents_without_decoding(files):
    assert probe(files / "good.mp4") == VideoInfo(256, 256, 16, 2.0, 8.0)
    assert probe(files / "good.png") == VideoInfo(30, 40, 1, 0.0, 0.0)
    assert probe(files / "turned.jpg") == VideoInfo(400, 300, 1, 0.0, 0.0)
    assert probe(files / "good.gif").seconds == pytest.approx(1.0, abs=0.02)
    assert read_comment(files / "good.mp4") is None


def test_the_editor_shows_the_upright_and_blended_picture(tmp_path):
    pixels = np.zeros((20, 40, 4), np.uint8)
    pixels[:, :20] = (0, 0, 255, 255)  # blue at the left, hidden red at the right
    pixels[:, 20:] = (255, 0, 0, 0)
    orientation = Image.Exif()
    orientation[ExifTags.Base.Orientation] = 6  # a quarter turn clockwise
    Image.fromarray(pixels).save(tmp_path / "phone.png", exif=orientation)
    background = editor_background(tmp_path / "phone.png")
    assert background.size == (224, 448)
    assert background.getpixel((112, 50)) == (0, 0, 255)
    assert background.getpixel((112, 400)) == (255, 255, 255)


def test_a_painted_mask_has_the_picture_s_size(files, tmp_path):
    background = editor_background(files / "good.png")
    assert background.size == (448, 336) and background.getpixel((5, 5)) == (255, 0, 0)
    layer = np.zeros((336, 448, 4), np.uint8)
    layer[:168, :112] = [255, 0, 255, 150]  # left half of the upper left quarter
    write_painted_mask([Image.fromarray(layer)], files / "good.png", tmp_path / "mask.png")
    mask = np.asarray(Image.open(tmp_path / "mask.png"))
    assert mask.shape == (30, 40) and (mask[:15, :10] == 255).all()
    assert mask.sum() == 15 * 10 * 255
    for layers in ([], [Image.fromarray(0 * layer)]):
        with pytest.raises(UserError, match=r"mask.*empty"):
            write_painted_mask(layers, files / "good.png", tmp_path / "none.png")
