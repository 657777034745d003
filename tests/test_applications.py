"""Image to video, inpainting, cinemagraphs, editing and styles, on a model with random weights."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from stunet import cli
from stunet import engine as pipeline
from stunet.engine import animate, cinemagraph, edit, fill, generate, inpaint, interpolate, load
from stunet.errors import UserError
from stunet.video_io import read_video, write_video
from stunet.weights.inflation import add_conditioning
from tests.tiny import CAPTIONS, FPS, NUM_FRAMES, RESOLUTION, UNET, fast_compiles, save_tiny_model

QUICK = {"steps": 4, "guidance_scale": 2.0}
CONDITIONAL = dataclasses.replace(UNET, cond_channels=4, cond_in_blocks=True)
RNG = np.random.default_rng(0)
CLIP = RNG.uniform(-1, 1, (1, NUM_FRAMES, RESOLUTION, RESOLUTION, 3)).astype(np.float32)
HOLE = np.zeros((1, RESOLUTION, RESOLUTION, 1), np.float32)
HOLE[:, 2:6, 1:5] = 1


@pytest.fixture(scope="module", autouse=True)
def _fast_compiles():
    with fast_compiles():
        yield


@pytest.fixture(autouse=True)
def _compiler_as_before(monkeypatch):
    monkeypatch.setattr("stunet.compiling.prepare_compiler", lambda: None)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("applications")


@pytest.fixture(scope="module")
def base_folder(root):
    return save_tiny_model(root / "base")


@pytest.fixture(scope="module")
def folder(root):
    return save_tiny_model(root / "conditional", CONDITIONAL, stage="conditional")


@pytest.fixture(scope="module")
def base(base_folder):
    return load(base_folder)


@pytest.fixture(scope="module")
def model(folder):
    return load(folder)


@pytest.mark.parametrize("cond_in_blocks", [False, True])
def test_before_fine_tuning_what_is_given_changes_nothing(base, cond_in_blocks):
    unet, params = add_conditioning(base.params["unet"], base.unet, 4, cond_in_blocks)
    conditional = dataclasses.replace(base, unet=unet, params={**base.params, "unet": params})
    unguided = {**QUICK, "guidance_scale": 1.0}  # guidance itself tells given pixels apart
    made = fill(conditional, CLIP, np.ones_like(CLIP[..., :1]), CAPTIONS[:1], **unguided)
    filled = inpaint(conditional, CLIP, HOLE, CAPTIONS[:1], paste_back=False, **unguided)
    expected = generate(base, CAPTIONS[:1], **unguided)
    np.testing.assert_array_equal(made, expected)
    np.testing.assert_array_equal(filled, expected)


def test_the_network_sees_the_known_pixels_and_no_others(model):
    made = inpaint(model, CLIP, HOLE, CAPTIONS[:1], paste_back=False, **QUICK)
    plain = generate(model, CAPTIONS[:1], **QUICK)
    assert np.abs(made - plain).max() > 1e-2
    hidden = np.where(HOLE[:, None] == 1, 9.0, CLIP).astype(np.float32)
    again = inpaint(model, hidden, HOLE, CAPTIONS[:1], paste_back=False, **QUICK)
    np.testing.assert_array_equal(again, made)


def test_given_pixels_are_not_guided(model):
    """In a single step, where what is around them cannot reach them yet."""
    made = [
        inpaint(model, CLIP, HOLE, CAPTIONS[:1], paste_back=False, steps=1, guidance_scale=scale)
        for scale in (1.5, 4.0)
    ]
    known = np.broadcast_to(HOLE[:, None] == 0, made[0].shape)
    np.testing.assert_allclose(made[0][known], made[1][known], atol=1e-5)
    assert np.abs(made[0] - made[1])[~known].mean() > 1e-2


def test_each_application_is_a_fill_and_pasting_brings_back_the_bits(model):
    image, last = CLIP[:, 0], CLIP[:, 1]
    masks = np.ones((1, NUM_FRAMES, RESOLUTION, RESOLUTION, 1), np.float32)
    masks[:, 0] = 0
    videos = np.repeat(image[:, None], NUM_FRAMES, 1)
    made = animate(model, image, CAPTIONS[:1], **QUICK)
    expected = fill(model, videos, masks, CAPTIONS[:1], paste_back=False, **QUICK)
    np.testing.assert_array_equal(made, expected)
    pasted = animate(model, image, CAPTIONS[:1], paste_back=True, **QUICK)
    np.testing.assert_array_equal(pasted[:, 0], image)
    np.testing.assert_array_equal(pasted[:, 1:], made[:, 1:])

    between = interpolate(model, image, last, CAPTIONS[:1], paste_back=True, **QUICK)
    np.testing.assert_array_equal(between[:, [0, -1]], np.stack([image, last], 1))

    moving = cinemagraph(model, image, HOLE, CAPTIONS[:1], feather=0, **QUICK)
    outside = np.broadcast_to(HOLE[:, None] == 0, moving.shape)
    np.testing.assert_array_equal(moving[outside], videos[outside])
    assert moving.std(1)[:, 2:6, 1:5].min() > 0
    loop = cinemagraph(model, image, HOLE, CAPTIONS[:1], num_frames=3, loop=True, **QUICK)
    assert loop.shape[1] == 3


def test_a_clip_of_any_length_is_filled(model):
    """7 frames: the stride of 2 is filled up, and there are more than the model was trained on."""
    longer = np.concatenate([CLIP, CLIP[:, :3]], axis=1)
    made = inpaint(model, longer, HOLE, CAPTIONS[:1], feather=0, **QUICK)
    kept = np.broadcast_to(HOLE[:, None] == 0, made.shape)
    assert made.shape == longer.shape
    np.testing.assert_array_equal(made[kept], longer[kept])


@pytest.mark.parametrize("sampler", ["dpm2m", "ancestral"])
def test_editing_goes_from_the_video_itself_to_plain_generation(base, sampler):
    videos = np.concatenate([CLIP, CLIP[:, ::-1]])
    options = {"sampler": sampler, "steps": 8, "guidance_scale": 1.0, "seed": 5}
    done = []

    def edited(strength):
        made = edit(
            base,
            videos,
            CAPTIONS[:2],
            strength=strength,
            on_chunk=lambda *progress: done.append(progress[:2]),
            **options,
        )
        return made

    np.testing.assert_array_equal(edited(0), videos)
    np.testing.assert_array_equal(edited(1), generate(base, CAPTIONS[:2], **options))
    done.clear()
    distance = [np.abs(edited(s) - videos).mean() for s in (0.25, 0.5, 0.75, 1)]
    assert done[:3] == [(0, 2), (2, 2), (0, 4)]
    odd = edit(base, videos[:, :3], CAPTIONS[:2], strength=1, **options)
    assert odd.shape == videos[:, :3].shape  # the stride of 2 is filled up
    np.testing.assert_array_equal(
        edit(base, videos[:, :3], CAPTIONS[:2], strength=0, **options), videos[:, :3]
    )
    assert distance[0] > 0 and all(np.diff(distance) > 0)


def test_a_style_of_strength_0_is_the_model_and_of_1_the_style_s_pictures(base, root):
    style = load(save_tiny_model(root / "style", UNET.text_to_image(), num_frames=1))
    style.params["unet"]["conv_out"]["bias"] = style.params["unet"]["conv_out"]["bias"] + 0.5
    same = pipeline.stylised(base, style, 0.0)
    np.testing.assert_array_equal(
        generate(same, CAPTIONS[:1], **QUICK), generate(base, CAPTIONS[:1], **QUICK)
    )
    one = {"num_frames": 1, **QUICK}
    image = generate(pipeline.stylised(base, style, 1.0), CAPTIONS[:1], **one)
    expected = {**style.params, "text_encoder": base.params["text_encoder"]}
    style = dataclasses.replace(style, params=expected, resolution=base.resolution)
    np.testing.assert_allclose(image, generate(style, CAPTIONS[:1], **one), atol=1e-5)
    with pytest.raises(UserError, match="the style: predicts 'v', but the model predicts 'eps'"):
        pipeline.stylised(base, dataclasses.replace(style, prediction="v"), 1.0)


@pytest.fixture(scope="module")
def inputs(root):
    """Pictures and videos on disk, 24 pixels wide and high, and masks of them."""
    folder = root / "inputs"
    folder.mkdir()
    pixels = RNG.integers(0, 255, (24, 24, 3), dtype=np.uint8)
    mask = np.zeros((24, 24), np.uint8)
    mask[6:18, 3:15] = 255
    Image.fromarray(pixels).save(folder / "image.png")
    Image.fromarray(pixels[:, ::-1]).save(folder / "last.jpg")
    Image.fromarray(np.tile(pixels, (1, 2, 1))).save(folder / "wide.png")
    Image.fromarray(mask).save(folder / "mask.png")
    Image.fromarray(mask[:12]).save(folder / "half.png")
    large = np.zeros((256, 256), np.uint8)
    large[64:128, 64:128] = 255
    Image.fromarray(large).save(folder / "large_mask.png")
    Image.fromarray(0 * mask).save(folder / "black.png")
    Image.fromarray(0 * mask + 255).save(folder / "white.png")
    for name, frames in (("clip", 12), ("mask", 12), ("short", 5)):
        video = np.repeat(CLIP[:, :1, :1, :1], frames, 1).repeat(256, 2).repeat(256, 3)[0]
        video[..., :128, :] = -1
        video[..., 128:, :] = 1 if name != "clip" else 0.3
        write_video(folder / f"{name}.mp4", video, 2 * FPS)
    return folder


def run(name, model, out, *arguments):
    options = ["--model", str(model), "--out", str(out), "--steps", "3"]
    return cli.main([name, *map(str, arguments), *options])


@pytest.mark.parametrize(
    ("name", "arguments", "frames"),
    [
        ("animate", ("image.png", "a red star"), NUM_FRAMES),
        ("animate", ("image.png", "a red star", "--num-frames", "6", "--paste-back"), 6),
        ("interpolate", ("image.png", "last.jpg", "a red star"), NUM_FRAMES),
        ("cinemagraph", ("image.png", "a red star", "--mask", "mask.png"), NUM_FRAMES),
        ("cinemagraph", ("image.png", "a star", "--mask", "mask.png", "--loop"), NUM_FRAMES - 1),
        ("inpaint", ("clip.mp4", "a red star", "--mask", "mask.mp4"), 6),
        ("inpaint", ("clip.mp4", "a red star", "--outpaint", "256,256,0,512"), 6),
        ("edit", ("short.mp4", "a red star", "--strength", "0.7"), 3),
        ("inpaint", ("clip.mp4", "a red star", "--mask", "large_mask.png"), 6),
        ("edit", ("clip.mp4", "a red star", "--strength", "0.7"), 6),
    ],
)
def test_commands_make_videos_of_the_right_length(
    folder, inputs, tmp_path, monkeypatch, name, arguments, frames
):
    monkeypatch.chdir(inputs)
    out = tmp_path / "out.gif"
    assert run(name, folder, out, *arguments) == 0
    video, fps = read_video(out)
    assert len(video) == frames and fps == pytest.approx(FPS, rel=0.05)
    assert [path.name for path in tmp_path.iterdir()] == ["out.gif"]


def test_outpainting_keeps_the_video_in_its_place(folder, inputs, tmp_path, monkeypatch):
    monkeypatch.chdir(inputs)
    assert (
        run("inpaint", folder, tmp_path / "o.png", "clip.mp4", "x", "--outpaint", "256,0,0,256")
        == 0
    )
    sheet = read_video(tmp_path / "o.png")[0][0]
    scale = len(sheet) // RESOLUTION  # enlarged by a whole factor; six frames in a row
    frame = sheet[: RESOLUTION * scale, : RESOLUTION * scale]
    half = len(frame) // 2
    kept = frame[: half - scale, half + scale :]  # top right
    np.testing.assert_allclose(kept[:, : half // 2 - 2 * scale], -1, atol=0.1)
    np.testing.assert_allclose(kept[:, half // 2 :], 0.3, atol=0.1)


def test_the_given_pixels_come_back_at_the_enlarged_size(folder, inputs, root, tmp_path):
    from stunet.diffusion import SuperResolution
    from stunet.schema import to_dict

    enlarging = dataclasses.replace(
        UNET, in_channels=6, noise_level_embedding=True, self_attention=False
    )
    ssr = save_tiny_model(
        root / "ssr",
        enlarging,
        stage="ssr",
        resolution=2 * RESOLUTION,
        super_resolution=to_dict(SuperResolution(2)),
    )
    out = tmp_path / "out.png"
    arguments = (inputs / "image.png", "a star", "--mask", inputs / "mask.png")
    assert run("cinemagraph", folder, out, *arguments, "--num-frames", "2", "--upscale", ssr) == 0
    image = read_video(inputs / "image.png", resolution=2 * RESOLUTION)[0][0]
    sheet = read_video(out)[0][0]
    scale = sheet.shape[0] // (2 * RESOLUTION)
    first = sheet[: 2 * RESOLUTION * scale : scale, : 2 * RESOLUTION * scale : scale]
    np.testing.assert_allclose(first, image, atol=1 / 100)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("animate", ("no.png", "a star"), "no.png: no such file"),
        ("animate", ("image.png", " "), "the prompt is empty"),
        (
            "inpaint",
            ("clip.mp4", "a star"),
            "give one of --mask=FILE and --outpaint=LEFT,RIGHT,TOP,BOTTOM",
        ),
        (
            "inpaint",
            ("clip.mp4", "a star", "--mask", "mask.png"),
            "mask.png: is 24x24, but clip.mp4 is 256x256",
        ),
        (
            "inpaint",
            ("clip.mp4", "a star", "--mask", "short.mp4"),
            "short.mp4: has 3 frames at 8 a second, clip.mp4 6",
        ),
        (
            "cinemagraph",
            ("image.png", "a star", "--mask", "half.png"),
            "half.png: is 24x12, but image.png is 24x24",
        ),
        (
            "cinemagraph",
            ("image.png", "a star", "--mask", "black.png"),
            "black.png: the mask is black all over",
        ),
        (
            "cinemagraph",
            ("image.png", "a star", "--mask", "white.png"),
            "white.png: the mask is white all over",
        ),
        (
            "edit",
            ("clip.mp4", "a star", "--strength", "1.5"),
            "--strength is 1.5; it must be within 0..1",
        ),
        (
            "inpaint",
            ("clip.mp4", "a", "--outpaint", "1,2,3"),
            "'1,2,3' is not four whole numbers of pixels",
        ),
        ("inpaint", ("clip.mp4", "a", "--outpaint", "0,0,0,0"), "there is nothing to make"),
        (
            "animate",
            ("image.png", "a", "--style-strength", "1"),
            "--style-strength goes with --style",
        ),
        (
            "interpolate",
            ("image.png", "last.jpg", "a", "--num-frames", "2"),
            "there is nothing between",
        ),
    ],
)
def test_bad_input_is_one_line(
    folder, inputs, tmp_path, monkeypatch, capsys, name, arguments, message
):
    monkeypatch.chdir(inputs)
    assert run(name, folder, tmp_path / "out.mp4", *arguments) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and error.count("\n") == 0
    assert not list(tmp_path.iterdir())


def test_models_that_cannot(base_folder, root, inputs, tmp_path, capsys):
    out = tmp_path / "out.mp4"
    assert run("animate", base_folder, out, inputs / "image.png", "a star") == 2
    assert "base: does not look at given pixels; name a model of stage 'conditional'" in (
        capsys.readouterr().err
    )
    other = dataclasses.replace(UNET, channels=(8, 24)).text_to_image()
    style = save_tiny_model(root / "wider", other, num_frames=1)
    arguments = (inputs / "clip.mp4", "a star", "--strength", "0.5", "--style", style)
    assert run("edit", base_folder, out, *arguments) == 2
    assert "wider: parameters do not fit the network" in capsys.readouterr().err


def test_cropping_and_unusual_styles_are_said(folder, inputs, root, tmp_path, capsys):
    out = tmp_path / "out.gif"
    assert (
        run(
            "animate",
            folder,
            out,
            inputs / "wide.png",
            "a star",
            "--style",
            folder,
            "--style-strength",
            "0.2",
        )
        == 0
    )
    said = capsys.readouterr().err
    assert "wide.png: 48x24 is cropped to its middle, 24x24" in said
    assert "style strength 0.2 is outside 0.5 to 1" in said


def test_arrays_that_do_not_fit(model, base):
    with pytest.raises(
        UserError, match=r"masks have shape \(1, 4, 8, 8, 3\); expected \(1, 4, 8, 8, 1\)"
    ):
        fill(model, CLIP, CLIP, CAPTIONS[:1])
    with pytest.raises(UserError, match="the model does not look at given pixels"):
        animate(base, CLIP[:, 0], CAPTIONS[:1])
    with pytest.raises(UserError, match=r"strength is -0.1; it must be within 0..1"):
        edit(base, CLIP, CAPTIONS[:1], strength=-0.1)
    with pytest.raises(UserError, match="a single frame cannot be filled in"):
        animate(model, CLIP[:, 0], CAPTIONS[:1], num_frames=1)
    with pytest.raises(UserError, match="the first frame has shape"):
        interpolate(model, CLIP[:, 0], CLIP[:, 0, :4], CAPTIONS[:1])
