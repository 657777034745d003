import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

from experiments.configs import shapes
from stunet.errors import UserError
from stunet.weights.model_folder import load_model
from stunet.weights.trees import flatten
from tests.tiny import save_tiny_model


def ship(*flags):
    command = [sys.executable, "-m", "experiments.ship", *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_finished_stages_become_models_of_half_the_size(tmp_path):
    for stage in shapes.STAGES:
        save_tiny_model(tmp_path / stage / "model")
        (tmp_path / stage / "DONE").write_text("trained\n")
    out = tmp_path / "out"
    done = ship(f"--workdir={tmp_path}", f"--out={out}")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in out.iterdir()) == ["shapes", "shapes-fill", "shapes-ssr"]
    # The image model, which the two have in common, is there once.
    assert not (out / "shapes-fill" / "unet_spatial.safetensors").exists()
    trained = flatten(load_model(tmp_path / "conditional" / "model").params)
    shipped = flatten(load_model(out / "shapes-fill").params)
    assert shipped.keys() == trained.keys()
    for path, leaf in trained.items():
        if leaf.ndim > 1:
            assert shipped[path].dtype == ml_dtypes.bfloat16, path
            error = np.abs(shipped[path].astype(np.float32) - leaf)
            assert (error <= np.abs(leaf) * 2.0**-8).all(), path
        else:
            np.testing.assert_array_equal(shipped[path], leaf)


def test_out_of_time_before_the_end(tmp_path):
    done = ship(f"--workdir={tmp_path}", f"--out={tmp_path / 'out'}", "--minutes=0")
    assert done.returncode == 75, done.stderr
    assert not (tmp_path / "out").exists()


def test_a_stage_that_fails_ends_it(tmp_path):
    done = ship(f"--workdir={tmp_path}", f"--out={tmp_path / 'out'}", "--set=--config.nonsense=1")
    assert done.returncode == 2
    assert "nonsense" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_stage_that_is_none():
    with pytest.raises(UserError, match=r"shapes.py:t3v: choose one of t2i, t2v"):
        shapes.get_config("t3v")
