"""Writes a checkpoint of a training run as a model folder.

    python -m experiments.export --workdir=runs/t2v
    python -m experiments.export --workdir=runs/t2v --step=5000 --out=models/t2v --complete

The end of training writes WORKDIR/model. This program writes it earlier, also of a run that is
still active, or writes another checkpoint. The model has the averaged parameters.

The folder refers to the folder of `init_from` or of the text encoder (`base` in its `config.json`)
for parameters that the run has not changed. --complete stores all parameters, so that the folder
can be copied without the other.
"""

import sys

from absl import flags

from data.pipeline import parse_config
from experiments.common.program_flags import read_flags
from stunet.errors import UserError, run_command
from stunet.paths import user_path
from stunet.training.workdir.checkpoint_tensors import complete_steps, open_averages
from stunet.training.workdir.contents import check_contents
from stunet.training.workdir.resuming import recorded_config
from stunet.training.workdir.run_model import export_model

FLAGS = flags.FlagValues()
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "export a checkpoint of this run", flag_values=FLAGS
)
_STEP = flags.DEFINE_integer(
    "step", None, "export the checkpoint of this step; default: the newest", flag_values=FLAGS
)
_OUT = flags.DEFINE_string(
    "out", None, "write this folder; default: WORKDIR/model", flag_values=FLAGS
)
_COMPLETE = flags.DEFINE_bool(
    "complete",
    False,
    "store all parameters, also those that another folder stores",
    flag_values=FLAGS,
)


def main(argv: list[str]) -> None:
    """Parses the flags and writes the folder."""
    read_flags(FLAGS, argv, __doc__)
    if not _WORKDIR.value:
        raise UserError("--workdir=DIR: missing")
    workdir = user_path(_WORKDIR.value)
    check_contents(workdir)
    config = recorded_config(workdir, parse_config)
    steps = complete_steps(workdir)
    step = max(steps, default=None) if _STEP.value is None else _STEP.value
    if step not in steps:
        found = ", ".join(map(str, steps)) or "none yet"
        raise UserError(f"{workdir}/checkpoints: no step {step}, expected one of: {found}")
    out = user_path(_OUT.value) if _OUT.value else workdir / "model"
    averages = open_averages(workdir / "checkpoints" / str(step))
    export_model(config, workdir / "initial", averages, out, _COMPLETE.value)
    print(f"step {step}: model in {out}")


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv), "experiments.export"))
