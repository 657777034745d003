"""Writing videos as MP4 and GIF, images and contact sheets as PNG."""

import contextlib
import math
import tempfile
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path, PurePath

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image

from stunet.errors import UserError
from stunet.paths import AnyPath, check_bucket_writable, is_remote, local_output, user_path
from stunet.video_io.audio import AudioWriter
from stunet.video_io.pixels import contact_sheet, to_uint8

SUFFIXES = (".mp4", ".gif", ".png")
MIN_SIDE = 256  # pixels; smaller videos are enlarged


def write_video(
    path: str | AnyPath,
    video: np.ndarray,
    fps: float,
    comment: str | None = None,
    audio: bytes | None = None,
) -> None:
    """Writes a video in the format of the path's suffix.

    - `.mp4`: H.264, 4:2:0, with the index in front so that browsers can start playing. Sides under
      256 pixels are enlarged by an integer factor (each pixel becomes a square, which also keeps
      4:2:0 from blurring its colour); odd sides are padded by a row or column of edge pixels.
    - `.gif`: the same size, looping forever.
    - `.png`: a contact sheet, or the image if there is one frame.

    The file appears when it is complete; an existing one is replaced in one step.

    Args:
      path: Output file; ends in .mp4, .gif or .png.
      video: `[T, H, W, 3]` in [-1, 1].
      fps: Frames per second.
      comment: Text to store in an .mp4 (see `read_comment`). Ignored for the other formats.
      audio: Result of `read_audio`, for an .mp4. The other formats have no audio.

    Raises:
      UserError: The suffix is not supported or the path cannot be written.
    """
    path = user_path(path)
    check_writable(path)
    if path.suffix.lower() == ".png":
        write_image(path, video[0] if len(video) == 1 else contact_sheet(video))
        return
    frames = _enlarge_small(to_uint8(video))
    with _complete_file(path) as temporary:
        if path.suffix.lower() == ".mp4":
            _write_mp4(temporary, frames, fps, comment, audio)
        else:
            _write_gif(temporary, frames, fps)


def audio_warning(path: str | AnyPath, audio: bytes | None) -> str | None:
    """Returns a warning if the format of a path has no audio that could be written, else None."""
    if audio is None or PurePath(path).suffix.lower() == ".mp4":
        return None
    return f"{path}: audio is dropped, which only .mp4 stores"


def write_image(path: str | AnyPath, image: np.ndarray) -> None:
    """Writes `[H, W, 3]` in [-1, 1] as PNG; sides under 256 are enlarged by an integer factor."""
    path = user_path(path)
    check_writable(path)
    with _complete_file(path) as temporary:
        Image.fromarray(_enlarge_small(to_uint8(image[None]))[0]).save(temporary, format="png")


def check_writable(path: str | AnyPath) -> None:
    """Checks that an output path can be written, to fail before the work and not after it.

    Creates nothing.

    Raises:
      UserError: The suffix is not one of `SUFFIXES`, the path is a directory, or its directory
        neither exists nor can be created.
    """
    path = user_path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(
            f"{path}: unsupported file type ({path.suffix!r}), expected {', '.join(SUFFIXES)}"
        )
    if is_remote(path):
        if path.is_dir():
            raise UserError(f"{path}: is a folder, expected a file name")
        check_bucket_writable(path)
        return
    folder = path.absolute().parent
    try:
        if path.is_dir():
            raise UserError(f"{path}: is a directory, expected a file name")
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        with contextlib.suppress(FileNotFoundError):
            path.lstat()  # fails if the name is too long
        # Permission bits do not reveal read-only file systems, so create a file.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror} at {folder})") from error


def _enlarge_small(video: np.ndarray) -> np.ndarray:
    factor = -(-MIN_SIDE // min(video.shape[1:3]))
    return video.repeat(factor, 1).repeat(factor, 2) if factor > 1 else video


def _write_mp4(
    path: Path, frames: np.ndarray, fps: float, comment: str | None, audio: bytes | None
) -> None:
    height, width = frames.shape[1:3]
    frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    options = {"movflags": "faststart"}
    # "file:", because FFmpeg takes a name such as 12:30.mp4 for a protocol.
    with (
        av.open(f"file:{path}", "w", format="mp4", options=options) as container,
        contextlib.ExitStack() as stack,
    ):
        if comment is not None:
            container.metadata["comment"] = comment
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(100_000))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        # Declare matrix and range: players guess them from the size otherwise.
        coder = stream.codec_context
        coder.colorspace, coder.color_range = Colorspace.ITU709, ColorRange.MPEG
        coder.color_primaries = coder.color_trc = 1  # BT.709
        stream.options = {"crf": "16", "preset": "medium"}
        sound = None
        if audio is not None:
            sound = stack.enter_context(contextlib.closing(AudioWriter(container, audio)))
        for index, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(
                format="yuv420p", dst_colorspace=Colorspace.ITU709
            )
            container.mux(stream.encode(picture))
            if sound is not None:
                sound.write_until(index / fps)
        container.mux(stream.encode())
        if sound is not None:
            sound.write_until(math.inf)


def _write_gif(path: Path, frames: np.ndarray, fps: float) -> None:
    # GIF durations are hundredths of a second. Rounding the instants instead of the durations
    # keeps the average rate (8 fps alternates between 12 and 13).
    instants = np.round(np.arange(len(frames) + 1) * 100 / fps)
    durations = [int(10 * d) for d in np.maximum(np.diff(instants), 2)]
    first, *rest = (Image.fromarray(frame) for frame in frames)
    first.save(path, format="gif", save_all=True, append_images=rest, duration=durations, loop=0)


@contextlib.contextmanager
def _complete_file(path: AnyPath) -> Iterator[Path]:
    """Yields a local path whose file becomes `path` if the block succeeds; see `local_output`."""
    try:
        with local_output(path) as local:
            yield local
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error
