"""Super-resolution over windows of a clip, with MultiDiffusion and without.

python -m experiments.ablations --only=multidiffusion --workdir=runs/ablations
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.ablations.programs import SEEDS, call_with_each_seed, read_reports

NAME = "multidiffusion"
PAPER = "Without it the difference of consecutive frames has a spike at every window's boundary."
CLIPS = 4
WAYS = {"without": "without", "uniform": "with, uniform weights", "ramp": "with, ramp weights"}
AIM = 1.1  # seams no more than a tenth above what is elsewhere


def run(workdir: Path, ssr: Path, options: Sequence[str] = ()) -> None:
    """Enlarges the same clips with each seed's noise; what is there already stays.

    Args:
      workdir: `seed_N.json`, plots and sheets are written there.
      ssr: a super-resolution model.
      options: further flags of `experiments.upscaling`.
    """
    flags = [f"--model={ssr}", f"--num_clips={CLIPS}", *options]
    call_with_each_seed("experiments.upscaling", flags, workdir)


def verdict(ratios: dict[str, np.ndarray]) -> str:
    """From the ratios of seams `[seeds]` of each way to one sentence."""
    without, best = ratios["without"].mean(), min(ratios["uniform"].mean(), ratios["ramp"].mean())
    if without < AIM:
        return f"Does not bear the paper out: without it there are no seams ({without:.2f})."
    if best > without:
        return f"Disagrees with the paper: {best:.2f} with it and {without:.2f} without."
    rest = "are gone" if best <= AIM else "are less"
    return f"Agrees with the paper: seams of {without:.2f} {rest} with it ({best:.2f})."


def section(workdir: Path) -> str:
    """The part of the report, in Markdown."""
    reports = read_reports(workdir)
    ratios = {way: np.array([report[way]["seam_ratio"][0] for report in reports]) for way in WAYS}
    lines = [
        "## Super-resolution with and without MultiDiffusion",
        "",
        f"The paper: {PAPER}",
        "",
        f"Ours: {verdict(ratios)}",
        "",
        "| | seams over elsewhere, seeds " + ", ".join(map(str, SEEDS)) + " | PSNR, dB |",
        "|---|---|---|",
    ]
    for way, name in WAYS.items():
        decibels = np.mean([report[way]["psnr"] for report in reports])
        each = ", ".join(f"{ratio:.3f}" for ratio in ratios[way])
        lines.append(f"| {name} | {each} | {decibels:.1f} |")
    picture = f"{workdir.name}/seed_{SEEDS[0]}.png"
    clips = reports[0]["settings"]["num_clips"]
    return "\n".join([*lines, "", f"({clips} clips a seed.)", "", f"![differences]({picture})", ""])
