"""Metrics of a network's outputs: Frechet distance, Inception Score, CLIP similarity."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stunet.errors import UserError
from stunet.evaluation.clip import ClipModel, mean_cosine
from stunet.evaluation.features import Extractor
from stunet.evaluation.metric import Comparison, Metric
from stunet.evaluation.scores import frechet_distance, inception_score

FEW_CLIPS = 400  # an FVD of fewer clips is unreliable: about as many as I3D has features


@dataclass(frozen=True, kw_only=True)
class FrechetDistance(Metric):
    """Frechet distance between features of clips and of reference clips: FVD with I3D's logits.

    Attributes:
      network: Extracts features `[B, D]`.
      name: Key in the report.
    """

    network: Extractor
    name: str = "fvd"

    measures_reference = True

    def check(self, comparison: Comparison) -> None:
        """Raises `UserError` without a reference, or with too few clips or frames."""
        self.network.check_frames(comparison.frames)
        if comparison.num_reference is None:
            raise UserError(f"{self.name}: no reference clips, expected 2 or more")
        if min(comparison.num_clips, comparison.num_reference) < 2:
            raise UserError(
                f"{self.name}: {comparison.num_clips} clips and {comparison.num_reference} "
                "reference clips, expected 2 or more each"
            )

    def warning(self, comparison: Comparison) -> str | None:
        """Returns a warning if there are few clips."""
        count = min(comparison.num_clips, comparison.num_reference or 0)
        if count >= FEW_CLIPS:
            return None
        return (
            f"{self.name}: biased upwards with {count} clips; compare only with scores of equally "
            "many clips"
        )

    def measure(self, clips: Sequence[np.ndarray], batch_size: int) -> np.ndarray:
        """Returns features `[B, D]`."""
        return self.network(clips, batch_size)

    def score(
        self, measured: np.ndarray, reference: np.ndarray | None, prompts: Sequence[str] | None
    ) -> dict[str, Any]:
        """Returns the distance."""
        return {
            "value": frechet_distance(measured, reference),
            "features": measured.shape[1],
            **self.network.describe(),
        }


@dataclass(frozen=True, kw_only=True)
class InceptionScore(Metric):
    """Inception Score of class probabilities: C3D's for videos.

    Attributes:
      network: Extracts class probabilities `[B, classes]`.
      splits: Number of parts that the clips are split into, for the standard deviation.
      name: Key in the report.
    """

    network: Extractor
    splits: int = 10
    name: str = "inception_score"

    def check(self, comparison: Comparison) -> None:
        """Raises `UserError` with too few clips or frames."""
        self.network.check_frames(comparison.frames)
        if comparison.num_clips < self.splits:
            raise UserError(
                f"{self.name}: {comparison.num_clips} clips in {self.splits} splits, expected a "
                "clip or more per split"
            )

    def measure(self, clips: Sequence[np.ndarray], batch_size: int) -> np.ndarray:
        """Returns class probabilities `[B, classes]`."""
        return self.network(clips, batch_size)

    def score(
        self, measured: np.ndarray, reference: np.ndarray | None, prompts: Sequence[str] | None
    ) -> dict[str, Any]:
        """Returns the mean score over the splits, and its standard deviation."""
        mean, std = inception_score(measured, self.splits)
        return {"value": mean, "std": std, "splits": self.splits, **self.network.describe()}


@dataclass(frozen=True, kw_only=True)
class ClipSimilarity(Metric):
    """Mean cosine similarity of CLIP embeddings of frames and of the clip's prompt.

    Attributes:
      model: CLIP model.
    """

    model: ClipModel

    name = "clip_similarity"

    def check(self, comparison: Comparison) -> None:
        """Raises `UserError` without prompts."""
        self.model.images.check_frames(comparison.frames)
        if not comparison.has_prompts:
            raise UserError(f"{self.name}: no prompts, expected one per clip")

    def warning(self, comparison: Comparison) -> str | None:
        """Returns a warning if prompts are truncated."""
        limit = self.model.config.max_tokens
        lengths = [self.model.count_tokens(prompt) for prompt in comparison.prompts]
        count = sum(length > limit for length in lengths)
        if not count:
            return None
        return (
            f"{self.name}: {count} of {len(lengths)} prompts truncated to the {limit} tokens that "
            f"CLIP reads; the longest has {max(lengths)} tokens"
        )

    def measure(self, clips: Sequence[np.ndarray], batch_size: int) -> np.ndarray:
        """Returns embeddings of frames, `[B, T, D]`."""
        return self.model.images(clips, batch_size)

    def score(
        self, measured: np.ndarray, reference: np.ndarray | None, prompts: Sequence[str] | None
    ) -> dict[str, Any]:
        """Returns the mean over clips and frames."""
        texts = self.model.embed_texts(prompts)
        return {
            "value": float(mean_cosine(measured, texts).mean()),
            **self.model.images.describe(),
        }
