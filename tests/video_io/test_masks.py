"""Masks in files: what is unambiguous is read, anything else is described."""

import io

import av
import numpy as np
import pytest
from PIL import ExifTags, Image, ImageFilter

from stunet.engine.inputs import Picture, read_clip, read_image, read_mask
from stunet.errors import UserError
from stunet.video_io.masks import read_mask_frames

SIDE = 32
MARKED = np.zeros((SIDE, SIDE), bool)
MARKED[8:20, 4:16] = True  # 14 % of the pixels
RNG = np.random.default_rng(0)
PHOTO = Image.fromarray(RNG.integers(0, 256, (6, 6, 3), np.uint8)).resize((SIDE, SIDE))


def levels(marked: int, other: int = 0, dtype: type = np.uint8) -> Image.Image:
    return Image.fromarray(np.where(MARKED, marked, other).astype(dtype))


def color(marked: tuple[int, ...], other: tuple[int, ...] | None = None) -> Image.Image:
    other = other or (0,) * len(marked)
    return Image.fromarray(np.where(MARKED[..., None], marked, other).astype(np.uint8))


def palette(indices: np.ndarray, colors: list[int]) -> Image.Image:
    image = Image.fromarray(indices.astype(np.uint8))
    image.putpalette(colors)
    return image


def save(folder, image: Image.Image, suffix: str = "png", **options):
    path = folder / f"mask.{suffix}"
    image.save(path, **options)
    return path


def read(path) -> np.ndarray:
    mask = read_mask_frames(path, None, (SIDE,))
    assert mask.size == (SIDE, SIDE) and mask.frames[SIDE].shape == (1, SIDE, SIDE, 1)
    return mask.frames[SIDE][0, ..., 0]


UNAMBIGUOUS = {
    "black and white": levels(255),
    "0 and 1": levels(1),
    "0 and 1 in 16 bits": levels(1, dtype=np.uint16),
    "0 and 255 in 16 bits": levels(255, dtype=np.uint16),
    "16 bits": levels(65535, dtype=np.uint16),
    "1 bit": levels(255).convert("1"),
    "booleans": Image.fromarray(MARKED),
    "palette": palette(MARKED, [0, 0, 0, 128, 0, 0]),
    "palette, white first": palette(~MARKED, [255, 255, 255, 0, 0, 0]),
    "grey on black": levels(128),
    "red on black": color((255, 0, 0)),
    "green on black": color((0, 255, 0)),
    "blue on black": color((0, 0, 255)),
    "dark magenta on black": color((90, 0, 90)),
    "white on transparency": color((255, 255, 255, 255)),
    "red on transparency": color((255, 0, 0, 255), (255, 0, 0, 0)),
    "white on transparent white": color((255, 255, 255, 255), (255, 255, 255, 0)),
    "half transparent white": color((255, 255, 255, 128), (0, 0, 0, 0)),
    "grey with alpha": levels(255).convert("LA"),
}


@pytest.mark.parametrize("name", UNAMBIGUOUS)
def test_unambiguous_masks(tmp_path, name):
    image = UNAMBIGUOUS[name]
    np.testing.assert_array_equal(read(save(tmp_path, image)), MARKED)
    if image.mode in ("L", "RGB", "RGBA") and name != "0 and 1":
        options = {"lossless": True, "exact": True}
        np.testing.assert_array_equal(read(save(tmp_path, image, "webp", **options)), MARKED)
        np.testing.assert_array_equal(read(save(tmp_path, image, "tiff")), MARKED)


@pytest.mark.parametrize("suffix", ["jpg", "webp", "avif", "heic", "gif"])
def test_compression_noise(tmp_path, suffix):
    for marked in (color((255, 255, 255)), color((255, 0, 0))):
        np.testing.assert_array_equal(read(save(tmp_path, marked, suffix, quality=80)), MARKED)


def test_soft_edges(tmp_path):
    soft = levels(255).filter(ImageFilter.GaussianBlur(1))
    assert np.count_nonzero(read(save(tmp_path, soft)) != MARKED) <= 4  # the corners


