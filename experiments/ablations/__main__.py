"""Runs the ablations and writes a report.

    python -m experiments.ablations --workdir=runs/ablations

Starts from the models in the package, unless --t2i, --t2v, --ssr or --style name others.
--only=NAME runs one ablation; --ucf101=FOLDER and --emoji=FOLDER add those on these datasets.
Run the same command again to continue after an interruption. Writes WORKDIR/ablations.md, with the
results of all ablations that have run in WORKDIR, and plots.

    python -m experiments.ablations --scale=tpu --workdir=runs/ablations_tpu

Compares at the paper's size, where each run needs its own TPU slice: prints the commands of all
runs that are not finished in WORKDIR, with the placeholders T2I, FOLDER and UCF101 for the image
model and the datasets, and reports on the ablations whose runs are all finished.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from absl import flags

from experiments.ablations.harness.ablation import Ablation, list_commands, run
from experiments.ablations.table import ABLATIONS
from experiments.common.program_flags import read_flags
from stunet.errors import UserError, run_command
from stunet.paths import write_text
from stunet.weights import shipped
from stunet.weights.find_model import find_model_folder
from stunet.weights.inflation import extract_text_to_image
from stunet.weights.model_folder import read_model_folder, write_model_folder

PLACEHOLDERS = {"t2i": "T2I", "folder": "FOLDER", "ucf101": "UCF101"}  # in commands for TPUs

FLAGS = flags.FlagValues()
_ONLY = flags.DEFINE_string("only", None, "run this ablation; default: all", flag_values=FLAGS)
_MODELS = {
    "t2i": flags.DEFINE_string(
        "t2i",
        shipped.VIDEO_MODEL,
        "start training from this text-to-image model, or from the one in this video model",
        flag_values=FLAGS,
    ),
    "emoji_t2i": flags.DEFINE_string(
        "emoji_t2i",
        shipped.EMOJI_MODEL,
        "start training on emoji from this model, as with --t2i",
        flag_values=FLAGS,
    ),
    "ssr": flags.DEFINE_string(
        "ssr", shipped.UPSCALER, "measure this super-resolution model", flag_values=FLAGS
    ),
    "t2v": flags.DEFINE_string(
        "t2v",
        shipped.VIDEO_MODEL,
        "fine-tune and stylise this text-to-video model",
        flag_values=FLAGS,
    ),
    "style": flags.DEFINE_string(
        "style",
        shipped.STYLE_MODEL,
        "stylise with this model, fine-tuned on data.moving_shapes.duotone",
        flag_values=FLAGS,
    ),
}
_DATASETS = {
    "ucf101": flags.DEFINE_string(
        "ucf101",
        None,
        "train on the videos of UCF-101 in this folder, too; default: leave out that ablation",
        flag_values=FLAGS,
    ),
    "emoji": flags.DEFINE_string(
        "emoji",
        None,
        "train on the emoji built in this folder, too; default: leave out that ablation",
        flag_values=FLAGS,
    ),
}
_SCALE = flags.DEFINE_enum(
    "scale",
    "cpu",
    ("cpu", "tpu"),
    "run tiny models on this machine, or print commands for models of the paper's size",
    flag_values=FLAGS,
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "write runs and the report to this folder; required", flag_values=FLAGS
)
_JOBS = flags.DEFINE_integer(
    "jobs",
    os.cpu_count(),
    "run this many training runs in parallel; default: the number of CPUs",
    lower_bound=1,
    flag_values=FLAGS,
)
_SET = flags.DEFINE_multi_string(
    "set", [], "pass this flag on to the programs that are run", flag_values=FLAGS
)


def main(argv: list[str]) -> None:
    """Runs the selected ablations, or prints their commands, and writes the report."""
    read_flags(FLAGS, argv, __doc__)
    if not _WORKDIR.value:
        raise UserError("--workdir: not set, expected a folder for the runs and the report")
    workdir, scale = Path(_WORKDIR.value), _SCALE.value
    available = {name: ABLATIONS[name] for name in ABLATIONS if _is_available(name, scale)}
    if _ONLY.value is not None and _ONLY.value not in available:
        missing = _missing_datasets(_ONLY.value)
        if scale == "cpu" and missing:
            raise UserError(
                f"--{missing[0]}: not set, {_ONLY.value} needs the folder of the dataset"
            )
        raise UserError(
            f"--only: unknown ablation {_ONLY.value!r} at --scale={scale}, expected one of "
            f"{', '.join(available)}"
        )
    selected = available if _ONLY.value is None else {_ONLY.value: available[_ONLY.value]}
    {"cpu": run_here, "tpu": print_commands}[scale](selected, workdir)
    sections = [path for name in available if (path := workdir / f"{name}.md").exists()]
    if sections:
        report = workdir / "ablations.md"
        write_text(report, "\n".join(path.read_text() for path in sections))
        print(report)


def _missing_datasets(name: str) -> list[str]:
    """Returns the datasets of an ablation that are not set; [] if there is no such ablation."""
    inputs = (ABLATIONS[name].inputs("cpu") or ()) if name in ABLATIONS else ()
    return [dataset for dataset in inputs if dataset in _DATASETS and not _DATASETS[dataset].value]


def _is_available(name: str, scale: str) -> bool:
    """Returns whether the ablation has this scale and its datasets are set."""
    if ABLATIONS[name].inputs(scale) is None:
        return False
    return scale == "tpu" or not _missing_datasets(name)


def run_here(ablations: Mapping[str, Ablation], workdir: Path) -> None:
    """Runs the ablations one after the other and writes the section of each."""
    # Finds all models first, so that a wrong path is reported before the first run.
    names = {name for ablation in ablations.values() for name in ablation.inputs("cpu")}
    inputs = {
        name: find_model_folder(flag.value).resolve()
        for name, flag in _MODELS.items()
        if name in names
    }
    inputs |= {
        name: Path(flag.value).resolve() for name, flag in _DATASETS.items() if name in names
    }
    for name in names & {"t2i", "emoji_t2i"}:
        image_model = extract_text_to_image(read_model_folder(inputs[name]))
        inputs[name] = workdir / name
        write_model_folder(inputs[name], image_model)
    for name, ablation in ablations.items():
        run(ablation, workdir / name, inputs, _SET.value, jobs=_JOBS.value)
        write_text(workdir / f"{name}.md", ablation.report(workdir / name, "cpu"))


def print_commands(ablations: Mapping[str, Ablation], workdir: Path) -> None:
    """Prints the commands that have no result yet; writes the sections of finished ablations."""
    unfinished = {}  # by result, because ablations share runs
    for name, ablation in ablations.items():
        phases = ablation.phases(workdir / name, PLACEHOLDERS, _SET.value, "tpu")
        missing = [command for command in list_commands(phases) if not command.result.exists()]
        if not missing:
            write_text(workdir / f"{name}.md", ablation.report(workdir / name, "tpu"))
        unfinished |= {command.result: command for command in missing}
    print("".join(f"{command.text}\n" for command in unfinished.values()), end="")


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv), "experiments.ablations"))
