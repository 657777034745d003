"""Measures colours and motion against the strength of a style.

python -m experiments.ablations --only=style_strength --workdir=runs/ablations
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

CLIPS = 16
STATIC = 0.5  # share of the unstyled clips' motion energy below which clips count as static


def plan(workdir: Path, inputs: Inputs, options: Sequence[str] = ()) -> list[Phase]:
    """Returns commands that generate the same clips at every strength, with each seed's noise.

    Options are flags of `experiments.applications`.
    """
    flags = [
        f"--base={inputs['t2v']}",
        f"--style={inputs['style']}",
        "--only=style",
        f"--num_clips={CLIPS}",
        *options,
    ]
    return seed_commands("experiments.applications", flags, workdir)


def verdict(strengths: np.ndarray, distances: np.ndarray, energies: np.ndarray) -> str:
    """Returns one sentence on the results.

    Args:
      strengths: Strengths `[S]`, in ascending order.
      distances: Distances to the style's colour gradient `[seeds, S]`.
      energies: Shares of the unstyled clips' motion energy `[seeds, S]`.
    """
    styled = strengths >= 0.5
    falls = bool((np.diff(distances[:, styled].mean(0)) < 0).all())
    colours = (
        "Colours approach the style's with every step"
        if falls
        else "Colours do not approach the style's steadily"
    )
    share = energies.mean(0)[-1]
    motion = "static, as in the paper" if share < STATIC else "not static, unlike the paper's"
    return f"{colours}; at strength 1 clips keep {100 * share:.0f} % of their motion: {motion}."


def findings(workdir: Path) -> list[str]:
    """Returns the report's lines."""
    reports = [report["style"] for report in read_seed_reports(workdir)]
    strengths, distances, energies = (
        np.array([report[name] for report in reports])
        for name in ("strength", "distance_to_the_inks", "motion_energy_share")
    )
    lines = [
        f"Ours: {verdict(strengths[0], distances, energies)}",
        "",
        "| strength | distance to the style's colour gradient | remaining motion energy |",
        "|---|---|---|",
    ]
    for column, strength in enumerate(strengths[0]):
        cells = [
            ", ".join(f"{value:.3f}" for value in values[:, column])
            for values in (distances, energies)
        ]
        lines.append(f"| {strength:g} | {cells[0]} | {cells[1]} |")
    picture = f"{workdir.name}/seed_{SEEDS[0]}_style.png"
    seeds = ", ".join(map(str, SEEDS))
    return [
        *lines,
        "",
        f"({CLIPS} clips for each of seeds {seeds}.)",
        "",
        f"![one clip at each strength]({picture})",
        "",
    ]


ABLATION = ProgramAblation(
    name="style_strength",
    question="Strength of a style",
    paper="Strengths from 0.5 to 1 work; at 1 clips are often static or distorted.",
    needs=("t2v", "style"),
    plan=plan,
    findings=findings,
)
