"""Measures seams, colours and detail of super-resolution on moving-shapes clips.

    python -m experiments.upscaling --model=runs/tiny_ssr --out=runs/tiny_ssr/upscaling

Downsamples clips of the tiny config, upscales them and compares the results with the original
clips. Compares three methods: without MultiDiffusion (adjacent windows, sampled independently), and
with it (overlapping windows, averaged at every step) with uniform weights as in the paper, or with
weights that ramp down towards the ends of a window. Writes OUT.json, OUT.png (difference of
consecutive frames, like the paper's figure) and OUT_sheet.png (the input, the three results, and
the original clip).
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np
from absl import flags

import stunet
from data import pipeline as data
from experiments.common.program_flags import define_num_clips, define_seed, read_flags
from experiments.common.step_bar import step_bar
from experiments.configs import tiny_ssr
from stunet.compiling import prepare_compiler
from stunet.diffusion import downsample, upsample
from stunet.diffusion.multidiffusion import OVERLAP
from stunet.engine.sampling import windows_for
from stunet.errors import UserError, run_command, writing
from stunet.evaluation.seams import colour_shift, frame_differences, psnr, seam_mask, seam_ratio
from stunet.paths import output_file, write_text
from stunet.video_io import check_writable, contact_sheet, write_image

LABELS = {
    "without": "without MultiDiffusion",
    "uniform": "with, uniform weights",
    "ramp": "with, ramp weights",
}

FLAGS = flags.FlagValues()
_MODEL = flags.DEFINE_string(
    "model",
    None,
    "measure the super-resolution model in this model folder or workdir; required",
    flag_values=FLAGS,
)
_OUT = flags.DEFINE_string(
    "out", None, "write OUT.json, OUT.png and OUT_sheet.png; required", flag_values=FLAGS
)
_CLIPS = define_num_clips(FLAGS, 16, "upscale this many clips", 2)
_SPLIT = flags.DEFINE_enum(
    "split", "heldout", ["train", "heldout"], "upscale clips of this split", flag_values=FLAGS
)
_DATA_DIR = flags.DEFINE_string(
    "data_dir", "datasets", "read or build the dataset in this folder", flag_values=FLAGS
)
_STEPS = flags.DEFINE_integer(
    "steps",
    None,
    "take this many sampling steps; default: the model's",
    flag_values=FLAGS,
)
_SCALE = flags.DEFINE_float(
    "guidance_scale", 1.0, "set the scale of classifier-free guidance", flag_values=FLAGS
)
_SEED = define_seed(FLAGS, "seed of the noise")


def main(argv: list[str]) -> None:
    """Upscales the clips by each method, prints the figures and writes the files."""
    read_flags(FLAGS, argv, __doc__)
    missing = [f"--{flag.name}" for flag in (_MODEL, _OUT) if not flag.value]
    if missing:
        raise UserError(f"{', '.join(missing)}: not set, required")
    out = output_file(_OUT.value)
    paths = [Path(f"{out}{ending}") for ending in (".json", ".png", "_sheet.png")]
    check_writable(paths[1])
    prepare_compiler()
    model = stunet.load(_MODEL.value)
    if model.super_resolution is None:
        raise UserError(f"--model: {_MODEL.value} is not a super-resolution model")
    truth, prompts = _clips(model.resolution)
    factor = model.super_resolution.factor
    variants = {
        name: stunet.Sampling(
            steps=_STEPS.value,
            guidance_scale=_SCALE.value,
            seed=_SEED.value,
            batch_size=1,
            chunk=1,
            overlap=overlap,
            window_weights=weights,
        )
        for name, overlap, weights in (
            ("without", 0, "ramp"),
            ("uniform", OVERLAP, "uniform"),
            ("ramp", OVERLAP, "ramp"),
        )
    }
    if len(windows_for(model, truth.shape[1], variants["without"]).starts) == 1:
        raise UserError(
            f"--model: {_MODEL.value} has windows of {model.num_frames} frames, expected fewer "
            f"than the {truth.shape[1]} frames of a clip, or there are no seams to measure"
        )
    low_resolution = np.asarray(downsample(truth, factor))
    bicubic = np.asarray(jax.image.resize(low_resolution, truth.shape, "bicubic"))

    results, report = {}, {}
    for name, sampling in variants.items():
        windows = windows_for(model, truth.shape[1], sampling)
        with step_bar(LABELS[name]) as progress:
            videos = stunet.upscale(
                model, low_resolution, prompts, sampling=sampling, progress=progress
            ).videos
        shift = colour_shift(videos, low_resolution)
        results[name] = videos
        report[name] = {
            "windows": len(windows.starts),
            "seam_ratio": seam_ratio(frame_differences(videos), seam_mask(windows)),
            "truth_seam_ratio": seam_ratio(frame_differences(truth), seam_mask(windows)),
            "psnr": float(psnr(videos, truth).mean()),
            "bicubic_psnr": float(psnr(bicubic, truth).mean()),
            "colour_shift_mean": np.abs(shift.mean(0)).max().item(),
            "colour_shift_worst_clip": np.abs(shift).max().item(),
        }
        for field, value in report[name].items():
            print(f"{name:8} {field:24} {np.round(value, 3)}")
    paths[0].parent.mkdir(parents=True, exist_ok=True)
    settings = {f.name: f.value for f in (_MODEL, _CLIPS, _SPLIT, _STEPS, _SCALE, _SEED)}
    write_text(paths[0], json.dumps({**report, "settings": settings}, indent=2) + "\n")
    _plot(model, truth, results, paths[1])
    rows = [
        upsample(low_resolution[:1], factor),
        *(videos[:1] for videos in results.values()),
        truth[:1],
    ]
    sheet = np.concatenate(rows)[:, ::4]
    write_image(paths[2], contact_sheet(sheet.reshape(-1, *sheet.shape[2:]), sheet.shape[1]))
    print(*paths, sep="\n")


def _clips(resolution: int) -> tuple[np.ndarray, list[str]]:
    """Returns whole clips `[N, T, R, R, 3]` of the config `tiny_ssr`, and their captions."""
    fields = tiny_ssr.get_config().data.to_dict()
    fields |= {"data_dir": _DATA_DIR.value, "split": _SPLIT.value, "resolution": resolution}
    config = data.parse_config(fields | {"num_frames": fields["clip_frames"]})
    return data.whole_examples(data.prepare(config), _CLIPS.value)


def _plot(
    model: stunet.Model, truth: np.ndarray, results: dict[str, np.ndarray], path: Path
) -> None:
    """Plots the mean difference of consecutive frames; dotted lines are window boundaries."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.subplots()
    lines = {LABELS[name]: videos for name, videos in results.items()}
    for name, videos in {**lines, "true clip": truth}.items():
        axes.plot(np.arange(1, truth.shape[1]), frame_differences(videos).mean(0), label=name)
    boundaries = seam_mask(windows_for(model, truth.shape[1], stunet.Sampling(overlap=0)))
    for frame in np.flatnonzero(boundaries):
        axes.axvline(frame + 1, color="grey", linestyle=":", linewidth=0.8)
    axes.set(xlabel="frame", ylabel="difference to the previous frame / (1/255)", ylim=(0, None))
    axes.legend()
    with writing(path):
        figure.savefig(path, dpi=120)


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv), "experiments.upscaling"))
