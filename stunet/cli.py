"""The `stunet` command.

Heavy imports stay inside the functions that need them, so that `--help` and a mistyped
argument answer at once.
"""

import argparse
import contextlib
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from stunet.errors import UserError, run_command

if TYPE_CHECKING:
    import numpy as np

    from stunet.diffusion import Windows
    from stunet.pipeline import Model, OnChunk

SAMPLERS = ("dpm2m", "ddim", "ancestral")

GENERATE = """\
Makes a video from a prompt.

  stunet generate "a red star moves to the left" --model runs/tiny_t2v --out star.mp4
"""
GENERATE_MORE = """\
With --num-videos N > 1, OUT.mp4 becomes OUT_0.mp4 ... OUT_{N-1}.mp4 (.gif likewise); a .png is
one contact sheet with a row for each video. Video i of a seed is the same for every N.
The first call of a kind compiles the network; later ones find it in the user's cache folder
(XDG_CACHE_HOME, or ~/.cache).
"""
UPSCALE = """\
Enlarges a video by a super-resolution model; frame rate and length stay.

  stunet upscale clip.mp4 "a red star moves to the left" --model runs/tiny_ssr --out large.mp4
"""
UPSCALE_MORE = """\
The video is first brought to the size that the model was trained to enlarge (its shorter side).
Long ones go through overlapping windows of frames, whose predictions are averaged at every step.
"""
IMPORT_IF = """\
Makes a model folder of DeepFloyd IF's weights in diffusers' layout, a tensor at a time.

  stunet import-if IF-I-M-v1.0 models/if_m

SRC is a pipeline's folder (unet/, scheduler/; text_encoder/ comes along where it is), or a U-Net's
(config.json and safetensors). Weights keep their type; pickles are never read.
"""
IMPORT_T5 = """\
Puts a T5 v1.1 encoder into a model folder, in place of the one that it has.

  stunet import-t5 IF-I-XL-v1.0/text_encoder models/if_m

SRC holds config.json, safetensors, and tokenizer.json or spiece.model (there, or in a tokenizer/
beside it); or it is a pipeline's folder with a text_encoder/ of that kind.
"""
EXPORT_IF = """\
Writes a model's text-to-image part as a diffusers pipeline's unet/ and scheduler/.

  stunet export-if models/if_m IF-again

What was imported and not trained comes out equal, byte for byte.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code: 0, 2 for a user's mistake, 130 for Ctrl-C."""
    try:
        return run_command(lambda: _run(_parser().parse_args(argv)), "stunet")
    except KeyboardInterrupt:
        print("stunet: cancelled", file=sys.stderr)
        return 130


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Argparse's own errors as one line, without the usage above."""
        raise UserError(f"{message} (see {self.prog} --help)")


