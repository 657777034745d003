"""Runs the commands of the gallery again, from the checkout's root.

    python -m experiments.gallery

Each `stunet` line of docs/gallery.md, in order, which writes the pictures there; masks stay.
"""

import shlex
import sys
from pathlib import Path

from absl import flags

from experiments.common.program_flags import read_flags
from stunet.cli import main as stunet
from stunet.errors import UserError, run_command

FLAGS = flags.FlagValues()  # only --help
PAGE = Path("docs/gallery.md")


def commands(page: Path) -> list[list[str]]:
    """The arguments of every `stunet` command of a page.

    Raises:
      UserError: there is no such page here.
    """
    if not page.is_file():
        raise UserError(f"{page}: not found; run this from the root of a checkout")
    lines = page.read_text(encoding="utf-8").splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith("stunet ")]


def main(argv: list[str]) -> int:
    """Runs them until one fails; returns that one's exit code, or 0."""
    read_flags(FLAGS, argv, __doc__)
    if argv[1:]:
        raise UserError(f"takes no arguments, got {' '.join(argv[1:])}")
    for command in commands(PAGE):
        print("stunet", shlex.join(command), flush=True)
        if code := stunet(command):
            return code
    return 0


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv), "experiments.gallery"))
