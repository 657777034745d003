"""Runs `experiments.train` in a process that cannot read the newest checkpoint."""

import sys

from experiments.train import main
from stunet.errors import run_command
from stunet.training.workdir.checkpoints import Checkpoints

_read = Checkpoints._read


def fail_on_newest(checkpoints, step, *args):
    if step == checkpoints._manager.latest_step():
        raise OSError("a failed disk")
    return _read(checkpoints, step, *args)


if __name__ == "__main__":
    Checkpoints._read = fail_on_newest
    sys.exit(run_command(lambda: main(sys.argv), "experiments.train"))
