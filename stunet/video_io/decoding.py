"""Decoding: containers, time stamps, orientation, colours. Frames keep the source's size."""

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeVar

import av
import numpy as np
from av.sidedata.sidedata import Type as SideData
from PIL import Image

from stunet.errors import UserError
from stunet.files import check_not_lfs_pointer, user_path
from stunet.video_io.color import UNSPECIFIED, RgbConverter
from stunet.video_io.completeness import check_complete
from stunet.video_io.ffmpeg import open_input
from stunet.video_io.images import decode_images, image_info, is_image
from stunet.video_io.pixels import BACKGROUND

T = TypeVar("T")

Margins = tuple[int, int, int, int]  # pixels at the left, right, top and bottom
VideoSource = str | Path | BinaryIO

MAX_FRAME_SECONDS = 60  # a longer display time of one frame is taken for a damaged time stamp
_MAX_STEP_BACK = 1.0  # seconds; smaller steps back in time are taken for rounding
_PICTURE_TRACKS = (
    av.stream.Disposition.attached_pic
    | av.stream.Disposition.timed_thumbnails
    | av.stream.Disposition.still_image
)
_UNFRAMED = ("dv", "yuv4mpegpipe")  # formats whose last frame ends at the end of the file
_DOLBY_VISION = ("dvh1", "dvhe", "dav1")  # codec tags in MP4
# FFmpeg's own decoders ignore the transparency of these.
_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}


@dataclasses.dataclass(frozen=True)
class VideoInfo:
    """Extent of a video.

    Attributes:
      height: Height in pixels, as displayed.
      width: Width in pixels of the height, as displayed.
      num_frames: Number of frames.
      seconds: Duration. 0 for a still image.
      fps: Average frame rate. 0 for a still image.
    """

    height: int
    width: int
    num_frames: int
    seconds: float
    fps: float


class Picture(NamedTuple):
    """A decoded frame.

    Attributes:
      pixels: Upright sRGB, `[H, W, 3]` uint8.
      aspect: Width of the pixels over their height.
      fps: Average frame rate of the source. 0 for a still image.
      start: Time of the frame in seconds. The first frame starts at 0.
      seconds: How long the frame is displayed if it is the last one. 0 for a still image.
    """

    pixels: np.ndarray
    aspect: float
    fps: float
    start: float
    seconds: float


def probe(source: VideoSource) -> VideoInfo:
    """Reads the extent of a video or an image. Decodes at most one frame.

    Args:
      source: Path, or an open binary file, whose position is restored.

    Raises:
      UserError: The file is absent, not a video or truncated.
    """
    if _is_image(source):
        height, width, count, seconds = image_info(source)
        return VideoInfo(height, width, count, seconds, count / seconds if seconds else 0.0)
    with _open_container(source) as container:
        stream = _video_stream(container, source_name(source))
        count, first, end, size = 0, None, 0.0, None
        for packet in container.demux(stream):
            if size is None:
                for frame in packet.decode()[:1]:
                    blank = np.empty((frame.height, frame.width))
                    size = displayed_size(*_upright(blank, frame, stream))
            if not packet.size or packet.is_discard:  # the last packet only flushes the decoder
                continue
            count += 1
            if packet.pts is not None:
                start = float(packet.pts * packet.time_base)
                first = start if first is None else min(first, start)
                end = max(end, start + float((packet.duration or 0) * packet.time_base))
        if size is None:
            raise UserError(f"{source_name(source)}: contains no video frame")
        if first is None or _is_still(container):
            return VideoInfo(*size, count, 0.0, 0.0)
        seconds, rate = end - first, float(stream.average_rate or 0)
        if seconds and not 0.9 * count <= rate * seconds <= 1.1 * count + 1:
            rate = count / seconds  # the header is wrong
        seconds = end - time_origin(container, first, rate or 25.0)
        return VideoInfo(*size, count, seconds, rate)


def read_comment(path: str | Path) -> str | None:
    """Returns the comment that `write_video` stored in an MP4. None if the file has none.

    Raises:
      UserError: The file is absent or not a video.
    """
    with _open_container(path) as container:
        return container.metadata.get("comment")


