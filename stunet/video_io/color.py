"""Colours of decoded frames: matrices, high dynamic range, wide gamuts and transparency to sRGB."""

import functools

import av
import numpy as np
from av.filter import Graph
from av.video.reformatter import Interpolation, VideoReformatter

from stunet.errors import UserError
from stunet.video_io.pixels import BACKGROUND, blend

HD_LINES = 720  # untagged video: BT.709 from this height up, BT.601 below

# Values of the tags, from ITU-T H.273.
_UNTAGGED_MATRICES = (0, 2, 3)  # 0 is RGB, which a YCbCr frame cannot be
_MATRIX_709, _MATRIX_601, _MATRIX_2020 = 1, 5, 9
_BT2020 = 9
HDR_TRANSFERS = _PQ, _HLG = 16, 18
_REFERENCE_WHITE = 203.0  # cd/m2 (ITU-R BT.2408): becomes about 240 of 255
_KNEE = 0.75  # linear light, relative to reference white, above which highlights are compressed
_WHITE_D65 = (0.3127, 0.3290)
_BT709 = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
_WIDE_GAMUTS = {  # chromaticities of red, green and blue
    _BT2020: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),  # BT.2020
    11: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),  # DCI P3
    12: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),  # Display P3
}
# Formats that swscale converts exactly without interpolating chroma horizontally, which is slower.
_EXACT = ("yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p", "yuva420p")
_SMALL = 640 * 360  # pixels
_GRID_LEVEL = 8
_GRID = _GRID_LEVEL**2  # points per axis of the colour table


# Attribute of a frame -> its value if the bitstream contains no tag.
UNSPECIFIED = {"colorspace": 2, "color_range": 0, "color_trc": 2, "color_primaries": 2}


class RgbConverter:
    """Converts the frames of one video to sRGB.

    Follows each frame's tags (matrix, range, transfer function, primaries). Tone-maps PQ and HLG,
    converts BT.2020 and P3 primaries to BT.709, and blends transparent pixels over a background.

    Args:
      name: Name of the video, for errors.
      background: Level of the background, 0 to 255.
      container: Decoder of the video before it decodes: has the tags of the container, which apply
        to frames without tags. None if there are none.
      opaque: Ignore the alpha channel.
    """

    def __init__(
        self,
        name: str,
        background: int = BACKGROUND,
        container: av.VideoCodecContext | None = None,
        opaque: bool = False,
    ) -> None:
        self._name, self._background, self._is_opaque = name, background, opaque
        tags = {name: int(getattr(container, name)) for name in UNSPECIFIED} if container else {}
        self._tags = {key: tag for key, tag in tags.items() if tag != UNSPECIFIED[key]}
        self._reformatter = VideoReformatter()
        self._alpha: dict[str, bool] = {}  # name of a pixel format -> whether it stores alpha
        self._tables: dict[tuple[int, int, int, int], _ColorTable] = {}

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        """Returns `[H, W, 3]` uint8.

        Raises:
          UserError: The colours cannot be converted.
        """
        layout, is_rgb = frame.format, frame.format.is_rgb
        for key, tag in self._tags.items():
            if getattr(frame, key) == UNSPECIFIED[key] and not (is_rgb and key == "colorspace"):
                setattr(frame, key, tag)
        if not is_rgb and frame.colorspace in _UNTAGGED_MATRICES:
            frame.colorspace = _default_matrix(frame)
        try:
            picture = self._opaque(frame)
            if not self._is_opaque and self._has_alpha(layout):
                alpha = self._convert(frame, "rgba").to_ndarray()[..., 3:]
                return blend(picture, alpha, self._background)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self._name}: cannot convert colours ({layout.name}, matrix {frame.colorspace}), "
                "expected RGB, BT.601, BT.709, BT.2020 (non-constant luminance) or SMPTE 240M"
            ) from error
        return picture

    def _has_alpha(self, layout: av.VideoFormat) -> bool:
        if layout.name not in self._alpha:
            channels = (component.is_alpha for component in layout.components)
            self._alpha[layout.name] = layout.has_palette or any(channels)
        return self._alpha[layout.name]

    def _opaque(self, frame: av.VideoFrame) -> np.ndarray:
        transfer, primaries = frame.color_trc, frame.color_primaries
        if transfer not in HDR_TRANSFERS and primaries not in _WIDE_GAMUTS:
            return self._convert(frame, "rgb24").to_ndarray()
        key = (int(transfer), int(primaries), frame.width, frame.height)
        if key not in self._tables:
            self._tables[key] = _ColorTable(*key)
        return self._tables[key](self._convert(frame, "rgb48le"))

    def _convert(self, frame: av.VideoFrame, layout: str) -> av.VideoFrame:
        flags = Interpolation.BILINEAR
        # With this flag, swscale writes wrong colours to rgb48le (FFmpeg 8, chroma not neutral).
        if frame.format.name not in _EXACT and not frame.format.is_rgb and layout != "rgb48le":
            flags |= Interpolation.FULL_CHR_H_INT
        # Starting threads takes longer than converting a small frame. 0 uses all CPUs.
        threads = 1 if frame.width * frame.height < _SMALL else 0
        return self._reformatter.reformat(
            frame, format=layout, interpolation=int(flags), threads=threads
        )


