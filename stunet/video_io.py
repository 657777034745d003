"""Reads and writes videos: PyAV for H.264 and everything that it decodes, Pillow for images.

Videos are `[T, H, W, 3]` float32 in [-1, 1]. To read one file at several resolutions, decode it
once:

    read_video_sizes(source, fps=None, resolutions=(16, 64), max_frames=None, margins=None,
                     multiple_of=None) -> VideoSizes(frames, fps, size, margin_masks)
"""

import contextlib
import dataclasses
import itertools
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO, TypeVar

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image

from stunet.errors import UserError

T = TypeVar("T")

SUFFIXES = (".mp4", ".gif", ".png")
MIN_SIDE = 256  # pixels; smaller videos are enlarged on writing


Margins = tuple[int, int, int, int]  # pixels at the left, right, top and bottom
Source = str | Path | BinaryIO


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoSizes:
    """A video, decoded once, at several resolutions.

    Attributes:
      frames: Resolution -> `[T, H, W, 3]` float32 in [-1, 1]. None is the source's own size.
      fps: Frames per second.
      size: Height and width of the source as displayed, in pixels of its height, without margins.
      margin_masks: Resolution -> `[1, H, W, 3]`: 1 in the margins, -1 in the source. Empty if no
        margins were requested.
    """

    frames: dict[int | None, np.ndarray]
    fps: float
    size: tuple[int, int]
    margin_masks: dict[int | None, np.ndarray]


def read_video_sizes(
    source: Source,
    fps: float | None = None,
    resolutions: Sequence[int | None] = (16, 64),
    max_frames: int | None = None,
    margins: Margins | None = None,
    multiple_of: int | None = None,
) -> VideoSizes:
    """Decodes a video once and returns it at several resolutions.

    An image (PNG, JPEG) is a video of one frame.

    Args:
      source: Path, or an open binary file.
      fps: Frame rate to resample to, by the time stamps of the frames. None keeps all frames and
        reports their average rate.
      resolutions: Sides in pixels. Each one centre-crops the video to a square and resizes it
        with anti-aliasing. None keeps the source's size.
      max_frames: Maximum number of frames. None reads all.
      margins: Black pixels to add at the left, right, top and bottom of the source before
        cropping and resizing. None adds none and computes no masks.
      multiple_of: If set, resizes the whole picture instead of a centre crop: its shorter side
        gets about the resolution, and both sides are multiples of this number.

    Raises:
      UserError: The file is absent or cannot be decoded.
    """
    pictures = itertools.islice(_pictures(source, fps), max_frames)
    first = next(pictures, None)
    if first is None:
        raise UserError(f"{_name(source)}: holds no video frame")
    first_picture, aspect, rate = first

    def resized(picture: np.ndarray, margin_value: int) -> dict[int | None, np.ndarray]:
        padded = _with_margins(picture, margins or (0, 0, 0, 0), margin_value)
        return {side: _resized(padded, side, multiple_of, aspect) for side in resolutions}

    clips: dict[int | None, list[np.ndarray]] = {side: [] for side in resolutions}
    previous, frames = None, {}
    for picture, *_ in itertools.chain([first], pictures):
        if picture is not previous:  # a frame shown twice is resized once
            previous, frames = picture, resized(picture, 0)
        for side, frame in frames.items():
            clips[side].append(frame)
    masks = {} if margins is None else resized(np.zeros_like(first_picture), 255)
    return VideoSizes(
        frames={side: to_float(np.stack(clip)) for side, clip in clips.items()},
        fps=rate,
        size=(first_picture.shape[0], round(first_picture.shape[1] * aspect)),
        margin_masks={side: to_float(mask)[None] for side, mask in masks.items()},
    )


def read_video(
    source: Source,
    fps: float | None = None,
    resolution: int | None = None,
    max_frames: int | None = None,
    multiple_of: int | None = None,
    margins: Margins = (0, 0, 0, 0),
) -> tuple[np.ndarray, float]:
    """Reads a video at one resolution; see `read_video_sizes` for the arguments.

    Returns:
      `[T, H, W, 3]` float32 in [-1, 1], and the frames per second.

    Raises:
      UserError: The file is absent or cannot be decoded.
    """
    padded = margins if any(margins) else None
    video = read_video_sizes(source, fps, (resolution,), max_frames, padded, multiple_of)
    return video.frames[resolution], video.fps


