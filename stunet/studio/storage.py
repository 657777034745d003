"""Temporary files: a folder per studio, a quota, removal of unfinished uploads and leftovers."""

import asyncio
import contextlib
import fcntl
import math
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from stunet.errors import UserError
from stunet.studio.access import App, Message, Receive, Refusal, Scope, Send, header, refuse

PREFIX = "stunet-studio-"
LOCK = "studio.lock"  # locked as long as the process of the folder exists
UPLOAD_PATH = "/gradio_api/upload"
MAX_BODY = 2**22  # bytes of a request that is not an upload: texts, numbers and names of uploads
LIFETIME = 24 * 3600.0  # seconds until a result's files are deleted
STALLED_S = 60.0  # an upload that receives nothing for this time has ended

_CLOCK_STEP = 1.0  # seconds by which the times of files may be behind the clock


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """Creates the folder of a studio and deletes it at the end.

    Temporary files of the libraries, such as unfinished uploads, are created in it as well. Folders
    of studios that were killed are deleted first.
    """
    remove_leftovers()
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    default = tempfile.tempdir
    try:
        with _lock(folder):
            tempfile.tempdir = str(folder)
            yield folder
    finally:
        tempfile.tempdir = default
        shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers() -> None:
    """Deletes the folders of this user's studios whose processes no longer exist.

    The system releases a process's lock when the process ends, however it ends. Folders without a
    lock file are kept.
    """
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            state = folder.lstat()
            if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.getuid():
                continue
            lock = os.open(folder / LOCK, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails if a process has it
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


def delete_old_folders(parent: Path, lifetime: float = LIFETIME) -> None:
    """Deletes the folders in a folder that are older than `lifetime` seconds."""
    for folder in parent.glob("*"):
        with contextlib.suppress(FileNotFoundError):  # removed by another job just now
            if time.time() - folder.stat().st_mtime > lifetime:
                shutil.rmtree(folder, ignore_errors=True)


class Storage:
    """The files of a studio and their quota.

    Args:
      folder: Folder of uploads.
      quota: Maximum size of all files together, in bytes.
    """

    def __init__(self, folder: Path, quota: int):
        self.folder, self.quota = folder, quota

    @property
    def results(self) -> Path:
        """Folder of the folders of results."""
        return self.folder / "results"

    def check_room(self, size: int = 0) -> None:
        """Checks that further files fit into the quota, after old results were deleted.

        Args:
          size: Size of the files in bytes.

        Raises:
          UserError: They do not fit.
        """
        delete_old_folders(self.results)
        used = self._used()
        if used + size >= self.quota:
            raise UserError(
                f"temporary files: {used / 2**20:.4g} MiB of uploads and results"
                + (f" and a request of {size / 2**20:.3g} MiB" if size else "")
                + f", expected less than {self.quota / 2**20:.4g} MiB together; "
                "they are deleted after a day"
            )

    def remove_unfinished(self, before: float = math.inf) -> None:
        """Deletes the files of uploads that ended early.

        Args:
          before: Time in seconds since the epoch; files that changed later are kept.
        """
        for path in self.folder.glob("tmp*"):  # names of `tempfile`; Gradio moves complete uploads
            with contextlib.suppress(OSError):
                state = path.lstat()
                if stat.S_ISREG(state.st_mode) and state.st_mtime < before:
                    path.unlink()

    def _used(self) -> int:
        size = 0
        for parent, _, names in os.walk(self.folder):
            for name in names:
                with contextlib.suppress(OSError):  # deleted just now
                    size += os.lstat(os.path.join(parent, name)).st_size
        return size


class UploadQuota:
    """ASGI application that refuses uploads beyond the quota and cleans up after each upload.

    Args:
      app: Application that receives the other requests.
      storage: The files.
    """

    def __init__(self, app: App, storage: Storage):
        self._app, self._storage = app, storage
        self._uploads: dict[object, tuple[float, int]] = {}  # start and size of those in progress

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request, or the start and the end of the server."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self._app(scope, receive, send)
            return
        length = header(scope, b"content-length")
        # Servers bound the body by this number, unless it is sent in chunks.
        is_chunked = bool(header(scope, b"transfer-encoding"))
        if is_chunked or len(length) != 1 or not length[0].isdecimal():
            await refuse(send, Refusal(411, "Content-Length: missing, expected the body's size"))
        elif scope["path"].rstrip("/") != UPLOAD_PATH:
            if int(length[0]) <= MAX_BODY:
                await self._app(scope, receive, send)
            else:
                reason = f"Content-Length: {length[0]} bytes, expected at most {MAX_BODY}"
                await refuse(send, Refusal(413, reason))
        else:
            await self._receive_upload(int(length[0]), scope, receive, send)

    async def _receive_upload(self, size: int, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self._storage.check_room(size + sum(other for _, other in self._uploads.values()))
        except UserError as error:
            await refuse(send, Refusal(413, str(error)))
            return
        key, connection = object(), _Connection(receive)
        self._uploads[key] = time.time(), size
        try:
            await self._app(scope, connection.receive, send)
        except Exception:
            if not connection.has_ended:  # otherwise the application raises because of that
                raise
        finally:
            del self._uploads[key]
            oldest = min((start for start, _ in self._uploads.values()), default=math.inf)
            self._storage.remove_unfinished(oldest - _CLOCK_STEP)


class _Connection:
    """Receives an upload until the client leaves or sends nothing for `STALLED_S` seconds."""

    def __init__(self, receive: Receive):
        self._receive, self.has_ended = receive, False

    async def receive(self) -> Message:
        try:
            message = await asyncio.wait_for(self._receive(), STALLED_S)
        except TimeoutError:
            message = {"type": "http.disconnect"}
        self.has_ended = message["type"] == "http.disconnect"
        return message


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Holds the lock of a folder, which exists under its name only while it is locked."""
    new = folder / f"{LOCK}.new"
    lock = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with contextlib.suppress(OSError):  # without locks, leftovers are kept
            fcntl.flock(lock, fcntl.LOCK_EX)
            new.rename(folder / LOCK)
        yield
    finally:
        os.close(lock)
