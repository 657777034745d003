"""The vocabulary of the emoji world: concepts, skin tones, genders, backgrounds and captions.

Names and tags are Unicode's (CLDR), as the package `emojibase-data` contains them. `motions.tsv`
describes the motion of the concepts that clearly move.
"""

import difflib
import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from stunet.errors import UserError
from stunet.files import read_text, read_tsv_pairs, split_lines

SKIN_TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
MOVING = "moving"  # name of all concepts of `motions.tsv`
CLEAR = "clear"  # name of those of `clear.txt`: easy to tell apart at 32x32 pixels

# RGB in [0, 1].
BACKGROUNDS: Mapping[str, tuple[float, float, float]] = {
    "white": (0.98, 0.98, 0.98),
    "grey": (0.55, 0.55, 0.55),
    "black": (0.05, 0.05, 0.05),
    "red": (0.80, 0.15, 0.15),
    "orange": (0.98, 0.60, 0.20),
    "yellow": (0.98, 0.90, 0.40),
    "green": (0.25, 0.65, 0.30),
    "blue": (0.35, 0.60, 0.95),
    "purple": (0.50, 0.25, 0.70),
    "pink": (0.98, 0.70, 0.80),
}

_MOTIONS_FILE = Path(__file__).with_name("motions.tsv")
_CLEAR_FILE = Path(__file__).with_name("clear.txt")
_PLURALS = {"people": "person", "men": "man", "women": "woman"}
_GENDERS = {"person": "person", "man": "man", "woman": "woman", **_PLURALS}  # by the first noun
_TONE_SUFFIX = " skin tone"
_SYMBOLS, _FLAGS = 8, 9  # groups of Unicode
# Concepts that a mirror image would change: they show letters, digits or the time of day.
_WRITTEN = re.compile(r"\b(OK|ZZZ|100|hundred|thirty|clock|watch|calendar|ABC|input)\b")
_TEMPLATES = ("{} on {} background", "{} in front of {} background")
_TAGS = 2  # captions with a tag of each emoji


class Emoji(NamedTuple):
    """An emoji.

    Attributes:
      code: Code points in hexadecimal, the name of its files: "1f3c3-1f3ff-200d-2642-fe0f".
      name: Unicode's name without skin tones: "man running".
      concept: The name without the gender: "running".
      gender: "man", "woman" or "person". Empty unless the concept is a person's.
      tones: Skin tones; two for some couples. Empty for the yellow default.
      phrases: Descriptions that captions begin with: "a man with dark skin running".
      can_mirror: Whether the mirror image is valid as well.
    """

    code: str
    name: str
    concept: str
    gender: str
    tones: tuple[str, ...]
    phrases: tuple[str, ...]
    can_mirror: bool

    @property
    def is_held_out(self) -> bool:
        """Whether the combination of skin tone, gender and concept is not in the split `train`."""
        if not (self.gender and self.tones):
            return False
        combination = f"{self.concept}, {self.gender}, {', '.join(self.tones)}"
        return blake2b(combination.encode(), digest_size=8).digest()[0] % 10 == 0


def parse_emoji(entries: Iterable[Mapping[str, Any]]) -> dict[str, Emoji]:
    """Returns the emoji of emojibase's `data.json` by their code without variation selectors.

    Raises:
      KeyError: An entry lacks a field.
    """
    entries = list(entries)
    persons = {_split_name(entry["label"])[0] for entry in entries if _noun(entry["label"])}
    found = {}
    for entry in entries:
        for variant in (entry, *entry.get("skins", ())):
            emoji = _parse(variant, entry, persons)
            found[normal_code(emoji.code)] = emoji
    return found


def normal_code(code: str) -> str:
    """Returns code points in lower case, without variation selectors, padded to four digits."""
    parts = (part.rjust(4, "0") for part in code.lower().split("-"))
    return "-".join(part for part in parts if part != "fe0f")


def plain_caption(emoji: Emoji, background: str) -> str:
    """Returns the first wording: "a man with dark skin running on a blue background"."""
    return _TEMPLATES[0].format(emoji.phrases[0], _with_article(background))


def draw_caption(
    phrases: Sequence[str], background: str, mirrored: bool, rng: np.random.Generator
) -> str:
    """Draws a wording of the caption; the first phrase is as frequent as all others together."""
    index = 0 if len(phrases) == 1 or rng.random() < 0.5 else rng.integers(1, len(phrases))
    phrase = _mirror_words(phrases[index]) if mirrored else phrases[index]
    return _TEMPLATES[rng.integers(len(_TEMPLATES))].format(phrase, _with_article(background))


def all_captions(emoji: Emoji) -> Iterator[str]:
    """Yields all captions that `draw_caption` can draw."""
    phrases = list(emoji.phrases)
    if emoji.can_mirror:
        phrases += [_mirror_words(phrase) for phrase in emoji.phrases]
    for phrase in dict.fromkeys(phrases):
        for background in BACKGROUNDS:
            yield from (
                template.format(phrase, _with_article(background)) for template in _TEMPLATES
            )


