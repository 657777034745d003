import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from data import pipeline, records
from data.parts import build_locally, read_results
from data.sources import MediaFile
from data.stored_clips import StoredClipsConfig
from experiments.verify import verify
from stunet.checksums import CHECKSUMS
from stunet.errors import UserError
from stunet.video_io import write_video
from tests.data.tiny_clips import config_for, read_all, tokenize, write_clips


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source") / "clips"
    write_clips(folder, 12)
    return folder


@pytest.fixture(scope="module")
def built(source, tmp_path_factory):
    """A dataset of six parts."""
    return pipeline.prepare(config_for(source, tmp_path_factory.mktemp("datasets"), part_size=2))


def batches(config, count=10, **arguments):
    iterator = pipeline.make_batches(config, tokenize, batch_size=6, **arguments)
    return [next(iterator) for _ in range(count)]


def assert_equal(found, expected):
    for batch, other in zip(found, expected, strict=True):
        assert batch.keys() == other.keys()
        for name in batch:
            np.testing.assert_array_equal(batch[name], other[name], err_msg=name)


def test_parts_are_joined_in_order(built):
    records = pipeline.open_records(built)
    files = [records[index]["file"].decode() for index in range(len(records))]
    names = sorted(f"{index}.mp4" for index in range(12))  # as in the source
    assert len(files) == 12
    for part in range(6):
        assert sorted(files[2 * part : 2 * part + 2]) == names[2 * part : 2 * part + 2]
    with pytest.raises(IndexError):
        records[12]
    assert sorted(pipeline.captions(built)) == sorted(f"clip {index}" for index in range(12))


def test_workers_and_part_builders_give_equal_records(built, source, tmp_path):
    config = config_for(source, tmp_path, part_size=2)
    parallel = pipeline.prepare(config, build_locally(2))
    assert parallel.dataset == built.dataset
    assert read_all(parallel) == read_all(built)


def test_worker_processes_yield_equal_batches(built):
    expected = batches(built)
    assert expected[0]["video"].dtype == np.uint8
    assert_equal(batches(replace(built, workers=3)), expected)
    assert_equal(batches(replace(built, workers=2), 3, start_step=4), expected[4:7])


def test_encoded_clips_are_near_raw_ones(built, source, tmp_path):
    raw = pipeline.prepare(config_for(source, tmp_path, storage="raw"))
    encoded = pipeline.prepare(config_for(source, tmp_path))
    assert raw.dataset != encoded.dataset
    found = []
    for first, second in zip(batches(raw), batches(encoded), strict=True):
        np.testing.assert_array_equal(first["tokens"], second["tokens"])
        difference = first["video"].astype(float) - second["video"]
        found.append(10 * np.log10(255**2 / (difference**2).mean()))
    assert min(found) > 35


@pytest.mark.parametrize("storage", ["raw", "encoded"])
def test_crops_are_part_of_whole_frames(source, tmp_path, storage):
    config = pipeline.prepare(config_for(source, tmp_path, storage=storage))
    (whole,), (parts,) = (batches(replace(config, crop=crop), 1) for crop in (None, 5))
    assert parts["video"].shape == (6, 8, 5, 5, 3)
    for clip, part in zip(whole["video"], parts["video"], strict=True):
        places = [(top, left) for top in range(12) for left in range(12)]
        assert any(np.array_equal(clip[:, y : y + 5, x : x + 5], part) for y, x in places)


def test_reading_needs_the_name_only(built, source):
    by_name = replace(built, source="")
    assert pipeline.prepare(by_name) == by_name
    assert_equal(batches(by_name, 2), batches(built, 2))
    listed = config_for(source, "unused", part_size=2)
    assert pipeline.fingerprint(by_name) == pipeline.fingerprint(listed)
    for field, value, expected in (
        ("resolution", 32, "32.* 16"),
        ("fps", 4.0, "4.0.* 8"),
        ("num_frames", 9, "9.*at most 8"),
        ("scene_cuts", True, "True.*False"),
        ("filter", "score>1", "'score>1'.*None"),
        ("storage", "raw", "'raw'.*'encoded'"),
    ):
        with pytest.raises(UserError, match=f"config.data.{field}: {expected}.*{built.dataset}"):
            pipeline.prepare(replace(by_name, **{field: value}))
    assert pipeline.prepare(replace(by_name, num_frames=1)).num_frames == 1


