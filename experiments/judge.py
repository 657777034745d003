"""Generates clips from moving-shapes prompts, and measures which attributes the judge recognises.

    python -m experiments.judge --model=runs/tiny_t2v --out=runs/tiny_t2v/judge

Writes OUT.json (agreement per attribute, confusion matrices of shape and motion, shape accuracy by
motion, settings) and OUT.png (one row per clip for the first clips, every second frame).
"""

import json
import sys

from absl import flags

import stunet
from data.moving_shapes.judge import agreement, confusion, judge, shapes_by_motion
from data.moving_shapes.vocabulary import draw_prompts
from experiments.common.program_flags import define_num_clips, define_seed, read_flags
from experiments.common.sampling_flags import define_sampling
from experiments.common.step_bar import step_bar
from stunet.compiling import prepare_compiler
from stunet.errors import UserError, run_command
from stunet.paths import output_file, user_path, write_text
from stunet.video_io import check_writable, contact_sheet, write_image

SHEET_ROWS = 12

FLAGS = flags.FlagValues()
_MODEL = flags.DEFINE_string("model", None, "model folder or training workdir", flag_values=FLAGS)
_OUT = flags.DEFINE_string("out", None, "write OUT.json and OUT.png", flag_values=FLAGS)
_CLIPS = define_num_clips(FLAGS, 128)
_SPLIT = flags.DEFINE_enum(
    "split", "train", ["train", "heldout"], "split of the prompts", flag_values=FLAGS
)
_SAMPLING = define_sampling(FLAGS)
_SEED = define_seed(FLAGS, "seed of prompts and noise")


def main(argv: list[str]) -> None:
    """Parses the flags, generates and judges the clips, and writes the report."""
    read_flags(FLAGS, argv, __doc__)
    if not _MODEL.value or not _OUT.value:
        raise UserError("--model, --out: missing, expected both")
    out = output_file(_OUT.value)
    report, sheet = (user_path(f"{out}.{ending}") for ending in ("json", "png"))
    check_writable(sheet)
    report.parent.mkdir(parents=True, exist_ok=True)
    prepare_compiler()
    model = stunet.load(_MODEL.value)
    prompts = draw_prompts(_SPLIT.value, _CLIPS.value, seed=_SEED.value)

    sampling = _SAMPLING.read(_SEED.value)
    texts = [prompt.text for prompt in prompts]
    with step_bar("sampling") as progress:
        generated = stunet.generate(model, texts, sampling=sampling, progress=progress)
    videos = generated.videos
    verdicts = [judge(video) for video in videos]
    result = {
        **agreement(verdicts, prompts),
        **{f"{name}_seen": confusion(verdicts, prompts, name) for name in ("shape", "motion")},
        "shape_by_motion": shapes_by_motion(verdicts, prompts),
        "num_clips": len(videos),
        **{f.name: f.value for f in (_MODEL, _SPLIT, _SEED)},
        **{flag.name: generated.settings.get(flag.name, flag.value) for flag in _SAMPLING},
    }
    for name, value in result.items():
        if isinstance(value, dict):  # prompted value -> counts
            print(f"{name}:")
            for prompted, counts in value.items():
                print(f"  {prompted:13} {', '.join(f'{k} {n}' for k, n in counts.items())}")
        else:
            print(f"{name:15} {value}")
    write_text(report, json.dumps(result, indent=2) + "\n")
    rows = videos[:SHEET_ROWS, ::2]
    write_image(sheet, contact_sheet(rows.reshape(-1, *rows.shape[2:]), columns=rows.shape[1]))
    print(f"{report}\n{sheet}")


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv), "experiments.judge"))
