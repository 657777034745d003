"""Argument types that the commands share."""

import argparse
import math
from pathlib import Path

from stunet.files import user_path


def path(text: str) -> Path:
    """Parses a path; `~` is the home directory."""
    return user_path(text)


def positive_int(text: str) -> int:
    """Parses a whole number of at least 1."""
    value = int(text) if text.strip().isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"invalid value {text!r}, expected a whole number >= 1")
    return value


def number(text: str) -> float:
    """Parses a finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"invalid value {text!r}, expected a number")
    return value


def frame_rate(text: str) -> float:
    """Parses a frame rate that files can represent."""
    value = number(text)
    if not 0.01 <= value <= 1000:
        raise argparse.ArgumentTypeError(
            f"invalid value {text!r}, expected 0.01 to 1000 frames per second"
        )
    return value


def margins(text: str) -> tuple[int, ...]:
    """Parses LEFT,RIGHT,TOP,BOTTOM in pixels, not all of them 0."""
    sides = text.split(",")
    if len(sides) != 4 or not all(side.strip().isdecimal() for side in sides):
        raise argparse.ArgumentTypeError(
            f"invalid value {text!r}, expected four whole numbers of pixels LEFT,RIGHT,TOP,BOTTOM"
        )
    pixels = tuple(map(int, sides))
    if not any(pixels):
        raise argparse.ArgumentTypeError(f"invalid value {text!r}, expected at least one above 0")
    return pixels
