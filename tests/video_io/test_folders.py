import os
import socket

import numpy as np
import pytest

from stunet.errors import UserError
from stunet.evaluation.clip_folders import open_clip_folder, read_clip_prompts
from stunet.video_io import write_video
from stunet.video_io.folders import FileNames, find_files


@pytest.fixture(scope="module")
def odd_folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("odd")
    folder, other = root / "folder", root / "other"
    for name in ("folder/a.mp4", "folder/x.mp4/b.MKV", "folder/sub/c.webm", "other/d.mp4"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"content")
    (folder / "._a.mp4").write_bytes(b"content")
    (folder / "__MACOSX").mkdir()
    (folder / "__MACOSX" / "a.mp4").write_bytes(b"content")
    (folder / "dangling.mp4").symlink_to("absent")
    (folder / "self.mp4").symlink_to("self.mp4")
    (folder / "loop").symlink_to(".")
    (folder / "again").symlink_to("sub")
    (folder / "link").symlink_to(other)
    (folder / "link2").symlink_to(other)
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "a.txt").write_text("a caption")
    (folder / "p.heic").write_bytes(b"content")
    os.mkfifo(folder / "pipe.mp4")
    with socket.socket(socket.AF_UNIX) as server:
        where = os.getcwd()
        os.chdir(folder)  # names of sockets are short
        server.bind("socket.mp4")
        os.chdir(where)
    with open(os.fsencode(folder) + b"/\xff.mp4", "wb") as file:
        file.write(b"content")
    return folder


def test_odd_files_are_skipped_and_listed(odd_folder):
    listing = find_files(odd_folder, (".mp4", ".mkv", ".webm"))
    assert listing.files == ("a.mp4", "link/d.mp4", "sub/c.webm", "x.mp4/b.MKV")
    skipped = dict(line.split(": ", 1) for line in listing.skipped)
    assert skipped.pop("not read").startswith("1 .heic")
    expected = {"again", "dangling.mp4", "empty.mp4", "link2", "loop", "pipe.mp4", "self.mp4"}
    assert set(skipped) == {*expected, "socket.mp4", "\\xff.mp4"}


def test_evaluation_lists_the_same_files(odd_folder):
    clips = open_clip_folder(odd_folder, frames=1)
    assert clips.names == ("a.mp4", "link/d.mp4", "sub/c.webm", "x.mp4/b.MKV")
    assert any(line.startswith("dangling.mp4") for line in clips.skipped)


def test_evaluation_leaves_stills_out(tmp_path):
    video = np.linspace(-1, 1, 3)[:, None, None, None] * np.ones((3, 16, 16, 3))
    write_video(tmp_path / "a.gif", video, 8)
    write_video(tmp_path / "still.gif", video[:1], 8)
    clips = open_clip_folder(tmp_path, frames=3)
    assert clips.names == ("a.gif",) and clips.skipped[0].startswith("still.gif")


def test_unreadable_folders(tmp_path):
    with pytest.raises(UserError, match="absent"):
        find_files(tmp_path / "absent", (".mp4",))
    assert find_files(tmp_path, (".mp4",)).files == ()


def test_names_in_tables():
    names = FileNames(["sub/a.mp4", "u\u0308.mp4", "B.mp4", "c.mp4", "C.mp4", "d\\e.mp4"])
    for name, expected in (
        ("sub\\a.mp4", "sub/a.mp4"),
        ("./sub//a.mp4", "sub/a.mp4"),
        ("\u00fc.mp4", "u\u0308.mp4"),
        ("b.MP4", "B.mp4"),
        ("C.mp4", "C.mp4"),
        ("c.MP4", "c.MP4"),  # two files
        ("d\\e.mp4", "d\\e.mp4"),
        ("absent.mp4", "absent.mp4"),
    ):
        assert names.find(name) == expected


def test_prompts_are_split_at_newlines_only(tmp_path):
    path = tmp_path / "prompts.tsv"
    path.write_bytes("sub\\a.mp4\ta dog\u2028runs\x85\r\nb.mp4\ta cat\r\n".encode())
    assert read_clip_prompts(path, ("sub/a.mp4", "b.mp4")) == ["a dog\u2028runs", "a cat"]
    path.write_text("a.mp4\tone\n./a.mp4\ttwo\n")
    with pytest.raises(UserError, match=r"prompts\.tsv: \./a\.mp4 .*two"):
        read_clip_prompts(path, ("a.mp4",))