def _run(args: argparse.Namespace) -> None:
    args.run(args)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser("stunet", description="Text-to-video generation with a Space-Time U-Net.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, run: Callable[[argparse.Namespace], None], **texts: str) -> Callable:
        one = commands.add_parser(
            name, formatter_class=argparse.RawDescriptionHelpFormatter, **texts
        )
        one.set_defaults(run=run)
        return one.add_argument

    add = command(
        "generate",
        _generate,
        help="make a video from a prompt",
        description=GENERATE,
        epilog=GENERATE_MORE,
    )
    _add_sampling(add)
    add(
        "--num-frames",
        metavar="T",
        type=_positive_int,
        help="1 is an image; more than in the model's training go through windows; "
        "default: as in the training",
    )
    add(
        "--fps",
        type=_positive_float,
        help="frames per second of the file; default: as in the model's training",
    )
    add("--num-videos", metavar="N", type=_positive_int, default=1, help="default: 1")
    add(
        "--upscale",
        metavar="DIR",
        action="append",
        default=[],
        help="a super-resolution model that enlarges the video; again for one more on top",
    )
    add(
        "--xt-slice",
        metavar="FILE.png",
        type=Path,
        help="also write the middle row of pixels over time (down), videos side by side",
    )
    add = command(
        "upscale",
        _upscale,
        help="enlarge a video",
        description=UPSCALE,
        epilog=UPSCALE_MORE,
    )
    add("video", metavar="VIDEO", help="the video to enlarge")
    _add_sampling(add)
    add(
        "--noise-level",
        metavar="L",
        type=_number,
        help="0..999: how far to distrust the video's details; default: the model's own",
    )
    for name, run, texts in (
        ("import-if", _import_if, ("DeepFloyd IF's weights become a model folder", IMPORT_IF)),
        ("import-t5", _import_t5, ("add a T5 v1.1 text encoder to a model folder", IMPORT_T5)),
        ("export-if", _export_if, ("a model's weights for diffusers", EXPORT_IF)),
    ):
        add = command(name, run, help=texts[0], description=texts[1])
        add("source", metavar="SRC", type=Path, help="what is read")
        add("target", metavar="DST", type=Path, help="the folder that is written")
        if run is not _export_if:
            add(
                "--variant",
                metavar="NAME",
                help="of the weights, such as fp16; default: the plain ones, or the only ones",
            )
    return parser


def _add_sampling(add: Callable) -> None:
    """The arguments of every command that samples."""
    add("prompt", metavar="PROMPT", help="what the video shows")
    add("--model", metavar="DIR", required=True, help="a model folder, or a training workdir")
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
        type=_positive_int,
        help="sampling steps; default: 25 (dpm2m), 50 (ddim), 100 (ancestral)",
    )
    add(
        "--guidance-scale",
        metavar="W",
        type=_number,
        default=4.0,
        help="how hard to follow the prompt; 1 is no guidance, at half the time; "
        "default: %(default)s",
    )
    add("--seed", metavar="S", type=int, default=0, help="same seed, same video; default: 0")
    add(
        "--windows-at-once",
        metavar="N",
        type=_positive_int,
        default=1,
        help="windows of a long clip that are at work together: more memory, less waiting where "
        "the device is wide; default: %(default)s",
    )


def _sampling(args: argparse.Namespace) -> dict:
    """The arguments of `_add_sampling` that are fields of `pipeline.Sampling`."""
    names = ("sampler", "steps", "guidance_scale", "seed", "windows_at_once")
    return {name: getattr(args, name) for name in names}


def _generate(args: argparse.Namespace) -> None:
    _check_prompt(args.prompt)
    outputs = _output_paths(args.out, args.num_videos)
    _check_outputs(outputs, args.xt_slice)

    from stunet import pipeline
    from stunet.compiling import prepare_compiler

    prepare_compiler()

    model, upscalers = pipeline.load(args.model), [pipeline.load(path) for path in args.upscale]
    num_frames = args.num_frames or model.num_frames
    if args.xt_slice and num_frames == 1:
        raise UserError(f"{args.xt_slice}: an X-T slice needs more than one frame")
    _check_cascade(model, [args.model, *args.upscale], upscalers)
    prompts = [args.prompt] * args.num_videos
    with _progress(pipeline.windows_of(model, num_frames)) as on_chunk:
        videos = pipeline.generate(
            model, prompts, num_frames=num_frames, on_chunk=on_chunk, **_sampling(args)
        )
    for upscaler in upscalers:
        with _progress(pipeline.windows_of(upscaler, num_frames)) as on_chunk:
            videos = pipeline.upscale(
                upscaler, videos, prompts, on_chunk=on_chunk, **_sampling(args)
            )
    _warn_of_cut_prompt(model, args.prompt)
    # A model of images has no rate; one frame needs some.
    _write(videos, outputs, args.xt_slice, args.fps or model.fps or 1.0)


def _upscale(args: argparse.Namespace) -> None:
    _check_prompt(args.prompt)
    _check_outputs([args.out], None)

    from stunet import pipeline
    from stunet.compiling import prepare_compiler
    from stunet.video_io import read_video

    prepare_compiler()

    model = pipeline.load(args.model)
    if model.super_resolution is None:
        raise UserError(f"{args.model}: makes videos; enlarging one takes a model of stage 'ssr'")
    factor, stride = model.super_resolution.factor, model.unet.spatial_stride
    video, fps = read_video(
        args.video,
        resolution=model.resolution // factor,
        multiple_of=stride // math.gcd(stride, factor),
    )
    with _progress(pipeline.windows_of(model, len(video))) as on_chunk:
        videos = pipeline.upscale(
            model,
            video[None],
            [args.prompt],
            noise_level=args.noise_level,
            on_chunk=on_chunk,
            **_sampling(args),
        )
    _warn_of_cut_prompt(model, args.prompt)
    _write(videos, [args.out], None, fps)


