"""Writes images in a two-colour style, to fine-tune a model on.

    python -m data.moving_shapes.duotone --out=datasets/duotone

The images show scenes of the moving-shapes world with luma mapped to a gradient from violet to
peach. Writes PNG files and a `captions.csv`, which the dataset `video_folder` reads.
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
NUM_IMAGES = 24


def duotone(frames: np.ndarray) -> np.ndarray:
    """Maps the luma of pixels `[..., 3]` in [-1, 1] to the gradient from `DARK` to `LIGHT`."""
    light = ((frames + 1) / 2 @ np.array(LUMA, np.float32))[..., None]
    dark_ink, light_ink = (2 * np.array(ink, np.float32) - 1 for ink in (DARK, LIGHT))
    return dark_ink + light * (light_ink - dark_ink)


def distance_to_gradient(frames: np.ndarray) -> float:
    """Returns the mean RGB distance of pixels `[..., 3]` in [-1, 1] from the duotone gradient."""
    start, end = duotone(np.stack([-np.ones(3, np.float32), np.ones(3, np.float32)]))
    along = (end - start) / np.linalg.norm(end - start)
    off = frames - start
    off = off - (off @ along)[..., None] * along
    return float(np.linalg.norm(off, axis=-1).mean())


def draw_scenes(count: int, seed: int = 0) -> tuple[np.ndarray, list[str]]:
    """Draws scenes of the moving-shapes world.

    Returns:
      `[count, RESOLUTION, RESOLUTION, 3]` float32 in [-1, 1], and their captions.
    """
    rng, frames, captions = np.random.default_rng(seed), [], []
    for _ in range(count):
        attributes, scene_seed = draw_attributes("train", rng), int(rng.integers(2**31))
        frames += [*render_at(attributes, scene_seed, rng.random(1), NOMINAL_SECONDS, RESOLUTION)]
        captions.append(caption(attributes, scene_seed))
    return np.stack(frames), captions


def write_duotone_images(out: Path, frames: np.ndarray, captions: Sequence[str]) -> None:
    """Writes frames `[N, H, W, 3]` in [-1, 1] in two colours, and their captions, to a folder."""
    out.mkdir(parents=True, exist_ok=True)
    rows = [(f"{number:03d}.png", text) for number, text in enumerate(captions)]
    for (name, _), frame in zip(rows, frames, strict=True):
        write_image(out / name, duotone(frame))
    with (out / "captions.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("file", "caption"), *rows])


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the arguments and writes the images."""
    parser = argparse.ArgumentParser("data.moving_shapes.duotone", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument(
        "--num-images", type=int, default=NUM_IMAGES, help="number of images; default: %(default)s"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the scenes; default: 0")
    args = parser.parse_args(argv)
    write_duotone_images(args.out, *draw_scenes(args.num_images, args.seed))
    print(args.out)


if __name__ == "__main__":
    sys.exit(run_command(main, "data.moving_shapes.duotone"))
