"""Exclusive use of a folder in a bucket, which has no locks, by an object that expires.

`lease.json` names its holder and the time at which it expires. The holder renews it in a thread and
deletes it at the end. It is created and replaced with a generation precondition: of two processes
that write at the same time, Google Cloud Storage accepts one.

A killed process leaves its lease. The next one on the same machine notices that the holder is dead,
and takes the lease over. On another machine it waits: until the lease expires, or until the holder
renews it and thus shows that it is alive. Clocks must agree within seconds
(`experiments.pod_check`).
"""

import contextlib
import dataclasses
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NoReturn

import requests
from google.api_core.exceptions import GoogleAPIError, NotFound, PreconditionFailed
from google.auth.exceptions import GoogleAuthError
from google.cloud import storage
from google.cloud.storage.retry import DEFAULT_RETRY

from stunet.errors import UserError
from stunet.paths import AnyPath

LEASE_FILE = "lease.json"
LEASE_S = 60.0
"""Lifetime of a lease in seconds; it is renewed four times as often."""

_ERRORS = (GoogleAPIError, GoogleAuthError, requests.RequestException)
_TIMEOUT_S = 10.0  # of a request
_RETRY = DEFAULT_RETRY.with_timeout(30.0)
_NEW = 0  # generation of an object that does not exist


@dataclasses.dataclass(frozen=True, kw_only=True)
class Holder:
    """The content of a lease.

    Attributes:
      key: Random name of the lease, which tells apart two leases of one process.
      host: Name of the machine.
      pid: Process number.
      process: Identity of the process among all of this machine's (`process_identity`).
      started: Time at which the folder was claimed, ISO 8601.
      expires: Time at which the lease ends unless it is renewed, ISO 8601.
    """

    key: str
    host: str
    pid: int
    process: str
    started: str
    expires: str

    def renewed(self, seconds: float) -> "Holder":
        """Returns a copy that expires `seconds` from now."""
        expires = datetime.now(UTC) + timedelta(seconds=seconds)
        return dataclasses.replace(self, expires=_iso(expires))

    def is_over(self) -> bool:
        """Returns whether the lease has expired, or its holder ran on this machine and is dead."""
        if datetime.fromisoformat(self.expires) <= datetime.now(UTC):
            return True
        return self._ran_here() and process_identity(self.pid) != self.process

    def is_alive_here(self) -> bool:
        """Returns whether the holder is a running process of this machine."""
        return self._ran_here() and process_identity(self.pid) == self.process

    def _ran_here(self) -> bool:
        machine, own = self.process.rpartition(" ")[0], process_identity(os.getpid())
        return machine != "" and machine == own.rpartition(" ")[0] and self.host == _host()


