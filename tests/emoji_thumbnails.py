"""One picture of 16x16 pixels for each of the clear emoji, to recognise what a model draws.

python -m tests.emoji_thumbnails datasets   # rewrites the file from the built dataset
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from data.emoji.composition import plain_layout
from data.emoji.vocabulary import clear_concepts, motions
from data.pipeline import parse_config, prepare
from data.records import read
from experiments.configs import emoji as emoji_config

FILE = Path(__file__).with_name("emoji_thumbnails.png")
SIDE, COLUMNS, BACKGROUND = 16, 15, "white"


def prompts(concepts: list[str]) -> list[str]:
    """Returns the plain captions of concepts: "a person running on a white background"."""
    phrases = (motions()[concept][0].format(person="a person") for concept in concepts)
    return [f"{phrase} on a {BACKGROUND} background" for phrase in phrases]


def read_thumbnails() -> dict[str, np.ndarray]:
    """Returns the thumbnails, `[16, 16, 3]` in [-1, 1], by concept."""
    with Image.open(FILE) as image:
        sheet = np.asarray(image.convert("RGB"), np.float32) / 127.5 - 1
    tiles = sheet.reshape(-1, SIDE, COLUMNS, SIDE, 3).swapaxes(1, 2).reshape(-1, SIDE, SIDE, 3)
    concepts = sorted(clear_concepts())
    return dict(zip(concepts, tiles[: len(concepts)], strict=True))


def nearest_concepts(frames: np.ndarray) -> list[str]:
    """Returns the concept whose thumbnail resembles each frame most, by squared difference.

    Args:
      frames: `[N, 32, 32, 3]` in [-1, 1].
    """
    known = read_thumbnails()
    concepts, pictures = list(known), np.stack(list(known.values()))
    small = frames.reshape(-1, 1, SIDE, 2, SIDE, 2, 3).mean((3, 5))
    distances = np.square(small - pictures).mean((2, 3, 4))
    return [concepts[index] for index in distances.argmin(1)]


def main(data_dir: str) -> None:
    """Writes the thumbnail of a record without skin tone of each concept."""
    values = emoji_config.get_config("t2i").data.to_dict()
    config = prepare(parse_config({**values, "data_dir": data_dir, "resolution": SIDE}))
    pairs = list(zip(config.emoji(), read(config.make_builder(), config.split), strict=True))
    pictures = {}
    for emoji, record in sorted(pairs, key=lambda pair: pair[0].gender in ("", "person")):
        if emoji.concept in clear_concepts() and not emoji.tones:  # "person" replaces "man"
            picture = config.compose(record, plain_layout(BACKGROUND, phase=0.0))[0]
            pictures[emoji.concept] = picture
    tiles = [pictures[concept] for concept in sorted(clear_concepts())]
    tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % COLUMNS)
    rows = np.stack(tiles).reshape(-1, COLUMNS, SIDE, SIDE, 3).swapaxes(1, 2)
    Image.fromarray(rows.reshape(-1, COLUMNS * SIDE, 3)).save(FILE, optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
