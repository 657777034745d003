"""`stunet generate` and `stunet upscale`."""

import argparse
from collections.abc import Callable
from pathlib import Path

from stunet.cli.options import (
    add_base_model,
    add_sampling,
    check_length,
    check_outputs,
    enlarge,
    frame_rate,
    load_cascade,
    number,
    output_paths,
    positive_int,
    progress,
    sampling,
    say,
    write,
)
from stunet.errors import UserError
from stunet.weights import shipped

GENERATE = """\
Makes a video from a prompt.

  stunet generate "a red star moves to the left" --out star.mp4
  stunet generate "a red star moves to the left" --upscale shapes-ssr --out star.mp4
"""
GENERATE_MORE = """\
With --num-videos N > 1, OUT.mp4 becomes OUT_0.mp4 ... OUT_{N-1}.mp4 (.gif likewise); a .png is
one contact sheet with a row for each video. Video i of a seed is the same for every N.
The first call of a kind compiles the network; later ones find it in the user's cache folder
(XDG_CACHE_HOME, or ~/.cache).
"""
UPSCALE = """\
Enlarges a video by a super-resolution model; frame rate and length stay.

  stunet upscale clip.mp4 "a red star moves to the left" --out large.mp4
"""
UPSCALE_MORE = """\
The video is first brought to the size that the model was trained to enlarge (its shorter side).
Long ones go through overlapping windows of frames, whose predictions are averaged at every step.
"""


def add_commands(command: Callable) -> None:
    """Adds these commands by `command(name, run, **texts)`."""
    add = command(
        "generate",
        _generate,
        help="make a video from a prompt",
        description=GENERATE,
        epilog=GENERATE_MORE,
    )
    add_sampling(add)
    add_base_model(add)
    add(
        "--num-frames",
        metavar="T",
        type=positive_int,
        help="1 is an image; more than in the model's training go through windows; "
        "default: as in the training",
    )
    add(
        "--fps",
        type=frame_rate,
        help="frames per second of the file; default: as in the model's training",
    )
    add("--num-videos", metavar="N", type=positive_int, default=1, help="default: 1")
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
    add_sampling(add, shipped.UPSCALER, "the model's own")
    add(
        "--noise-level",
        metavar="L",
        type=number,
        help="0..999: how far to distrust the video's details; default: the model's own",
    )


def _generate(args: argparse.Namespace) -> None:
    from stunet.text import check_prompt

    check_prompt(args.prompt)
    outputs = output_paths(args.out, args.num_videos)
    check_outputs(outputs, args.xt_slice)

    from stunet import engine as pipeline

    model, upscalers = load_cascade(args)
    num_frames = args.num_frames or model.num_frames
    if args.xt_slice and num_frames == 1:
        raise UserError(f"{args.xt_slice}: an X-T slice needs more than one frame")
    prompts = [args.prompt] * args.num_videos
    check_length(model, upscalers, num_frames, given=False)
    with progress(pipeline.windows_of(model, num_frames)) as on_chunk:
        videos = pipeline.generate(
            model, prompts, num_frames=num_frames, on_chunk=on_chunk, **sampling(args)
        )
    videos = enlarge(args, upscalers, videos)
    say(model.tokenizer.truncation_warning(args.prompt))
    # A model of images has no rate; one frame needs some.
    write(videos, outputs, args.xt_slice, args.fps or model.fps or 1.0)


def _upscale(args: argparse.Namespace) -> None:
    from stunet.text import check_prompt

    check_prompt(args.prompt)
    check_outputs([args.out], None)

    from stunet import engine as pipeline
    from stunet.compiling import prepare_compiler
    from stunet.engine.inputs import to_enlarge

    prepare_compiler()

    model = pipeline.load(args.model)
    if model.super_resolution is None:
        raise UserError(f"{args.model}: makes videos; enlarging one takes a model of stage 'ssr'")
    videos, fps = to_enlarge(args.video, model)
    frames = pipeline.whole_strides(model, videos.shape[1])
    with progress(pipeline.windows_of(model, frames)) as on_chunk:
        videos = pipeline.upscale(
            model,
            videos,
            [args.prompt],
            noise_level=args.noise_level,
            on_chunk=on_chunk,
            **sampling(args),
        )
    say(model.tokenizer.truncation_warning(args.prompt))
    write(videos, [args.out], None, fps)
