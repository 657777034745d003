"""Reading videos as players display them: one class of inputs per section."""

import io
import itertools
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from av.bitstream import BitStreamFilterContext
from av.stream import Disposition
from PIL import Image

from stunet import video_io
from stunet.errors import UserError
from stunet.video_io.color import RgbConverter, to_srgb
from stunet.video_io.completeness import check_complete
from stunet.video_io.reading import constant_rate

MS = Fraction(1, 1000)


def frame_of(pixels, pix_fmt="yuv420p"):
    source = "rgba" if pixels.shape[-1] == 4 else "rgb24"
    return av.VideoFrame.from_ndarray(pixels, format=source).reformat(format=pix_fmt)


def write(path, frames, codec="libx264", fps=25, stamps=None, audio=None, **settings):
    """Writes frames; `stamps` are in milliseconds; `audio` is a number of AAC packets."""
    options, codec_options, tags = (
        settings.get(k, {}) for k in ("options", "codec_options", "tags")
    )
    with av.open(str(path), "w", options=options, format=settings.get("format")) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height = frames[0].width, frames[0].height
        stream.pix_fmt = frames[0].format.name
        stream.options = codec_options
        for name, value in tags.items():
            setattr(stream.codec_context, name, value)
        if "matrix" in settings:
            stream.set_display_matrix(settings["matrix"])
        if "metadata" in settings:
            stream.metadata.update(settings["metadata"])
        if stamps:
            stream.codec_context.time_base = MS
        sound = container.add_stream("aac", rate=48000) if audio else None
        for index in range(audio or 0):
            piece = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), "fltp", "stereo")
            piece.sample_rate, piece.pts = 48000, index * 1024
            piece.time_base = Fraction(1, 48000)
            container.mux(sound.encode(piece))
        if sound:
            container.mux(sound.encode())
        for index, frame in enumerate(frames):
            if stamps:
                frame.pts, frame.time_base = stamps[index], MS
            else:
                frame.pts, frame.time_base = index, 1 / Fraction(fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def grey(level, size=(32, 32)):
    return np.full((*size, 3), level, np.uint8)


def counted(count, **kwargs):
    """Frames whose level tells their number."""
    return [frame_of(grey(20 + 5 * index), **kwargs) for index in range(count)]


def numbers(path, fps=None, **kwargs):
    """Returns the numbers of `counted` frames that reading yields, and the frame rate."""
    video, rate = video_io.read_video(path, fps, 8, **kwargs)
    return np.round(((video.mean((1, 2, 3)) + 1) * 127.5 - 20) / 5).astype(int).tolist(), rate


def first_pixels(path, *places):
    """Returns the 8-bit colours at (row, column) places of the first frame."""
    frame = np.round((video_io.read_video(path, max_frames=1)[0][0] + 1) * 127.5).astype(int)
    return [frame[place].tolist() for place in places]


def noise(count, size=(48, 64)):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), np.uint8) for _ in range(count)]


# Orientation ------------------------------------------------------------------------------------

# (a, b, c, d) of the display matrix: column p, row q go to column a p + c q, row b p + d q. With
# the displayed quadrants (row by row) of a picture of red, green, blue and white quadrants.
ORIENTATIONS = {
    (1, 0, 0, 1): "rgbw",
    (-1, 0, 0, 1): "grwb",
    (-1, 0, 0, -1): "wbgr",
    (1, 0, 0, -1): "bwrg",
    (0, 1, 1, 0): "rbgw",
    (0, 1, -1, 0): "brwg",
    (0, -1, -1, 0): "wgbr",
    (0, -1, 1, 0): "gwrb",
}
COLORS = {"r": (255, 0, 0), "g": (0, 255, 0), "b": (0, 0, 255), "w": (255, 255, 255)}


def quadrants():
    picture = np.zeros((32, 64, 3), np.uint8)
    for name, (row, column) in zip("rgbw", ((0, 0), (0, 1), (1, 0), (1, 1)), strict=True):
        picture[16 * row : 16 * row + 16, 32 * column : 32 * column + 32] = COLORS[name]
    return picture