def _default_matrix(frame: av.VideoFrame) -> int:
    if frame.color_trc in HDR_TRANSFERS or frame.color_primaries == _BT2020:
        return _MATRIX_2020
    return _MATRIX_709 if frame.height >= HD_LINES else _MATRIX_601


class _ColorTable:
    """Applies a table of colours to frames of one size, with FFmpeg's filter `haldclut`."""

    def __init__(self, transfer: int, primaries: int, width: int, height: int) -> None:
        table = _color_table(transfer, primaries)
        self._graph = Graph()
        buffer = "pix_fmt=rgb48le:time_base=1/1:pixel_aspect=1/1"
        self._input = self._graph.add("buffer", f"video_size={width}x{height}:{buffer}")
        side = _GRID_LEVEL**3
        table_input = self._graph.add("buffer", f"video_size={side}x{side}:{buffer}")
        lookup = self._graph.add("haldclut", "interp=tetrahedral")
        self._output = self._graph.add("buffersink")
        self._input.link_to(lookup, 0, 0)
        table_input.link_to(lookup, 0, 1)
        lookup.link_to(self._output)
        self._graph.configure()
        frame = av.VideoFrame.from_ndarray(table, format="rgb48le")
        frame.pts = 0
        table_input.push(frame)
        table_input.push(None)
        self._count = 0

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        """Maps an rgb48le frame to `[H, W, 3]` uint8."""
        frame.pts, self._count = self._count, self._count + 1
        self._input.push(frame)
        return self._output.pull().to_ndarray(format="rgb24")


@functools.cache
def _color_table(transfer: int, primaries: int) -> np.ndarray:
    """Returns sRGB for a grid of colours, as the uint16 image that `haldclut` expects."""
    axis = np.linspace(0.0, 1.0, _GRID)
    blue, green, red = np.meshgrid(axis, axis, axis, indexing="ij")
    mapped = to_srgb(np.stack([red, green, blue], -1), transfer, primaries)
    side = _GRID_LEVEL**3
    return np.round(mapped.reshape(side, side, 3) * 65535).astype(np.uint16)


def to_srgb(colors: np.ndarray, transfer: int, primaries: int) -> np.ndarray:
    """Converts colours to sRGB.

    HDR is scaled so that reference white (203 cd/m2, ITU-R BT.2408) is 1 in linear light. Colours
    up to 0.75 of it keep their brightness; brighter ones are compressed into the rest of the range,
    so that reference white becomes 240 of 255.

    Args:
      colors: `[..., 3]` nonlinear RGB in [0, 1].
      transfer: Transfer characteristics (ITU-T H.273): 16 is PQ, 18 is HLG; others are taken for
        sRGB, so that greys do not change.
      primaries: Colour primaries (ITU-T H.273). Untagged HDR is BT.2020.

    Returns:
      `[..., 3]` in [0, 1].
    """
    is_hdr = transfer in HDR_TRANSFERS
    tagged = _BT2020 if is_hdr and primaries == 2 else primaries
    gamut = _WIDE_GAMUTS.get(tagged, _BT709)
    if transfer == _PQ:
        linear = _pq_to_linear(colors)
    elif transfer == _HLG:
        linear = _hlg_to_linear(colors)
    else:
        linear = np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
    linear = linear @ (np.linalg.inv(_xyz_from_rgb(_BT709)) @ _xyz_from_rgb(gamut)).T
    if is_hdr:
        brightest = np.maximum(linear.max(-1, keepdims=True), 1e-6)
        above = np.maximum(brightest - _KNEE, 0) / (1 - _KNEE)
        compressed = _KNEE + (1 - _KNEE) * above / (1 + above)
        linear = np.where(brightest > _KNEE, linear * (compressed / brightest), linear)
    linear = linear.clip(0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def _pq_to_linear(colors: np.ndarray) -> np.ndarray:
    """SMPTE ST 2084, relative to reference white."""
    m1, m2, c1, c2, c3 = 0.1593017578125, 78.84375, 0.8359375, 18.8515625, 18.6875
    power = colors ** (1 / m2)
    return 10000 / _REFERENCE_WHITE * (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1)


def _hlg_to_linear(colors: np.ndarray) -> np.ndarray:
    """ITU-R BT.2100 for a display of 1000 cd/m2, relative to reference white."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = np.where(colors <= 0.5, colors**2 / 3, (np.exp((colors - c) / a) + b) / 12)
    luminance = scene @ np.array([0.2627, 0.6780, 0.0593])
    return 1000 / _REFERENCE_WHITE * scene * luminance[..., None] ** 0.2


def _xyz_from_rgb(primaries: tuple[tuple[float, float], ...]) -> np.ndarray:
    """Returns the matrix from linear RGB to CIE XYZ, with white D65."""
    to_xyz = [np.array([x / y, 1.0, (1 - x - y) / y]) for x, y in (*primaries, _WHITE_D65)]
    matrix = np.stack(to_xyz[:3], -1)
    return matrix * np.linalg.solve(matrix, to_xyz[3])
