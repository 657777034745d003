import hashlib
import io
import itertools
import os
import subprocess
import sys
import zlib

import av
import numpy as np
import pytest

from data import encoding
from data.encoding import decode_window, encode_segment


def moving(count: int, height: int, width: int) -> np.ndarray:
    """Waves of all colours that move at different speeds, with noise."""
    t, y, x = np.ogrid[:count, :height, :width]
    scale = 6 * np.pi / max(height, width)
    waves = [np.sin(scale * (x + speed * t) + 2 * np.cos(scale * y)) for speed in (1, 2, -1.5)]
    noise = np.random.default_rng(0).normal(0, 2, (count, height, width, 3))
    return np.clip(127.5 + 100 * np.stack(waves, -1) + noise, 0, 255).astype(np.uint8)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return 10 * np.log10(255**2 / np.mean((a.astype(np.float64) - b) ** 2))


@pytest.fixture(scope="module")
def segment() -> bytes:
    return encode_segment(moving(19, 24, 32), 16.0)


@pytest.mark.parametrize(
    ("count", "height", "width"),
    [(16, 16, 16), (31, 32, 32), (16, 64, 64), (3, 128, 128), (5, 17, 33), (2, 15, 1), (1, 1, 1)],
)
def test_quality(count, height, width):
    frames = moving(count, height, width)
    decoded = decode_window(encode_segment(frames, 16.0), 0, count)
    assert decoded.shape == frames.shape and decoded.dtype == np.uint8
    # Quantiser 14 has steps of about 3 levels: 3 / sqrt(12) is an error of 49 dB per plane.
    assert psnr(decoded, frames) > 43


def test_quality_of_noise():
    frames = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    assert psnr(decode_window(encode_segment(frames, 16.0), 0, 4), frames) > 43


def test_corners_of_the_colour_cube():
    colours = np.array(list(itertools.product((0, 255), repeat=3)), np.uint8)
    frames = np.broadcast_to(
        colours.repeat(16, 0).repeat(16).reshape(1, 128, 3, 16), (2, 128, 3, 16)
    )
    frames = np.ascontiguousarray(frames.swapaxes(2, 3))
    decoded = decode_window(encode_segment(frames, 16.0), 0, 2)
    assert np.abs(decoded.astype(int) - frames).max() <= 4


def test_quality_does_not_depend_on_the_frame_rate():
    frames = moving(16, 32, 32)
    decoded = [decode_window(encode_segment(frames, fps), 0, 16) for fps in (1.0, 16.0, 29.97)]
    assert all(np.array_equal(decoded[0], other) for other in decoded[1:])


def test_bytes_of_a_pan():
    image = moving(1, 64, 128)[0]
    frames = np.stack([image[:, t : t + 64] for t in range(0, 32, 2)])
    assert len(encode_segment(frames, 16.0)) < frames.nbytes / 5