def decode(
    source: VideoSource, fps: float | None, background: int = BACKGROUND
) -> Iterator[Picture]:
    """Yields the pictures of a video or an image.

    A picture that resampling repeats has the same pixel array each time. A still image has one
    picture at any frame rate.

    Args:
      source: Path, or an open binary file.
      fps: Frame rate to resample to. None yields every frame once.
      background: Level over which transparent pixels are blended, 0 to 255.

    Raises:
      UserError: The file is absent, cannot be decoded, or is truncated or damaged; or a frame is
        displayed for more than `MAX_FRAME_SECONDS`.
    """
    name = source_name(source)
    with contextlib.ExitStack() as stack:
        if _is_image(source):
            info = image_info(source)
            rate = info[2] / info[3] if info[3] else 0.0
            timed, convert = decode_images(source, background), _unchanged
        else:
            container = stack.enter_context(_open_container(source))
            stream = _video_stream(container, name)
            rate = float(stream.average_rate or 0) or 25.0
            frames = _frames(container, stream, source)
            timed = _with_times(frames, container, rate, name)
            # The fourth byte of a pixel in raw AVI is undefined.
            opaque = container.format.name == "avi" and stream.codec_context.name == "rawvideo"
            to_rgb = RgbConverter(name, background, stream.codec_context, opaque)
            convert = _frame_converter(stream, to_rgb)
        previous, pixels, aspect, size = None, None, 1.0, None
        for start, frame, seconds in _select(_check_times(timed, name), fps):
            if frame is not previous:  # convert a repeated frame once
                previous, (pixels, aspect) = frame, convert(frame)
                size = size or pixels.shape[1::-1]
                if pixels.shape[1::-1] != size:  # the frame size changes within the stream
                    resized = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
                    pixels = np.asarray(resized)
            yield Picture(pixels, aspect, rate, start, seconds)


def retime(timed: Iterable[tuple[float, T, float]], fps: float) -> Iterator[T]:
    """Yields, for every output instant i / fps, the frame displayed at that instant.

    A frame starts up to half its predecessor's duration, and up to half an output period, before
    its time stamp. This selects the nearest frame if the input is at least as fast as the output,
    and tolerates rounded time stamps.

    Args:
      timed: (start, frame, duration) in seconds; starts begin at 0 and do not decrease.
      fps: Frames per second of the output. The output is as long as the input: its last instant
        is the last one at which the last frame is displayed for another tenth of a period.
    """
    index, start, frame, duration = 0, 0.0, None, 0.0
    for next_start, next_frame, next_duration in timed:
        change = next_start - min(next_start - start, 1 / fps) / 2
        while frame is not None and index / fps < change:
            yield frame
            index += 1
        start, frame, duration = next_start, next_frame, next_duration
    while frame is not None and (index + 0.1) / fps < start + duration:
        yield frame
        index += 1


def displayed_size(pixels: np.ndarray, aspect: float) -> tuple[int, int]:
    """Returns the height and the width of a picture, in pixels of its height."""
    height, width = pixels.shape[:2]
    return height, round(width * aspect)


def source_name(source: VideoSource) -> str:
    """Returns the name of a video for error messages."""
    return str(source if isinstance(source, str | Path) else getattr(source, "name", "video"))


@contextlib.contextmanager
def _open_container(source: VideoSource) -> Iterator[av.container.InputContainer]:
    """Opens a complete file; FFmpeg's errors become `UserError`s.

    Disables FFmpeg's protocols, so that a playlist cannot make it read other files. Restores the
    position of an open file.
    """
    name = source_name(source)
    try:
        with contextlib.ExitStack() as stack:
            if isinstance(source, str | Path):
                file = stack.enter_context(open(user_path(source), "rb"))
            else:
                file = source
                if file.seekable():
                    stack.callback(file.seek, file.tell())
            check_complete(file, name)
            yield stack.enter_context(open_input(file))
    except FileNotFoundError as error:
        raise UserError(f"{name}: no such file") from error
    except (av.error.FFmpegError, OSError) as error:
        if isinstance(source, str | Path):
            check_not_lfs_pointer(user_path(source))
        raise UserError(f"{name}: not a readable video ({error.strerror})") from error


