"""Image to video, inpainting, cinemagraphs, editing and styles, on a model with random weights."""

import dataclasses
import re

import numpy as np
import pytest
from PIL import Image

import stunet
from stunet import cli
from stunet.diffusion import SuperResolution
from stunet.engine.cascade import Models, load_models
from stunet.engine.generation import paste
from stunet.engine.inputs import KnownPixels
from stunet.engine.run import run as run_request
from stunet.engine.sampling import EDIT_STREAM
from stunet.errors import UserError
from stunet.model import load
from stunet.schema import to_dict
from stunet.video_io import images, read_video, write_video
from stunet.weights.inflation import add_conditioning
from tests.calls import edit, generate
from tests.tiny import CAPTIONS, FPS, NUM_FRAMES, RESOLUTION, UNET, fast_compiles, save_tiny_model

QUICK = {"steps": 4, "guidance_scale": 2.0}
CONDITIONAL = dataclasses.replace(UNET, cond_channels=4, cond_in_blocks=True)
RNG = np.random.default_rng(0)
CLIP = RNG.uniform(-1, 1, (1, NUM_FRAMES, RESOLUTION, RESOLUTION, 3)).astype(np.float32)
KNOWN = np.ones((1, RESOLUTION, RESOLUTION, 1), np.float32)  # all but a hole
KNOWN[:, 2:6, 1:5] = 0


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


def inpaint(
    model,
    video=CLIP,
    known=KNOWN[:, None],
    prompts=CAPTIONS[:1],
    *,
    paste_back=False,
    feather=0.02,
    **sampling,
):
    return stunet.inpaint(
        model,
        video,
        prompts,
        mask=known,
        paste_back=paste_back,
        feather=feather,
        sampling=stunet.Sampling(**sampling),
    ).videos


@pytest.mark.parametrize("cond_in_blocks", [False, True])
def test_before_fine_tuning_known_pixels_change_nothing(base, cond_in_blocks):
    unet, params = add_conditioning(base.params["unet"], base.unet, 4, cond_in_blocks)
    conditional = dataclasses.replace(base, unet=unet, params={**base.params, "unet": params})
    unguided = {**QUICK, "guidance_scale": 1.0}  # guidance itself depends on the mask
    expected = generate(base, CAPTIONS[:1], **unguided)
    np.testing.assert_array_equal(inpaint(conditional, **unguided), expected)
    np.testing.assert_array_equal(generate(conditional, CAPTIONS[:1], **unguided), expected)


def test_the_network_sees_the_known_pixels_and_no_others(model):
    result = inpaint(model, **QUICK)
    plain = generate(model, CAPTIONS[:1], **QUICK)
    assert np.abs(result - plain).max() > 1e-2
    hidden = np.where(KNOWN[:, None] == 0, -CLIP, CLIP)
    np.testing.assert_array_equal(inpaint(model, hidden, **QUICK), result)


def test_known_pixels_are_not_guided(model):
    """In a single step, in which their surroundings cannot reach them yet."""
    weak, strong = (inpaint(model, steps=1, guidance_scale=scale) for scale in (1.5, 4.0))
    known = np.broadcast_to(KNOWN[:, None] == 1, weak.shape)
    np.testing.assert_allclose(weak[known], strong[known], atol=1e-5)
    assert np.abs(weak - strong)[~known].mean() > 1e-2


