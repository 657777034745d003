"""Compares memory and time of the Space-Time U-Net, the full frame rate and a cascade.

    python -m experiments.ablations --only=cost --workdir=runs/ablations

Runs `experiments.benchmarks.frames` on this machine and, if libtpu is installed
(requirements-tpu.txt), for a TPU topology.
"""

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path

from experiments.ablations.harness.ablation import Command, Inputs, Phase, ProgramAblation

TOPOLOGY = "v5e:2x2"
PLATFORMS = {"here": "measured on this machine", "tpu": f"estimated for {TOPOLOGY}"}


def plan(workdir: Path, inputs: Inputs, options: Sequence[str] = ()) -> list[Phase]:
    """Returns a command for each of `PLATFORMS` whose compiler is installed.

    They run one after the other, because the first measures time. Options are flags of
    `experiments.benchmarks.frames`.
    """
    topologies = {"here": ()}
    if importlib.util.find_spec("libtpu") is not None:
        topologies["tpu"] = (f"--topology={TOPOLOGY}",)
    chain = []
    for platform, flags in topologies.items():
        out = workdir / f"{platform}.json"
        command = Command(
            program="experiments.benchmarks.frames",
            flags=(f"--out={out}", *flags, *options),
            result=out,
            log=out.with_suffix(".log"),
        )
        chain.append(command)
    return [[chain]]


def verdict(rows: Sequence[dict]) -> str:
    """Returns one sentence on the longest clip of the rows that `frames` reports."""
    longest = max(row["frames"] for row in rows)
    by_method = {row["way"]: row for row in rows if row["frames"] == longest}
    base = by_method["space-time"]

    def ratio(method: str, figure: str) -> str:
        return f"{by_method[method][figure] / base[figure]:.2f}"

    return (
        f"At {longest} frames the full rate takes {ratio('full rate', 'seconds')} times the time "
        f"and {ratio('full rate', 'temporary_bytes')} times the memory of the Space-Time U-Net, a "
        f"cascade {ratio('cascade', 'seconds')} and {ratio('cascade', 'temporary_bytes')} times."
    )


def findings(workdir: Path) -> list[str]:
    """Returns the report's lines on each of `PLATFORMS`."""
    lines = []
    for platform, title in PLATFORMS.items():
        path = workdir / f"{platform}.json"
        if not path.exists():
            lines += ["The TPU compiler was not installed (requirements-tpu.txt).", ""]
            continue
        rows = json.loads(path.read_text())["runs"]
        lines += [
            f"Ours, {title}: {verdict(rows)}",
            "",
            "| frames | method | calls per step | temporaries, MiB | s per step |",
            "|---|---|---|---|---|",
        ]
        for row in rows:
            lines.append(
                f"| {row['frames']} | {row['way']} | {row['calls']} | "
                f"{row['temporary_bytes'] / 2**20:.1f} | {row['seconds']:.3g} |"
            )
        lines.append("")
    return lines


ABLATION = ProgramAblation(
    name="cost",
    question="Memory and time by number of frames",
    paper=(
        "Temporal resampling makes it affordable to generate the full frame rate in one pass. A "
        "cascade fits in memory because it generates key frames and the frames between them "
        "separately, at the expense of global coherence."
    ),
    plan=plan,
    findings=findings,
)
