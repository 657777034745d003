"""What a conditional model and a style make of known clips: each application, measured.

    python -m experiments.applications --model=runs/fill --base=runs/t2v --style=runs/duotone \\
        --out=runs/applications

Clips of the moving-shapes world at the model's size. Writes OUT.json and, for each application, a
contact sheet OUT_NAME.png: what is given above what is made of it.
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
from experiments.common.program_flags import read_flags
from stunet.compiling import prepare_compiler
from stunet.engine.generation import paste
from stunet.engine.inputs import KnownPixels
from stunet.engine.request import FEATHER
from stunet.errors import UserError, run_command
from stunet.evaluation.seams import frame_differences, psnr
from stunet.video_io import check_writable, contact_sheet, write_image

STRENGTHS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # of a style, the paper's range
EDIT_STRENGTHS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
IN_PLACE = ("spinning", "growing", "shrinking")  # motions that a cinemagraph's mask can hold
SHEET_CLIPS = 4

APPLICATIONS = ("image_to_video", "inpainting", "cinemagraph", "editing", "style")

FLAGS = flags.FlagValues()
_ONLY = flags.DEFINE_multi_enum(
    "only",
    [],
    APPLICATIONS,
    "what is measured; default: all, style where --style is given",
    flag_values=FLAGS,
)
_MODEL = flags.DEFINE_string(
    "model", None, "a conditional model; not for editing and style alone", flag_values=FLAGS
)
_BASE = flags.DEFINE_string(
    "base", None, "a text-to-video model; default: the conditional one", flag_values=FLAGS
)
_STYLE = flags.DEFINE_string(
    "style", None, "a model tuned to data.moving_shapes.duotone's style", flag_values=FLAGS
)
_OUT = flags.DEFINE_string(
    "out", None, "where OUT.json and OUT_*.png are written", flag_values=FLAGS
)
_CLIPS = flags.DEFINE_integer("num_clips", 64, "clips of each", lower_bound=8, flag_values=FLAGS)
_STEPS = flags.DEFINE_integer(
    "steps", None, "sampling steps; default: the sampler's own", flag_values=FLAGS
)
_SCALE = flags.DEFINE_float("guidance_scale", 4.0, "of classifier-free guidance", flag_values=FLAGS)
_SEED = flags.DEFINE_integer("seed", 0, "of clips and noise", flag_values=FLAGS)


def main(argv: list[str]) -> None:
    """Makes, measures, prints and writes."""
    read_flags(FLAGS, argv, __doc__)
    missing = [flag.name for flag in _needed() if not flag.value]
    if missing:
        raise UserError(f"these are needed: {', '.join(f'--{name}' for name in missing)}")
    check_writable(Path(f"{_OUT.value}.png"))
    prepare_compiler()
    model = stunet.load(_MODEL.value or _BASE.value)
    base = stunet.load(_BASE.value) if _BASE.value else model
    clips = _draw_clips(model)
    work: dict[str, Callable[[], tuple[dict[str, Any], np.ndarray]]] = {
        "image_to_video": lambda: image_to_video(model, clips),
        "inpainting": lambda: inpainting(model, clips),
        "cinemagraph": lambda: cinemagraphs(model),
        "editing": lambda: editing(base, clips),
        "style": lambda: style(base, stunet.load(_STYLE.value), clips),
    }
    work = {name: work[name] for name in _chosen()}
    names = (_MODEL, _BASE, _STYLE, _CLIPS, _STEPS, _SCALE, _SEED)
    report: dict[str, Any] = {"settings": {flag.name: flag.value for flag in names}}
    for name, measure in tqdm(work.items(), unit="application"):
        report[name], sheet = measure()
        write_image(Path(f"{_OUT.value}_{name}.png"), sheet)
        Path(f"{_OUT.value}.json").write_text(json.dumps(report, indent=2) + "\n")
        for figure, value in report[name].items():
            rounded = json.loads(json.dumps(value), parse_float=lambda s: round(float(s), 3))
            tqdm.write(f"{name:15} {figure:32} {rounded}")


def _chosen() -> list[str]:
    return _ONLY.value or [name for name in APPLICATIONS if name != "style" or _STYLE.value]


def _needed() -> list[flags.FlagHolder]:
    """The flags without which what is chosen cannot be measured."""
    found = [_OUT]
    if any(name not in ("editing", "style") for name in _chosen()) or not _BASE.value:
        found.append(_MODEL)
    return [*found, _STYLE] if "style" in _chosen() else found


def _draw_clips(model: stunet.Model, motions: tuple[str, ...] = tuple(MOTIONS)) -> Clips:
    """Rendered clips of the model's size."""
    size = (model.num_frames, model.resolution, model.fps)
    return draw_clips(_CLIPS.value, _SEED.value, *size, motions)


def _sampling() -> stunet.Sampling:
    return stunet.Sampling(steps=_STEPS.value, guidance_scale=_SCALE.value, seed=_SEED.value)


