"""Measures the applications of a conditional model and a style on moving-shapes clips.

    python -m experiments.applications --model=runs/fill --base=runs/t2v --style=runs/duotone \\
        --out=runs/applications

Writes OUT.json and, for each application, a contact sheet OUT_NAME.png with the inputs above the
results. For editing and style, the rows of the sheet are strengths.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from tqdm import tqdm

import stunet
from data.moving_shapes.clips import Clips, draw_clips
from data.moving_shapes.duotone import distance_to_gradient
from data.moving_shapes.judge import agreement, judge
from data.moving_shapes.vocabulary import MOTIONS
from experiments.common.program_flags import define_num_clips, define_seed, read_flags
from stunet.compiling import prepare_compiler
from stunet.engine.generation import paste
from stunet.engine.inputs import KnownPixels
from stunet.engine.request import FEATHER
from stunet.errors import UserError, run_command
from stunet.evaluation.seams import frame_differences, psnr
from stunet.paths import output_file, write_text
from stunet.video_io import check_writable, contact_sheet, write_image

STYLE_STRENGTHS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # the range of the paper
EDIT_STRENGTHS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
IN_PLACE = ("spinning", "growing", "shrinking")  # motions inside a fixed box
SHEET_CLIPS = 4

APPLICATIONS = ("image_to_video", "inpainting", "cinemagraph", "editing", "style")

FLAGS = flags.FlagValues()
_ONLY = flags.DEFINE_multi_enum(
    "only",
    [],
    APPLICATIONS,
    "measure this application; default: all, style only with --style",
    flag_values=FLAGS,
)
_MODEL = flags.DEFINE_string(
    "model",
    None,
    "measure this conditional model; required except for editing and style",
    flag_values=FLAGS,
)
_BASE = flags.DEFINE_string(
    "base",
    None,
    "edit and stylise with this text-to-video model; default: the conditional model",
    flag_values=FLAGS,
)
_STYLE = flags.DEFINE_string(
    "style",
    None,
    "stylise with this model, fine-tuned on data.moving_shapes.duotone",
    flag_values=FLAGS,
)
_OUT = flags.DEFINE_string(
    "out", None, "write OUT.json and OUT_NAME.png; required", flag_values=FLAGS
)
_CLIPS = define_num_clips(FLAGS, 64, "generate this many clips per application", 8)
_STEPS = flags.DEFINE_integer(
    "steps",
    None,
    "take this many sampling steps; default: the model's",
    flag_values=FLAGS,
)
_SCALE = flags.DEFINE_float(
    "guidance_scale",
    None,
    "set the scale of classifier-free guidance; default: the model's",
    flag_values=FLAGS,
)
_SEED = define_seed(FLAGS, "seed of clips and noise")


def main(argv: list[str]) -> None:
    """Measures the selected applications, prints the figures and writes the files."""
    read_flags(FLAGS, argv, __doc__)
    missing = [f"--{flag.name}" for flag in _required_flags() if not flag.value]
    if missing:
        raise UserError(f"{', '.join(missing)}: not set, required for {', '.join(_selected())}")
    check_writable(Path(f"{output_file(_OUT.value)}.png"))
    prepare_compiler()
    model = stunet.load(_MODEL.value or _BASE.value)
    base = stunet.load(_BASE.value) if _BASE.value else model
    clips = _draw_clips(model)
    measurements: dict[str, Callable[[], tuple[dict[str, Any], np.ndarray]]] = {
        "image_to_video": lambda: image_to_video(model, clips),
        "inpainting": lambda: inpainting(model, clips),
        "cinemagraph": lambda: cinemagraphs(model),
        "editing": lambda: editing(base, clips),
        "style": lambda: style(base, stunet.load(_STYLE.value), clips),
    }
    settings = (_MODEL, _BASE, _STYLE, _CLIPS, _STEPS, _SCALE, _SEED)
    report: dict[str, Any] = {"settings": {flag.name: flag.value for flag in settings}}
    for name in tqdm(_selected(), unit="application"):
        report[name], sheet = measurements[name]()
        write_image(Path(f"{_OUT.value}_{name}.png"), sheet)
        write_text(Path(f"{_OUT.value}.json"), json.dumps(report, indent=2) + "\n")
        for figure, value in report[name].items():
            rounded = json.loads(json.dumps(value), parse_float=lambda s: round(float(s), 3))
            tqdm.write(f"{name:15} {figure:32} {rounded}")


def _selected() -> list[str]:
    """Returns the names of the applications to measure."""
    return _ONLY.value or [name for name in APPLICATIONS if name != "style" or _STYLE.value]


def _required_flags() -> list[flags.FlagHolder]:
    """Returns the flags that the selected applications require."""
    required = [_OUT]
    if any(name not in ("editing", "style") for name in _selected()) or not _BASE.value:
        required.append(_MODEL)
    return [*required, _STYLE] if "style" in _selected() else required


def _draw_clips(model: stunet.Model, motions: tuple[str, ...] = tuple(MOTIONS)) -> Clips:
    """Draws --num_clips clips with the model's resolution, length and frame rate."""
    size = (model.num_frames, model.resolution, model.fps)
    return draw_clips(_CLIPS.value, _SEED.value, *size, motions)


