"""Decoding: containers, time stamps, orientation, colours. Frames keep the source's size."""

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO, NamedTuple, TypeVar

import av
import numpy as np
from av.sidedata.sidedata import SideDataContainer
from av.sidedata.sidedata import Type as SideData
from PIL import Image

from stunet.errors import UserError
from stunet.files import check_not_lfs_pointer
from stunet.paths import AnyPath, user_path
from stunet.video_io.color import UNSPECIFIED, RgbConverter
from stunet.video_io.completeness import check_complete
from stunet.video_io.ffmpeg import open_input
from stunet.video_io.images import decode_images, image_info, is_image
from stunet.video_io.pixels import BACKGROUND

T = TypeVar("T")

Margins = tuple[int, int, int, int]  # pixels at the left, right, top and bottom
VideoSource = str | AnyPath | BinaryIO
Span = tuple[float, float]  # start and end of a part of a video, in seconds

MAX_FRAME_SECONDS = 60  # a longer display time of one frame is taken for a damaged time stamp
_MAX_STEP_BACK = 1.0  # seconds; smaller steps back in time are taken for rounding
_MAX_OVERRUN = 0.5  # seconds by which a span may end after the video (rounded time stamps)
_FLOAT_ERROR = 1e-6  # seconds; of sums of times
_ROUNDING = 1e-3  # seconds; a frame displayed for less within a span is not part of it
# Seconds before a span at which to look for a key frame. Some containers (TS) are searched by time
# alone, so that decoding may start between two key frames.
_SEEK_MARGINS = (0.0, 2.0, 10.0, 30.0)
_PICTURE_TRACKS = (
    av.stream.Disposition.attached_pic
    | av.stream.Disposition.timed_thumbnails
    | av.stream.Disposition.still_image
)
_UNFRAMED = ("dv", "yuv4mpegpipe")  # formats whose last frame ends at the end of the file
_DOLBY_VISION = ("dvh1", "dvhe", "dav1")  # codec tags in MP4
# Formats that store the presentation time of every frame. In others, times after a seek may differ
# from those of decoding from the beginning (measured for MPEG program streams).
_SEEKABLE = ("mov", "matroska", "mpegts", "flv", "avi", "mxf", "nut")
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


def read_comment(path: str | AnyPath) -> str | None:
    """Returns the comment that `write_video` stored in an MP4. None if the file has none.

    Raises:
      UserError: The file is absent or not a video.
    """
    with _open_container(path) as container:
        return container.metadata.get("comment")


def decode(
    source: VideoSource,
    fps: float | None,
    background: int = BACKGROUND,
    span: Span | None = None,
) -> Iterator[Picture]:
    """Yields the pictures of a video or an image.

    A picture that resampling repeats has the same pixel array each time. A still image has one
    picture at any frame rate.

    Args:
      source: Path, or an open binary file.
      fps: Frame rate to resample to. None yields every frame once.
      background: Level over which transparent pixels are blended, 0 to 255.
      span: Start and end of the part to decode, in seconds from the first picture. Yields what is
        displayed at start, start + 1 / fps, ..., before the end; the first picture starts at 0.
        Decoding starts at the last key frame before the span if the file can be searched, else at
        the first frame. None decodes the whole video.

    Raises:
      UserError: The file is absent, cannot be decoded, or is truncated or damaged; a frame is
        displayed for more than `MAX_FRAME_SECONDS`; or the span is empty, starts after the end of
        the video, or ends more than 0.5 s after it (raised after the last picture).
    """
    if span is not None and not 0 <= span[0] < span[1] < math.inf:
        raise UserError(
            f"{source_name(source)}: invalid span {span[0]:.10g} to {span[1]:.10g} s, "
            "expected 0 <= start < end"
        )
    try:
        yield from _decode(source, fps, background, span, span is not None and span[0] > 0)
    except _SeekError:  # raised before the first picture
        yield from _decode(source, fps, background, span, False)