def image_to_video(model: stunet.Model, clips: Clips) -> tuple[dict[str, Any], np.ndarray]:
    """The first frame against the image, and what the judge reads to the end."""
    images = clips.videos[:, 0]
    made = stunet.animate(model, images, clips.texts, sampling=_sampling()).videos
    late = [judge(video[video.shape[0] // 2 :]) for video in made]
    kept = [
        one["colour"] == prompt.colour and one["shape"] == prompt.shape
        for one, prompt in zip(late, clips.prompts, strict=True)
    ]
    match = psnr(made[:, :1], clips.videos[:, :1])
    return {
        "first_frame_psnr": float(match.mean()),
        "first_frame_psnr_worst": float(match.min()),
        "colour_and_shape_in_second_half": float(np.mean(kept)),
        **agreement(map(judge, made), clips.prompts),
        "true_clips": agreement(map(judge, clips.videos), clips.prompts),
    }, _sheet(np.repeat(images[:, None], made.shape[1], 1), made)


def inpainting(model: stunet.Model, clips: Clips) -> tuple[dict[str, Any], np.ndarray]:
    """A box in each clip's middle, filled in."""
    size = model.resolution
    mask = np.zeros((len(clips.videos), size, size, 1), np.float32)
    mask[:, size // 4 : -size // 4, size // 4 : -size // 4] = 1
    masks = np.repeat(mask[:, None], clips.videos.shape[1], axis=1)
    known = KnownPixels(clips.videos, 1 - masks)
    made = stunet.inpaint(
        model,
        clips.videos,
        clips.texts,
        mask=known.mask,
        paste_back=False,
        sampling=_sampling(),
    ).videos
    back = paste(made, known, FEATHER)
    outside = np.broadcast_to(masks == 0, made.shape)
    error = np.square(made - clips.videos)[outside].reshape(len(made), -1).mean(1)
    step, true_step = (_step_across(videos, mask) for videos in (back, clips.videos))
    return {
        "known_psnr": float((10 * np.log10(4 / error)).mean()),
        "known_psnr_worst": float((10 * np.log10(4 / error)).min()),
        "known_pixels_equal_after_pasting": bool((back == clips.videos)[outside].all()),
        "step_across_edge": step,
        "step_across_edge_of_true_clips": true_step,
        "step_ratio": step / true_step,
    }, _sheet(np.where(outside, clips.videos, 0), back)


def _step_across(videos: np.ndarray, mask: np.ndarray) -> float:
    """Mean absolute difference of neighbouring pixels of which the mask covers one."""
    steps = []
    for axis in (1, 2):
        edge = np.abs(np.diff(mask, axis=axis))[:, None] > 0.5
        difference = np.abs(np.diff(videos, axis=axis + 1))
        steps.append(difference[np.broadcast_to(edge, difference.shape)])
    return float(np.concatenate(steps).mean())


def cinemagraphs(model: stunet.Model) -> tuple[dict[str, Any], np.ndarray]:
    """Objects that stay in place move inside a mask around them, and nothing else."""
    clips = _draw_clips(model, IN_PLACE)
    images, size = clips.videos[:, 0], model.resolution
    # The object: what differs from the frame's edge, row by row as backgrounds do.
    distance = np.linalg.norm(images - np.median(images, axis=2, keepdims=True), axis=-1)
    mask = np.zeros((len(images), size, size, 1), np.float32)
    for one, frame in zip(mask, distance, strict=True):
        rows, columns = np.nonzero(frame > 0.5)
        top, left = max(0, rows.min() - 2), max(0, columns.min() - 2)
        one[top : rows.max() + 3, left : columns.max() + 3] = 1
    loose = stunet.cinemagraph(
        model, images, 1 - mask, clips.texts, paste_back=False, sampling=_sampling()
    ).videos
    still_videos = np.repeat(images[:, None], model.num_frames, axis=1)
    known = np.repeat(1 - mask[:, None], model.num_frames, axis=1)
    known[:, 0] = 1
    tight = paste(loose, KnownPixels(still_videos, known), feather=0)
    inside = np.broadcast_to(mask > 0, loose.std(1).shape)
    moving, still = loose.std(1)[inside].mean(), loose.std(1)[~inside].mean()
    return {
        "std_inside": float(moving),
        "std_outside": float(still),
        "std_ratio": float(still / moving),
        "range_outside_after_pasting": float(np.ptp(tight, axis=1)[~inside].max()),
    }, _sheet(np.repeat(images[:, None], tight.shape[1], 1), tight)


def editing(base: stunet.Model, clips: Clips) -> tuple[dict[str, Any], np.ndarray]:
    """Each clip made over to the next one's prompt, by degrees."""
    texts = clips.texts[1:] + clips.texts[:1]
    wanted = clips.prompts[1:] + clips.prompts[:1]
    distances, colours, rows = [], [], []
    for strength in EDIT_STRENGTHS:
        result = stunet.edit(base, clips.videos, texts, strength=strength, sampling=_sampling())
        made = result.videos
        distances.append(float(np.abs(made - clips.videos).mean()))
        colours.append(agreement(map(judge, made), wanted)["colour"])
        rows.append(made[0])
    sheet = contact_sheet(np.concatenate(rows), columns=rows[0].shape[0])
    return {
        "strength": EDIT_STRENGTHS,
        "distance_to_the_clip": distances,
        "new_prompt_s_colour": colours,
    }, sheet


def style(
    base: stunet.Model, look: stunet.Model, clips: Clips
) -> tuple[dict[str, Any], np.ndarray]:
    """How far colours go to the style's, and how much motion is left."""
    distances, energies, rows = [], [], []
    for strength in (0.0, *STRENGTHS):
        styled = stunet.stylize(base, look, strength)
        made = stunet.generate(styled, clips.texts, sampling=_sampling()).videos
        distances.append(distance_to_gradient(made))
        energies.append(float(frame_differences(made).mean()))
        rows.append(made[0])
    return {
        "strength": (0.0, *STRENGTHS),
        "distance_to_the_inks": distances,
        "motion_energy": energies,
        "motion_energy_share": [energy / energies[0] for energy in energies],
    }, contact_sheet(np.concatenate(rows), columns=rows[0].shape[0])


def _sheet(given: np.ndarray, made: np.ndarray) -> np.ndarray:
    """Of the first clips, what is given above what was made."""
    pairs = np.stack([given, made], axis=1)[:SHEET_CLIPS]
    return contact_sheet(pairs.reshape(-1, *made.shape[2:]), columns=made.shape[1])


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv), "experiments.applications"))
