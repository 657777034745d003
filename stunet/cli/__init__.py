"""The `stunet` command.

Heavy imports stay inside the functions that need them, so that `--help` and a mistyped command
answer quickly.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from stunet import signals

if os.path.basename(sys.argv[0]) in ("stunet", "-m"):  # this process is the command
    signals.watch("stunet")  # before the other imports, which take a moment

from stunet.cli import convert, evaluate, generation, hub, studio
from stunet.errors import UserError, run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code.

    The code is 0, 2 for a user's mistake or a full disk, or 128 + N after signal N: 130 for
    Ctrl-C, 143 for SIGTERM, 129 for SIGHUP.

    Args:
      argv: Arguments. None uses those of the process.
    """
    argv = sys.argv[1:] if argv is None else argv
    return run_command(lambda: _run(_parser(argv).parse_args(argv)), "stunet")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Reports argparse's own errors as one line, without the usage."""
        raise UserError(f"{message} (see {self.prog} --help)")


def _run(args: argparse.Namespace) -> None:
    args.run(args)


def _parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    parser = _Parser("stunet", description="Text-to-video generation with a Space-Time U-Net.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(
        name: str,
        run: Callable[[argparse.Namespace], None],
        arguments: Callable[[Callable], None] | None = None,
        *,
        help: str,
        description: str,
        epilog: str | None = None,
    ) -> Callable:
        subparser = commands.add_parser(
            name,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            help=help,
            description=description,
            epilog=epilog,
        )
        subparser.set_defaults(run=run)
        # Arguments from tables with heavy imports are added to the selected command only.
        if arguments is not None and name in argv[:1]:
            arguments(subparser.add_argument)
        return subparser.add_argument

    for module in (generation, convert, hub, evaluate, studio):
        module.add_commands(command)
    return parser
