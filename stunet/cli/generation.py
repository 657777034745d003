"""A command per application: `stunet generate`, `animate`, `inpaint` and so on.

The arguments derive from `stunet.engine.applications`.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stunet.cli import options
from stunet.engine.applications import APPLICATIONS, Application, Option
from stunet.engine.request import GUIDANCE_METHODS, Progress, Request, Sampling, ignore_progress
from stunet.errors import UserError
from stunet.paths import AnyPath, check_outputs, existing, is_remote
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
    "schedule": options.frame_and_text,
    "image": options.path,
    "video": options.path,
    "mask": options.path,
}
_METAVARS = {
    "integer": "N",
    "number": "X",
    "mask": "FILE",
    "margins": "LEFT,RIGHT,TOP,BOTTOM",
    "schedule": "FRAME:TEXT",
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
        help="model folder, training workdir, hf://OWNER/NAME, or the name of a model that comes "
        "with stunet; default: %(default)s",
    )
    add(
        "--out",
        metavar="FILE",
        type=options.output_file,
        required=True,
        help="output file; its ending selects .mp4 (H.264), .gif or .png (contact sheet)",
    )
    for option in application.options:
        if not option.positional:
            _add_option(add, option, application)
    defaults = Sampling()
    samplers = f"{', '.join(SAMPLERS)}, or package.module:name"
    add("--sampler", metavar="NAME", help=f"{samplers}; default: the model's")
    steps = ", ".join(f"{sampler.default_steps} ({name})" for name, sampler in SAMPLERS.items())
    add(
        "--steps",
        metavar="N",
        type=options.positive_int,
        help=f"number of sampling steps; default: the model's, else {steps}",
    )
    add(
        "--guidance-scale",
        metavar="W",
        type=options.number,
        help="follow the prompt more closely; 1 disables guidance and halves the time; "
        "default: the model's",
    )
    add(
        "--guidance",
        metavar="NAME",
        choices=GUIDANCE_METHODS,
        default=defaults.guidance,
        help="cfg: away from the prediction without prompt; apg: the same with less saturation; "
        "image: away from the image model's frames; default: %(default)s",
    )
    add(
        "--guidance-interval",
        metavar="LOW,HIGH",
        type=options.timesteps,
        help="guide between these timesteps only, of 0 to 999 (noise); other steps take half the "
        "time; default: all",
    )
    add(
        "--negative-prompt",
        metavar="TEXT",
        default=defaults.negative_prompt,
        help="text that guidance leads away from; default: none",
    )
    add("--seed", metavar="S", type=options.seed, default=0, help="seed of the noise; default: 0")
    add(
        "--windows-at-once",
        metavar="N",
        type=options.positive_int,
        default=defaults.windows_at_once,
        help="number of windows of a long clip processed together: more memory, less time on wide "
        "devices; default: %(default)s",
    )
    add("--num-videos", metavar="N", type=options.num_videos, default=1, help="default: 1")
    add(
        "--batch-size",
        metavar="N",
        type=options.positive_int,
        default=defaults.batch_size,
        help="number of videos sampled together; each adds two rows to a network call, one without "
        "guidance (a long clip: two per window of --windows-at-once), and memory grows with the "
        "rows; default: %(default)s",
    )
    add(
        "--cluster",
        metavar="auto|HOST:PORT,COUNT,NUMBER",
        help="share the work with other processes, which run the same command: 'auto' on a TPU "
        "pod, else where process 0 listens, their number and this one's; process 0 writes the "
        "files; default: none",
    )
    add(
        "--xt-slice",
        metavar="FILE.png",
        type=options.output_file,
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
        "--upscale-sampler",
        metavar="NAME",
        help="--sampler of all --upscale models; default: each model's",
    )
    add(
        "--upscale-steps",
        metavar="N",
        type=options.positive_int,
        help="--steps of all --upscale models; default: each model's",
    )
    add(
        "--upscale-guidance-scale",
        metavar="W",
        type=options.number,
        help="--guidance-scale of all --upscale models; default: each model's",
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
        repeatable = {"action": "append", "default": []} if option.kind == "schedule" else {}
        add(
            flag,
            metavar=_METAVARS[option.kind],
            type=_TYPES.get(option.kind, str),
            required=option.required,
            help=option.help,
            **repeatable,
        )


def _runner(name: str) -> Callable[[argparse.Namespace], None]:
    def run(args: argparse.Namespace) -> None:
        _generate(name, APPLICATIONS[name], args)

    return run


def _generate(name: str, application: Application, args: argparse.Namespace) -> None:
    if args.cluster is None:
        requests, outputs = _read_job(name, application, args, writes=True)
    else:
        requests, outputs = _read_job_in_cluster(name, application, args)

    from stunet.cluster import agree, run_on_first_process
    from stunet.compiling import prepare_compiler
    from stunet.engine.run import run

    prepare_compiler()
    models = agree(lambda: _load_models(application, args, requests[0]))
    if getattr(args, "prompts", None) is not None:
        _run_all(models, requests, outputs)
        return
    with _progress_of_first_process() as on_progress:
        result = run(models, requests[0], on_progress)
    run_on_first_process(lambda: _write(result, outputs, args.xt_slice))


def _read_job_in_cluster(
    name: str, application: Application, args: argparse.Namespace
) -> tuple[list[Request], list[AnyPath]]:
    """Joins a cluster and reads the job in all processes.

    Raises:
      UserError: In all processes, if one has other requests, inputs or models, or fails.
    """
    from stunet.cluster import (
        agree,
        check_equal,
        end_on_signals,
        is_first_process,
        join_cluster,
    )
    from stunet.compiling import prepare_compiler
    from stunet.engine.digests import job_digests

    join_cluster(args.cluster)
    end_on_signals()
    prepare_compiler()  # before `agree` computes
    job = agree(lambda: _read_job(name, application, args, writes=is_first_process()))
    check_equal(lambda: job_digests(job[0], _model_paths(args)))
    return job


def _read_job(
    name: str, application: Application, args: argparse.Namespace, writes: bool
) -> tuple[list[Request], list[AnyPath]]:
    """Returns the requests and the outputs: one request per line of --prompts, else one.

    Args:
      name: Name of the application.
      application: The application.
      args: Arguments of the command.
      writes: Whether this process writes the outputs.
    """
    prompts = _read_prompts(args)
    request = _request(name, application, args, prompts[:1] * args.num_videos, args.seed)
    application.check(request)
    if getattr(args, "prompts", None) is None:
        requests, outputs = [request], _output_paths(args.out, args.num_videos)
    else:
        requests = [
            _request(name, application, args, (prompt,), args.seed + index)
            for index, prompt in enumerate(prompts)
        ]
        outputs = [_numbered(args.out, f"{index:04d}") for index in range(len(prompts))]
    if writes:
        _check_outputs(outputs, args.xt_slice, _inputs(request, args))
    return requests, outputs


def _inputs(request: Request, args: argparse.Namespace) -> list[tuple[str, AnyPath]]:
    """Returns the files that a command reads, with their arguments."""
    inputs = [(name.upper(), path) for name, path in request.files.items()]
    prompts = getattr(args, "prompts", None)
    return inputs if prompts is None else [*inputs, ("--prompts", prompts)]


def _model_paths(args: argparse.Namespace) -> list[str]:
    style = getattr(args, "style", None)
    return [args.model, *getattr(args, "upscale", []), *([] if style is None else [style])]


def _load_models(application: Application, args: argparse.Namespace, request: Request) -> "Models":
    """Loads the models on all devices, in a cluster those of all processes."""
    import jax

    from stunet.engine.cascade import load_models

    if application.model == "super_resolution":
        models = load_models(None, [args.model], devices=jax.devices())
    else:
        models = load_models(args.model, args.upscale, args.style, jax.devices())
    _check_xt_slice(args, application, request, models)
    return models


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
            guidance=args.guidance,
            guidance_interval=args.guidance_interval,
            upscale_sampler=getattr(args, "upscale_sampler", None),
            upscale_steps=getattr(args, "upscale_steps", None),
            upscale_guidance_scale=getattr(args, "upscale_guidance_scale", None),
            negative_prompt=args.negative_prompt,
            seed=seed,
            batch_size=args.batch_size,
            windows_at_once=args.windows_at_once,
        ),
        **{option.field: _value(option, args) for option in application.options},
    )


def _value(option: Option, args: argparse.Namespace) -> Any:
    value = getattr(args, option.field)
    return tuple(value) if option.kind == "schedule" else value


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


def _run_all(models: "Models", requests: Sequence[Request], outputs: Sequence[AnyPath]) -> None:
    """Runs the requests whose outputs do not exist, and writes each result when it is complete."""
    from tqdm import tqdm

    from stunet.cluster import is_first_process, run_on_first_process, share_text
    from stunet.engine.run import planned_settings, run

    missing = []
    if is_first_process():  # the others may not see its files
        present = existing(outputs)
        missing = [index for index, path in enumerate(outputs) if path not in present]
    missing = json.loads(share_text(json.dumps(missing)))

    def check_existing() -> None:
        for index, (request, path) in enumerate(zip(requests, outputs, strict=True)):
            if index not in missing:
                _check_settings(path, planned_settings(models, request))

    run_on_first_process(check_existing)
    done, quiet = len(requests) - len(missing), not is_first_process()
    with tqdm(
        total=len(requests), initial=done, desc="prompts", unit="video", disable=quiet
    ) as bar:
        for request, path in ((requests[index], outputs[index]) for index in missing):
            with _progress_of_first_process(leave=False) as on_progress:
                result = run(models, request, on_progress)

            def write(path=path, result=result) -> None:
                _write_video(path, result, json.dumps(result.settings, ensure_ascii=False))
                tqdm.write(str(path))

            run_on_first_process(write)
            bar.update()


def _check_settings(path: AnyPath, expected: dict[str, Any]) -> None:
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


def _output_paths(out: AnyPath, num_videos: int) -> list[AnyPath]:
    """Returns a path per video, or one PNG for all."""
    if num_videos == 1 or out.suffix.lower() == ".png":
        return [out]
    return [_numbered(out, str(index)) for index in range(num_videos)]


def _numbered(out: AnyPath, number: str) -> AnyPath:
    return out.with_name(f"{out.stem}_{number}{out.suffix}")


def _check_outputs(
    outputs: list[AnyPath], xt_slice: AnyPath | None, inputs: list[tuple[str, AnyPath]]
) -> None:
    """Refuses paths that cannot be written, before any work."""
    from stunet.video_io import check_writable

    check_writable(outputs[0])
    if not is_remote(outputs[0]):  # all are in one folder
        for path in filter(os.path.isdir, outputs[1:]):
            check_writable(path)
    named = [("--out", path) for path in outputs]
    if xt_slice is not None:
        if xt_slice.suffix.lower() != ".png":
            raise UserError(f"--xt-slice: {xt_slice}, expected a name that ends in .png")
        check_writable(xt_slice)
        named.append(("--xt-slice", xt_slice))
    check_outputs(named, inputs)


def _check_xt_slice(
    args: argparse.Namespace, application: Application, request: Request, models: "Models"
) -> None:
    """Refuses an X-T slice of an image."""
    requested = any(option.field == "num_frames" for option in application.options)
    if args.xt_slice and requested and (request.num_frames or models.chain[0].num_frames) == 1:
        raise UserError(f"--xt-slice: {args.xt_slice} of 1 frame, expected more frames")


def _write(result: "Result", outputs: list[AnyPath], xt_slice: AnyPath | None) -> None:
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


def _write_video(path: AnyPath, result: "Result", comment: str | None = None) -> None:
    from stunet.video_io import audio_warning, write_video

    if (warning := audio_warning(path, result.audio)) is not None:
        print(f"stunet: {warning}", file=sys.stderr)
    _keep(path, lambda path: write_video(path, result.video, result.fps, comment, result.audio))


def _keep(path: AnyPath, write: "Callable[[AnyPath], None]") -> None:
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


def _progress_of_first_process(
    leave: bool = True,
) -> "contextlib.AbstractContextManager[OnProgress]":
    from stunet.cluster import is_first_process

    return progress_bars(leave) if is_first_process() else contextlib.nullcontext(ignore_progress)


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
