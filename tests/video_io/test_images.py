"""Images and animated images: their pixels are those that browsers display."""

import io
import itertools
import struct
import zlib

import av
import numpy as np
import pillow_heif
import pytest
from PIL import ExifTags, Image, ImageCms

from stunet.engine.inputs import read_clip, read_image
from stunet.errors import UserError
from stunet.studio.uploads import Limits, check_upload, editor_background
from stunet.video_io import (
    decode_frames,
    frame_size,
    read_video,
    read_video_sizes,
    write_video,
)
from stunet.video_io.images import decode_images, image_info, is_image

WHITE, RED, GREEN, BLUE = (255, 255, 255), (255, 0, 0), (0, 255, 0), (0, 0, 255)
CORNERS = np.zeros((32, 48, 3), np.uint8)
CORNERS[:16, :24], CORNERS[:16, 24:], CORNERS[16:, :24] = RED, GREEN, BLUE
CORNERS[16:, 24:] = 255
UPRIGHT = {  # EXIF orientation -> what CORNERS is displayed as
    1: CORNERS,
    2: CORNERS[:, ::-1],
    3: CORNERS[::-1, ::-1],
    4: CORNERS[::-1],
    5: CORNERS.swapaxes(0, 1),
    6: np.rot90(CORNERS, -1),
    7: np.rot90(CORNERS, 2).swapaxes(0, 1),
    8: np.rot90(CORNERS),
}
LOSSLESS = {
    "PNG": {},
    "WEBP": {"lossless": True, "exact": True},
    "TIFF": {},
    "AVIF": {"quality": 100, "subsampling": "4:4:4"},
    "HEIF": {"quality": -1},
}


def encode(image: Image.Image | np.ndarray, form: str, **options) -> bytes:
    file = io.BytesIO()
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image.copy()
    image.save(file, form, **options)
    return file.getvalue()


def decode(data: bytes) -> list[tuple[float, np.ndarray, float]]:
    file = io.BytesIO(data)
    frames = list(decode_images(file))
    height, width, count, seconds = image_info(file)
    assert is_image(file) and file.tell() == 0
    assert (height, width, 3) == frames[0][1].shape and count == len(frames)
    assert seconds == pytest.approx(sum(frame[2] for frame in frames))
    return frames


def still(data: bytes) -> np.ndarray:
    ((start, pixels, seconds),) = decode(data)
    assert start == seconds == 0
    return pixels


