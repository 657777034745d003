"""Rendered clips with their prompts, as references for generated clips."""

from collections.abc import Collection
from typing import NamedTuple

import numpy as np

from data.moving_shapes.render import render
from data.moving_shapes.vocabulary import MOTIONS, Prompt, caption, draw_attributes


class Clips(NamedTuple):
    """Clips with their prompts.

    Attributes:
      videos: `[N, T, H, W, 3]` float32 in [-1, 1].
      prompts: One prompt per clip.
    """

    videos: np.ndarray
    prompts: list[Prompt]

    @property
    def texts(self) -> list[str]:
        """The texts of the prompts."""
        return [prompt.text for prompt in self.prompts]


def draw_clips(
    count: int,
    seed: int,
    num_frames: int,
    resolution: int,
    fps: float,
    motions: Collection[str] = tuple(MOTIONS),
) -> Clips:
    """Draws and renders `count` clips of the split `train`, of the given motions only."""
    rng, videos, prompts = np.random.default_rng(seed + 1), [], []
    while len(videos) < count:
        attributes, clip_seed = draw_attributes("train", rng), int(rng.integers(2**31))
        if attributes.motion not in motions:
            continue
        videos.append(render(attributes, clip_seed, num_frames, resolution, fps))
        words = (attributes.shape, attributes.colour, attributes.motion)
        prompts.append(Prompt(caption(attributes, clip_seed), *words))
    return Clips(np.stack(videos), prompts)
