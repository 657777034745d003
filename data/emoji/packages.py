"""The npm packages with the pictures and names of the emoji."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from data.emoji.vocabulary import Emoji, normal_code, parse_emoji
from stunet.errors import UserError
from stunet.files import read_json, read_text
from stunet.paths import AnyPath

ANIMATIONS = tuple(f"@lobehub/fluent-emoji-anim-{number}" for number in (1, 2, 3, 4))
STILLS = "@lobehub/fluent-emoji-3d"
NAMES = "emojibase-data"
VERSIONS: Mapping[str, str] = {
    **dict.fromkeys(ANIMATIONS, "1.0.0"),
    STILLS: "1.1.0",
    NAMES: "17.0.0",
}
NUM_PICTURES = 3391  # in the animation packages together, and in the package of stills
FETCH = "npm install --prefix {folder} --ignore-scripts " + " ".join(
    f"{name}@{version}" for name, version in VERSIONS.items()
)

_DEPTH = 4  # folders between the source and a package, such as node_modules/@lobehub/NAME


class EmojiFiles(NamedTuple):
    """Files of an emoji.

    Attributes:
      emoji: The emoji.
      animation: WebP file of the animation, which has a single frame for a third of all emoji.
      still: WebP file of the still picture.
    """

    emoji: Emoji
    animation: Path
    still: Path


def find_emoji(source: Path) -> list[EmojiFiles]:
    """Lists the emoji in a folder of unpacked packages, sorted by code.

    Args:
      source: Folder on disk. Packages are found by their `package.json` in any sub-folder.

    Raises:
      UserError: A package is missing, incomplete or has another version; the message contains the
        command that fetches all of them.
    """
    packages = _find_packages(source)
    named = _read_names(source, packages[NAMES] / "en" / "data.json")
    animations = _pictures([packages[name] for name in ANIMATIONS], source)
    stills = _pictures([packages[STILLS]], source)
    if unmatched := sorted(set(animations) ^ set(stills)):
        raise UserError(
            f"{source}: {unmatched[0]}.webp is in only one of {ANIMATIONS[0][:-2]}* and {STILLS}"
            + _hint(source)
        )
    return [
        EmojiFiles(named[code], animations[code], stills[code])
        for code in sorted(animations)
        if code in named  # all but keycaps of lone symbols
    ]


def _find_packages(source: Path) -> dict[str, Path]:
    if not source.is_dir():
        raise UserError(f"config.data.source: {source}: no such folder" + _hint(source))
    found: dict[str, Path] = {}
    for depth in range(_DEPTH + 1):
        for path in sorted(source.glob("*/" * depth + "package.json")):
            content = read_json(path)
            name, version = content.get("name"), content.get("version")
            if name not in VERSIONS:
                continue
            if version != VERSIONS[name]:
                raise UserError(
                    f"{path}: {name} has version {version}, expected {VERSIONS[name]}"
                    + _hint(source)
                )
            found.setdefault(name, path.parent)
    if missing := [name for name in VERSIONS if name not in found]:
        raise UserError(f"{source}: lacks {', '.join(missing)}" + _hint(source))
    return found


def _pictures(packages: list[Path], source: Path) -> dict[str, Path]:
    """Returns the WebP files of packages by code."""
    files = [path for package in packages for path in (package / "assets").glob("*.webp")]
    found = {normal_code(path.stem): path for path in sorted(files)}
    if len(files) != NUM_PICTURES:
        folders = ", ".join(package.name for package in packages)
        raise UserError(
            f"{source}: {len(files)} pictures in {folders}, expected {NUM_PICTURES}" + _hint(source)
        )
    return found


def _read_names(source: Path, path: AnyPath) -> dict[str, Emoji]:
    try:
        return parse_emoji(json.loads(read_text(path)))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: invalid ({error!r})" + _hint(source)) from error


def _hint(source: Path) -> str:
    return f"; fetch the packages with: {FETCH.format(folder=source)}"