def chunk(kind: bytes, content: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + checksum


def png(width: int, bits: int, color_type: int, row: bytes, *extra: bytes) -> bytes:
    """A PNG file of one row."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, bits, color_type, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"\0" + row))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + pixels + chunk(b"IEND", b"")


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "HEIF"])
def test_orientation(form, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    exif = exif.tobytes()  # HEIF and AVIF store it as their own transformations
    pixels = still(encode(CORNERS, form, exif=exif, **LOSSLESS.get(form, {"quality": 100})))
    assert pixels.shape == UPRIGHT[orientation].shape
    inside = pixels[4:-4:8, 4:-4:8].astype(int)  # without the edges, which JPEG blurs
    np.testing.assert_allclose(inside, UPRIGHT[orientation][4:-4:8, 4:-4:8], atol=6)


@pytest.mark.parametrize("form", ["JPEG", "WEBP", "PNG"])
def test_orientation_in_xmp(form):
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description tiff:Orientation="7"/>'
    if form == "PNG":
        text = b"XML:com.adobe.xmp\0\0\0\0\0" + xmp
        data = encode(CORNERS, form)
        data = data[:33] + chunk(b"iTXt", text) + data[33:]
    else:
        data = encode(CORNERS, form, xmp=xmp)
    pixels = still(data)
    np.testing.assert_allclose(pixels[8, 8].astype(int), UPRIGHT[7][8, 8], atol=6)
    assert pixels.shape == UPRIGHT[7].shape


def test_orientation_behind_the_pixels_and_of_animations():
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    data = encode(CORNERS, "PNG")
    data = data[:-12] + chunk(b"eXIf", exif.tobytes()[6:]) + data[-12:]
    np.testing.assert_array_equal(still(data), UPRIGHT[6])
    for form in ("PNG", "WEBP"):
        others = [Image.fromarray(255 - CORNERS)]
        options = LOSSLESS[form] | {"exif": exif, "duration": 100}
        frames = decode(encode(CORNERS, form, save_all=True, append_images=others, **options))
        np.testing.assert_array_equal(frames[0][1], UPRIGHT[6])
        np.testing.assert_array_equal(frames[1][1], 255 - UPRIGHT[6])


def hidden_red() -> Image.Image:
    """Opaque, half transparent and fully transparent columns of red."""
    pixels = np.tile(np.array([*RED, 255], np.uint8), (16, 24, 1))
    pixels[:, 8:16, 3], pixels[:, 16:, 3] = 128, 0
    return Image.fromarray(pixels)


@pytest.mark.parametrize("form", [*LOSSLESS, "BMP"])
def test_transparency_is_blended_over_white(form):
    pixels = still(encode(hidden_red(), form, **LOSSLESS.get(form, {}))).astype(int)
    np.testing.assert_allclose(pixels[8, [4, 12, 20]], [RED, (255, 127, 127), WHITE], atol=2)
    if form != "BMP":
        grey = Image.merge("LA", (Image.new("L", (24, 16)), hidden_red().getchannel("A")))
        pixels = still(encode(grey, form, **LOSSLESS[form])).astype(int)
        np.testing.assert_allclose(pixels[8, [4, 12, 20], 1], [0, 127, 255], atol=2)


@pytest.mark.parametrize("key", [1, b"\xff\x00", b"\xff\x00\xff"])
def test_transparent_colours_of_a_palette(key):
    image = Image.new("P", (3, 1))
    image.putpalette([*RED, *GREEN, *BLUE])
    image.putdata([0, 1, 2])
    pixels = still(encode(image, "PNG", transparency=key))
    assert pixels.tolist() == [[list(RED), list(WHITE), list(BLUE)]]
    if key == 1:
        pixels = still(encode(image, "GIF", transparency=key))
        assert pixels.tolist() == [[list(RED), list(WHITE), list(BLUE)]]


@pytest.mark.parametrize(
    ("bits", "color_type", "row", "key", "second"),
    [
        (1, 0, bytes([0b10000000]), ">H 1", 0),
        (1, 0, bytes([0b01000000]), ">H 0", 255),
        (2, 0, bytes([0b01100000]), ">H 1", 170),
        (4, 0, bytes([0x5A]), ">H 5", 170),
        (8, 0, bytes([7, 9]), ">H 7", 9),
        (16, 0, struct.pack(">2H", 300, 32896), ">H 300", 128),
        (8, 2, bytes([1, 2, 3, 9, 9, 9]), ">3H 1 2 3", 9),
        (16, 2, struct.pack(">6H", 300, 60000, 2, *[9 * 257] * 3), ">3H 300 60000 2", 9),
    ],
)
def test_transparent_key_colour(bits, color_type, row, key, second):
    layout, *levels = key.split()
    transparency = chunk(b"tRNS", struct.pack(layout, *map(int, levels)))
    pixels = still(png(2, bits, color_type, row, transparency))
    assert pixels.tolist() == [[list(WHITE), [second] * 3]]


def test_sixteen_bit_alpha():
    row = struct.pack(">8H", 65535, 0, 0, 0, 65535, 0, 0, 32896)
    assert still(png(2, 16, 6, row)).tolist() == [[list(WHITE), [255, 127, 127]]]
    assert still(png(1, 16, 4, struct.pack(">2H", 0, 32896))).tolist() == [[[127] * 3]]


def test_grey_levels_of_more_than_eight_bits():
    grey = np.array([[0, 32896, 65535]], np.uint16)
    expected = [0, 128, 255]
    for data in (
        encode(Image.fromarray(grey), "PNG"),
        encode(Image.fromarray(grey), "TIFF"),
        encode(Image.fromarray(grey.astype(">u2")), "TIFF"),
        encode(Image.fromarray(grey), "TIFF", compression="tiff_lzw"),
        b"P5 3 1 65535\n" + grey.astype(">u2").tobytes(),
        b"P5 3 1 1023\n" + np.array([0, 514, 1023], ">u2").tobytes(),
        encode(Image.fromarray((grey / 65535).astype(np.float32)), "TIFF"),
    ):
        assert still(data)[0, :, 1].tolist() == expected
    inverted = encode(Image.fromarray(grey), "TIFF", tiffinfo={262: 0})
    assert still(inverted)[0, :, 1].tolist() == [255, 127, 0]
    for unknown in (grey.astype(np.int32) * 1000, grey.astype(np.float32)):
        with pytest.raises(UserError, match=r"grey levels 0.* to 65535.*expected 8 or 16 bits"):
            still(encode(Image.fromarray(unknown), "TIFF"))


def test_colour_models():
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    ycbcr = Image.new("YCbCr", (16, 16), (76, 85, 255))
    for data in (
        encode(cmyk, "JPEG", quality=100),
        encode(cmyk, "TIFF"),
        encode(ycbcr, "JPEG", quality=100),
        encode(Image.new("RGB", (16, 16), RED).quantize(4), "BMP"),
    ):
        np.testing.assert_allclose(still(data)[8, 8].astype(int), RED, atol=3)
    for form in ("PNG", "TIFF", "BMP", "PPM"):
        ones = Image.new("1", (8, 8), 1)
        assert (still(encode(ones, form)) == 255).all()
    lab = ImageCms.profileToProfile(
        Image.new("RGB", (16, 16), (60, 120, 180)),
        ImageCms.createProfile("sRGB"),
        ImageCms.createProfile("LAB"),
        outputMode="LAB",
    )
    np.testing.assert_allclose(still(encode(lab, "TIFF"))[8, 8], (60, 120, 180), atol=5)


def srgb_profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def display_p3_profile() -> bytes:
    """An sRGB profile with the primaries of Display P3 (XYZ for D50, from Apple's profile)."""
    profile = bytearray(srgb_profile())
    primaries = {
        b"rXYZ": (0.51512, 0.24120, -0.00105),
        b"gXYZ": (0.29198, 0.69225, 0.04189),
        b"bXYZ": (0.15710, 0.06657, 0.78407),
    }
    for tag, xyz in primaries.items():
        entry = profile.index(tag, 128)
        (offset,) = struct.unpack_from(">I", profile, entry + 4)
        struct.pack_into(">3i", profile, offset + 8, *(round(65536 * value) for value in xyz))
    return bytes(profile)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "HEIF"])
