from pathlib import Path

import jax
import numpy as np
import pytest

from stunet.model import load, parameter_shapes
from stunet.models.t5 import TextEncoderConfig
from stunet.training import parameters
from stunet.training.stages import TextToImage
from stunet.weights.trees import flatten
from tests.tiny import T5, UNET, save_tiny_model


def test_parameters_of_several_programs_equal_those_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    unet = UNET.text_to_image()
    stage = TextToImage(unet=unet, text_encoder=TextEncoderConfig(T5, 4))
    shapes = flatten(parameter_shapes(unet, T5))
    model = load(save_tiny_model(tmp_path / "model", unet))

    def initialised() -> dict[str, np.ndarray]:
        return jax.device_get(parameters.init_parameters(stage, model, shapes, seed=3))

    together = initialised()
    total = sum(leaf.nbytes for leaf in together.values())
    programs = []
    monkeypatch.setattr(parameters, "INIT_BYTES", total // 3)
    monkeypatch.setattr(jax, "block_until_ready", lambda arrays: programs.append(arrays) or arrays)
    apart = initialised()
    assert 3 <= len(programs) <= 5
    assert {path: leaf.tobytes() for path, leaf in apart.items()} == {
        path: leaf.tobytes() for path, leaf in together.items()
    }
