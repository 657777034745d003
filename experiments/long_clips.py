"""Generates long clips of moving shapes in windows, and measures their seams, motion and content.

    python -m experiments.long_clips --model=shapes --out=runs/long_clips

Clips are four times as long as in training, with each overlap of windows, and with independent
noise in every frame or noise that windows share (FreeNoise, 2310.15169). The judge looks at each
window. Writes OUT.json and OUT.png (mean difference of consecutive frames over the clip).
"""

import itertools
import json
import sys
from collections.abc import Iterator

import numpy as np
from absl import flags

import stunet
from data.moving_shapes.judge import agreement, judge
from data.moving_shapes.vocabulary import Prompt, draw_prompts
from experiments.common.program_flags import define_num_clips, define_seed, read_flags
from experiments.common.reports import print_table
from experiments.common.step_bar import step_bar
from stunet.compiling import prepare_compiler
from stunet.diffusion import Windows
from stunet.engine.sampling import windows_for
from stunet.errors import UserError, run_command, writing
from stunet.evaluation.seams import frame_differences, seam_mask, seam_ratio
from stunet.paths import AnyPath, output_file, user_path, write_text
from stunet.video_io import check_writable

TIMES = 4  # as long as in training
NOISES = ("independent", "shuffled")

FLAGS = flags.FlagValues()
_MODEL = flags.DEFINE_string("model", "shapes", "model of videos", flag_values=FLAGS)
_OUT = flags.DEFINE_string("out", None, "write OUT.json and OUT.png", flag_values=FLAGS)
_CLIPS = define_num_clips(FLAGS, 64, "number of clips of each kind")
_OVERLAPS = flags.DEFINE_multi_integer(
    "overlap", [2, 4], "frames that neighbouring windows share", lower_bound=0, flag_values=FLAGS
)
_SEED = define_seed(FLAGS, "seed of prompts and noise")


def main(argv: list[str]) -> None:
    """Parses the flags, generates and measures the clips, and writes the report."""
    read_flags(FLAGS, argv, __doc__)
    if not _OUT.value:
        raise UserError("--out: missing, expected the beginning of the outputs' names")
    out = output_file(_OUT.value)
    report, chart = (user_path(f"{out}.{ending}") for ending in ("json", "png"))
    check_writable(chart)
    prepare_compiler()
    model = stunet.load(_MODEL.value)
    if model.num_frames == 1:
        raise UserError(f"--model: {_MODEL.value} generates images, expected a model of videos")
    for overlap in _OVERLAPS.value:  # otherwise almost every frame is at a seam
        if 2 * overlap > model.num_frames // 2:
            raise UserError(
                f"--overlap: {overlap}, expected at most a quarter of the {model.num_frames} "
                "frames of a window"
            )
    prompts = draw_prompts("train", _CLIPS.value, seed=_SEED.value)
    rows, lines = {}, {}
    for kind, windows, videos in _kinds_of_clips(model, prompts):
        differences = frame_differences(videos)
        rows[kind] = {**_content(videos, windows, prompts), "change": float(differences.mean())}
        if len(windows.starts) > 1:
            rows[kind]["seams"] = seam_ratio(differences, seam_mask(windows))
            lines[kind] = differences.mean(0)
    columns = list(dict.fromkeys(itertools.chain(*rows.values())))
    print_table(
        ["clips", *columns], [[k, *(r.get(c, "") for c in columns)] for k, r in rows.items()]
    )
    settings = {flag.name: flag.value for flag in (_MODEL, _CLIPS, _SEED)}
    write_text(report, json.dumps({**settings, "clips": rows}, indent=2) + "\n")
    _plot(lines, chart)
    print(f"{report}\n{chart}")


def _kinds_of_clips(
    model: stunet.Model, prompts: list[Prompt]
) -> Iterator[tuple[str, Windows, np.ndarray]]:
    """Yields the name, the windows and the videos of each kind of clip."""
    long = TIMES * model.num_frames
    kinds = {"as in training": (model.num_frames, stunet.Sampling(seed=_SEED.value))}
    for overlap, noise in itertools.product(_OVERLAPS.value, NOISES):
        sampling = stunet.Sampling(seed=_SEED.value, overlap=overlap, window_noise=noise)
        kinds[f"overlap {overlap}, {noise} noise"] = (long, sampling)
    for kind, (num_frames, sampling) in kinds.items():
        windows = windows_for(model, num_frames, sampling)
        with step_bar(kind) as progress:
            result = stunet.generate(
                model,
                [prompt.text for prompt in prompts],
                num_frames=num_frames,
                sampling=sampling,
                progress=progress,
            )
        yield kind, windows, result.videos


def _content(videos: np.ndarray, windows: Windows, prompts: list[Prompt]) -> dict[str, float]:
    """Returns the judge's agreement with the prompts, and how alike the windows of a clip are."""
    verdicts = [
        [judge(video[start : start + windows.length]) for start in windows.starts]
        for video in videos
    ]
    repeated = [prompt for prompt in prompts for _ in windows.starts]
    alike = [len({(v["colour"], v["shape"]) for v in clip}) == 1 for clip in verdicts]
    return {
        **agreement(itertools.chain(*verdicts), repeated),
        "one object throughout": float(np.mean(alike)),
    }


def _plot(lines: dict[str, np.ndarray], path: AnyPath) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for kind, line in lines.items():
        axes.plot(np.arange(1, len(line) + 1), line, label=kind)
    axes.set(xlabel="frame", ylabel="difference from the frame before, 1/255", ylim=(0, None))
    axes.legend()
    with writing(path):
        figure.savefig(path, dpi=110)


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv), "experiments.long_clips"))