def test_each_application_fills_in_and_pasting_restores_known_pixels(model):
    image, last = CLIP[:, 0], CLIP[:, 1]
    sampling = stunet.Sampling(**QUICK)
    first_only = np.zeros((1, NUM_FRAMES, RESOLUTION, RESOLUTION, 1), np.float32)
    first_only[:, 0] = 1
    still = np.repeat(image[:, None], NUM_FRAMES, 1)
    plain = stunet.animate(model, image, CAPTIONS[:1], sampling=sampling).videos
    np.testing.assert_array_equal(plain, inpaint(model, still, first_only, **QUICK))
    pasted = stunet.animate(model, image, CAPTIONS[:1], paste_back=True, sampling=sampling).videos
    np.testing.assert_array_equal(pasted[:, 0], image)
    np.testing.assert_array_equal(pasted[:, 1:], plain[:, 1:])

    between = stunet.interpolate(
        model, image, last, CAPTIONS[:1], paste_back=True, sampling=sampling
    ).videos
    np.testing.assert_array_equal(between[:, [0, -1]], np.stack([image, last], 1))

    moving = stunet.cinemagraph(
        model, image, KNOWN, CAPTIONS[:1], feather=0, sampling=sampling
    ).videos
    outside = np.broadcast_to(KNOWN[:, None] == 1, moving.shape)
    np.testing.assert_array_equal(moving[outside], still[outside])
    assert moving.std(1)[:, 2:6, 1:5].min() > 0
    loop = stunet.cinemagraph(
        model, image, KNOWN, CAPTIONS[:1], num_frames=3, loop=True, sampling=sampling
    ).videos
    assert loop.shape[1] == 3


def test_pasting_is_what_is_left_to_the_engine(model):
    unpasted = inpaint(model, **QUICK)
    known = KnownPixels(CLIP, np.repeat(KNOWN[:, None], NUM_FRAMES, 1))
    np.testing.assert_array_equal(
        inpaint(model, paste_back=True, **QUICK), paste(unpasted, known, feather=0.02)
    )


def test_a_clip_of_any_length_is_filled(model):
    """7 frames: padded to the stride of 2, and more than the model was trained on."""
    longer = np.concatenate([CLIP, CLIP[:, :3]], axis=1)
    with pytest.warns(UserWarning, match="num_frames: 8 .* windows of 4"):
        result = inpaint(model, longer, paste_back=True, feather=0, **QUICK)
    known = np.broadcast_to(KNOWN[:, None] == 1, result.shape)
    assert result.shape == longer.shape
    np.testing.assert_array_equal(result[known], longer[known])


def test_an_input_is_shared_by_all_prompts(model):
    alone = inpaint(model, prompts=CAPTIONS[:1], **QUICK)
    shared = inpaint(model, prompts=CAPTIONS[:2], **QUICK)
    assert shared.shape == (2, *alone.shape[1:])
    np.testing.assert_allclose(shared[:1], alone, atol=1e-4)
    with pytest.raises(UserError, match="prompts.*3.*2"):
        inpaint(model, np.repeat(CLIP, 2, 0), prompts=CAPTIONS[:3], **QUICK)


@pytest.mark.parametrize("sampler", ["dpm2m", "ancestral"])
def test_editing_goes_from_the_video_itself_to_plain_generation(base, sampler, monkeypatch):
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
    assert np.abs(edited(1) - generate(base, CAPTIONS[:2], **options)).mean() > 0.1
    with monkeypatch.context() as patch:
        patch.setattr("stunet.engine.generation.BASE_STREAM", EDIT_STREAM)
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


def test_editing_draws_other_noise_than_generating_with_the_same_seed():
    """With the noise of the clip itself, the distance is 0.55 of that with another seed."""
    model = load("shapes")
    prompts = [
        "a blue star moving up on a navy background",
        "a red circle moving left on a dark background",
        "a green ring growing on a grey background",
        "a white heart bouncing on a striped background",
    ]
    options = {"sampler": "ancestral", "steps": 6, "guidance_scale": 2.0}
    videos = generate(model, prompts, seed=3, **options)
    same, another = (
        np.abs(edit(model, videos, prompts, strength=0.7, seed=seed, **options) - videos).mean()
        for seed in (3, 4)
    )
    assert 0.8 < same / another < 1.25


