"""Reading images and animated images, as browsers display them.

Pillow decodes all formats (HEIF with the plugin `pillow-heif`). This module recognises files by
their content, refuses truncated ones, and applies orientation, transparency, colour profiles and
frame times.
"""

import contextlib
import dataclasses
import io
import math
import re
import struct
import warnings
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import av
import numpy as np
import pillow_heif
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError

from stunet.errors import UserError
from stunet.paths import AnyPath, user_path
from stunet.video_io.animations import StoredFrame, compose, parse_apng, parse_gif, png_chunks
from stunet.video_io.color import HDR_TRANSFERS, RgbConverter
from stunet.video_io.ffmpeg import open_input
from stunet.video_io.pixels import BACKGROUND, blend

pillow_heif.register_heif_opener()

ImageSource = str | AnyPath | BinaryIO

_MAGIC = {
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "JPEG": rb"\xff\xd8\xff",
    "GIF": rb"GIF8[79]a",
    "WEBP": rb"RIFF....WEBP",
    "TIFF": rb"II[*+]\0|MM\0[*+]",
    "BMP": rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0",
    "PPM": rb"P[1-6]\s",
}
_HEAD_BYTES = 256
# Markers of segments and of the end: neither escaped bytes nor restarts within the pixels.
_JPEG_MARKER = re.compile(rb"\xff[\x02-\xcf\xd9-\xfe]")
_AVIF_BRANDS = {b"avif", b"avis"}
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
_SHORTEST = 0.010  # seconds; browsers display frames of up to this duration for ...
_USUAL = 0.100  # ... this duration
_ALPHA_MODES = ("RGBA", "LA", "PA", "RGBa", "La")
_NEW_SUBFILE_TYPE, _BITS_PER_SAMPLE, _PHOTOMETRIC, _DNG_VERSION = 254, 258, 262, 50706  # TIFF tags
_TRANSPOSE = {  # EXIF orientation -> how to turn the stored picture
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What decoders and parsers of metadata raise for damaged files.
_DECODER_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    RuntimeError,
    TypeError,
    AttributeError,
    LookupError,
    struct.error,
)


class _UnsupportedError(Exception):
    """The image is intact, but its meaning is not known."""


@dataclasses.dataclass(frozen=True)
class _Structure:
    """What a file contains beside the pictures.

    Attributes:
      seconds: Duration of each frame of an animation as stored. Empty for a still.
      frames: Frames of a GIF or APNG file, to be composed. Empty for formats that Pillow composes.
      colors: Colour primaries and transfer characteristics (ITU-T H.273), if tagged.
      bits: Bits per channel. 0 if unknown.
      alpha: `[H, W, 1]` uint8 that Pillow does not read, if any.
      exif: Metadata of a PNG file, which Pillow may find only after decoding the pixels.
    """

    seconds: Sequence[float] = ()
    frames: Sequence[StoredFrame] = ()
    colors: tuple[int, int] | None = None
    bits: int = 0
    alpha: np.ndarray | None = None
    exif: bytes = b""


def is_image(source: ImageSource) -> bool:
    """Returns whether the content is an image that `decode_images` can read.

    Args:
      source: Path, or an open binary file, whose position is restored.

    Raises:
      UserError: The file is absent or unreadable.
    """
    return image_format(source) is not None


def image_format(source: ImageSource) -> str | None:
    """Returns Pillow's name of an image's format ("PNG", "JPEG"). None for other files.

    Args:
      source: Path, or an open binary file, whose position is restored.

    Raises:
      UserError: The file is absent or unreadable.
    """
    return _format(_read(source, _HEAD_BYTES))