def _decode(
    source: VideoSource, fps: float | None, background: int, span: Span | None, seeks: bool
) -> Iterator[Picture]:
    """Implements `decode`; `seeks` skips what precedes the span, or raises `_SeekError`."""
    name = source_name(source)
    with contextlib.ExitStack() as stack:
        previous, pixels, aspect, size = None, None, 1.0, None
        if _is_image(source):
            info = image_info(source)
            rate = info[2] / info[3] if info[3] else 0.0
            timed, convert = decode_images(source, background), _unchanged
        else:
            container = stack.enter_context(_open_container(source))
            stream = _video_stream(container, name)
            rate = float(stream.average_rate or 0) or 25.0
            # The fourth byte of a pixel in raw AVI is undefined.
            opaque = container.format.name == "avi" and stream.codec_context.name == "rawvideo"
            to_rgb = RgbConverter(name, background, stream.codec_context, opaque)
            convert = _frame_converter(stream, to_rgb)
            decoder, origin = _decoder(stream), None
            frames = _frames(container, stream, decoder, source)
            if seeks:
                first = next(frames, None)
                if first is None or first.time is None or not _is_seekable(container, decoder):
                    raise _SeekError
                blank = np.empty((first.height, first.width))
                size = _upright(blank, first, stream)[0].shape[1::-1]
                origin = time_origin(container, first.time, rate)
                frames = _frames_from(origin + span[0], container, stream, decoder, source)
            timed = _with_times(frames, container, rate, name, origin)
        timed = _check_times(timed, name)
        for start, frame, seconds in _select(_limit(timed, span, name), fps, span):
            if frame is not previous:  # convert a repeated frame once
                previous, (pixels, aspect) = frame, convert(frame)
                size = size or pixels.shape[1::-1]
                if pixels.shape[1::-1] != size:  # the frame size changes within the stream
                    resized = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
                    pixels = np.asarray(resized)
            yield Picture(pixels, aspect, rate, start, seconds)


def retime(
    timed: Iterable[tuple[float, T, float]], fps: float, span: Span = (0.0, math.inf)
) -> Iterator[T]:
    """Yields, for every output instant start + i / fps, the frame displayed at that instant.

    A frame starts up to half its predecessor's duration, and up to half an output period, before
    its time stamp. This selects the nearest frame if the input is at least as fast as the output,
    and tolerates rounded time stamps.

    Args:
      timed: (start, frame, duration) in seconds; starts do not decrease. The first frame is
        displayed at the first instant.
      fps: Frames per second of the output. The last instant is the last one that precedes the end
        of the span, and of the last frame, by at least a tenth of a period.
      span: First instant, and end of the output, in seconds.
    """
    # Instants of spans that start on the whole video's grid are the whole video's, to the last bit.
    first = round(span[0] * fps, 6)
    index, start, frame, duration = 0, 0.0, None, 0.0
    for next_start, next_frame, next_duration in timed:
        change = min(next_start - min(next_start - start, 1 / fps) / 2, span[1] - 0.1 / fps)
        while frame is not None and (first + index) / fps < change:
            yield frame
            index += 1
        start, frame, duration = next_start, next_frame, next_duration
    while frame is not None and (first + index + 0.1) / fps < min(start + duration, span[1]):
        yield frame
        index += 1


def displayed_size(pixels: np.ndarray, aspect: float) -> tuple[int, int]:
    """Returns the height and the width of a picture, in pixels of its height."""
    height, width = pixels.shape[:2]
    return height, round(width * aspect)


def source_name(source: VideoSource) -> str:
    """Returns the name of a video for error messages."""
    return str(source if isinstance(source, str | AnyPath) else getattr(source, "name", "video"))


@contextlib.contextmanager
def _open_container(source: VideoSource) -> Iterator[av.container.InputContainer]:
    """Opens a complete file; FFmpeg's errors become `UserError`s.

    Disables FFmpeg's protocols, so that a playlist cannot make it read other files. Restores the
    position of an open file.
    """
    name = source_name(source)
    try:
        with contextlib.ExitStack() as stack:
            if isinstance(source, str | AnyPath):
                file = stack.enter_context(user_path(source).open("rb"))
            else:
                file = source
                if file.seekable():
                    stack.callback(file.seek, file.tell())
            check_complete(file, name)
            yield stack.enter_context(open_input(file))
    except FileNotFoundError as error:
        raise UserError(f"{name}: no such file") from error
    except (av.error.FFmpegError, OSError) as error:
        if isinstance(source, str | AnyPath):
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


