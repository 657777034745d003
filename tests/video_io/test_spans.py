"""Decoding a part of a video gives what cutting the whole video gives."""

import gc
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from stunet import video_io
from stunet.errors import UserError
from stunet.video_io import decoding
from stunet.video_io.decoding import decode

COUNT, FPS = 80, 25  # of most videos here
X264 = {"g": "12", "bf": "3", "x264-params": "scenecut=0:open-gop=1"}
X265 = {"x265-params": "keyint=12:bframes=3:open-gop=1:scenecut=0:log-level=none"}
VPX = {"g": "12", "deadline": "realtime", "cpu-used": "8"}
FRAGMENTS = {"movflags": "frag_keyframe+empty_moov"}

# name -> codec, its options, the container's options. The first group is searched.
SEARCHED = {
    "h264.mp4": ("libx264", X264, {}),
    "fragments.mp4": ("libx264", X264, FRAGMENTS),
    "closed.mov": ("libx264", {"g": "12", "bf": "2"}, {}),
    "hevc.mp4": ("libx265", X265, {}),
    "h264.mkv": ("libx264", X264, {}),
    "vp9.webm": ("libvpx-vp9", VPX, {}),
    "h264.ts": ("libx264", X264, {}),
    "hevc.ts": ("libx265", X265, {}),
    "mpeg2.ts": ("mpeg2video", {"g": "12", "bf": "2"}, {}),
    "h264.flv": ("libx264", {"g": "12", "bf": "3"}, {}),
    "mpeg4.avi": ("mpeg4", {"g": "12"}, {}),
    "mjpeg.avi": ("mjpeg", {}, {}),
    "prores.mov": ("prores_ks", {}, {}),
}
DECODED_FROM_THE_BEGINNING = {
    "b_frames.avi": ("mpeg4", {"g": "12", "bf": "2"}, {}),
    "mpeg2.mpg": ("mpeg2video", {"g": "12", "bf": "2"}, {}),
    "mpeg1.mpg": ("mpeg1video", {"g": "12"}, {}),
    "raw.264": ("libx264", X264, {}),
}
PIXELS = {"mjpeg": "yuvj420p", "prores_ks": "yuv422p10le"}


def moving(count):
    """Returns `count` different pictures, 48x64: a window moves over a texture."""
    texture = np.random.default_rng(0).integers(0, 256, (12, 40, 3), np.uint8)
    texture = np.tile(texture.repeat(8, 0).repeat(8, 1), (1, 2, 1))
    return [texture[i % 40 :][:48, 2 * i % 256 :][:, :64] for i in range(count)]


def write(path, codec="libx264", options=X264, container=None, stamps=None, count=COUNT, audio=0):
    """Writes moving frames; `stamps` are in milliseconds; `audio` is a number of AAC packets."""
    formats = {".264": "h264"}
    with av.open(str(path), "w", options=container or {}, format=formats.get(path.suffix)) as file:
        stream = file.add_stream(codec, rate=FPS)
        stream.width, stream.height = 64, 48
        stream.pix_fmt = PIXELS.get(codec, "yuv420p")
        stream.options = options
        unit = Fraction(1, 1000) if stamps else Fraction(1, FPS)
        if stamps:
            stream.codec_context.time_base = unit
        if audio:
            sound = file.add_stream("aac", rate=48000)
            for index in range(audio):
                silence = np.zeros((2, 1024), np.float32)
                piece = av.AudioFrame.from_ndarray(silence, "fltp", "stereo")
                piece.sample_rate, piece.pts = 48000, index * 1024
                piece.time_base = Fraction(1, 48000)
                file.mux(sound.encode(piece))
            file.mux(sound.encode())
        for index, pixels in enumerate(moving(count)):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame = frame.reformat(format=stream.pix_fmt)
            frame.pts, frame.time_base = stamps[index] if stamps else index, unit
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def check_grid(path, rates=(25, 16, 10), frames=((0, 9), (5, 30), (17, 18), (13, 26))):
    """Compares spans that start on the grid of the whole video, bit for bit."""
    for fps in rates:
        whole = list(decode(path, fps))
        for first, last in frames:
            expected = whole[first:last]
            if not expected:
                continue
            span = first / fps, (first + len(expected)) / fps
            cut = list(decode(path, fps, span=span))
            assert [p.start for p in cut] == [i / fps for i in range(len(expected))]
            for picture, other in zip(cut, expected, strict=True):
                np.testing.assert_array_equal(picture.pixels, other.pixels)


def check_frames(path, spans=((0.0, 0.5), (0.32, 1.0), (1.01, 1.5), (2.999, 3.1))):
    """Compares spans without a frame rate: the frames that are displayed in them."""
    whole = list(decode(path, None))
    starts = [p.start for p in whole]
    ends = [*starts[1:], starts[-1] + whole[-1].seconds]
    for begin, end in spans:
        inside = [i for i in range(len(whole)) if starts[i] < end - 1e-3 and ends[i] > begin + 1e-3]
        cut = list(decode(path, None, span=(begin, end)))
        times = [max(0, starts[i] - begin) for i in inside]
        assert [p.start for p in cut] == pytest.approx(times, abs=1e-6)
        for picture, index in zip(cut, inside, strict=True):
            np.testing.assert_array_equal(picture.pixels, whole[index].pixels)


