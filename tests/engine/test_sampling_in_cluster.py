"""`stunet generate --cluster`: two processes with two devices each."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from stunet.checksums import write_checksums
from stunet.engine.cascade import load_models
from stunet.engine.request import Request, Sampling
from stunet.engine.run import run
from stunet.video_io import read_video, write_video
from tests.studio.models import save_models
from tests.tiny import CAPTIONS, NUM_FRAMES, fast_compiles, save_tiny_model

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).parents[2]
STEPS, LONG = 2, 2 * NUM_FRAMES


def in_cluster(root, *arguments):
    """Runs a command in two processes, each in its own folder; returns their codes and errors."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes = []
    for number in range(2):
        (root / str(number)).mkdir(parents=True, exist_ok=True)
        environment = os.environ | {
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "PYTHONPATH": str(ROOT),
            "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        }
        command = [sys.executable, "-m", "tests.engine.record_command", str(root / f"{number}.npz")]
        processes.append(
            subprocess.Popen(
                [*command, *arguments, f"--cluster=localhost:{port},2,{number}"],
                cwd=root / str(number),
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    errors = [process.communicate(timeout=400)[1] for process in processes]
    return [process.returncode for process in processes], errors


def error_lines(text):
    return [line for line in text.splitlines() if line.startswith("stunet: error: ")]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return save_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def cluster(folders, tmp_path_factory):
    """The folder of a cluster that sampled a base model in a style, and an upscaler."""
    root = tmp_path_factory.mktemp("cluster")
    models = f"--model={folders['fill']}", f"--style={folders['style']}"
    options = f"--num-frames={LONG}", "--sampler=ddim", f"--steps={STEPS}"
    upscale = f"--upscale={folders['ssr']}", "--upscale-sampler=ddim", f"--upscale-steps={STEPS}"
    codes, errors = in_cluster(
        root, "generate", CAPTIONS[0], *models, *options, *upscale, "--out=clip.mp4"
    )
    assert codes == [0, 0], errors
    return root, errors


def test_two_processes_sample_the_same_clip_as_one(folders, cluster):
    root, _ = cluster
    models = load_models(folders["fill"], [folders["ssr"]], folders["style"])
    sampling = Sampling(sampler="ddim", steps=STEPS, upscale_sampler="ddim", upscale_steps=STEPS)
    request = Request(
        application="generate", prompts=(CAPTIONS[0],), num_frames=LONG, sampling=sampling
    )
    with fast_compiles():
        expected = run(models, request).videos
    assert expected.std() > 0.1
    for number in range(2):
        with np.load(root / f"{number}.npz") as found:
            assert found["processes"] == 2
            np.testing.assert_allclose(found["videos"], expected, rtol=0, atol=1e-5)


def test_every_device_holds_a_quarter_of_each_kernel(cluster):
    root, _ = cluster
    for number in range(2):
        with np.load(root / f"{number}.npz") as found:
            sizes = {name: found[name] for name in found if "/" in name}
        large = {name: sizes for name, sizes in sizes.items() if sizes[0] >= 2**10}
        assert {name.split("/")[0] for name in large} == {"0", "1", "2"}  # base, upscaler, style
        assert {name.split("/")[1] for name in large} == {"unet", "text_encoder"}
        for name, (size, *shards) in large.items():
            assert shards == [size / 4] * 2, name


def test_process_0_alone_writes_and_shows_progress(cluster):
    root, (err, quiet_err) = cluster
    assert [path.name for path in (root / "0").iterdir()] == ["clip.mp4"]
    assert list((root / "1").iterdir()) == []
    written, _ = read_video(root / "0" / "clip.mp4")
    assert len(written) == LONG
    assert "sampling" in err and "enlarging" in err
    assert "sampling" not in quiet_err and "enlarging" not in quiet_err


def test_different_weights_end_all_processes(tmp_path):
    folders = [save_tiny_model(tmp_path / str(number) / "model") for number in range(2)]
    weights = folders[1] / "unet_temporal.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    write_checksums(folders[1])
    codes, errors = in_cluster(tmp_path, "generate", CAPTIONS[0], "--model=model", "--out=clip.mp4")
    assert codes == [2, 2]
    (line,), (other,) = map(error_lines, errors)
    assert line == other and line.startswith("stunet: error: model: ")
    assert "process 1" in line and "process 0" in line
    for number in range(2):
        assert [path.name for path in (tmp_path / str(number)).iterdir()] == ["model"]


def test_an_input_that_one_process_lacks_ends_all(folders, tmp_path):
    (tmp_path / "0").mkdir()
    write_video(tmp_path / "0" / "in.mp4", np.zeros((NUM_FRAMES, 16, 16, 3)), 8)
    codes, errors = in_cluster(
        tmp_path,
        *("edit", "in.mp4", CAPTIONS[0], f"--model={folders['fill']}"),
        *("--strength=0.5", "--out=out.mp4"),
    )
    assert codes == [2, 2]
    (line,), (other,) = map(error_lines, errors)
    assert line == other and "process 1" in line and "in.mp4" in line
    assert [path.name for path in (tmp_path / "0").iterdir()] == ["in.mp4"]
