"""The studio's temporary files: their folder, quota, unfinished uploads and leftovers."""

import asyncio
import fcntl
import os
import tempfile
import time

import pytest

from stunet.errors import UserError
from stunet.studio import storage
from stunet.studio.storage import (
    LOCK,
    MAX_BODY,
    PREFIX,
    UPLOAD_PATH,
    Storage,
    UploadQuota,
    remove_leftovers,
    temporary_folder,
)


@pytest.fixture(autouse=True)
def temp(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_the_folder_is_locked_private_and_deleted_at_the_end(temp):
    with temporary_folder() as folder:
        assert folder.parent == temp and folder.stat().st_mode & 0o077 == 0
        with tempfile.NamedTemporaryFile(delete=False) as file:
            assert os.path.dirname(file.name) == str(folder)
        remove_leftovers()  # those of other studios
        with temporary_folder() as other:
            assert other.parent == folder  # `tempdir` is that of this process
        assert folder.is_dir() and (folder / LOCK).is_file()
    assert not list(temp.iterdir()) and tempfile.gettempdir() == str(temp)


def test_leftovers_of_killed_studios_are_deleted_and_nothing_else(temp):
    kept = {name: temp / name for name in ("other", f"{PREFIX}no_lock", f"{PREFIX}link_as_lock")}
    killed, running = temp / f"{PREFIX}killed", temp / f"{PREFIX}running"
    for folder in (*kept.values(), killed, running):
        (folder / "results").mkdir(parents=True)
        (folder / "results" / "a.mp4").write_bytes(b"video")
    (kept["other"] / LOCK).touch()
    (kept[f"{PREFIX}link_as_lock"] / LOCK).symlink_to(kept["other"] / LOCK)
    (killed / LOCK).touch()
    (temp / f"{PREFIX}link").symlink_to(killed)
    (temp / f"{PREFIX}file").touch()
    with (running / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with temporary_folder():
            assert not killed.exists()
            assert all((f / "results" / "a.mp4").exists() for f in (running, *kept.values()))
            assert (temp / f"{PREFIX}link").is_symlink() and (temp / f"{PREFIX}file").exists()
    remove_leftovers()
    assert not running.exists() and all(folder.exists() for folder in kept.values())


def test_folders_of_other_users_are_kept(temp, monkeypatch):
    folder = temp / f"{PREFIX}theirs"
    folder.mkdir()
    (folder / LOCK).touch()
    monkeypatch.setattr(storage.os, "getuid", lambda: folder.stat().st_uid + 1)
    remove_leftovers()
    assert folder.exists()


def test_the_quota_counts_all_files(temp):
    files = Storage(temp, 1000)
    (temp / "a" / "b").mkdir(parents=True)
    (temp / "a" / "b" / "x").write_bytes(bytes(600))
    files.check_room()
    files.check_room(399)
    for size, extra in ((400, 0), (0, 400)):
        (temp / "tmp1").write_bytes(bytes(extra))
        with pytest.raises(UserError, match=r"temporary files: .*MiB.*expected less than .*MiB"):
            files.check_room(size)


def test_old_results_give_room(temp):
    files = Storage(temp, 1000)
    for name, age in (("old", storage.LIFETIME + 60), ("new", 60)):
        folder = files.results / name
        folder.mkdir(parents=True)
        (folder / "a.mp4").write_bytes(bytes(600))
        os.utime(folder, (0, time.time() - age))
    files.check_room()
    assert names(files.results) == ["new"]


class Uploads:
    """Sends uploads to a `UploadQuota` whose application writes `tmp*` files while it receives."""

    def __init__(self, files):
        self.app = UploadQuota(self.write, files)
        self.folder, self.received, self.on_write = files.folder, [], lambda: None

    async def write(self, scope, receive, send):
        self.received.append(scope["path"])
        partial = self.folder / f"tmp{len(self.received)}"
        partial.touch()
        while (message := await receive())["type"] == "http.request":
            partial.write_bytes(message["body"])
            self.on_write()
            if not message["more_body"]:
                partial.rename(self.folder / f"upload{len(self.received)}")
                await send({"type": "http.response.start", "status": 200, "headers": []})
                await send({"type": "http.response.body", "body": b""})
                return
        raise ConnectionError  # the client has left

    async def upload(self, *messages, path=UPLOAD_PATH, method="POST", length=("10",), more=()):
        """Returns status and body; None without an answer. "stall" receives nothing."""
        sent, left = [], list(messages)

        async def receive():
            if left[0] == "stall":
                await asyncio.sleep(100)
            return left.pop(0)

        async def send(message):
            sent.append(message)

        headers = [(b"content-length", value.encode()) for value in length] + [*more]
        scope = {"type": "http", "method": method, "path": path, "headers": headers}
        await self.app(scope, receive, send)
        return (sent[0]["status"], sent[1]["body"].decode()) if sent else None


PART = {"type": "http.request", "body": b"12345", "more_body": True}
END = {"type": "http.request", "body": b"67890", "more_body": False}
LEFT = {"type": "http.disconnect"}


@pytest.fixture
def uploads(temp):
    return Uploads(Storage(temp, 100))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_unfinished_uploads_are_removed(uploads, temp, monkeypatch):
    assert asyncio.run(uploads.upload(PART, LEFT)) is None
    assert names(temp) == []
    monkeypatch.setattr(storage, "STALLED_S", 0.01)
    assert asyncio.run(uploads.upload(PART, "stall")) is None
    assert names(temp) == []
    (temp / "tmp_folder").mkdir()
    assert asyncio.run(uploads.upload(PART, END)) == (200, "")
    assert names(temp) == ["tmp_folder", "upload3"]


def test_faults_of_the_application_are_raised(uploads, temp):
    uploads.on_write = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        asyncio.run(uploads.upload(PART, END))
    assert names(temp) == []


def test_the_end_of_an_upload_keeps_the_files_of_others(uploads, temp):
    async def run():
        slow = asyncio.create_task(uploads.upload(PART, "stall"))
        await asyncio.sleep(0)
        assert await uploads.upload(PART, LEFT) is None
        found = names(temp)
        slow.cancel()
        await asyncio.gather(slow, return_exceptions=True)
        return found

    assert "tmp1" in asyncio.run(run())
    assert names(temp) == []  # removed with the last one


def test_uploads_beyond_the_quota_are_refused_before_they_are_read(uploads, temp):
    async def run():
        (temp / "result").write_bytes(bytes(50))
        assert (await uploads.upload(PART, END, length=("49",)))[0] == 200
        status, line = await uploads.upload(length=("60",))
        assert status == 413 and line.startswith("temporary files: ") and line.count("\n") == 1
        slow = asyncio.create_task(uploads.upload(PART, "stall", length=("30",)))
        await asyncio.sleep(0)
        assert (await uploads.upload(length=("30",)))[0] == 413  # that of the slow one counts
        slow.cancel()
        await asyncio.gather(slow, return_exceptions=True)
        return await uploads.upload(PART, END, length=("30",))

    assert asyncio.run(run())[0] == 200
    assert len(uploads.received) == 3


@pytest.mark.parametrize("length", [(), ("",), ("-1",), ("1", "1"), ("1e3",)])
def test_requests_of_unknown_size_are_refused(uploads, length):
    for path in (UPLOAD_PATH, "/gradio_api/queue/join"):
        status, line = asyncio.run(uploads.upload(path=path, length=length))
        assert status == 411 and line.startswith("Content-Length: ")
    chunked = [(b"transfer-encoding", b"chunked")]
    assert asyncio.run(uploads.upload(PART, more=chunked))[0] == 411
    assert not uploads.received


def test_other_requests_are_bounded(uploads):
    path = "/gradio_api/queue/join"
    for size, expected in ((MAX_BODY, 200), (MAX_BODY + 1, 413)):
        found = asyncio.run(uploads.upload(END, path=path, length=(str(size),)))
        assert found[0] == expected
    assert asyncio.run(uploads.upload(END, path="/config", method="GET", length=()))[0] == 200