@pytest.fixture
def decoded(monkeypatch):
    """A list that grows by one with each frame that is decoded for output."""
    count, original = [], decoding._check_times

    def counting(timed, name):
        for item in original(timed, name):
            count.append(item[0])
            yield item

    monkeypatch.setattr(decoding, "_check_times", counting)
    return count


@pytest.mark.parametrize("name", [*SEARCHED, *DECODED_FROM_THE_BEGINNING])
def test_spans_equal_the_cut_video(tmp_path, name):
    path = write(tmp_path / name, *(SEARCHED | DECODED_FROM_THE_BEGINNING)[name])
    check_grid(path)
    check_frames(path)


@pytest.mark.parametrize("name", SEARCHED)
def test_what_precedes_and_follows_a_span_is_not_decoded(tmp_path, decoded, name):
    path = write(tmp_path / name, *SEARCHED[name], count=200)
    assert len(list(decode(path, 25, span=(6.4, 7.2)))) == 20
    # A transport stream is searched from 2 s earlier at most. 2 frames follow the span.
    most = 20 + 2 + 12 + (50 if name.endswith((".ts", ".flv")) else 0)
    assert len(decoded) <= most and decoded[0] <= 6.4
    decoded.clear()
    assert len(list(decode(path, 25, span=(0, 0.8)))) == 20
    assert len(decoded) <= 22


def test_an_animated_image(tmp_path):
    path = tmp_path / "a.gif"
    pictures = [Image.fromarray(pixels) for pixels in moving(60)]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=50)
    check_grid(path, (20, 16, 8), ((0, 9), (5, 20), (11, 12)))
    check_frames(path)


def test_a_file_without_its_index(tmp_path):
    """MKV without cues, as a live recording."""
    path = write(tmp_path / "a.mkv")
    content = path.read_bytes()
    cues = bytes.fromhex("1c53bb6b")
    assert content.count(cues) >= 2  # the element, and its position in the seek head
    path.write_bytes(content.replace(cues, bytes.fromhex("1254c367")))  # tags
    check_grid(path)


def test_a_file_that_marks_no_key_frames(tmp_path):
    """Without the box `stss`, every frame of an MP4 file passes for a key frame."""
    path = write(tmp_path / "a.mp4")
    content = path.read_bytes()
    assert content.count(b"stss") == 1
    path.write_bytes(content.replace(b"stss", b"free"))
    check_grid(path)


def test_a_file_of_one_key_frame_and_one_that_is_refreshed_in_columns(tmp_path, decoded):
    one = write(tmp_path / "a.mp4", options={"g": "1000", "bf": "2", "x264-params": "scenecut=0"})
    check_grid(one)
    refreshed = {"g": "20", "bf": "0", "x264-params": "intra-refresh=1:scenecut=0"}
    for name in ("b.mp4", "b.ts", "b.mkv"):
        path = write(tmp_path / name, options=refreshed)
        decoded.clear()
        list(decode(path, 25, span=(2.0, 2.4)))
        assert decoded[0] <= 2.0
        check_grid(path)


@pytest.mark.parametrize(("first", "count"), [(0, 40), (5, 60), (17, 50), (30, 37)])
def test_edit_lists(tmp_path, first, count):
    path = write(tmp_path / "a.mp4")
    with av.open(str(path)) as container:
        ticks = int(Fraction(first, FPS) / container.streams.video[0].time_base)
    content = bytearray(path.read_bytes())
    place = content.index(b"elst") + 12
    _, media_time = struct.unpack_from(">Ii", content, place)
    struct.pack_into(">Ii", content, place, 40 * count, media_time + ticks)
    path.write_bytes(content)
    check_grid(path)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
def test_late_starts(tmp_path, name):
    """The audio starts 1 s earlier, so that the first frame is held for 1 s."""
    path = write(tmp_path / name, stamps=[1000 + 40 * i for i in range(COUNT)], audio=200)
    check_grid(path, frames=((0, 9), (5, 30), (12, 13), (20, 45), (40, 60)))
    first = next(decode(path, 25))
    held = list(decode(path, 25, span=(0.4, 0.8)))
    assert len(held) == 10
    assert all(np.array_equal(picture.pixels, first.pixels) for picture in held)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_uneven_times(tmp_path, name):
    gaps = np.random.default_rng(0).integers(10, 90, COUNT)
    stamps = [0, *np.cumsum(gaps)[:-1].tolist()]
    path = write(tmp_path / name, options={"g": "12", "bf": "0"}, stamps=stamps)
    check_grid(path, frames=((0, 9), (5, 30), (17, 18)))
    check_frames(path)


