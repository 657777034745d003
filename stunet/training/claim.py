"""A folder that one process has to itself."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from stunet.errors import UserError


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Keeps an existing folder from others who would claim it; a killed process's claim ends too.

    Raises:
      UserError: another process has claimed it.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        # Some network file systems know no locks: there nobody is kept out.
        with contextlib.suppress(OSError):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(
                    f"{folder}: another process is at work there; wait until it has ended, or "
                    "choose another folder"
                ) from error
        yield
    finally:
        os.close(handle)
