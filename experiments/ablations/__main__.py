"""Runs the ablations and writes what they found.

    python -m experiments.ablations --t2i=runs/t2i --workdir=runs/ablations [--only=NAME]

`--t2i` is a trained text-to-image model, which all variants are inflated from. The same command
again goes on where it stopped. Writes WORKDIR/ablations.md, and a plot for each beside it.
"""

import os
import sys
from pathlib import Path

from absl import flags

from experiments.ablations import resampler_init, temporal_resampling
from experiments.ablations.training import run, section
from experiments.flag_reading import read_flags
from stunet.errors import UserError, run_command
from stunet.weights.model_folder import open_model

ABLATIONS = {
    ablation.name: ablation for ablation in (resampler_init.ABLATION, temporal_resampling.ABLATION)
}

_ONLY = flags.DEFINE_enum("only", None, list(ABLATIONS), "one ablation; default: all")
_T2I = flags.DEFINE_string("t2i", None, "the text-to-image model that variants are inflated from")
_WORKDIR = flags.DEFINE_string("workdir", None, "where runs and the report are kept")
_JOBS = flags.DEFINE_integer("jobs", os.cpu_count(), "runs at a time", lower_bound=1)
_SET = flags.DEFINE_multi_string("set", [], "a flag of experiments.train for all runs, to try out")


def main(argv: list[str]) -> None:
    """Runs what is asked for and writes the report of it."""
    read_flags(argv)
    if not _T2I.value or not _WORKDIR.value:
        raise UserError("both --t2i=DIR and --workdir=DIR are needed")
    open_model(_T2I.value)  # a mistake is told of before anything runs
    workdir = Path(_WORKDIR.value)
    chosen = [ABLATIONS[_ONLY.value]] if _ONLY.value else list(ABLATIONS.values())
    sections = []
    for ablation in chosen:
        here = workdir / ablation.name
        run(ablation, here, Path(_T2I.value).resolve(), _JOBS.value, _SET.value)
        sections.append(section(ablation, here))
    report = workdir / "ablations.md"
    report.write_text("\n".join(sections))
    print(report)


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv), "experiments.ablations"))