def test_colour_profiles_are_converted_to_srgb(form):
    image = Image.new("RGB", (16, 16), (224, 64, 64))
    options = LOSSLESS.get(form, {"quality": 100})
    pixels = still(encode(image, form, icc_profile=display_p3_profile(), **options))
    np.testing.assert_allclose(pixels[8, 8].astype(int), (244, 41, 54), atol=4)


@pytest.mark.parametrize("profile", [srgb_profile(), b"damaged", display_p3_profile()[:200]])
def test_srgb_and_damaged_profiles_change_nothing(profile):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    np.testing.assert_array_equal(still(encode(pixels, "PNG", icc_profile=profile)), pixels)
    grey = pixels[..., 0]
    result = still(encode(grey, "PNG", icc_profile=profile))
    np.testing.assert_array_equal(result, np.repeat(grey[..., None], 3, -1))


def test_a_profile_leaves_transparency_as_it_is():
    pixels = still(encode(hidden_red(), "PNG", icc_profile=display_p3_profile()))
    assert pixels[8, 20].tolist() == list(WHITE) and pixels[8, 4].tolist() == list(RED)


def test_gamma():
    linear = chunk(b"gAMA", struct.pack(">I", 100_000))
    assert still(png(1, 8, 0, b"\x80", linear)).tolist() == [[[188] * 3]]
    usual = chunk(b"gAMA", struct.pack(">I", 45_455))
    assert still(png(1, 8, 0, b"\x80", usual)).tolist() == [[[128] * 3]]


