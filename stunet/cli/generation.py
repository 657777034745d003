"""A command per application: `stunet generate`, `animate`, `inpaint` and so on.

The arguments derive from `stunet.engine.applications`.
"""

import argparse
import contextlib
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stunet.cli import options
from stunet.engine.applications import APPLICATIONS, Application, Option
from stunet.engine.request import Progress, Request, Sampling
from stunet.errors import UserError
from stunet.weights import shipped

if TYPE_CHECKING:
    from stunet.engine.cascade import Models
    from stunet.engine.request import OnProgress, Result

EPILOG = """\
Non-square inputs are centre-cropped. A video keeps its duration. With --num-videos N > 1, OUT.mp4
becomes OUT_0.mp4 ... OUT_{N-1}.mp4, and so does .gif; a .png is one contact sheet with a row per
video. Video i of a seed is the same for every N. The first call of a kind compiles the network;
later calls find it in the cache folder ($XDG_CACHE_HOME or ~/.cache).
"""
PROMPTS_HELP = """\
With --prompts, line i (from 0) is sampled with seed S + i and written to OUT_0000.mp4, OUT_0001.mp4
and so on, each when it is complete. The same command again continues: files with the same settings
are kept.
"""
_TYPES = {
    "integer": options.positive_int,
    "number": options.number,
    "margins": options.margins,
    "image": options.path,
    "video": options.path,
    "mask": options.path,
}
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
            epilog=EPILOG + PROMPTS_HELP if name == "generate" else EPILOG,
        )


