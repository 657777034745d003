import subprocess
import sys
import time
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest

from experiments.configs import shapes
from experiments.ship import ENDINGS, WORLDS
from stunet.errors import UserError
from stunet.models.unet import init_unet
from stunet.schema import to_dict
from stunet.weights import shipped
from stunet.weights.model_folder import ModelFolder, read_model_folder, write_model_folder
from stunet.weights.safetensors_io import open_safetensors
from stunet.weights.trees import flatten, is_added
from tests.tiny import UNET, random_params, save_tiny_model


def ship(*flags):
    command = [sys.executable, "-m", "experiments.ship", *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def save_style(folder):
    """Writes an image model with the others' text encoder and other values in the U-Net."""
    model = read_model_folder(folder)
    unet = UNET.text_to_image()
    params = random_params(jax.eval_shape(lambda: init_unet(unet, jax.random.key(0))), seed=1)
    config = {**model.config, "architecture": to_dict(unet), "stage": "style"}
    write_model_folder(
        folder, ModelFolder(config, {**model.params, "unet": params}, model.tokenizer)
    )


@pytest.mark.parametrize("name", WORLDS)
def test_each_world_has_the_same_kinds_of_models(name):
    assert ENDINGS.keys() <= set(WORLDS[name].config.STAGES)
    assert tuple(f"shapes{ending}" for ending in ENDINGS.values()) == shipped.SHAPES


def test_finished_stages_become_models_of_half_the_size(tmp_path):
    for stage in shapes.STAGES:
        save_tiny_model(tmp_path / stage / "model")
        steps = shapes.get_config(stage).total_steps
        (tmp_path / stage / "DONE").write_text(f"{steps} steps of stage {stage}\n")
    save_style(tmp_path / "style" / "model")
    out = tmp_path / "out"
    done = ship(f"--workdir={tmp_path}", f"--out={out}")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in out.iterdir()) == sorted(shipped.SHAPES)
    # The image model, which several models share, is stored once.
    assert not (out / "shapes-fill" / "unet_spatial.safetensors").exists()
    trained = flatten(read_model_folder(tmp_path / "conditional" / "model").params)
    written = flatten(read_model_folder(out / "shapes-fill").params)
    assert written.keys() == trained.keys()
    for path, leaf in trained.items():
        if leaf.ndim > 1:
            assert written[path].dtype == ml_dtypes.bfloat16, path
            error = np.abs(written[path].astype(np.float32) - leaf)
            assert (error <= np.abs(leaf) * 2.0**-8).all(), path
        else:
            np.testing.assert_array_equal(written[path], leaf)

    # The style has its small parameters, and low-rank approximations of its kernels.
    tuned, base = (
        flatten(read_model_folder(tmp_path / stage / "model").params["unet"])
        for stage in ("style", "t2v_16")
    )
    style = flatten(read_model_folder(out / "shapes-duotone").params["unet"])
    adapted = open_safetensors(out / "shapes-duotone" / "adapters.safetensors")
    assert style.keys() == tuned.keys() == {path for path in base if not is_added(path)}
    for path, leaf in tuned.items():
        got = style[path].astype(np.float32)
        if f"{path}/up" in adapted:
            assert adapted[f"{path}/up"].shape == (3, leaf.shape[-1])
            left, change = (np.linalg.norm(leaf - x) for x in (got, base[path]))
            assert left < 0.95 * change, path
        else:
            np.testing.assert_allclose(got, leaf, rtol=2.0**-8)


def test_out_of_time(tmp_path):
    done = ship(f"--workdir={tmp_path}", f"--out={tmp_path / 'out'}", "--minutes=0")
    assert done.returncode == 75, done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads Linux's /proc")
def test_sigterm_ends_its_stages_too(tmp_path):
    flags = [f"--workdir={tmp_path / 'runs'}", f"--out={tmp_path / 'out'}"]
    command = [sys.executable, "-m", "experiments.ship", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        stages = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while len(stages.read_text().split()) < 2:
            assert process.poll() is None
            time.sleep(0.1)
        time.sleep(1)  # until they run
        process.terminate()
        process.communicate(timeout=120)
    assert process.returncode == 75


def test_a_stage_that_fails_ends_it(tmp_path):
    done = ship(f"--workdir={tmp_path}", f"--out={tmp_path / 'out'}", "--set=--config.nonsense=1")
    assert done.returncode == 2
    assert "nonsense" in done.stderr
    assert not (tmp_path / "out").exists()


def test_an_unknown_stage():
    with pytest.raises(UserError, match=r"shapes.py:t3v.* t2i, t2v"):
        shapes.get_config("t3v")
