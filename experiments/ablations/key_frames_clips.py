"""Generates and measures the clips of the ablation `key_frames`.

    python -m experiments.ablations.key_frames_clips --workdir=runs/ablations/key_frames --seed=0

Writes WORKDIR/seed_N.json and WORKDIR/seed_N.png. The picture has X-T slices through the middle
image row, time downwards, with one clip per column. Its rows: clips generated in one pass, by the
cascade, and between true key frames, and true clips.
"""

import json
import sys
from pathlib import Path

import numpy as np
from absl import flags

import stunet
from data.moving_shapes.clips import draw_clips
from data.moving_shapes.judge import agreement, judge
from experiments.ablations.key_frames import FPS, FRAMES, KEY_FRAMES, MOTIONS
from experiments.common.program_flags import read_flags
from stunet.compiling import prepare_compiler
from stunet.errors import UserError, run_command
from stunet.evaluation.temporal import periodicity
from stunet.evaluation.xt_slice import xt_slice
from stunet.paths import write_text
from stunet.video_io import contact_sheet, write_image

SHOWN = 8  # clips in the picture

FLAGS = flags.FlagValues()
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "read networks from and write to this folder; required", flag_values=FLAGS
)
_SEED = flags.DEFINE_integer(
    "seed", 0, "set the seed of networks, prompts and noise", flag_values=FLAGS
)
_CLIPS = flags.DEFINE_integer(
    "num_clips", 24, "generate this many clips by each method", lower_bound=1, flag_values=FLAGS
)


def main(argv: list[str]) -> None:
    """Generates and measures the clips, and writes both files."""
    read_flags(FLAGS, argv, __doc__)
    if not _WORKDIR.value:
        raise UserError("--workdir: not set, expected the folder of the ablation's networks")
    workdir, seed = Path(_WORKDIR.value), _SEED.value
    prepare_compiler()
    space_time, keys, between = (
        stunet.load(workdir / f"{name}_{seed}") for name in ("space_time", "keys", "between")
    )
    truth = draw_clips(_CLIPS.value, seed, FRAMES, space_time.resolution, FPS, MOTIONS)
    texts = truth.texts
    sampling = stunet.Sampling(seed=seed)

    def fill_between(key_frames: np.ndarray) -> np.ndarray:
        """Generates the frames between key frames `[N, K, H, W, 3]`."""
        count, _, height, width, _ = key_frames.shape
        video = np.zeros((count, FRAMES, height, width, 3), np.float32)
        known = np.zeros((count, FRAMES, height, width, 1), np.float32)
        video[:, ::KEY_FRAMES], known[:, ::KEY_FRAMES] = key_frames, 1
        overlapping = stunet.Sampling(seed=seed, overlap=KEY_FRAMES)
        result = stunet.inpaint(
            between, video, texts, mask=known, paste_back=False, sampling=overlapping
        )
        return result.videos

    videos = {
        "space_time": stunet.generate(space_time, texts, sampling=sampling).videos,
        "cascade": fill_between(stunet.generate(keys, texts, sampling=sampling).videos),
        "between": fill_between(truth.videos[:, ::KEY_FRAMES]),
        "true": truth.videos,
    }
    report = {
        method: {
            "periodicity": float(periodicity(clips).mean()),
            **agreement(map(judge, clips), truth.prompts),
        }
        for method, clips in videos.items()
    }
    report["num_clips"] = _CLIPS.value
    slices = [xt_slice(video) for clips in videos.values() for video in clips[:SHOWN]]
    columns = min(SHOWN, _CLIPS.value)
    write_image(workdir / f"seed_{seed}.png", contact_sheet(np.stack(slices), columns))
    write_text(workdir / f"seed_{seed}.json", json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv), "experiments.ablations.key_frames_clips"))