def seen_quadrants(path):
    frame = video_io.read_video(path)[0][0]
    height, width = frame.shape[:2]
    places = ((y, x) for y in (height // 4, 3 * height // 4) for x in (width // 4, 3 * width // 4))
    targets = np.array(list(COLORS.values())) / 127.5 - 1
    seen = [np.abs(targets - frame[place]).sum(-1).argmin() for place in places]
    return "".join("rgbw"[index] for index in seen), (height, width)


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mov", "clip.mkv", "clip.webm"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_orientation_in_the_container(tmp_path, name, orientation):
    a, b, c, d = (value << 16 for value in orientation)
    path = tmp_path / name
    codec = "libvpx-vp9" if name.endswith("webm") else "libx264"
    frames = [frame_of(quadrants()) for _ in range(3)]
    write(path, frames, codec, matrix=[a, b, 0, c, d, 0, 0, 0, 1 << 30])
    size = (64, 32) if a == 0 else (32, 64)
    assert seen_quadrants(path) == (ORIENTATIONS[orientation], size)
    assert video_io.frame_size(path) == size
    info = video_io.probe(path)
    assert (info.height, info.width, info.num_frames) == (*size, 3)


@pytest.mark.parametrize(
    ("rotate", "flip", "expected"),
    [
        (90, None, "gwrb"),  # anticlockwise
        (180, None, "wbgr"),
        (270, None, "brwg"),
        (0, "horizontal", "grwb"),
        (0, "vertical", "bwrg"),
    ],
)
def test_orientation_in_the_bitstream(tmp_path, rotate, flip, expected):
    write(tmp_path / "plain.mkv", [frame_of(quadrants()) for _ in range(3)])
    settings = f"display_orientation=insert:rotate={rotate}" + (f":flip={flip}" if flip else "")
    path = tmp_path / "turned.mkv"
    with av.open(str(tmp_path / "plain.mkv")) as source, av.open(str(path), "w") as target:
        bitstream = BitStreamFilterContext(f"h264_metadata={settings}", source.streams.video[0])
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            for changed in bitstream.filter(packet if packet.size else None):
                changed.stream = stream
                target.mux(changed)
    assert seen_quadrants(path)[0] == expected


# Transparency -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [
        ("rle.mov", "qtrle", "argb"),
        ("png.mov", "png", "rgba"),
        ("prores.mov", "prores_ks", "yuva444p10le"),
        ("ffv1.mkv", "ffv1", "bgra"),
        ("ffv1.avi", "ffv1", "yuva420p"),
        ("ffv1_10.mkv", "ffv1", "gbrap10le"),
        ("huffyuv.avi", "ffvhuff", "rgb32"),
        ("utvideo.avi", "utvideo", "gbrap"),
        ("raw.nut", "rawvideo", "rgba"),
        ("grey.nut", "png", "ya8"),
        ("vp9.webm", "libvpx-vp9", "yuva420p"),
    ],
)
def test_transparency_is_blended_over_white(tmp_path, name, codec, pix_fmt):
    picture = np.zeros((32, 48, 4), np.uint8)
    picture[..., 0] = 255  # red everywhere
    picture[:, :16, 3], picture[:, 16:32, 3] = 255, 128
    if pix_fmt == "ya8":
        picture[..., :3] = 0
    path = tmp_path / name
    metadata = {"alpha_mode": "1"} if name.endswith("webm") else {}
    write(path, [frame_of(picture, pix_fmt) for _ in range(3)], codec, metadata=metadata)
    opaque, half, hidden = first_pixels(path, (8, 4), (8, 24), (8, 44))
    red = 0 if pix_fmt == "ya8" else 255
    np.testing.assert_allclose(opaque, (red, 0, 0), atol=3)
    np.testing.assert_allclose(half, (255 if red else 127, 127, 127), atol=4)
    np.testing.assert_allclose(hidden, (255, 255, 255), atol=3)
    assert len(video_io.read_video(path, 25)[0]) == 3


def test_transparent_palettes_are_blended_over_white(tmp_path):
    image = Image.new("P", (32, 32), 1)
    image.putpalette([0, 0, 255, 255, 0, 0])
    image.paste(0, (0, 0, 16, 32))
    buffer = io.BytesIO()
    image.save(buffer, "png", transparency=1)
    path = tmp_path / "palette.mov"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("png", rate=8)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "pal8"
        packet = av.Packet(buffer.getvalue())
        packet.stream, packet.pts, packet.dts = stream, 0, 0
        packet.time_base, packet.duration, packet.is_keyframe = Fraction(1, 8), 1, True
        container.mux(packet)
    assert first_pixels(path, (4, 4), (4, 28)) == [[0, 0, 255], [255, 255, 255]]


def test_raw_avi_has_no_transparency(tmp_path):
    picture = np.zeros((32, 32, 4), np.uint8)
    picture[..., 0] = 200
    write(tmp_path / "a.avi", [frame_of(picture, "bgra")], "rawvideo")
    assert first_pixels(tmp_path / "a.avi", (8, 8)) == [[200, 0, 0]]


# Colours ----------------------------------------------------------------------------------------

PQ, HLG, BT2020, BT709, UNTAGGED = 16, 18, 9, 1, 2
HDR_TAGS = {"colorspace": BT2020, "color_primaries": BT2020, "color_range": 1}


def ycbcr(luma, cb=512, cr=512, pix_fmt="yuv420p10le", size=(32, 32)):
    """Frame of one colour in limited-range 10-bit codes."""
    frame = av.VideoFrame(size[1], size[0], pix_fmt)
    for plane, value in zip(frame.planes, (luma, cb, cr), strict=True):
        wide = "10" in pix_fmt
        count = plane.buffer_size // 2 if wide else plane.buffer_size
        plane.update(np.full(count, value, np.uint16 if wide else np.uint8).tobytes())
    return frame


def limited(percent):
    return round(64 + 876 * percent / 100)


def write_tagged(path, frames, tags, where):
    """Stores tags in the container alone (FFV1 has none), in the bitstream alone, or in both."""
    if where == "container":
        write(path.with_suffix(".mkv"), frames, "ffv1", tags=tags)
        return path.with_suffix(".mkv")
    quiet = {"x265-params": "log-level=none:lossless=1"}
    ending = ".ts" if where == "bitstream" else ".mp4"
    write(path.with_suffix(ending), frames, "libx265", tags=tags, codec_options=quiet)
    return path.with_suffix(ending)