@dataclasses.dataclass(frozen=True)
class VideoInfo:
    """How large a video is before it is decoded: height and width in pixels, frames, seconds."""

    height: int
    width: int
    frames: int
    seconds: float


def probe(path: str | Path) -> VideoInfo:
    """What a file holds, from its packets alone; of an image, which lasts no time, 0 seconds.

    Raises:
      UserError: the file is absent, or no video.
    """
    with _opened(path) as container:
        stream = container.streams.video[0]
        count, first, end = 0, None, 0.0
        for packet in container.demux(stream):
            if not packet.size:  # the last one, which only flushes decoders
                continue
            count += 1
            if packet.pts is not None:
                start = float(packet.pts * packet.time_base)
                first = start if first is None else min(first, start)
                end = max(end, start + float((packet.duration or 0) * packet.time_base))
        seconds = 0.0 if first is None or _is_picture(container) else end - first
        context = stream.codec_context
        return VideoInfo(context.height, context.width, count, seconds)


def decode_frames(
    source: str | Path | BinaryIO, fps: float, resolution: int
) -> Iterator[np.ndarray]:
    """The frames of `read_video` one at a time, as `[resolution, resolution, 3]` uint8."""
    previous, frame = None, None
    for picture, aspect, _ in _pictures(source, fps):
        if picture is not previous:  # a frame shown twice is resized once
            previous, frame = picture, _resized(picture, resolution, aspect=aspect)
        yield frame


def frame_size(source: str | Path | BinaryIO) -> tuple[int, int]:
    """Height and width that a video or an image is shown at, in pixels of its height."""
    picture, aspect = next(_pictures(source, None))[:2]
    return picture.shape[0], round(picture.shape[1] * aspect)


def read_comment(path: str | Path) -> str | None:
    """The comment of `write_video`; None for a file without one.

    Raises:
      UserError: the file is absent, or no video.
    """
    with _opened(path) as container:
        return container.metadata.get("comment")


def margin_mask(
    source: str | Path | BinaryIO, margins: tuple[int, int, int, int], resolution: int
) -> np.ndarray:
    """Where the margins of `read_video` are, `[1, R, R, 3]`: 1, and -1 in the video itself."""
    picture, aspect = next(_pictures(source, None))[:2]
    picture = _with_margins(np.zeros_like(picture), margins, 255)
    return to_float(_resized(picture, resolution, aspect=aspect))[None]


def write_video(
    path: str | Path, video: np.ndarray, fps: float, comment: str | None = None
) -> None:
    """Writes a clip as its file's ending says.

    `.mp4`: H.264, 4:2:0, the index in front, as browsers want it; sides under 256
    pixels are enlarged by a whole factor (each pixel becomes a square, which also keeps
    4:2:0 from blurring its colour), odd sides get one more row or column of their edge.
    `.gif`: the same size, endless. `.png`: a contact sheet, or the image itself when
    there is one frame. The file appears under its name only when it is complete.

    Args:
      path: ends in .mp4, .gif or .png.
      video: `[T, H, W, 3]` in [-1, 1].
      fps: frames per second.
      comment: text that the file carries, of an .mp4 alone; see `read_comment`.

    Raises:
      UserError: another ending, or a place that cannot be written.
    """
    path = Path(path)
    check_writable(path)
    if path.suffix.lower() == ".png":
        write_image(path, video[0] if len(video) == 1 else contact_sheet(video))
        return
    frames = _enlarge(to_uint8(video))
    with _complete_file(path) as temporary:
        if path.suffix.lower() == ".mp4":
            _write_mp4(temporary, frames, fps, comment)
        else:
            _write_gif(temporary, frames, fps)


def write_image(path: str | Path, image: np.ndarray) -> None:
    """Writes `[H, W, 3]` in [-1, 1] as PNG; small ones are enlarged by a whole factor."""
    path = Path(path)
    check_writable(path)
    with _complete_file(path) as temporary:
        Image.fromarray(_enlarge(to_uint8(image[None]))[0]).save(temporary, format="png")