def _video_stream(container: av.container.InputContainer, name: str) -> av.VideoStream:
    """Returns the best video stream that is no cover, thumbnail or other attached picture.

    Raises:
      UserError: There is none, its codec is not supported, or its index points behind the end.
    """
    videos = [s for s in container.streams.video if not s.disposition & _PICTURE_TRACKS]
    if not videos:
        raise UserError(f"{name}: contains no video stream")
    best = container.streams.best("video")
    # A track of one frame beside a longer one is a thumbnail without a mark.
    stream = max(videos, key=lambda s: (s.frames != 1, s == best, s.frames))
    if stream.codec_context is None:
        raise UserError(f"{name}: video in an unsupported format")
    if container.format.name.startswith("mov"):
        end = max((entry.pos + entry.size for entry in stream.index_entries), default=0)
        if end > container.size > 0:
            raise UserError(f"{name}: truncated ({container.size} bytes, frames end at {end})")
    return stream


def _is_image(source: VideoSource) -> bool:
    # A file of concatenated JPEG images starts like one image.
    return not source_name(source).lower().endswith((".mjpeg", ".mjpg")) and is_image(source)


def _is_still(container: av.container.InputContainer) -> bool:
    return container.format.name.endswith(("_pipe", "image2"))


def _frames(
    container: av.container.InputContainer, stream: av.VideoStream, source: VideoSource
) -> Iterator[av.VideoFrame]:
    """Decodes a stream, and raises `UserError` where it is damaged or ends early."""
    name, form = source_name(source), container.format.name
    decoder, count, packets, end = _decoder(stream), 0, 0, 0
    group: list[av.Packet] = []  # packets from the last key frame
    for packet in container.demux(stream):
        if packet.is_corrupt:
            raise UserError(f"{name}: truncated or damaged after {count} frames")
        if packet.size:
            packets += not packet.is_discard
            end = (packet.pos or 0) + packet.size
            if form == "mpegts":
                group = [] if packet.is_keyframe else group
                group.append(packet)
        for frame in decoder.decode(packet):
            if not frame.is_corrupt:
                if not count and _needs_dolby_vision(stream, frame):
                    raise UserError(f"{name}: colours in Dolby Vision alone, expected HDR10 or HLG")
                count += 1
                yield frame
            elif count:  # a stream may start between two key frames
                raise UserError(f"{name}: damaged after {count} frames")
    # The header of an AVI file may count frames that are stored as repetitions.
    expected = packets if stream.codec.intra_only else 0.9 * stream.frames
    is_edited = form.startswith("mov")  # an edit list may hide frames
    if (
        (count < expected and not is_edited)
        or (form in _UNFRAMED and end != container.size)
        or (form == "mpegts" and _may_be_cut(source) and not _is_intact(stream, group))
    ):
        raise UserError(f"{name}: truncated after {count} frames")


def _may_be_cut(source: VideoSource) -> bool:
    if isinstance(source, str | Path):
        with open(user_path(source), "rb") as file:
            return check_complete(file, str(source))
    source.seek(0)
    return check_complete(source, source_name(source))


def _is_intact(stream: av.VideoStream, group: list[av.Packet]) -> bool:
    """Returns whether packets that start with a key frame decode without an error."""
    decoder = av.CodecContext.create(stream.codec_context.name, "r")
    decoder.extradata = stream.codec_context.extradata
    decoder.options = {"err_detect": "explode"}
    decoder.thread_type = "NONE"
    try:
        frames = [frame for packet in (*group, None) for frame in decoder.decode(packet)]
    except av.error.FFmpegError:
        return False
    return len(frames) == len(group)


def _needs_dolby_vision(stream: av.VideoStream, frame: av.VideoFrame) -> bool:
    """Returns whether the colours have no meaning without Dolby Vision metadata (profile 5)."""
    is_tagged = frame.color_trc != UNSPECIFIED["color_trc"] or (
        stream.codec_context.color_trc != UNSPECIFIED["color_trc"]
    )
    is_dolby = stream.codec_context.codec_tag in _DOLBY_VISION or (
        SideData.DOVI_METADATA in frame.side_data
    )
    return is_dolby and not is_tagged


def _decoder(stream: av.VideoStream) -> av.VideoCodecContext:
    """Returns the decoder of a stream: one that supports transparency if the stream has any."""
    own = stream.codec_context
    metadata = {key.lower(): value for key, value in stream.metadata.items()}
    if metadata.get("alpha_mode") != "1" or own.name not in _ALPHA_DECODERS:
        stream.thread_type = "AUTO"
        return own
    decoder = av.CodecContext.create(_ALPHA_DECODERS[own.name], "r")
    decoder.extradata = own.extradata
    decoder.thread_type = "AUTO"
    return decoder


