"""Runs the ablations and writes what they found.

    python -m experiments.ablations --workdir=runs/ablations

The models that they start from come with the package; --t2i, --t2v, --ssr and --style take others.
`--only=NAME` runs one ablation; `--ucf101=FOLDER` adds one on real clips. The same command again
goes on where it stopped. Writes WORKDIR/ablations.md, which holds all that have been run there, and
plots beside it.

    python -m experiments.ablations --scale=tpu --workdir=runs/ablations_tpu

is the same at the paper's size, where each run wants a TPU slice of its own: it prints the commands
of the runs that WORKDIR does not hold yet, T2I, FOLDER and UCF101 yet to be filled in, and reports
on those ablations of which it holds all.
"""

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from absl import flags

from experiments.ablations import (
    attention_depth,
    cost,
    frozen_image_model,
    key_frames,
    multidiffusion,
    resampler_init,
    resampler_init_ucf101,
    style_strength,
    temporal_blocks,
    temporal_resampling,
    training,
    window_length,
)
from experiments.common.program_flags import read_flags
from stunet.errors import UserError, run_command
from stunet.weights import shipped
from stunet.weights.inflation import extract_text_to_image
from stunet.weights.model_folder import find_model_folder, read_model_folder, write_model_folder


class Ablation(NamedTuple):
    """What it starts from (flags of models), and its two halves."""

    models: tuple[str, ...]
    run: Callable[..., None]  # of its workdir and those models
    section: Callable[[Path], str]


TRAINED = (
    resampler_init,
    resampler_init_ucf101,
    temporal_resampling,
    temporal_blocks,
    attention_depth,
    frozen_image_model,
    window_length,
)

FLAGS = flags.FlagValues()
_ONLY = flags.DEFINE_string("only", None, "one ablation; default: all", flag_values=FLAGS)
_MODELS = {
    "t2i": flags.DEFINE_string(
        "t2i",
        shipped.VIDEO_MODEL,
        "the image model that variants start from, or one around it",
        flag_values=FLAGS,
    ),
    "ssr": flags.DEFINE_string(
        "ssr", shipped.UPSCALER, "the super-resolution model", flag_values=FLAGS
    ),
    "t2v": flags.DEFINE_string(
        "t2v", shipped.VIDEO_MODEL, "the video model that is tuned and styled", flag_values=FLAGS
    ),
    "style": flags.DEFINE_string(
        "style", shipped.STYLE_MODEL, "an image model tuned to data's duotone", flag_values=FLAGS
    ),
}
_UCF101 = flags.DEFINE_string(
    "ucf101", None, "UCF-101's videos, for the ablation on them", flag_values=FLAGS
)
_SCALE = flags.DEFINE_enum(
    "scale", "cpu", ("cpu", "tpu"), "tiny, here; or the paper's size", flag_values=FLAGS
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "where runs and the report are kept", flag_values=FLAGS
)
_JOBS = flags.DEFINE_integer(
    "jobs", os.cpu_count(), "training runs at a time", lower_bound=1, flag_values=FLAGS
)
_SET = flags.DEFINE_multi_string(
    "set", [], "a flag of the programs that are run, to try out", flag_values=FLAGS
)


def ablations() -> dict[str, Ablation]:
    """All of them, by name; how they run is in the flags."""
    found = {}
    for trained in _trained_at("cpu").values():
        options = _SET.value
        if trained.name == resampler_init_ucf101.ABLATION.name:
            if _UCF101.value is None:
                continue
            options = [*options, f"--config.data.source={Path(_UCF101.value).resolve()}"]
        run = functools.partial(training.run, trained, jobs=_JOBS.value, options=options)
        found[trained.name] = Ablation(("t2i",), run, functools.partial(training.section, trained))
    run = functools.partial(key_frames.run, jobs=_JOBS.value, options=_SET.value)
    found[key_frames.NAME] = Ablation(("t2v",), run, key_frames.section)
    others = {multidiffusion: ("ssr",), style_strength: ("t2v", "style"), cost: ()}
    for module, models in others.items():
        run = functools.partial(module.run, options=_SET.value)
        found[module.NAME] = Ablation(models, run, module.section)
    return found


def _trained_at(scale: str) -> dict[str, training.Training]:
    every = (module.ABLATION for module in TRAINED)
    return {ablation.name: ablation for ablation in every if scale in ablation.scales}


def main(argv: list[str]) -> None:
    """Runs what is asked for, or says how to, and writes the report of it."""
    read_flags(FLAGS, argv, __doc__)
    if not _WORKDIR.value:
        raise UserError("--workdir=DIR is needed")
    every = chosen = ablations() if _SCALE.value == "cpu" else _trained_at("tpu")
    if _ONLY.value is not None:
        if _ONLY.value not in every:
            raise UserError(f"--only={_ONLY.value}: choose one of {', '.join(every)}")
        chosen = {_ONLY.value: every[_ONLY.value]}
    workdir = Path(_WORKDIR.value)
    if _SCALE.value == "tpu":
        commands = {}
        for name, ablation in chosen.items():
            missing = training.missing(ablation, workdir / name)
            if not missing:
                section = training.section(ablation, workdir / name, "tpu")
                (workdir / f"{name}.md").write_text(section)
            commands |= missing
        print("".join(f"{command}\n" for command in commands.values()), end="")
    else:
        run(chosen, workdir)
    sections = [path for name in every if (path := workdir / f"{name}.md").exists()]
    if sections:
        report = workdir / "ablations.md"
        report.write_text("\n".join(path.read_text() for path in sections))
        print(report)


def run(chosen: dict[str, Ablation], workdir: Path) -> None:
    """Runs them one after the other; writes each one's section."""
    models = {  # a mistake is told of before anything runs
        model: find_model_folder(_MODELS[model].value).resolve()
        for ablation in chosen.values()
        for model in ablation.models
    }
    if "t2i" in models:
        write_model_folder(workdir / "t2i", extract_text_to_image(read_model_folder(models["t2i"])))
        models["t2i"] = workdir / "t2i"
    for name, ablation in chosen.items():
        ablation.run(workdir / name, *(models[model] for model in ablation.models))
        (workdir / f"{name}.md").write_text(ablation.section(workdir / name))


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv), "experiments.ablations"))
