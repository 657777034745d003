"""Result files, and the HTML of progress, errors and warnings."""

import base64
import dataclasses
import html
import io
import json
import re
import secrets
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from stunet.engine.request import Result
from stunet.evaluation.xt_slice import xt_slice
from stunet.studio.jobs import Status
from stunet.studio.storage import LIFETIME, delete_old_folders
from stunet.video_io import to_uint8, write_image, write_video

PREVIEW_WIDTH = 192  # pixels on the page


@dataclasses.dataclass(frozen=True)
class ResultFiles:
    """Files of a result.

    Attributes:
      video: MP4.
      xt_slice: X-T slice, PNG. None for a video of one frame.
    """

    video: Path
    xt_slice: Path | None


def write_result(result: Result, parent: Path) -> ResultFiles:
    """Writes a result's files into a new folder.

    The MP4's comment contains the settings as JSON; `stunet.video_io.read_comment` reads it.
    """
    video = new_folder(parent) / f"{_file_name(result)}.mp4"
    comment = json.dumps(result.settings, ensure_ascii=False)
    write_video(video, result.video, result.fps, comment, result.audio)
    if len(result.video) == 1:
        return ResultFiles(video, None)
    image = video.with_name(f"{video.stem}_xt.png")
    write_image(image, xt_slice(result.video))
    return ResultFiles(video, image)


def new_folder(parent: Path, lifetime: float = LIFETIME) -> Path:
    """Creates a folder with an unguessable name, and deletes those older than `lifetime` seconds.

    Args:
      parent: Created if it does not exist.
      lifetime: Maximum age of the other folders in it.
    """
    parent.mkdir(parents=True, exist_ok=True)
    delete_old_folders(parent, lifetime)
    folder = parent / secrets.token_hex(16)
    folder.mkdir()
    return folder


def status_html(status: Status, fps: float) -> str:
    """Formats a job's status as a line of text, a progress bar and a preview.

    Args:
      status: Status of the job.
      fps: Frame rate of the video.
    """
    text = status.stage
    if status.total and status.done:
        text += f", step {status.done} of {status.total}"
        if status.done > 1:
            seconds_per_step = status.seconds / (status.done - 1)  # without the first step
            remaining = seconds_per_step * (status.total - status.done)
            text += f", about {remaining:.0f} s left" if remaining >= 1 else ""
    value = f' value="{status.done}" max="{status.total}"' if status.total else ""
    preview = ""
    if status.frames is not None:
        webp = base64.b64encode(animation(status.frames, fps / status.frame_stride)).decode()
        # A fixed size keeps the layout while the browser decodes the next preview.
        width, height = _preview_size(status.frames)
        preview = (
            f'<img alt="preview" width="{width}" height="{height}" '
            f'src="data:image/webp;base64,{webp}">'
        )
    return (
        f'<div role="status">{html.escape(text)}</div>'
        f'<progress aria-label="progress"{value}></progress>{_list(status.warnings)}{preview}'
    )


def error_html(message: str) -> str:
    """Formats an error; its role makes screen readers announce it."""
    return f'<div role="alert">{html.escape(message)}</div>'


def warnings_html(warnings: Iterable[str]) -> str:
    """Formats the end of a job: "done", and the warnings as a list."""
    return f'<div role="status">done</div>{_list(warnings)}'


def _list(lines: Iterable[str]) -> str:
    items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    return f"<ul>{items}</ul>" if items else ""


def animation(frames: np.ndarray, fps: float) -> bytes:
    """Encodes frames `[T, H, W, 3]` in [-1, 1] as a small, endlessly repeating WebP."""
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
    return PREVIEW_WIDTH, max(1, round(PREVIEW_WIDTH * height / width))


def _file_name(result: Result) -> str:
    settings = result.settings
    words = re.sub(r"[^a-z0-9]+", "-", settings["prompt"].lower()).strip("-")[:40].strip("-")
    return "_".join(filter(None, [settings["application"], words, f"seed{settings['seed']}"]))
