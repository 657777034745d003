"""Argument types that the commands share."""

import argparse
import math
from collections.abc import Callable

from stunet.engine.request import MAX_MARGIN
from stunet.paths import AnyPath, user_path
from stunet.paths import output_file as parse_output_file
from stunet.schema import MAX_INT, MAX_SEED
from stunet.weights.hub import is_hub_id


def path(text: str) -> AnyPath:
    """Parses a path on disk, where `~` is the home directory, or in a bucket."""
    if is_hub_id(text):
        raise argparse.ArgumentTypeError(f"invalid value {text!r}, expected a path")
    return user_path(text)


def output_file(text: str) -> AnyPath:
    """Parses the path of a file to write."""
    path(text)
    return parse_output_file(text)


def host(text: str) -> str:
    """Parses the name or address of a host."""
    if not text.isprintable():
        raise argparse.ArgumentTypeError(f"invalid value {text!r}, expected a host name")
    return text


def path_or_hub_id(text: str) -> AnyPath | str:
    """Parses a path, or keeps a hub id."""
    return text if is_hub_id(text) else user_path(text)


def whole_number(low: int, high: int) -> Callable[[str], int]:
    """Returns the parser of a whole number from `low` to `high`."""

    def parse(text: str) -> int:
        # Python limits the number of digits that it converts.
        value = int(text) if text.strip().isdecimal() and len(text) <= 20 else -1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(
                f"invalid value {text!r}, expected a whole number from {low} to {high}"
            )
        return value

    return parse


positive_int = whole_number(1, MAX_INT)
num_videos = whole_number(1, 100_000)  # a name of a file each, and all in memory
seed = whole_number(0, MAX_SEED)
port = whole_number(0, 65535)


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


def timesteps(text: str) -> tuple[float, float]:
    """Parses LOW,HIGH: two timesteps of 0 to 999."""
    try:
        low, high = (number(part) for part in text.split(","))
    except (ValueError, argparse.ArgumentTypeError):
        raise argparse.ArgumentTypeError(
            f"invalid value {text!r}, expected two timesteps LOW,HIGH of 0 to 999"
        ) from None
    return low, high


def frame_and_text(text: str) -> tuple[int, str]:
    """Parses FRAME:TEXT, such as "32:a blue star"."""
    frame, _, words = text.partition(":")
    try:
        return positive_int(frame), words.strip()
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"invalid value {text!r}, expected FRAME:TEXT with a frame from 1 on"
        ) from None


def margins(text: str) -> tuple[int, ...]:
    """Parses LEFT,RIGHT,TOP,BOTTOM in pixels, not all of them 0."""
    sides = text.split(",")
    try:
        pixels = tuple(map(whole_number(0, MAX_MARGIN), sides))
    except argparse.ArgumentTypeError:
        pixels = ()
    if len(pixels) != 4:
        raise argparse.ArgumentTypeError(
            f"invalid value {text!r}, expected four whole numbers of pixels LEFT,RIGHT,TOP,BOTTOM "
            f"up to {MAX_MARGIN}"
        )
    if not any(pixels):
        raise argparse.ArgumentTypeError(f"invalid value {text!r}, expected at least one above 0")
    return pixels