def test_a_transport_stream_that_starts_between_key_frames(tmp_path):
    path = write(tmp_path / "a.ts", count=120)
    content = path.read_bytes()
    path.write_bytes(content[len(content) // 188 // 8 * 188 :])
    check_grid(path)


def test_open_files_and_their_position(tmp_path):
    path = write(tmp_path / "a.mp4")
    with open(path, "rb") as file:
        for span in ((0.0, 0.4), (1.2, 1.6)):
            cut = list(decode(file, 25, span=span))
            assert len(cut) == 10 and file.tell() == 0
        np.testing.assert_array_equal(cut[3].pixels, list(decode(path, 25))[33].pixels)


def test_a_resolution_and_a_start_off_the_grid(tmp_path):
    path = write(tmp_path / "a.mp4", options={"g": "12", "bf": "3"})
    whole = list(video_io.decode_frames(path, 25, 32))
    # The instants are 1.003, 1.043, ...; a frame is selected from 20 ms before its time.
    for begin, first in ((1.003, 25), (1.017, 25), (1.023, 26), (0.981, 25), (0.979, 24)):
        cut = list(video_io.decode_frames(path, 25, 32, (begin, begin + 0.4)))
        assert len(cut) == 10 and cut[0].shape == (32, 32, 3)
        np.testing.assert_array_equal(np.stack(cut), np.stack(whole[first : first + 10]))


def test_retime_within_a_span():
    timed = [(i / 10, i, 0.1) for i in range(30)]
    assert list(video_io.retime(timed, 10, (0.5, 1.0))) == [5, 6, 7, 8, 9]
    assert list(video_io.retime(timed, 5, (0.5, 1.3))) == [5, 7, 9, 11]
    assert list(video_io.retime(timed, 20, (2.9, 9.0))) == [29, 29]
    assert list(video_io.retime(timed[12:], 10, (1.3, 1.5))) == [13, 14]


def test_rounded_times_of_a_span(tmp_path):
    """Cut lists have milliseconds; the frames next to the cut are not part of the span."""
    path = write(tmp_path / "a.mp4", stamps=[round(1000 * i / 30) for i in range(COUNT)])
    whole = list(decode(path, None))
    for begin, end in ((0.3334, 0.6660), (0.333, 0.667)):
        cut = list(decode(path, None, span=(begin, end)))
        assert len(cut) == 10
        np.testing.assert_array_equal(cut[0].pixels, whole[10].pixels)
        assert cut[0].start == 0 and cut[1].start == pytest.approx(0.0333, abs=1e-3)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "a.gif"])
@pytest.mark.parametrize("fps", [None, 16])
def test_spans_after_the_end(tmp_path, name, fps):
    path = tmp_path / name
    if name == "a.gif":
        pictures = [Image.fromarray(pixels) for pixels in moving(64)]
        pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=50)
    else:
        write(path)
    for end in (3.2, 3.3, 3.65):  # 3.2 s long
        count = len(list(decode(path, fps, span=(2.0, end))))
        assert count == (20 if fps else {"a.gif": 24}.get(name, 30))
    for begin, end in ((2.0, 3.8), (3.3, 3.6), (100.0, 101.0), (3600.125, 7200.0)):
        with pytest.raises(UserError, match=rf"{name}: .*{begin:.7g}.*{end:g}.*3\.2") as error:
            list(decode(path, fps, span=(begin, end)))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "span", [(1.0, 1.0), (2.0, 1.0), (-0.5, 1.0), (0.0, np.inf), (np.nan, 1.0), (0.0, np.nan)]
)
def test_invalid_spans(tmp_path, span):
    path = write(tmp_path / "a.mp4", count=4)
    with pytest.raises(UserError, match="a.mp4: .*span"):
        list(decode(path, 16, span=span))


def test_a_span_of_a_still_image(tmp_path):
    Image.fromarray(moving(1)[0]).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a.png: .*0 to 1 .*0\.00 s"):
        list(decode(tmp_path / "a.png", 16, span=(0.0, 1.0)))


def test_damage_outside_a_span_is_ignored(tmp_path):
    path = write(tmp_path / "a.mov", "prores_ks", {})
    with av.open(str(path)) as container:
        packets = [p for p in container.demux(video=0) if p.size]
        positions = {i: (packets[i].pos, packets[i].size) for i in (10, 70)}
    content = bytearray(path.read_bytes())
    whole = list(decode(path, None))
    for position, size in positions.values():
        content[position + 40 : position + size] = bytes(size - 40)
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.mov"):
        list(decode(path, None))
    cut = list(decode(path, None, span=(1.2, 2.4)))
    assert len(cut) == 30
    np.testing.assert_array_equal(cut[29].pixels, whole[59].pixels)
    with pytest.raises(UserError, match=r"a\.mov"):
        list(decode(path, None, span=(2.4, 3.2)))


def test_decoded_frames_are_freed_without_the_garbage_collector(tmp_path):
    path = write(tmp_path / "a.mp4")
    gc.collect()
    gc.disable()
    try:
        assert sum(1 for _ in decode(path, 25, span=(1.0, 2.0))) == 25
        assert not [item for item in gc.get_objects() if isinstance(item, av.VideoFrame)]
    finally:
        gc.enable()
