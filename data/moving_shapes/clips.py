"""Rendered clips with their prompts, to hold against what a model makes."""

from collections.abc import Collection
from typing import NamedTuple

import numpy as np

from data.moving_shapes.render import render
from data.moving_shapes.vocabulary import MOTIONS, Prompt, caption, draw_attributes


class Clips(NamedTuple):
    """True clips `[N, T, H, W, 3]` with their prompts."""

    videos: np.ndarray
    prompts: list[Prompt]

    @property
    def texts(self) -> list[str]:
        """The prompts' words."""
        return [prompt.text for prompt in self.prompts]


def draw_clips(
    count: int,
    seed: int,
    num_frames: int,
    resolution: int,
    fps: float,
    motions: Collection[str] = tuple(MOTIONS),
) -> Clips:
    """Clips of combinations that are trained on, of these motions only."""
    rng, videos, prompts = np.random.default_rng(seed + 1), [], []
    while len(videos) < count:
        attributes, clip_seed = draw_attributes("train", rng), int(rng.integers(2**31))
        if attributes.motion not in motions:
            continue
        videos.append(render(attributes, clip_seed, num_frames, resolution, fps))
        words = (attributes.shape, attributes.colour, attributes.motion)
        prompts.append(Prompt(caption(attributes, clip_seed), *words))
    return Clips(np.stack(videos), prompts)
