"""The vocabulary of the moving-shapes world: words, tones, splits and captions.

Shared by the renderer, the judge and the prompts. Every clip shows one object: a coloured
silhouette with a mark (`silhouettes.py`), in one motion on one background.
"""

import functools
import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "ring", "crescent")

# RGB in [0, 1]; any two differ by at least 0.4 (tested).
COLOURS: Mapping[str, tuple[float, float, float]] = {
    "red": (0.90, 0.06, 0.10),
    "green": (0.10, 0.75, 0.15),
    "blue": (0.10, 0.28, 1.00),
    "yellow": (1.00, 0.92, 0.10),
    "orange": (1.00, 0.50, 0.00),
    "purple": (0.75, 0.10, 0.95),
    "cyan": (0.10, 0.90, 0.95),
    "white": (0.98, 0.98, 0.98),
}

# Tone of the mark: black on light colours, white on dark ones.
MARK_TONES: Mapping[str, tuple[float, float, float]] = {
    name: (0.02,) * 3 if 0.299 * r + 0.587 * g + 0.114 * b > 0.45 else (0.98,) * 3
    for name, (r, g, b) in COLOURS.items()
}

# Wordings of each motion, the plain one first. `parse_caption` prefers the longest match. All
# wordings of a motion without direction share one word: with three unrelated wordings ("growing",
# "getting bigger", "expanding"), each of which occurs in a thirtieth of the captions, a tiny model
# had not learned the motion after 8000 steps.
MOTIONS: Mapping[str, tuple[str, ...]] = {
    "left": ("moving left", "moving to the left", "sliding left", "drifting to the left"),
    "right": ("moving right", "moving to the right", "sliding right", "drifting to the right"),
    "up": ("moving up", "moving upwards", "rising"),
    "down": ("moving down", "moving downwards", "falling"),
    "bouncing": ("bouncing", "bouncing up and down", "bouncing like a ball"),
    "circling": ("circling", "circling around", "circling round and round"),
    "swinging": ("swinging", "swinging from side to side", "swinging like a pendulum"),
    "spinning": ("spinning", "spinning around", "spinning in place"),
    "growing": ("growing", "growing bigger", "growing steadily"),
    "shrinking": ("shrinking", "shrinking away", "shrinking steadily"),
}

# Two tones of each background: equal for a plain one, top and bottom of a gradient, alternating
# stripes. No background has the name of a colour, so that captions can be parsed.
BACKGROUNDS: Mapping[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "dark": ((0.06, 0.06, 0.08), (0.06, 0.06, 0.08)),
    "grey": ((0.48, 0.48, 0.48), (0.48, 0.48, 0.48)),
    "light": ((0.90, 0.90, 0.88), (0.90, 0.90, 0.88)),
    "navy": ((0.04, 0.08, 0.32), (0.04, 0.08, 0.32)),
    "gradient": ((0.06, 0.06, 0.08), (0.50, 0.50, 0.50)),
    "striped": ((0.12, 0.12, 0.12), (0.40, 0.40, 0.40)),
}

SIZES: Mapping[str, float] = {"small": 0.36, "medium": 0.43, "large": 0.50}  # diameter / frame
SPEEDS: Mapping[str, tuple[str, ...]] = {"slow": ("slowly",), "fast": ("quickly", "fast")}

MIN_CONTRAST = 0.5  # RGB distance between an object and every tone of its background


@dataclass(frozen=True)
class Attributes:
    """Content of a clip; each field is a word of this module's vocabulary."""

    shape: str
    colour: str
    motion: str
    background: str
    size: str
    speed: str


@dataclass(frozen=True)
class Prompt:
    """A caption, and the attributes that a clip generated from it must show."""

    text: str
    shape: str
    colour: str
    motion: str


def contrasts(colour: str, background: str) -> bool:
    """Returns whether a colour differs from every tone of the background by `MIN_CONTRAST`."""
    tones = np.array(BACKGROUNDS[background])
    mixes = tones[0] + np.linspace(0, 1, 5)[:, None] * (tones[1] - tones[0])
    return bool(np.linalg.norm(mixes - COLOURS[colour], axis=-1).min() >= MIN_CONTRAST)


@functools.cache
def backgrounds_for(colour: str) -> tuple[str, ...]:
    """Returns the backgrounds with enough contrast to this colour."""
    return tuple(name for name in BACKGROUNDS if contrasts(colour, name))


