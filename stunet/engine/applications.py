"""The applications: one entry each, from which commands, studio tabs and checks derive.

An entry lists the fields of `Request` that it reads (`Option`), which kind of model it takes, and
how it turns a request into a `Task`, which the engine runs. To add one, write a `prepare` function
and a row in `APPLICATIONS`.

This module imports neither JAX nor NumPy at import time, so that the command line answers quickly.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from stunet.engine.request import Margins, Request
from stunet.errors import UserError
from stunet.paths import AnyPath
from stunet.weights import shipped

if TYPE_CHECKING:
    import numpy as np

    from stunet.engine.inputs import KnownPixels, Picture
    from stunet.model import Model

Kind = Literal["image", "video", "mask", "margins", "integer", "number", "switch", "schedule"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Option:
    """A field of `Request` that a person sets: an argument of a command, a component of a tab.

    Attributes:
      field: Name of the field.
      kind: What it holds.
      label: Name on the page.
      help: Imperative phrase or noun phrase, default last.
      positional: Whether the command takes it by position.
      required: Whether there is no default.
      default: Initial value.
      minimum: Smallest number.
      maximum: Largest number.
      advanced: Whether only commands and Python set it.
    """

    field: str
    kind: Kind
    label: str
    help: str
    positional: bool = False
    required: bool = False
    default: Any = None
    minimum: float | None = None
    maximum: float | None = None
    advanced: bool = False

    def check(self, request: Request) -> None:
        """Raises a `UserError` if the field is missing or out of range."""
        value = getattr(request, self.field)
        if value is None:
            if self.required:
                raise UserError(f"{self.field}: missing, expected {self.help}")
            return
        low = -math.inf if self.minimum is None else self.minimum
        high = math.inf if self.maximum is None else self.maximum
        if self.kind in ("integer", "number") and not low <= value <= high:  # also if NaN
            raise UserError(f"{self.field}: invalid value {value}, expected {self._range()}")

    def _range(self) -> str:
        if self.maximum is None:
            return f"at least {self.minimum:g}"
        return f"{self.minimum:g} to {self.maximum:g}"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """A request whose inputs have been read.

    Attributes:
      num_frames: Frames to sample or enlarge.
      fps: Frame rate of the result.
      known: Resolution -> known pixels, for applications that fill in.
      start: Videos `[N, T, R, R, 3]` to start from instead of pure noise (SDEdit).
      low_resolution: Videos to enlarge; replaces the base model.
      drop_last_frame: Whether the last frame only closes a loop.
      warnings: Remarks for the user.
    """

    num_frames: int
    fps: float
    known: "dict[int, KnownPixels] | None" = None
    start: "np.ndarray | None" = None
    low_resolution: "np.ndarray | None" = None
    drop_last_frame: bool = False
    warnings: tuple[str, ...] = ()

    @property
    def result_frames(self) -> int:
        """Frames of the result."""
        return self.num_frames - self.drop_last_frame


# (request, first model of the job, resolutions of all its models) -> task
Prepare = Callable[[Request, "Model", Sequence[int]], Task]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Application:
    """One application.

    Attributes:
      summary: One line, for the list of commands and the page.
      example: Arguments of an example command.
      prepare: Reads the inputs of a request.
      options: Fields of `Request` that it reads, besides those of all applications.
      model: Needed first model: "any", "video", "conditional" or "super_resolution".
      default_model: Name of a model that comes with the package.
      paste_back: Default of `Request.paste_back`.
    """

    summary: str
    example: str
    prepare: Prepare
    options: tuple[Option, ...] = ()
    model: Literal["any", "video", "conditional", "super_resolution"] = "any"
    default_model: str = shipped.VIDEO_MODEL
    paste_back: bool = False

    def check(self, request: Request) -> None:
        """Raises a `UserError` if the request lacks a field, or one is out of range or unused."""
        if not request.prompts:
            raise UserError("prompts: empty, expected at least one text")
        for option in self.options:
            option.check(request)
        used = {option.field for option in self.options}
        for option in {o.field: o for a in APPLICATIONS.values() for o in a.options}.values():
            value, default = (getattr(r, option.field) for r in (request, _DEFAULTS))
            # Arrays compare by element; none of them is a default.
            plain = isinstance(value, bool | int | tuple)
            is_default = value is default or (plain and value == default)
            if option.field not in used and not is_default:
                raise UserError(
                    f"{option.field}: not used by {request.application!r}, which takes "
                    f"{', '.join(sorted(used)) or 'prompts only'}"
                )

    def accepts(self, model: "Model") -> bool:
        """Whether a model can be the first one."""
        return self.missing(model) is None

    def missing(self, model: "Model") -> str | None:
        """Returns what a model lacks, as "found, expected", or None."""
        if (model.super_resolution is not None) != (self.model == "super_resolution"):
            found = "generates videos" if model.super_resolution is None else "enlarges videos"
            return f"{found}, expected a model of {_EXPECTED[self.model]}"
        if self.model in ("video", "conditional") and model.num_frames == 1:
            return f"generates images, expected a model of {_EXPECTED[self.model]}"
        if self.model == "conditional" and not model.unet.cond_channels:
            return f"has no mask conditioning, expected a model of {_EXPECTED['conditional']}"
        return None


_EXPECTED = {
    "any": "stage 't2i', 't2v' or 'conditional'",
    "video": "stage 't2v' or 'conditional'",
    "conditional": "stage 'conditional'",
    "super_resolution": "stage 'ssr'",
}
_DEFAULTS = Request(application="", prompts=("",))


def find_application(name: str) -> Application:
    """Returns an application by name.

    Raises:
      UserError: No such application.
    """
    if name not in APPLICATIONS:
        raise UserError(
            f"application: unknown name {name!r}, expected one of {', '.join(APPLICATIONS)}"
        )
    return APPLICATIONS[name]


def available_applications(models: Sequence["Model"]) -> tuple[str, ...]:
    """Returns the applications that a base model followed by its upscalers can run."""
    first = dict.fromkeys(APPLICATIONS, models[:1])
    first |= {
        name: models[1:2] for name, a in APPLICATIONS.items() if a.model == "super_resolution"
    }
    return tuple(
        name for name, found in first.items() if found and APPLICATIONS[name].accepts(found[0])
    )


def _generate(request: Request, model: "Model", resolutions: Sequence[int]) -> Task:
    num_frames = request.num_frames or model.num_frames
    # An image model has no frame rate; a file needs one.
    return Task(num_frames=num_frames, fps=request.fps or model.fps or 1.0)


def _animate(request: Request, model: "Model", resolutions: Sequence[int]) -> Task:
    from stunet.engine import inputs

    num_frames = _clip_length(request, model, minimum=2)
    image = inputs.read_image("image", request.image, resolutions)
    return Task(
        num_frames=num_frames,
        fps=request.fps or model.fps,
        known={side: _known_frames({0: image.frames[side]}, num_frames) for side in resolutions},
        warnings=_warnings(image),
    )


def _interpolate(request: Request, model: "Model", resolutions: Sequence[int]) -> Task:
    from stunet.engine import inputs

    num_frames = _clip_length(request, model, minimum=3)
    first = inputs.read_image("image", request.image, resolutions)
    last = inputs.read_image("last", request.last, resolutions)
    ends = {side: {0: first.frames[side], -1: last.frames[side]} for side in resolutions}
    return Task(
        num_frames=num_frames,
        fps=request.fps or model.fps,
        known={side: _known_frames(frames, num_frames) for side, frames in ends.items()},
        warnings=(*_warnings(first), *_warnings(last)),
    )


def _inpaint(request: Request, model: "Model", resolutions: Sequence[int]) -> Task:
    import numpy as np

    from stunet.engine import inputs

    if (request.mask is None) == (request.outpaint is None):
        found = "neither" if request.mask is None else "both"
        raise UserError(f"mask, outpaint: {found} set, expected exactly one of them")
    video = inputs.read_clip("video", request.video, resolutions, model.fps, request.outpaint)
    if request.outpaint is None:
        masks = inputs.read_mask(request.mask, video, resolutions, fps=model.fps)
        margins = inputs.NO_MARGINS
    else:
        masks, margins = video.source_mask, request.outpaint
        if masks[resolutions[0]].min() == 1:
            raise UserError(
                f"outpaint: {margins} is removed by the centre crop, expected pixels on the other "
                "sides too"
            )
    num_frames = video.frames[resolutions[0]].shape[1]

    def per_frame(mask: np.ndarray) -> np.ndarray:
        return np.repeat(mask, num_frames // mask.shape[1], axis=1)

    return Task(
        num_frames=num_frames,
        fps=model.fps,
        known={
            side: inputs.KnownPixels(video.frames[side], per_frame(masks[side]))
            for side in resolutions
        },
        warnings=_warnings(video, margins),
    )


def _cinemagraph(request: Request, model: "Model", resolutions: Sequence[int]) -> Task:
    import numpy as np

    from stunet.engine import inputs

    image = inputs.read_image("image", request.image, resolutions)
    masks = inputs.read_mask(request.mask, image, resolutions, still=True)
    # A loop is sampled with the first frame once more at its end.
    num_frames = (request.num_frames or model.num_frames - request.loop) + request.loop
    if num_frames < 2:
        raise UserError(f"num_frames: invalid value {num_frames}, expected at least 2")

    def still_except_mask(side: int) -> inputs.KnownPixels:
        videos = np.repeat(image.frames[side], num_frames, axis=1)
        mask = np.repeat(masks[side], num_frames, axis=1)
        mask[:, [0, -1] if request.loop else [0]] = 1
        return inputs.KnownPixels(videos, mask)

    return Task(
        num_frames=num_frames,
        fps=request.fps or model.fps,
        known={side: still_except_mask(side) for side in resolutions},
        drop_last_frame=request.loop,
        warnings=_warnings(image),
    )


def _edit(request: Request, model: "Model", resolutions: Sequence[int]) -> Task:
    from stunet.engine import inputs

    video = inputs.read_clip("video", request.video, resolutions[:1], model.fps)
    start = video.frames[resolutions[0]]
    return Task(
        num_frames=start.shape[1],
        fps=model.fps,
        start=start,
        warnings=_warnings(video),
    )


def _upscale(request: Request, model: "Model", resolutions: Sequence[int]) -> Task:
    from stunet.video_io import read_video_sizes

    if not isinstance(request.video, str | AnyPath):
        videos = _as_videos(request.video)
        return Task(num_frames=videos.shape[1], fps=request.fps or model.fps, low_resolution=videos)
    # The whole picture, at the size that the model was trained to enlarge.
    factor, stride = model.super_resolution.factor, model.unet.spatial_stride
    side = model.resolution // factor
    sizes = read_video_sizes(
        request.video, resolutions=(side,), multiple_of=stride // math.gcd(stride, factor)
    )
    video = sizes.frames[side]
    return Task(
        num_frames=len(video),
        fps=request.fps or sizes.fps,
        low_resolution=video[None],
        warnings=(*sizes.warnings, *_shrink_warning(request.video, sizes.size, video, factor)),
    )


def _shrink_warning(
    source: str | AnyPath, size: tuple[int, int], video: "np.ndarray", factor: int
) -> tuple[str, ...]:
    """Warns if a video is larger than what a super-resolution model takes."""
    height, width = video.shape[1:3]
    if height >= size[0] and width >= size[1]:
        return ()
    return (
        f"{source}: {size[1]}x{size[0]}, shrunk to the model's input of {width}x{height}; enlarged "
        f"by {factor} to {factor * width}x{factor * height}",
    )


def _as_videos(video: Any) -> "np.ndarray":
    import numpy as np

    videos = np.asarray(video, np.float32)
    videos = videos[None] if videos.ndim == 4 else videos
    if videos.ndim != 5 or videos.shape[-1] != 3:
        raise UserError(f"video: shape {np.shape(video)}, expected [T, H, W, 3] or [N, T, H, W, 3]")
    return videos


def _clip_length(request: Request, model: "Model", minimum: int) -> int:
    num_frames = request.num_frames or model.num_frames
    if num_frames < minimum:
        raise UserError(f"num_frames: invalid value {num_frames}, expected at least {minimum}")
    return num_frames


def _known_frames(images: "dict[int, np.ndarray]", num_frames: int) -> "KnownPixels":
    """Known pixels of a clip of which some frames, `[N, 1, R, R, 3]` by index, are known."""
    import numpy as np

    from stunet.engine.inputs import KnownPixels

    n, _, height, width, _ = next(iter(images.values())).shape
    videos = np.zeros((n, num_frames, height, width, 3), np.float32)
    mask = np.zeros((n, num_frames, height, width, 1), np.float32)
    for index, image in images.items():
        if image.shape != (n, 1, height, width, 3):
            raise UserError(
                f"last: shape {image.shape}, expected {(n, 1, height, width, 3)}, that of image"
            )
        videos[:, index], mask[:, index] = image[:, 0], 1
    return KnownPixels(videos, mask)


def _warnings(picture: "Picture", margins: Margins = (0, 0, 0, 0)) -> tuple[str, ...]:
    from stunet.engine.inputs import crop_warning

    cropped = crop_warning(picture, margins)
    return picture.warnings if cropped is None else (*picture.warnings, cropped)


_STILL = "PNG, JPEG, or a video of which the first frame is used"
_IMAGE = Option(
    field="image", kind="image", label="Image", help=_STILL, positional=True, required=True
)
_VIDEO = Option(
    field="video", kind="video", label="Video", help="a video file", positional=True, required=True
)
_NUM_FRAMES = Option(
    field="num_frames",
    kind="integer",
    label="Frames",
    help="frames of the video; longer clips than in training use windows; default: as in training",
    minimum=1,
)
_FPS = Option(
    field="fps",
    kind="number",
    label="Frame rate",
    help="frames per second of the file; default: as in training",
    minimum=0.01,
    maximum=1000,
    advanced=True,
)
_PROMPT_SCHEDULE = Option(
    field="prompt_schedule",
    kind="schedule",
    label="Prompt schedule",
    help="text that replaces the prompt of a long clip from this frame on (the first is 0); "
    "repeatable",
    default=(),
    advanced=True,
)
_PASTE_BACK = Option(
    field="paste_back",
    kind="switch",
    label="Paste back",
    help="put the known pixels back into the result",
    advanced=True,
)

# In the order of the page's tabs.
APPLICATIONS: dict[str, Application] = {
    "generate": Application(
        summary="Generate a video from a prompt.",
        example='"a red star moving left on a dark background" --out star.mp4',
        prepare=_generate,
        options=(_NUM_FRAMES, _PROMPT_SCHEDULE, _FPS),
    ),
    "animate": Application(
        summary="Generate a video that begins with an image.",
        example='star.png "a red star moving left" --out star.mp4',
        prepare=_animate,
        options=(_IMAGE, _NUM_FRAMES, _FPS, _PASTE_BACK),
        model="conditional",
        default_model=shipped.CONDITIONAL_MODEL,
    ),
    "interpolate": Application(
        summary="Generate a video between a first and a last frame.",
        example='first.png last.png "a red star growing" --out star.mp4',
        prepare=_interpolate,
        options=(
            dataclasses.replace(_IMAGE, label="First image"),
            dataclasses.replace(_IMAGE, field="last", label="Last image"),
            _NUM_FRAMES,
            _FPS,
            _PASTE_BACK,
        ),
        model="conditional",
        default_model=shipped.CONDITIONAL_MODEL,
    ),
    "inpaint": Application(
        summary="Fill in the masked region of a video, or extend it beyond its borders.",
        example='clip.mp4 "a red star" --mask hole.png --out inpainted.mp4',
        prepare=_inpaint,
        options=(
            _VIDEO,
            Option(
                field="mask",
                kind="mask",
                label="Region to generate",
                help="region to generate in white: an image, or a video with a mask per frame",
            ),
            Option(
                field="outpaint",
                kind="margins",
                label="Around the video",
                help="pixels to add on each side, in the video's own size; the result is cropped "
                "to the central square",
            ),
            _PASTE_BACK,
        ),
        model="conditional",
        default_model=shipped.CONDITIONAL_MODEL,
        paste_back=True,
    ),
    "cinemagraph": Application(
        summary="Animate a part of an image; the rest stands still.",
        example='sea.png "waves" --mask sea_mask.png --loop --out sea.gif',
        prepare=_cinemagraph,
        options=(
            _IMAGE,
            Option(
                field="mask",
                kind="mask",
                label="Region that moves",
                help="region that moves in white, of the image's size",
                required=True,
            ),
            Option(
                field="loop",
                kind="switch",
                label="Loop",
                help="return to the first frame at the end",
                default=False,
            ),
            _NUM_FRAMES,
            _FPS,
            _PASTE_BACK,
        ),
        model="conditional",
        default_model=shipped.CONDITIONAL_MODEL,
        paste_back=True,
    ),
    "edit": Application(
        summary="Edit a video to match a prompt (SDEdit).",
        example='clip.mp4 "a blue star" --strength 0.7 --out blue.mp4',
        prepare=_edit,
        options=(
            _VIDEO,
            Option(
                field="strength",
                kind="number",
                label="Strength",
                help="0 returns the input, 1 ignores it",
                required=True,
                default=0.7,
                minimum=0,
                maximum=1,
            ),
        ),
        model="video",
    ),
    "upscale": Application(
        summary="Enlarge a video; frame rate and length stay.",
        example='clip.mp4 "a red star moving left" --out large.mp4',
        prepare=_upscale,
        options=(
            _VIDEO,
            Option(
                field="noise_level",
                kind="number",
                label="Noise level",
                help="noise added to the input, 0 to 999: more invents more detail and follows the "
                "video less; default: the model's",
                minimum=0,
                maximum=999,
                advanced=True,
            ),
        ),
        model="super_resolution",
        default_model=shipped.UPSCALER,
    ),
}
