"""Encoded storage of clips: segments as H.264 streams in memory.

Contents are an H.264 byte stream (ITU-T H.264, annex B) followed by its CRC-32, 4 bytes, little
endian. The stream contains 8-bit YCgCo at full resolution (4:4:4), full range. On real clips the
PSNR of RGB is 44.0 dB at 32x32 and 44.9 dB at 128x128, in 14 % and 8 % of the bytes of raw frames
(`docs/benchmarks.md`, "Data").
"""

import zlib
from fractions import Fraction

import av
import numpy as np
from av.video.reformatter import ColorRange

# Measured in docs/benchmarks.md ("Data"):
# - A constant quantiser bounds the error regardless of content and frame rate. `tune=psnr` turns
#   off psycho-visual optimisation, which adds texture that the source does not have.
# - `fastdecode` (no arithmetic coding, no deblocking) halves the time of decoding for 7 % more
#   bytes.
# - Without B-frames a window depends on no later frame. The distance of key frames bounds the
#   earlier ones.
_OPTIONS = {
    "qp": "14",
    "preset": "faster",
    "tune": "psnr,fastdecode",
    "g": "8",
    "bf": "0",
    # Without cpu-independent, bytes depend on the CPU's vector instructions.
    "x264-params": "cpu-independent=1:scenecut=0:colormatrix=YCgCo",
}
_CHECKSUM_BYTES = 4
_CONVERTED_PIXELS = 2**14  # at a time; their intermediate values fit into a CPU's cache
_START_CODE = b"\0\0\1"
_ENCODER_INFO = 6  # type of the NAL unit with the version and settings of x264 (600 bytes)


def encode_segment(frames: np.ndarray, fps: float) -> bytes:
    """Encodes frames. Equal input gives equal bytes, on every machine with the same x264.

    Args:
      frames: `[T, H, W, 3]` uint8 RGB, T, H and W at least 1.
      fps: Frames per second, recorded for other players. Does not affect the quality.

    Raises:
      ValueError: `frames` has another shape or type.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not frames.size:
        raise ValueError(
            f"frames: {frames.dtype} of shape {list(frames.shape)}, expected uint8 [T, H, W, 3]"
        )
    encoder = av.CodecContext.create("libx264", "w")
    encoder.height, encoder.width = frames.shape[1:3]
    encoder.pix_fmt, encoder.color_range = "yuv444p", ColorRange.JPEG
    encoder.framerate = Fraction(fps).limit_denominator(1001)
    encoder.time_base = 1 / encoder.framerate
    encoder.thread_count = 1
    encoder.options = _OPTIONS
    packets = []
    for index, frame in enumerate(frames):
        picture = av.VideoFrame.from_ndarray(_to_ycgco(frame), format="yuv444p")
        picture.pts = index
        packets += encoder.encode(picture)
    packets += encoder.encode(None)
    stream = _without_encoder_info(b"".join(map(bytes, packets)))
    return stream + _checksum(stream)


def decode_window(
    content: bytes, start: int, count: int, box: tuple[int, int, int, int] | None = None
) -> np.ndarray:
    """Decodes consecutive frames of a segment, or the same box of each.

    Decodes at most seven frames before the window and none after it, in one thread. A box equals
    the same slice of the whole frames.

    Args:
      content: A result of `encode_segment`.
      start: First frame of the window.
      count: Number of frames, at least 1.
      box: Top, left, height and width in pixels. None returns whole frames.

    Returns:
      `[count, height, width, 3]` uint8 RGB.

    Raises:
      ValueError: the content is damaged, or the window or the box exceeds the segment.
    """
    stream = content[:-_CHECKSUM_BYTES]
    if content[-_CHECKSUM_BYTES:] != _checksum(stream):
        raise ValueError(f"content: damaged ({len(content)} bytes), expected a matching CRC-32")
    decoder = av.CodecContext.create("h264", "r")
    decoder.thread_count = 1
    packets = [*decoder.parse(stream), *decoder.parse(None)]
    if not packets or not packets[0].is_keyframe:
        raise ValueError(f"content: no H.264 frames ({len(content)} bytes), expected a segment")
    if not 0 <= start < start + count <= len(packets):
        raise ValueError(
            f"window: frames {start} to {start + count}, expected a part of 0 to {len(packets)}"
        )
    first = max(index for index in range(start + 1) if packets[index].is_keyframe)
    try:
        pictures = [
            picture
            for packet in [*packets[first : start + count], None]  # None: the end of the stream
            for picture in decoder.decode(packet)
        ][start - first :]
    except av.FFmpegError as error:
        raise ValueError(f"content: not decodable ({error}), expected an H.264 stream") from error
    if len(pictures) != count:
        raise ValueError(f"content: {len(pictures)} frames decoded, expected {count}")
    height, width = pictures[0].height, pictures[0].width
    top, left, *size = box or (0, 0, height, width)
    if not (0 <= top < top + size[0] <= height and 0 <= left < left + size[1] <= width):
        raise ValueError(f"box: {box}, expected a part of {height}x{width} pixels")
    rows, columns = slice(top, top + size[0]), slice(left, left + size[1])
    planes = np.empty((3, count, *size), np.uint8)
    for index, picture in enumerate(pictures):
        for plane, pixels in zip(planes, picture.planes, strict=True):
            lines = np.frombuffer(pixels, np.uint8).reshape(-1, pixels.line_size)
            plane[index] = lines[rows, columns]
    return _to_rgb(planes)


def _to_ycgco(frame: np.ndarray) -> np.ndarray:
    """Converts RGB `[H, W, 3]` to the planes Y, Cg, Co (H.264, matrix_coefficients 8)."""
    red, green, blue = np.moveaxis(frame.astype(np.int16), -1, 0)
    other = red + blue
    luma = (2 * green + other + 2) >> 2
    chroma_green = ((2 * green - other + 2) >> 2) + 128
    chroma_orange = ((red - blue + 1) >> 1) + 128
    # Chroma reaches 256, which 8 bits cannot store.
    return np.minimum([luma, chroma_green, chroma_orange], 255).astype(np.uint8)


def _to_rgb(planes: np.ndarray) -> np.ndarray:
    """Converts planes `[3, T, H, W]` to RGB `[T, H, W, 3]`. Each pixel depends on itself only."""
    count, height, width = planes.shape[1:]
    rgb = np.empty((count, height, width, 3), np.uint8)
    step = max(1, _CONVERTED_PIXELS // (height * width))
    for begin in range(0, count, step):
        frames = slice(begin, begin + step)
        luma, chroma_green, chroma_orange = planes[:, frames].astype(np.int16)
        chroma_green -= 128
        chroma_orange -= 128
        other = luma - chroma_green
        colours = (other + chroma_orange, luma + chroma_green, other - chroma_orange)
        for channel, colour in enumerate(colours):
            rgb[frames, ..., channel] = np.clip(colour, 0, 255, out=colour)
    return rgb


def _checksum(stream: bytes) -> bytes:
    return zlib.crc32(stream).to_bytes(_CHECKSUM_BYTES, "little")


def _without_encoder_info(stream: bytes) -> bytes:
    """Removes the first NAL unit of this type, if there is one."""
    begin = stream.find(_START_CODE + bytes([_ENCODER_INFO]))
    end = stream.find(_START_CODE, begin + 1)
    return stream if begin < 0 else stream[:begin] + stream[end:]