def time_origin(container: av.container.InputContainer, first_frame: float, rate: float) -> float:
    """Returns the time in a file, in seconds, at which the first frame of `decode` starts.

    Args:
      container: The file.
      first_frame: Time of the first frame in seconds.
      rate: Frames per second.
    """
    begin = (container.start_time or 0) / av.time_base
    # Less is the reordering delay of some containers.
    is_late = container.start_time is not None and first_frame - begin > max(0.1, 3 / rate)
    return begin if is_late else first_frame


def _with_times(
    frames: Iterable[av.VideoFrame],
    container: av.container.InputContainer,
    rate: float,
    name: str,
) -> Iterator[tuple[float, av.VideoFrame, float]]:
    """Yields (start, frame, duration) in seconds; the first frame starts at 0.

    If the video starts clearly later than the file (an empty edit, or earlier audio), the first
    frame is displayed in between.
    """
    origin, last = 0.0, -1.0 / rate
    for index, frame in enumerate(frames):
        time = frame.time if frame.time is not None else origin + last + 1 / rate
        if index == 0:
            origin, start = time_origin(container, time, rate), 0.0
        else:
            start = time - origin
        if start < last - _MAX_STEP_BACK:
            raise UserError(
                f"{name}: damaged time stamps (frame {index} at {start:.2f} s follows one at "
                f"{last:.2f} s)"
            )
        last = max(start, last)
        ticks = frame.duration if frame.time_base else 0
        yield last, frame, float(ticks * frame.time_base) if ticks else 1 / rate


def _check_times(
    timed: Iterable[tuple[float, T, float]], name: str
) -> Iterator[tuple[float, T, float]]:
    """Passes frames through; raises `UserError` if one is displayed for too long."""
    message = f"{name}: frame {{}} lasts {{:.0f}} s, expected at most {MAX_FRAME_SECONDS} s"
    last, seconds, index = 0.0, 0.0, -1
    for start, frame, seconds in timed:
        if start - last > MAX_FRAME_SECONDS:
            raise UserError(message.format(index, start - last))
        yield start, frame, seconds
        last, index = start, index + 1
    if seconds > MAX_FRAME_SECONDS:
        raise UserError(message.format(index, seconds))


def _select(
    timed: Iterator[tuple[float, T, float]], fps: float | None
) -> Iterator[tuple[float, T, float]]:
    """Resamples (start, frame, duration) to a frame rate. A still image (duration 0) is kept."""
    first = next(timed, None)
    if first is None:
        return
    timed = itertools.chain([first], timed)
    if fps is None or first[2] == 0:
        yield from timed
    else:
        for index, frame in enumerate(retime(timed, fps)):
            yield index / fps, frame, 1 / fps


def _unchanged(pixels: np.ndarray) -> tuple[np.ndarray, float]:
    return pixels, 1.0


def _frame_converter(
    stream: av.VideoStream, to_rgb: RgbConverter
) -> Callable[[av.VideoFrame], tuple[np.ndarray, float]]:
    """Returns the function from a frame to upright sRGB and its pixel aspect ratio."""
    return lambda frame: _upright(to_rgb(frame), frame, stream)


def _upright(
    pixels: np.ndarray, frame: av.VideoFrame, stream: av.VideoStream
) -> tuple[np.ndarray, float]:
    """Applies a frame's display matrix to `[H, W, ...]`; returns also the pixel aspect ratio.

    The matrix `[[a, b, u], [c, d, v], [x, y, w]]` maps column p and row q to column a p + c q and
    row b p + d q (ISO/IEC 14496-12, 6.2.2). Angles are rounded to quarter turns.
    """
    aspect = float(stream.sample_aspect_ratio or 1)
    matrix = frame.side_data.get(SideData.DISPLAYMATRIX)
    if matrix is None:
        return pixels, aspect
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
    if abs(b) > abs(a):
        pixels, aspect = pixels.swapaxes(0, 1), 1 / aspect
        a, d = c, b
    pixels = pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
    return np.ascontiguousarray(pixels), aspect