@pytest.mark.parametrize("where", ["container", "bitstream", "both"])
@pytest.mark.parametrize(("transfer", "white"), [(PQ, 58), (HLG, 75)])
def test_hdr_reference_white_is_white(tmp_path, transfer, white, where):
    percents = [0, 10, 20, 30, 40, 50, 58, 65, 75, 90, 100]
    frames = [ycbcr(limited(percent)) for percent in percents]
    path = write_tagged(tmp_path / "hdr", frames, HDR_TAGS | {"color_trc": transfer}, where)
    video = np.round((video_io.read_video(path)[0][:, 8, 8] + 1) * 127.5).astype(int)
    assert (np.ptp(video, axis=1) <= 1).all()  # neutral
    levels = video[:, 1]
    assert (np.diff(levels) >= 0).all() and levels[0] == 0 and levels[-1] >= 252
    assert 235 <= levels[percents.index(white)] <= 250
    # ITU-R BT.2408: 18 % grey is PQ 38 %, HLG 38 %; sRGB 118.
    assert 95 < np.interp(38, percents, levels) < 130
    assert levels[percents.index(white)] < levels[-1]  # highlights are not all clipped


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [
        ("a.mp4", "libx264", "yuv420p10le"),
        ("a.mkv", "libsvtav1", "yuv420p10le"),
        ("a.mov", "libx265", "yuv444p10le"),
        ("b.mov", "prores_ks", "yuv422p10le"),  # its frames say "unspecified"
    ],
)
@pytest.mark.parametrize(("transfer", "white"), [(PQ, 58), (HLG, 75)])
def test_hdr_of_other_codecs(tmp_path, name, codec, pix_fmt, transfer, white):
    frames = [ycbcr(limited(percent), pix_fmt=pix_fmt) for percent in (0, white, 100)]
    options = {"x265-params": "log-level=none:bframes=0"} if codec == "libx265" else {}
    tags = HDR_TAGS | {"color_trc": transfer}
    write(tmp_path / name, frames, codec, tags=tags, codec_options=options)
    levels = (video_io.read_video(tmp_path / name)[0][:, 8, 8] + 1) * 127.5
    np.testing.assert_allclose(levels, np.repeat([[0], [240], [254]], 3, 1), atol=2)


def test_dolby_vision_alone_is_refused(tmp_path):
    path, options = tmp_path / "a.mp4", {"x265-params": "log-level=none:bframes=0"}
    for tags, is_refused in (({}, True), (HDR_TAGS | {"color_trc": PQ}, False)):
        write(path, [ycbcr(500), ycbcr(500)], "libx265", tags=tags, codec_options=options)
        content = path.read_bytes()
        assert content.count(b"hev1") == 1
        path.write_bytes(content.replace(b"hev1", b"dvh1"))
        if is_refused:
            with pytest.raises(UserError, match=r"a\.mp4: .*Dolby Vision"):
                video_io.read_video(path)
        else:
            assert len(video_io.read_video(path)[0]) == 2


def test_hdr_colours(tmp_path):
    # BT.709 red, green and blue at 100 cd/m2 in PQ with BT.2020 primaries: from the definitions.
    to_2020 = np.array(
        [[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]]
    )
    for color in np.eye(3):
        light = to_2020 @ color * 100 / 10000
        power = light**0.1593017578125
        pq = ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375
        # 100 of 203 cd/m2 is sRGB 187.
        mapped = to_srgb(pq, PQ, BT2020) * 255
        np.testing.assert_allclose(mapped, 187 * color, atol=2.5)
        frame = av.VideoFrame.from_ndarray(
            np.broadcast_to(np.round(pq * 65535).astype(np.uint16), (32, 32, 3)).copy(), "rgb48le"
        )
        path = tmp_path / "color.mkv"
        tags = {"color_trc": PQ, "color_primaries": BT2020}
        write(path, [frame.reformat(format="gbrp10le")], "ffv1", tags=tags)
        seen = np.array(first_pixels(path, (8, 8))[0])
        # Half a 10-bit code of a saturated colour is up to 10 in the channels near 0.
        np.testing.assert_allclose(seen, mapped, atol=20)
        assert abs(seen.max() - 187) <= 4


def test_hdr_ramps_have_no_bands(tmp_path):
    for transfer in (PQ, HLG):
        codes = np.linspace(0, 1, 1024)
        levels = to_srgb(np.repeat(codes[:, None], 3, 1), transfer, BT2020)[:, 1] * 255
        assert (np.diff(levels) >= 0).all() and np.diff(levels).max() < 1.0


def test_wide_gamut_without_hdr(tmp_path):
    # Greys keep their levels; BT.709 red in BT.2020 coordinates becomes red.
    frames = [ycbcr(limited(percent)) for percent in (0, 50, 100)]
    path = tmp_path / "grey.mkv"
    write(path, frames, "ffv1", tags=HDR_TAGS | {"color_trc": 14})
    levels = (video_io.read_video(path)[0][:, 8, 8] + 1) * 127.5
    np.testing.assert_allclose(levels, np.repeat([[0], [127.5], [255]], 3, 1), atol=1.1)
    red = np.array([0.6274, 0.0691, 0.0164])
    coded = np.where(red > 0.0031308, 1.055 * red ** (1 / 2.4) - 0.055, 12.92 * red)
    np.testing.assert_allclose(to_srgb(coded, 14, BT2020), (1, 0, 0), atol=0.02)
    display_p3_white = to_srgb(np.ones(3), 13, 12)
    np.testing.assert_allclose(display_p3_white, 1, atol=1e-3)


# Luma and chroma of a colour, and its RGB by the matrix.
@pytest.mark.parametrize(
    ("size", "matrix", "color_range", "expected"),
    [
        ((576, 64), UNTAGGED, 0, (235, 76, 44)),  # BT.601
        ((480, 64), UNTAGGED, 0, (235, 76, 44)),
        ((720, 64), UNTAGGED, 0, (250, 90, 40)),  # BT.709
        ((1080, 64), UNTAGGED, 0, (250, 90, 40)),
        ((64, 1280), UNTAGGED, 0, (235, 76, 44)),
        ((720, 64), 6, 1, (235, 76, 44)),  # tags win
        ((64, 64), BT709, 1, (250, 90, 40)),
        ((64, 64), 7, 1, (250, 90, 42)),  # SMPTE 240M
        ((64, 64), BT2020, 1, (241, 81, 39)),
        ((64, 64), BT709, 2, (233, 93, 49)),  # full range
        ((720, 64), UNTAGGED, 2, (233, 93, 49)),
    ],
)
def test_colour_tags(tmp_path, size, matrix, color_range, expected):
    path = tmp_path / "clip.mkv"
    tags = {"colorspace": matrix, "color_range": color_range}
    frame = ycbcr(120, 90, 200, "yuv420p", size)
    frame.colorspace, frame.color_range = matrix, color_range
    write(path, [frame], "ffv1", tags=tags)
    np.testing.assert_allclose(first_pixels(path, (8, 8))[0], expected, atol=2)


