"""The one exception for a user's mistake, and how a command reports it."""

import sys
from collections.abc import Callable


class UserError(Exception):
    """A mistake of the user's that one line explains.

    The message names what was wrong, where (a path, a key, a shape), and what
    would be right. Commands print it without a traceback and exit with code 2.
    """


def run_command(command: Callable[[], int | None], name: str) -> int:
    """Runs `command` and returns its exit code; a `UserError` is one line and 2."""
    try:
        return command() or 0
    except UserError as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        return 2