class _SeekError(Exception):
    """The frames before a span cannot be skipped reliably."""


def _is_seekable(container: av.container.InputContainer, decoder: av.VideoCodecContext) -> bool:
    """Returns whether frames have the same times after a seek; call after the first frame."""
    # AVI stores no presentation times, which differ from the order of storage with B-frames.
    is_reordered = container.format.name == "avi" and decoder.has_b_frames
    return container.format.name.startswith(_SEEKABLE) and not is_reordered


def _frames_from(
    time: float,
    container: av.container.InputContainer,
    stream: av.VideoStream,
    decoder: av.VideoCodecContext,
    source: VideoSource,
) -> Iterator[av.VideoFrame]:
    """Decodes a stream from a key frame at or before a time in the file, in seconds.

    Raises:
      _SeekError: The file cannot be searched.
    """
    target = time
    if container.duration:  # some formats find nothing after the last frame
        target = min(time, ((container.start_time or 0) + container.duration) / av.time_base)
    for margin in _SEEK_MARGINS:
        with contextlib.suppress(av.error.FFmpegError, OSError, UserError):
            container.seek(round((target - margin) / stream.time_base), stream=stream)
            decoder.flush_buffers()
            frames = _frames(container, stream, decoder, source, is_partial=True)
            first = next(frames, None)
            if first is not None and first.time is not None and first.time <= time + _FLOAT_ERROR:
                return itertools.chain([first], frames)
    raise _SeekError


def _frames(
    container: av.container.InputContainer,
    stream: av.VideoStream,
    decoder: av.VideoCodecContext,
    source: VideoSource,
    is_partial: bool = False,
) -> Iterator[av.VideoFrame]:
    """Decodes a stream, and raises `UserError` where it is damaged or ends early.

    Args:
      container: The file.
      stream: The stream.
      decoder: Decoder of the stream.
      source: The file, for errors.
      is_partial: Whether the container is positioned after its beginning. Skips what precedes the
        next key frame, as it depends on frames before the position; yields nothing if the time of
        the key frame is unknown.
    """
    name, form = source_name(source), container.format.name
    count, packets, end = 0, 0, 0
    group: list[av.Packet] = []  # packets from the last key frame
    demuxed = container.demux(stream)
    earliest, origin = None, ""
    if is_partial:
        demuxed = itertools.dropwhile(lambda packet: not packet.is_keyframe, demuxed)
        key = next(demuxed, None)
        if key is None or key.pts is None:
            return
        demuxed, earliest = itertools.chain([key], demuxed), float(key.pts * key.time_base)
        origin = f" from {earliest:.2f} s"
    for packet in demuxed:
        if packet.is_corrupt:
            raise UserError(f"{name}: truncated or damaged after {count} frames{origin}")
        if packet.size:
            packets += not packet.is_discard
            end = (packet.pos or 0) + packet.size
            if form == "mpegts":
                group = [] if packet.is_keyframe else group
                group.append(packet)
        for frame in decoder.decode(packet):
            if earliest is not None and (
                frame.time is None or frame.time < earliest - _FLOAT_ERROR
            ):
                continue
            if not frame.is_corrupt:
                if not count and _needs_dolby_vision(stream, frame):
                    raise UserError(f"{name}: colours in Dolby Vision alone, expected HDR10 or HLG")
                count += 1
                yield frame
            elif count:  # a stream may start between two key frames
                raise UserError(f"{name}: damaged after {count} frames{origin}")
    # The header of an AVI file may count frames that are stored as repetitions.
    expected = packets if stream.codec.intra_only else 0.9 * stream.frames
    is_edited = form.startswith("mov")  # an edit list may hide frames
    if (
        (count < expected and not is_edited and not is_partial)
        or (form in _UNFRAMED and end != container.size)
        or (form == "mpegts" and _may_be_cut(source) and not _is_intact(stream, group))
    ):
        raise UserError(f"{name}: truncated after {count} frames{origin}")


