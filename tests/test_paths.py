"""Paths on disk and in a bucket, complete writes, and errors of buckets."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from stunet import paths
from stunet.errors import UserError


def test_local_path_stays_a_pathlib_path(tmp_path):
    assert paths.user_path(tmp_path) == tmp_path
    assert type(paths.user_path("a/b")) is type(Path("a/b"))
    assert paths.user_path("~") == Path.home()
    assert not paths.is_remote(tmp_path)


def test_importing_paths_imports_no_client():
    code = "import sys, stunet.paths; print({'etils', 'fsspec', 'gcsfs'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "set()"


@pytest.mark.parametrize("text", ["gs://", "gs:/bucket/x", "gs:", "s3://bucket/x", "gs:///x"])
def test_invalid_address(text):
    with pytest.raises(UserError, match=f"^{text}: .*expected .*gs://BUCKET"):
        paths.user_path(text)


def test_missing_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^gs://b/x: .*stunet\[gcs\]"):
        paths.user_path("gs://b/x")


def test_bucket_path_keeps_its_name(bucket):
    path = paths.user_path(f"{bucket}/a/b.txt")
    assert (str(path), str(path.parent)) == (f"{bucket}/a/b.txt", f"{bucket}/a")
    assert paths.is_remote(path) and paths.user_path(path) == path


@pytest.fixture(params=["disk", "bucket"])
def folder(request, tmp_path):
    if request.param == "disk":
        return tmp_path / "runs"
    return paths.user_path(request.getfixturevalue("bucket")) / "runs"


def test_text_is_written_and_replaced(folder):
    path = folder / "a/text.txt"
    for text in ("first", "grün"):
        paths.write_text(path, text)
        assert path.read_text() == text
    assert [p.name for p in path.parent.iterdir()] == ["text.txt"]


def test_a_folder_in_a_bucket_is_complete_with_its_last_file(folder):
    assert not paths.is_complete(folder, last="b.txt")
    paths.write_text(folder / "a.txt", "")
    assert paths.is_complete(folder, last="b.txt") == (not paths.is_remote(folder))
    paths.write_text(folder / "b.txt", "")
    assert paths.is_complete(folder, last="b.txt")


def test_output_appears_when_complete(folder):
    path = folder / "video.mp4"
    with paths.local_output(path) as local:
        assert local.suffix == ".mp4" and not path.exists()
        local.write_bytes(b"frames")
        assert not path.exists()
    assert path.read_bytes() == b"frames"
    with pytest.raises(ValueError), paths.local_output(path) as local:
        local.write_bytes(b"half")
        raise ValueError
    assert path.read_bytes() == b"frames"
    assert [p.name for p in folder.iterdir()] == ["video.mp4"]
    assert not local.exists()


def test_input_and_ranges(folder):
    path = folder / "data.bin"
    content = os.urandom(17_000_000)  # over gcsfs's limit of one request
    paths.write_bytes(path, content)
    with paths.local_input(path) as local:
        assert isinstance(local, Path) and local.name == "data.bin"
        assert local.read_bytes() == content
    if paths.is_remote(path):
        size, generation = paths.object_version(path)
        assert size == len(content)
        part = paths.read_range(path, 5, 16_999_999, generation)
        assert part == content[5:16_999_999]
        paths.write_bytes(path, b"other")
        with pytest.raises(FileNotFoundError):
            paths.read_range(path, 0, 5, generation)


def test_listing_shows_what_another_process_writes(bucket, bucket_server):
    folder = paths.user_path(bucket)
    assert not (folder / "x").exists()
    assert list(folder.iterdir()) == []
    code = f"from stunet import paths; paths.write_text(paths.user_path('{bucket}/x'), '1')"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (folder / "x").exists()
    assert [str(p) for p in folder.iterdir()] == [f"{bucket}/x"]


def test_bucket_that_does_not_exist(bucket_server, tmp_path):
    path = paths.user_path("gs://no-such-bucket/a.txt")

    def enter(context):
        with context as local:
            local.write_bytes(b"x")

    for access in (
        path.exists,
        path.is_dir,
        path.parent.is_dir,
        path.parent.mkdir,
        lambda: path.parent.mkdir(exist_ok=True),
        lambda: paths.check_bucket_writable(path),
        lambda: paths.list_objects(path.parent),
        lambda: list(path.parent.iterdir()),
        lambda: path.parent.mkdir(parents=True, exist_ok=True),
        lambda: paths.write_text(path, "x"),
        lambda: enter(paths.local_input(path)),
        lambda: enter(paths.local_output(path)),
    ):
        with pytest.raises(UserError, match=r"^gs://no-such-bucket.*does not exist"):
            access()


def test_object_that_does_not_exist(bucket):
    path = paths.user_path(f"{bucket}/missing.mp4")
    assert not path.exists()
    with pytest.raises(UserError, match=f"^{path}: does not exist"), paths.local_input(path):
        pass
    with pytest.raises(FileNotFoundError):
        path.read_bytes()


def test_listing_of_a_folder(bucket):
    folder = paths.user_path(f"{bucket}/clips")
    assert paths.list_objects(folder) == {} and not folder.exists()
    for name in ("a.mp4", "b/c.mp4"):
        paths.write_bytes(folder / name, b"123")
    paths.write_bytes(paths.user_path(f"{bucket}/clips2/a.mp4"), b"1")
    paths._files(folder).pipe_file(f"{folder}/", b"")  # as consoles do
    paths._files(folder).pipe_file(f"{folder}/empty/", b"")
    assert paths.list_objects(folder) == {"a.mp4": 3, "b/c.mp4": 3}
    assert sorted(path.name for path in folder.iterdir()) == ["a.mp4", "b", "empty"]
    absent = folder / "absent.mp4"
    assert paths.existing([absent, folder / "a.mp4", folder / "b/c.mp4"]) == {
        folder / "a.mp4",
        folder / "b/c.mp4",
    }
    assert paths.list_objects(folder / "a.mp4") == {}
    assert (folder / "empty").is_dir() and not (folder / "empty").is_file()
    assert (folder / "a.mp4").is_file() and not (folder / "a.mp").exists()
    paths.check_bucket_writable(absent)
    assert not absent.exists()


def test_resolved(bucket, tmp_path):
    path = paths.user_path(f"{bucket}/a/../b/./c")
    assert str(paths.resolved(path)) == f"{bucket}/b/c"
    assert paths.resolved(tmp_path / "a/../b") == tmp_path.resolve() / "b"


def test_uploaded_folder_is_complete_or_the_old_one(bucket, tmp_path, monkeypatch):
    target = paths.user_path(f"{bucket}/models/m")
    old, new = tmp_path / "old", tmp_path / "new"
    for folder, names in ((old, ["a", "b", "config.json"]), (new, ["b", "d/e", "config.json"])):
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(f"{name} in {folder.name}")
    paths.upload_folder(old, target)

    def contents():
        return {name: (target / name).read_text() for name in paths.list_objects(target)}

    complete = {name: f"{name} in old" for name in ("a", "b", "config.json")}
    assert contents() == complete
    files = paths._files(target)
    for method, count in (("put_file", 0), ("put_file", 1), ("cp_file", 0), ("put_file", 2)):
        calls = iter(range(10))
        original = getattr(files, method)

        def fail(*args, calls=calls, original=original, count=count):
            if next(calls) == count:
                raise KeyboardInterrupt
            return original(*args)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(files, method, fail)
            paths.upload_folder(new, target)
        if (target / "config.json").exists():
            assert contents() == complete
        else:
            assert (method, count) in (("cp_file", 0), ("put_file", 2))
    paths.upload_folder(new, target)
    assert contents() == {name: f"{name} in new" for name in ("b", "d/e", "config.json")}
    assert paths.list_objects(target.parent).keys() == {f"m/{name}" for name in contents()}


@pytest.mark.parametrize("text", ["a\0b", "x" * 256, "y/" * 2000, "\ud800", "gs://bucket/\0"])
def test_paths_that_no_file_system_has(text):
    with pytest.raises(UserError, match="expected a path"):
        paths.user_path(text)


@pytest.mark.parametrize("text", ["new/", "new/.", "..", ".", "/", "..mp4", "gs://bucket/new/"])
def test_paths_that_are_no_file_to_write(text):
    if text.startswith("gs:"):
        pytest.importorskip("gcsfs")
    with pytest.raises(UserError, match=r"expected one such as video\.mp4"):
        paths.output_file(text)


@pytest.mark.parametrize("text", ["a\nb.mp4", "b.mp4\n", "new\r/b.mp4", "a\u2028.mp4"])
def test_outputs_have_names_of_one_line(text):
    with pytest.raises(UserError, match="line break") as error:
        paths.output_file(text)
    assert "\n" not in str(error.value)


def test_outputs_are_other_files_than_each_other_and_the_inputs(tmp_path):
    clip, link = tmp_path / "clip.mp4", tmp_path / "link.mp4"
    link.symlink_to(clip)
    (tmp_path / "loop").symlink_to("loop")
    paths.check_outputs([("--out", clip), ("--xt-slice", tmp_path / "x.png")])
    same = tmp_path / "new" / ".." / "clip.mp4"
    for outputs, inputs in (
        ([("--out", clip), ("--xt-slice", same)], []),
        ([("--xt-slice", link)], [("--out", clip)]),
    ):
        with pytest.raises(UserError, match=r"--xt-slice: .*(clip|link)\.mp4.*--out"):
            paths.check_outputs(outputs, inputs)
    with pytest.raises(UserError, match="loop/x"):
        paths.check_outputs([("--out", tmp_path / "loop" / "x")])
