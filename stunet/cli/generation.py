"""A command per application: `stunet generate`, `animate`, `inpaint` and so on.

The arguments derive from `stunet.engine.applications`.
"""

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stunet.cli.options import margins, number, positive_int
from stunet.engine.applications import APPLICATIONS, Application, Option
from stunet.engine.request import Progress, Request, Sampling
from stunet.errors import UserError
from stunet.weights import shipped

if TYPE_CHECKING:
    import numpy as np

    from stunet.engine.cascade import Models
    from stunet.engine.request import OnProgress

EPILOG = """\
Non-square inputs are centre-cropped. A video keeps its duration. With --num-videos N > 1, OUT.mp4
becomes OUT_0.mp4 ... OUT_{N-1}.mp4, and so does .gif; a .png is one contact sheet with a row per
video. Video i of a seed is the same for every N. The first call of a kind compiles the network;
later calls find it in the cache folder ($XDG_CACHE_HOME or ~/.cache).
"""
_TYPES = {"integer": positive_int, "number": number, "margins": margins}
_METAVARS = {
    "integer": "N",
    "number": "X",
    "mask": "FILE",
    "margins": "LEFT,RIGHT,TOP,BOTTOM",
}


def add_commands(command: Callable) -> None:
    """Adds a command per application, see `stunet.cli`."""
    for name, application in APPLICATIONS.items():
        summary = application.summary
        command(
            name,
            _runner(name),
            lambda add, application=application: _add_arguments(add, application),
            help=summary[0].lower() + summary.removesuffix(".")[1:],
            description=f"{summary}\n\n  stunet {name} {application.example}\n",
            epilog=EPILOG,
        )


def _add_arguments(add: Callable, application: Application) -> None:
    from stunet.diffusion.samplers import SAMPLERS
    from stunet.weights.style import DEFAULT_STRENGTH, MAX_STRENGTH

    for option in application.options:
        if option.positional:
            metavar = option.label.split()[0].upper()
            add(option.field, metavar=metavar, help=option.help)
    add("prompt", metavar="PROMPT", help="text that describes the video")
    add(
        "--model",
        metavar="DIR",
        default=application.default_model,
        help="model folder, training workdir, or the name of a model that comes with stunet; "
        "default: %(default)s",
    )
    add(
        "--out",
        metavar="FILE",
        type=Path,
        required=True,
        help="output file; its ending selects .mp4 (H.264), .gif or .png (contact sheet)",
    )
    for option in application.options:
        if not option.positional:
            _add_option(add, option, application)
    defaults = Sampling()
    add(
        "--sampler",
        default=defaults.sampler,
        help=f"{', '.join(SAMPLERS)}, or package.module:name; default: %(default)s",
    )
    steps = ", ".join(f"{sampler.default_steps} ({name})" for name, sampler in SAMPLERS.items())
    if application.model == "super_resolution":
        steps = "the model's"
    add(
        "--steps",
        metavar="N",
        type=positive_int,
        help=f"number of sampling steps; default: {steps}",
    )
    add(
        "--guidance-scale",
        metavar="W",
        type=number,
        default=defaults.guidance_scale,
        help="follow the prompt more closely; 1 disables guidance and halves the time; "
        "default: %(default)s",
    )
    add("--seed", metavar="S", type=int, default=0, help="seed of the noise; default: 0")
    add(
        "--windows-at-once",
        metavar="N",
        type=positive_int,
        default=defaults.windows_at_once,
        help="number of windows of a long clip processed together: more memory, less time on wide "
        "devices; default: %(default)s",
    )
    add("--num-videos", metavar="N", type=positive_int, default=1, help="default: 1")
    add(
        "--xt-slice",
        metavar="FILE.png",
        type=Path,
        help="also write the middle row of pixels over time (downwards), videos side by side",
    )
    if application.model == "super_resolution":
        return
    add(
        "--upscale",
        metavar="DIR",
        action="append",
        default=[],
        help="super-resolution model that enlarges the video; repeat for a cascade; "
        f"{shipped.UPSCALER} comes with stunet",
    )
    add(
        "--style",
        metavar="DIR",
        help=f"model tuned to a style; {shipped.STYLE_MODEL} comes with stunet; default: none",
    )
    add(
        "--style-strength",
        metavar="A",
        type=number,
        help=f"interpolate towards the style's weights, 0 to {MAX_STRENGTH:g}, usually 0.5 to 1; "
        f"default: {DEFAULT_STRENGTH}",
    )


def _add_option(add: Callable, option: Option, application: Application) -> None:
    flag = f"--{option.field.replace('_', '-')}"
    if option.field == "paste_back":
        add(
            flag,
            action=argparse.BooleanOptionalAction,
            default=application.paste_back,
            help=option.help,
        )
    elif option.kind == "switch":
        add(flag, action="store_true", help=option.help)
    else:
        add(
            flag,
            metavar=_METAVARS[option.kind],
            type=_TYPES.get(option.kind, str),
            required=option.required,
            help=option.help,
        )