def avif_of_level(level: int, transfer: int, primaries: int, matrix: int) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="avif") as container:
        stream = container.add_stream("libsvtav1", rate=1)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p10le"
        coder = stream.codec_context
        coder.color_primaries, coder.color_trc = primaries, transfer
        coder.colorspace, coder.color_range = matrix, 2
        stream.options = {"crf": "5", "preset": "8", "svtav1-params": "lp=1"}
        frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), level, np.uint8), "rgb24")
        frame = frame.reformat(format="yuv420p10le", dst_colorspace=matrix, dst_color_range=2)
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


def test_reference_white_of_hdr_images():
    pq = chunk(b"cICP", bytes([9, 16, 0, 1]))
    level = round(0.5807 * 65535)  # 203 cd/m2
    for data in (
        png(1, 16, 2, struct.pack(">3H", level, level, level), pq),
        encode(
            Image.new("RGB", (64, 64), (148,) * 3),
            "HEIF",
            quality=90,
            color_primaries=9,
            transfer_characteristics=16,
            matrix_coefficients=9,
        ),
        avif_of_level(148, 16, 9, 9),
        avif_of_level(192, 18, 9, 9),
    ):
        assert 235 <= still(data).mean() <= 255
    p3 = chunk(b"cICP", bytes([12, 13, 0, 1]))
    pixels = still(png(1, 8, 2, bytes([224, 64, 64]), p3)).astype(int)
    np.testing.assert_allclose(pixels, [[(244, 41, 54)]], atol=3)


@pytest.mark.skipif(
    not hasattr(pillow_heif.options, "GRID_TILE_SIZE"), reason="this pillow-heif writes no tiles"
)
def test_heic_of_several_tiles(monkeypatch):
    monkeypatch.setattr(pillow_heif.options, "GRID_TILE_SIZE", 512)
    large = CORNERS.repeat(32, 0).repeat(32, 1)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    data = encode(large, "HEIF", quality=80, exif=exif.tobytes())
    assert b"grid" in data
    pixels = still(data)
    assert pixels.shape == (1536, 1024, 3)
    np.testing.assert_allclose(
        pixels[::96, ::96].astype(int), UPRIGHT[6].repeat(32, 0).repeat(32, 1)[::96, ::96], atol=6
    )


def test_the_primary_image_of_a_file_is_read():
    heif = pillow_heif.HeifFile()
    heif.add_from_pillow(Image.new("RGB", (64, 64), RED))
    heif.add_from_pillow(Image.new("RGB", (96, 80), GREEN))
    file = io.BytesIO()
    heif.save(file, primary_index=1)
    pixels = still(file.getvalue())
    assert pixels.shape == (80, 96, 3)
    np.testing.assert_allclose(pixels[40, 48].astype(int), GREEN, atol=3)
    others = [Image.new("RGB", (16, 16), GREEN)]
    for form in ("MPO", "TIFF"):
        copies = [image.copy() for image in others]  # Pillow keeps the encoder's settings
        data = encode(Image.new("RGB", (16, 16), RED), form, save_all=True, append_images=copies)
        np.testing.assert_allclose(still(data)[8, 8].astype(int), RED, atol=3)


@pytest.mark.parametrize("tag", [{254: 1}, {50706: b"\1\4\0\0"}])
def test_raw_files_of_cameras_are_refused(tag):
    with pytest.raises(UserError, match=r"raw file.*expected a developed"):
        still(encode(CORNERS, "TIFF", tiffinfo=tag))


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8))
ANIMATED = {
    "save_all": True,
    "append_images": [NOISE.transpose(turn) for turn in (0, 1, 2)],
    "duration": [50, 80, 60, 100],
}
FILES = {
    "JPEG": encode(NOISE, "JPEG", quality=90),
    "progressive JPEG": encode(NOISE, "JPEG", progressive=True),
    "PNG": encode(NOISE, "PNG"),
    "GIF": encode(NOISE, "GIF"),
    "WebP": encode(NOISE, "WEBP"),
    "lossless WebP": encode(NOISE, "WEBP", lossless=True),
    "AVIF": encode(NOISE, "AVIF"),
    "HEIC": encode(NOISE, "HEIF"),
    "TIFF": encode(NOISE, "TIFF"),
    "LZW TIFF": encode(NOISE, "TIFF", compression="tiff_lzw"),
    "BMP": encode(NOISE, "BMP"),
    "PPM": encode(NOISE, "PPM"),
    "animated GIF": encode(NOISE, "GIF", **ANIMATED),
    "animated PNG": encode(NOISE, "PNG", **ANIMATED),
    "animated WebP": encode(NOISE, "WEBP", **ANIMATED),
    "animated AVIF": encode(NOISE, "AVIF", **ANIMATED),
}