def _check_prompt(prompt: str) -> None:
    if not prompt.strip():
        raise UserError("the prompt is empty; say what the video shows")


def _check_cascade(model: "Model", names: list[str], upscalers: "list[Model]") -> None:
    """That each model takes what the one before it makes, before any of them has begun."""
    if model.super_resolution is not None:
        raise UserError(f"{names[0]}: a super-resolution model; name it by --upscale")
    made = model.resolution
    for name, upscaler in zip(names[1:], upscalers, strict=True):
        if upscaler.super_resolution is None:
            raise UserError(f"{name}: no super-resolution model, which --upscale takes")
        if made * upscaler.super_resolution.factor != upscaler.resolution:
            raise UserError(
                f"{name}: enlarges {upscaler.resolution // upscaler.super_resolution.factor} "
                f"pixels, but is given {made}"
            )
        made = upscaler.resolution


def _warn_of_cut_prompt(model: "Model", prompt: str) -> None:
    if model.tokenizer.num_truncated([prompt]):
        limit = model.tokenizer.max_tokens
        print(f"stunet: the model reads {limit} tokens; the prompt's end was cut", file=sys.stderr)


def _import_if(args: argparse.Namespace) -> None:
    from stunet.weights.exchange import import_if

    with _byte_progress("importing") as on_bytes:
        model = import_if(args.source, args.target, args.variant, on_bytes)
    print(f"{args.target}: {_described(model.params)}")
    if "text_encoder" not in model.params:
        print(
            "It has no text encoder, which prompts need: "
            f"`stunet import-t5 T5_FOLDER {args.target}` adds one."
        )


def _import_t5(args: argparse.Namespace) -> None:
    from stunet.weights.exchange import import_t5

    with _byte_progress("importing") as on_bytes:
        model = import_t5(args.source, args.target, args.variant, on_bytes)
    print(f"{args.target}: {_described(model.params)}")


def _export_if(args: argparse.Namespace) -> None:
    from stunet.weights.exchange import export_if

    with _byte_progress("exporting") as on_bytes:
        export_if(args.source, args.target, on_bytes)
    print(args.target)


def _described(params: dict) -> str:
    from stunet.weights.trees import count

    return ", ".join(f"{part} of {count(tree):,} parameters" for part, tree in params.items())


@contextlib.contextmanager
def _byte_progress(doing: str) -> "Iterator[Callable[[int], object]]":
    """A bar for `on_bytes`, once something is read; a folder that may not be read is one line."""
    from tqdm import tqdm

    bars = []

    def on_bytes(size: int) -> None:
        if not bars:
            bars.append(tqdm(desc=doing, unit="B", unit_scale=True, unit_divisor=1024))
        bars[0].update(size)

    try:
        yield on_bytes
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}") from error
    finally:
        for bar in bars:
            bar.close()


def _output_paths(out: Path, num_videos: int) -> list[Path]:
    if num_videos == 1 or out.suffix.lower() == ".png":
        return [out]
    return [out.with_name(f"{out.stem}_{i}{out.suffix}") for i in range(num_videos)]


def _check_outputs(outputs: list[Path], xt_slice: Path | None) -> None:
    from stunet.video_io import check_writable

    for path in outputs:
        check_writable(path)
    if xt_slice is not None:
        if xt_slice.suffix.lower() != ".png":
            raise UserError(f"{xt_slice}: an X-T slice is an image; end its name in .png")
        check_writable(xt_slice)
        if xt_slice.absolute() in [path.absolute() for path in outputs]:
            raise UserError(f"{xt_slice}: is both --out and --xt-slice; name two files")


def _write(videos: "np.ndarray", outputs: list[Path], xt_slice: Path | None, fps: float) -> None:
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
def _progress(windows: "Windows") -> "Iterator[OnChunk]":
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


def _positive_int(text: str) -> int:
    value = int(text) if text.strip().isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return value


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return value


def _positive_float(text: str) -> float:
    value = _number(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not above 0")
    return value


if __name__ == "__main__":
    sys.exit(main())
