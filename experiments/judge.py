"""Generates clips of moving-shapes prompts and lets the judge read them.

    python -m experiments.judge --model=runs/tiny_t2v --out=runs/tiny_t2v/judge

Writes OUT.json (agreement per attribute, what was seen for what was asked, of which motions the
shapes are right, settings) and OUT.png (a row for each of the first clips, every second frame).
"""

import json
import sys
from pathlib import Path

from absl import flags
from tqdm import tqdm

from data.moving_shapes.judge import agreement, confusion, judge, shapes_by_motion
from data.moving_shapes.vocabulary import prompts
from experiments.common.program_flags import read_flags
from stunet.compiling import prepare_compiler
from stunet.engine import generate, load
from stunet.errors import UserError, run_command
from stunet.video_io import check_writable, contact_sheet, write_image

SHEET_ROWS = 12

FLAGS = flags.FlagValues()
_MODEL = flags.DEFINE_string(
    "model", None, "a model folder, or a training workdir", flag_values=FLAGS
)
_OUT = flags.DEFINE_string("out", None, "where OUT.json and OUT.png are written", flag_values=FLAGS)
_CLIPS = flags.DEFINE_integer(
    "num_clips", 128, "how many clips are generated", lower_bound=1, flag_values=FLAGS
)
_SPLIT = flags.DEFINE_enum(
    "split", "train", ["train", "heldout"], "combinations of prompts", flag_values=FLAGS
)
_SAMPLER = flags.DEFINE_enum(
    "sampler", "dpm2m", ["dpm2m", "ddim", "ancestral"], "sampler", flag_values=FLAGS
)
_STEPS = flags.DEFINE_integer(
    "steps", None, "sampling steps; default: the sampler's own", flag_values=FLAGS
)
_SCALE = flags.DEFINE_float("guidance_scale", 4.0, "of classifier-free guidance", flag_values=FLAGS)
_SEED = flags.DEFINE_integer("seed", 0, "of prompts and noise", flag_values=FLAGS)


def main(argv: list[str]) -> None:
    """Generates, judges, prints and writes."""
    read_flags(FLAGS, argv, __doc__)
    if not _MODEL.value or not _OUT.value:
        raise UserError("both --model=DIR and --out=NAME are needed")
    report, sheet = (Path(f"{_OUT.value}.{ending}") for ending in ("json", "png"))
    check_writable(sheet)
    report.parent.mkdir(parents=True, exist_ok=True)
    prepare_compiler()
    model = load(_MODEL.value)
    asked = prompts(_SPLIT.value, _CLIPS.value, seed=_SEED.value)

    with tqdm(desc="sampling", unit="step") as bar:

        def progress(done: int, total: int, _) -> None:
            bar.total = total
            bar.update(done - bar.n)

        videos = generate(
            model,
            [prompt.text for prompt in asked],
            sampler=_SAMPLER.value,
            steps=_STEPS.value,
            guidance_scale=_SCALE.value,
            seed=_SEED.value,
            on_chunk=progress,
        )
    seen = [judge(video) for video in videos]
    result = {
        **agreement(seen, asked),
        **{f"{name}_seen": confusion(seen, asked, name) for name in ("shape", "motion")},
        "shape_by_motion": shapes_by_motion(seen, asked),
        "num_clips": len(videos),
        **{flag.name: flag.value for flag in (_MODEL, _SPLIT, _SAMPLER, _STEPS, _SCALE, _SEED)},
    }
    for name, value in result.items():
        if isinstance(value, dict):  # a table: asked -> counts
            print(f"{name}:")
            for wanted, counts in value.items():
                print(f"  {wanted:13} {', '.join(f'{k} {n}' for k, n in counts.items())}")
        else:
            print(f"{name:15} {value}")
    report.write_text(json.dumps(result, indent=2) + "\n")
    rows = videos[:SHEET_ROWS, ::2]
    write_image(sheet, contact_sheet(rows.reshape(-1, *rows.shape[2:]), columns=rows.shape[1]))
    print(f"{report}\n{sheet}")


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv), "experiments.judge"))
