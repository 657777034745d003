"""Growing log files on disk and in a bucket."""

import threading

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

from stunet.errors import UserError
from stunet.paths import user_path
from stunet.training.logs import log_files, metrics
from stunet.training.logs.log_files import BucketFile, growing_file, read_lines, replace_lines
from stunet.training.logs.metrics import MetricsLog, join_parts, read_metrics


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_disk(tmp_path):
    path = tmp_path / "log.txt"
    assert read_lines(path) == []
    replace_lines(path, ["1\r\n", "2\r\n"])
    file = growing_file(path)
    file.append(b"3\r\n")
    file.append(b"4")
    assert path.read_bytes() == b"1\r\n2\r\n3\r\n4"
    assert read_lines(path) == ["1\r\n", "2\r\n", "3\r\n"]
    assert names(tmp_path) == ["log.txt"]


def test_bucket(bucket):
    path = user_path(bucket) / "run/log.txt"
    assert read_lines(path) == []
    replace_lines(path, ["0\n"])
    file = BucketFile(path, part_bytes=8)
    for number in range(1, 12):
        file.append(f"{number}\n".encode())
    file.flush()
    assert names(path.parent) == ["log.txt"] + [f"log.txt.{i:04d}" for i in (1, 2, 3)]
    assert (path.parent / "log.txt.0001").read_bytes() == b"1\n2\n3\n4\n"
    lines = [f"{number}\n" for number in range(12)]
    assert read_lines(path) == lines
    replace_lines(path, lines)
    assert names(path.parent) == ["log.txt"] and read_lines(path) == lines
    # Killed after the parts were joined and before they were deleted.
    (path.parent / "log.txt.0001").write_bytes(b"1\n2\n3\n4\n")
    assert read_lines(path) == lines


def test_uploads_do_not_block(monkeypatch, bucket):
    """While an upload is under way, later bytes wait for the next one."""
    begun, finish, written = threading.Event(), threading.Event(), []

    def slow_write(path, content):
        written.append(content)
        begun.set()
        assert finish.wait(10)

    monkeypatch.setattr(log_files, "write_bytes", slow_write)
    file = growing_file(user_path(bucket) / "log")
    file.append(b"a")
    assert begun.wait(10)
    for data in (b"b", b"c"):
        file.append(data)
    assert written == [b"a"]
    finish.set()
    file.flush()
    assert written == [b"a", b"abc"]
    file.flush()
    assert len(written) == 2


def test_a_failed_upload_is_reported(monkeypatch, bucket):
    def fail(path, content):
        raise UserError(f"{path}: no permission")

    monkeypatch.setattr(log_files, "write_bytes", fail)
    file = growing_file(user_path(bucket) / "log")
    file.append(b"a")
    with pytest.raises(UserError, match=r"gs://.*/log.0001: no permission"):
        file.flush()


def test_metrics_in_a_bucket_equal_those_on_disk(bucket, tmp_path):
    """Killed twice, resumed from checkpoints and finished, with rows in parts."""
    remote = user_path(bucket) / "run"
    for workdir, sessions in ((tmp_path, [(0, 9)]), (remote, [(0, 5), (3, 6), (6, 9)])):
        for start, end in sessions:
            log = MetricsLog(workdir, start)
            for step in range(start + 1, end + 1):
                log.add(step, {"loss": np.float32(step / 3), "grad_norm": np.float32(step)})
                log.write()
            log.add_video("video", np.zeros((2, 4, 4, 3), np.uint8), 8.0, end)
            log.flush()
    assert [row["step"] for row in read_metrics(remote / "metrics.csv")] == list(range(1, 10))
    assert names(remote)[:2] == ["metrics.csv", "metrics.csv.0001"]
    metrics.plot_loss(remote)
    assert (remote / "loss.png").read_bytes().startswith(b"\x89PNG")
    join_parts(remote)
    assert names(remote) == ["loss.png", "metrics.csv", "tensorboard"]
    assert (remote / "metrics.csv").read_bytes() == (tmp_path / "metrics.csv").read_bytes()
    steps = []
    for number, event_file in enumerate(sorted((remote / "tensorboard").iterdir())):
        (tmp_path / f"{number}.tfevents").write_bytes(event_file.read_bytes())
        loader = LegacyEventFileLoader(str(tmp_path / f"{number}.tfevents"))
        steps.append([event.step for event in loader.Load() if event.summary.value])
    assert steps == [[1, 2, 3, 4, 5, 5], [4, 5, 6, 6], [7, 8, 9, 9]]