def check_writable(path: str | Path) -> None:
    """Refuses a path that cannot be written, before the work whose result it is for.

    Raises:
      UserError: the ending is none of `SUFFIXES`, the path is a folder, or its folder
        neither exists nor can be made and written to.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path}: cannot write this kind of file; end it in {', '.join(SUFFIXES)}")
    if path.is_dir():
        raise UserError(f"{path}: is a folder, expected a file's name")
    folder = path.absolute().parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        # Only trying tells: permissions do not know of read-only file systems.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror} at {folder})") from error


def contact_sheet(video: np.ndarray, columns: int | None = None) -> np.ndarray:
    """All frames in one picture, row by row, `[H', W', 3]` in [-1, 1].

    Args:
      video: `[T, H, W, 3]` in [-1, 1].
      columns: frames in a row; by default up to 8.
    """
    count, height, width, channels = video.shape
    columns = columns or min(count, 8)
    rows = -(-count // columns)
    gap = max(1, height // 32)
    sheet = np.ones((rows * (height + gap) - gap, columns * (width + gap) - gap, channels))
    for index, frame in enumerate(video):
        top, left = (index // columns) * (height + gap), (index % columns) * (width + gap)
        sheet[top : top + height, left : left + width] = frame
    return sheet.astype(np.float32)


def to_uint8(video: np.ndarray) -> np.ndarray:
    """[-1, 1] to 0..255."""
    return np.clip(np.round((np.asarray(video, np.float32) + 1) * 127.5), 0, 255).astype(np.uint8)


def to_float(frames: np.ndarray) -> np.ndarray:
    """0..255 to float32 in [-1, 1]."""
    return frames.astype(np.float32) / np.float32(127.5) - 1


def _pictures(
    source: str | Path | BinaryIO, fps: float | None
) -> Iterator[tuple[np.ndarray, float, float]]:
    """Frames `[H, W, 3]` uint8 of the source's size, their pixels' width over height, the rate."""
    name = _name(source)
    with _opened(source) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        rate = float(stream.average_rate or 0) or 25.0
        timed = _time_stamped(_whole(container.decode(stream), stream.frames, name), rate)
        # A picture lasts no time: what its format says of it would be rounded to 0 or 2 frames.
        as_it_is = fps is None or _is_picture(container)
        chosen = (frame for _, frame, _ in timed) if as_it_is else retime(timed, fps)
        aspect = float(stream.sample_aspect_ratio or 1)
        previous, picture = None, None
        for frame in chosen:
            if frame is not previous:  # a frame shown twice is converted once
                previous, picture = frame, _upright(frame, aspect)
            yield *picture, float(fps or rate)


@contextlib.contextmanager
def _opened(source: str | Path | BinaryIO) -> Iterator[av.container.InputContainer]:
    """A container with a video stream; what FFmpeg finds wrong with it becomes a UserError.

    It reads this file alone: of a playlist, which names others, FFmpeg would read those.
    """
    name, alone = _name(source), {"protocol_whitelist": "none"}
    try:
        with contextlib.ExitStack() as stack:
            if isinstance(source, str | Path):
                source = stack.enter_context(open(source, "rb"))
            container = stack.enter_context(av.open(source, options=alone))
            if not container.streams.video:
                raise UserError(f"{name}: has no video stream")
            yield container
    except FileNotFoundError as error:
        raise UserError(f"{name}: no such file") from error
    except (av.error.FFmpegError, OSError) as error:
        raise UserError(f"{name}: not a readable video ({error.strerror})") from error


def _is_picture(container: av.container.InputContainer) -> bool:
    return container.format.name.endswith(("_pipe", "image2"))


def _with_margins(
    picture: np.ndarray, margins: tuple[int, int, int, int], value: int = 0
) -> np.ndarray:
    """`[H, W, 3]` with pixels of `value` at the left, right, top and bottom."""
    left, right, top, bottom = margins
    sides = ((top, bottom), (left, right), (0, 0))
    return np.pad(picture, sides, constant_values=value) if any(margins) else picture


def _whole(frames: Iterable, promised: int, name: str) -> Iterator[av.VideoFrame]:
    """`frames`, with an error after them if the file announced clearly more of them.

    A file that was cut off decodes without complaint up to there. Where the container
    does not count (`promised` is 0) that passes; a few missing are an edit list's.
    """
    count = 0
    for frame in frames:
        count += 1
        yield frame
    if count < 0.9 * promised:
        raise UserError(f"{name}: breaks off after {count} of {promised} frames")


def _time_stamped(frames: Iterable, rate: float) -> Iterator[tuple[float, av.VideoFrame, float]]:
    """(start, frame, duration) in seconds, the first frame at 0."""
    first, last = None, -1.0 / rate
    for frame in frames:
        time = frame.time if frame.time is not None else (first or 0.0) + last + 1 / rate
        first = time if first is None else first
        last = max(time - first, last)
        ticks = frame.duration if frame.time_base else 0
        yield last, frame, float(ticks * frame.time_base) if ticks else 1 / rate


def retime(timed: Iterable[tuple[float, T, float]], fps: float) -> Iterator[T]:
    """Per output instant i / fps, the frame shown then.

    A frame is taken up to half its predecessor's duration, and up to half an output
    period, before its time stamp: that makes it the nearest one where the input is as
    fast as the output or faster, and forgives rounded time stamps.

    Args:
      timed: (start, frame, duration) in seconds, starts from 0 and not decreasing.
      fps: the output's frames per second. It is as long as the input: the last instant
        is the last one that the last frame is still shown at, by a tenth of a frame.
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


