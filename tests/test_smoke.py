"""Imports every module and generates a video; run also with other versions of Python and JAX."""

import importlib
import importlib.util
import pkgutil

import numpy as np

import data
import experiments.configs
import stunet
from tests.calls import generate
from tests.tiny import NUM_FRAMES, RESOLUTION, fast_compiles, save_tiny_model

OPTIONAL = {"stunet.studio.page": "gradio"}  # module -> package of an extra


def test_every_module_can_be_imported():
    for package in (stunet, data, experiments.configs):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            extra = OPTIONAL.get(module.name)
            if extra is None or importlib.util.find_spec(extra) is not None:
                importlib.import_module(module.name)


def test_a_tiny_model_generates_a_video(tmp_path):
    model = stunet.load(save_tiny_model(tmp_path / "model"))
    with fast_compiles():
        video = generate(model, ["a red circle"], steps=2)
    assert video.shape == (1, NUM_FRAMES, RESOLUTION, RESOLUTION, 3)
    assert np.abs(video).max() <= 1 and video.std() > 0.01
