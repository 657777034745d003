"""The zero-shot protocol, run on stand-ins: moving shapes by class, random weights."""

import dataclasses
import json
from collections import Counter
from pathlib import Path

import av
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.moving_shapes.render import render
from data.moving_shapes.vocabulary import Attributes
from data.ucf101.ucf101_builder import read_class_prompts
from experiments import ucf101
from stunet.errors import UserError
from stunet.evaluation.c3d import C3D
from stunet.evaluation.i3d import I3D
from stunet.evaluation.torch_weights import renamed
from stunet.video_io import read_video, to_uint8
from tests.parity import metric_cases as cases
from tests.tiny import save_tiny_model

REAL_PROMPTS = Path(__file__).parents[3] / "shared" / "ucf101_prompts.tsv"
REAL = {"RedCircle": 1, "BlueStar": 1}


def write_avi(path, video):
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.height, stream.width, stream.pix_fmt = *video.shape[1:3], "yuv420p"
        for picture in to_uint8(video):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    root = tmp_path_factory.mktemp("ucf101")
    for label, count in REAL.items():
        colour, shape = ("red", "circle") if label == "RedCircle" else ("blue", "star")
        attributes = Attributes(shape, colour, "right", "light", "large", "slow")
        for seed in range(count):
            video = render(attributes, seed, 16, 32, 8.0)
            write_avi(root / "UCF-101" / label / f"v_{label}_g{seed:02d}_c01.avi", video)
    (root / "prompts.tsv").write_text("RedCircle\ta red circle\nBlueStar\ta blue star\n")
    for name, network, shape in (
        ("i3d", I3D(cases.I3D_STEM, 5), (1, 9, 224, 224, 3)),
        ("c3d", C3D(cases.C3D_WIDTH, 7), (1, 16, 128, 128, 3)),
    ):
        ours = jax.eval_shape(
            lambda n=network, s=shape: n.init(jax.random.key(0), jnp.zeros(s))["params"]
        )
        cases.write_weights(root / f"{name}.safetensors", renamed(ours))
    return ucf101.ZeroShotConfig(
        model=str(save_tiny_model(root / "model", num_frames=16)),
        reference=str(root / "UCF-101"),
        prompts=str(root / "prompts.tsv"),
        i3d=str(root / "i3d.safetensors"),
        c3d=str(root / "c3d.safetensors"),
        num_videos=4,
        splits=2,
        steps=2,
        batch_size=2,
    )


def test_whole(config, tmp_path, capsys, monkeypatch):
    ucf101.compare(config, tmp_path)
    printed = capsys.readouterr().out
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["clips"]["num_clips"] == 4 and report["reference"]["num_clips"] == 2
    fvd, score = (report["metrics"][name]["value"] for name in ("fvd", "inception_score"))
    *_, paper, here, path = printed.splitlines()
    assert paper.split() == ["Lumiere", "332.49", "37.54"]
    assert here.split()[-2:] == [f"{fvd:.2f}", f"{score:.2f}"]
    assert here.startswith("here, 4 clips of 16 ") and path == str(tmp_path / "report.json")
    rows = [row.split("\t") for row in (tmp_path / "prompts.tsv").read_text().splitlines()]
    assert Counter(prompt for _, prompt in rows) == {"a red circle": 2, "a blue star": 2}
    assert all(("red" in prompt) == name.endswith("_RedCircle.mp4") for name, prompt in rows)

    # Stopped, and started again: what is made anew is what it was, and no more is made.
    paths = sorted((tmp_path / "clips").iterdir())
    before = [read_video(path)[0] for path in paths]
    assert np.abs(before[0] - before[1]).mean() > 0.01
    paths[3].unlink()
    made, whole = [], ucf101.generate

    def counted(model, prompts, **sampling):
        made.append(prompts)
        return whole(model, prompts, **sampling)

    monkeypatch.setattr(ucf101, "generate", counted)
    ucf101.make_clips(config, tmp_path)
    assert [len(prompts) for prompts in made] == [2]
    np.testing.assert_array_equal(read_video(paths[3])[0], before[3])
    with pytest.raises(UserError, match="were made with another steps; name a new workdir"):
        ucf101.make_clips(dataclasses.replace(config, steps=3), tmp_path)


def test_shares_are_those_of_the_classes():
    counts = {"a": 100, "b": 145, "c": 31}
    shares = ucf101.apportioned(counts, 50)
    assert sum(shares.values()) == 50
    assert all(abs(shares[name] - 50 * counts[name] / 276) < 1 for name in counts)
    assert ucf101.apportioned(counts, 276) == counts
    assert ucf101.apportioned(counts, 1) == {"a": 0, "b": 1, "c": 0}


def test_what_would_fail_late_fails_at_once(config, tmp_path):
    (tmp_path / "one.tsv").write_text("RedCircle\ta red circle\n")
    for changes, message in (
        ({"frames": 12}, "C3D takes clips of 16 frames, not of 12"),
        ({"splits": 7}, "in 7 parts takes as many clips, got 4"),
        ({"reference": str(tmp_path / "UCF.zip")}, "UCF.zip: no such folder"),
        ({"prompts": str(tmp_path / "one.tsv")}, "has no prompt for BlueStar"),
        ({"fps": 4.0}, "makes 16 frames at 8 a second; compared are 16 at 4"),
        ({"c3d": config.i3d}, "these weights are I3D's"),
    ):
        with pytest.raises(UserError, match=message):
            changed = dataclasses.replace(config, **{"i3d": None, **changes})
            ucf101.compare(changed, tmp_path / "work")
        assert not (tmp_path / "work" / "clips").exists()


@pytest.mark.skipif(not REAL_PROMPTS.is_file(), reason="no shared/ucf101_prompts.tsv beside")
def test_the_real_prompts_are_one_a_class():
    prompts = read_class_prompts(REAL_PROMPTS)
    assert len(prompts) == 101 and len(set(prompts.values())) == 101 and all(prompts.values())
