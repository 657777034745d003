"""Runs the commands of docs/gallery.md.

    python -m experiments.gallery

Runs each `stunet` line of the page in order, from the root of a checkout. The commands overwrite
the page's pictures but not its masks.
"""

import shlex
import sys
from pathlib import Path

from absl import flags

from experiments.common.program_flags import read_flags
from stunet.cli import main as stunet
from stunet.errors import UserError, run_command

FLAGS = flags.FlagValues()  # --help only
PAGE = Path("docs/gallery.md")


def commands(page: Path) -> list[list[str]]:
    """Returns the arguments of each `stunet` command of a page.

    Raises:
      UserError: The page does not exist.
    """
    if not page.is_file():
        raise UserError(f"{page}: not found, expected the root of a checkout as working directory")
    lines = page.read_text(encoding="utf-8").splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith("stunet ")]


def main(argv: list[str]) -> int:
    """Runs all commands; stops at the first that fails and returns its exit code, else 0."""
    read_flags(FLAGS, argv, __doc__)
    if argv[1:]:
        raise UserError(f"arguments: got {' '.join(argv[1:])!r}, expected none")
    for command in commands(PAGE):
        print("stunet", shlex.join(command), flush=True)
        if code := stunet(command):
            return code
    return 0


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv), "experiments.gallery"))
