"""Checkpoints of killed runs in a bucket, as lists of objects."""

import pytest

from stunet import paths
from stunet.errors import UserError
from stunet.paths import list_objects, user_path
from stunet.training.workdir import checkpoint_markers as markers


@pytest.fixture
def folder(bucket):
    return user_path(bucket) / "run" / "checkpoints"


def put(folder, step, *names):
    for name in names or ("_METADATA", "state/d/0", "commit_success.txt"):
        paths.write_text(folder / str(step) / name, "x")


def test_complete_checkpoints_stay(folder):
    assert markers.recover(folder) == []
    put(folder, 8)
    markers.begin_save(folder, 8)  # killed before `end_save`
    assert markers.recover(folder) == []
    assert set(list_objects(folder)) == {"8/_METADATA", "8/state/d/0", "8/commit_success.txt"}


def test_a_save_that_was_killed_is_deleted(folder):
    put(folder, 8)
    markers.begin_save(folder, 16)
    put(folder, 16, "state/d/0")
    assert markers.recover(folder) == [16]
    assert {name.split("/")[0] for name in list_objects(folder)} == {"8"}


def test_a_deletion_that_was_killed_is_finished(folder, monkeypatch):
    put(folder, 8)
    put(folder, 16)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(markers, "remove_folder", lambda path: interrupt(path / "_METADATA"))
        markers.delete(folder, 8)
    assert "8/commit_success.txt" in list_objects(folder)
    assert markers.recover(folder) == []
    assert {name.split("/")[0] for name in list_objects(folder)} == {"16"}


def interrupt(path):
    path.unlink()
    raise KeyboardInterrupt


def test_a_checkpoint_without_a_commit_marker_is_reported_and_kept(folder):
    put(folder, 40, "_METADATA", "state/d/0")
    markers.begin_save(folder, 48)
    put(folder, 48, "state/d/0")
    before = list_objects(folder)
    with pytest.raises(UserError, match=f"^{folder}/40: .*commit_success.txt"):
        markers.recover(folder)
    assert list_objects(folder) == before
    paths.write_text(folder / "40" / "commit_success.txt", "")  # as the message recommends
    assert markers.recover(folder) == [48]
    assert "40/state/d/0" in list_objects(folder)


def test_a_damaged_checkpoint_is_hidden_until_its_step_is_saved_again(folder):
    put(folder, 8)
    markers.set_aside(folder, 8)
    expected = {"8/_METADATA", "8/state/d/0", "damaged-8"}
    assert set(list_objects(folder)) == expected
    assert markers.recover(folder) == []
    assert set(list_objects(folder)) == expected
    put(folder, 8)  # killed before the commit marker was deleted
    markers.recover(folder)
    assert set(list_objects(folder)) == expected
    markers.begin_save(folder, 8)
    put(folder, 8)
    markers.end_save(folder, 8)
    assert set(list_objects(folder)) == {"8/_METADATA", "8/state/d/0", "8/commit_success.txt"}