def is_held_out(shape: str, colour: str, motion: str) -> bool:
    """Returns whether a combination is excluded from the split `train`, as a tenth of all is.

    The rule is a Latin square: exactly one motion is held out for every (shape, colour), and at
    most one combination for every (shape, motion) and (colour, motion). `train` therefore contains
    every pair of words often.
    """
    motions = tuple(MOTIONS)
    held_out = 3 * SHAPES.index(shape) + 7 * tuple(COLOURS).index(colour)
    return motions.index(motion) == held_out % len(motions)


@functools.cache
def combinations(split: str) -> tuple[tuple[str, str, str], ...]:
    """Returns all (shape, colour, motion) of the split `train` or `heldout`, in a fixed order."""
    if split not in ("train", "heldout"):
        raise ValueError(f"split must be 'train' or 'heldout', got {split!r}")
    every = itertools.product(SHAPES, COLOURS, MOTIONS)
    return tuple(words for words in every if is_held_out(*words) == (split == "heldout"))


def draw_attributes(split: str, rng: np.random.Generator) -> Attributes:
    """Draws the attributes of a clip, uniformly over the split's combinations."""
    choices = combinations(split)
    return _draw_rest(*choices[rng.integers(len(choices))], rng)


def caption(attributes: Attributes, seed: int) -> str:
    """Returns an English caption, in a wording that depends on `seed`.

    It names shape, colour and motion, the background with probability 0.9, a size other than medium
    with 0.4, and the speed with 0.3.
    """
    rng = np.random.default_rng((seed, 1))
    motion = _pick(rng, MOTIONS[attributes.motion])
    size = attributes.size if attributes.size != "medium" and rng.random() < 0.4 else ""
    speed = _pick(rng, SPEEDS[attributes.speed]) if rng.random() < 0.3 else ""
    noun = f"{attributes.colour} {attributes.shape}"
    place = ""
    if rng.random() < 0.9:
        ground = _pick(rng, ("background", "backdrop"))
        place = f"{_pick(rng, ('on', 'against'))} a {attributes.background} {ground}"
    form = rng.integers(4)
    if form == 0 and " " not in motion and not speed:
        return _words(_article(size, motion, noun), place)
    if form == 1:
        return _words("the", size, noun, "is", motion, speed, place)
    if form == 2 and place:
        return _words(place + ",", _article(size, noun), "is", motion, speed)
    return _words(_article(size, noun), motion, speed, place)


def plain_caption(shape: str, colour: str, motion: str) -> str:
    """Returns the shortest wording: "a red circle moving left"."""
    return _words(_article(f"{colour} {shape}"), MOTIONS[motion][0])


def parse_caption(text: str) -> dict[str, str]:
    """Returns the attributes that a caption names; others are absent from the dict."""
    words = re.findall(r"[a-z]+", text.lower())
    found = {}
    for name, vocabulary in (
        ("shape", SHAPES),
        ("colour", COLOURS),
        ("background", BACKGROUNDS),
        ("size", SIZES),
    ):
        named = [word for word in words if word in vocabulary]
        if named:
            found[name] = named[0]
    for name, phrases in (("motion", MOTIONS), ("speed", SPEEDS)):
        line = f" {' '.join(words)} "
        matches = [
            (len(phrase), word)
            for word, wordings in phrases.items()
            for phrase in wordings
            if f" {phrase} " in line
        ]
        if matches:
            found[name] = max(matches)[1]
    return found


def draw_prompts(split: str, count: int, seed: int = 0) -> list[Prompt]:
    """Draws prompts from seen (`train`) or unseen (`heldout`) combinations.

    Combinations repeat only after all of the split have been drawn. Wordings are those of
    `caption`.
    """
    rng = np.random.default_rng(seed)
    choices = combinations(split)
    rounds = -(-count // len(choices))
    order = np.concatenate([rng.permutation(len(choices)) for _ in range(rounds)])[:count]
    result = []
    for index in order:
        shape, colour, motion = choices[index]
        text = caption(_draw_rest(shape, colour, motion, rng), int(rng.integers(2**31)))
        result.append(Prompt(text, shape, colour, motion))
    return result


def _draw_rest(shape: str, colour: str, motion: str, rng: np.random.Generator) -> Attributes:
    """Draws background, size and speed."""
    background = _pick(rng, backgrounds_for(colour))
    return Attributes(
        shape, colour, motion, background, _pick(rng, tuple(SIZES)), _pick(rng, tuple(SPEEDS))
    )


def _pick(rng: np.random.Generator, words: tuple[str, ...]) -> str:
    return words[rng.integers(len(words))]


def _article(*words: str) -> str:
    phrase = _words(*words)
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def _words(*words: str) -> str:
    return " ".join(word for word in words if word)
