"""What a metric is.

This module imports neither NumPy nor JAX, so that the command line answers quickly.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Sizes of an evaluation, known before any clip is decoded.

    Attributes:
      frames: Frames per clip.
      num_clips: Number of clips.
      num_reference: Number of reference clips. None without a reference.
      has_prompts: Whether each clip has a prompt.
      prompts: One prompt per clip. Empty without prompts.
    """

    frames: int
    num_clips: int
    num_reference: int | None = None
    has_prompts: bool = False
    prompts: tuple[str, ...] = ()


@runtime_checkable
class Metric(Protocol):
    """A score of a set of clips, which may depend on reference clips or on prompts.

    Attributes:
      name: Key in the report.
      measures_reference: Whether the reference clips are measured, too.
    """

    name: str
    measures_reference: bool = False

    def check(self, comparison: Comparison) -> None:
        """Raises `UserError` if the clips or their number do not suit the metric."""

    def warning(self, comparison: Comparison) -> str | None:
        """Returns a warning if the score is unreliable, else None."""
        return None

    def measure(self, clips: Sequence["np.ndarray"], batch_size: int) -> "np.ndarray":
        """Measures a batch of clips.

        Args:
          clips: 1 to `batch_size` clips `[T, H, W, 3]` in [-1, 1], which may differ in H and W.
          batch_size: Size of a full batch, for networks that are compiled for one size.

        Returns:
          One row per clip, `[len(clips), ...]`.
        """
        ...

    def score(
        self,
        measured: "np.ndarray",
        reference: "np.ndarray | None",
        prompts: Sequence[str] | None,
    ) -> dict[str, Any]:
        """Returns the score.

        Args:
          measured: Rows of all clips, `[N, ...]`.
          reference: Rows of all reference clips, `[M, ...]`. None without a reference, or if
            `measures_reference` is False.
          prompts: One prompt per clip, or None.

        Returns:
          JSON values: "value", the settings that it depends on, and optionally "unit", "std",
          "interval" (low, high) and "reference" (the value of the reference clips), which
          `evaluate.format_report` prints.
        """
        ...