@pytest.mark.parametrize("matrix", [8, 10, 14])  # YCgCo, BT.2020 constant luminance, ICtCp
def test_unsupported_matrices_are_refused(tmp_path, matrix):
    path = tmp_path / "clip.mkv"
    frame = ycbcr(120, 90, 200, "yuv420p")
    write(path, [frame], "ffv1", tags={"colorspace": matrix, "color_range": 1})
    with pytest.raises(UserError, match=rf"clip\.mkv: .*matrix {matrix}\b"):
        video_io.read_video(path)


@pytest.mark.parametrize(
    ("codec", "pix_fmt"),
    [("utvideo", "gbrp"), ("ffv1", "bgr0"), ("rawvideo", "rgb24"), ("libx264rgb", "bgr24")],
)
def test_rgb_is_not_converted(tmp_path, codec, pix_fmt):
    path = tmp_path / "rgb.nut"
    write(path, [frame_of(np.full((720, 16, 3), (200, 100, 50), np.uint8), pix_fmt)], codec)
    np.testing.assert_allclose(first_pixels(path, (8, 8))[0], (200, 100, 50), atol=1)


def coded(color, pix_fmt, red, blue):
    """Frame of one RGB colour in limited-range codes, by the matrix's weights of red and blue."""
    frame = av.VideoFrame(32, 32, pix_fmt)
    bits = frame.format.components[0].bits
    luma = red * color[0] + (1 - red - blue) * color[1] + blue * color[2]
    cb, cr = (color[2] - luma) / (1 - blue), (color[0] - luma) / (1 - red)
    scale = 2.0 ** (bits - 8 + (6 if pix_fmt == "p010le" else 0))
    y, u, v = np.round(np.array([16 + 219 * luma, 128 + 112 * cb, 128 + 112 * cr]) * scale)
    planes = {"nv12": [[y], [u, v]], "p010le": [[y], [u, v]], "yuyv422": [[y, u, y, v]]}
    dtype = np.uint8 if bits == 8 else np.uint16
    for plane, codes in zip(frame.planes, planes.get(pix_fmt, [[y], [u], [v]]), strict=True):
        count = plane.buffer_size // np.dtype(dtype).itemsize
        plane.update(np.resize(np.array(codes, dtype), count).tobytes())
    return frame


@pytest.mark.parametrize(
    "pix_fmt",
    [
        *("yuv420p", "yuv422p", "yuv444p", "nv12", "yuyv422", "yuv411p"),
        *("yuv420p10le", "yuv422p10le", "yuv444p12le", "yuv444p16le", "p010le"),
    ],
)
def test_colours_of_all_layouts(pix_fmt):
    convert = RgbConverter("clip")
    for color in (*np.eye(3), (0.8, 0.4, 0.2), (0, 0, 0), (0.5, 0.5, 0.5), (1, 1, 1)):
        frame = coded(color, pix_fmt, 0.2126, 0.0722)
        frame.colorspace, frame.color_range = BT709, 1
        np.testing.assert_allclose(convert(frame)[8, 8], np.array(color) * 255, atol=2)
        pq = np.array(color) * 0.4 + 0.15
        frame = coded(pq, pix_fmt, 0.2627, 0.0593)
        frame.colorspace, frame.color_range = BT2020, 1
        frame.color_trc, frame.color_primaries = PQ, BT2020
        expected = to_srgb(pq, PQ, BT2020) * 255
        atol = 2.5 if frame.format.components[0].bits > 8 else 10  # HDR in 8 bits is coarse
        np.testing.assert_allclose(convert(frame)[8, 8], expected, atol=atol)


# Truncated and damaged files --------------------------------------------------------------------

FRAGMENTED = {"movflags": "frag_keyframe+empty_moov"}
CONTAINERS = [
    ("fast.mp4", "libx264", {"options": {"movflags": "faststart"}}),
    ("late.mp4", "libx264", {}),
    ("audio.mp4", "libx264", {"options": {"movflags": "faststart"}, "audio": 30}),
    ("fragmented.mp4", "libx264", {"options": FRAGMENTED, "codec_options": {"g": "8"}}),
    ("prores.mov", "prores_ks", {"options": {"movflags": "faststart"}, "pix_fmt": "yuv422p10le"}),
    ("clip.3gp", "mpeg4", {}),
    ("clip.mkv", "libx264", {"audio": 30}),
    ("live.mkv", "libx264", {"options": {"live": "1"}}),
    ("clip.webm", "libvpx-vp9", {}),
    ("live.webm", "libvpx", {"options": {"live": "1"}}),
    ("clip.avi", "mpeg4", {}),
    ("jpeg.avi", "mjpeg", {"pix_fmt": "yuvj420p"}),
    ("raw.avi", "rawvideo", {"pix_fmt": "bgr24"}),
    ("clip.ts", "libx264", {"audio": 30}),
    ("mpeg2.ts", "mpeg2video", {}),
    ("clip.m2ts", "libx264", {}),
    ("clip.mpg", "mpeg1video", {}),
    ("clip.vob", "mpeg2video", {}),
    ("clip.flv", "libx264", {}),
    ("sorenson.flv", "flv", {}),
    ("clip.ogv", "libvpx", {"format": "ogg"}),
    ("clip.y4m", "rawvideo", {}),
    ("clip.wmv", "wmv2", {}),
    ("clip.asf", "libx264", {"format": "asf"}),
    ("clip.mxf", "mpeg2video", {}),
    ("clip.ivf", "libvpx", {}),
]