@pytest.mark.parametrize("name", FILES)
def test_truncated_files_are_refused(name):
    data = FILES[name]
    for part in (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99):
        with pytest.raises(UserError, match="truncated"):
            list(decode_images(io.BytesIO(data[: int(part * len(data))])))
    padded = data[: len(data) // 2].ljust(len(data), b"\0")  # of a download
    if name in ("JPEG", "PNG", "GIF", "animated GIF", "animated PNG"):
        with pytest.raises(UserError, match=r"truncated|damaged"):
            list(decode_images(io.BytesIO(padded)))


@pytest.mark.parametrize("name", FILES)
def test_bytes_behind_an_image_are_ignored(name):
    plain, motion = decode(FILES[name]), decode(FILES[name] + b"\0\0\0\x18ftypmp42" + bytes(999))
    for one, other in zip(plain, motion, strict=True):
        np.testing.assert_array_equal(one[1], other[1])


def test_a_jpeg_image_in_the_metadata_does_not_end_the_file():
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = "\xff\xd9"
    data = encode(NOISE, "JPEG", exif=exif.tobytes() + encode(NOISE.resize((16, 16)), "JPEG"))
    still(data)
    with pytest.raises(UserError, match="truncated"):
        still(data[: -len(data) // 4])


COLORS = [RED, GREEN, BLUE, WHITE]


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "AVIF"])
def test_animations_follow_the_browsers_times(form):
    first, *others = (Image.new("RGB", (16, 16), color) for color in COLORS)
    durations = [0, 10, 20, 130]
    options = LOSSLESS.get(form, {}) | {"duration": durations}
    frames = decode(encode(first, form, save_all=True, append_images=others, **options))
    assert [start for start, *_ in frames] == pytest.approx([0, 0.1, 0.2, 0.22])
    assert [seconds for *_, seconds in frames] == pytest.approx([0.1, 0.1, 0.02, 0.13])
    np.testing.assert_allclose([p[8, 8].astype(int) for _, p, _ in frames], COLORS, atol=3)


def test_the_hidden_image_of_an_animated_png_is_not_displayed():
    first, *others = (Image.new("RGB", (16, 16), color) for color in COLORS)
    options = {"save_all": True, "append_images": others, "duration": 50, "default_image": True}
    frames = decode(encode(first, "PNG", **options))
    assert [tuple(pixels[8, 8]) for _, pixels, _ in frames] == COLORS[1:]


def test_a_written_gif_reads_back(tmp_path):
    values = np.linspace(-1, 1, 7, dtype=np.float32)
    video = np.broadcast_to(values[:, None, None, None], (7, 256, 256, 3))
    write_video(tmp_path / "clip.gif", video, 8)
    back = read_video_sizes(tmp_path / "clip.gif", 8, (16,))
    np.testing.assert_allclose(back.frames[16].mean((1, 2, 3)), values, atol=0.01)
    write_video(tmp_path / "constant.gif", video[[3] * 7], 8)
    assert len(read_video_sizes(tmp_path / "constant.gif", 8, (16,)).frames[16]) == 7


PALETTE = [*RED, *GREEN, *BLUE, 0, 0, 0]


def gif(frames: list[tuple]) -> bytes:
    """A GIF of 4x4 pixels whose background colour is red."""
    data = b"GIF89a" + struct.pack("<HH", 4, 4) + bytes([0xF1, 0, 0, *PALETTE])
    for left, top, width, height, colors, disposal, transparent in frames:
        flags = disposal << 2 | (transparent is not None)
        data += b"!\xf9\x04" + bytes([flags, 10, 0, transparent or 0, 0])
        data += b"," + struct.pack("<HHHHB", left, top, width, height, 0)
        codes = [code for color in colors for code in (4, color)] + [5]  # 4 clears, 5 ends
        bits = "".join(f"{code:03b}"[::-1] for code in codes)
        packed = bytes(int(bits[i : i + 8][::-1], 2) for i in range(0, len(bits), 8))
        data += bytes([2, len(packed)]) + packed + b"\0"
    return data + b";"


def over_white(canvas: np.ndarray) -> np.ndarray:
    return canvas[..., :3] * (canvas[..., 3:] / 255) + (255 - canvas[..., 3:])


@pytest.mark.parametrize("first_covers_all", [True, False])
def test_gif_disposal(first_covers_all):
    palette = np.array(PALETTE).reshape(-1, 3)
    for *disposals, transparent in itertools.product(range(4), range(4), (None, 3)):
        whole, part = (0, 0, 4, 4, [1] * 16), (1, 1, 2, 2, [2] * 4)
        frames = [
            (*(whole if first_covers_all else part), disposals[0], transparent),
            (*part, disposals[1], transparent),
            (0, 0, 2, 2, [1, 3, 2, 1], 0, transparent),
        ]
        canvas, expected = np.zeros((4, 4, 4)), []
        for left, top, width, height, colors, disposal, key in frames:
            before = canvas.copy()
            area = canvas[top : top + height, left : left + width]
            indices = np.array(colors).reshape(height, width)
            drawn = indices != key if key is not None else np.ones_like(indices, bool)
            area[drawn] = np.concatenate([palette, np.full((4, 1), 255)], -1)[indices[drawn]]
            expected.append(over_white(canvas))
            if disposal == 2:
                area[:] = 0
            canvas = before if disposal == 3 else canvas
        displayed = [pixels for _, pixels, _ in decode(gif(frames))]
        np.testing.assert_array_equal(displayed, expected, f"{disposals} {transparent}")


def apng(frames: list[tuple], color_type: int) -> bytes:
    channels = {2: 3, 6: 4}[color_type]
    data = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, color_type, 0, 0, 0))
    data += chunk(b"acTL", struct.pack(">II", len(frames), 0))
    for index, (left, top, width, height, color, disposal, blending) in enumerate(frames):
        sizes = struct.pack(">IIIII", 2 * index, width, height, left, top)
        data += chunk(b"fcTL", sizes + struct.pack(">HHBB", 1, 10, disposal, blending))
        rows = zlib.compress((b"\0" + bytes(color[:channels]) * width) * height)
        number = struct.pack(">I", 2 * index + 1)
        data += chunk(b"fdAT", number + rows) if index else chunk(b"IDAT", rows)
    return b"\x89PNG\r\n\x1a\n" + data + chunk(b"IEND", b"")


