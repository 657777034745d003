"""Frames of GIF and APNG files, and their composition as browsers display them.

Pillow and FFmpeg fill areas that no frame covers, or that a frame clears, with the background
colour of a GIF or with black, and Pillow blends the translucent frames of an APNG differently from
the specification. This module separates a file into frames that Pillow can decode, and composes
them.
"""

import dataclasses
import io
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np

_TRAILER, _EXTENSION, _IMAGE = 0x3B, 0x21, 0x2C
_GRAPHIC_CONTROL = 0xF9
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclasses.dataclass(frozen=True)
class StoredFrame:
    """One frame as stored.

    Attributes:
      image: The frame as a still image in the file's format.
      left: Columns left of the frame in the picture.
      top: Rows above the frame.
      seconds: Duration.
      clears: Whether the frame's area becomes transparent afterwards.
      restores: Whether the frame's area gets back its previous content afterwards.
      replaces: Whether transparent pixels replace the content below instead of showing it.
    """

    image: bytes
    left: int
    top: int
    seconds: float
    clears: bool
    restores: bool
    replaces: bool = False


def compose(
    frames: Sequence[StoredFrame],
    decode: Callable[[bytes], np.ndarray],
    height: int,
    width: int,
) -> Iterator[np.ndarray]:
    """Yields the displayed pictures of an animation: `[H, W, 4]` uint8 RGBA, or `[H, W, 3]`.

    Args:
      frames: Frames in their order.
      decode: Decodes a still image to `[H, W, 3]` or `[H, W, 4]` uint8.
      height: Rows of the picture.
      width: Columns of the picture.
    """
    canvas = np.zeros((height, width, 4), np.uint8)
    for index, frame in enumerate(frames):
        pixels = decode(frame.image)
        area = canvas[frame.top :, frame.left :][: pixels.shape[0], : pixels.shape[1]]
        before = area.copy() if frame.restores else None
        _draw(pixels[: area.shape[0], : area.shape[1]], area, frame.replaces)
        is_opaque = canvas[..., 3].min() == 255
        yield canvas[..., :3].copy() if is_opaque else canvas.copy()
        if frame.clears or (frame.restores and index == 0):
            area[:] = 0
        elif frame.restores:
            area[:] = before


def _draw(pixels: np.ndarray, area: np.ndarray, replaces: bool) -> None:
    """Draws `[H, W, 3]` or `[H, W, 4]` uint8 (not premultiplied) into `[H, W, 4]`."""
    if pixels.shape[-1] == 3:
        area[..., :3], area[..., 3] = pixels, 255
    elif replaces:
        area[:] = pixels
    else:
        alpha = pixels[..., 3]
        np.copyto(area.view(np.uint32), pixels.view(np.uint32), where=alpha[..., None] == 255)
        translucent = (alpha > 0) & (alpha < 255)
        if translucent.any():
            above, below = pixels[translucent], area[translucent]
            weight = above[:, 3:] / 255
            rest = below[:, 3:] / 255 * (1 - weight)
            colors = (above[:, :3] * weight + below[:, :3] * rest) / (weight + rest)
            area[translucent] = np.round(np.concatenate([colors, 255 * (weight + rest)], -1))


def parse_gif(data: bytes) -> list[StoredFrame]:
    """Returns the frames of a GIF file.

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
            left, top, width, height, flags = struct.unpack("<HHHHB", _read(reader, 9))
            colors = _palette(reader, flags) or palette or bytes(6)
            size = struct.pack("<HH", width, height)
            image = [b"GIF89a", size, bytes([0x80 | (len(colors) // 3).bit_length() - 2, 0, 0])]
            image += [colors, b"!\xf9\x04", control, b"\0,", bytes(4), size, bytes([flags & 0x40])]
            image += [_read(reader, 1), _sub_blocks(reader), b";"]
            seconds, disposal = int.from_bytes(control[1:3], "little") / 100, control[0] >> 2 & 7
            frames.append(
                StoredFrame(b"".join(image), left, top, seconds, disposal == 2, disposal == 3)
            )
            control = bytes(4)
        elif block:  # zeros between blocks are padding
            raise ValueError(f"unknown block {block:#x}")
    return frames


def png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """Returns (kind, content) of the chunks of a PNG file up to its end.

    Raises:
      EOFError: The file ends before its last chunk.
    """
    reader, chunks = io.BytesIO(data), []
    reader.seek(len(_PNG_SIGNATURE))
    while not chunks or chunks[-1][0] != b"IEND":
        length, kind = struct.unpack(">I4s", _read(reader, 8))
        chunks.append((kind, _read(reader, length)))
        _read(reader, 4)  # checksum
    return chunks


def parse_apng(chunks: Sequence[tuple[bytes, bytes]]) -> list[StoredFrame]:
    """Returns the frames of an APNG file. Empty for an ordinary PNG file.

    Raises:
      EOFError: Frames are missing.
    """
    count, shared, pixels, controls, frames = 0, [], [], [], []
    for kind, content in chunks:
        if kind == b"acTL":
            (count,) = struct.unpack_from(">I", content)
        elif kind == b"fcTL":
            controls.append(struct.unpack_from(">IIIIHHBB", content, 4))
            pixels.append(b"")
        elif kind in (b"IDAT", b"fdAT"):
            if controls:
                pixels[-1] += content if kind == b"IDAT" else content[4:]
        elif not any(pixels):  # palette, transparency and colour space precede the pixels
            shared.append((kind, content))
    for control, content in zip(controls[:count], pixels, strict=False):
        width, height, left, top, delay, unit, disposal, blending = control
        header = struct.pack(">II", width, height) + shared[0][1][8:]
        image = [(b"IHDR", header), *shared[1:], (b"IDAT", content), (b"IEND", b"")]
        frames.append(
            StoredFrame(
                image=_PNG_SIGNATURE + b"".join(_png_chunk(*chunk) for chunk in image),
                left=left,
                top=top,
                seconds=delay / (unit or 100),
                clears=disposal == 1,
                restores=disposal == 2,
                replaces=blending == 0,
            )
        )
    if len(frames) < count or not all(pixels[:count]):
        raise EOFError("missing frames")
    return frames


def _png_chunk(kind: bytes, content: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + checksum


def _read(reader: io.BytesIO, count: int) -> bytes:
    content = reader.read(count)
    if len(content) < count:
        raise EOFError("unexpected end of the file")
    return content


def _palette(reader: io.BytesIO, flags: int) -> bytes:
    return _read(reader, 3 * 2 ** ((flags & 7) + 1)) if flags & 0x80 else b""


def _sub_blocks(reader: io.BytesIO) -> bytes:
    """Reads blocks of up to 255 bytes, with their lengths and the empty block that ends them."""
    start, data = reader.tell(), reader.getbuffer()
    end = start
    while end < len(data) and data[end]:
        end += 1 + data[end]
    return _read(reader, end + 1 - start)
