"""Memory and time by the number of frames: the Space-Time U-Net, the full rate, a cascade.

python -m experiments.ablations --only=cost --workdir=runs/ablations

Measured here and, where requirements-tpu.txt is installed, by the TPU compiler's account.
"""

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path

from experiments.ablations.programs import call

NAME = "cost"
PAPER = (
    "Sampling in time, too, makes the full rate in one pass affordable; a cascade fits in memory "
    "by making key frames and what is between them apart, which costs it the clip as a whole."
)
TOPOLOGY = "v5e:2x2"
PLACES = {"here": "measured here", "tpu": f"estimated for {TOPOLOGY}"}


def run(workdir: Path, options: Sequence[str] = ()) -> None:
    """Measures and, where there is a compiler, estimates; what is there already stays.

    `options` are further flags of `experiments.benchmarks.frames`.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    places = {"here": []}
    if importlib.util.find_spec("libtpu") is not None:
        places["tpu"] = [f"--topology={TOPOLOGY}"]
    for place, flags in places.items():
        out = workdir / f"{place}.json"
        if not out.exists():
            log = out.with_suffix(".log")
            call("experiments.benchmarks.frames", [f"--out={out}", *flags, *options], log)


def verdict(rows: Sequence[dict]) -> str:
    """From the rows of a report to one sentence about the longest clip."""
    longest = max(row["frames"] for row in rows)
    of = {row["way"]: row for row in rows if row["frames"] == longest}
    base = of["space-time"]

    def times(way: str, what: str) -> str:
        return f"{of[way][what] / base[what]:.2f}"

    return (
        f"At {longest} frames the full rate takes {times('full rate', 'seconds')} times the time "
        f"and {times('full rate', 'temporary_bytes')} times the memory of the Space-Time U-Net, a "
        f"cascade {times('cascade', 'seconds')} and {times('cascade', 'temporary_bytes')} times."
    )


def section(workdir: Path) -> str:
    """The part of the report, in Markdown."""
    lines = ["## What a clip costs by its frames", "", f"The paper: {PAPER}", ""]
    for place, title in PLACES.items():
        path = workdir / f"{place}.json"
        if not path.exists():
            lines += ["The TPU compiler was not installed (requirements-tpu.txt).", ""]
            continue
        rows = json.loads(path.read_text())["runs"]
        lines += [
            f"Ours, {title}: {verdict(rows)}",
            "",
            "| frames | way | calls a step | temporaries, MiB | s a step |",
            "|---|---|---|---|---|",
        ]
        for row in rows:
            lines.append(
                f"| {row['frames']} | {row['way']} | {row['calls']} | "
                f"{row['temporary_bytes'] / 2**20:.1f} | {row['seconds']:.3g} |"
            )
        lines.append("")
    return "\n".join(lines)
