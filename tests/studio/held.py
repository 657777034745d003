"""`stunet studio`, whose jobs stay at the step that they are at while there is a file.

python -m tests.studio.held FILE ARGUMENTS
"""

import signal
import sys
import time
from pathlib import Path

from stunet import cli
from stunet.studio.jobs import Job


def main(file: Path, arguments: list[str]) -> int:
    """The command's exit code."""
    report = Job._report

    def held(job, progress):
        report(job, progress)
        while progress.done and file.exists():
            time.sleep(0.02)
            report(job, progress)  # a cancelled job ends here, as it does at every step

    Job._report = held
    # In the background of a script Ctrl-C is ignored, and with it the signal that the tests send.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return cli.main(["studio", *arguments])


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
