"""What the page shows and gives: files with their settings inside, progress as HTML."""

import base64
import contextlib
import dataclasses
import html
import io
import json
import re
import secrets
import shutil
import time
from pathlib import Path

import numpy as np
from PIL import Image

from stunet.evaluation.xt_slice import xt_slice
from stunet.studio.jobs import Progress
from stunet.studio.making import Made
from stunet.video_io import to_uint8, write_image, write_video

KEPT = 24 * 3600.0  # seconds that results stay for
PREVIEW_SIDE = 192  # pixels on the page


@dataclasses.dataclass(frozen=True)
class Written:
    """A result's files: an MP4, and the X-T slice as PNG where there is more than one frame."""

    video: Path
    xt_slice: Path | None


def write_result(made: Made, folder: Path) -> Written:
    """Writes a result's files into a `new_folder`.

    The settings are the MP4's comment, as JSON; `stunet.video_io.read_comment` reads it back.
    """
    folder = new_folder(folder)
    video = folder / f"{_file_name(made)}.mp4"
    write_video(video, made.video, made.fps, comment=json.dumps(made.settings, ensure_ascii=False))
    if len(made.video) == 1:
        return Written(video, None)
    image = video.with_name(f"{video.stem}_xt.png")
    write_image(image, xt_slice(made.video))
    return Written(video, image)


def new_folder(parent: Path, keep: float = KEPT) -> Path:
    """Makes a folder with a name that cannot be guessed; those older than `keep` seconds go."""
    parent.mkdir(parents=True, exist_ok=True)
    for old in parent.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another job has just removed it
            if time.time() - old.stat().st_mtime > keep:
                shutil.rmtree(old, ignore_errors=True)
    folder = parent / secrets.token_hex(16)
    folder.mkdir()
    return folder


def progress_html(progress: Progress, fps: float) -> str:
    """A line, a bar and the video so far."""
    words = progress.stage
    if progress.total and progress.done:
        words += f", step {progress.done} of {progress.total}"
        if progress.done > 1:
            each = progress.seconds / (progress.done - 1)  # after the first one
            left = each * (progress.total - progress.done)
            words += f", about {left:.0f} s left" if left >= 1 else ""
    share = f' value="{progress.done}" max="{progress.total}"' if progress.total else ""
    picture = ""
    if progress.frames is not None:
        source = base64.b64encode(animation(progress.frames, fps / progress.thinned)).decode()
        # With its size, so that it keeps its place while the next one is decoded.
        width, height = _preview_size(progress.frames)
        picture = (
            f'<img alt="the video so far" width="{width}" height="{height}" '
            f'src="data:image/webp;base64,{source}">'
        )
    return (
        f'<div role="status">{html.escape(words)}</div>'
        f'<progress aria-label="progress"{share}></progress>{picture}'
    )


def message_html(message: str) -> str:
    """An error that stays on the page, for the eye and for screen readers."""
    return f'<div role="alert">{html.escape(message)}</div>'


def remarks_html(remarks: tuple[str, ...]) -> str:
    """What is to be said of a result."""
    items = "".join(f"<li>{html.escape(one)}</li>" for one in remarks)
    return f'<div role="status">done</div>{f"<ul>{items}</ul>" if items else ""}'


def animation(frames: np.ndarray, fps: float) -> bytes:
    """Frames `[T, H, W, 3]` in [-1, 1] as a small endless WebP."""
    size = _preview_size(frames)
    first, *rest = (
        Image.fromarray(frame).resize(size, Image.Resampling.NEAREST) for frame in to_uint8(frames)
    )
    file = io.BytesIO()
    first.save(
        file,
        format="webp",
        save_all=True,
        append_images=rest,
        duration=max(20, round(1000 / fps)),
        loop=0,
        quality=60,
        method=0,
    )
    return file.getvalue()


def _preview_size(frames: np.ndarray) -> tuple[int, int]:
    height, width = frames.shape[1:3]
    return PREVIEW_SIDE, max(1, round(PREVIEW_SIDE * height / width))


def _file_name(made: Made) -> str:
    words = re.sub(r"[^a-z0-9]+", "-", made.settings["prompt"].lower()).strip("-")[:40].strip("-")
    return "_".join(
        filter(None, [made.settings["application"], words, f"seed{made.settings['seed']}"])
    )
