"""The judge of emoji, on features that are known."""

import numpy as np
import pytest

from data.emoji.recognition import agreement, recognise
from data.emoji.vocabulary import Emoji
from experiments.judge_emoji import draw_emoji, motion_energy


def emoji(concept, gender="", tones=()):
    return Emoji(f"{concept}{gender}{tones}", concept, concept, gender, tones, (concept,), True)


KNOWN = [
    emoji("horse"),
    emoji("running", "man", ("dark",)),
    emoji("running", "woman", ("light",)),
    emoji("fire"),
    emoji("sun"),
    emoji("whale"),
    emoji("dog"),
]
REFERENCES = np.eye(len(KNOWN))


def test_the_nearest_real_clip_names_what_a_clip_shows():
    features = np.eye(len(KNOWN))[[1, 0]] + 0.1
    verdicts = recognise(features, REFERENCES, KNOWN)
    assert [verdict.nearest for verdict in verdicts] == [KNOWN[1], KNOWN[0]]
    assert verdicts[0].concepts[0] == "running"
    assert len(verdicts[0].concepts) == len(set(verdicts[0].concepts)) == 5  # distinct


def test_features_are_compared_by_direction_from_their_mean():
    offset = np.full(len(KNOWN), 100.0)
    scaled = 3 * (np.eye(len(KNOWN))[[3]] - REFERENCES.mean(0)) + REFERENCES.mean(0)
    (verdict,) = recognise(scaled + offset, REFERENCES + offset, KNOWN)
    assert verdict.nearest == KNOWN[3]


def test_shares():
    shown = [KNOWN[1], KNOWN[2], KNOWN[0], KNOWN[3]]
    requested = [KNOWN[1], KNOWN[1], KNOWN[0], KNOWN[0]]
    features = np.stack([REFERENCES[KNOWN.index(e)] for e in shown])
    features[3, 0] = 0.5  # the fire resembles a horse a little
    shares = agreement(recognise(features, REFERENCES, KNOWN), requested)
    assert shares == {
        "concept_top1": 0.75,
        "concept_top5": 1.0,
        "skin_tone": 0.5,
        "gender": 0.5,
    }
    objects = agreement(recognise(REFERENCES[:1], REFERENCES, KNOWN), KNOWN[:1])
    assert objects["skin_tone"] is None and objects["concept_top1"] == 1


def test_emoji_are_drawn_evenly_over_concepts():
    drawn = draw_emoji(KNOWN, 12, seed=1)
    assert [e.concept for e in drawn].count("running") == 2
    assert len({e.concept for e in drawn[:6]}) == 6
    assert {e.gender for e in drawn if e.concept == "running"} == {"man", "woman"}
    assert draw_emoji(KNOWN, 12, seed=1) == drawn != draw_emoji(KNOWN, 12, seed=2)


def test_motion_energy_of_closed_forms():
    still, ramp = np.ones((4, 2, 2, 3)), np.linspace(0, 0.3, 4).reshape(4, 1, 1, 1)
    assert motion_energy([still]) == 0
    assert motion_energy([still, still * ramp]) == pytest.approx(0.05)