def _upright(frame: av.VideoFrame, aspect: float) -> tuple[np.ndarray, float]:
    """A frame's picture `[H, W, 3]` uint8, and its pixels' width over their height."""
    picture = frame.to_ndarray(format="rgb24")
    turns = round(frame.rotation / 90) % 4  # telephones store upright video lying down
    turned = np.ascontiguousarray(np.rot90(picture, turns))
    return turned, 1 / aspect if turns % 2 else aspect


def _resized(
    picture: np.ndarray, resolution: int | None, multiple_of: int | None = None, aspect: float = 1.0
) -> np.ndarray:
    """The middle square, or with `multiple_of` all, of `[H, W, 3]` uint8, anti-aliased."""
    if resolution is None:
        return picture
    height, width = picture.shape[:2]
    side = min(height, width * aspect)  # of the square, in units of a pixel's height
    if multiple_of is None:
        size, left, top = (resolution, resolution), (width - side / aspect) / 2, (height - side) / 2
    else:
        sides = (resolution * length / side for length in (width * aspect, height))
        size = tuple(max(1, round(length / multiple_of)) * multiple_of for length in sides)
        left = top = 0
    resized = Image.fromarray(picture).resize(
        size,
        Image.Resampling.BICUBIC,  # Pillow widens the filter when it reduces: anti-aliased
        box=(left, top, width - left, height - top),
    )
    return np.asarray(resized)


def _enlarge(video: np.ndarray) -> np.ndarray:
    factor = -(-MIN_SIDE // min(video.shape[1:3]))
    return video.repeat(factor, 1).repeat(factor, 2) if factor > 1 else video


def _write_mp4(path: Path, frames: np.ndarray, fps: float, comment: str | None) -> None:
    height, width = frames.shape[1:3]
    frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    options = {"movflags": "faststart"}
    with av.open(str(path), "w", format="mp4", options=options) as container:
        if comment is not None:
            container.metadata["comment"] = comment
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(100_000))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        # Say which matrix and range: players guess by size where a file does not.
        coder = stream.codec_context
        coder.colorspace, coder.color_range = Colorspace.ITU709, ColorRange.MPEG
        coder.color_primaries = coder.color_trc = 1  # BT.709
        stream.options = {"crf": "16", "preset": "medium"}
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(
                format="yuv420p", dst_colorspace=Colorspace.ITU709
            )
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def _write_gif(path: Path, frames: np.ndarray, fps: float) -> None:
    # GIF counts in hundredths of a second: rounding the instants, not the durations,
    # keeps the rate (8 fps alternates between 12 and 13).
    instants = np.round(np.arange(len(frames) + 1) * 100 / fps)
    durations = [int(10 * d) for d in np.maximum(np.diff(instants), 2)]
    first, *rest = (Image.fromarray(frame) for frame in frames)
    first.save(path, format="gif", save_all=True, append_images=rest, duration=durations, loop=0)


@contextlib.contextmanager
def _complete_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its name when the block succeeds."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error


def _name(source: str | Path | BinaryIO) -> str:
    return str(source if isinstance(source, str | Path) else getattr(source, "name", "video"))
