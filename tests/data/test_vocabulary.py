import itertools
from collections import Counter

import numpy as np
import pytest

from data.moving_shapes import vocabulary as world


def test_words_are_distinct():
    assert len(world.SHAPES) >= 8 and len(world.COLOURS) >= 8 and len(world.MOTIONS) == 10
    words = [*world.SHAPES, *world.COLOURS, *world.BACKGROUNDS, *world.SIZES]
    assert len(words) == len(set(words))


def test_colours_differ_and_have_contrast():
    for colour, other in itertools.combinations(world.COLOURS.values(), 2):
        assert np.linalg.norm(np.subtract(colour, other)) > 0.4
    for colour in world.COLOURS:
        assert len(world.backgrounds_for(colour)) >= 4
    assert not world.contrasts("white", "light")


def test_a_tenth_is_held_out_evenly():
    train, heldout = (set(world.combinations(split)) for split in ("train", "heldout"))
    assert len(heldout) * 10 == len(train) + len(heldout) == 640
    assert not train & heldout
    for axis, names in enumerate((world.SHAPES, world.COLOURS, world.MOTIONS)):
        counts = Counter(words[axis] for words in heldout)
        assert set(counts) == set(names) and max(counts.values()) <= 9
    for pair in ((0, 1), (0, 2), (1, 2)):
        assert max(Counter(tuple(w[i] for i in pair) for w in heldout).values()) == 1


def test_unknown_split():
    with pytest.raises(ValueError, match=r"'train'.*'heldout'.*'test'"):
        world.combinations("test")


def test_captions_parse_back():
    rng = np.random.default_rng(0)
    texts, named = set(), Counter()
    for seed in range(2000):
        attributes = world.draw_attributes("train", rng)
        text = world.caption(attributes, seed)
        parsed = world.parse_caption(text)
        assert {"shape", "colour", "motion"} <= set(parsed), text
        assert all(getattr(attributes, name) == word for name, word in parsed.items()), text
        named.update(parsed.keys())
        texts.add(text)
    assert len(texts) > 1200
    # Two thirds of the sizes are not medium; 0.4 of these are named.
    for name, share in (("background", 0.9), ("size", 2 / 3 * 0.4), ("speed", 0.3)):
        assert abs(named[name] / 2000 - share) < 0.04, (name, named[name])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A red CIRCLE, bouncing up and down", ("circle", "red", "bouncing")),
        ("an orange star drifting to the left", ("star", "orange", "left")),
        ("the ring is spinning in place", ("ring", None, "spinning")),
    ],
)
def test_parse_by_hand(text, expected):
    parsed = world.parse_caption(text)
    assert tuple(parsed.get(name) for name in ("shape", "colour", "motion")) == expected


def test_plain_caption():
    assert world.plain_caption("star", "orange", "up") == "an orange star moving up"


def test_prompts_have_labels_and_respect_the_split():
    for split in ("train", "heldout"):
        prompts = world.draw_prompts(split, 70, seed=3)
        assert prompts == world.draw_prompts(split, 70, seed=3)
        for prompt in prompts:
            labels = {name: getattr(prompt, name) for name in ("shape", "colour", "motion")}
            assert labels.items() <= world.parse_caption(prompt.text).items()
            assert world.is_held_out(**labels) == (split == "heldout")
    first = {(p.shape, p.colour, p.motion) for p in world.draw_prompts("heldout", 64)}
    assert len(first) == 64