def test_a_style_of_strength_0_is_the_model_and_of_1_the_style_s_pictures(base, root):
    style = load(save_tiny_model(root / "style", UNET.text_to_image(), num_frames=1))
    style.params["unet"]["conv_out"]["bias"] = style.params["unet"]["conv_out"]["bias"] + 0.5
    same = stunet.stylize(base, style, 0.0)
    np.testing.assert_array_equal(
        generate(same, CAPTIONS[:1], **QUICK), generate(base, CAPTIONS[:1], **QUICK)
    )
    one = {"num_frames": 1, **QUICK}
    image = generate(stunet.stylize(base, style, 1.0), CAPTIONS[:1], **one)
    expected = {**style.params, "text_encoder": base.params["text_encoder"]}
    style = dataclasses.replace(style, params=expected, resolution=base.resolution)
    np.testing.assert_allclose(image, generate(style, CAPTIONS[:1], **one), atol=1e-5)
    with pytest.raises(UserError, match="style.*'v'.*'eps'"):
        stunet.stylize(base, dataclasses.replace(style, prediction="v"), 1.0)


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


@pytest.fixture(scope="module")
def ssr(root):
    enlarging = dataclasses.replace(
        UNET, in_channels=6, noise_level_embedding=True, self_attention=False
    )
    return save_tiny_model(
        root / "ssr",
        enlarging,
        stage="ssr",
        resolution=2 * RESOLUTION,
        super_resolution=to_dict(SuperResolution(2)),
    )


def test_known_pixels_are_restored_at_the_enlarged_size(folder, inputs, ssr, tmp_path):
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
        ("animate", ("no.png", "a star"), "no.png"),
        ("animate", ("image.png", " "), "prompt"),
        ("inpaint", ("clip.mp4", "a star"), "mask, outpaint"),
        ("inpaint", ("clip.mp4", "a star", "--mask", "mask.png"), "mask.png.*24x24.*256x256.*clip"),
        ("inpaint", ("clip.mp4", "a star", "--mask", "short.mp4"), "short.mp4.* 3 .* 6 .*clip.mp4"),
        (
            "cinemagraph",
            ("image.png", "a star", "--mask", "half.png"),
            "half.png.*24x12.*24x24.*image.png",
        ),
        ("cinemagraph", ("image.png", "a star", "--mask", "black.png"), "black.png.*known"),
        ("cinemagraph", ("image.png", "a star", "--mask", "white.png"), "white.png.*known"),
        ("edit", ("clip.mp4", "a star", "--strength", "1.5"), "strength.*1.5.*0 to 1"),
        ("inpaint", ("clip.mp4", "a", "--outpaint", "1,2,3"), "outpaint.*'1,2,3'.*LEFT,RIGHT"),
        ("inpaint", ("clip.mp4", "a", "--outpaint", "0,0,0,0"), "outpaint.*'0,0,0,0'.*above 0"),
        (
            "inpaint",
            ("clip.mp4", "a", "--outpaint", "9,9,0,0", "--mask", "mask.mp4"),
            "mask, outpaint",
        ),
        ("inpaint", ("clip.mp4", "a", "--outpaint", "9,9,0,0"), r"outpaint.*\(9, 9, 0, 0\)"),
        ("animate", ("image.png", "a", "--style-strength", "1"), "style_strength.* 1 .*style"),
        ("animate", ("image.png", "a", "--num-frames", "1"), "num_frames.* 1,.* 2"),
        (
            "interpolate",
            ("image.png", "last.jpg", "a", "--num-frames", "2"),
            "num_frames.* 2,.* 3",
        ),
    ],
)
def test_bad_input_is_one_line(
    folder, inputs, tmp_path, monkeypatch, capsys, name, arguments, message
):
    monkeypatch.chdir(inputs)
    assert run(name, folder, tmp_path / "out.mp4", *arguments) == 2
    error = capsys.readouterr().err.strip()
    assert re.search(message, error) and error.count("\n") == 0, error
    assert not list(tmp_path.iterdir())


def test_models_that_cannot(base_folder, root, inputs, tmp_path, capsys):
    out = tmp_path / "out.mp4"
    assert run("animate", base_folder, out, inputs / "image.png", "a star") == 2
    error = capsys.readouterr().err
    assert f"{base_folder}: " in error and "'conditional'" in error
    other = dataclasses.replace(UNET, channels=(8, 24)).text_to_image()
    style = save_tiny_model(root / "wider", other, num_frames=1)
    arguments = (inputs / "clip.mp4", "a star", "--strength", "0.5", "--style", style)
    assert run("edit", base_folder, out, *arguments) == 2
    assert str(style) in capsys.readouterr().err


