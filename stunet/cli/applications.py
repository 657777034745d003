"""`stunet animate`, `interpolate`, `inpaint`, `cinemagraph`, `edit`: from images and videos."""

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

from stunet.cli.options import (
    add_base_model,
    add_sampling,
    check_length,
    check_outputs,
    enlarge,
    frame_rate,
    load_cascade,
    number,
    positive_int,
    progress,
    sampling,
    say,
    write,
)
from stunet.errors import UserError
from stunet.weights import shipped

if TYPE_CHECKING:
    from stunet.engine import Model
    from stunet.engine.inputs import Filled

ANIMATE = """\
Makes a video that begins with an image.

  stunet animate star.png "a red star moves to the left" --out star.mp4
"""
INTERPOLATE = """\
Makes a video from a first frame to a last.

  stunet interpolate a.png b.png "a red star growing" --out star.mp4
"""
INPAINT = """\
Makes anew what a mask covers of a video (white is filled in), or what lies around it.

  stunet inpaint clip.mp4 "a red star" --mask hole.png --out mended.mp4
  stunet inpaint clip.mp4 "a red star" --outpaint 40,40,40,40 --out wide.mp4
"""
CINEMAGRAPH = """\
Lets a part of an image move (where the mask is white), and nothing else.

  stunet cinemagraph sea.png "waves" --mask sea_mask.png --loop --out sea.gif
"""
EDIT = """\
Makes a video over to a prompt, from a noisy version of itself.

  stunet edit clip.mp4 "a blue star" --strength 0.7 --out blue.mp4
"""
SQUARE = "Of what is not square the middle is used. A video keeps its duration.\n"


def add_commands(command: Callable) -> None:
    """Adds these commands by `command(name, run, **texts)`."""

    def one(
        name: str,
        run: Callable,
        short: str,
        text: str,
        *inputs: tuple[str, str],
        model: str = shipped.CONDITIONAL_MODEL,
    ) -> Callable:
        add = command(name, run, help=short, description=text, epilog=SQUARE)
        for metavar, what in inputs:
            add(metavar.lower(), metavar=metavar, help=what)
        add_sampling(add, model)
        add_base_model(add)
        return add

    still, mask = "PNG, JPEG, or a video's first frame", "an image, or a video for each frame's own"
    add = one("animate", _animate, "a video of an image", ANIMATE, ("IMAGE", still))
    _add_frames(add)
    _add_pasting(add, default=False)
    add = one(
        "interpolate",
        _interpolate,
        "a video between two images",
        INTERPOLATE,
        ("FIRST", still),
        ("LAST", still),
    )
    _add_frames(add)
    _add_pasting(add, default=False)
    add = one("inpaint", _inpaint, "fill in a part of a video", INPAINT, ("VIDEO", "what is kept"))
    add("--mask", metavar="FILE", help=f"white = fill in; {mask}, of the video's size")
    add(
        "--outpaint",
        metavar="LEFT,RIGHT,TOP,BOTTOM",
        type=_margins,
        help="pixels to add on each side of the video, in its own size; of the whole, as of any "
        "video, the middle square is used",
    )
    _add_pasting(add, default=True)
    add = one(
        "cinemagraph",
        _cinemagraph,
        "let a part of an image move",
        CINEMAGRAPH,
        ("IMAGE", still),
    )
    add("--mask", metavar="FILE", required=True, help="white = moves; of the image's size")
    add("--loop", action="store_true", help="lead back to the first frame, without a jump")
    _add_frames(add)
    _add_pasting(add, default=True)
    start = ("VIDEO", "what to start from")
    add = one("edit", _edit, "make a video over", EDIT, start, model=shipped.VIDEO_MODEL)
    add(
        "--strength",
        metavar="S",
        type=number,
        required=True,
        help="0..1: 0 leaves the video as it is, 1 does not see it",
    )


def _add_frames(add: Callable) -> None:
    add(
        "--num-frames",
        metavar="T",
        type=positive_int,
        help="of the video; default: as in the model's training",
    )
    add("--fps", type=frame_rate, help="default: as in the model's training")


def _add_pasting(add: Callable, default: bool) -> None:
    add(
        "--paste-back",
        action=argparse.BooleanOptionalAction,
        default=default,
        help="put the pixels that were given back into the result before it is written",
    )


def _animate(args: argparse.Namespace) -> None:
    from stunet.engine.inputs import first_given

    model, upscalers = _begin(args)
    _say_if_not_square(args.image)
    filled = first_given(args.image, args.num_frames or model.num_frames)
    _fill(args, model, upscalers, filled, args.fps or model.fps)


