"""`stunet evaluate` on folders of moving shapes, with narrow networks of random weights."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from data.moving_shapes.render import render
from data.moving_shapes.vocabulary import caption, draw_attributes
from stunet import cli
from stunet.evaluation.c3d import C3D
from stunet.evaluation.clip import init_clip
from stunet.evaluation.clip_network import clip_config
from stunet.evaluation.i3d import I3D
from stunet.evaluation.torch_weights import torch_parameters
from stunet.video_io import write_video
from tests.parity import metric_cases as cases
from tests.tiny import fast_compiles

CLIPS, FRAMES = 2, 16


@pytest.fixture(scope="module", autouse=True)
def _fast_compiles():
    with fast_compiles():
        yield


@pytest.fixture(autouse=True)
def _keep_compiler_settings(monkeypatch):
    # Its settings would outlast the test.
    monkeypatch.setattr("stunet.compiling.prepare_compiler", lambda: None)


def table_of(init):
    return torch_parameters(jax.eval_shape(init))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Folders `generated` and `real`, prompts, and the weights of all networks."""
    root = tmp_path_factory.mktemp("evaluate")
    rng, rows = np.random.default_rng(0), []
    for folder, split in (("generated", "train"), ("real", "heldout")):
        for seed in range(CLIPS):
            attributes = draw_attributes(split, rng)
            video = render(attributes, seed, FRAMES, 32, 8.0)
            write_video(root / folder / f"{seed}.mp4", video, 8.0)
            if folder == "generated":
                rows.append(f"{seed}.mp4\t{caption(attributes, seed)}\n")
    (root / "prompts.tsv").write_text("".join(rows))
    (root / "fewer.tsv").write_text(rows[0])
    (root / "empty").mkdir()
    for name, network, shape in (
        ("i3d", I3D(cases.I3D_STEM, 5), (1, 9, 224, 224, 3)),
        ("c3d", C3D(cases.C3D_WIDTH, 7), (1, 16, 128, 128, 3)),
    ):
        table = table_of(
            lambda n=network, s=shape: n.init(jax.random.key(0), jnp.zeros(s))["params"]
        )
        cases.write_weights(root / f"{name}.safetensors", table)
    config = clip_config(cases.clip("quick_gelu"), "clip")
    cases.write_clip(
        root / "clip", "quick_gelu", table_of(lambda: init_clip(config, jax.random.key(0)))
    )
    tensors = load_file(root / "i3d.safetensors")
    counted = {
        "logits.bn.num_batches_tracked": np.zeros((), np.int64)
    }  # in files of newer PyTorch versions
    save_file(tensors | counted, root / "i3d.safetensors")
    tensors["Mixed_5c.b0.conv3d.weight"] = tensors["Mixed_5c.b0.conv3d.weight"][:-1]
    save_file(tensors, root / "other.safetensors")
    (root / "i3d.pt").write_bytes(b"")
    return root


def run(root, *options):
    return cli.main(["evaluate", *(option.format(root) for option in options)])


def test_every_metric(root, tmp_path, capsys):
    options = {
        "--reference": "{}/real",
        "--i3d": "{}/i3d.safetensors",
        "--c3d": "{}/c3d.safetensors",
        "--splits": "1",
        "--clip": "{}/clip",
        "--prompts": "{}/prompts.tsv",
        "--windows": "8,2",
        "--batch-size": "2",
        "--out": str(tmp_path / "report"),
    }
    pairs = [word for pair in options.items() for word in pair]
    assert run(root, "{}/generated", *pairs) == 0
    printed = capsys.readouterr()
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    scores = report["metrics"]
    assert list(scores) == [
        "flicker",
        "motion_energy",
        "seam_ratio",
        "fvd",
        "inception_score",
        "clip_similarity",
    ]
    for name, score in scores.items():
        assert re.search(rf"{name} +{score['value']:.3f}", printed.out), name
    assert scores["fvd"]["value"] > 1e-3 and 1 < scores["inception_score"]["value"] <= 2
    assert 0.01 < abs(scores["clip_similarity"]["value"]) <= 1
    for name, features in (("fvd", 5), ("inception_score", None), ("clip_similarity", None)):
        assert (
            len(scores[name]["weights_sha256"]) == 64 and scores[name].get("features") == features
        )
    for part in ("clips", "reference"):
        folder = report[part]
        assert (folder["num_clips"], folder["frames"], folder["fps"]) == (CLIPS, FRAMES, [8.0, 8.0])
    assert "4/4" in printed.err and re.search(r"^stunet: fvd: .* 2 clips", printed.err, re.M)
    assert (tmp_path / "report" / "xt_slices.png").is_file()


def test_without_weights(root, capsys):
    assert run(root, "{}/generated", "--frames", "8") == 0
    printed = capsys.readouterr().out
    assert re.findall(r"^  (\w+)", printed, re.MULTILINE) == ["flicker", "motion_energy"]
    assert f"clips: {CLIPS} of 8 frames at 8 fps, 256x256" in printed


