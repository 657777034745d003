"""Text in, video out: sampling from a model, and from a cascade of them.

model, upscaler = load("runs/tiny_t2v"), load("runs/tiny_ssr")
prompts = ["a red star moves left"]
small = generate(model, prompts)  # [1, T, H, W, 3] in [-1, 1]
video = upscale(upscaler, small, prompts)[0]  # [T, 4 H, 4 W, 3]

Any model of videos also takes `edit`; one of stage "conditional" takes `animate`, `interpolate`,
`inpaint` and `cinemagraph`, which are one function, `fill`, with different pixels given.
"""

from stunet.engine.applications import (
    animate,
    cinemagraph,
    edit,
    fill,
    inpaint,
    interpolate,
    stylised,
)
from stunet.engine.cascade import check_cascade, enlarge, fill_and_enlarge, said_of_windows
from stunet.engine.given import given_frames, given_still, whole_strides
from stunet.engine.making import generate, upscale
from stunet.engine.sampling import (
    DEFAULT_STEPS,
    ChunkSettings,
    Sampling,
    devices_for,
    encode_text,
    network,
    run_chunk,
    windows_of,
)
from stunet.model import Model, load

__all__ = [
    "DEFAULT_STEPS",
    "ChunkSettings",
    "Model",
    "Sampling",
    "animate",
    "check_cascade",
    "cinemagraph",
    "devices_for",
    "edit",
    "encode_text",
    "enlarge",
    "fill",
    "fill_and_enlarge",
    "generate",
    "given_frames",
    "given_still",
    "inpaint",
    "interpolate",
    "load",
    "network",
    "run_chunk",
    "said_of_windows",
    "stylised",
    "upscale",
    "whole_strides",
    "windows_of",
]