@pytest.mark.parametrize(("color_type", "alpha"), [(2, 255), (6, 128)])
def test_apng_disposal_and_blending(color_type, alpha):
    for *disposals, blending in itertools.product(range(3), range(3), range(2)):
        frames = [
            (0, 0, 4, 4, (*RED, 255), disposals[0], 0),
            (1, 1, 2, 2, (*BLUE, alpha), disposals[1], blending),
            (0, 0, 3, 3, (*GREEN, alpha), 0, 1 - blending),
        ]
        canvas, expected = np.zeros((4, 4, 4)), []
        for left, top, width, height, color, disposal, over in frames:
            before = canvas.copy()
            area = canvas[top : top + height, left : left + width]
            above, weight = np.array(color), color[3] / 255
            if over:
                rest = area[..., 3:] / 255 * (1 - weight)
                mixed = (above[:3] * weight + area[..., :3] * rest) / (weight + rest)
                area[:] = np.concatenate([mixed, 255 * (weight + rest)], -1)
            else:
                area[:] = above
            expected.append(over_white(canvas))
            if disposal == 1 or (disposal == 2 and len(expected) == 1):
                area[:] = 0
            elif disposal == 2:
                canvas = before
        displayed = [pixels.astype(float) for _, pixels, _ in decode(apng(frames, color_type))]
        np.testing.assert_allclose(displayed, expected, atol=2, err_msg=f"{disposals} {blending}")


