"""Sources, datasets and text states in a bucket."""

import json
import tarfile
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from data import parts, pipeline
from data.sources import MediaFile
from data.ucf101.ucf101_builder import find_class_videos
from stunet import paths
from stunet.errors import BucketError, UserError
from stunet.paths import user_path
from stunet.text_states import open_text_states, write_text_states
from tests.data.tiny_clips import config_for, read_all, tokenize, write_clips

SHAPES = {
    "name": "moving_shapes",
    "split": "train",
    "num_examples": 6,
    "num_frames": 1,
    "resolution": 8,
    "fps": 8.0,
    "seed": 0,
    "caption_dropout": 0.0,
}


def upload(folder, target):
    """Copies a local folder to a bucket, as a user does."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            paths.write_bytes(
                user_path(target) / path.relative_to(folder).as_posix(), path.read_bytes()
            )


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source") / "clips"
    write_clips(folder, 3, num_frames=12)
    return folder


def first_batch(config):
    batches = pipeline.make_batches(config, tokenize, batch_size=2)
    batch = next(batches)
    batches.close()
    return batch


def test_videos_are_prepared_in_a_bucket_and_read_from_there(source, bucket, tmp_path, capsys):
    local = pipeline.prepare(config_for(source, tmp_path, part_size=2))
    upload(source, f"{bucket}/clips")
    config = config_for(f"{bucket}/clips", f"{bucket}/data", part_size=2)
    ready = pipeline.prepare(config)
    assert ready.dataset == local.dataset
    assert str(ready.folder()) == f"{bucket}/data/video_folder/{ready.dataset}"
    assert read_all(ready) == read_all(local)
    assert pipeline.captions(ready) == pipeline.captions(local)

    # Worker processes read the bucket.
    by_name = pipeline.prepare(replace(ready, source="", workers=1))
    expected = first_batch(local)
    for name, values in first_batch(by_name).items():
        np.testing.assert_array_equal(values, expected[name])

    # A build that was killed while it uploaded its last part continues.
    folder = ready.folder()
    (folder / "manifest.json").unlink()
    (folder / "part-00001" / "clips.jsonl").unlink()
    with pytest.raises(UserError, match=f"{folder}: no such dataset"):
        pipeline.open_records(ready)
    capsys.readouterr()
    assert pipeline.prepare(config) == ready
    assert "1 of 2 parts are finished" in capsys.readouterr().err
    assert read_all(ready) == read_all(local)

    # A dataset that was prepared on disk and copied.
    upload(local.folder(), f"{bucket}/copy/video_folder/{local.dataset}")
    copied = pipeline.prepare(replace(by_name, data_dir=f"{bucket}/copy", workers=0))
    assert read_all(copied) == read_all(local)
    with pytest.raises(UserError, match=f"config.data.source: empty.*{local.dataset}"):
        pipeline.prepare(replace(copied, dataset="absent"))


def test_an_error_of_the_bucket_does_not_skip_a_clip(source, bucket, monkeypatch):
    upload(source, f"{bucket}/clips")
    config = config_for(f"{bucket}/clips", f"{bucket}/data")

    def fail(self):
        raise BucketError(f"{self.path}: Google Cloud Storage cannot be reached")

    monkeypatch.setattr(MediaFile, "open", fail)
    with pytest.raises(UserError, match="0.mp4: Google .*; the same command continues"):
        pipeline.prepare(config)
    assert not user_path(f"{bucket}/data").exists()


def csv_layout(folder):
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "b.MP4").write_bytes(b"second")
    (folder / "a.mp4").write_bytes(b"first")
    (folder / "empty.mp4").write_bytes(b"")
    rows = "file,caption\na.mp4,one\nsub/b.mp4,two\nmissing.mp4,three\nempty.mp4,four\n"
    (folder / "captions.csv").write_text(rows, encoding="utf-16")


def openvid_layout(folder):
    (folder / "video").mkdir(parents=True)
    for name in "ab":
        (folder / "video" / f"{name}.mp4").write_bytes(name.encode() * 300_000)
    (folder / "x.csv").write_text("video,caption\na.mp4,one\nb.mp4,two\nc.mp4,three\n")


def text_layout(folder):
    folder.mkdir()
    for index in range(3):
        (folder / f"{index}.mp4").write_bytes(bytes(index + 1))
        (folder / f"{index}.txt").write_text(f"caption {index}")


def parquet_layout(folder):
    import pyarrow
    import pyarrow.parquet

    folder.mkdir()
    (folder / "a.mp4").write_bytes(b"first")
    table = pyarrow.table({"file_name": ["a.mp4"], "text": ["one"]})
    pyarrow.parquet.write_table(table, folder / "metadata.parquet")


def tar_layout(folder):
    text_layout(folder)
    with tarfile.open(folder / "00000.tar", "w") as archive:
        for path in sorted(folder.glob("[0-9].*")):
            archive.add(path, path.name)
            path.unlink()


@pytest.mark.parametrize(
    "write", [csv_layout, openvid_layout, text_layout, parquet_layout, tar_layout]
)
def test_layouts_are_listed_as_on_disk(write, tmp_path, bucket):
    write(tmp_path / "clips")
    upload(tmp_path / "clips", f"{bucket}/clips")
    local, remote = (
        config_for(folder, tmp_path / "data") for folder in (tmp_path / "clips", f"{bucket}/clips")
    )
    expected, found = local.read_source(), remote.read_source()
    assert [clip.name for clip in found.clips] == [clip.name for clip in expected.clips] != []
    assert [clip.captions for clip in found.clips] == [clip.captions for clip in expected.clips]
    assert [clip.problem for clip in found.clips] == [clip.problem for clip in expected.clips]
    assert (found.skipped, found.summary) == (expected.skipped, expected.summary)
    assert remote.folder().name == local.folder().name  # includes the digests of the files


def test_zip_archive(tmp_path, bucket):
    path = tmp_path / "UCF101.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("Dog/a.avi", b"content")
    upload(tmp_path, bucket)
    (clip,) = find_class_videos(user_path(f"{bucket}/UCF101.zip")).clips
    assert clip.file.digest() == MediaFile(path, "Dog/a.avi").digest() != ""
    with clip.file.open() as content:
        assert (content.read(), content.name) == (b"content", "Dog/a.avi")


def test_records_of_a_builder(tmp_path, bucket):
    local, remote = (
        pipeline.parse_config({**SHAPES, "data_dir": folder})
        for folder in (str(tmp_path), f"{bucket}/data")
    )
    assert pipeline.prepare(remote) == remote
    pipeline.prepare(local)
    assert read_all(remote) == read_all(local) and len(read_all(remote)) == 6
    assert pipeline.fingerprint(remote) == pipeline.fingerprint(local)
    folder = remote.folder()
    (folder / "dataset_info.json").unlink()  # a killed upload
    with pytest.raises(UserError, match=f"{folder}: no such dataset"):
        pipeline.open_records(remote)
    pipeline.prepare(remote)
    assert read_all(remote) == read_all(local)


def test_folders_and_buckets_that_do_not_exist(bucket):
    for address, message in (
        (f"{bucket}/clips", f"^{bucket}/clips: no such folder"),
        ("gs://no-such-bucket/clips", "^gs://no-such-bucket.*does not exist"),
    ):
        with pytest.raises(UserError, match=message):
            pipeline.prepare(config_for(address, f"{bucket}/data"))
    upload_to = user_path(f"{bucket}/data/video_folder/unfinished/part-00000/clips.jsonl")
    paths.write_text(upload_to, "")
    config = config_for("", f"{bucket}/data", dataset="unfinished")
    with pytest.raises(UserError, match="config.data.source: empty"):
        pipeline.prepare(config)
    assert upload_to.exists()


def encode(texts):
    """States `[N, 2, 3]` that depend on the text."""
    return np.stack([np.full((2, 3), len(text), np.float32) for text in texts])


def test_text_states(bucket, tmp_path, monkeypatch):
    captions = [f"caption {'x' * index}" for index in range(7)]
    local, remote = tmp_path / "states", user_path(f"{bucket}/data/states")
    for folder in (local, remote):
        write_text_states(folder, captions, encode, "e", captions_per_shard=3)
    assert {p.name: p.read_bytes() for p in remote.iterdir()} == {
        p.name: p.read_bytes() for p in local.iterdir()
    }
    asked = [captions[4], "", captions[4], captions[0]]
    states = open_text_states(remote)
    for _ in range(2):
        np.testing.assert_array_equal(states.lookup(asked), open_text_states(local).lookup(asked))
    with pytest.raises(UserError, match="no states of the caption 'other'"):
        states.lookup(["other"])

    # Finished shards are kept.
    (remote / "text_states.json").rename(remote / "moved")
    plan = json.loads((remote / "moved").read_text())
    (remote / "moved").unlink()
    paths.write_text(remote / ".unfinished.json", json.dumps(plan))
    shard = remote / "states_00001.npy"
    paths.write_bytes(shard, shard.read_bytes()[:-1])
    calls = []
    write_text_states(
        remote,
        captions,
        lambda texts: calls.append(texts) or encode(texts),
        "e",
        captions_per_shard=3,
    )
    assert len(calls) == 1
    with pytest.raises(UserError, match=f"{shard}: was replaced"):
        states.lookup(captions)
    np.testing.assert_array_equal(
        open_text_states(remote).lookup(asked), open_text_states(local).lookup(asked)
    )


def test_a_part_in_a_bucket_counts_once_it_is_complete(bucket):
    part = user_path(f"{bucket}/data/part-00000")
    paths.write_text(part / "features.json", "{}")
    assert not parts.is_finished(part)
    paths.write_text(part / "clips.jsonl", "")
    assert parts.is_finished(part)
    parts.delete_folder(part)
    assert not part.exists()
