"""TensorBoard's event files."""

import io
import socket
import struct
import time

import numpy as np
from PIL import Image
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import masked_crc32c

from stunet.errors import writing
from stunet.paths import AnyPath
from stunet.training.logs.log_files import growing_file


class Board:
    """The events of one session of a run, in a file of its own, or in parts in a bucket.

    Args:
      folder: Folder of all event files of the run.
      start_step: Step that the session resumes from. TensorBoard hides events of later steps from
        earlier sessions.

    Raises:
      UserError: here and in all methods, if the folder cannot be written.
    """

    def __init__(self, folder: AnyPath, start_step: int):
        self._folder = folder
        with writing(folder):
            folder.mkdir(exist_ok=True)
        now = time.time()
        # TensorBoard reads files with this prefix, in the order of their names.
        name = f"events.out.tfevents.{now:.6f}.{socket.gethostname()}"
        self._file = growing_file(folder / name)
        self._append(
            Event(wall_time=now, file_version="brain.Event:2"),
            Event(
                wall_time=now,
                step=start_step + 1,
                session_log=SessionLog(status=SessionLog.START),
            ),
        )

    def add_scalars(self, values: dict[str, float], step: int) -> None:
        """Adds numbers by tag."""
        summary = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._append(Event(wall_time=time.time(), step=step, summary=Summary(value=summary)))

    def add_video(self, name: str, video: np.ndarray, fps: float, step: int) -> None:
        """Adds a video `[T, H, W, 3]` uint8 as an animated GIF."""
        frames = [Image.fromarray(frame) for frame in video]
        gif = io.BytesIO()
        duration = round(1000 / fps)
        frames[0].save(
            gif, "GIF", save_all=True, append_images=frames[1:], duration=duration, loop=0
        )
        height, width = video.shape[1:3]
        image = Summary.Image(
            height=height, width=width, colorspace=3, encoded_image_string=gif.getvalue()
        )
        summary = Summary(value=[Summary.Value(tag=name, image=image)])
        self._append(Event(wall_time=time.time(), step=step, summary=summary))

    def flush(self) -> None:
        """Returns when all events are stored."""
        with writing(self._folder):
            self._file.flush()

    def _append(self, *events: Event) -> None:
        with writing(self._folder):
            self._file.append(b"".join(_record(event.SerializeToString()) for event in events))


def _record(data: bytes) -> bytes:
    """Returns a TFRecord: the length and the data, each followed by its masked CRC-32C."""
    header = struct.pack("<Q", len(data))
    checks = [struct.pack("<I", masked_crc32c(part)) for part in (header, data)]
    return header + checks[0] + data + checks[1]