def _sampling() -> stunet.Sampling:
    return stunet.Sampling(steps=_STEPS.value, guidance_scale=_SCALE.value, seed=_SEED.value)


def image_to_video(model: stunet.Model, clips: Clips) -> tuple[dict[str, Any], np.ndarray]:
    """Animates the first frame of each clip.

    Measures the PSNR of the first frame before pasting, and whether the judge recognises the
    prompt, and the image's colour and shape in the second half of the clip.
    """
    images = clips.videos[:, 0]
    videos = stunet.animate(model, images, clips.texts, sampling=_sampling()).videos
    second_halves = [judge(video[video.shape[0] // 2 :]) for video in videos]
    same_object = [
        judged["colour"] == prompt.colour and judged["shape"] == prompt.shape
        for judged, prompt in zip(second_halves, clips.prompts, strict=True)
    ]
    first_frame_psnr = psnr(videos[:, :1], clips.videos[:, :1])
    return {
        "first_frame_psnr": float(first_frame_psnr.mean()),
        "first_frame_psnr_worst": float(first_frame_psnr.min()),
        "colour_and_shape_in_second_half": float(np.mean(same_object)),
        **agreement(map(judge, videos), clips.prompts),
        "true_clips": agreement(map(judge, clips.videos), clips.prompts),
    }, _sheet(np.repeat(images[:, None], videos.shape[1], 1), videos)


def inpainting(model: stunet.Model, clips: Clips) -> tuple[dict[str, Any], np.ndarray]:
    """Fills in a box in the centre of each clip.

    Measures the PSNR of the known pixels before pasting, and the difference of neighbouring pixels
    across the edge of the box, relative to that in the true clips.
    """
    size = model.resolution
    box = np.zeros((len(clips.videos), size, size, 1), np.float32)
    box[:, size // 4 : -size // 4, size // 4 : -size // 4] = 1
    boxes = np.repeat(box[:, None], clips.videos.shape[1], axis=1)
    known = KnownPixels(clips.videos, 1 - boxes)
    generated = stunet.inpaint(
        model,
        clips.videos,
        clips.texts,
        mask=known.mask,
        paste_back=False,
        sampling=_sampling(),
    ).videos
    pasted = paste(generated, known, FEATHER)
    outside = np.broadcast_to(boxes == 0, generated.shape)
    error = np.square(generated - clips.videos)[outside].reshape(len(generated), -1).mean(1)
    step, true_step = (_step_across_edge(videos, box) for videos in (pasted, clips.videos))
    return {
        "known_psnr": float((10 * np.log10(4 / error)).mean()),
        "known_psnr_worst": float((10 * np.log10(4 / error)).min()),
        "known_pixels_equal_after_pasting": bool((pasted == clips.videos)[outside].all()),
        "step_across_edge": step,
        "step_across_edge_of_true_clips": true_step,
        "step_ratio": step / true_step,
    }, _sheet(np.where(outside, clips.videos, 0), pasted)


def _step_across_edge(videos: np.ndarray, mask: np.ndarray) -> float:
    """Returns the mean absolute difference of neighbouring pixels across the edge of a mask."""
    steps = []
    for axis in (1, 2):
        edge = np.abs(np.diff(mask, axis=axis))[:, None] > 0.5
        difference = np.abs(np.diff(videos, axis=axis + 1))
        steps.append(difference[np.broadcast_to(edge, difference.shape)])
    return float(np.concatenate(steps).mean())


def cinemagraphs(model: stunet.Model) -> tuple[dict[str, Any], np.ndarray]:
    """Animates objects that stay in place inside a box around them.

    Measures the standard deviation over time inside and outside the box before pasting, and the
    range over time outside the box after pasting.
    """
    clips = _draw_clips(model, IN_PLACE)
    images, size = clips.videos[:, 0], model.resolution
    # An object differs from the median of its row: backgrounds are constant or vary by row.
    distance = np.linalg.norm(images - np.median(images, axis=2, keepdims=True), axis=-1)
    boxes = np.zeros((len(images), size, size, 1), np.float32)
    for box, frame in zip(boxes, distance, strict=True):
        rows, columns = np.nonzero(frame > 0.5)
        top, left = max(0, rows.min() - 2), max(0, columns.min() - 2)
        box[top : rows.max() + 3, left : columns.max() + 3] = 1
    generated = stunet.cinemagraph(
        model, images, 1 - boxes, clips.texts, paste_back=False, sampling=_sampling()
    ).videos
    still_videos = np.repeat(images[:, None], model.num_frames, axis=1)
    known = np.repeat(1 - boxes[:, None], model.num_frames, axis=1)
    known[:, 0] = 1
    pasted = paste(generated, KnownPixels(still_videos, known), feather=0)
    inside = np.broadcast_to(boxes > 0, generated.std(1).shape)
    moving, still = generated.std(1)[inside].mean(), generated.std(1)[~inside].mean()
    return {
        "std_inside": float(moving),
        "std_outside": float(still),
        "std_ratio": float(still / moving),
        "range_outside_after_pasting": float(np.ptp(pasted, axis=1)[~inside].max()),
    }, _sheet(np.repeat(images[:, None], pasted.shape[1], 1), pasted)


def editing(base: stunet.Model, clips: Clips) -> tuple[dict[str, Any], np.ndarray]:
    """Edits each clip to match the prompt of the next clip, at several strengths.

    Measures the mean absolute difference to the clip, and how often the judge recognises the
    prompt's colour.
    """
    texts = clips.texts[1:] + clips.texts[:1]
    prompts = clips.prompts[1:] + clips.prompts[:1]
    distances, colours, rows = [], [], []
    for strength in EDIT_STRENGTHS:
        result = stunet.edit(base, clips.videos, texts, strength=strength, sampling=_sampling())
        distances.append(float(np.abs(result.videos - clips.videos).mean()))
        colours.append(agreement(map(judge, result.videos), prompts)["colour"])
        rows.append(result.videos[0])
    sheet = contact_sheet(np.concatenate(rows), columns=rows[0].shape[0])
    return {
        "strength": EDIT_STRENGTHS,
        "distance_to_the_clip": distances,
        "new_prompt_s_colour": colours,
    }, sheet


def style(
    base: stunet.Model, style_model: stunet.Model, clips: Clips
) -> tuple[dict[str, Any], np.ndarray]:
    """Generates the clips' prompts in a style, at several strengths.

    Measures the distance of pixels to the style's colour gradient, and the mean difference of
    consecutive frames, relative to that without the style.
    """
    distances, energies, rows = [], [], []
    for strength in (0.0, *STYLE_STRENGTHS):
        styled = stunet.stylize(base, style_model, strength)
        videos = stunet.generate(styled, clips.texts, sampling=_sampling()).videos
        distances.append(distance_to_gradient(videos))
        energies.append(float(frame_differences(videos).mean()))
        rows.append(videos[0])
    return {
        "strength": (0.0, *STYLE_STRENGTHS),
        "distance_to_the_inks": distances,
        "motion_energy": energies,
        "motion_energy_share": [energy / energies[0] for energy in energies],
    }, contact_sheet(np.concatenate(rows), columns=rows[0].shape[0])


def _sheet(inputs: np.ndarray, results: np.ndarray) -> np.ndarray:
    """Returns a contact sheet of the first clips, each input above its result."""
    pairs = np.stack([inputs, results], axis=1)[:SHEET_CLIPS]
    return contact_sheet(pairs.reshape(-1, *results.shape[2:]), columns=results.shape[1])


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv), "experiments.applications"))
