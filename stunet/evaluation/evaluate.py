"""A report on a folder of clips: every metric that its weights, texts and reference allow."""

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stunet.diffusion import Windows
from stunet.errors import UserError
from stunet.evaluation.c3d import load_c3d
from stunet.evaluation.clip import Clip, load_clip, similarity
from stunet.evaluation.clip_folders import ClipFolder
from stunet.evaluation.features import Extractor
from stunet.evaluation.i3d import load_i3d
from stunet.evaluation.scores import frechet_distance, inception_score
from stunet.evaluation.seams import frame_differences, seam_ratio, seams
from stunet.evaluation.temporal import flicker

MIN_FRAMES = 3  # for flicker
FEW_CLIPS = 400  # for an FVD; about as many as it has features

# Called with the number of clips that have been measured.
OnClips = Callable[[int], object]


@dataclass(frozen=True)
class Metrics:
    """What to measure beside flicker and motion energy.

    Attributes:
      frechet: whose features a Frechet distance is taken over (I3D's, for FVD), to a reference.
      classifier: whose features are probabilities, for an Inception Score (C3D).
      clip: for the similarity to texts.
      splits: of the Inception Score.
      windows: at whose edges seams are measured.
      batch_size: clips that a network works on at a time.
    """

    frechet: Extractor | None = None
    classifier: Extractor | None = None
    clip: Clip | None = None
    splits: int = 10
    windows: Windows | None = None
    batch_size: int = 4

    def check(
        self, frames: int, num_clips: int, num_reference: int | None, texts: bool = False
    ) -> None:
        """Refuses what can be known to be wrong before anything is read.

        Args:
          frames: of a clip.
          num_clips: that are measured.
          num_reference: clips of the reference; None for no reference.
          texts: whether the clips have them.

        Raises:
          UserError: a metric lacks what it needs, or frames do not suit a network.
        """
        if frames < MIN_FRAMES:
            raise UserError(f"{frames} frames of a clip are too few; take {MIN_FRAMES} or more")
        for network in (self.frechet, self.classifier):
            if network is not None:
                network.check_frames(frames)
        if self.frechet is not None:
            if num_reference is None:
                raise UserError(f"a distance of {self.frechet.name}'s features takes a reference")
            if min(num_clips, num_reference) < 2:
                raise UserError(
                    f"a Frechet distance takes 2 clips or more on both sides, got {num_clips} and "
                    f"{num_reference} of the reference"
                )
        if self.classifier is not None and num_clips < self.splits:
            raise UserError(
                f"an Inception Score in {self.splits} parts takes as many clips, got {num_clips}"
            )
        if self.clip is not None and not texts:
            raise UserError("CLIP similarity takes texts")
        if self.windows is not None and len(set(seams(self.windows).tolist())) < 2:
            raise UserError(
                f"windows of {self.windows.length} frames have no seams, or nothing else, in clips "
                f"of {frames}"
            )


@dataclass(frozen=True)
class _Measured:
    """Of N clips: `described` for the report, and arrays `[N, ...]` by name."""

    described: dict[str, Any]
    arrays: dict[str, np.ndarray]


def load_metrics(
    i3d: str | Path | None, c3d: str | Path | None, clip: str | Path | None, **fields: Any
) -> Metrics:
    """The metrics that these weights allow; `fields` are the other ones of `Metrics`.

    Raises:
      UserError: weights cannot be read or are another network's.
    """
    return Metrics(
        frechet=None if i3d is None else load_i3d(i3d),
        classifier=None if c3d is None else load_c3d(c3d),
        clip=None if clip is None else load_clip(clip),
        **fields,
    )


def evaluate(
    clips: ClipFolder,
    metrics: Metrics,
    reference: ClipFolder | None = None,
    prompts: Sequence[str] | None = None,
    on_clips: OnClips = lambda count: None,
) -> dict[str, Any]:
    """Measures a folder of clips.

    Args:
      clips: what is measured.
      metrics: how.
      reference: real clips, for the Frechet distance; flicker and motion energy are measured of
        them too.
      prompts: a text for each clip, for CLIP similarity.
      on_clips: for progress, over both folders.

    Returns:
      Plain values: "clips" and "reference" say what was read (number, frames, fps, sizes),
      "metrics" has a dict for each metric, with its "value" and all that it depends on.

    Raises:
      UserError: a metric lacks what it needs, frames do not suit a network, or a file is
        unreadable or too short.
    """
    metrics.check(
        clips.frames, len(clips.names), reference and len(reference.names), prompts is not None
    )
    networks = {"classes": metrics.classifier, "frames": metrics.clip and metrics.clip.images}
    measured = _measure(clips, {"features": metrics.frechet, **networks}, metrics, on_clips)
    report = {"clips": measured.described}
    real = None
    if reference is not None:
        real = _measure(reference, {"features": metrics.frechet}, metrics, on_clips)
        report["reference"] = real.described
    return report | {"metrics": _scores(measured, real, metrics, prompts)}


