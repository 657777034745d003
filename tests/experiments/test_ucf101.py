"""The zero-shot comparison on moving shapes, with networks of random weights."""

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
from stunet.evaluation.torch_weights import torch_parameters
from stunet.video_io import read_video, to_uint8
from tests.experiments.runs import ended, start_cluster, write_config
from tests.parity import metric_cases as cases
from tests.tiny import save_tiny_model

REAL_PROMPTS = Path(__file__).parents[3] / "shared" / "ucf101_prompts.tsv"
REAL = {"RedCircle": 1, "BlueStar": 1}
BLUE = "a blue star that is spinning and spinning and spinning"  # more than the model's 12 tokens


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
    (root / "prompts.tsv").write_text(f"RedCircle\ta red circle\nBlueStar\t{BLUE}\n")
    for name, network, shape in (
        ("i3d", I3D(cases.I3D_STEM, 5), (1, 9, 224, 224, 3)),
        ("c3d", C3D(cases.C3D_WIDTH, 7), (1, 16, 128, 128, 3)),
    ):
        ours = jax.eval_shape(
            lambda n=network, s=shape: n.init(jax.random.key(0), jnp.zeros(s))["params"]
        )
        cases.write_weights(root / f"{name}.safetensors", torch_parameters(ours))
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


def test_generates_measures_and_resumes(config, tmp_path, capsys, monkeypatch):
    ucf101.compare(config, tmp_path)
    printed, errors = capsys.readouterr()
    (warning,) = (line for line in errors.splitlines() if "truncated" in line)
    assert "prompts.tsv: prompts: 1 of 2 truncated to the 12 tokens" in warning
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["clips"]["num_clips"] == 4 and report["reference"]["num_clips"] == 2
    fvd, score = (report["metrics"][name]["value"] for name in ("fvd", "inception_score"))
    *_, paper, here, path = printed.splitlines()
    assert paper.split() == ["Lumiere", "332.49", "37.54"]
    assert here.split()[-2:] == [f"{fvd:.2f}", f"{score:.2f}"]
    assert here.startswith("here, 4 clips of 16 ") and path == str(tmp_path / "report.json")
    rows = [row.split("\t") for row in (tmp_path / "prompts.tsv").read_text().splitlines()]
    assert Counter(prompt for _, prompt in rows) == {"a red circle": 2, BLUE: 2}
    assert all(("red" in prompt) == name.endswith("_RedCircle.mp4") for name, prompt in rows)

    # Resuming regenerates the missing clip, equal to the first, and no other batch.
    paths = sorted((tmp_path / "clips").iterdir())
    before = [read_video(path)[0] for path in paths]
    assert np.abs(before[0] - before[1]).mean() > 0.01
    paths[3].unlink()
    requests = record_requests(monkeypatch)
    ucf101.generate_clips(config, tmp_path)
    assert [len(request.prompts) for request in requests] == [2]
    np.testing.assert_array_equal(read_video(paths[3])[0], before[3])
    with pytest.raises(UserError, match="another steps,"):
        ucf101.generate_clips(dataclasses.replace(config, steps=3), tmp_path)


def record_requests(monkeypatch):
    """Returns a list to which every request that is run from now on is added."""
    requests, run = [], ucf101.run

    def recording_run(models, request):
        requests.append(request)
        return run(models, request)

    monkeypatch.setattr(ucf101, "run", recording_run)
    return requests


@pytest.mark.cluster
def test_two_processes_share_the_clips_and_one_resumes(config, tmp_path, monkeypatch):
    ucf101.generate_clips(config, tmp_path / "one")
    expected = {path.name: read_video(path)[0] for path in (tmp_path / "one" / "clips").iterdir()}

    def check(workdir):
        found = {path.name: read_video(path)[0] for path in (workdir / "clips").iterdir()}
        assert found.keys() == expected.keys() and len(found) == 4
        for name, video in found.items():
            # Rounding to 8 bits and H.264 magnify differences of 1e-6 in single pixels.
            assert np.abs(video - expected[name]).mean() < 1e-4

    path = write_config(tmp_path / "config.py", dataclasses.asdict(config))
    workdir = tmp_path / "two"
    command = ("experiments.ucf101",) * 2
    runs = ended(*start_cluster(path, workdir, tmp_path / "cache", commands=command))
    assert [code for *_, code in runs] == [0, 0], runs
    (out, err, _), (quiet_out, quiet_err, _) = runs
    check(workdir)
    assert (workdir / "report.json").is_file() and "Lumiere" in out and "Lumiere" not in quiet_out
    # Each process generated one of the two batches.
    assert "2/2" in err and "process 0 of 2" in err and "generating" not in quiet_err

    sorted((workdir / "clips").iterdir())[3].unlink()
    requests = record_requests(monkeypatch)
    ucf101.generate_clips(config, workdir)
    assert len(requests) == 1
    check(workdir)


def test_apportion():
    counts = {"a": 100, "b": 145, "c": 31}
    shares = ucf101.apportion(counts, 50)
    assert sum(shares.values()) == 50
    assert all(abs(shares[name] - 50 * counts[name] / 276) < 1 for name in counts)
    assert ucf101.apportion(counts, 276) == counts
    assert ucf101.apportion(counts, 1) == {"a": 0, "b": 1, "c": 0}


def test_errors_are_raised_before_sampling(config, tmp_path):
    (tmp_path / "one.tsv").write_text("RedCircle\ta red circle\n")
    for changes, message in (
        ({"frames": 12}, "C3D: clips of 12 frames, expected 16"),
        ({"splits": 7}, "inception_score: 4 clips in 7 splits"),
        ({"reference": str(tmp_path / "UCF.zip")}, "UCF.zip: no such folder"),
        ({"prompts": str(tmp_path / "one.tsv")}, r"one\.tsv: no prompt for BlueStar"),
        ({"fps": 4.0}, "16 frames at 8 fps, .* 16 frames at 4 fps"),
        ({"c3d": config.i3d}, "I3D weights"),
    ):
        with pytest.raises(UserError, match=message):
            changed = dataclasses.replace(config, **{"i3d": None, **changes})
            ucf101.compare(changed, tmp_path / "work")
        assert not (tmp_path / "work" / "clips").exists()


@pytest.mark.skipif(not REAL_PROMPTS.is_file(), reason="no shared/ucf101_prompts.tsv")
def test_real_prompts_are_one_per_class():
    prompts = read_class_prompts(REAL_PROMPTS)
    assert len(prompts) == 101 and len(set(prompts.values())) == 101 and all(prompts.values())