def test_unknown_names_list_the_known_ones(built, source):
    with pytest.raises(UserError, match=f"config.data.source: empty.*{built.dataset}"):
        pipeline.prepare(replace(built, source="", dataset="absent"))
    with pytest.raises(UserError, match=f"'absent'.*{built.dataset}"):
        pipeline.prepare(replace(built, dataset="absent"))


def test_the_manifest_identifies_content_and_settings(built, source, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in source.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    name = built.dataset

    def named(**changes):
        return pipeline.fingerprint(config_for(copy, tmp_path, **{"part_size": 2, **changes}))

    assert named() == f"video_folder/{name}"
    os.utime(copy / "captions.csv", (1, 1))
    os.utime(copy / "0.mp4", (1, 1))
    assert named() == f"video_folder/{name}"
    changed = [
        named(part_size=3),
        named(storage="raw"),
        named(min_motion=1.0),
        named(scene_cuts=True),
        named(fps=4.0),
    ]
    table = (copy / "captions.csv").read_text()
    (copy / "captions.csv").write_text(table.replace("clip 3", "clip three"))
    changed.append(named())
    (copy / "captions.csv").write_text(table)
    content = bytearray((copy / "0.mp4").read_bytes())
    content[-1] ^= 1
    (copy / "0.mp4").write_bytes(content)
    changed.append(named())
    assert len({f"video_folder/{name}", *changed}) == 8


def test_results_list_source_and_captions(built, source):
    results = list(read_results(built.folder(), 0))
    assert [(r.name, r.captions, r.segments, r.problem) for r in results] == [
        ("0.mp4", ("clip 0",), 1, None),
        ("1.mp4", ("clip 1",), 1, None),
    ]
    assert results[0].content == MediaFile(source / "0.mp4").digest()
    manifest = json.loads((built.folder() / "manifest.json").read_text())
    assert manifest["records"] == [2] * 6
    assert manifest["settings"]["storage"] == "encoded"


def test_a_part_without_usable_clips(tmp_path):
    folder = tmp_path / "clips"
    write_clips(folder, 4)
    for index in (0, 1):
        (folder / f"{index}.mp4").write_bytes(b"not a video")
    config = pipeline.prepare(config_for(folder, tmp_path / "datasets", part_size=2))
    assert sorted(pipeline.captions(config)) == ["clip 2", "clip 3"]
    assert len(batches(config, 1)[0]["video"]) == 6


def test_static_clips_are_dropped(tmp_path, capsys):
    folder = tmp_path / "clips"
    write_clips(folder, 2)
    write_video(folder / "1.mp4", np.zeros((20, 24, 24, 3)), 8)
    config = pipeline.prepare(config_for(folder, tmp_path / "datasets", min_motion=1.0))
    assert pipeline.captions(config) == ["clip 0"]
    output = capsys.readouterr().err
    assert "  1.mp4: static" in output and "1 segments" in output


def test_a_damaged_record_is_named(source, tmp_path):
    config = pipeline.prepare(config_for(source, tmp_path))
    record = dict(pipeline.open_records(config)[0])
    content = bytearray(record["video"])
    content[len(content) // 2] ^= 1
    record["video"] = bytes(content)
    name = record["file"].decode()
    with pytest.raises(UserError, match=f"{config.dataset}: damaged record of {name} "):
        config.decode(record, np.random.default_rng(0))


PROGRAM = """
import json, sys
from data import pipeline, records
from data.parts import build_locally
config = pipeline.parse_config(json.loads(sys.argv[1]))
pipeline.prepare(config, build_locally(int(sys.argv[2])))
"""


def start(config, workers=1):
    fields = {name: value for name, value in asdict(config).items() if value is not None}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, json.dumps(fields), str(workers)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def identities(folder):
    """Inode and modification time of all files in finished parts."""
    states = {path: path.stat() for path in folder.glob("part-*/*")}
    return {path: (state.st_ino, state.st_mtime_ns) for path, state in states.items()}


def test_ten_kills_keep_finished_parts(tmp_path):
    write_clips(tmp_path / "clips", 60, num_frames=12)
    config = config_for(tmp_path / "clips", tmp_path, part_size=1)
    folder = tmp_path / config.fingerprint()
    rng = random.Random(0)
    for kill in range(10):
        before = identities(folder)
        process = start(config, workers=1 + kill % 2)
        deadline = time.monotonic() + 60
        while not list(folder.glob(f".part-*.{process.pid}")) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        if kill == 4:  # on a slow machine the other kills come before any part is finished
            while len(identities(folder)) == len(before) and process.poll() is None:
                time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.1))
        process.kill()
        process.communicate()
        after = identities(folder)
        assert before.items() <= after.items()
        with pytest.raises(UserError, match=r"no such dataset"):
            pipeline.open_records(replace(config, dataset=folder.name))
    assert after
    process = start(config)
    assert (process.communicate()[1], process.returncode)[1] == 0
    assert identities(folder).items() >= after.items()
    uninterrupted = pipeline.prepare(replace(config, data_dir=str(tmp_path / "other")))
    assert read_all(replace(config, dataset=folder.name)) == read_all(uninterrupted)
    assert not list(folder.glob(".part-*"))