def test_an_animated_png_without_some_frames_is_refused():
    data = FILES["animated PNG"]
    start = data.index(b"acTL") - 4
    more = chunk(b"acTL", struct.pack(">II", 5, 0))
    with pytest.raises(UserError, match="truncated"):
        still(data[:start] + more + data[start + 20 :])


def test_ordinary_images_are_decoded_as_by_ffmpeg(tmp_path):
    for name in ("PNG", "GIF", "BMP", "LZW TIFF", "lossless WebP", "animated GIF"):
        with av.open(io.BytesIO(FILES[name])) as container:
            expected = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        displayed = [pixels.astype(int) for _, pixels, _ in decode(FILES[name])]
        np.testing.assert_array_equal(displayed, expected)


@pytest.mark.parametrize("name", ["large.png", "large.gif"])
def test_decompression_bombs_are_refused(tmp_path, name):
    Image.new("1", (20_000, 20_000)).save(tmp_path / name)
    with pytest.raises(UserError, match=rf"{name}: .*too large.*expected fewer"):
        list(decode_images(tmp_path / name))
    with pytest.raises(UserError, match="too large"):
        image_info(tmp_path / name)


def test_other_files_are_no_images(tmp_path):
    write_video(tmp_path / "clip.mp4", np.zeros((2, 16, 16, 3), np.float32), 8)
    (tmp_path / "vector.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    (tmp_path / "page.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    for path in tmp_path.iterdir():
        assert not is_image(path)
        with pytest.raises(UserError, match="not an image"):
            list(decode_images(path))
    with pytest.raises(UserError, match=r"absent\.png: no such file"):
        is_image(tmp_path / "absent.png")


def test_content_decides_and_not_the_name(tmp_path):
    (tmp_path / "picture.mp4").write_bytes(FILES["animated WebP"])
    frames = read_video_sizes(tmp_path / "picture.mp4", None, (48,)).frames[48]
    assert len(frames) >= 4


def readers(side: int) -> dict:
    """The functions by which commands, Python, the studio, training and `evaluate` read pictures.

    Each returns the first frame, `[side, side, 3]` in [-1, 1], except the last two.
    """
    limits = Limits()
    return {
        "evaluate": lambda path: read_video(path, 8, side)[0][0],
        "training": lambda path: next(decode_frames(path, 8, side)) / 127.5 - 1,
        "image": lambda path: read_image("image", path, (side,)).frames[side][0, 0],
        "video": lambda path: read_clip("video", path, (side,), 8).frames[side][0, 0],
        "editor": lambda path: np.asarray(editor_background(path).resize((side, side))) / 127.5 - 1,
        "upload": lambda path: check_upload(path, limits),
        "size": frame_size,
    }


@pytest.mark.parametrize("reader", readers(8))
def test_every_entry_point_reads_the_same(tmp_path, reader):
    pixels = np.zeros((16, 16, 4), np.uint8)
    pixels[:, :8] = (*BLUE, 255)  # the left half, which becomes the upper half
    pixels[:, 8:] = (*RED, 0)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    path = tmp_path / "phone.png"
    Image.fromarray(pixels).save(path, exif=exif)
    picture = readers(8)[reader](path)
    if reader not in ("upload", "size"):
        np.testing.assert_allclose(picture[1, 4], [-1, -1, 1], atol=0.05)
        np.testing.assert_allclose(picture[6, 4], [1, 1, 1], atol=0.05)
    path = tmp_path / "half.jpg"
    path.write_bytes(FILES["JPEG"][: len(FILES["JPEG"]) // 2])
    with pytest.raises(UserError, match=r"half\.jpg: truncated JPEG"):
        readers(8)[reader](path)