def decode_images(
    source: ImageSource, background: int = BACKGROUND
) -> Iterator[tuple[float, np.ndarray, float]]:
    """Decodes an image or an animated image (GIF, APNG, WebP, AVIF).

    Of other files with several images (MPO, TIFF, HEIF) only the primary one is read.

    Args:
      source: Path, or an open binary file, whose position is restored.
      background: Level over which transparent pixels are blended, 0 to 255.

    Yields:
      Start in seconds, picture, and duration in seconds (0 for a still). The picture is upright
      sRGB, `[H, W, 3]` uint8. Frames of up to 10 ms last 100 ms, as in browsers.

    Raises:
      UserError: The file is absent, damaged, truncated or too large.
    """
    name, data = _name(source), _read(source)
    with _explain(name, data):
        form, structure, image = _open(data)
        pictures = _decode(data, form, structure, image, name)
        start = 0.0
        for pixels, seconds in zip(pictures, _display_times(structure), strict=True):
            if pixels.shape[-1] == 4:
                pixels = blend(pixels[..., :3], pixels[..., 3:], background)
            yield start, pixels, seconds
            start += seconds


def image_info(source: ImageSource) -> tuple[int, int, int, float]:
    """Returns (height, width, number of frames, seconds) as displayed, without decoding pixels.

    Args:
      source: Path, or an open binary file, whose position is restored.

    Raises:
      UserError: The file is absent, damaged, truncated or too large.
    """
    data = _read(source)
    with _explain(_name(source), data):
        form, structure, image = _open(data)
        times = _display_times(structure)
        return *_size(image, form), len(times), sum(times)


def _display_times(structure: _Structure) -> list[float]:
    return [t if t > _SHORTEST + 1e-6 else _USUAL for t in structure.seconds] or [0.0]


def _name(source: ImageSource) -> str:
    return str(source if isinstance(source, str | AnyPath) else getattr(source, "name", "image"))


def _read(source: ImageSource, count: int = -1) -> bytes:
    """Returns the content, or its first bytes."""
    try:
        if isinstance(source, str | AnyPath):
            with user_path(source).open("rb") as file:
                return file.read(count)
        position = source.tell()
        source.seek(0)
        try:
            return source.read(count)
        finally:
            source.seek(position)
    except FileNotFoundError as error:
        raise UserError(f"{source}: no such file") from error
    except OSError as error:
        raise UserError(f"{_name(source)}: not readable ({error.strerror})") from error


@contextlib.contextmanager
def _explain(name: str, data: bytes) -> Iterator[None]:
    """Turns exceptions of decoders into `UserError`s."""
    try:
        yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(
            f"{name}: image too large to decode, expected fewer pixels than "
            f"{2 * Image.MAX_IMAGE_PIXELS:,}"
        ) from error
    except EOFError as error:
        raise UserError(
            f"{name}: truncated {_format(data)} image, expected a complete image"
        ) from error
    except _UnsupportedError as error:
        raise UserError(f"{name}: {error}") from error
    except _DECODER_ERRORS as error:
        unidentified = isinstance(error, UnidentifiedImageError)
        reason = "its header" if unidentified else " ".join(str(error).split())
        raise UserError(
            f"{name}: damaged, truncated or unsupported {_format(data)} image ({reason}), "
            "expected a complete image"
        ) from error


def _format(head: bytes) -> str | None:
    """Returns Pillow's name of an image format, or None for other files."""
    for form, magic in _MAGIC.items():
        if re.match(magic, head, re.DOTALL):
            return form
    if head[4:8] != b"ftyp":
        return None
    brands = head[8 : min(int.from_bytes(head[:4], "big"), len(head))]
    brands = [brands[0:4], *(brands[i : i + 4] for i in range(8, len(brands), 4))]
    if brands[0] in _AVIF_BRANDS | _HEIF_BRANDS:
        return "AVIF" if _AVIF_BRANDS & set(brands) else "HEIF"
    return None


