"""`stunet evaluate`: what a folder of clips scores."""

import argparse
import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from stunet.cli.options import frame_rate, positive_int
from stunet.errors import UserError

if TYPE_CHECKING:
    from stunet.diffusion import Windows
    from stunet.evaluation.clip_folders import ClipFolder

EVALUATE = """\
Measures a folder of clips (those in its folders too), against another where one is named.

  stunet evaluate made
  stunet evaluate made --reference real --i3d i3d.safetensors --c3d c3d.safetensors
  stunet evaluate made --clip clip-vit-base-patch32 --prompts prompts.tsv --out report
"""
EVALUATE_MORE = """\
Flicker, motion energy and the seam ratio need no weights; FVD needs --i3d and --reference, the
Inception Score --c3d, CLIP similarity --clip and --prompts. docs/evaluation.md says what each one
is, how its frames are resized, and how published weights become these files.
"""
SLICES = 8  # clips whose X-T slices are drawn


def add_commands(command: Callable) -> None:
    """Adds this command by `command(name, run, **texts)`."""
    add = command(
        "evaluate",
        _evaluate,
        help="FVD, Inception Score, CLIP similarity, flicker and seams of a folder of clips",
        description=EVALUATE,
        epilog=EVALUATE_MORE,
    )
    add("folder", metavar="FOLDER", type=Path, help="the clips to measure")
    add("--reference", metavar="FOLDER", type=Path, help="real clips, for FVD")
    add("--i3d", metavar="FILE", type=Path, help="I3D's weights (safetensors), for FVD")
    add("--c3d", metavar="FILE", type=Path, help="C3D's weights, for the Inception Score")
    add("--clip", metavar="FOLDER", type=Path, help="a CLIP model by transformers")
    add("--prompts", metavar="TSV", type=Path, help="file, tab, text: what each clip should show")
    add(
        "--frames",
        metavar="T",
        type=positive_int,
        default=16,
        help="the first so many of each clip; default: 16",
    )
    add("--fps", type=frame_rate, help="re-time both folders to it; default: as they are")
    add(
        "--windows",
        metavar="LENGTH,OVERLAP",
        type=_window,
        help="the windows that the clips were made in, for the seam ratio",
    )
    add(
        "--splits",
        metavar="N",
        type=positive_int,
        default=10,
        help="of the Inception Score; default: 10",
    )
    add(
        "--batch-size",
        metavar="N",
        type=positive_int,
        default=4,
        help="clips that a network works on at a time; default: 4",
    )
    add("--out", metavar="DIR", type=Path, help="writes report.json and xt_slices.png there")


def _evaluate(args: argparse.Namespace) -> None:
    for flag, needs, reason in (
        ("i3d", "reference", "FVD is a distance from real clips"),
        ("clip", "prompts", "CLIP compares clips with texts"),
        ("prompts", "clip", "texts are for CLIP similarity"),
    ):
        if getattr(args, flag) is not None and getattr(args, needs) is None:
            raise UserError(f"--{flag} needs --{needs}: {reason}")
    if args.out is not None:
        from stunet.video_io import check_writable

        check_writable(args.out / "xt_slices.png")

    from tqdm import tqdm

    from stunet.compiling import prepare_compiler
    from stunet.evaluation.clip_folders import open_folder, read_prompts
    from stunet.evaluation.evaluate import FEW_CLIPS, evaluate, load_metrics, table

    prepare_compiler()
    clips = open_folder(args.folder, args.frames, args.fps)
    reference = args.reference and open_folder(args.reference, args.frames, args.fps)
    prompts = args.prompts and read_prompts(args.prompts, clips.names)
    metrics = load_metrics(
        args.i3d,
        args.c3d,
        args.clip,
        splits=args.splits,
        windows=args.windows and _windows(args.frames, *args.windows),
        batch_size=args.batch_size,
    )
    folders = [clips, *([reference] if reference else [])]
    with tqdm(total=sum(len(one.names) for one in folders), desc="measuring", unit="clip") as bar:
        report = evaluate(clips, metrics, reference, prompts, bar.update)
    print(*table(report), sep="\n")
    least = min(len(one.names) for one in folders)
    if args.i3d is not None and least < FEW_CLIPS:
        print(
            f"stunet: an FVD of {least} clips is too high, and compares only with others of as "
            "many",
            file=sys.stderr,
        )
    if reference and report["clips"]["fps"] != report["reference"]["fps"]:
        print(
            "stunet: the folders differ in frames per second; --fps makes them equal",
            file=sys.stderr,
        )
    if args.out is not None:
        _write(args.out, report, clips)


def _write(out: Path, report: dict, clips: "ClipFolder") -> None:
    import numpy as np

    from stunet.evaluation.xt_slice import xt_slice
    from stunet.video_io import contact_sheet, write_image

    slices = [xt_slice(clip) for clip, _ in itertools.islice(clips, SLICES)]
    alike = [one for one in slices if one.shape == slices[0].shape]
    write_image(out / "xt_slices.png", contact_sheet(np.stack(alike)))
    path = out / "report.json"
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(path, out / "xt_slices.png", sep="\n")


def _windows(frames: int, length: int, overlap: int) -> "Windows":
    from stunet.diffusion import Windows

    return Windows.over(frames, length, overlap=overlap)


def _window(text: str) -> tuple[int, int]:
    numbers = text.split(",")
    if len(numbers) != 2 or not all(number.strip().isdecimal() for number in numbers):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not two whole numbers of frames, LENGTH,OVERLAP"
        )
    return int(numbers[0]), int(numbers[1])