def _runner(name: str) -> Callable[[argparse.Namespace], None]:
    def run(args: argparse.Namespace) -> None:
        _generate(name, APPLICATIONS[name], args)

    return run


def _generate(name: str, application: Application, args: argparse.Namespace) -> None:
    from stunet.text import check_prompt

    check_prompt(args.prompt)
    request = Request(
        application=name,
        prompts=(args.prompt,) * args.num_videos,
        style_strength=getattr(args, "style_strength", None),
        sampling=Sampling(
            sampler=args.sampler,
            steps=args.steps,
            guidance_scale=args.guidance_scale,
            seed=args.seed,
            windows_at_once=args.windows_at_once,
        ),
        **{option.field: getattr(args, option.field) for option in application.options},
    )
    application.check(request)
    outputs = _output_paths(args.out, args.num_videos)
    _check_outputs(outputs, args.xt_slice)

    from stunet.compiling import prepare_compiler
    from stunet.engine.cascade import load_models
    from stunet.engine.run import run

    prepare_compiler()
    if application.model == "super_resolution":
        models = load_models(None, [args.model])
    else:
        models = load_models(args.model, args.upscale, args.style)
    _check_xt_slice(args, application, request, models)
    with progress_bars() as on_progress:
        result = run(models, request, on_progress)
    for warning in result.warnings:
        print(f"stunet: {warning}", file=sys.stderr)
    _write(result.videos, outputs, args.xt_slice, result.fps)


def _output_paths(out: Path, num_videos: int) -> list[Path]:
    """Returns a path per video, or one PNG for all."""
    if num_videos == 1 or out.suffix.lower() == ".png":
        return [out]
    return [out.with_name(f"{out.stem}_{i}{out.suffix}") for i in range(num_videos)]


def _check_outputs(outputs: list[Path], xt_slice: Path | None) -> None:
    """Refuses paths that cannot be written, before any work."""
    from stunet.video_io import check_writable

    for path in outputs:
        check_writable(path)
    if xt_slice is not None:
        if xt_slice.suffix.lower() != ".png":
            raise UserError(f"--xt-slice: {xt_slice}, expected a name that ends in .png")
        check_writable(xt_slice)
        if xt_slice.absolute() in [path.absolute() for path in outputs]:
            raise UserError(f"--xt-slice: {xt_slice} is also --out, expected another file")


def _check_xt_slice(
    args: argparse.Namespace, application: Application, request: Request, models: "Models"
) -> None:
    """Refuses an X-T slice of an image."""
    requested = any(option.field == "num_frames" for option in application.options)
    if args.xt_slice and requested and (request.num_frames or models.chain[0].num_frames) == 1:
        raise UserError(f"--xt-slice: {args.xt_slice} of 1 frame, expected more frames")


def _write(videos: "np.ndarray", outputs: list[Path], xt_slice: Path | None, fps: float) -> None:
    """Writes `[N, T, H, W, 3]` and prints the paths."""
    import numpy as np

    from stunet.evaluation.xt_slice import xt_slice as slice_of
    from stunet.video_io import contact_sheet, write_image, write_video

    num_videos, num_frames, height, width, _ = videos.shape
    if len(outputs) < num_videos:
        frames = videos.reshape(-1, height, width, 3)
        columns = num_frames if num_frames > 1 else None  # images share rows
        write_image(outputs[0], contact_sheet(frames, columns))
    else:
        for path, video in zip(outputs, videos, strict=True):
            write_video(path, video, fps)
    if xt_slice is not None:
        write_image(xt_slice, contact_sheet(np.stack([slice_of(video) for video in videos])))
    for path in [*outputs, *([xt_slice] if xt_slice else [])]:
        print(path)


@contextlib.contextmanager
def progress_bars() -> "Iterator[OnProgress]":
    """Shows a bar per sampling; the first one appears once the request is known to be valid."""
    from tqdm import tqdm

    bars: list[Any] = []

    def on_progress(progress: Progress) -> None:
        if progress.stage == "reading":
            return
        windows = progress.windows
        if progress.done == 0:
            unit = "step" if windows == 1 else "window"
            for bar in bars:
                bar.close()
            bars[:] = [tqdm(total=progress.total * windows, desc="compiling", unit=unit)]
            return
        step = f" step {progress.done} of {progress.total}, {windows} windows each"
        label = f"{progress.stage}{step if windows > 1 else ''}"
        bars[0].set_description(label, refresh=False)
        bars[0].update(progress.done * windows - bars[0].n)

    try:
        yield on_progress
    finally:
        for bar in bars:
            bar.close()
