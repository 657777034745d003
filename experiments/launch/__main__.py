"""Launches training on a Cloud TPU pod and restarts it after preemptions until it is done.

    python -m experiments.launch --config=experiments/launch/configs/jobset.py | kubectl apply -f -
    python -m experiments.launch --config=experiments/launch/configs/queued_resources.py --dry-run

For launcher "jobset" it prints the manifest of the run, or with --queue_slices that of a queue; the
cluster restarts training. Other launchers run commands, and --dry-run prints all that they may run.

Exit codes: 0 training is done, or the manifest is printed; 1 training failed too often; 2 wrong
usage, described in one line; 130 the launcher was interrupted by Ctrl-C, which leaves training
running: run the same command again to follow it.
"""

import shlex
import shutil
import signal
import sys

import yaml
from absl import flags
from ml_collections import config_flags

from experiments.common.program_flags import read_flags
from experiments.launch.commands import plan
from experiments.launch.config import Launch
from experiments.launch.jobset import jobset, kueue_queue
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
_QUEUE_SLICES = flags.DEFINE_integer(
    "queue_slices",
    None,
    "print a Kueue queue that admits this number of the config's slices at a time, instead of the "
    "run (jobset)",
    lower_bound=1,
    flag_values=FLAGS,
)


def main(argv: list[str]) -> int:
    """Launches the experiment, or prints its manifest or commands; returns the exit code."""
    values = read_flags(FLAGS, argv, __doc__, _CONFIG)
    if values is None:
        raise UserError(
            "--config: not set, expected a file such as experiments/launch/configs/xpk.py"
        )
    config, queue_slices = from_dict(Launch, values, "config"), _QUEUE_SLICES.value
    if config.launcher == "jobset":
        documents = kueue_queue(config, queue_slices) if queue_slices else [jobset(config)]
        print(yaml.safe_dump_all(documents, sort_keys=False, width=1000), end="")
        return 0
    if queue_slices:
        raise UserError(f"--queue_slices={queue_slices}: only for launcher 'jobset'")
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
