"""Compares super-resolution of windows with and without MultiDiffusion.

python -m experiments.ablations --only=multidiffusion --workdir=runs/ablations
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.ablations.harness.ablation import (
    SEEDS,
    Inputs,
    Phase,
    ProgramAblation,
    read_seed_reports,
    seed_commands,
)

CLIPS = 4
# Keys of the reports of `experiments.upscaling`.
METHODS = {"without": "without", "uniform": "with, uniform weights", "ramp": "with, ramp weights"}
# Ratio of the frame difference at window boundaries to that elsewhere, up to which a clip counts
# as seamless.
SEAMLESS = 1.1


def plan(workdir: Path, inputs: Inputs, options: Sequence[str] = ()) -> list[Phase]:
    """Returns commands that upscale the same clips with the noise of each seed.

    Options are flags of `experiments.upscaling`.
    """
    flags = [f"--model={inputs['ssr']}", f"--num_clips={CLIPS}", *options]
    return seed_commands("experiments.upscaling", flags, workdir)


def verdict(ratios: dict[str, np.ndarray]) -> str:
    """Returns one sentence on the seam ratios `[seeds]` of each method."""
    without, best = ratios["without"].mean(), min(ratios["uniform"].mean(), ratios["ramp"].mean())
    if without < SEAMLESS:
        return f"Does not confirm the paper: there are no seams without it ({without:.2f})."
    if best > without:
        return f"Disagrees with the paper: {best:.2f} with it and {without:.2f} without."
    effect = "removes" if best <= SEAMLESS else "reduces"
    return f"Agrees with the paper: it {effect} the seams, from {without:.2f} to {best:.2f}."


def findings(workdir: Path) -> list[str]:
    """Returns the report's lines."""
    reports = read_seed_reports(workdir)
    ratios = {
        method: np.array([report[method]["seam_ratio"][0] for report in reports])
        for method in METHODS
    }
    lines = [
        f"Ours: {verdict(ratios)}",
        "",
        "| | seam ratio, seeds " + ", ".join(map(str, SEEDS)) + " | PSNR, dB |",
        "|---|---|---|",
    ]
    for method, label in METHODS.items():
        decibels = np.mean([report[method]["psnr"] for report in reports])
        by_seed = ", ".join(f"{ratio:.3f}" for ratio in ratios[method])
        lines.append(f"| {label} | {by_seed} | {decibels:.1f} |")
    picture = f"{workdir.name}/seed_{SEEDS[0]}.png"
    clips = reports[0]["settings"]["num_clips"]
    return [
        *lines,
        "",
        "(Seam ratio: difference of consecutive frames at window boundaries over that elsewhere; "
        f"{clips} clips per seed.)",
        "",
        f"![differences of consecutive frames]({picture})",
        "",
    ]


ABLATION = ProgramAblation(
    name="multidiffusion",
    question="Super-resolution with and without MultiDiffusion",
    paper=("Without it the difference of consecutive frames has a spike at every window boundary."),
    needs=("ssr",),
    plan=plan,
    findings=findings,
)
