"""Claims of folders: locks on disk, leases in a bucket."""

import dataclasses
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from stunet.errors import UserError
from stunet.paths import user_path
from stunet.training.workdir.claim import claim_folder

HOLD = """
import sys, time
from stunet.paths import user_path
from stunet.training.workdir.claim import claim_folder
with claim_folder(user_path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(params=["disk", "bucket"])
def folder(request, tmp_path):
    if request.param == "disk":
        return tmp_path
    return user_path(request.getfixturevalue("bucket")) / "run"


def lease_of(folder):
    return json.loads((folder / "lease.json").read_text())


def test_a_claimed_folder_is_refused_and_the_claim_ends_with_its_process(folder):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match=f"^{folder}: in use") as refusal, claim_folder(folder):
            pass
        if str(folder).startswith("gs://"):
            lease = lease_of(folder)
            assert lease["pid"] == process.pid
            assert all(
                str(lease[name]) in str(refusal.value) for name in ("pid", "host", "expires")
            )
        process.send_signal(signal.SIGKILL)
        process.wait()
    finally:
        process.kill()
        process.stdout.close()
    with claim_folder(folder):  # the holder is dead
        pass
    assert not folder.exists() or list(folder.iterdir()) == []


@pytest.fixture
def remote(bucket):
    return user_path(bucket) / "run"


def put_lease(folder, seconds, **changes):
    """Writes the lease of a process of another machine."""
    from stunet.training.workdir.lease import Holder

    holder = Holder(
        key="k", host="other", pid=1, process="", started="2026-11-29T12:00:00Z", expires=""
    )
    values = dataclasses.asdict(holder.renewed(seconds)) | changes
    (folder / "lease.json").write_text(json.dumps(values))


def test_the_lease_of_another_machine_counts_until_it_expires(remote, capsys):
    put_lease(remote, 3)
    with claim_folder(remote):
        assert lease_of(remote)["pid"] == os.getpid()
    assert capsys.readouterr().err.startswith(f"{remote}: in use by process 1 of other since")


def test_a_lease_that_another_machine_renews_is_refused(remote):
    put_lease(remote, 30)
    renewal = threading.Timer(0.3, put_lease, (remote, 31))
    renewal.start()
    refusal = pytest.raises(UserError, match="process 1 of other since 2026-11-29T12:00:00Z")
    with refusal, claim_folder(remote):
        pass
    renewal.join()
    assert lease_of(remote)["host"] == "other"


def test_a_lease_is_renewed_and_a_stolen_one_reported(remote):
    from stunet.training.workdir.lease import hold_lease

    lost = queue.Queue()
    with hold_lease(remote, seconds=0.4, on_lost=lost.put):
        first = lease_of(remote)
        time.sleep(1.2)  # expiry is stored in seconds
        assert lease_of(remote)["expires"] > first["expires"] and lost.empty()
        put_lease(remote, 30)
        assert lost.get(timeout=5).startswith(f"{remote}: lost to another run: in use by process 1")
    assert lease_of(remote)["host"] == "other"  # not deleted


LOSE = """
import sys, time
from stunet.paths import user_path
from stunet.training.workdir.lease import hold_lease
with hold_lease(user_path(sys.argv[1]), seconds=0.4):
    (user_path(sys.argv[1]) / "lease.json").unlink()
    time.sleep(60)
"""


def test_a_program_that_loses_its_lease_ends_with_one_line(remote):
    run = subprocess.run(
        [sys.executable, "-c", LOSE, str(remote)], capture_output=True, text=True, timeout=50
    )
    assert run.returncode == 2
    assert run.stderr == f"error: {remote}: lost to another run: the lease was deleted\n"


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"expires": "soon"}'])
def test_a_damaged_lease_is_reported(remote, content):
    (remote / "lease.json").write_text(content)
    with pytest.raises(UserError, match=f"^{remote}/lease.json: damaged"), claim_folder(remote):
        pass
    assert (remote / "lease.json").read_text() == content


def test_of_two_processes_that_claim_at_the_same_time_one_succeeds(remote, monkeypatch):
    from stunet.training.workdir import lease

    read = lease._Lease._read

    others = iter([{"host": socket.gethostname(), "process": lease.process_identity(os.getpid())}])

    def read_and_lose(self):
        answer = read(self)
        for other in others:  # after this process has seen that there is no lease
            put_lease(remote, 30, pid=os.getpid(), **other)
        return answer

    monkeypatch.setattr(lease._Lease, "_read", read_and_lose)
    refusal = pytest.raises(UserError, match=f"in use by process {os.getpid()}")
    with refusal, claim_folder(remote):
        pass


def test_a_bucket_that_does_not_exist(bucket_server):
    folder = user_path("gs://no-such-bucket/run")
    with pytest.raises(UserError, match=f"^{folder}/lease.json: "), claim_folder(folder):
        pass
