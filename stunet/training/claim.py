"""Exclusive use of a folder by one process."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from stunet.errors import UserError


@contextlib.contextmanager
def claim_folder(folder: Path) -> Iterator[None]:
    """Locks an existing folder against other processes that claim it.

    The lock ends with the block, and with the process if it is killed. File systems without locks
    (some network file systems) lock nothing.

    Raises:
      UserError: another process has claimed the folder.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(
                    f"{folder}: in use by another process; wait for its end or choose another "
                    "folder"
                ) from error
        yield
    finally:
        os.close(handle)
