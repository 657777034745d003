"""From the values of a tab's components to a request, and from a request to a result."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stunet.engine.applications import Option, find_application
from stunet.engine.cascade import Models
from stunet.engine.request import Request, Result, Sampling
from stunet.engine.run import run
from stunet.errors import UserError
from stunet.studio.jobs import ProgressAdapter, Report, Status
from stunet.studio.uploads import Limits, check_upload, hide_folders, strip_folders, uploaded_path
from stunet.text import check_prompt
from stunet.weights.style import MAX_STRENGTH

MAX_SEED = 2**32 - 1
MAX_STEPS = 500
MAX_GUIDANCE_SCALE = 100
MAX_MARGIN = 4096  # pixels
SIDES = ("left", "right", "top", "bottom")


def parse_request(
    application: str, values: Mapping[str, Any], folder: Path, limits: Limits
) -> Request:
    """Builds a request from what the browser sent.

    Args:
      application: A key of `stunet.engine.applications.APPLICATIONS`.
      values: Value by field of `Request` and `Sampling`. Files are dicts with a "path",
        margins are four numbers. 0 selects an optional number's default.
      folder: Folder of uploads.
      limits: Limits of uploads.

    Raises:
      UserError: A value is missing or invalid.
    """
    fields = {
        option.field: _parse_option(option, values[option.field], folder, limits)
        for option in find_application(application).options
        if option.field in values
    }
    if "style_strength" in values:
        strength = parse_number("Style strength", values["style_strength"], 0, MAX_STRENGTH)
        fields["style_strength"] = strength
    if "enlarge" in values:
        fields["enlarge"] = bool(values["enlarge"])
    upscale = _parse_upscale(values) if fields.get("enlarge") else {}
    prompt = values["prompt"] or ""
    check_prompt(prompt)
    return Request(
        application=application,
        prompts=(prompt,),
        **fields,
        sampling=Sampling(
            seed=parse_integer("Seed", values["seed"], 0, MAX_SEED),
            steps=parse_integer("Steps", values["steps"], 1, MAX_STEPS),
            guidance_scale=parse_number(
                "Guidance scale", values["guidance_scale"], 0, MAX_GUIDANCE_SCALE
            ),
            **upscale,
            negative_prompt=values.get("negative_prompt") or "",
            chunk=1,  # every step can be shown, and a job can be cancelled after it
        ),
    )


def run_request(models: Models, request: Request, report: Report) -> Result:
    """Runs a request as a job; files are named without their folders.

    Raises:
      UserError: The request cannot be run; see `stunet.engine.run.run`.
    """
    files = request.files.values()

    def report_status(status: Status) -> None:
        warnings = tuple(strip_folders(warning, files) for warning in status.warnings)
        report(dataclasses.replace(status, warnings=warnings))

    with hide_folders(files):
        result = run(models, request, ProgressAdapter(report_status))
    report(Status("writing"))
    warnings = tuple(strip_folders(warning, files) for warning in result.warnings)
    return dataclasses.replace(result, warnings=warnings)


def parse_integer(name: str, value: Any, minimum: float, maximum: float) -> int:
    """Returns an integer within the bounds.

    Raises:
      UserError: The value is none, out of bounds or not an integer.
    """
    value = parse_number(name, value, minimum, maximum)
    if value != int(value):
        raise UserError(f"{name}: invalid value {value:g}, expected an integer")
    return int(value)


def parse_number(name: str, value: Any, minimum: float, maximum: float) -> float:
    """Returns a finite number within the bounds.

    Raises:
      UserError: The value is none, out of bounds or not a number.
    """
    expected = f"{minimum:.10g} to {maximum:.10g}"
    if value is None:
        raise UserError(f"{name}: missing, expected {expected}")
    is_number = isinstance(value, int | float) and math.isfinite(value)
    if not is_number or not minimum <= value <= maximum:
        raise UserError(f"{name}: invalid value {value}, expected {expected}")
    return value


def _parse_option(option: Option, value: Any, folder: Path, limits: Limits) -> Any:
    name, kind = option.label, option.kind
    if kind == "switch":
        return bool(value)
    if kind == "margins":
        return _parse_margins(name, value)
    if kind in ("integer", "number"):
        if not value and not option.required and option.default is None:
            return None
        low = -math.inf if option.minimum is None else option.minimum
        high = math.inf if option.maximum is None else option.maximum
        if option.field == "num_frames":
            high = min(high, limits.frames)
        parse = parse_integer if kind == "integer" else parse_number
        return parse(name, value, low, high)
    if value is None:
        if not option.required and kind != "mask":  # a mask's component exists if it is selected
            return None
        raise UserError(f"{name}: missing, expected an upload ({option.help})")
    path = uploaded_path(value, folder)
    check_upload(path, limits)
    return path


def _parse_upscale(values: Mapping[str, Any]) -> dict[str, float]:
    """Returns the fields of `Sampling` for upscalers; 0 selects the model's own."""
    parse = {
        "upscale_steps": ("Upscaling steps", parse_integer, MAX_STEPS),
        "upscale_guidance_scale": ("Upscaling guidance scale", parse_number, MAX_GUIDANCE_SCALE),
    }
    return {
        field: read(label, values[field], 0, maximum)
        for field, (label, read, maximum) in parse.items()
        if values.get(field)
    }


def _parse_margins(name: str, values: Any) -> tuple[int, ...]:
    pixels = (
        parse_integer(f"{name}, {side}", value, 0, MAX_MARGIN)
        for side, value in zip(SIDES, values, strict=True)
    )
    margins = tuple(pixels)
    if not any(margins):
        raise UserError(f"{name}: 0 pixels on all sides, expected at least 1 pixel on one side")
    return margins