def is_refused(path):
    try:
        video_io.read_video(path, None, 8)
    except UserError as error:
        return path.name in str(error) and "\n" not in str(error)
    return False


@pytest.mark.parametrize(("name", "codec", "settings"), CONTAINERS, ids=[c[0] for c in CONTAINERS])
def test_truncated_files_are_refused(tmp_path, name, codec, settings):
    path, settings = tmp_path / name, dict(settings)
    pix_fmt = settings.pop("pix_fmt", "yuv420p")
    write(path, [frame_of(pixels, pix_fmt) for pixels in noise(24)], codec, **settings)
    content = path.read_bytes()
    assert len(video_io.read_video(path, None, 8)[0]) == 24
    accepted = []
    # 7 bytes less, so that no cut is between two pictures of a transport stream.
    for size in (*(int(len(content) * part) - 7 for part in (0.3, 0.5, 0.6, 0.8, 0.95)), -301):
        cut = tmp_path / f"cut_{name}"
        cut.write_bytes(content[:size])
        if not is_refused(cut):
            accepted.append(size)
        with pytest.raises(UserError, match=rf"cut_{name}: "):  # files that are open, too
            video_io.read_video(io_named(cut), 8, 8)
    assert not accepted


def test_transport_streams_cut_between_packets(tmp_path):
    path = tmp_path / "a.ts"
    write(path, [frame_of(pixels) for pixels in noise(12)], codec_options={"g": "6"})
    content = path.read_bytes()
    cuts = [content[: -188 * count] for count in range(1, 31)]
    refused = 0
    for cut in cuts:
        path.write_bytes(cut)
        refused += is_refused(path)
    # The others end between two pictures, or in a slice that decodes nevertheless.
    assert refused > 0.6 * len(cuts)


def io_named(path):
    buffer = io.BytesIO(path.read_bytes())
    buffer.name = path.name
    return buffer


@pytest.mark.parametrize(
    "tail", [bytes(1000), b"no element, " * 40, b"\x00\x00\x00\x10freexxxxxxxx"]
)
def test_data_behind_the_last_element_is_ignored(tmp_path, tail):
    for name, codec in (("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.avi", "ffv1")):
        path = tmp_path / name
        write(path, counted(6), codec)
        path.write_bytes(path.read_bytes() + tail)
        assert numbers(path)[0] == list(range(6))


def test_transport_streams_may_end_with_other_data(tmp_path):
    path = tmp_path / "clip.ts"
    write(path, counted(6), "libx264")
    path.write_bytes(path.read_bytes() + bytes(100))
    assert numbers(path)[0] == list(range(6))


def test_files_that_cannot_seek_are_not_checked():
    class Pipe(io.BytesIO):
        def seekable(self):
            return False

    check_complete(Pipe(b"\x00\x00\x10\x00ftypisom"), "pipe")
    with pytest.raises(UserError, match=r"clip: .*12 bytes"):
        check_complete(io.BytesIO(b"\x00\x00\x10\x00ftypisom"), "clip")


@pytest.mark.parametrize("audio", [5, 200])
def test_audio_may_be_shorter_or_longer(tmp_path, audio):
    for name in ("a.mp4", "a.mkv", "a.ts", "a.flv"):
        write(tmp_path / name, counted(20), audio=audio)
        assert numbers(tmp_path / name) == (list(range(20)), 25.0)


def test_streams_may_start_between_key_frames(tmp_path):
    for name, codec in (("a.ts", "libx264"), ("b.ts", "mpeg2video")):
        path = tmp_path / name
        write(path, counted(24), codec, codec_options={"g": "8", "bf": "0"})
        content = path.read_bytes()
        packets = len(content) // 188
        path.write_bytes(content[packets // 4 * 188 :])
        seen = numbers(path)[0]
        assert seen[-1] == 23 and seen == list(range(seen[0], 24)) and len(seen) >= 8


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [
        ("a.avi", "mpeg4", "yuv420p"),
        ("b.avi", "mjpeg", "yuvj420p"),
        ("a.vob", "mpeg2video", "yuv420p"),
        ("a.mov", "png", "rgb24"),
        ("b.mov", "prores_ks", "yuv422p10le"),
    ],
)
def test_damaged_frames_are_refused(tmp_path, name, codec, pix_fmt):
    path = tmp_path / name
    write(path, [frame_of(pixels, pix_fmt) for pixels in noise(16)], codec)
    with av.open(str(path)) as container:
        packets = [p for p in container.demux(video=0) if p.size]
        payload = bytes(packets[8])
    content = path.read_bytes()
    start = content.index(payload) + len(payload) // 4
    scrambled = np.random.default_rng(0).integers(0, 256, len(payload) // 2, np.uint8).tobytes()
    path.write_bytes(content[:start] + scrambled + content[start + len(scrambled) :])
    for fps in (None, 8):
        with pytest.raises(UserError, match=rf"{name}: "):
            video_io.read_video(path, fps, 8)


# Covers -----------------------------------------------------------------------------------------


def write_with_cover(path, *, marked=True, first=True, video=True, audio=False):
    buffer = io.BytesIO()
    Image.new("RGB", (80, 80), (255, 0, 0)).save(buffer, "jpeg")

    def add_cover(container):
        stream = container.add_stream("mjpeg", rate=1)
        stream.width, stream.height, stream.pix_fmt = 80, 80, "yuvj420p"
        if marked:
            stream.disposition = Disposition.attached_pic
        return stream

    with av.open(str(path), "w", format="mp4" if path.suffix == ".m4a" else None) as container:
        cover = add_cover(container) if first else None
        if video:
            stream = container.add_stream("libx264", rate=8)
            stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        if audio:
            sound = container.add_stream("aac", rate=48000)
        cover = cover or add_cover(container)
        packet = av.Packet(buffer.getvalue())
        packet.stream, packet.pts, packet.dts = cover, 0, 0
        packet.time_base, packet.duration, packet.is_keyframe = MS, 1000, True
        container.mux(packet)
        if audio:
            piece = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), "fltp", "stereo")
            piece.sample_rate = 48000
            container.mux(sound.encode(piece))
            container.mux(sound.encode())
        if video:
            for frame in counted(6):
                container.mux(stream.encode(frame))
            container.mux(stream.encode())


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    ("name", "marked"),
    [("a.mp4", True), ("a.mp4", False), ("a.mov", False), ("a.mkv", False), ("a.avi", False)],
)
def test_covers_are_skipped(tmp_path, name, first, marked):
    path = tmp_path / name
    write_with_cover(path, first=first, marked=marked)
    with av.open(str(path)) as container:
        assert len(container.streams.video) == 2
    assert numbers(path) == (list(range(6)), 8.0)
    assert video_io.frame_size(path) == (32, 32)
    assert video_io.probe(path).num_frames == 6


