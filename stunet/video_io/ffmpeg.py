"""Opens files with FFmpeg."""

from typing import BinaryIO

import av


def open_input(file: BinaryIO) -> av.container.InputContainer:
    """Opens a file without FFmpeg's protocols, so that a playlist cannot name other files to read.

    Raises:
      av.error.FFmpegError: FFmpeg does not support the content.
    """
    return av.open(file, options={"protocol_whitelist": "none"})
