"""Folders, archives and tables that are not as they should be."""

import itertools
import os
import re
import socket
import zipfile

import numpy as np
import pytest

from data import pipeline, preparation
from data.layouts import read_collection
from data.sources import MediaFile
from data.ucf101.ucf101_builder import find_class_videos
from stunet.errors import UserError
from stunet.evaluation.clip_folders import open_clip_folder
from stunet.video_io import write_video
from stunet.video_io.folders import VIDEO_SUFFIXES, find_files, list_names
from tests.data.tiny_clips import read_caption_table

FIELDS = {
    "name": "video_folder",
    "split": "train",
    "resolution": 16,
    "fps": 8.0,
    "num_frames": 4,
    "seed": 0,
    "caption_dropout": 0.0,
    "storage": "raw",
}
LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


def config_for(folder, **changes):
    return pipeline.parse_config(
        {**FIELDS, "source": str(folder), "data_dir": f"{folder}.datasets", **changes}
    )


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """The content of a video of 8 grey frames."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    write_video(path, np.zeros((8, 16, 16, 3)), 8)
    return path.read_bytes()


@pytest.fixture
def folder(tmp_path, clip):
    """`ok.mp4`, and `captions.csv` that lists it."""
    folder = tmp_path / "clips"
    folder.mkdir()
    (folder / "ok.mp4").write_bytes(clip)
    (folder / "captions.csv").write_text("file,caption\nok.mp4,ok\n")
    return folder


def test_a_table_that_names_pipes_and_devices_does_not_block(folder, capsys):
    os.mkfifo(folder / "pipe.mp4")
    (folder / "device.mp4").symlink_to("/dev/zero")
    (folder / "gone.mp4").symlink_to("nowhere")
    (folder / "loop.mp4").symlink_to("loop.mp4")
    (folder / "empty.mp4").touch()
    (folder / "folder.mp4").mkdir()
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(str(folder / "socket.mp4"))
    names = ("pipe", "device", "gone", "loop", "empty", "folder", "socket", "absent")
    with (folder / "captions.csv").open("a") as table:
        table.writelines(f"{name}.mp4,{name}\n" for name in names)
    config = config_for(folder)
    pipeline.prepare(config)
    assert pipeline.captions(config) == ["ok"]
    output = capsys.readouterr().err
    assert "skipped 8 of 9 videos:" in output
    for line in (
        "pipe.mp4: not a regular file",
        "device.mp4: not a regular file",
        "socket.mp4: not a regular file",
        "folder.mp4: not a regular file",
        "gone.mp4: dangling link",
        "absent.mp4: no such file",
        "empty.mp4: empty file",
        "loop.mp4: cannot be read (Too many levels",
    ):
        assert f"\n  {line}" in output
    assert set(open_clip_folder(folder, 4).names) == {"ok.mp4"}


def test_links_to_folders_above_are_not_entered(folder, clip):
    (folder.parent / "outside.mp4").write_bytes(clip)
    (folder / "up").symlink_to(folder.parent)
    listing = find_files(folder, VIDEO_SUFFIXES)
    assert listing.files == ("ok.mp4",)
    assert len(listing.skipped) == 1 and listing.skipped[0].startswith("up: ")


def test_names_are_printed_on_one_line(folder, clip, capsys):
    (folder / "two\nlines\x1b.mp4").write_bytes(clip)
    pipeline.prepare(config_for(folder))
    assert "  two\\nlines\\x1b.mp4: no caption\n" in capsys.readouterr().err


def test_endings_are_counted():
    names = ("a.MP4", "b.heic", "c.HEIC", "d.txt", "._a.mp4", "__MACOSX/a.mp4", "./e.mkv", "f.xyz")
    listing = list_names(names, VIDEO_SUFFIXES)
    assert listing.files == ("./e.mkv", "a.MP4")
    (line,) = listing.skipped
    assert line.startswith("not read: 2 .heic, 1 .xyz (") and "num_frames=1" in line
    assert "num_frames" not in list_names(("f.xyz",), VIDEO_SUFFIXES).skipped[0]


def test_an_archive_is_listed_like_a_folder(tmp_path):
    with zipfile.ZipFile(tmp_path / "ucf.zip", "w") as archive:
        archive.mkdir("UCF.avi")
        names = ("Dog/a.avi", "Dog/b.AVI", "Dog/._a.avi", "__MACOSX/Dog/a.avi", "Dog/c.mp4")
        for name in names:
            archive.writestr(name, name)
    source = find_class_videos(tmp_path / "ucf.zip")
    assert [(v.name, v.captions) for v in source.clips] == [
        ("Dog/a.avi", ("dog",)),
        ("Dog/b.AVI", ("dog",)),
    ]
    with source.clips[1].file.open() as content:
        assert content.read() == b"Dog/b.AVI"
    assert source.skipped[0].startswith("not read: 1 .mp4 (")
    (tmp_path / "pointer.zip").write_text(LFS_POINTER)
    with pytest.raises(UserError, match=r"pointer\.zip: .*git lfs pull"):
        find_class_videos(tmp_path / "pointer.zip")


def test_two_tables_are_refused(folder):
    (folder / "Captions.CSV").write_text("file,caption\nok.mp4,other\n")
    with pytest.raises(UserError, match=r"Captions\.CSV and captions\.csv.*one table"):
        read_collection(folder, 4)


def test_empty_columns_do_not_become_part_of_a_caption(tmp_path):
    path = tmp_path / "captions.csv"
    path.write_text("file,caption,,\na.mp4,a dog, running,,\nb.mp4,a cat,,\n")
    assert read_caption_table(path) == {"a.mp4": ("a dog, running",), "b.mp4": ("a cat",)}


def test_a_changed_row_in_the_middle_of_a_large_table_is_noticed(folder):
    rows = [f"{index:05d}.mp4,caption" for index in range(20_000)]
    table = folder / "captions.csv"

    def fingerprint():
        table.write_text("\n".join(["file,caption", *rows]))
        return pipeline.fingerprint(config_for(folder))

    first = fingerprint()
    assert fingerprint() == first
    rows[10_000] = rows[10_000].replace("caption", "Caption")
    assert fingerprint() != first


def test_a_changed_member_in_the_middle_of_an_archive_is_noticed(tmp_path):
    rng = np.random.default_rng(0)
    contents = [rng.bytes(70_000) for _ in range(5)]
    path = tmp_path / "ucf.zip"

    def fingerprint():
        with zipfile.ZipFile(path, "w") as archive:
            for index, content in enumerate(contents):
                member = zipfile.ZipInfo(f"Dog/{index}.avi", (2026, 1, 1, 0, 0, 0))
                archive.writestr(member, content)
        return pipeline.fingerprint(config_for(path, name="ucf101"))

    first = fingerprint()
    assert fingerprint() == first
    contents[2] = contents[2][:-1] + bytes([contents[2][-1] ^ 1])
    assert fingerprint() != first


def test_clips_slower_than_the_frame_rate_of_an_evaluation_are_reported(folder, clip):
    write_video(folder / "slow.mp4", np.zeros((8, 16, 16, 3)), 4)
    (line,) = filter(None, [open_clip_folder(folder, 4, 8).rate_warning()])
    assert "1 of 2 videos" in line and "(the slowest 4: slow.mp4)" in line
    assert open_clip_folder(folder, 4, 4).rate_warning() is None
    assert open_clip_folder(folder, 4).rate_warning() is None


def test_captions_of_a_model_without_a_tokenizer_are_not_checked(folder):
    assert pipeline.caption_warnings(config_for(folder), None) == []


def test_text_files_beside_a_table_are_reported(folder, clip, capsys):
    for name, text in (("ok", "ignored"), ("b", "read"), ("C", "another case")):
        (folder / f"{name}.mp4").write_bytes(clip)
        (folder / f"{name.lower()}.txt").write_text(text)
    config = config_for(folder)
    pipeline.prepare(config)
    assert sorted(pipeline.captions(config)) == ["another case", "ok", "read"]
    assert "1 .txt files: not read, captions.csv has captions" in capsys.readouterr().err


def test_a_pointer_to_text_states_is_named(folder):
    config = config_for(folder, text_states=True)
    pipeline.prepare(config)
    pipeline.text_states_path(config).mkdir()
    (pipeline.text_states_path(config) / "text_states.json").write_text(LFS_POINTER)
    with pytest.raises(UserError, match=r"text_states_train/text_states\.json: .*git lfs pull"):
        pipeline.make_batches(config, None, batch_size=1)


def test_captions_that_are_not_utf_8_are_reported(folder, clip, capsys):
    (folder / "latin.mp4").write_bytes(clip)
    (folder / "latin.txt").write_bytes("ein Hündchen".encode("latin-1"))
    config = config_for(folder)
    pipeline.prepare(config)
    assert sorted(pipeline.captions(config)) == ["ein H\ufffdndchen", "ok"]
    assert "1 videos: captions contain characters that are not UTF-8 (latin.mp4" in (
        capsys.readouterr().err
    )


@pytest.fixture
def failing(folder, clip, monkeypatch):
    """Makes decoding of `odd.mp4` fail with an error."""
    (folder / "odd.mp4").write_bytes(clip)
    (folder / "odd.txt").write_text("odd")
    decode = preparation.decode_frames

    def fail_with(error):
        def fail(source, *rest):
            if source.name == "odd.mp4":
                raise error
            return decode(source, *rest)

        monkeypatch.setattr(preparation, "decode_frames", fail)

    return fail_with


def test_an_unexpected_error_of_one_file_does_not_end_the_build(folder, failing, capsys):
    error = PermissionError(13, "Permission denied")
    failing(error)
    config = config_for(folder)
    pipeline.prepare(config)
    assert pipeline.captions(config) == ["ok"]
    assert f"skipped 1 of 2 videos:\n  odd.mp4: {error}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [MemoryError("full"), OSError(5, "Input/output error"), ImportError("no module"), "changed"],
)
def test_an_error_that_may_pass_ends_the_build(folder, failing, monkeypatch, error):
    config = config_for(folder)
    if error == "changed":
        failing(ValueError("damaged"))
        digests = itertools.count()
        monkeypatch.setattr(MediaFile, "digest", lambda file: str(next(digests)))
    else:
        failing(error)
    with pytest.raises(UserError, match=rf"odd\.mp4: .*({re.escape(str(error))}|changed while)"):
        pipeline.prepare(config)
    assert not list(folder.with_name("clips.datasets").rglob("manifest.json"))
    monkeypatch.undo()
    pipeline.prepare(config)
    assert sorted(pipeline.captions(config)) == ["odd", "ok"]


def test_a_data_folder_that_is_a_file(folder):
    folder.with_name("clips.datasets").touch()
    with pytest.raises(UserError, match=r"clips\.datasets/.*: cannot be created \(Not a directory"):
        pipeline.prepare(config_for(folder))


def test_a_file_that_vanishes_is_skipped(folder, clip, monkeypatch, capsys):
    (folder / "gone.mp4").write_bytes(clip)
    (folder / "gone.txt").write_text("gone")
    config = config_for(folder)
    listed = config.read_source()
    (folder / "gone.mp4").unlink()
    monkeypatch.setattr(type(config), "read_source", lambda self: listed)
    pipeline.prepare(config)
    assert pipeline.captions(config) == ["ok"]
    assert "  gone.mp4: no such file" in capsys.readouterr().err


def test_an_unquoted_comma_in_the_name_of_a_file_is_refused(tmp_path):
    path = tmp_path / "captions.csv"
    path.write_text("file,caption\na.mp4,a dog\nmy,clip.mp4,a dog\n")
    with pytest.raises(UserError, match=r"line 3 has 3 cells, expected 2"):
        read_caption_table(path)
