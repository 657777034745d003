"""The models that a studio works with, and what they can do."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from stunet import engine as pipeline
from stunet.model import Model
from stunet.weights.style import RECOMMENDED_STRENGTH

CONDITIONAL = ("animate", "interpolate", "inpaint", "cinemagraph")


@dataclasses.dataclass(frozen=True, eq=False)
class Models:
    """What `stunet studio` was given.

    Attributes:
      base: makes images or videos.
      upscalers: enlarge them, one after the other.
      style: its weights are mixed into the base's; None for no style.
      names: of all of these: "model", "upscale" (a list) and "style", as results tell them.
    """

    base: Model
    upscalers: tuple[Model, ...]
    style: Model | None
    names: dict[str, str | list[str]]

    @property
    def applications(self) -> tuple[str, ...]:
        """What these models can do, in the order of the page's tabs."""
        videos = self.base.num_frames > 1
        conditional = CONDITIONAL if videos and self.base.unet.cond_channels else ()
        edit = ("edit",) if videos else ()
        upscale = ("upscale",) if self.upscalers else ()
        return ("generate", *conditional, *edit, *upscale)

    @property
    def factor(self) -> int:
        """How many times as wide and high all upscalers make a video."""
        last = (self.base, *self.upscalers)[-1]
        return last.resolution // self.base.resolution

    def styled(self, strength: float) -> Model:
        """The base model in the style.

        Raises:
          UserError: as `pipeline.stylised`.
        """
        if self.style is None or strength == 0:
            return self.base
        return pipeline.stylised(self.base, self.style, strength, self.names["style"])


def load_models(model: str, upscale: Sequence[str], style: str | None) -> Models:
    """Reads all models and checks that they go together.

    Raises:
      UserError: as `pipeline.load`, or one of them cannot do what it is named for.
    """
    base, upscalers = pipeline.load(model), tuple(map(pipeline.load, upscale))
    pipeline.check_cascade(base, [model, *upscale], upscalers)
    names = {"model": _name(model)}
    if upscale:
        names["upscale"] = [_name(one) for one in upscale]
    if style is None:
        return Models(base, upscalers, None, names)
    models = Models(base, upscalers, pipeline.load(style), names | {"style": _name(style)})
    # One that does not fit is refused now rather than by the first job.
    pipeline.stylised(base, models.style, RECOMMENDED_STRENGTH[0], style)
    return models


def _name(path: str) -> str:
    """A model's name for results, which go to other people: not where it lies on this machine."""
    return Path(path).resolve().name if path in (".", "..") else Path(path).name
