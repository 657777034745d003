from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from stunet import video_io
from stunet.errors import UserError


def smooth_video(num_frames=12, size=64):
    """Smooth gradients, which H.264 keeps well, with a brightness that counts the frames."""
    y, x = np.meshgrid(np.linspace(-0.5, 0.5, size), np.linspace(-0.5, 0.5, size), indexing="ij")
    level = np.linspace(-0.4, 0.4, num_frames)[:, None, None]
    red, green, blue = x + level, y - level, np.broadcast_to(level, (num_frames, size, size))
    return np.stack([red, green, blue], -1).astype(np.float32)


def psnr(a, b):
    return -10 * np.log10(((a - b) ** 2).mean() / 4)


def write_levels(path, levels, time_base, stamps, rate=Fraction(25)):
    """Writes uniform grey frames with the time stamps `stamps`, in units of `time_base`."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        stream.codec_context.time_base = time_base
        for level, stamp in zip(levels, stamps, strict=True):
            picture = np.full((32, 32, 3), level, np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = stamp, time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.mark.parametrize(("fps", "ending"), [(8, "mp4"), (30000 / 1001, "mp4"), (8, "gif")])
def test_round_trip(tmp_path, fps, ending):
    video, path = smooth_video(), tmp_path / f"clip.{ending}"
    video_io.write_video(path, video, fps)
    back, rate = video_io.read_video(path, fps, 64)
    assert back.shape == video.shape and back.dtype == np.float32 and rate == fps
    assert psnr(back, video) > (32 if ending == "mp4" else 28)
    with av.open(str(path)) as container:
        seconds = container.duration / 1e6
    assert seconds == pytest.approx(12 / fps, abs=0.02)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n"),
        ("list.mp4", "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n"),
        ("list.txt", "ffconcat version 1.0\nfile {}\n"),
    ],
)
def test_playlists_are_rejected(tmp_path, name, text):
    video_io.write_video(tmp_path / "clip.mp4", smooth_video(2), 8)
    (tmp_path / name).write_text(text.format("clip.mp4"))
    for read in (video_io.read_video, video_io.probe):
        with pytest.raises(UserError, match=rf"{name}: .*\(Invalid (data|argument)"):
            read(tmp_path / name)


def test_mp4_plays_in_browsers(tmp_path):
    path = tmp_path / "new" / "clip.mp4"
    video_io.write_video(path, smooth_video(3, 301)[:, :, :299], 8)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert (stream.width, stream.height) == (300, 302)  # odd sides are padded
        assert stream.average_rate == 8
        assert next(container.decode(stream)).colorspace == 1  # BT.709 is declared
    content = path.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")  # playable while downloading


def test_small_videos_are_enlarged_by_an_integer_factor(tmp_path):
    video_io.write_video(tmp_path / "clip.mp4", smooth_video(2, 48), 8)
    back, _ = video_io.read_video(tmp_path / "clip.mp4")
    assert back.shape == (2, 288, 288, 3)


def test_gif_keeps_the_average_rate(tmp_path):
    video_io.write_video(tmp_path / "clip.gif", smooth_video(16), 8)
    with Image.open(tmp_path / "clip.gif") as image:
        durations = []
        for index in range(image.n_frames):
            image.seek(index)
            durations.append(image.info["duration"])
    # In hundredths of a second; without spreading the remainder it would be 1920.
    assert sum(durations) == 2000 and set(durations) == {120, 130}


def test_png_is_a_contact_sheet_or_one_image(tmp_path):
    video = np.stack([np.full((256, 256, 3), level) for level in np.linspace(-1, 1, 10)])
    video_io.write_video(tmp_path / "sheet.png", video, 8)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (2 * 256 + 8, 8 * 256 + 7 * 8, 3)
    assert (sheet[:256, :256] == 0).all() and (sheet[264:, 264:520] == 255).all()
    video_io.write_video(tmp_path / "image.png", video[3:4], 8)
    image = np.asarray(Image.open(tmp_path / "image.png"))
    assert image.shape == (256, 256, 3) and (image == 85).all()


def test_retime_selects_the_nearest_time_stamp():
    # 45000/1499 frames per second down to 8: by hand, frame round(i / 8 * 30.02).
    rate = 45000 / 1499
    timed = [(i / rate, i, 1 / rate) for i in range(36)]
    assert list(video_io.retime(timed, 8)) == [0, 4, 8, 11, 15, 19, 23, 26, 30, 34]
    # Irregular time stamps and a long last frame.
    timed = [(0.0, "a", 0.1), (0.1, "b", 0.6), (0.7, "c", 0.5)]
    assert list(video_io.retime(timed, 10)) == list("abbbbbbccccc")
    # Up: each frame twice; the same rate, with time stamps rounded to milliseconds: once.
    assert list(video_io.retime([(0, 0, 0.5), (0.5, 1, 0.5)], 4)) == [0, 0, 1, 1]
    timed = [(round(i / 30, 3), i, 0.033) for i in range(30)]
    assert list(video_io.retime(timed, 30)) == list(range(30))


def test_resampling_uses_time_stamps(tmp_path):
    # Four frames in the first 0.1 s, then one long frame.
    levels, stamps = [40, 80, 120, 160, 200], [0, 30, 60, 90, 600]
    write_levels(tmp_path / "uneven.mkv", levels, Fraction(1, 1000), stamps)
    video, _ = video_io.read_video(tmp_path / "uneven.mkv", 10, 16)
    seen = (video.mean((1, 2, 3)) + 1) * 127.5
    np.testing.assert_allclose(seen, [40, 160, 160, 160, 160, 160, 200], atol=3)


def test_fractional_frame_rate(tmp_path):
    rate = Fraction(45000, 1499)
    stamps = range(0, 36 * 2998, 2998)
    path = tmp_path / "odd.mp4"
    write_levels(path, range(20, 20 + 36 * 6, 6), Fraction(1, 90000), stamps, rate)
    video, fps = video_io.read_video(path)
    assert len(video) == 36 and fps == pytest.approx(float(rate), rel=1e-6)
    video, fps = video_io.read_video(path, 8, 16)
    expected = 20 + 6 * np.array([0, 4, 8, 11, 15, 19, 23, 26, 30, 34])
    assert fps == 8
    np.testing.assert_allclose((video.mean((1, 2, 3)) + 1) * 127.5, expected, atol=3)


def test_centre_crop_and_anti_aliasing(tmp_path):
    picture = np.zeros((64, 128, 3), np.uint8)
    picture[:, ::2] = 255  # 1-pixel stripes: grey when filtered, black or white when sampled
    picture[:, :32] = picture[:, 96:] = (255, 0, 0)  # outside the centre square
    path = tmp_path / "wide.gif"
    Image.fromarray(picture).save(path, save_all=True, append_images=[Image.new("RGB", (128, 64))])
    video, _ = video_io.read_video(path, resolution=8)
    assert video.shape == (2, 8, 8, 3)
    assert np.abs(video[0, :, 1:-1]).max() < 0.1  # no red, no stripes


def test_rotated_phone_videos_are_upright(tmp_path):
    path = tmp_path / "phone.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        picture = np.zeros((32, 64, 3), np.uint8)
        picture[:, :32] = 255  # white left half
        for _ in range(3):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    content = bytearray(path.read_bytes())
    # Set the track's display matrix (the last 36 of the 44 bytes before its width and height) to
    # a quarter turn clockwise.
    matrix = content.index(b"tkhd") + 44
    unit = (1 << 16).to_bytes(4, "big")
    turn = [bytes(4), unit, bytes(4), (-(1 << 16)).to_bytes(4, "big", signed=True), bytes(4)]
    content[matrix : matrix + 20] = b"".join(turn)
    path.write_bytes(content)
    video, _ = video_io.read_video(path)
    assert video.shape == (3, 64, 32, 3)
    # The left half is at the top after the turn.
    assert video[0, :30].min() > 0.8 and video[0, 34:].max() < -0.8


def test_max_frames(tmp_path):
    video_io.write_video(tmp_path / "clip.mp4", smooth_video(), 8)
    assert len(video_io.read_video(tmp_path / "clip.mp4", max_frames=5)[0]) == 5


@pytest.mark.parametrize("fps", [None, 8, 20])
def test_several_resolutions_equal_one_at_a_time(tmp_path, monkeypatch, fps):
    path = tmp_path / "clip.mp4"
    video_io.write_video(path, smooth_video(9, 256)[:, :, :200], 12)
    resolutions = (16, 64, None)
    expected = [video_io.read_video(path, fps, side, 7) for side in resolutions]
    uncropped, _ = video_io.read_video(path, fps, 16, multiple_of=8)
    size = video_io.frame_size(path)

    opened, av_open = [], av.open
    monkeypatch.setattr(av, "open", lambda *a, **k: opened.append(a) or av_open(*a, **k))
    video = video_io.read_video_sizes(path, fps, resolutions, 7)
    assert len(opened) == 1
    assert tuple(video.frames) == resolutions and video.size == size == (512, 400)
    assert video.margin_masks == {}
    for side, (frames, rate) in zip(resolutions, expected, strict=True):
        assert video.fps == rate
        np.testing.assert_array_equal(video.frames[side], frames)

    again = video_io.read_video_sizes(path, fps, (16,), multiple_of=8).frames[16]
    np.testing.assert_array_equal(again, uncropped)
    assert again.shape[1:] == (24, 16, 3)


def test_margins(tmp_path):
    rng, margins = np.random.default_rng(0), (30, 0, 5, 10)
    picture = rng.integers(0, 256, (40, 50, 3), np.uint8)
    padded = np.zeros((55, 80, 3), np.uint8)
    padded[5:45, 30:] = picture
    mask = np.full((55, 80, 3), 255, np.uint8)
    mask[5:45, 30:] = 0
    for name, pixels in (("picture", picture), ("padded", padded), ("mask", mask)):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")

    resolutions = (16, 64, None)
    video = video_io.read_video_sizes(tmp_path / "picture.png", None, resolutions, margins=margins)
    assert video.size == (40, 50)
    for side in resolutions:
        expected = [
            video_io.read_video(tmp_path / f"{name}.png", None, side)[0]
            for name in ("padded", "mask")
        ]
        np.testing.assert_array_equal(video.frames[side], expected[0])
        np.testing.assert_array_equal(video.margin_masks[side], expected[1])


def test_unreadable_videos(tmp_path):
    with pytest.raises(UserError, match=r"absent\.mp4: "):
        video_io.read_video(tmp_path / "absent.mp4")
    (tmp_path / "text.mp4").write_text("not a video " * 50)
    with pytest.raises(UserError, match=r"text\.mp4: .*\(Invalid data"):
        video_io.read_video(tmp_path / "text.mp4")
    noise = np.random.default_rng(0).uniform(-1, 1, (20, 64, 64, 3))
    video_io.write_video(tmp_path / "whole.mp4", noise, 8)
    content = (tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "part.mp4").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"part\.mp4: .*(\d+ frames, expected 20|\(.+\))"):
        video_io.read_video(tmp_path / "part.mp4", 8, 16)


def test_unwritable_outputs(tmp_path):
    (tmp_path / "file").write_text("")
    for path, message in (
        (tmp_path / "clip.avi", r"clip\.avi: .*'\.avi'.*\.mp4, \.gif, \.png"),
        (tmp_path / "file" / "clip.mp4", r"clip\.mp4: .*\(Not a directory"),
        ("/proc/clip.mp4", r"/proc/clip\.mp4: .*/proc"),
    ):
        with pytest.raises(UserError, match=message):
            video_io.check_writable(path)
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(UserError, match=r"folder\.mp4: .*directory"):
        video_io.write_video(tmp_path / "folder.mp4", smooth_video(2), 8)
    video_io.check_writable(tmp_path / "new" / "deep" / "clip.mp4")
    assert not (tmp_path / "new").exists()


def test_interrupted_writes_leave_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "clip.mp4"
    path.write_text("old")

    def stop(*arguments, **fields):
        raise KeyboardInterrupt

    monkeypatch.setattr(av.VideoFrame, "from_ndarray", stop, raising=True)
    with pytest.raises(KeyboardInterrupt):
        video_io.write_video(path, smooth_video(2), 8)
    assert [p.name for p in tmp_path.iterdir()] == ["clip.mp4"]
    assert path.read_text() == "old"
