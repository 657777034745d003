"""What the commands share: arguments, checks, progress, and writing the result."""

import argparse
import contextlib
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from stunet.errors import UserError
from stunet.weights import shipped

if TYPE_CHECKING:
    import numpy as np

    from stunet.diffusion import Windows
    from stunet.engine import Model, OnChunk

SAMPLERS = ("dpm2m", "ddim", "ancestral")


def add_sampling(
    add: Callable,
    default_model: str = shipped.VIDEO_MODEL,
    default_steps: str = "10 (dpm2m), 50 (ddim), 100 (ancestral)",
) -> None:
    """The arguments of every command that samples."""
    add("prompt", metavar="PROMPT", help="what the video shows")
    add(
        "--model",
        metavar="DIR",
        default=default_model,
        help="a model folder, or a training workdir; default: %(default)s, which comes with stunet",
    )
    add(
        "--out",
        metavar="FILE",
        type=Path,
        required=True,
        help="by its ending: .mp4 (H.264), .gif, or .png (contact sheet)",
    )
    add("--sampler", choices=SAMPLERS, default=SAMPLERS[0], help="default: %(default)s")
    add(
        "--steps",
        metavar="N",
        type=positive_int,
        help=f"sampling steps; default: {default_steps}",
    )
    add(
        "--guidance-scale",
        metavar="W",
        type=number,
        default=4.0,
        help="how hard to follow the prompt; 1 is no guidance, at half the time; "
        "default: %(default)s",
    )
    add("--seed", metavar="S", type=int, default=0, help="same seed, same video; default: 0")
    add(
        "--windows-at-once",
        metavar="N",
        type=positive_int,
        default=1,
        help="windows of a long clip that are at work together: more memory, less waiting where "
        "the device is wide; default: %(default)s",
    )


def add_base_model(add: Callable) -> None:
    """The arguments of every command that begins with a base model."""
    add(
        "--upscale",
        metavar="DIR",
        action="append",
        default=[],
        help="a super-resolution model that enlarges the video; again for one more on top; "
        f"{shipped.UPSCALER} comes with stunet",
    )
    add(
        "--style",
        metavar="DIR",
        help="a model whose text-to-image weights were tuned to a style; "
        f"{shipped.STYLE_MODEL} comes with stunet",
    )
    add(
        "--style-strength",
        metavar="A",
        type=number,
        help="how far to go to these weights, 0 to 1.5; 0.5 to 1 is usual; default: 0.7",
    )


def load_cascade(args: argparse.Namespace) -> "tuple[Model, list[Model]]":
    """The base model, in its style, and the models that enlarge what it makes."""
    from stunet import engine as pipeline
    from stunet.compiling import prepare_compiler
    from stunet.weights.style import DEFAULT_STRENGTH, strength_warning

    prepare_compiler()
    model, upscalers = pipeline.load(args.model), [pipeline.load(path) for path in args.upscale]
    pipeline.check_cascade(model, [args.model, *args.upscale], upscalers)
    if args.style is None:
        if args.style_strength is not None:
            raise UserError("--style-strength goes with --style=DIR")
        return model, upscalers
    strength = DEFAULT_STRENGTH if args.style_strength is None else args.style_strength
    model = pipeline.stylised(model, pipeline.load(args.style), strength, args.style)
    say(strength_warning(strength))
    return model, upscalers


def sampling(args: argparse.Namespace) -> dict:
    """The arguments of `add_sampling` that are fields of `pipeline.Sampling`."""
    names = ("sampler", "steps", "guidance_scale", "seed", "windows_at_once")
    return {name: getattr(args, name) for name in names}


def enlarge(
    args: argparse.Namespace, upscalers: "list[Model]", videos: "np.ndarray"
) -> "np.ndarray":
    """Enlarges the videos by each model."""
    from stunet import engine as pipeline

    prompts = [args.prompt] * len(videos)
    return pipeline.enlarge(upscalers, videos, prompts, progress, **sampling(args))


def check_length(model: "Model", upscalers: "list[Model]", num_frames: int, given: bool) -> None:
    """Refuses a number of frames that one of the models has no windows for, before any begins.

    Says where windows cost more than a seam: `given` is whether pixels are given to the first.
    """
    from stunet.engine import said_of_windows

    say(said_of_windows(model, upscalers, num_frames, given))


def say(words: str | None) -> None:
    """Tells the user something beside the result."""
    if words is not None:
        print(f"stunet: {words}", file=sys.stderr)


def output_paths(out: Path, num_videos: int) -> list[Path]:
    """The files that the videos go to: one each, but one PNG for all."""
    if num_videos == 1 or out.suffix.lower() == ".png":
        return [out]
    return [out.with_name(f"{out.stem}_{i}{out.suffix}") for i in range(num_videos)]


def check_outputs(outputs: list[Path], xt_slice: Path | None) -> None:
    """Refuses what cannot be written, before any work."""
    from stunet.video_io import check_writable

    for path in outputs:
        check_writable(path)
    if xt_slice is not None:
        if xt_slice.suffix.lower() != ".png":
            raise UserError(f"{xt_slice}: an X-T slice is an image; end its name in .png")
        check_writable(xt_slice)
        if xt_slice.absolute() in [path.absolute() for path in outputs]:
            raise UserError(f"{xt_slice}: is both --out and --xt-slice; name two files")


def write(videos: "np.ndarray", outputs: list[Path], xt_slice: Path | None, fps: float) -> None:
    """Writes `[N, T, H, W, 3]` and prints where."""
    import numpy as np

    from stunet.evaluation.xt_slice import xt_slice as slice_of
    from stunet.video_io import contact_sheet, write_image, write_video

    num_videos, num_frames, height, width, _ = videos.shape
    if len(outputs) < num_videos:
        frames = videos.reshape(-1, height, width, 3)
        columns = num_frames if num_frames > 1 else None  # images have no rows of their own
        write_image(outputs[0], contact_sheet(frames, columns))
    else:
        for path, video in zip(outputs, videos, strict=True):
            write_video(path, video, fps)
    if xt_slice is not None:
        write_image(xt_slice, contact_sheet(np.stack([slice_of(video) for video in videos])))
    for path in [*outputs, *([xt_slice] if xt_slice else [])]:
        print(path)


@contextlib.contextmanager
def progress(windows: "Windows") -> "Iterator[OnChunk]":
    """A bar for `on_chunk`; it appears once the request is known to be sound."""
    from tqdm import tqdm

    bars, many = [], len(windows.starts)

    def on_chunk(done: int, total: int, x0: object) -> None:
        if not bars:
            unit = "step" if many == 1 else "window"
            bars.append(tqdm(total=total * many, desc="compiling", unit=unit))
        else:
            step = "" if many == 1 else f" step {done} of {total}, {many} windows each"
            bars[0].set_description(f"sampling{step}", refresh=False)
            bars[0].update(done * many - bars[0].n)

    try:
        yield on_chunk
    finally:
        for bar in bars:
            bar.close()


def positive_int(text: str) -> int:
    """For argparse."""
    value = int(text) if text.strip().isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return value


def number(text: str) -> float:
    """For argparse; finite."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return value


def frame_rate(text: str) -> float:
    """For argparse; one that files can say."""
    value = number(text)
    if not 0.01 <= value <= 1000:
        raise argparse.ArgumentTypeError(f"{text!r} is not within 0.01 to 1000 frames per second")
    return value