def test_attachments_are_skipped(tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (80, 80), (255, 0, 0)).save(buffer, "jpeg")
    path = tmp_path / "clip.mkv"
    with av.open(str(path), "w") as container:
        container.add_attachment("cover.jpg", "image/jpeg", buffer.getvalue())
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for frame in counted(6):
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert numbers(path) == (list(range(6)), 8.0)


def test_a_cover_alone_is_no_video(tmp_path):
    write_with_cover(tmp_path / "song.m4a", video=False, audio=True)
    for read in (video_io.read_video, video_io.probe, video_io.frame_size):
        with pytest.raises(UserError, match=r"song\.m4a: .*no video stream"):
            read(tmp_path / "song.m4a")


# Times ------------------------------------------------------------------------------------------


def edit(path, first, count):
    """Sets the edit list of a 25 fps file: `count` frames from the frame `first`."""
    with av.open(str(path)) as container:
        ticks = int(Fraction(first, 25) / container.streams.video[0].time_base)
    content = bytearray(path.read_bytes())
    place = content.index(b"elst") + 12
    _, media_time = struct.unpack_from(">Ii", content, place)
    struct.pack_into(">Ii", content, place, 40 * count, media_time + ticks)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("first", "count"), [(0, 20), (5, 25), (15, 15), (19, 13), (38, 2), (3, 37), (1, 38)]
)
@pytest.mark.parametrize("name", ["clip.mp4", "clip.mov"])
def test_edit_lists(tmp_path, name, first, count):
    path = tmp_path / name
    write(path, counted(40), codec_options={"g": "10", "bf": "2"})
    edit(path, first, count)
    expected = list(range(first, first + count))
    assert numbers(path) == (expected, 25.0)
    assert numbers(path, 25)[0] == expected
    assert video_io.probe(path).num_frames == count


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.ts"])
def test_the_first_frame_is_held_until_a_late_video_starts(tmp_path, name):
    # An empty edit in MP4. The audio starts at 0.
    path = tmp_path / name
    write(path, counted(20), stamps=[1000 + 40 * index for index in range(20)], audio=60)
    # AAC in a transport stream starts 21 ms earlier.
    seen, _ = numbers(path, 25)
    assert seen[-45:] == [0] * 26 + list(range(1, 20)) and len(seen) <= 46
    seen, seconds = pictures_at(path, [0, 0.5, 1.02, 1.07, 1.39, 1.79])
    assert seen == [0, 0, 0, 1, 9, 19] and seconds == pytest.approx(1.8, abs=0.05)


def pictures_at(path, times):
    seen, rate = numbers(path)
    return [seen[min(len(seen) - 1, int(time * rate))] for time in times], len(seen) / rate


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4", "a.mov", "a.webm", "a.nut"])
@pytest.mark.parametrize(
    "stamps",
    [[0, 30, 60, 90, 600], [0, 40, 120, 160, 240, 280], [0, 100, 300, 400], [0, 500, 540, 580]],
)
def test_uneven_times_are_kept(tmp_path, name, stamps):
    path = tmp_path / name
    codec = "libvpx-vp9" if name == "a.webm" else "libx264"
    write(
        path,
        counted(len(stamps)),
        codec,
        stamps=stamps,
        codec_options={"bf": "0"} if codec == "libx264" else {},
    )
    middles = [(a + b) / 2000 for a, b in itertools.pairwise(stamps)]
    seen, seconds = pictures_at(path, middles)
    assert seen == list(range(len(stamps) - 1))
    assert seconds == pytest.approx(video_io.probe(path).seconds, abs=0.05)


@pytest.mark.parametrize(
    ("rate", "stamps"),
    [
        (Fraction(30000, 1001), [round(i * 1001 / 30) for i in range(20)]),
        (Fraction(60), [round(i * 1000 / 60) for i in range(20)]),
        (Fraction(24000, 1001), [round(i * 1001 / 24) for i in range(20)]),
        (Fraction(120), [round(i * 1000 / 120) for i in range(20)]),
        (Fraction(8), [125 * i for i in range(20)]),
    ],
)
def test_rounded_times_are_even(tmp_path, rate, stamps):
    path = tmp_path / "a.mkv"
    write(path, counted(20), fps=rate, stamps=stamps)
    seen, fps = numbers(path)
    assert seen == list(range(20)) and fps == pytest.approx(float(rate), rel=1e-3)


