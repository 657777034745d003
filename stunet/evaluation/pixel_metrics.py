"""Metrics of pixels: flicker, motion energy, and the seams of windowed sampling."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stunet.diffusion import Windows
from stunet.errors import UserError
from stunet.evaluation.metric import Comparison, Metric
from stunet.evaluation.seams import frame_differences, seam_mask, seam_ratio
from stunet.evaluation.temporal import MIN_FLICKER_FRAMES, flicker


@dataclass(frozen=True, kw_only=True)
class Flicker(Metric):
    """Mean flicker, see `temporal.flicker`."""

    name = "flicker"
    measures_reference = True

    def check(self, comparison: Comparison) -> None:
        """Raises `UserError` if clips are too short."""
        if comparison.frames < MIN_FLICKER_FRAMES:
            raise UserError(
                f"frames: {comparison.frames} per clip, expected {MIN_FLICKER_FRAMES} or more"
            )

    def measure(self, clips: Sequence[np.ndarray], batch_size: int) -> np.ndarray:
        """Returns the flicker `[B]` of clips."""
        return np.concatenate([flicker(clip[None]) for clip in clips])

    def score(
        self, measured: np.ndarray, reference: np.ndarray | None, prompts: Sequence[str] | None
    ) -> dict[str, Any]:
        """Returns the mean over clips."""
        return _mean_score(measured, reference)


@dataclass(frozen=True, kw_only=True)
class MotionEnergy(Metric):
    """Mean absolute difference of consecutive frames."""

    name = "motion_energy"
    measures_reference = True

    def measure(self, clips: Sequence[np.ndarray], batch_size: int) -> np.ndarray:
        """Returns the differences of consecutive frames, `[B, T - 1]`."""
        return np.concatenate([frame_differences(clip[None]) for clip in clips])

    def score(
        self, measured: np.ndarray, reference: np.ndarray | None, prompts: Sequence[str] | None
    ) -> dict[str, Any]:
        """Returns the mean over clips and transitions."""
        return _mean_score(measured, reference)


@dataclass(frozen=True, kw_only=True)
class SeamRatio(Metric):
    """Differences of consecutive frames at the edges of windows, relative to the others.

    Attributes:
      length: Frames per window.
      overlap: Frames shared by neighbouring windows.
    """

    length: int
    overlap: int

    name = "seam_ratio"

    def check(self, comparison: Comparison) -> None:
        """Raises `UserError` if the windows are invalid or have no edges within a clip."""
        if len(set(seam_mask(self._windows(comparison.frames)).tolist())) < 2:
            raise UserError(
                f"windows: length {self.length}, overlap {self.overlap}, expected windows with "
                f"seams at some but not all transitions of {comparison.frames} frames"
            )

    def measure(self, clips: Sequence[np.ndarray], batch_size: int) -> np.ndarray:
        """Returns the differences of consecutive frames, `[B, T - 1]`."""
        return np.concatenate([frame_differences(clip[None]) for clip in clips])

    def score(
        self, measured: np.ndarray, reference: np.ndarray | None, prompts: Sequence[str] | None
    ) -> dict[str, Any]:
        """Returns the ratio, with its 95 % interval if that is finite.

        Raises:
          UserError: all clips are still except at seams.
        """
        windows = self._windows(measured.shape[1] + 1)
        at_seam = seam_mask(windows)
        if not measured[:, ~at_seam].any():
            raise UserError("seam_ratio: undefined, expected motion between the windows' seams")
        # A bootstrap sample of few clips may contain only still ones.
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio, *interval = seam_ratio(measured, at_seam)
        return {
            "value": ratio,
            **({"interval": interval} if np.isfinite(interval).all() else {}),
            "window": windows.length,
            "overlap": windows.overlap,
        }

    def _windows(self, frames: int) -> Windows:
        return Windows.over(frames, self.length, overlap=self.overlap)


def _mean_score(measured: np.ndarray, reference: np.ndarray | None) -> dict[str, Any]:
    score = {"value": float(measured.mean()), "unit": "1/255"}
    return score if reference is None else score | {"reference": float(reference.mean())}