def test_metric_from_outside_the_package(root, capsys):
    metric = "tests.evaluation.test_evaluate:BRIGHTNESS"
    options = ["--frames", "8", "--reference", "{}/real", "--metric", metric]
    assert run(root, "{}/generated", *options) == 0
    printed = capsys.readouterr()
    names = re.findall(r"^  (\w+)", printed.out, re.MULTILINE)
    assert names == ["flicker", "motion_energy", "brightness"]
    assert f"stunet: brightness: {CLIPS}" in printed.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["{}/empty"], r"empty: no videos, .*\.mp4"),
        (["{}/nowhere"], "nowhere: no such folder"),
        (["{}/generated", "--frames", "17"], r"0\.mp4: 16 frames, .* 17"),
        (["{}/generated", "--i3d", "{}/i3d.safetensors"], "--i3d.*--reference"),
        (["{}/generated", "--clip", "{}/clip"], "--clip.*--prompts"),
        (["{}/generated", "--prompts", "{}/prompts.tsv"], "--prompts.*--clip"),
        (
            ["{}/generated", "--clip", "{}/clip", "--prompts", "{}/fewer.tsv"],
            r"fewer\.tsv: .* 1\.mp4,",
        ),
        (["{}/generated", "--c3d", "{}/c3d.safetensors"], "inception_score: 2 clips in 10 splits"),
        (
            ["{}/generated", "--c3d", "{}/c3d.safetensors", "--splits", "1", "--frames", "8"],
            "C3D: clips of 8 frames, expected 16",
        ),
        (["{}/generated", "--c3d", "{}/i3d.safetensors"], "I3D weights"),
        (
            ["{}/generated", "--reference", "{}/real", "--i3d", "{}/other.safetensors"],
            r"Mixed_5c\.b0\.conv3d\.weight \(expected \(48, 104, 1, 1, 1\), got \(47, 104",
        ),
        (["{}/generated", "--reference", "{}/real", "--i3d", "{}/i3d.pt"], r"i3d\.pt: .*pickle"),
        (["{}/generated", "--windows", "8"], "--windows.*'8'.*LENGTH,OVERLAP"),
        (["{}/generated", "--windows", "8,8"], "overlap.* 8"),
        (["{}/generated", "--windows", "16,2"], "windows: length 16, overlap 2, .* 16 frames"),
        (["{}/generated", "--metric", "blur"], "'blur'.*flicker, "),
        (["{}/generated", "--metric", "fvd"], "'fvd'.*i3d"),
        (["{}/generated", "--metric", "json:loads"], "'json:loads'.*MetricEntry"),
        (["{}/generated", "--out", "{}/prompts.tsv"], r"prompts\.tsv"),
    ],
)
def test_mistakes_are_one_line(root, capsys, options, message):
    assert run(root, *options) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "stunet: error" in line]
    assert len(lines) == 1 and re.search(message, lines[0]), lines


def test_truncated_prompts_and_slow_clips_are_reported(root, tmp_path, capsys):
    table = tmp_path / "long.tsv"
    table.write_text("0.mp4\ta red circle\n1.mp4\t" + "a red circle " * 60 + "\n")
    options = ["--clip", "{}/clip", "--prompts", str(table), "--fps", "16"]
    assert run(root, "{}/generated", *options) == 0
    output = capsys.readouterr().err
    assert re.search(
        r"^stunet: clip_similarity: 1 of 2 prompts truncated to the \d+ tokens", output, re.M
    )
    assert re.search(
        r"^stunet: .*generated: 2 of 2 videos have fewer than 16 .* 8: 0\.mp4", output, re.M
    )


def test_paths_in_the_home_directory(root, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(root))
    monkeypatch.chdir(tmp_path)
    options = ["--frames", "8", "--reference", "~/real", "--out", "~/report"]
    assert run(root, "~/generated", *options) == 0
    assert (root / "report" / "report.json").is_file() and not list(tmp_path.iterdir())
    assert run(root, "~/generated", "--c3d", "~/absent.safetensors") == 2
    assert f"{root}/absent.safetensors: " in capsys.readouterr().err


def test_files_that_are_not_clips(root, tmp_path, capsys):
    for name in ("0.mp4", "1.mp4"):
        (tmp_path / name).write_bytes((root / "generated" / name).read_bytes())
    (tmp_path / "._0.mp4").write_bytes(b"x")
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "__MACOSX" / "0.mp4").write_bytes(b"x")
    (tmp_path / "a.heic").write_bytes(b"x")
    (tmp_path / "gone.mp4").symlink_to("nowhere")
    assert run(root, str(tmp_path), "--frames", "8") == 0
    printed = capsys.readouterr()
    assert "clips: 2 of 8 frames" in printed.out
    assert "stunet: gone.mp4: dangling link" in printed.err
    assert "stunet: not read: 1 .heic" in printed.err
    assert "_0.mp4" not in printed.err and "MACOSX" not in printed.err
    (tmp_path / "2.mp4").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    assert run(root, str(tmp_path), "--frames", "8") == 2
    assert re.search(r"2\.mp4: .*git lfs pull", capsys.readouterr().err)