def test_a_wrong_rate_in_the_header_is_not_used(tmp_path):
    write(tmp_path / "a.mkv", counted(6), fps=25, stamps=[160 * i for i in range(6)])
    assert numbers(tmp_path / "a.mkv") == (list(range(6)), pytest.approx(6.25))


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4", "a.webm"])
@pytest.mark.parametrize(
    "stamps",
    [[0, 40, 80, 3_600_120, 3_600_160], [0, 40, 80, 3_600_120], [0, 3_600_040]],
)
@pytest.mark.parametrize("fps", [None, 8])
def test_a_time_stamp_an_hour_late_is_refused(tmp_path, name, stamps, fps):
    codec = "libvpx" if name == "a.webm" else "libx264"
    write(tmp_path / name, counted(len(stamps)), codec, stamps=stamps)
    with pytest.raises(UserError, match=rf"{name}: .*3600 s.* 60 s"):
        video_io.read_video(tmp_path / name, fps, 8)


def test_a_late_frame_behind_the_last_one_read_is_ignored(tmp_path):
    write(tmp_path / "a.mkv", counted(5), stamps=[0, 40, 80, 120, 3_600_000])
    assert numbers(tmp_path / "a.mkv", None, max_frames=3)[0] == [0, 1, 2]


def rewrite(path, target, change):
    """Copies a video with time stamps (in milliseconds) `change(index)`."""
    with av.open(str(path)) as source, av.open(str(target), "w") as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        for index, packet in enumerate(p for p in source.demux(video=0) if p.size):
            copy = av.Packet(bytes(packet))
            copy.pts, duration = change(index)
            copy.dts, copy.duration, copy.time_base = copy.pts, duration, MS
            copy.is_keyframe, copy.stream = packet.is_keyframe, stream
            container.mux(copy)


def test_the_last_frame_lasts_an_hour(tmp_path):
    write(tmp_path / "a.mp4", counted(5), codec_options={"bf": "0"})
    rewrite(tmp_path / "a.mp4", tmp_path / "b.mp4", lambda i: (40 * i, 40 if i < 4 else 3_600_000))
    for fps in (None, 8):
        with pytest.raises(UserError, match=r"b\.mp4: .*3600 s.* 60 s"):
            video_io.read_video(tmp_path / "b.mp4", fps, 8)


def test_times_that_run_backwards_are_refused(tmp_path):
    path = tmp_path / "a.mkv"
    write(path, counted(5), "ffv1")
    with av.open(str(path)) as container:
        payload = [bytes(packet) for packet in container.demux(video=0)][2]
    content = bytearray(path.read_bytes())
    place = content.index(payload) - 3  # the time of a block, in milliseconds
    assert struct.unpack_from(">h", content, place) == (80,)
    struct.pack_into(">h", content, place, 5000)
    path.write_bytes(content)
    for fps in (None, 8):
        with pytest.raises(UserError, match=r"a\.mkv: .*time stamps.*frame 3.*0\.12 s.*5\.00 s"):
            video_io.read_video(path, fps, 8)


def test_joined_transport_streams_are_refused(tmp_path):
    for name, start in (("a.ts", 20_000), ("b.ts", 0)):
        write(tmp_path / name, counted(5), stamps=[start + 40 * i for i in range(5)])
    joined = tmp_path / "joined.ts"
    joined.write_bytes((tmp_path / "a.ts").read_bytes() + (tmp_path / "b.ts").read_bytes())
    for fps in (None, 8):
        with pytest.raises(UserError, match=r"joined\.ts: .*(damaged|time stamps)"):
            video_io.read_video(joined, fps, 8)


def test_one_picture_that_lasts(tmp_path):
    write(tmp_path / "a.mp4", counted(1))
    rewrite(tmp_path / "a.mp4", tmp_path / "b.mp4", lambda i: (0, 2000))
    seen, rate = numbers(tmp_path / "b.mp4")
    assert set(seen) == {0} and len(seen) / rate == pytest.approx(2, abs=0.1)
    assert numbers(tmp_path / "b.mp4", 8)[0] == [0] * 16


# Sizes, names, warnings -------------------------------------------------------------------------