def _interpolate(args: argparse.Namespace) -> None:
    from stunet.engine.inputs import ends_given

    model, upscalers = _begin(args)
    filled = ends_given(args.first, args.last, args.num_frames or model.num_frames)
    for path in (args.first, args.last):
        _say_if_not_square(path)
    _fill(args, model, upscalers, filled, args.fps or model.fps)


def _inpaint(args: argparse.Namespace) -> None:
    from stunet.engine.inputs import NO_MARGINS, masked, widened

    if (args.mask is None) == (args.outpaint is None):
        raise UserError("give one of --mask=FILE and --outpaint=LEFT,RIGHT,TOP,BOTTOM")
    model, upscalers = _begin(args)
    if args.mask is None:
        filled = widened(args.video, args.outpaint, model.fps)
    else:
        filled = masked(args.video, args.mask, model.fps)
    _say_if_not_square(args.video, args.outpaint or NO_MARGINS)
    _fill(args, model, upscalers, filled, model.fps)


def _cinemagraph(args: argparse.Namespace) -> None:
    from stunet.engine.inputs import still_but

    model, upscalers = _begin(args)
    frames = (args.num_frames or model.num_frames - args.loop) + args.loop
    filled = still_but(args.image, args.mask, frames, args.loop)
    _say_if_not_square(args.image)
    _fill(args, model, upscalers, filled, args.fps or model.fps, drop_last=args.loop)


def _edit(args: argparse.Namespace) -> None:
    from stunet import engine as pipeline
    from stunet.video_io import read_video

    if not 0 <= args.strength <= 1:
        raise UserError(f"--strength is {args.strength:g}; it must be within 0..1")
    model, upscalers = _begin(args, conditional=False)
    video, _ = read_video(args.video, fps=model.fps, resolution=model.resolution)
    _say_if_not_square(args.video)
    frames = pipeline.whole_strides(model, len(video))
    check_length(model, upscalers, frames, given=False)
    options = {"strength": args.strength, **sampling(args)}
    with progress(pipeline.windows_of(model, frames)) as on_chunk:
        videos = pipeline.edit(model, video[None], [args.prompt], on_chunk=on_chunk, **options)
    videos = enlarge(args, upscalers, videos)
    say(model.tokenizer.truncation_warning(args.prompt))
    write(videos, [args.out], None, model.fps)


def _begin(args: argparse.Namespace, conditional: bool = True) -> "tuple[Model, list[Model]]":
    """The checks and the models of every command here."""
    from stunet.text import check_prompt

    check_prompt(args.prompt)
    check_outputs([args.out], None)
    model, upscalers = load_cascade(args)
    if model.num_frames == 1:
        raise UserError(f"{args.model}: makes images; name a model of videos")
    if conditional and not model.unet.cond_channels:
        raise UserError(
            f"{args.model}: does not look at given pixels; name a model of stage 'conditional'"
        )
    return model, upscalers


def _fill(
    args: argparse.Namespace,
    model: "Model",
    upscalers: "list[Model]",
    filled: "Filled",
    fps: float,
    drop_last: bool = False,
) -> None:
    """Fills in, enlarges with the same pixels given at the larger size, and writes."""
    from stunet import engine as pipeline

    given = filled(model.resolution)
    frames = pipeline.whole_strides(model, given[0].shape[1])
    check_length(model, upscalers, frames, given=True)
    videos = pipeline.fill_and_enlarge(
        model,
        upscalers,
        given,
        filled,
        [args.prompt],
        progress,
        args.paste_back,
        **sampling(args),
    )
    say(model.tokenizer.truncation_warning(args.prompt))
    write(videos[:, :-1] if drop_last else videos, [args.out], None, fps)


def _say_if_not_square(path: str, margins: tuple[int, ...] = (0, 0, 0, 0)) -> None:
    from stunet.engine.inputs import said_of_crop

    say(said_of_crop(path, margins))


def _margins(text: str) -> tuple[int, ...]:
    sides = text.split(",")
    if len(sides) != 4 or not all(side.strip().isdecimal() for side in sides):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not four whole numbers of pixels, LEFT,RIGHT,TOP,BOTTOM"
        )
    margins = tuple(map(int, sides))
    if not any(margins):
        raise argparse.ArgumentTypeError("all four are 0: there is nothing to make")
    return margins
