"""Launches training on a Cloud TPU pod and restarts it after preemptions until it is done.

    python -m experiments.launch --config=experiments/launch/configs/queued_resources.py --dry-run

--dry-run prints all commands that the launcher may run, and runs none. Exit codes: 0 training is
done; 1 it failed too often; 2 wrong usage, described in one line; 130 the launcher was interrupted
by Ctrl-C, which leaves training running: run the same command again to follow it.
"""

import shlex
import shutil
import signal
import sys

from absl import flags
from ml_collections import config_flags

from experiments.common.program_flags import read_flags
from experiments.launch.commands import plan
from experiments.launch.config import Launch
from experiments.launch.runner import Shell, launch
from stunet.errors import UserError, run_command
from stunet.schema import from_dict

FLAGS = flags.FlagValues()
_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "launch the experiment of this config file; required", flag_values=FLAGS
)
_DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "print the commands instead of running them", flag_values=FLAGS
)
flags.DEFINE_alias("dry-run", "dry_run", flag_values=FLAGS)


def main(argv: list[str]) -> int:
    """Launches the experiment, or prints the commands; returns the exit code."""
    values = read_flags(FLAGS, argv, __doc__, _CONFIG)
    if values is None:
        raise UserError(
            "--config: not set, expected a file such as experiments/launch/configs/xpk.py"
        )
    config = from_dict(Launch, values, "config")
    if _DRY_RUN.value:
        for when, command in plan(config):
            print(f"# {when}\n{shlex.join(command)}\n")
        return 0
    for tool in {command[0] for _, command in plan(config)}:
        if shutil.which(tool) is None:
            raise UserError(
                f"{tool}: command not found on PATH; docs/pods.md describes how to install it"
            )
    try:
        return launch(config, Shell())
    except KeyboardInterrupt as error:
        print("\ninterrupted; training continues and the TPU is billed", file=sys.stderr)
        return 128 + getattr(error, "number", signal.SIGINT)


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv), "experiments.launch"))
