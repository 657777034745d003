import errno
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import stunet
from stunet import cli
from stunet.diffusion.samplers import SAMPLERS
from stunet.video_io import read_comment, read_video
from tests.calls import generate
from tests.tiny import (
    FPS,
    NUM_FRAMES,
    RESOLUTION,
    UNET,
    fast_compiles,
    remove_checksums,
    save_tiny_model,
)

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
    remove_checksums(misfit)
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
        ({"--upscale-steps": "3"}, "upscale_steps: 3 .*upscaler"),
        ({"--guidance": "none"}, "--guidance: .*'none'.*'apg'"),
        ({"--guidance-interval": "100"}, "--guidance-interval: .*'100'.*LOW,HIGH"),
        ({"--guidance-interval": "9,1"}, "guidance_interval: 9 to 1"),
        ({"--guidance-interval": "0,1000"}, "guidance_interval.*1000"),
        ({"--prompt-schedule": "0:a"}, "--prompt-schedule: .*'0:a'.*FRAME:TEXT"),
        ({"--prompt-schedule": "3:a"}, "prompt_schedule: .*4 frames.*4 of a window"),
        ({"--upscale-guidance-scale": "x"}, "--upscale-guidance-scale: .*'x'"),
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


def test_truncated_prompts_of_a_file_and_negative_prompts_are_warned_of(folder, tmp_path, capsys):
    long = "a red circle moves left and then a green star is spinning"
    (tmp_path / "prompts.txt").write_text(f"a star\n{long}\n")
    options = ("--negative-prompt", f"no {long}")
    assert run_prompts(folder, tmp_path / "prompts.txt", tmp_path / "out.mp4", *options) == 0
    warnings = re.findall(r"stunet: (\w+: .* truncated to the 12 tokens)", capsys.readouterr().err)
    expected = {"prompt": 1, "negative_prompt": 2}  # prompts that each is reported with
    assert Counter(warning.split(":")[0] for warning in warnings) == expected


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
    assert f"default: the model's, else {steps}" in text
    for option in ("sampler", "steps", "guidance-scale"):
        assert re.search(rf" --{option} [A-Z].*?default: the model's", text)
        assert re.search(rf" --upscale-{option} [A-Z].*?default: each model's", text)


def test_the_command_as_a_process(folder, tmp_path):
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(cli.__file__).parents[1]),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
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


def run_prompts(folder, file, out, *options):
    arguments = ["--prompts", file, "--model", folder, "--out", out, *QUICK, *options]
    return cli.main(["generate", *map(str, arguments)])


def test_a_file_of_prompts_is_resumed(folder, tmp_path, capsys):
    file, out = tmp_path / "prompts.txt", tmp_path / "out.mp4"
    file.write_bytes("\ufeffa red circle\r\n\na star\u2028moves\r\n".encode())
    assert run_prompts(folder, file, out, "--seed", 7, "--negative-prompt", "blue") == 0
    paths = [tmp_path / f"out_000{i}.mp4" for i in range(2)]
    settings = [json.loads(read_comment(path)) for path in paths]
    assert [s["prompt"] for s in settings] == ["a red circle", "a star\u2028moves"]
    assert [s["seed"] for s in settings] == [7, 8]
    assert [s["negative_prompt"] for s in settings] == ["blue", "blue"]
    # Each is what the command with that prompt and seed makes.
    alone = tmp_path / "alone.mp4"
    options = (*QUICK, "--seed", "8", "--negative-prompt", "blue")
    assert run(folder, alone, *options, prompt="a star\u2028moves") == 0
    np.testing.assert_array_equal(read_video(alone)[0], read_video(paths[1])[0])
    # The same command makes what is missing and nothing else.
    contents = [path.read_bytes() for path in paths]
    paths[0].unlink()
    before = paths[1].stat().st_mtime_ns
    assert run_prompts(folder, file, out, "--seed", 7, "--negative-prompt", "blue") == 0
    assert [path.read_bytes() for path in paths] == contents
    assert paths[1].stat().st_mtime_ns == before
    capsys.readouterr()
    assert run_prompts(folder, file, out, "--seed", 7) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "out_0000.mp4" in line and "negative_prompt" in line and "'blue'" in line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "a.gif"], r"a\.gif.*\.mp4.*--prompts"),
        (["--num-videos", "2"], "--num-videos"),
        (["--xt-slice", "a.png"], "--xt-slice"),
        (["a star"], "--prompts.*'a star'"),
    ],
)
def test_options_that_do_not_suit_a_file_of_prompts(folder, tmp_path, capsys, options, message):
    file = tmp_path / "prompts.txt"
    file.write_text("a star\n")
    arguments = ["--prompts", str(file), "--model", str(folder), "--out", str(tmp_path / "a.mp4")]
    assert cli.main(["generate", *arguments, *options]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == [file]


def test_files_of_prompts_that_cannot_be_read(folder, tmp_path, capsys):
    for content, message in ((b"\n \n", "no prompt"), (b"\xff\xff", "UTF-8")):
        file = tmp_path / "prompts.txt"
        file.write_bytes(content)
        assert run_prompts(folder, file, tmp_path / "a.mp4") == 2
        assert re.search(rf"prompts\.txt: .*{message}", capsys.readouterr().err)


def test_a_prompt_that_names_a_file_gives_a_hint(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("a star\n")
    assert run(folder, "a.png", *QUICK, prompt="prompts.txt") == 0
    (line,) = (x for x in capsys.readouterr().err.splitlines() if "--prompts" in x)
    assert "'prompts.txt'" in line and Path("a.png").exists()


def test_a_name_with_a_colon_and_the_home_directory(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert run(folder, "12:30.mp4", *QUICK) == 0
    assert len(read_video("12:30.mp4")[0]) == NUM_FRAMES
    assert run(folder, "~/out.mp4", *QUICK, "--xt-slice", "~/slice.png") == 0
    names = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*"))
    assert names == ["12:30.mp4", "home/out.mp4", "home/slice.png"]


def test_a_result_whose_place_is_full_by_now_is_kept(folder, tmp_path, capsys, monkeypatch):
    out, kept = tmp_path / "out.mp4", tmp_path / "kept"
    kept.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(kept))
    original = os.replace

    def replace(source, target):
        if Path(target) == out:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        original(source, target)

    monkeypatch.setattr(os, "replace", replace)
    assert run(folder, out, *QUICK) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    (path,) = kept.rglob("*.mp4")
    assert str(out) in line and str(path) in line
    assert len(read_video(path)[0]) == NUM_FRAMES and not out.exists()
