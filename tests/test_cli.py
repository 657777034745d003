import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import stunet
from stunet import cli
from stunet.diffusion.samplers import SAMPLERS
from stunet.video_io import read_video
from tests.calls import generate
from tests.tiny import FPS, NUM_FRAMES, RESOLUTION, UNET, fast_compiles, save_tiny_model

PROMPT = "a red circle moves left"
QUICK = ["--steps", "4"]


@pytest.fixture(scope="module", autouse=True)
def _fast_compiles():
    with fast_compiles():
        yield


@pytest.fixture(autouse=True)
def _compiler_as_before(monkeypatch):
    monkeypatch.setattr(
        "stunet.compiling.prepare_compiler", lambda: None
    )  # it is the process's for good


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("cli") / "model")


def run(folder, out, *options, prompt=PROMPT):
    return cli.main(["generate", prompt, "--model", str(folder), "--out", str(out), *options])


def size_of(path):
    with Image.open(path) as image:
        return image.size


def test_mp4s_of_several_videos_and_their_xt_slices(folder, tmp_path, capsys):
    out, slices = tmp_path / "new" / "out.mp4", tmp_path / "slice.png"
    assert run(folder, out, *QUICK, "--num-videos", "2", "--xt-slice", str(slices)) == 0
    paths = [out.with_name(f"out_{i}.mp4") for i in range(2)]
    printed = capsys.readouterr()
    assert printed.out.split() == [*map(str, paths), str(slices)]
    assert "sampling: 100%" in printed.err and "4/4" in printed.err
    expected = generate(stunet.load(folder), [PROMPT] * 2, steps=4)
    for path, video in zip(paths, expected, strict=True):
        frames, fps = read_video(path)
        assert fps == FPS and len(frames) == NUM_FRAMES
        factor = frames.shape[1] // RESOLUTION
        small = frames.reshape(NUM_FRAMES, RESOLUTION, factor, RESOLUTION, factor, 3).mean((2, 4))
        assert np.abs(small - video).mean() < 0.05  # of a range of 2, after H.264
    assert sorted(tmp_path.rglob("*.*")) == sorted([*paths, slices])
    # side by side: two slices of T rows and W columns, and a gap of one
    width, height = size_of(slices)
    assert width / height == pytest.approx((2 * RESOLUTION + 1) / NUM_FRAMES)


def test_gif_with_a_rate_of_its_own(folder, tmp_path):
    out = tmp_path / "out.gif"
    assert run(folder, out, *QUICK, "--num-videos", "2", "--fps", "5", "--seed", "3") == 0
    frames, fps = read_video(tmp_path / "out_1.gif")
    assert len(frames) == NUM_FRAMES and fps == pytest.approx(5)


def test_png_is_one_contact_sheet_with_a_row_for_each_video(folder, tmp_path):
    out = tmp_path / "sheet.png"
    assert run(folder, out, *QUICK, "--num-videos", "2") == 0
    width, height = size_of(out)
    gaps = (NUM_FRAMES - 1, 1)
    expected = (NUM_FRAMES * RESOLUTION + gaps[0]) / (2 * RESOLUTION + gaps[1])
    assert width / height == pytest.approx(expected)
    assert list(tmp_path.iterdir()) == [out]


def test_an_image(folder, tmp_path):
    out = tmp_path / "image.png"
    assert run(folder, out, *QUICK, "--num-frames", "1", "--sampler", "ddim") == 0
    width, height = size_of(out)
    assert width == height and width % RESOLUTION == 0


