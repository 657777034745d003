"""`stunet evaluate`: scores a folder of clips."""

import argparse
import itertools
import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from stunet.cli.options import frame_rate, positive_int, whole_number
from stunet.errors import UserError
from stunet.evaluation.metrics import METRICS, MetricOption
from stunet.paths import AnyPath, check_outputs, user_path, write_text
from stunet.schema import MAX_INT

if TYPE_CHECKING:
    from stunet.evaluation.clip_folders import ClipFolder

DESCRIPTION = """\
Measures the clips of a folder and its sub-folders, optionally against a folder of reference clips.

  stunet evaluate generated
  stunet evaluate generated --reference real --i3d i3d.safetensors --c3d c3d.safetensors
  stunet evaluate generated --clip clip-vit-base-patch32 --prompts prompts.tsv --out report
"""
EPILOG = """\
Flicker and motion energy are always measured. The seam ratio needs --windows, FVD needs --i3d and
--reference, the Inception Score needs --c3d, and CLIP similarity needs --clip and --prompts.
docs/evaluation.md defines the metrics and describes how to convert published weights.
"""
NUM_SLICES = 8  # clips in the image of X-T slices


def add_commands(command: Callable) -> None:
    """Adds the command with `command(name, run, help=..., description=...)`."""
    add = command(
        "evaluate",
        _evaluate,
        help="measure FVD, Inception Score, CLIP similarity, flicker and seams of clips",
        description=DESCRIPTION,
        epilog=EPILOG,
    )
    add("folder", metavar="FOLDER", type=user_path, help="folder of the clips to measure")
    add(
        "--reference", metavar="FOLDER", type=user_path, help="folder of real clips to compare with"
    )
    add("--prompts", metavar="TSV", type=user_path, help="table of file, tab, prompt of the clip")
    for name, option in _metric_options().items():
        add(
            f"--{name}",
            metavar=option.metavar,
            type=_PARSERS[option.kind],
            default=option.default,
            help=option.help,
        )
    add(
        "--metric",
        metavar="NAME",
        action="append",
        default=[],
        help=f"require a metric: {', '.join(METRICS)}, or package.module:name of another one; "
        "repeatable; default: all that the options allow",
    )
    add(
        "--frames",
        metavar="T",
        type=positive_int,
        default=16,
        help="number of frames to measure, from the start of each clip; default: 16",
    )
    add("--fps", type=frame_rate, help="re-time both folders; default: the rate of each clip")
    add(
        "--batch-size",
        metavar="N",
        type=positive_int,
        default=4,
        help="clips per batch of a network; default: 4",
    )
    add("--out", metavar="DIR", type=user_path, help="write report.json and xt_slices.png")


def _metric_options() -> dict[str, MetricOption]:
    """Returns the options of all metrics in the table, by name."""
    return {name: option for entry in METRICS.values() for name, option in entry.options.items()}


def _files_read(args: argparse.Namespace) -> list[tuple[str, AnyPath]]:
    """Returns the files that the command reads besides clips, with their options."""
    names = [name for name, option in _metric_options().items() if option.kind == "path"]
    values = {name: getattr(args, name) for name in ("prompts", *names)}
    return [(f"--{name}", path) for name, path in values.items() if path is not None]


def _parse_window(text: str) -> tuple[int, int]:
    try:
        length, overlap = map(whole_number(0, MAX_INT), text.split(","))
    except (argparse.ArgumentTypeError, ValueError):
        raise argparse.ArgumentTypeError(
            f"invalid value {text!r}, expected two numbers of frames LENGTH,OVERLAP"
        ) from None
    return length, overlap


_PARSERS = {"path": user_path, "integer": positive_int, "window": _parse_window}


def _evaluate(args: argparse.Namespace) -> None:
    _check_required(vars(args))
    if args.out is not None:
        from stunet.video_io import check_writable

        check_writable(args.out / "xt_slices.png")
        check_outputs(
            [("--out", args.out / name) for name in ("report.json", "xt_slices.png")],
            _files_read(args),
        )
        if (args.out / "report.json").is_dir():
            raise UserError(f"--out: {args.out / 'report.json'} is a folder, expected a file")

    from tqdm import tqdm

    from stunet.compiling import prepare_compiler
    from stunet.evaluation.clip_folders import open_clip_folder, read_clip_prompts
    from stunet.evaluation.evaluate import compare_folders, evaluate, format_report
    from stunet.evaluation.metrics import load_metrics

    prepare_compiler()
    clips = open_clip_folder(args.folder, args.frames, args.fps)
    reference = args.reference and open_clip_folder(args.reference, args.frames, args.fps)
    for line in (*clips.skipped, *(reference.skipped if reference else ())):
        print(f"stunet: {line}", file=sys.stderr)
    prompts = args.prompts and read_clip_prompts(args.prompts, clips.names)
    metrics = load_metrics(vars(args), args.metric)
    total = len(clips.names) + (len(reference.names) if reference else 0)
    with tqdm(total=total, desc="measuring", unit="clip") as bar:
        report = evaluate(
            clips,
            metrics,
            reference,
            prompts,
            batch_size=args.batch_size,
            on_clips=bar.update,
        )
    print(*format_report(report), sep="\n")
    comparison = compare_folders(clips, reference, prompts)
    warnings = [metric.warning(comparison) for metric in metrics]
    warnings += [folder.rate_warning() for folder in (clips, reference) if folder]
    if reference and report["clips"]["fps"] != report["reference"]["fps"]:
        warnings.append("the folders differ in frames per second; --fps re-times both")
    for warning in filter(None, warnings):
        print(f"stunet: {warning}", file=sys.stderr)
    if args.out is not None:
        _write(args.out, report, clips)


def _check_required(values: dict[str, Any]) -> None:
    """Raises `UserError` if an option is given without the one that it requires."""
    options = _metric_options()
    for name, option in options.items():
        if option.requires and values[name] is not None and values[option.requires] is None:
            raise UserError(f"--{name}: given without --{option.requires}, expected both")
    users = [name for name, option in options.items() if option.requires == "prompts"]
    used = values["metric"] or any(values[name] is not None for name in users)
    if values["prompts"] is not None and not used:
        raise UserError(f"--prompts: used by no metric, expected --{' or --'.join(users)} as well")


def _write(out: AnyPath, report: dict, clips: "ClipFolder") -> None:
    import numpy as np

    from stunet.evaluation.xt_slice import xt_slice
    from stunet.video_io import contact_sheet, write_image

    slices = [xt_slice(clip) for clip, _ in itertools.islice(clips, NUM_SLICES)]
    of_equal_size = [image for image in slices if image.shape == slices[0].shape]
    write_image(out / "xt_slices.png", contact_sheet(np.stack(of_equal_size)))
    path = out / "report.json"
    write_text(path, json.dumps(report, indent=2) + "\n")
    print(path, out / "xt_slices.png", sep="\n")