def _open(data: bytes) -> tuple[str, _Structure, Image.Image]:
    """Returns the format, the structure and the image, whose pixels are not decoded yet."""
    form = _format(data[:_HEAD_BYTES])
    if form is None:
        raise _UnsupportedError(f"not an image, expected {', '.join(_MAGIC)}, AVIF or HEIF")
    structure = _STRUCTURES.get(form, lambda data: _Structure())(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of large images and unknown metadata
        image = Image.open(io.BytesIO(data), formats=[form])
    if structure.exif:
        image.info["exif"] = b"Exif\0\0" + structure.exif
    return form, structure, image


def _animation(seconds: Sequence[float]) -> Sequence[float]:
    """Returns the durations of several frames. A single frame is a still unless it has a duration.

    Writers of GIF merge equal frames, so that one frame may be a whole video.
    """
    return seconds if len(seconds) > 1 or max(seconds, default=0) > _SHORTEST else ()


def _png_structure(data: bytes) -> _Structure:
    chunks = png_chunks(data)
    contents = dict(chunks)
    frames = parse_apng(chunks)
    return _Structure(
        seconds=_animation([frame.seconds for frame in frames]),
        frames=frames,
        colors=tuple(contents[b"cICP"][:2]) if b"cICP" in contents else None,
        bits=data[24],
        exif=contents.get(b"eXIf", b""),
    )


def _jpeg_structure(data: bytes) -> _Structure:
    position, marker = 2, 0
    while marker != 0xD9:  # end of image
        found = _JPEG_MARKER.search(data, position)
        if found is None:
            raise EOFError
        marker = found.group()[1]
        position = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
    return _Structure()


def _webp_structure(data: bytes) -> _Structure:
    end = 8 + int.from_bytes(data[4:8], "little")
    if end > len(data):
        raise EOFError
    position, seconds = 12, []
    while position + 8 <= end:
        kind, length = struct.unpack_from("<4sI", data, position)
        if position + 8 + length > end:
            raise EOFError
        if kind == b"ANMF":
            milliseconds = int.from_bytes(data[position + 20 : position + 23], "little")
            seconds.append(milliseconds / 1000)
        position += 8 + length + length % 2
    return _Structure(_animation(seconds))


def _gif_structure(data: bytes) -> _Structure:
    frames = parse_gif(data)
    return _Structure(_animation([frame.seconds for frame in frames]), frames)


def _avif_structure(data: bytes) -> _Structure:
    with open_input(io.BytesIO(data)) as container:
        stream = _avif_stream(container)
        context = stream.codec_context
        colors = context.color_primaries, context.color_trc
        packets = [packet for packet in container.demux(stream) if packet.size]
        seconds = [float((packet.duration or 0) * packet.time_base) for packet in packets]
    return _Structure(seconds if len(seconds) > 1 else (), colors=colors)


def _avif_stream(container: av.container.InputContainer) -> av.VideoStream:
    """Returns the animation, else the primary image."""
    return max(container.streams.video, key=lambda stream: stream.frames)


def _bmp_structure(data: bytes) -> _Structure:
    """Finds alpha in the fourth byte of uncompressed pixels, as FFmpeg does."""
    (offset,), (size,) = struct.unpack_from("<I", data, 10), struct.unpack_from("<I", data, 14)
    if size < 40 or struct.unpack_from("<HI", data, 28) != (32, 0):
        return _Structure()
    width, height = struct.unpack_from("<ii", data, 18)
    shape = abs(height), width, 4
    if min(shape) <= 0 or len(data) < offset + math.prod(shape):
        raise EOFError
    alpha = np.frombuffer(data, np.uint8, math.prod(shape), offset).reshape(shape)[..., 3:]
    return _Structure(alpha=alpha[:: -1 if height > 0 else 1]) if alpha.any() else _Structure()


_STRUCTURES = {
    "BMP": _bmp_structure,
    "PNG": _png_structure,
    "JPEG": _jpeg_structure,
    "WEBP": _webp_structure,
    "GIF": _gif_structure,
    "AVIF": _avif_structure,
}


def _size(image: Image.Image, form: str) -> tuple[int, int]:
    """Returns height and width as displayed."""
    width, height = image.size
    is_turned = form != "TIFF" and _orientation(image, form) >= 5  # Pillow turns TIFF
    return (width, height) if is_turned else (height, width)


def _orientation(image: Image.Image, form: str) -> int:
    """Returns the orientation that Pillow has not applied, 1 to 8 as in EXIF."""
    if form == "HEIF":  # libheif applies the file's transformations; EXIF does not count
        return 1
    try:
        if form == "AVIF":  # Pillow writes the file's transformations to EXIF; XMP does not count
            exif = Image.Exif()
            exif.load(image.info.get("exif", b""))
        else:
            exif = Image.Image.getexif(image)  # PNG's own method decodes the pixels
        orientation = exif.get(ExifTags.Base.Orientation, 1)
        return orientation if orientation in _TRANSPOSE else 1
    except _DECODER_ERRORS:
        return 1  # damaged metadata


def _decode(
    data: bytes, form: str, structure: _Structure, image: Image.Image, name: str
) -> Iterator[np.ndarray]:
    """Yields upright sRGB, `[H, W, 3]` uint8, or `[H, W, 4]` with alpha."""
    if form == "TIFF":
        _check_tiff(image)
    colors = structure.colors or _nclx(image)
    convert = RgbConverter(name)
    is_hdr = colors is not None and colors[1] in HDR_TRANSFERS
    deep_frames = _ffmpeg_frames(data, image) if is_hdr and form == "AVIF" else None

    def to_srgb(frame: Image.Image) -> np.ndarray:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged metadata
            frame.load()
        pixels = _to_rgb(frame, structure.bits)
        if structure.alpha is not None:
            pixels = np.concatenate([pixels[..., :3], structure.alpha], -1)
        if colors and "icc_profile" not in image.info:
            rgb = np.ascontiguousarray(pixels[..., :3])
            video_frame = next(deep_frames or iter([av.VideoFrame.from_ndarray(rgb, "rgb24")]))
            video_frame.color_primaries, video_frame.color_trc = colors
            pixels = np.concatenate([convert(video_frame), pixels[..., 3:]], -1)
        return pixels

    def pillow_frames() -> Iterator[np.ndarray]:
        yield to_srgb(image)
        for index in range(1, len(structure.seconds)):
            image.seek(index)
            yield to_srgb(image)

    def decode_one(content: bytes) -> np.ndarray:
        with Image.open(io.BytesIO(content), formats=[form]) as frame:
            return to_srgb(frame)

    if structure.frames:
        pictures = compose(structure.frames, decode_one, *image.size[::-1])
    else:
        pictures = pillow_frames()
    for pixels in pictures:
        turn = _TRANSPOSE.get(_orientation(image, form))
        yield pixels if turn is None else np.asarray(Image.fromarray(pixels).transpose(turn))


def _ffmpeg_frames(data: bytes, image: Image.Image) -> Iterator[av.VideoFrame]:
    """Yields the frames of an AVIF file with 10 or 12 bits, of which Pillow keeps 8."""
    with open_input(io.BytesIO(data)) as container:
        for frame in container.decode(_avif_stream(container)):
            if (frame.width, frame.height) != image.size:
                raise _UnsupportedError("HDR image of several tiles, expected one tile or SDR")
            yield frame


def _check_tiff(image: Image.Image) -> None:
    """Refuses camera raw files (DNG, NEF, CR2), which start with a preview."""
    is_preview = image.tag_v2.get(_NEW_SUBFILE_TYPE, 0) & 1
    if is_preview or _DNG_VERSION in image.tag_v2:
        raise _UnsupportedError("a camera's raw file, expected a developed picture")


def _nclx(image: Image.Image) -> tuple[int, int] | None:
    """Returns colour primaries and transfer characteristics of a HEIF image, if tagged."""
    nclx = image.info.get("nclx_profile")
    return nclx and (int(nclx["color_primaries"]), int(nclx["transfer_characteristics"]))


def _to_rgb(image: Image.Image, bits: int) -> np.ndarray:
    """Converts pixels of any mode to `[H, W, 3]` uint8 in sRGB, or `[H, W, 4]` with alpha.

    Args:
      image: The decoded image.
      bits: Bits per channel of a PNG file, else 0.
    """
    profile, gamma = image.info.get("icc_profile"), image.info.get("gamma")
    if "srgb" in image.info or profile:
        gamma = None
    key = image.info.get("transparency")
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_8_bits(image)
    elif key is not None and image.mode != "P":
        keys = key if isinstance(key, tuple) else (key,)
        keys = tuple(k >> bits - 8 if bits > 8 else k * 255 // (2 ** (bits or 8) - 1) for k in keys)
        image.info["transparency"] = keys if len(keys) > 1 else keys[0]
    alpha = None
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        is_grey = image.mode in ("1", "L", "LA", "La")
        image = image.convert("RGBA")
        if profile is None and gamma is None:
            return np.asarray(image)
        alpha = np.asarray(image)[..., 3:]
        image = image.getchannel("R") if is_grey else image.convert("RGB")
    converted = None if profile is None else _apply_profile(image, profile)
    pixels = np.asarray(image.convert("RGB") if converted is None else converted)
    if gamma and abs(gamma - 1 / 2.2) > 0.01:
        pixels = _gamma_table(gamma)[pixels]
    return pixels if alpha is None else np.concatenate([pixels, alpha], -1)


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Converts grey levels of more than 8 bits.

    Raises:
      _UnsupportedError: White is not known: signed or 32-bit integers, or floats above 1.
    """
    levels = np.asarray(image)
    white, is_inverted = 65535.0, False
    if image.mode == "F":
        white = 1.0
    elif image.format == "TIFF":
        (depth,) = image.tag_v2.get(_BITS_PER_SAMPLE, (16,))
        white = 2.0**depth - 1 if depth <= 16 else 0.0
        is_inverted = image.tag_v2.get(_PHOTOMETRIC) == 0
    if not 0 <= levels.min() <= levels.max() <= white:
        raise _UnsupportedError(
            f"grey levels {levels.min()} to {levels.max()} of unknown white, "
            "expected 8 or 16 bits, or floats from 0 to 1"
        )
    bright = white - levels if is_inverted else levels
    scaled = np.round(bright * (255 / white)).astype(np.uint8)
    if white > 255 >= bright.max():  # a mask with levels such as 0 and 1
        scaled = np.maximum(scaled, bright > 0)
    result = Image.fromarray(scaled)
    key = image.info.get("transparency")
    if key is not None:
        result.putalpha(Image.fromarray(np.where(levels == key, 0, 255).astype(np.uint8)))
    return result


def _apply_profile(image: Image.Image, profile: bytes) -> Image.Image | None:
    """Converts from an ICC profile to sRGB.

    Returns:
      The converted image. None if the profile is damaged, does not belong to the image's mode or
      is sRGB already.
    """
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}[source.profile.xcolor_space.strip()]
        if mode != image.mode and (mode != "RGB" or image.mode in ("CMYK", "LAB")):
            return None
        target = ImageCms.createProfile("sRGB")
        transform = ImageCms.buildTransform(source, target, mode, "RGB")
        if mode == "RGB" and _is_identity(transform):
            return None
        return ImageCms.applyTransform(image.convert(mode), transform)
    except (ImageCms.PyCMSError, *_DECODER_ERRORS):
        return None


def _is_identity(transform: ImageCms.ImageCmsTransform) -> bool:
    """Returns whether a transform from RGB changes no colour by more than 2 levels."""
    levels = np.linspace(0, 255, 16).astype(np.uint8)
    colors = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(64, 64, 3)
    converted = ImageCms.applyTransform(Image.fromarray(colors), transform)
    return np.abs(np.asarray(converted).astype(int) - colors).max() <= 2


def _gamma_table(gamma: float) -> np.ndarray:
    """Returns sRGB for each level of an image that stores `light ** gamma` (PNG's gAMA)."""
    light = np.linspace(0, 1, 256) ** (1 / gamma)
    encoded = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.round(255 * encoded).astype(np.uint8)
