"""The exception for user errors, and how programs report it."""

import sys
from collections.abc import Callable


class UserError(Exception):
    """An error in the user's input, explained by one line.

    The message has the form `file or field: what is wrong (value), what is expected`. Programs
    print it without a traceback and exit with code 2.
    """


def run_command(command: Callable[[], int | None], name: str) -> int:
    """Runs a program and returns its exit code.

    Args:
      command: Main function. Returns an exit code, or None for 0.
      name: Program name, the prefix of error messages.

    Returns:
      The exit code of `command`, or 2 after printing a `UserError` as one line on stderr.
    """
    try:
        return command() or 0
    except UserError as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        return 2
