"""Detects files that end before their last element, from the sizes that containers store.

FFmpeg decodes what is left of a truncated file without an error.
"""

import re
from collections.abc import Callable
from typing import BinaryIO

from stunet.errors import UserError

# Returns the position of the next element, from the position and the first bytes of one. None if
# the bytes are no element that is known (such as padding after the last one) or its size is
# unknown.
Walk = Callable[[int, bytes], int | None]

_HEADER_SIZE = 300  # bytes; holds the header of any element, of which Ogg's are the longest

_BOXES = b"ftyp moov mdat moof mfra free skip wide meta uuid styp sidx ssix emsg prft pnot".split()
_EBML = bytes.fromhex("1a45dfa3")
_SEGMENT, _CLUSTER = bytes.fromhex("18538067"), bytes.fromhex("1f43b675")
_EBML_IDS = {
    _EBML,
    _SEGMENT,
    _CLUSTER,
    bytes.fromhex("114d9b74"),  # SeekHead
    bytes.fromhex("1549a966"),  # Info
    bytes.fromhex("1654ae6b"),  # Tracks
    bytes.fromhex("1c53bb6b"),  # Cues
    bytes.fromhex("1043a770"),  # Chapters
    bytes.fromhex("1254c367"),  # Tags
    bytes.fromhex("1941a469"),  # Attachments
    b"\xec",  # Void
    b"\xbf",  # CRC-32
    b"\xe7",  # Timestamp of a cluster
    b"\xa7",  # Position
    b"\xab",  # PrevSize
    b"\xa3",  # SimpleBlock
    b"\xa0",  # BlockGroup
}
_ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_DATA = bytes.fromhex("3626b2758e66cf11a6d900aa0062ce6c")
_MXF = bytes.fromhex("060e2b34")
_TS_PACKETS = ((188, 0), (192, 4), (204, 0))  # (bytes in a packet, position of its sync byte)


def check_complete(file: BinaryIO, name: str) -> bool:
    """Raises `UserError` if a file ends in the middle of an element of its container.

    Reads the headers of the top-level elements and restores the file's position. Supports MP4 and
    its relatives, Matroska and WebM, AVI, FLV, Ogg, ASF, MXF, and MPEG program and transport
    streams; other files and files that cannot seek pass.

    Args:
      file: Binary file.
      name: Name of the file, for the error.

    Returns:
      Whether the last picture probably continues after the end of the file: it fills the last
      packet of a transport stream. This is true for one complete file in 184, too.
    """
    if not file.seekable():
        return False
    start = file.tell()
    size = file.seek(0, 2)
    file.seek(start)
    head = file.read(_HEADER_SIZE)
    if walk := _walk(head):
        position: int | None = start
        while position is not None and position < size:
            file.seek(position)
            end = position
            position = walk(position, file.read(_HEADER_SIZE))
        if position is not None and position > size:
            file.seek(start)
            raise UserError(
                f"{name}: truncated ({size} bytes, the element at byte {end} ends at {position})"
            )
    for packet, sync in _TS_PACKETS:
        if head[sync : sync + 1] == head[sync + packet : sync + packet + 1] == b"G":
            rest = (size - start) % packet
            file.seek(max(start, size - rest - packet))
            last, tail = file.read(packet)[sync:], file.read(rest)[sync:]
            file.seek(start)
            if tail[:1] == b"G":
                raise UserError(f"{name}: truncated ({size} bytes, in the middle of a packet)")
            return _unfinished(last)
    file.seek(start)
    return False


def _walk(head: bytes) -> Walk | None:
    """Returns the function that steps through a file, from the file's first bytes."""
    if head[4:8] in _BOXES:
        return _next_box
    if head[:4] == _EBML:
        return _next_ebml
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return _next_riff
    if head[:3] == b"FLV":
        return _next_tag
    if head[:4] == b"OggS":
        return _next_ogg
    if head[:16] == _ASF_HEADER:
        return _next_asf
    if head[:4] == _MXF:
        return _next_klv
    if head[:4] == b"\x00\x00\x01\xba":
        return _next_pes
    return None


def _unfinished(packet: bytes) -> bool:
    """Returns whether a picture or a piece of audio continues after a transport-stream packet.

    A packet that ends one contains stuffing, unless the end coincides with that of the packet.
    """
    starts, stuffing = packet[1] & 0x40, packet[3] & 0x20
    is_table = starts and packet[4:7] != b"\x00\x00\x01"
    is_padding = packet[1] & 0x1F == 0x1F and packet[2] == 0xFF
    return packet[:1] == b"G" and not (stuffing or is_table or is_padding)


def _next_box(position: int, head: bytes) -> int | None:
    size = int.from_bytes(head[:4], "big")
    if size == 1:
        size = int.from_bytes(head[8:16], "big")
    return position + size if head[4:8] in _BOXES and size >= 8 else None


def _next_ebml(position: int, head: bytes) -> int | None:
    """Enters clusters and segments of unknown size (live recordings); skips other elements."""
    id_size = 9 - head[0].bit_length()
    element = head[:id_size]
    if element not in _EBML_IDS or len(head) <= id_size:
        return None
    length_size = 9 - head[id_size].bit_length()
    length = int.from_bytes(head[id_size : id_size + length_size], "big")
    unknown = (1 << 7 * length_size) - 1
    length &= unknown
    content = position + id_size + length_size
    if length == unknown:
        return content if element in (_SEGMENT, _CLUSTER) else None
    return content + length


def _next_riff(position: int, head: bytes) -> int | None:
    size = int.from_bytes(head[4:8], "little")
    # Some writers count the chunk's 8-byte header, so it is not added.
    return position + size if head[:4] == b"RIFF" and 0 < size < 0xFFFFFFFF else None


def _next_tag(position: int, head: bytes) -> int | None:
    """Steps through FLV: each tag follows the size of its predecessor in 4 bytes."""
    if head[:3] == b"FLV":
        return position + 9
    is_tag = head[4:5] in (b"\x08", b"\x09", b"\x12")
    return position + 4 + 11 + int.from_bytes(head[5:8], "big") if is_tag else None


def _next_ogg(position: int, head: bytes) -> int | None:
    if head[:4] != b"OggS":
        return None
    segments = head[26] if len(head) > 26 else 255
    return position + 27 + segments + sum(head[27 : 27 + segments])


def _next_asf(position: int, head: bytes) -> int | None:
    size = int.from_bytes(head[16:24], "little")
    return position + size if head[:16] in (_ASF_HEADER, _ASF_DATA) and size > 50 else None


def _next_klv(position: int, head: bytes) -> int | None:
    """Steps over a key of 16 bytes, a length (BER) and a value."""
    if head[:4] != _MXF:
        return None
    first = head[16] if len(head) > 16 else 0
    length_size = first - 0x80 if first > 0x80 else 0
    length = int.from_bytes(head[17 : 17 + length_size], "big") if length_size else first
    return position + 17 + length_size + length


def _next_pes(position: int, head: bytes) -> int | None:
    """Steps through packs and packets of an MPEG program stream."""
    if head[:4] == b"\x00\x00\x01\xba":
        stuffing = head[13] & 7 if len(head) > 13 else 0
        return position + (14 + stuffing if head[4] & 0xC0 == 0x40 else 12)  # MPEG-2, MPEG-1
    if re.match(rb"\x00\x00\x01[\xbb-\xff]", head):
        return position + 6 + int.from_bytes(head[4:6], "big")
    return None
