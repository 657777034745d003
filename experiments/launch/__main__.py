"""Launches an experiment on a Cloud TPU pod and sees it through preemptions to its end.

    python -m experiments.launch --config=experiments/launch/configs/queued_resources.py --dry-run

With --dry-run it prints every command that it may run, and runs none. Exit codes: 0 the experiment
is done, 1 it failed too often, 2 a mistake (one line says which), 130 broken off by Ctrl-C, which
leaves the experiment running: the same command follows it again.
"""

import shlex
import shutil
import sys

from absl import flags
from ml_collections import config_flags

from experiments.common.program_flags import read_flags
from experiments.launch.commands import plan
from experiments.launch.config import Launch
from experiments.launch.running import Shell, launch
from stunet.errors import UserError, run_command
from stunet.schema import from_dict

FLAGS = flags.FlagValues()
_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "what to launch, and where", flag_values=FLAGS
)
_DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "print the commands instead of running them", flag_values=FLAGS
)
flags.DEFINE_alias("dry-run", "dry_run", flag_values=FLAGS)


def main(argv: list[str]) -> int:
    """Reads the flags, and launches or prints."""
    values = read_flags(FLAGS, argv, __doc__, _CONFIG)
    if values is None:
        raise UserError("--config=FILE is needed; experiments/launch/configs has examples")
    config = from_dict(Launch, values, "config")
    if _DRY_RUN.value:
        for when, command in plan(config):
            print(f"# {when}\n{shlex.join(command)}\n")
        return 0
    for tool in {command[0] for _, command in plan(config)}:
        if shutil.which(tool) is None:
            raise UserError(f"the command '{tool}' is not on the PATH: docs/pods.md installs it")
    try:
        return launch(config, Shell())
    except KeyboardInterrupt:
        print("\nbroken off; what was started goes on and costs", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv), "experiments.launch"))
