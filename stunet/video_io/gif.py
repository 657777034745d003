"""Decoding GIF animations as browsers display them.

Pillow and FFmpeg fill areas that no frame covers, or that a frame clears, with the background
colour of the file. Browsers leave them transparent. This module parses the file, decompresses its
frames with Pillow and composes them.
"""

import dataclasses
import io
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

_TRAILER, _EXTENSION, _IMAGE = 0x3B, 0x21, 0x2C
_GRAPHIC_CONTROL = 0xF9
_RESTORE_BACKGROUND, _RESTORE_PREVIOUS = 2, 3


@dataclasses.dataclass(frozen=True)
class GifFrame:
    """One frame as stored.

    Attributes:
      left: Columns left of the frame in the picture.
      top: Rows above the frame.
      height: Rows of the frame.
      width: Columns of the frame.
      image: The frame as a GIF file of its own.
      palette: Red, green and blue of each colour.
      seconds: Duration.
      disposal: 2 clears the frame's area afterwards, 3 restores what was there before.
      transparent: Palette index of transparent pixels, or None.
    """

    left: int
    top: int
    height: int
    width: int
    image: bytes
    palette: bytes
    seconds: float
    disposal: int
    transparent: int | None


def parse_gif(data: bytes) -> list[GifFrame]:
    """Returns the frames of a GIF file, not decompressed.

    Raises:
      EOFError: The file ends before its trailer.
      ValueError: The file is damaged.
    """
    reader = io.BytesIO(data)
    header = _read(reader, 13)
    palette = _palette(reader, header[10])
    frames, control = [], bytes(4)
    while (block := _read(reader, 1)[0]) != _TRAILER:
        if block == _EXTENSION:
            label = _read(reader, 1)[0]
            content = _sub_blocks(reader)
            if label == _GRAPHIC_CONTROL and len(content) >= 6:
                control = content[1:5]
        elif block == _IMAGE:
            left, top, width, height = np.frombuffer(_read(reader, 8), "<u2").tolist()
            flags = _read(reader, 1)[0]
            colors = _palette(reader, flags) or palette
            size = max(len(colors) // 3, 2).bit_length() - 2
            screen = np.array([width, height], "<u2").tobytes()
            image = [b"GIF89a", screen, bytes([0x80 | size, 0, 0]), colors or bytes(6), b","]
            image += [bytes(4), screen, bytes([flags & 0x40]), _read(reader, 1)]
            image += [_sub_blocks(reader), b";"]
            frames.append(
                GifFrame(
                    left=left,
                    top=top,
                    height=height,
                    width=width,
                    image=b"".join(image),
                    palette=colors,
                    seconds=int.from_bytes(control[1:3], "little") / 100,
                    disposal=control[0] >> 2 & 7,
                    transparent=control[3] if control[0] & 1 else None,
                )
            )
            control = bytes(4)
        elif block:  # zeros between blocks are padding
            raise ValueError(f"unknown block {block:#x}")
    return frames


def compose(frames: Sequence[GifFrame], height: int, width: int) -> Iterator[np.ndarray]:
    """Yields the displayed pictures, `[H, W, 4]` uint8 RGBA."""
    canvas = np.zeros((height, width, 4), np.uint8)
    for frame in frames:
        before = canvas.copy()
        with Image.open(io.BytesIO(frame.image), formats=["GIF"]) as image:
            indices = np.asarray(image)
        colors = np.frombuffer(frame.palette.ljust(3 * 256, b"\0"), np.uint8).reshape(-1, 3)
        area = canvas[frame.top :, frame.left :][: indices.shape[0], : indices.shape[1]]
        indices = indices[: area.shape[0], : area.shape[1]]
        drawn = indices != (-1 if frame.transparent is None else frame.transparent)
        area[drawn, :3] = colors[indices[drawn]]
        area[drawn, 3] = 255
        yield canvas.copy()
        if frame.disposal == _RESTORE_BACKGROUND:
            area[:] = 0
        elif frame.disposal == _RESTORE_PREVIOUS:
            canvas = before


def _read(reader: io.BytesIO, count: int) -> bytes:
    content = reader.read(count)
    if len(content) < count:
        raise EOFError("no trailer")
    return content


def _palette(reader: io.BytesIO, flags: int) -> bytes:
    return _read(reader, 3 * 2 ** ((flags & 7) + 1)) if flags & 0x80 else b""


def _sub_blocks(reader: io.BytesIO) -> bytes:
    """Reads blocks of up to 255 bytes, with their lengths and the empty block that ends them."""
    blocks = []
    while not blocks or blocks[-1] != b"\0":
        length = _read(reader, 1)
        blocks.append(length + _read(reader, length[0]))
    return b"".join(blocks)
