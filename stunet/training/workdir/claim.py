"""Exclusive use of a folder by one process."""

import contextlib
import fcntl
import os
from collections.abc import Iterator

from stunet.errors import UserError
from stunet.paths import AnyPath, is_remote


@contextlib.contextmanager
def claim_folder(folder: AnyPath) -> Iterator[None]:
    """Locks a folder against other processes that claim it.

    A folder on disk has to exist. Its lock ends with the block, and with the process if it is
    killed. File systems without locks (some network file systems) lock nothing. A folder in a
    bucket is claimed by a lease that expires (`stunet.training.workdir.lease`).

    Raises:
      UserError: another process has claimed the folder.
    """
    if is_remote(folder):
        from stunet.training.workdir.lease import hold_lease  # needs the extra `gcs`

        with hold_lease(folder):
            yield
        return
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