def process_identity(pid: int) -> str:
    """Returns what distinguishes a process from all others: "BOOT NAMESPACE START".

    BOOT is the id of the machine's boot, NAMESPACE that of the process numbers (a container has its
    own), START the process's start in clock ticks since the boot; "dead" if there is no such
    process. Empty where there is no /proc (macOS).
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
    try:
        # The name of the program, in brackets, may contain spaces.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return f"{boot} {namespace} dead"
    is_zombie = fields[0] in "ZX"
    return f"{boot} {namespace} {'dead' if is_zombie else fields[19]}"


@contextlib.contextmanager
def hold_lease(
    folder: AnyPath, seconds: float = LEASE_S, on_lost: Callable[[str], None] | None = None
) -> Iterator[None]:
    """Holds the lease of a folder in a bucket for the duration of the block.

    Args:
      folder: Folder in a bucket.
      seconds: Lifetime of the lease.
      on_lost: Called in a thread with a line for the user if another process has taken or deleted
        the lease. None prints the line and ends this process immediately with exit code 2, so that
        it writes nothing more.

    Raises:
      UserError: another process holds the lease (names it and the expiry; up to `seconds` / 4
        later, if it runs on another machine), the lease is damaged, or the bucket cannot be read
        and written.
    """
    lease = _Lease(folder, seconds)
    lease.acquire()
    stop = threading.Event()
    thread = threading.Thread(
        target=lease.keep, args=(stop, on_lost or _end_process), name="lease", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        lease.release()


class _Lease:
    """The lease of this process on a folder."""

    def __init__(self, folder: AnyPath, seconds: float):
        self._folder, self._seconds = folder, seconds
        self._path = folder / LEASE_FILE
        bucket, _, name = str(self._path).removeprefix("gs://").partition("/")
        with self._reporting():
            # Without a project, which is needed for lists of buckets only.
            self._blob = storage.Client(project=None).bucket(bucket).blob(name)
        self._holder = Holder(
            key=uuid.uuid4().hex,
            host=_host(),
            pid=os.getpid(),
            process=process_identity(os.getpid()),
            started=_iso(datetime.now(UTC)),
            expires="",
        )
        self._generation: int | None = None  # None: not held

    def acquire(self) -> None:
        """Writes the lease; raises a `UserError` if another process holds it."""
        seen: int | None = None
        while True:
            with self._reporting():
                holder, generation = self._read()
                if holder is None or holder.is_over():
                    self._generation = self._write(generation)
                    if self._generation is not None:
                        return
                    continue  # another process was faster
            if holder.is_alive_here() or seen not in (None, generation):
                text = f"{self._folder}: {_describe(holder)}; wait, or choose another folder"
                raise UserError(text)
            if seen is None:
                print(f"{self._folder}: {_describe(holder)}; waiting", file=sys.stderr)
            seen = generation
            time.sleep(min(1.0, self._seconds / 20))

    def keep(self, stop: threading.Event, on_lost: Callable[[str], None]) -> None:
        """Renews the lease until `stop` is set."""
        while not stop.wait(self._seconds / 4):
            try:
                self._generation = self._write(self._generation)
                if self._generation is None:
                    holder, _ = self._read()
                    on_lost(f"{self._folder}: lost to another run: {_describe(holder)}")
                    return
            except UserError as error:  # another program has replaced the lease
                on_lost(str(error))
                return
            except _ERRORS:  # tried again
                continue

    def release(self) -> None:
        """Deletes the lease, unless another process has it."""
        if self._generation is not None:
            with contextlib.suppress(*_ERRORS):  # it expires
                self._blob.delete(
                    if_generation_match=self._generation, timeout=_TIMEOUT_S, retry=_RETRY
                )

    def _write(self, generation: int) -> int | None:
        """Replaces a generation of the lease; returns the new one, or None if it has changed."""
        self._holder = self._holder.renewed(self._seconds)
        content = json.dumps(dataclasses.asdict(self._holder), indent=2) + "\n"
        try:
            self._blob.upload_from_string(
                content,
                "application/json",
                if_generation_match=generation,
                timeout=_TIMEOUT_S,
                retry=_RETRY,
            )
            return self._blob.generation
        except PreconditionFailed:
            # A request whose answer was lost is sent a second time, and then fails.
            holder, found = self._read()
            return found if holder is not None and holder.key == self._holder.key else None

    def _read(self) -> tuple[Holder | None, int]:
        """Returns the holder, None if there is no lease, and the object's generation."""
        while True:
            blob = self._blob.bucket.get_blob(self._blob.name, timeout=_TIMEOUT_S, retry=_RETRY)
            if blob is None:
                return None, _NEW
            with contextlib.suppress(NotFound):  # replaced or deleted after the request above
                content = blob.download_as_bytes(timeout=_TIMEOUT_S, retry=_RETRY)
                return self._parse(content), blob.generation

    def _parse(self, content: bytes) -> Holder:
        try:
            values: dict[str, Any] = json.loads(content)
            holder = Holder(**{f.name: values[f.name] for f in dataclasses.fields(Holder)})
            datetime.fromisoformat(holder.expires).astimezone(UTC)
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"{self._path}: damaged lease ({error}), expected host, pid and expiry; delete it "
                "if no run uses the folder"
            ) from error
        return holder

    @contextlib.contextmanager
    def _reporting(self) -> Iterator[None]:
        try:
            yield
        except _ERRORS as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"{self._path}: cannot be written ({reason}), expected a bucket and permission to "
                "read, write and delete"
            ) from error


def _describe(holder: Holder | None) -> str:
    if holder is None:
        return "the lease was deleted"
    return (
        f"in use by process {holder.pid} of {holder.host} since {holder.started}; its lease "
        f"expires at {holder.expires} unless it is renewed"
    )


def _end_process(line: str) -> NoReturn:
    os.write(2, f"error: {line}\n".encode())
    os._exit(2)


def _host() -> str:
    return socket.gethostname()


def _iso(time: datetime) -> str:
    return time.isoformat(timespec="seconds").replace("+00:00", "Z")
