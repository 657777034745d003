"""The models of a job: a base model, its style, and the upscalers that follow it."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax

from stunet.errors import UserError
from stunet.model import Model, load
from stunet.paths import AnyPath
from stunet.weights.hub import is_hub_id
from stunet.weights.style import (
    DEFAULT_STRENGTH,
    RECOMMENDED_STRENGTH,
    interpolate_style,
    strength_warning,
)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Models:
    """Models that fit each other.

    Attributes:
      base: Generates images or videos. None if videos are only enlarged.
      upscalers: Enlarge the result, one after the other.
      style: Its image weights are mixed into the base's. None for no style.
      base_name: Name of the base model in settings and messages.
      upscaler_names: Likewise, one per upscaler.
      style_name: Likewise.

    Raises:
      UserError: A model does not fit the one before it.
    """

    base: Model | None
    upscalers: tuple[Model, ...] = ()
    style: Model | None = None
    base_name: str = "model"
    upscaler_names: tuple[str, ...] = ()
    style_name: str = "style"

    def __post_init__(self):
        if not self.upscaler_names:
            names = tuple(f"upscaler {i}" for i in range(len(self.upscalers)))
            object.__setattr__(self, "upscaler_names", names)
        _check_cascade(self)

    @property
    def chain(self) -> tuple[Model, ...]:
        """The base model, if there is one, and the upscalers."""
        return (*([] if self.base is None else [self.base]), *self.upscalers)

    @property
    def factor(self) -> int:
        """Factor by which all upscalers together enlarge a video of the base model."""
        return self.chain[-1].resolution // self.chain[0].resolution

    def styled_base(self, strength: float | None) -> Model:
        """Returns the base model in the style.

        Args:
          strength: See `stylize`. None uses `DEFAULT_STRENGTH` if there is a style.

        Raises:
          UserError: A strength without a style, or as `stylize`.
        """
        if self.style is None:
            if strength:
                raise UserError(f"style_strength: {strength:g} without a style, expected a style")
            return self.base
        strength = DEFAULT_STRENGTH if strength is None else strength
        return (
            self.base
            if strength == 0
            else stylize(self.base, self.style, strength, self.style_name)
        )

    def style_warning(self, strength: float | None) -> str | None:
        """Returns a warning if the strength is unusual, else None."""
        if self.style is None or strength == 0:
            return None
        return strength_warning(DEFAULT_STRENGTH if strength is None else strength)


def load_models(
    base: str | AnyPath | None,
    upscalers: Sequence[str | AnyPath] = (),
    style: str | AnyPath | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Models:
    """Loads the models of a job and checks that they fit each other.

    Args:
      base: Model folder, training workdir, hub id, or the name of a model of the package.
        None for none.
      upscalers: Likewise.
      style: Likewise, or None.
      devices: Devices to sample on, see `stunet.load`.

    Raises:
      UserError: As `stunet.load`, or the models do not fit each other.
    """
    models = Models(
        base=None if base is None else load(base, devices),
        upscalers=tuple(load(path, devices) for path in upscalers),
        style=None if style is None else load(style, devices),
        base_name=str(base),
        upscaler_names=tuple(str(path) for path in upscalers),
        style_name=str(style),
    )
    if models.style is not None:  # refuse a misfit now rather than with the first job
        # Shapes only: the weights are interpolated when a job needs them.
        jax.eval_shape(
            lambda: (
                stylize(
                    models.base, models.style, RECOMMENDED_STRENGTH[0], models.style_name
                ).params
            )
        )
    return models


def stylize(
    model: Model, style: Model, strength: float = DEFAULT_STRENGTH, name: str = "style"
) -> Model:
    """Interpolates a model's image weights towards a style's (2401.12945 section 4.1).

    Args:
      model: Model of images or videos.
      style: Model tuned to a style; only the image part of its U-Net is used.
      strength: 0 returns the model, 1 swaps the weights; the paper uses 0.5 to 1.
      name: Name of the style, for error messages.

    Raises:
      UserError: The strength is outside 0 to 1.5, or the style belongs to another network.
    """
    if style.prediction != model.prediction:
        raise UserError(
            f"{name}: prediction {style.prediction!r}, expected {model.prediction!r}, the model's"
        )
    unet = interpolate_style(model.params["unet"], style.params["unet"], strength, name)
    return dataclasses.replace(model, params={**model.params, "unet": unet})


def short_name(path: str) -> str:
    """Returns the last part of a model's path, without the folders of this machine, or a hub id."""
    if is_hub_id(path):
        return path
    return Path(path).resolve().name if path in (".", "..") else Path(path).name


def _check_cascade(models: Models) -> None:
    names = (*([] if models.base is None else [models.base_name]), *models.upscaler_names)
    if models.base is not None and models.base.super_resolution is not None:
        raise UserError(
            f"{models.base_name}: a super-resolution model, expected a model that generates; "
            "pass it as an upscaler"
        )
    resolution = None if models.base is None else models.base.resolution
    for name, upscaler in zip(models.upscaler_names, models.upscalers, strict=True):
        if upscaler.super_resolution is None:
            raise UserError(f"{name}: generates videos, expected a super-resolution model")
        expected = upscaler.resolution // upscaler.super_resolution.factor
        if resolution is not None and resolution != expected:
            raise UserError(
                f"{name}: enlarges {expected} pixels, expected {resolution}, the size of the "
                "videos before it"
            )
        resolution = upscaler.resolution
    for name, model in zip(names, models.chain, strict=True):
        if model.text_encoder is None:
            raise UserError(
                f"{name}: no text encoder, expected one to encode prompts "
                f"(`stunet import-t5 T5_FOLDER {name}` adds it)"
            )
