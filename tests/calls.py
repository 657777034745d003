"""The public functions with sampling settings as keywords, from arrays to arrays."""

from collections.abc import Callable
from typing import Any

import numpy as np

import stunet


def generate(model, prompts, *, on_chunk=None, num_frames=None, **sampling) -> np.ndarray:
    return stunet.generate(
        model,
        prompts,
        num_frames=num_frames,
        sampling=stunet.Sampling(**sampling),
        progress=steps_only(on_chunk),
    ).videos


def upscale(model, videos, prompts, *, on_chunk=None, noise_level=None, **sampling) -> np.ndarray:
    return stunet.upscale(
        model,
        videos,
        prompts,
        noise_level=noise_level,
        sampling=stunet.Sampling(**sampling),
        progress=steps_only(on_chunk),
    ).videos


def edit(model, videos, prompts, *, strength, on_chunk=None, **sampling) -> np.ndarray:
    return stunet.edit(
        model,
        videos,
        prompts,
        strength=strength,
        sampling=stunet.Sampling(**sampling),
        progress=steps_only(on_chunk),
    ).videos


def steps_only(on_chunk: Callable[[int, int, Any], None] | None) -> Callable:
    """A progress function that passes (done, total, estimate) of the sampling steps on."""

    def progress(report: stunet.Progress) -> None:
        if on_chunk is not None and report.stage != "reading":
            on_chunk(report.done, report.total, report.estimate)

    return progress