@pytest.fixture(scope="module")
def places(folder, tmp_path_factory):
    """Every kind of path that a bad command may name."""
    root = tmp_path_factory.mktemp("places")
    (root / "file").write_text("")
    (root / "empty").mkdir()
    (root / "folder.png").mkdir()
    (root / "workdir" / "checkpoints").mkdir(parents=True)
    save_tiny_model(root / "images", UNET.text_to_image(), num_frames=1)
    config = (root / "images" / "config.json").read_text()
    misfit = save_tiny_model(root / "misfit")
    (misfit / "config.json").write_text(
        config.replace('"unet_temporal": []', '"unet_temporal": ["unet_temporal.safetensors"]')
    )
    return root


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": " "}, "prompt"),
        ({"--out": "{}/new/out.avi"}, r"out\.avi: .* \.mp4, \.gif, \.png"),
        ({"--out": "{}/file/out.mp4"}, r"file/out\.mp4"),
        ({"--out": "{}/folder.png"}, r"folder\.png.*directory"),
        ({"--xt-slice": "{}/slice.gif"}, r"--xt-slice: .*slice\.gif.*\.png"),
        ({"--xt-slice": "{}/out.png", "--out": "{}/out.png"}, r"--xt-slice.*out\.png.*--out"),
        ({"--xt-slice": "{}/slice.png", "--num-frames": "1"}, r"--xt-slice.*slice\.png.* 1 frame"),
        ({"--model": "{}/nowhere"}, "nowhere"),
        ({"--model": "{}/empty"}, r"empty.*config\.json"),
        ({"--model": "{}/workdir"}, "workdir.*model/"),
        ({"--model": "{}/misfit"}, "misfit.*unet/.*temporal_"),
        ({"--num-frames": "3"}, "num_frames.* 3.* 2"),
        ({"--num-frames": "0"}, "--num-frames: .*'0'.*1"),
        ({"--num-frames": "4", "--model": "{}/images"}, "num_frames.* 4.* 1"),
        ({"--num-videos": "two"}, "--num-videos: .*'two'"),
        ({"--steps": "2000"}, "steps.*2000.*500"),
        ({"--sampler": "euler"}, "sampler.*'euler'.*dpm2m, ddim, ancestral.*package.module:name"),
        ({"--sampler": "nowhere:Euler"}, "sampler.*'nowhere:Euler'"),
        ({"--fps": "0"}, "fps.* 0.0, .*0.01 to 1000"),
        ({"--guidance-scale": "nan"}, "--guidance-scale: .*'nan'"),
        ({"--seed": "-1"}, "seed.*-1.*4294967295"),
        ({"--colour": "red"}, "--colour red"),
        ({"--style-strength": "0.5"}, "style_strength.*0.5.*style"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(folder, places, capsys, options, message):
    before = sorted(places.rglob("*"))
    merged = {"--model": str(folder), "--out": "{}/out.mp4", **options}
    prompt = merged.pop("prompt", PROMPT)
    pairs = [(name, value.format(places)) for name, value in merged.items()]
    assert cli.main(["generate", prompt, *[word for pair in pairs for word in pair]]) == 2
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    assert printed.out == "" and len(lines) == 1 and lines[0].startswith("stunet: error: ")
    assert re.search(message, lines[0]), lines[0]
    assert sorted(places.rglob("*")) == before


@pytest.mark.parametrize("argv", [[], ["generate"], ["make", "x"]])
def test_incomplete_commands_are_one_line(argv, capsys):
    assert cli.main(argv) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_truncated_prompt_is_warned_of(folder, tmp_path, capsys):
    words = "a red circle moves left and then a green star is spinning"
    assert run(folder, tmp_path / "a.png", *QUICK, "--num-videos", "2", prompt=words) == 0
    assert "12 tokens" in capsys.readouterr().err


def test_ctrl_c_writes_nothing(folder, tmp_path, capsys, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("stunet.engine.run.run", interrupt)
    assert run(folder, tmp_path / "a.mp4") == 130
    assert capsys.readouterr().err == "stunet: cancelled\n" and not list(tmp_path.iterdir())


def test_help_states_the_defaults(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["generate", "--help"])
    assert end.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    steps = ", ".join(f"{sampler.default_steps} ({name})" for name, sampler in SAMPLERS.items())
    assert f"default: {steps}" in text
    defaults = stunet.Sampling()
    assert f"default: {defaults.guidance_scale}" in text
    assert f"default: {defaults.sampler}" in text


def test_the_command_as_a_process(folder, tmp_path):
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(cli.__file__).parents[1]),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)

    def python(*arguments):
        command = [sys.executable, *arguments]
        return subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True
        )

    helped = python("-X", "importtime", "-m", "stunet.cli", "--help")
    assert helped.returncode == 0 and "generate" in helped.stdout
    for heavy in ("jax", "numpy", "av"):  # what makes an answer slow
        assert not any(line.endswith(f" {heavy}") for line in helped.stderr.splitlines())

    arguments = ["generate", PROMPT, "--model", str(folder), *QUICK, "--num-frames", "1"]
    made = python("-m", "stunet.cli", *arguments, "--out", "image.png")
    assert made.returncode == 0, made.stderr
    assert made.stdout == "image.png\n" and (tmp_path / "image.png").is_file()
    assert any((tmp_path / "cache" / "stunet").rglob("*-cache"))
    failed = python("-m", "stunet.cli", *arguments, "--out", "image.bmp")
    assert failed.returncode == 2 and len(failed.stderr.splitlines()) == 1
