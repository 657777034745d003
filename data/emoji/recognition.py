"""Recognises emoji in clips: by the nearest real clips in a space of features."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from data.emoji.vocabulary import Emoji

TOP = 5


class Verdict(NamedTuple):
    """What a clip resembles.

    Attributes:
      concepts: The `TOP` concepts with the nearest real clips, the nearest first.
      nearest: The emoji of the nearest real clip.
    """

    concepts: tuple[str, ...]
    nearest: Emoji


def recognise(
    features: np.ndarray, references: np.ndarray, emoji: Sequence[Emoji]
) -> list[Verdict]:
    """Finds the real clips that resemble each clip most, by the cosine of centred features.

    Args:
      features: Features of clips, `[N, D]`.
      references: Features of real clips, `[M, D]`.
      emoji: The emoji of the M real clips.
    """
    mean = references.mean(0)
    similarity = _unit(features - mean) @ _unit(references - mean).T
    verdicts = []
    for row in similarity:
        order = np.argsort(-row, kind="stable")
        concepts = dict.fromkeys(emoji[index].concept for index in order)
        verdicts.append(Verdict(tuple(concepts)[:TOP], emoji[order[0]]))
    return verdicts


def agreement(verdicts: Sequence[Verdict], requested: Sequence[Emoji]) -> dict[str, float | None]:
    """Returns the shares of clips that show the requested concept, skin tone and gender.

    The shares of skin tone and gender are those of clips for which one was requested; None without
    any.
    """
    pairs = list(zip(verdicts, requested, strict=True))
    return {
        "concept_top1": _share([v.concepts[0] == e.concept for v, e in pairs]),
        f"concept_top{TOP}": _share([e.concept in v.concepts for v, e in pairs]),
        "skin_tone": _share([v.nearest.tones == e.tones for v, e in pairs if e.tones]),
        "gender": _share([v.nearest.gender == e.gender for v, e in pairs if e.gender]),
    }


def _unit(features: np.ndarray) -> np.ndarray:
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


def _share(hits: Sequence[bool]) -> float | None:
    return float(np.mean(hits)) if hits else None