H264 = {"bf": "0", "x264-params": "repeat-headers=1"}


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmts", "options"),
    [
        ("a.ts", "libx264", ("yuv420p", "yuv420p"), H264),
        ("a.mkv", "libx264", ("yuv420p", "yuv444p"), H264),
        ("a.mp4", "libx264", ("yuv420p", "yuv420p"), H264),
        ("a.webm", "libvpx", ("yuv420p", "yuv420p"), {"lag-in-frames": "0"}),
        ("b.webm", "libvpx-vp9", ("yuv420p", "yuv420p"), {"lag-in-frames": "0"}),
        ("a.avi", "mjpeg", ("yuvj420p", "yuvj444p"), {}),
        ("a.mov", "png", ("rgb24", "rgba"), {}),
        ("b.ts", "mpeg2video", ("yuv420p", "yuv420p"), {}),
    ],
)
def test_a_frame_size_that_changes(tmp_path, name, codec, pix_fmts, options):
    with av.open(str(tmp_path / name), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pix_fmts[0]
        stream.options, time = options, 0
        parts = (((64, 48), (255, 0, 0)), ((96, 32), (0, 0, 255)))
        for (size, color), pix_fmt in zip(parts, pix_fmts, strict=True):
            encoder = av.CodecContext.create(codec, "w")
            encoder.width, encoder.height, encoder.pix_fmt = *size, pix_fmt
            encoder.time_base, encoder.framerate = Fraction(1, 25), Fraction(25)
            encoder.options = options
            picture = np.full((size[1], size[0], 3), color, np.uint8)
            packets = [p for _ in range(3) for p in encoder.encode(frame_of(picture, pix_fmt))]
            for packet in packets + encoder.encode(None):
                copy = av.Packet(bytes(packet))
                copy.pts = copy.dts = time
                copy.time_base, copy.duration, copy.stream = Fraction(1, 25), 1, stream
                copy.is_keyframe = packet.is_keyframe
                container.mux(copy)
                time += 1
    for fps in (None, 25):
        video, _ = video_io.read_video(tmp_path / name, fps)
        assert video.shape == (6, 48, 64, 3)
        assert video[2, 8, 8, 0] > 0.9 > -0.9 > video[2, 8, 8, 2]
        assert video[3, 8, 8, 0] < -0.9 < 0.9 < video[3, 8, 8, 2]
    frames = list(video_io.decode_frames(tmp_path / name, 25, 8))
    assert {frame.shape for frame in frames} == {(8, 8, 3)}


@pytest.mark.parametrize(
    "name", ["12:30.mp4", "%d.mp4", "a%03d.mp4", "file:x.mp4", "-i.mp4", "ü ñ.mp4"]
)
def test_any_file_name(tmp_path, monkeypatch, name):
    write(tmp_path / name, counted(4))
    monkeypatch.chdir(tmp_path)
    assert numbers(name)[0] == numbers(tmp_path / name)[0] == [0, 1, 2, 3]
    assert video_io.probe(name).num_frames == 4


@pytest.mark.parametrize("name", ["http://127.0.0.1:1/a.mp4", "concat:a.mp4|b.mp4", "pipe:0"])
def test_protocols_are_not_used(tmp_path, monkeypatch, name):
    write(tmp_path / "a.mp4", counted(4))
    monkeypatch.chdir(tmp_path)
    for read in (video_io.read_video, video_io.probe, video_io.frame_size):
        with pytest.raises(UserError, match=r"no such file"):
            read(name)


def test_lfs_pointers_are_named(tmp_path):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 9\n"
    (tmp_path / "a.mp4").write_text(pointer)
    for read in (video_io.read_video, video_io.probe, video_io.frame_size):
        with pytest.raises(UserError, match=r"a\.mp4: .*git lfs pull"):
            read(tmp_path / "a.mp4")


def test_directories_and_empty_files_are_no_videos(tmp_path):
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "folder.mp4").mkdir()
    for name in ("empty.mp4", "folder.mp4"):
        for read in (video_io.read_video, video_io.probe, video_io.frame_size):
            with pytest.raises(UserError, match=rf"{name}: "):
                read(tmp_path / name)


def test_open_files_are_read_from_the_start(tmp_path):
    write(tmp_path / "a.mp4", counted(4), fps=8)
    with open(tmp_path / "a.mp4", "rb") as file:
        for _ in range(2):
            assert video_io.probe(file) == video_io.VideoInfo(32, 32, 4, 0.5, 8.0)
            assert video_io.frame_size(file) == (32, 32)
            assert file.tell() == 0
            assert numbers(file)[0] == [0, 1, 2, 3]
            assert file.tell() == 0


@pytest.mark.parametrize(
    ("source", "requested", "warns"),
    [
        (8, 16, True),
        (8, 8, False),
        (8, None, False),
        (Fraction(24000, 1001), 24, False),
        (24, 8, False),
        (15, 16, True),
        (25, 30, True),
    ],
)
def test_repeated_frames_are_reported(tmp_path, source, requested, warns):
    write(tmp_path / "a.mp4", counted(4), fps=source)
    warnings = video_io.read_video_sizes(tmp_path / "a.mp4", requested, (8,)).warnings
    assert len(warnings) == warns
    if warns:
        assert all(part in warnings[0] for part in ("a.mp4", f"{source} frames", str(requested)))


def test_repeated_frames_of_a_wrong_header_are_reported(tmp_path):
    write(tmp_path / "a.mkv", counted(6), fps=25, stamps=[160 * i for i in range(6)])
    (warning,) = video_io.read_video_sizes(tmp_path / "a.mkv", 25, (8,)).warnings
    assert "read at 25" in warning


def animation(path, milliseconds, **settings):
    images = [Image.fromarray(grey(20 + 5 * index)) for index in range(len(milliseconds))]
    images[0].save(path, save_all=True, append_images=images[1:], duration=milliseconds, **settings)


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png"])
def test_times_of_animations(tmp_path, name):
    path, settings = tmp_path / name, {"lossless": True} if name == "a.webp" else {}
    animation(path, [120, 130] * 4, **settings)
    assert numbers(path) == (list(range(8)), 8.0)
    assert numbers(path, 16)[0] == [index // 2 for index in range(16)]
    assert len(video_io.read_video_sizes(path, 16, (8,)).warnings) == 1
    animation(path, [40, 500, 40, 40, 1000], **settings)
    assert pictures_at(path, [0.02, 0.3, 0.56, 0.6, 1.2]) == (
        [0, 1, 2, 3, 4],
        pytest.approx(1.62, abs=0.04),
    )
    animation(path, [100, 100, 61_000], **settings)
    for fps in (None, 8):
        with pytest.raises(UserError, match=rf"{name}: .*61 s.* 60 s"):
            video_io.read_video(path, fps, 8)


def test_resampled_videos_are_bounded():
    # One short gap among long ones.
    starts = [0, 0.02, *range(50, 5000, 50)]
    rate, is_even = constant_rate(starts, 50, 0.02)
    assert not is_even and rate * 5000 <= 10_001
