"""The `stunet` command.

Heavy imports stay inside the functions that need them, so that `--help` and a mistyped
argument answer at once.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from stunet.cli import applications, convert, evaluate, making, studio
from stunet.errors import UserError, run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code: 0, 2 for a user's mistake, 130 for Ctrl-C."""
    try:
        return run_command(lambda: _run(_parser().parse_args(argv)), "stunet")
    except KeyboardInterrupt:
        print("stunet: cancelled", file=sys.stderr)
        return 130


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Argparse's own errors as one line, without the usage above."""
        raise UserError(f"{message} (see {self.prog} --help)")


def _run(args: argparse.Namespace) -> None:
    args.run(args)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser("stunet", description="Text-to-video generation with a Space-Time U-Net.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, run: Callable[[argparse.Namespace], None], **texts: str) -> Callable:
        one = commands.add_parser(
            name, formatter_class=argparse.RawDescriptionHelpFormatter, **texts
        )
        one.set_defaults(run=run)
        return one.add_argument

    for module in (making, applications, convert, evaluate, studio):
        module.add_commands(command)
    return parser
