"""The exception for user errors, and how programs report it."""

import contextlib
import errno
import logging
import os
import re
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import PurePath
from typing import Any

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
_LOGGERS = ("absl", "asyncio", "concurrent.futures")  # which libraries log errors of threads to
_FOLLOWS = "Event loop is closed"  # once per array after Orbax failed to write one
# Libraries in C++ report the error as text: "[OS error 28: ENOSPC No space left on device]".
_DISK_REASONS = re.compile("|".join(re.escape(os.strerror(number)) for number in _DISK_ERRORS))


_MAX_MESSAGE = 500  # characters
_TAIL = 180  # of a shortened message, with what is expected


class UserError(Exception):
    """An error in the user's input, explained by one line.

    The message has the form `file or field: what is wrong (value), what is expected`. Programs
    print it without a traceback and exit with code 2. Long messages, such as of a long value, are
    shortened in the middle to 500 characters, and control characters are escaped.
    """

    def __init__(self, message: str):
        super().__init__(_printable_line(message))


def _printable_line(text: str) -> str:
    """Returns a text on one line of limited length that no terminal interprets."""
    if len(text) > _MAX_MESSAGE:  # twice: escaping makes it longer
        text = f"{text[:_MAX_MESSAGE]} ... {text[-_MAX_MESSAGE:]}"
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    if len(line) > _MAX_MESSAGE:
        line = f"{line[: _MAX_MESSAGE - _TAIL - 5]} ... {line[-_TAIL:]}"
    return line


class BucketError(UserError):
    """A failed request to a bucket: missing, no credentials, no permission or no connection."""


def run_command(command: Callable[[], int | None], name: str) -> int:
    """Runs a program and returns its exit code.

    Args:
      command: Main function. Returns an exit code, or None for 0.
      name: Program name, the prefix of error messages.

    Returns:
      The exit code of `command`; 2 after printing a `UserError`, or the error of a full or
      read-only disk, as one line on stderr; 128 + N after signal N (130 for Ctrl-C), also one line;
      141 without a line if nobody reads its output any more.
    """
    with signals.raising(name), _collect_disk_errors() as in_threads:
        code = _run_command(command, name, in_threads)
        if code or signals.received():
            signals.leave(code)
        return code


def _run_command(
    command: Callable[[], int | None], name: str, in_threads: list[BaseException]
) -> int:
    try:
        try:
            code = command() or 0
        except SystemExit:  # --help
            _flush_output()
            raise
        _flush_output()
        if not in_threads or code:
            return code
        text = _describe_disk_error(in_threads[0])
    except UserError as error:
        text = str(error)
    except KeyboardInterrupt as error:
        return signals.report(error, name)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _discard_output():
            return 128 + signal.SIGPIPE
        if disk_error(error) is None:
            raise
        text = _describe_disk_error(error)
    print(f"{name}: error: {text}", file=sys.stderr)
    _discard_output()
    return 2


def _flush_output() -> None:
    """Writes what is buffered while a pipe that nobody reads can still be handled."""
    if sys.stdout is not None:  # closed by `>&-`
        sys.stdout.flush()


def _discard_output() -> bool:
    """Returns whether nobody reads the output any more (`| head`); what is left is discarded."""
    if sys.stdout is None:
        return False
    poll = select.poll()
    try:
        poll.register(sys.stdout, select.POLLOUT)
    except (OSError, ValueError):  # not a file, as in tests
        return False
    closed = any(event & select.POLLERR for _, event in poll.poll(0))
    if closed:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return closed


def _describe_disk_error(error: BaseException) -> str:
    path, reason = getattr(error, "filename", None), disk_error(error)
    return f"{path}: {reason}" if path else f"a file cannot be written ({reason})"


@contextlib.contextmanager
def _collect_disk_errors() -> Iterator[list[BaseException]]:
    """Collects disk errors that Python would print, such as those of threads."""
    found: list[BaseException] = []

    def collecting(hook: Callable) -> Callable:
        def handle(arguments: Any) -> None:
            if disk_error(arguments.exc_value):
                found.append(arguments.exc_value)
            elif str(arguments.exc_value) != _FOLLOWS:
                hook(arguments)

        return handle

    def is_other(record: logging.LogRecord) -> bool:
        return not (record.exc_info and disk_error(record.exc_info[1]))

    loggers = [logging.getLogger(name) for name in _LOGGERS]
    for logger in loggers:
        logger.addFilter(is_other)
    hooks = threading.excepthook, sys.unraisablehook
    threading.excepthook, sys.unraisablehook = map(collecting, hooks)
    try:
        yield found
    finally:
        threading.excepthook, sys.unraisablehook = hooks
        for logger in loggers:
            logger.removeFilter(is_other)


@contextlib.contextmanager
def writing(path: str | PurePath) -> Iterator[None]:
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
