"""The exception for user errors, and how programs report it."""

import contextlib
import errno
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from stunet import signals

# A full, read-only or failing disk. EFBIG: a file system's or `ulimit -f`'s limit of a file's size.
_DISK_ERRORS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EFBIG,
    errno.EIO,
    errno.EACCES,
    errno.EPERM,
)
# Libraries in C++ report the error as text: "[OS error 28: ENOSPC No space left on device]".
_DISK_REASONS = re.compile("|".join(re.escape(os.strerror(number)) for number in _DISK_ERRORS))


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
      The exit code of `command`; 2 after printing a `UserError`, or the error of a full or
      read-only disk, as one line on stderr; 128 + N after signal N (130 for Ctrl-C), also one line.
    """
    with signals.raising(name):
        code = _run_command(command, name)
        signals.leave(code)
        return code


def _run_command(command: Callable[[], int | None], name: str) -> int:
    try:
        return command() or 0
    except UserError as error:
        text = str(error)
    except KeyboardInterrupt as error:
        return signals.report(error, name)
    except Exception as error:
        reason = disk_error(error)
        if reason is None:
            raise
        path = getattr(error, "filename", None)
        text = f"{path}: {reason}" if path else f"cannot write a file ({reason})"
    print(f"{name}: error: {text}", file=sys.stderr)
    return 2


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Names `path` in errors of the disk.

    Raises:
      UserError: The block failed because the disk is full or read-only.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # libraries raise errors of many types
        reason = disk_error(error)
        if reason is None:
            raise
        raise UserError(
            f"{path}: cannot be written ({reason}); the same command continues once it can"
        ) from error


def disk_error(error: BaseException | None) -> str | None:
    """Returns the reason if a full, read-only or failing disk caused an error, otherwise None."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
            return os.strerror(error.errno)
        if found := _DISK_REASONS.search(str(error)):
            return found[0]
        error = error.__cause__ or error.__context__
    return None
