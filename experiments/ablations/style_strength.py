"""How far a style's weights are mixed in: colours against motion.

python -m experiments.ablations --only=style_strength --workdir=runs/ablations
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.ablations.programs import SEEDS, call_with_each_seed, read_reports

NAME = "style_strength"
PAPER = "Strengths from 0.5 to 1 do; at 1 clips are often static or distorted."
CLIPS = 16
STATIC = 0.5  # of the original's motion energy: less is called static


def run(workdir: Path, t2v: Path, style: Path, options: Sequence[str] = ()) -> None:
    """Makes the same clips at every strength, with each seed's noise; what is there stays.

    Args:
      workdir: `seed_N.json` and sheets are written there.
      t2v: a text-to-video model.
      style: the image model in it, tuned to `data.moving_shapes.duotone`'s pictures.
      options: further flags of `experiments.applications`.
    """
    flags = [f"--base={t2v}", f"--style={style}", "--only=style", f"--num_clips={CLIPS}"]
    flags += options
    call_with_each_seed("experiments.applications", flags, workdir)


def verdict(strengths: np.ndarray, distances: np.ndarray, energies: np.ndarray) -> str:
    """From distances to the style's inks and shares of the motion energy, `[seeds, strengths]`."""
    styled = strengths >= 0.5
    falls = bool((np.diff(distances[:, styled].mean(0)) < 0).all())
    colours = "Colours move to the style's all the way" if falls else "Colours do not move steadily"
    left = energies.mean(0)[-1]
    motion = "static, as in the paper" if left < STATIC else "not static, unlike the paper's"
    return f"{colours}; at strength 1 clips keep {100 * left:.0f} % of their motion: {motion}."


def section(workdir: Path) -> str:
    """The part of the report, in Markdown."""
    reports = [report["style"] for report in read_reports(workdir)]
    strengths, distances, energies = (
        np.array([report[name] for report in reports])
        for name in ("strength", "distance_to_the_inks", "motion_energy_share")
    )
    lines = [
        "## Strength of a style",
        "",
        f"The paper: {PAPER}",
        "",
        f"Ours: {verdict(strengths[0], distances, energies)}",
        "",
        "| strength | distance to the style's inks | motion energy left |",
        "|---|---|---|",
    ]
    for column, strength in enumerate(strengths[0]):
        each = [
            ", ".join(f"{value:.3f}" for value in table[:, column])
            for table in (distances, energies)
        ]
        lines.append(f"| {strength:g} | {each[0]} | {each[1]} |")
    picture = f"{workdir.name}/seed_{SEEDS[0]}_style.png"
    seeds = ", ".join(map(str, SEEDS))
    return "\n".join(
        [
            *lines,
            "",
            f"({CLIPS} clips for each of seeds {seeds}.)",
            "",
            f"![a clip at each strength]({picture})",
            "",
        ]
    )