def _add_arguments(add: Callable, application: Application) -> None:
    from stunet.diffusion.samplers import SAMPLERS
    from stunet.weights.style import DEFAULT_STRENGTH, MAX_STRENGTH

    for option in application.options:
        if option.positional:
            metavar = option.label.split()[0].upper()
            add(option.field, metavar=metavar, type=_TYPES[option.kind], help=option.help)
    if application is APPLICATIONS["generate"]:
        add("prompt", metavar="PROMPT", nargs="?", help="text that describes the video")
        add("--prompts", metavar="FILE", type=options.path, help="file with a prompt per line")
    else:
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
        type=options.path,
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
        type=options.positive_int,
        help=f"number of sampling steps; default: {steps}",
    )
    add(
        "--guidance-scale",
        metavar="W",
        type=options.number,
        default=defaults.guidance_scale,
        help="follow the prompt more closely; 1 disables guidance and halves the time; "
        "default: %(default)s",
    )
    add(
        "--negative-prompt",
        metavar="TEXT",
        default=defaults.negative_prompt,
        help="text that guidance leads away from; default: none",
    )
    add("--seed", metavar="S", type=int, default=0, help="seed of the noise; default: 0")
    add(
        "--windows-at-once",
        metavar="N",
        type=options.positive_int,
        default=defaults.windows_at_once,
        help="number of windows of a long clip processed together: more memory, less time on wide "
        "devices; default: %(default)s",
    )
    add("--num-videos", metavar="N", type=options.positive_int, default=1, help="default: 1")
    add(
        "--xt-slice",
        metavar="FILE.png",
        type=options.path,
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
        type=options.number,
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
    prompts = _read_prompts(args)
    request = _request(name, application, args, prompts[:1] * args.num_videos, args.seed)
    application.check(request)
    from_file = getattr(args, "prompts", None) is not None
    if from_file:
        outputs = [_numbered(args.out, f"{index:04d}") for index in range(len(prompts))]
    else:
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
    if from_file:
        requests = [
            _request(name, application, args, (prompt,), args.seed + index)
            for index, prompt in enumerate(prompts)
        ]
        _run_all(models, requests, outputs)
        return
    with progress_bars() as on_progress:
        result = run(models, request, on_progress)
    _write(result, outputs, args.xt_slice)


def _request(
    name: str,
    application: Application,
    args: argparse.Namespace,
    prompts: tuple[str, ...],
    seed: int,
) -> Request:
    return Request(
        application=name,
        prompts=prompts,
        style_strength=getattr(args, "style_strength", None),
        sampling=Sampling(
            sampler=args.sampler,
            steps=args.steps,
            guidance_scale=args.guidance_scale,
            negative_prompt=args.negative_prompt,
            seed=seed,
            windows_at_once=args.windows_at_once,
        ),
        **{option.field: getattr(args, option.field) for option in application.options},
    )


def _read_prompts(args: argparse.Namespace) -> tuple[str, ...]:
    """Returns the prompt, or those of a file.

    Raises:
      UserError: There is no prompt or one is empty, or an option does not suit a file of prompts.
    """
    from stunet.files import read_text, split_lines
    from stunet.text import check_prompt

    file = getattr(args, "prompts", None)
    if file is None:
        if args.prompt is None:
            raise UserError("PROMPT: missing, expected a text, or --prompts FILE")
        check_prompt(args.prompt)
        if _is_file(args.prompt):
            hint = "; --prompts FILE reads prompts from a file" if hasattr(args, "prompts") else ""
            print(
                f"stunet: the prompt {args.prompt!r} is the name of a file{hint}", file=sys.stderr
            )
        return (args.prompt,)
    if args.prompt is not None:
        raise UserError(
            f"--prompts: given besides the prompt {args.prompt!r}, expected one of them"
        )
    for option in ("num_videos", "xt_slice"):
        if getattr(args, option) not in (1, None):
            raise UserError(f"--{option.replace('_', '-')}: not supported with --prompts")
    if args.out.suffix.lower() != ".mp4":
        raise UserError(f"--out: {args.out}, expected an .mp4 with --prompts")
    prompts = tuple(line.strip() for line in split_lines(read_text(file)) if line.strip())
    if not prompts:
        raise UserError(f"{file}: no prompt, expected one per line")
    return prompts


def _is_file(prompt: str) -> bool:
    try:
        return Path(prompt).is_file()
    except (OSError, ValueError):  # not a path
        return False


def _run_all(models: "Models", requests: Sequence[Request], outputs: Sequence[Path]) -> None:
    """Runs the requests whose outputs do not exist, and writes each result when it is complete."""
    from tqdm import tqdm

    from stunet.engine.run import planned_settings, run

    missing = []
    for request, path in zip(requests, outputs, strict=True):
        if path.exists():
            _check_settings(path, planned_settings(models, request))
        else:
            missing.append((request, path))
    done = len(requests) - len(missing)
    with tqdm(total=len(requests), initial=done, desc="prompts", unit="video") as bar:
        for request, path in missing:
            with progress_bars(leave=False) as on_progress:
                result = run(models, request, on_progress)
            _write_video(path, result, json.dumps(result.settings, ensure_ascii=False))
            tqdm.write(str(path))
            bar.update()


def _check_settings(path: Path, expected: dict[str, Any]) -> None:
    """Raises a `UserError` if an MP4 was made with other settings."""
    from stunet.video_io import read_comment

    try:
        found = json.loads(read_comment(path) or "")
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{path}: exists without settings, expected a file of --prompts or none")
    for name in expected | found:
        if found.get(name) != expected.get(name) and name != "stunet":
            raise UserError(
                f"{path}: exists with {name} {found.get(name)!r}, expected {expected.get(name)!r} "
                "(or another --out)"
            )


def _output_paths(out: Path, num_videos: int) -> list[Path]:
    """Returns a path per video, or one PNG for all."""
    if num_videos == 1 or out.suffix.lower() == ".png":
        return [out]
    return [_numbered(out, str(index)) for index in range(num_videos)]


def _numbered(out: Path, number: str) -> Path:
    return out.with_name(f"{out.stem}_{number}{out.suffix}")


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


def _write(result: "Result", outputs: list[Path], xt_slice: Path | None) -> None:
    """Writes all videos of a result and prints the paths."""
    import numpy as np

    from stunet.evaluation.xt_slice import xt_slice as slice_of
    from stunet.video_io import contact_sheet, write_image

    num_videos, num_frames, height, width, _ = result.videos.shape
    if len(outputs) < num_videos:
        frames = result.videos.reshape(-1, height, width, 3)
        columns = num_frames if num_frames > 1 else None  # images share rows
        _keep(outputs[0], lambda path: write_image(path, contact_sheet(frames, columns)))
    else:
        for path, video in zip(outputs, result.videos, strict=True):
            _write_video(path, dataclasses.replace(result, videos=video[None]))
    if xt_slice is not None:
        write_image(xt_slice, contact_sheet(np.stack([slice_of(v) for v in result.videos])))
    for path in [*outputs, *([xt_slice] if xt_slice else [])]:
        print(path)


def _write_video(path: Path, result: "Result", comment: str | None = None) -> None:
    from stunet.video_io import audio_warning, write_video

    if (warning := audio_warning(path, result.audio)) is not None:
        print(f"stunet: {warning}", file=sys.stderr)
    _keep(path, lambda path: write_video(path, result.video, result.fps, comment, result.audio))


def _keep(path: Path, write: "Callable[[Path], None]") -> None:
    """Writes a result, to the folder of temporary files if the disk of `path` is full by now.

    Raises:
      UserError: `path` cannot be written. Names the file with the result.
    """
    try:
        write(path)
    except UserError as error:
        import tempfile

        other = Path(tempfile.mkdtemp(prefix="stunet-")) / path.name
        write(other)
        raise UserError(f"{error}; the result is in {other}") from error


@contextlib.contextmanager
def progress_bars(leave: bool = True) -> "Iterator[OnProgress]":
    """Shows the warnings, and a bar per sampling; it remains at its end if `leave` is set."""
    from tqdm import tqdm

    bars: list[Any] = []

    def on_progress(progress: Progress) -> None:
        if progress.stage == "reading":
            for warning in progress.warnings:
                tqdm.write(f"stunet: {warning}", file=sys.stderr)
            return
        windows = progress.windows
        if progress.done == 0:
            unit = "step" if windows == 1 else "window"
            for bar in bars:
                bar.close()
            bars[:] = [
                tqdm(total=progress.total * windows, desc="compiling", unit=unit, leave=leave)
            ]
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