def _may_be_cut(source: VideoSource) -> bool:
    if isinstance(source, str | AnyPath):
        with user_path(source).open("rb") as file:
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
        SideData.DOVI_METADATA in _side_data(frame)
    )
    return is_dolby and not is_tagged


def _side_data(frame: av.VideoFrame) -> SideDataContainer:
    """Returns the side data of a frame.

    `frame.side_data` would create a reference cycle, which keeps hundreds of frames alive until the
    garbage collector runs.
    """
    return SideDataContainer(frame)


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
    origin: float | None = None,
) -> Iterator[tuple[float, av.VideoFrame, float]]:
    """Yields (start, frame, duration) in seconds; the first frame of the video starts at 0.

    If the video starts clearly later than the file (an empty edit, or earlier audio), the first
    frame is displayed in between.

    Args:
      frames: Frames, from the first one or from a later one.
      container: The file.
      rate: Frames per second.
      name: Name of the file, for errors.
      origin: `time_origin`, if the frames before `frames` were skipped. None if `frames` starts
        with the first one.
    """
    last = -1.0 / rate
    for index, frame in enumerate(frames):
        time = frame.time if frame.time is not None else (origin or 0.0) + last + 1 / rate
        if index == 0 and origin is None:
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
    last, seconds, index = math.inf, 0.0, -1
    for start, frame, seconds in timed:
        if start - last > MAX_FRAME_SECONDS:
            raise UserError(message.format(index, start - last))
        yield start, frame, seconds
        last, index = start, index + 1
    if seconds > MAX_FRAME_SECONDS:
        raise UserError(message.format(index, seconds))


def _limit(
    timed: Iterable[tuple[float, T, float]], span: Span | None, name: str
) -> Iterator[tuple[float, T, float]]:
    """Passes frames through up to the first one after the end of a span.

    Raises:
      UserError: The video ends before the start of the span, or more than `_MAX_OVERRUN` before
        its end.
    """
    if span is None:
        yield from timed
        return
    end = math.inf  # a video without frames is reported by the callers
    for start, frame, seconds in timed:
        yield start, frame, seconds
        end = start + seconds
        if start >= span[1]:
            return
    if span[0] >= end or span[1] > end + _MAX_OVERRUN:
        raise UserError(
            f"{name}: span {span[0]:.10g} to {span[1]:.10g} s exceeds the duration ({end:.2f} s)"
        )


def _select(
    timed: Iterator[tuple[float, T, float]], fps: float | None, span: Span | None
) -> Iterator[tuple[float, T, float]]:
    """Resamples (start, frame, duration) to a frame rate. A still image (duration 0) is kept."""
    first = next(timed, None)
    if first is None:
        return
    timed = itertools.chain([first], timed)
    if fps is not None and first[2] != 0:
        for index, frame in enumerate(retime(timed, fps, span or (0.0, math.inf))):
            yield index / fps, frame, 1 / fps
    elif span is None:
        yield from timed
    else:
        yield from _cut(timed, span)


def _cut(timed: Iterator[tuple[float, T, float]], span: Span) -> Iterator[tuple[float, T, float]]:
    """Keeps the frames that are displayed within a span, whose start becomes 0."""
    begin, end = span
    for (start, frame, seconds), follower in itertools.pairwise(itertools.chain(timed, [None])):
        until = start + seconds if follower is None else follower[0]
        if start < end - _ROUNDING and until > begin + _ROUNDING:
            yield max(start - begin, 0.0), frame, min(seconds, end - start)


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
    matrix = _side_data(frame).get(SideData.DISPLAYMATRIX)
    if matrix is None:
        return pixels, aspect
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
    if abs(b) > abs(a):
        pixels, aspect = pixels.swapaxes(0, 1), 1 / aspect
        a, d = c, b
    pixels = pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
    return np.ascontiguousarray(pixels), aspect
