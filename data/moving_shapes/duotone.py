"""Writes a handful of pictures in one style, for tuning a model to it.

    python -m data.moving_shapes.duotone --out=datasets/duotone

Scenes of the moving-shapes world printed in two inks: what is dark in a scene is violet, what is
light is peach. PNG files and the `captions.csv` that the dataset `video_folder` reads.
"""

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.moving_shapes.render import NOMINAL_SECONDS, render_at
from data.moving_shapes.vocabulary import caption, draw_attributes
from stunet.errors import run_command
from stunet.video_io import write_image

DARK, LIGHT = (0.28, 0.08, 0.42), (1.00, 0.80, 0.62)  # RGB in [0, 1]
LUMA = (0.299, 0.587, 0.114)
RESOLUTION = 256
PICTURES = 24  # a handful


def duotone(frames: np.ndarray) -> np.ndarray:
    """`[..., 3]` in [-1, 1] in two inks, by how light each pixel is."""
    light = ((frames + 1) / 2 @ np.array(LUMA, np.float32))[..., None]
    dark_ink, light_ink = (2 * np.array(ink, np.float32) - 1 for ink in (DARK, LIGHT))
    return dark_ink + light * (light_ink - dark_ink)


def distance_to_inks(frames: np.ndarray) -> float:
    """Mean distance of the pixels of `[..., 3]` in [-1, 1] from the colours between the inks."""
    start, end = duotone(np.stack([-np.ones(3, np.float32), np.ones(3, np.float32)]))
    along = (end - start) / np.linalg.norm(end - start)
    off = frames - start
    off = off - (off @ along)[..., None] * along
    return float(np.linalg.norm(off, axis=-1).mean())


def write_pictures(out: Path, count: int, seed: int = 0) -> None:
    """Draws `count` scenes into the folder `out`, with their captions."""
    out.mkdir(parents=True, exist_ok=True)
    rng, rows = np.random.default_rng(seed), []
    for number in range(count):
        attributes, scene_seed = draw_attributes("train", rng), int(rng.integers(2**31))
        scene = render_at(attributes, scene_seed, rng.random(1), NOMINAL_SECONDS, RESOLUTION)[0]
        rows.append((f"{number:03d}.png", caption(attributes, scene_seed)))
        write_image(out / rows[-1][0], duotone(scene))
    with (out / "captions.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("file", "caption"), *rows])


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the arguments and writes."""
    parser = argparse.ArgumentParser("data.moving_shapes.duotone", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the folder to make")
    parser.add_argument("--num-images", type=int, default=PICTURES, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the scenes; default: 0")
    args = parser.parse_args(argv)
    write_pictures(args.out, args.num_images, args.seed)
    print(args.out)


if __name__ == "__main__":
    sys.exit(run_command(main, "data.moving_shapes.duotone"))