def test_equal_bytes_in_another_process_on_one_core(segment):
    script = (
        "import os, sys, hashlib; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from data.encoding import encode_segment\n"
        "from tests.data.test_encoding import moving\n"
        "print(hashlib.sha256(encode_segment(moving(19, 24, 32), 16.0)).hexdigest())"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == hashlib.sha256(segment).hexdigest()
    assert encode_segment(moving(19, 24, 32), 16.0) == segment


@pytest.mark.parametrize("instructions", ["0", "SSE2,SSSE3"])
def test_equal_bytes_on_other_cpus(segment, monkeypatch, instructions):
    """Without vector instructions, or with those of an older CPU."""
    x264 = f"{encoding._OPTIONS['x264-params']}:asm={instructions}"
    monkeypatch.setattr(encoding, "_OPTIONS", {**encoding._OPTIONS, "x264-params": x264})
    assert encode_segment(moving(19, 24, 32), 16.0) == segment


def test_every_window_is_a_slice(segment):
    whole = decode_window(segment, 0, 19)
    for start in range(19):
        for count in {1, 2, 8, 9, 19 - start}:
            if start + count <= 19:
                window = decode_window(segment, start, count)
                assert np.array_equal(window, whole[start : start + count]), (start, count)


@pytest.mark.parametrize(("height", "width"), [(24, 32), (17, 33)])
def test_every_box_is_a_slice(height, width):
    content = encode_segment(moving(3, height, width), 16.0)
    whole = decode_window(content, 0, 3)
    for top, left, rows, columns in itertools.product((0, 1, 6), (0, 3, 8), (1, 2, 11), (1, 5, 24)):
        box = decode_window(content, 1, 2, (top, left, rows, columns))
        assert np.array_equal(box, whole[1:, top : top + rows, left : left + columns])


def test_decodes_few_frames(segment, monkeypatch):
    """At most seven packets before the window, and none after it."""
    fed = []

    class Decoder:
        def __init__(self, *arguments):
            self.context = av.CodecContext.create(*arguments)
            self.parse = self.context.parse

        def decode(self, packet):
            fed.append(packet)
            return self.context.decode(packet)

    class Codecs:
        FFmpegError = av.FFmpegError

        class CodecContext:
            create = Decoder

    monkeypatch.setattr("data.encoding.av", Codecs)
    for start, count in ((0, 1), (7, 1), (8, 1), (5, 6), (18, 1)):
        fed.clear()
        decode_window(segment, start, count)
        assert fed.pop() is None
        assert len(fed) == start % 8 + count
        assert fed[0].is_keyframe


def test_any_player_reads_the_stream(segment):
    """An H.264 stream of the given rate that names its matrix and range."""
    with av.open(io.BytesIO(segment), format="h264") as container:
        frames = list(container.decode(video=0))
        rate = container.streams.video[0].codec_context.framerate
    assert len(frames) == 19 and rate == 16
    assert {(f.width, f.height, f.colorspace, f.color_range) for f in frames} == {(32, 24, 8, 2)}
    assert b"x264" not in segment


@pytest.mark.parametrize("length", [0, 1, 3, 4, 100, -1, -4, -5])
def test_truncated(segment, length):
    with pytest.raises(ValueError, match=f"content.*{len(segment[:length])} bytes"):
        decode_window(segment[:length], 0, 1)


def test_every_damaged_byte(segment):
    for index in range(len(segment)):
        damaged = bytearray(segment)
        damaged[index] ^= 16
        with pytest.raises(ValueError, match="content"):
            decode_window(bytes(damaged), 0, 19)


@pytest.mark.parametrize("stream", [b"", b"not a video", bytes(1000)])
def test_another_content_with_a_checksum(stream):
    with pytest.raises(ValueError, match="content"):
        decode_window(stream + zlib.crc32(stream).to_bytes(4, "little"), 0, 1)


@pytest.mark.parametrize(("start", "count"), [(-1, 2), (0, 0), (3, -1), (0, 20), (19, 1)])
def test_window_outside(segment, start, count):
    with pytest.raises(ValueError, match=rf"window.*{start}.*{start + count}.*19"):
        decode_window(segment, start, count)


@pytest.mark.parametrize(
    "box", [(-1, 0, 2, 2), (0, -1, 2, 2), (0, 0, 25, 2), (0, 0, 2, 33), (23, 0, 2, 2), (0, 0, 0, 2)]
)
def test_box_outside(segment, box):
    with pytest.raises(ValueError, match=r"box.*24x32"):
        decode_window(segment, 0, 1, box)


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((2, 8, 8, 3), np.float32),
        np.zeros((8, 8, 3), np.uint8),
        np.zeros((2, 8, 8, 1), np.uint8),
        np.zeros((0, 8, 8, 3), np.uint8),
    ],
)
def test_other_arrays(frames):
    with pytest.raises(ValueError, match=rf"frames.*{frames.dtype}.*uint8"):
        encode_segment(frames, 16.0)
