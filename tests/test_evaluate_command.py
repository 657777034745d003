"""`stunet evaluate` on folders of moving shapes, with random weights of narrow networks."""

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
from stunet.evaluation.torch_weights import renamed
from stunet.video_io import write_video
from tests.parity import metric_cases as cases
from tests.tiny import fast_compiles

CLIPS, FRAMES = 2, 16


@pytest.fixture(scope="module", autouse=True)
def _fast_compiles():
    with fast_compiles():
        yield


@pytest.fixture(autouse=True)
def _compiler_as_before(monkeypatch):
    monkeypatch.setattr(
        "stunet.compiling.prepare_compiler", lambda: None
    )  # it is the process's for good


def table_of(init):
    return renamed(jax.eval_shape(init))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Folders `made` and `real`, their prompts, and the weights of all networks."""
    root = tmp_path_factory.mktemp("evaluate")
    rng, rows = np.random.default_rng(0), []
    for folder, split in (("made", "train"), ("real", "heldout")):
        for seed in range(CLIPS):
            attributes = draw_attributes(split, rng)
            video = render(attributes, seed, FRAMES, 32, 8.0)
            write_video(root / folder / f"{seed}.mp4", video, 8.0)
            if folder == "made":
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
    counted = {"logits.bn.num_batches_tracked": np.zeros((), np.int64)}  # in newer files
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
    assert run(root, "{}/made", *pairs) == 0
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
        said = report[part]
        assert (said["num_clips"], said["frames"], said["fps"]) == (CLIPS, FRAMES, [8.0, 8.0])
    assert "4/4" in printed.err and "an FVD of 2 clips is too high" in printed.err
    assert (tmp_path / "report" / "xt_slices.png").is_file()


def test_without_weights(root, capsys):
    assert run(root, "{}/made", "--frames", "8") == 0
    printed = capsys.readouterr().out
    assert re.findall(r"^  (\w+)", printed, re.MULTILINE) == ["flicker", "motion_energy"]
    assert f"clips: {CLIPS} of 8 frames at 8 fps, 256x256" in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["{}/empty"], "empty: holds no video"),
        (["{}/nowhere"], "nowhere: no such folder"),
        (["{}/made", "--frames", "17"], r"0\.mp4: has 16 frames, but 17 of each clip"),
        (["{}/made", "--i3d", "{}/i3d.safetensors"], "--i3d needs --reference"),
        (["{}/made", "--clip", "{}/clip"], "--clip needs --prompts"),
        (["{}/made", "--prompts", "{}/prompts.tsv"], "--prompts needs --clip"),
        (
            ["{}/made", "--clip", "{}/clip", "--prompts", "{}/fewer.tsv"],
            r"fewer\.tsv: has no text for 1\.mp4$",
        ),
        (["{}/made", "--c3d", "{}/c3d.safetensors"], "in 10 parts takes as many clips, got 2"),
        (
            ["{}/made", "--c3d", "{}/c3d.safetensors", "--splits", "1", "--frames", "8"],
            "C3D takes clips of 16 frames, not of 8",
        ),
        (["{}/made", "--c3d", "{}/i3d.safetensors"], "these weights are I3D's"),
        (
            ["{}/made", "--reference", "{}/real", "--i3d", "{}/other.safetensors"],
            r"Mixed_5c\.b0\.conv3d\.weight \(expected \(48, 104, 1, 1, 1\), got \(47, 104",
        ),
        (["{}/made", "--reference", "{}/real", "--i3d", "{}/i3d.pt"], r"i3d\.pt: a pickle"),
        (["{}/made", "--windows", "8"], "'8' is not two whole numbers of frames"),
        (["{}/made", "--windows", "8,8"], "window overlap is 8"),
        (["{}/made", "--windows", "16,2"], "windows of 16 frames have no seams"),
        (["{}/made", "--out", "{}/prompts.tsv"], "cannot be written"),
    ],
)
def test_mistakes_are_one_line(root, capsys, options, message):
    assert run(root, *options) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "stunet: error" in line]
    assert len(lines) == 1 and re.search(message, lines[0]), lines