def table(report: dict[str, Any]) -> list[str]:
    """The report's metrics in lines for the terminal."""
    lines = []
    for part in ("clips", "reference"):
        if part in report:
            said = report[part]
            rates = "-".join(f"{rate:g}" for rate in dict.fromkeys(said["fps"]))
            lines.append(
                f"{part}: {said['num_clips']} of {said['frames']} frames at {rates} fps, "
                f"{', '.join(said['sizes'])} ({said['folder']})"
            )
    for name, said in report["metrics"].items():
        spread = ""
        if "interval" in said:
            spread = " ({:.3f} to {:.3f})".format(*said["interval"])
        elif "std" in said:
            spread = f" +- {said['std']:.3f}"
        beside = f"   reference {said['reference']:.3f}" if "reference" in said else ""
        unit = f" {said['unit']}" if "unit" in said else ""
        lines.append(f"  {name:16} {said['value']:10.3f}{spread}{unit}{beside}")
    return lines


def _measure(
    clips: ClipFolder,
    networks: dict[str, Extractor | None],
    metrics: Metrics,
    on_clips: OnClips,
) -> _Measured:
    used = {name: network for name, network in networks.items() if network is not None}
    arrays = {name: [] for name in ("flicker", "differences", *used)}
    rates, sizes = set(), Counter()
    read = iter(clips)
    while batch := list(itertools.islice(read, metrics.batch_size)):
        for clip, fps in batch:
            arrays["flicker"].append(flicker(clip[None]))
            arrays["differences"].append(frame_differences(clip[None]))
            rates.add(fps)
            sizes[f"{clip.shape[2]}x{clip.shape[1]}"] += 1
        for name, network in used.items():
            arrays[name].append(network([clip for clip, _ in batch], metrics.batch_size))
        on_clips(len(batch))
    described = {
        "folder": str(clips.folder),
        "num_clips": len(clips.names),
        "frames": clips.frames,
        "fps": [min(rates), max(rates)],
        "retimed": clips.fps is not None,
        "sizes": dict(sizes.most_common()),
    }
    return _Measured(described, {name: np.concatenate(parts) for name, parts in arrays.items()})


def _scores(
    measured: _Measured,
    real: _Measured | None,
    metrics: Metrics,
    prompts: Sequence[str] | None,
) -> dict[str, dict[str, Any]]:
    def of_both(name: str) -> dict[str, Any]:
        said = {"value": float(measured.arrays[name].mean()), "unit": "1/255"}
        return said if real is None else said | {"reference": float(real.arrays[name].mean())}

    scores = {"flicker": of_both("flicker"), "motion_energy": of_both("differences")}
    if metrics.windows is not None:
        windows, differences = metrics.windows, measured.arrays["differences"]
        at_seam = seams(windows)
        if not differences[:, ~at_seam].any():
            raise UserError("between the windows' edges no clip moves; there is no seam ratio")
        # Few clips, most of them still, may be drawn for the interval so that none moves.
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio, *interval = seam_ratio(differences, at_seam)
        scores["seam_ratio"] = {
            "value": ratio,
            **({"interval": interval} if np.isfinite(interval).all() else {}),
            "window": windows.length,
            "overlap": windows.overlap,
        }
    if metrics.frechet is not None:
        scores["fvd"] = {
            "value": frechet_distance(measured.arrays["features"], real.arrays["features"]),
            "features": measured.arrays["features"].shape[1],
            **metrics.frechet.described(),
        }
    if metrics.classifier is not None:
        mean, std = inception_score(measured.arrays["classes"], metrics.splits)
        scores["inception_score"] = {
            "value": mean,
            "std": std,
            "splits": metrics.splits,
            **metrics.classifier.described(),
        }
    if metrics.clip is not None:
        texts = metrics.clip.texts(prompts)
        scores["clip_similarity"] = {
            "value": float(similarity(measured.arrays["frames"], texts).mean()),
            **metrics.clip.images.described(),
        }
    return scores