AMBIGUOUS = {
    "photograph": (PHOTO, r"\d{2,3} levels from \d+ to \d+"),
    "grey photograph": (PHOTO.convert("L"), r"\d{2,3} levels from \d+ to \d+"),
    "red on a photograph": (
        Image.composite(Image.new("RGB", (SIDE, SIDE), "red"), PHOTO, levels(255)),
        "RGB 255,0,0 in 14%",
    ),
    "two colours": (
        Image.fromarray(
            np.where(MARKED[..., None], [255, 0, 0], [0, 255, 0]).astype(np.uint8)
            * (np.arange(SIDE) < 24)[:, None].astype(np.uint8)[..., None]
        ),
        "several colours.*RGB 0,255,0 in 6.%.*RGB 255,0,0 in 14%",
    ),
    "two greys": (levels(200, 50), "2 levels from 50 to 200"),
    "uniform grey": (levels(128, 128), "level 128 of 255 everywhere"),
    "alpha of black": (color((0, 0, 0, 255)), "all black; alpha 0 in 86% and 255 in 14%"),
    "hole in black": (
        color((0, 0, 0, 0), (0, 0, 0, 255)),
        "all black; alpha 0 in 14% and 255 in 86%",
    ),
    "hole in a photograph": (
        Image.composite(Image.new("RGBA", (SIDE, SIDE)), PHOTO.convert("RGBA"), levels(255)),
        "alpha 0 in 14% and 255 in 86%",
    ),
    "soft alpha of black": (
        Image.merge("LA", (levels(0), Image.linear_gradient("L").resize((SIDE, SIDE)))),
        r"all black; alpha from \d+ to 2\d\d",
    ),
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_ambiguous_masks_are_described(tmp_path, name):
    image, contents = AMBIGUOUS[name]
    path = save(tmp_path, image)
    with pytest.raises(UserError, match=rf"mask\.png: ambiguous.*{contents}.*expected white"):
        read(path)


def test_levels_0_and_1_do_not_survive_lossy_compression(tmp_path):
    with pytest.raises(UserError, match="levels 0 and 1 of 255 after lossy"):
        read(save(tmp_path, levels(1), "jpg"))


def write_video(path, frames: np.ndarray, codec: str, layout: str) -> None:
    """Writes RGB or RGBA frames `[T, H, W, C]` without loss."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=8)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = layout
        source = "rgba" if frames.shape[-1] == 4 else "rgb24"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format=source)))
        container.mux(stream.encode())


def test_masks_that_are_videos(tmp_path):
    path = tmp_path / "mask.mkv"
    marked = np.repeat(np.asarray(color((255, 0, 0)))[None], 4, 0)
    marked[2:] = marked[2:, :, ::-1]
    write_video(path, marked, "ffv1", "bgr0")
    frames = read_mask_frames(path, 8, (SIDE,)).frames[SIDE][..., 0]
    np.testing.assert_array_equal(frames[[0, 3]], [MARKED, MARKED[:, ::-1]])
    assert read_mask_frames(path, 8, (SIDE,), max_frames=1).frames[SIDE].shape[0] == 1

    strokes = np.repeat(np.asarray(color((255, 255, 255, 255), (255, 0, 0, 0)))[None], 2, 0)
    write_video(path, strokes, "ffv1", "bgra")
    np.testing.assert_array_equal(
        read_mask_frames(path, 8, (SIDE,)).frames[SIDE][0, ..., 0], MARKED
    )

    write_video(path, strokes * np.array([0, 0, 0, 1], np.uint8), "ffv1", "bgra")
    with pytest.raises(UserError, match="all black; alpha 0 in 86% and 255 in 14%"):
        read_mask_frames(path, 8, (SIDE,))


PICTURE = Picture(
    name="clip.mp4", frames={SIDE: np.zeros((1, 1, SIDE, SIDE, 3), np.float32)}, size=(SIDE, SIDE)
)


def test_files_become_known_pixels(tmp_path):
    known = read_mask(save(tmp_path, levels(1)), PICTURE, (SIDE,), still=True)[SIDE]
    np.testing.assert_array_equal(known[0, 0, ..., 0], ~MARKED)
    for level, state in ((0, "everything is known"), (255, "nothing is known")):
        with pytest.raises(UserError, match=rf"mask\.png.*{state}"):
            read_mask(save(tmp_path, levels(level, level)), PICTURE, (SIDE,), still=True)


def test_a_mask_is_turned_as_its_picture(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    marked = np.zeros((16, SIDE), np.uint8)
    marked[:, :8] = 255  # left, which becomes the top
    path = save(tmp_path, Image.fromarray(marked), exif=exif)
    mask = read_mask_frames(path, None, (16,))
    assert mask.size == (SIDE, 16)
    assert not mask.frames[16].any()  # the central square is below
    picture = Picture(name="clip", frames={16: np.zeros((1, 1, 16, 16, 3))}, size=(16, SIDE))
    with pytest.raises(UserError, match=r"size 16x32, expected 32x16"):
        read_mask(path, picture, (16,))


@pytest.mark.parametrize("highest", [255, 2, np.nan, -1])
def test_arrays_of_masks_are_0_to_1(highest):
    array = np.where(MARKED, highest, 0).astype(np.float32)[..., None]
    with pytest.raises(UserError, match=r"mask: values from .*expected 0 .* to 1"):
        read_mask(array, PICTURE, (SIDE,))
    for known in (~MARKED[..., None], (~MARKED[..., None]).astype(np.uint8)):
        result = read_mask(known, PICTURE, (SIDE,))[SIDE]
        np.testing.assert_array_equal(result[0, 0, ..., 0], ~MARKED)


@pytest.mark.parametrize(
    ("array", "found"),
    [
        (np.full((8, 8, 3), 200, np.uint8), "uint8"),
        (np.ones((8, 8, 3), np.uint8), "uint8"),
        (np.ones((8, 8, 3), bool), "bool"),
        (np.full((8, 8, 3), 200.0), "from 200 to 200"),
        (np.full((8, 8, 3), 200), "from 200 to 200"),
        (np.full((8, 8, 3), -1.5), "from -1.5 to -1.5"),
        (np.full((8, 8, 3), np.nan), "from nan to nan"),
        (np.full((0, 8, 3), 1.0), "from nan to nan"),
        (np.full((8, 8, 3), "a"), "not numbers"),
    ],
)
def test_arrays_of_pictures_are_minus_1_to_1(array, found):
    with pytest.raises(UserError, match=rf"image: .*{found}.*expected"):
        read_image("image", array, (8,))
    with pytest.raises(UserError, match=rf"video: .*{found}.*expected"):
        read_clip("video", array[None], (8,), None)


def test_pictures_in_0_to_1_are_warned_of():
    ramp = np.broadcast_to(np.linspace(0, 1, 8)[:, None, None], (8, 8, 3))
    (warning,) = read_image("image", ramp, (8,)).warnings
    assert warning.startswith("image: values from 0 to 1, expected -1")
    for margins in (None, (1, 1, 1, 1)):
        assert read_clip("video", ramp[None], (8,), None, margins).warnings
        assert not read_clip("video", 2 * ramp[None] - 1, (8,), None, margins).warnings
    assert read_image("image", 2 * ramp - 1, (8,)).warnings == ()


def test_open_files(tmp_path):
    file = io.BytesIO(save(tmp_path, levels(255)).read_bytes())
    np.testing.assert_array_equal(read(file), MARKED)
