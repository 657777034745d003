"""`stunet studio`, with jobs that pause after their first step while a file exists.

python -m tests.studio.pausable_studio FILE ARGUMENTS
"""

import signal
import sys
import time
from pathlib import Path

from stunet import cli
from stunet.studio.jobs import Job


def main(pause: Path, arguments: list[str]) -> int:
    """Runs the command and returns its exit code."""
    report = Job._report

    def pausing_report(job, status):
        report(job, status)
        while status.done and pause.exists():
            time.sleep(0.02)
            report(job, status)  # raises if the job is cancelled, as after every step

    Job._report = pausing_report
    # Shells ignore Ctrl-C in background scripts, and thus the signal that the tests send.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return cli.main(["studio", *arguments])


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