def test_a_worker_that_dies(source, tmp_path, monkeypatch):
    """The parent reports it in one line; no process and no unfinished part is left."""
    config = config_for(source, tmp_path, part_size=2)
    process = start(config, workers=2)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    workers = []
    while not workers and process.poll() is None:
        pids = map(int, children.read_text().split())
        workers = [p for p in pids if b"spawn_main" in Path(f"/proc/{p}/cmdline").read_bytes()]
    os.kill(workers[0], signal.SIGKILL)
    error = process.communicate(timeout=60)[1]
    assert process.returncode != 0
    assert "UserError: a worker process died" in error
    assert not list(tmp_path.glob("video_folder/*/manifest.json"))


def test_a_failing_build_leaves_nothing_half_written(source, tmp_path, monkeypatch):
    config = config_for(source, tmp_path, part_size=2)
    original, calls = pipeline.build_locally(1), []

    def fail_at_third_part(tasks):
        original(tasks[:2])
        calls.append(len(tasks))
        raise UserError("the disk is full")

    with pytest.raises(UserError, match="disk"):
        pipeline.prepare(config, fail_at_third_part)
    (folder,) = (tmp_path / "video_folder").iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["part-00000", "part-00001"]
    pipeline.prepare(config, lambda tasks: (calls.append(len(tasks)), original(tasks)))
    assert calls == [6, 4]


def test_configs(source, tmp_path):
    assert isinstance(config_for(source, tmp_path), StoredClipsConfig)
    for field, value, expected in (
        ("part_size", 0, "from 1"),
        ("min_motion", -1.0, "from 0"),
        ("workers", -1, "from 0"),
        ("storage", "h265", "'encoded'.*'raw'"),
    ):
        with pytest.raises(UserError, match=f"{field}.*{value}.*{expected}"):
            config_for(source, tmp_path, **{field: value})


def test_no_byte_of_a_dataset_can_change_unnoticed(source, tmp_path):
    config = pipeline.prepare(config_for(source, tmp_path, part_size=6))
    folder = tmp_path / config.fingerprint()
    expected = read_all(config), pipeline.captions(config)
    found = {True: 0, False: 0}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        for place in {0, len(content) // 2, len(content) - 1}:
            changed = bytearray(content)
            changed[place] ^= 1
            path.write_bytes(changed)
            records._check_dataset.cache_clear()
            try:
                read = read_all(config), pipeline.captions(config)
            except UserError as error:
                found[True] += 1
                place = path.parent if path.suffix != ".json" else path.name
                assert str(place) in str(error) and "\n" not in str(error)
            else:  # padding
                found[False] += 1
                assert read == expected
            path.write_bytes(content)
        path.unlink()
        records._check_dataset.cache_clear()
        if path.name != CHECKSUMS:
            with pytest.raises(UserError):
                read_all(config), pipeline.captions(config)
        path.write_bytes(content)
    assert found[True] > 3 * found[False]
    assert verify(folder) == 0
