"""Measures a folder of clips with a list of metrics, and reports the scores."""

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from stunet.errors import UserError
from stunet.evaluation.clip_folders import ClipFolder
from stunet.evaluation.metric import Comparison, Metric

# Called with the number of clips that were measured since the last call.
OnClips = Callable[[int], object]


def evaluate(
    clips: ClipFolder,
    metrics: Sequence[Metric],
    reference: ClipFolder | None = None,
    prompts: Sequence[str] | None = None,
    *,
    batch_size: int = 4,
    on_clips: OnClips = lambda count: None,
) -> dict[str, Any]:
    """Measures a folder of clips.

    Args:
      clips: Clips to measure.
      metrics: Scores to report, in this order.
      reference: Real clips, for metrics that need or also measure a reference.
      prompts: One prompt per clip, for metrics that need prompts.
      batch_size: Clips per batch of a network.
      on_clips: Receives progress, over both folders.

    Returns:
      JSON values: "clips" and "reference" describe the folders (number of clips, frames, fps,
      sizes); "metrics" contains for each metric a dict with its "value" and all settings that the
      value depends on.

    Raises:
      UserError: a metric lacks what it needs, frames do not suit a network, or a file is unreadable
        or too short.
    """
    names = [metric.name for metric in metrics]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise UserError(f"metrics: {', '.join(sorted(repeated))} repeated, expected unique names")
    comparison = compare_folders(clips, reference, prompts)
    for metric in metrics:
        metric.check(comparison)
    report, measured = {}, {}
    report["clips"], measured = _measure(clips, metrics, batch_size, on_clips)
    of_reference: dict[str, np.ndarray] = {}
    if reference is not None:
        comparing = [metric for metric in metrics if metric.measures_reference]
        report["reference"], of_reference = _measure(reference, comparing, batch_size, on_clips)
    report["metrics"] = {
        metric.name: metric.score(measured[metric.name], of_reference.get(metric.name), prompts)
        for metric in metrics
    }
    return report


def compare_folders(
    clips: ClipFolder, reference: ClipFolder | None, prompts: Sequence[str] | None
) -> Comparison:
    """Returns the sizes of an evaluation, for `Metric.check` and `Metric.warning`."""
    return Comparison(
        frames=clips.frames,
        num_clips=len(clips.names),
        num_reference=None if reference is None else len(reference.names),
        has_prompts=prompts is not None,
        prompts=tuple(prompts or ()),
    )


def format_report(report: dict[str, Any]) -> list[str]:
    """Formats the report of `evaluate` as lines for the terminal."""
    lines = []
    for part in ("clips", "reference"):
        if part in report:
            folder = report[part]
            rates = "-".join(f"{rate:g}" for rate in dict.fromkeys(folder["fps"]))
            lines.append(
                f"{part}: {folder['num_clips']} of {folder['frames']} frames at {rates} fps, "
                f"{', '.join(folder['sizes'])} ({folder['folder']})"
            )
    for name, score in report["metrics"].items():
        spread = ""
        if "interval" in score:
            spread = " ({:.3f} to {:.3f})".format(*score["interval"])
        elif "std" in score:
            spread = f" +- {score['std']:.3f}"
        beside = f"   reference {score['reference']:.3f}" if "reference" in score else ""
        unit = f" {score['unit']}" if "unit" in score else ""
        lines.append(f"  {name:16} {score['value']:10.3f}{spread}{unit}{beside}")
    return lines


def _measure(
    clips: ClipFolder, metrics: Sequence[Metric], batch_size: int, on_clips: OnClips
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Returns a description of the folder, and each metric's rows `[N, ...]` by its name."""
    rows: dict[str, list[np.ndarray]] = {metric.name: [] for metric in metrics}
    rates, sizes = set(), Counter()
    decoded = iter(clips)
    while batch := list(itertools.islice(decoded, batch_size)):
        for clip, fps in batch:
            rates.add(fps)
            sizes[f"{clip.shape[2]}x{clip.shape[1]}"] += 1
        for metric in metrics:
            rows[metric.name].append(metric.measure([clip for clip, _ in batch], batch_size))
        on_clips(len(batch))
    description = {
        "folder": str(clips.folder),
        "num_clips": len(clips.names),
        "frames": clips.frames,
        "fps": [min(rates), max(rates)],
        "retimed": clips.fps is not None,
        "sizes": dict(sizes.most_common()),
    }
    return description, {name: np.concatenate(parts) for name, parts in rows.items()}