def test_cropping_and_unusual_styles_are_warned_of(folder, inputs, root, tmp_path, capsys):
    out = tmp_path / "out.gif"
    wide = inputs / "wide.png"
    style = ("--style", folder, "--style-strength", "0.2")
    assert run("animate", folder, out, wide, "a star", *style) == 0
    warnings = capsys.readouterr().err
    assert re.search(f"{wide}.*48x24.*24x24", warnings)
    assert re.search("style strength.*0.2.*0.5.*1", warnings)


def test_arrays_that_do_not_fit(model, base):
    sampling = stunet.Sampling(**QUICK)
    with pytest.raises(UserError, match=r"mask.*\(1, 4, 8, 8, 3\)"):
        inpaint(model, known=CLIP)
    with pytest.raises(UserError, match="mask.*4x8.*8x8"):
        inpaint(model, known=KNOWN[:, None, :, :4])
    with pytest.raises(UserError, match="mask.* 3 .* 4 "):
        inpaint(model, known=np.repeat(KNOWN[:, None], 3, 1))
    with pytest.raises(UserError, match="model.*'conditional'"):
        stunet.animate(base, CLIP[:, 0], CAPTIONS[:1])
    with pytest.raises(UserError, match=r"strength.*-0.1.*0 to 1"):
        edit(base, CLIP, CAPTIONS[:1], strength=-0.1)
    with pytest.raises(UserError, match="num_frames.* 1,.* 2"):
        stunet.animate(model, CLIP[:, 0], CAPTIONS[:1], num_frames=1)
    with pytest.raises(UserError, match=r"video.*\(8, 8, 3\)"):
        stunet.edit(base, CLIP[0, 0], CAPTIONS[:1], strength=0.5)
    with pytest.raises(UserError, match="last"):
        two = np.repeat(CLIP[:, 0], 2, 0)
        stunet.interpolate(model, CLIP[:, 0], two, CAPTIONS[:2], sampling=sampling)


def test_fields_of_other_applications_are_refused(model):
    models = Models(base=model)
    for field, value in (("strength", 0.5), ("loop", True), ("video", CLIP), ("paste_back", False)):
        request = stunet.Request(application="generate", prompts=("a star",), **{field: value})
        with pytest.raises(UserError, match=f"{field}.*'generate'"):
            run_request(models, request)
    with pytest.raises(UserError, match="application.*'draw'.*generate"):
        run_request(models, stunet.Request(application="draw", prompts=("a star",)))


def test_inputs_of_other_sizes_are_cropped_and_resized(model):
    """An array of twice the size of the model's frames, as the same pixels in a file."""
    image = np.repeat(np.repeat(CLIP[0, 0], 2, 0), 2, 1)[:, :-2]
    with pytest.warns(UserWarning, match="image.*14x16.*14x14"):
        result = stunet.animate(
            model, image, CAPTIONS[:1], paste_back=True, sampling=stunet.Sampling(**QUICK)
        )
    assert result.videos.shape == (1, NUM_FRAMES, RESOLUTION, RESOLUTION, 3)
    assert re.search("image.*14x16.*14x14", result.warnings[0])


def test_a_file_is_decoded_once_for_all_models(folder, inputs, ssr, monkeypatch):
    """The image and its mask at the sizes of the base model and of the upscaler."""
    opened = []
    original = images._decode
    monkeypatch.setattr(images, "_decode", lambda *a: opened.append(a) or original(*a))
    models = load_models(folder, [ssr])
    request = stunet.Request(
        application="cinemagraph",
        prompts=("a star",),
        image=inputs / "image.png",
        mask=inputs / "mask.png",
        sampling=stunet.Sampling(**QUICK),
    )
    assert run_request(models, request).video.shape[1] == 2 * RESOLUTION
    assert len(opened) == 2