@functools.cache
def motions() -> Mapping[str, tuple[str, ...]]:
    """Returns the descriptions of `motions.tsv` by concept; "{person}" stands for the person."""
    rows = read_tsv_pairs(_MOTIONS_FILE, "a concept, a tab and descriptions")
    return {concept: tuple(phrases.split("|")) for concept, phrases in rows}


@functools.cache
def clear_concepts() -> frozenset[str]:
    """Returns the concepts of `clear.txt`, which are some of `motions()`."""
    return frozenset(split_lines(read_text(_CLEAR_FILE)))


def select_concepts(names: Sequence[str], known: Iterable[str]) -> frozenset[str]:
    """Returns the concepts with these names; `MOVING` and `CLEAR` stand for many.

    Args:
      names: Names of concepts. Empty selects all.
      known: Names of the concepts that exist.

    Raises:
      UserError: There is no such concept.
    """
    known = set(known)
    if not names:
        return frozenset(known)
    selected, groups = set(), {MOVING: motions(), CLEAR: clear_concepts()}
    for name in names:
        if name in groups:
            selected |= known & set(groups[name])
        elif name in known:
            selected.add(name)
        else:
            nearest = difflib.get_close_matches(name, (*groups, *sorted(known)), 3, 0.4)
            hint = f", expected for example {' or '.join(map(repr, nearest))}" if nearest else ""
            raise UserError(f"concepts: unknown concept {name!r}{hint}")
    return frozenset(selected)


def _parse(variant: Mapping[str, Any], entry: Mapping[str, Any], persons: set[str]) -> Emoji:
    name, tones, details = _split_label(variant["label"])
    concept = _split_name(name)[0]
    if details:
        concept = f"{concept}: {', '.join(details)}"
    gender = _GENDERS.get(_noun(name), "person" if concept in persons else "")
    group = entry.get("group")
    can_mirror = group not in (None, _SYMBOLS, _FLAGS) and not _WRITTEN.search(name)
    return Emoji(
        code=variant["hexcode"].lower(),
        name=", ".join((name, *details)),
        concept=concept,
        gender=gender,
        tones=tones,
        phrases=_phrases(name, concept, details, gender, tones, entry.get("tags", ())),
        can_mirror=can_mirror,
    )


def _split_label(label: str) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """Splits "man: dark skin tone, red hair" into name, skin tones and other details."""
    name, _, rest = label.partition(": ")
    parts = rest.split(", ") if rest else []
    tones = [part.removesuffix(_TONE_SUFFIX) for part in parts if part.endswith(_TONE_SUFFIX)]
    return name, tuple(tones), tuple(part for part in parts if not part.endswith(_TONE_SUFFIX))


def _noun(label: str) -> str:
    """Returns the noun of a person that a name begins with, such as "man". Empty if none."""
    first, _, rest = label.partition(": ")[0].partition(" ")
    return first if first in _GENDERS and not rest.startswith("and ") else ""


def _split_name(label: str) -> tuple[str, str]:
    """Splits "man running" into concept and noun."""
    name = label.partition(": ")[0]
    noun = _noun(name)
    return name[len(noun) :].strip() or "person", noun


def _phrases(
    name: str,
    concept: str,
    details: Sequence[str],
    gender: str,
    tones: Sequence[str],
    tags: Sequence[str],
) -> tuple[str, ...]:
    skin = f" with {' and '.join(tones)} skin" if tones else ""
    if gender:
        noun, action = _noun(name), _split_name(name)[0]
        person = f"{noun}{skin}" if noun in _PLURALS else f"a {gender}{skin}"
        plain = f"{person} {_describe_person(action)}".strip()
    else:
        person = ""
        plain = _with_article(name) + skin
    if details:
        plain += f", {', '.join(details)}"
    moving = motions().get(concept, ())
    described = [
        text.format(person=person) if "{person}" in text else text + skin for text in moving
    ]
    tagged = [f"{plain}, {tag}" for tag in tags[:_TAGS] if tag not in name.lower()]
    return tuple(dict.fromkeys((*described, plain, *tagged)))


def _describe_person(action: str) -> str:
    """Returns the part of a caption after the person: "running", "as a firefighter"."""
    if action == "person":
        return ""
    if re.match(r"(in|with|\w+ing|\w+ \w+ing)\b", action):
        return action
    return f"as {_with_article(action)}"


def _with_article(name: str) -> str:
    """Returns a name in lower case with its article, unless it is a plural or a proper noun."""
    last = name.split(" with ")[0].split()[-1]
    is_plural = last.endswith("s") and not last.endswith(("ss", "us", "is"))
    if is_plural or name[:1].isdigit() or (name[:1].isupper() and not name.isupper()):
        return name.lower()
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name.lower()}"


def _mirror_words(text: str) -> str:
    """Swaps "left" and "right"."""
    swapped = {"left": "right", "right": "left"}
    return re.sub("left|right", lambda match: swapped[match[0]], text)
