"""Runs the ablations and writes what they found.

    python -m experiments.ablations --t2i=runs/t2i --ssr=runs/ssr --t2v=runs/t2v \\
        --style=runs/duotone --workdir=runs/ablations

The models are trained ones; `--only=NAME` runs one ablation, and takes the models that it needs.
The same command again goes on where it stopped. Writes WORKDIR/ablations.md, which holds all that
have been run there, and plots beside it.
"""

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from absl import flags

from experiments.ablations import (
    cost,
    key_frames,
    multidiffusion,
    resampler_init,
    style_strength,
    temporal_blocks,
    temporal_resampling,
    training,
)
from experiments.flag_reading import read_flags
from stunet.errors import UserError, run_command
from stunet.weights.model_folder import find_model


class Ablation(NamedTuple):
    """What it starts from (flags of models), and its two halves."""

    models: tuple[str, ...]
    run: Callable[..., None]  # of its workdir and those models
    section: Callable[[Path], str]


_ONLY = flags.DEFINE_string("only", None, "one ablation; default: all")
_MODELS = {
    "t2i": flags.DEFINE_string("t2i", None, "the text-to-image model that variants start from"),
    "ssr": flags.DEFINE_string("ssr", None, "the super-resolution model"),
    "t2v": flags.DEFINE_string("t2v", None, "the text-to-video model that a style is put on"),
    "style": flags.DEFINE_string("style", None, "the style: a text-to-image model tuned to it"),
}
_WORKDIR = flags.DEFINE_string("workdir", None, "where runs and the report are kept")
_JOBS = flags.DEFINE_integer("jobs", os.cpu_count(), "training runs at a time", lower_bound=1)
_SET = flags.DEFINE_multi_string("set", [], "a flag of the programs that are run, to try out")


def ablations() -> dict[str, Ablation]:
    """All of them, by name; how they run is in the flags."""
    found = {}
    for module in (resampler_init, temporal_resampling, temporal_blocks):
        trained = module.ABLATION
        run = functools.partial(training.run, trained, jobs=_JOBS.value, options=_SET.value)
        found[trained.name] = Ablation(("t2i",), run, functools.partial(training.section, trained))
    run = functools.partial(key_frames.run, jobs=_JOBS.value, options=_SET.value)
    found[key_frames.NAME] = Ablation(("t2i",), run, key_frames.section)
    others = {multidiffusion: ("ssr",), style_strength: ("t2v", "style"), cost: ()}
    for module, models in others.items():
        run = functools.partial(module.run, options=_SET.value)
        found[module.NAME] = Ablation(models, run, module.section)
    return found


def main(argv: list[str]) -> None:
    """Runs what is asked for and writes the report of it."""
    read_flags(argv)
    if not _WORKDIR.value:
        raise UserError("--workdir=DIR is needed")
    every = chosen = ablations()
    if _ONLY.value is not None:
        if _ONLY.value not in every:
            raise UserError(f"--only={_ONLY.value}: choose one of {', '.join(every)}")
        chosen = {_ONLY.value: every[_ONLY.value]}
    for name, ablation in chosen.items():  # a mistake is told of before anything runs
        for model in ablation.models:
            if not _MODELS[model].value:
                raise UserError(f"{name} needs --{model}=DIR")
            find_model(_MODELS[model].value)
    workdir = Path(_WORKDIR.value)
    for name, ablation in chosen.items():
        models = (Path(_MODELS[model].value).resolve() for model in ablation.models)
        ablation.run(workdir / name, *models)
        (workdir / f"{name}.md").write_text(ablation.section(workdir / name))
    sections = (workdir / f"{name}.md" for name in every)
    report = workdir / "ablations.md"
    report.write_text("\n".join(path.read_text() for path in sections if path.exists()))
    print(report)


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv), "experiments.ablations"))
