"""Checkpoints in a bucket, by Orbax."""

import jax
import numpy as np
import pytest

from stunet import paths
from stunet.errors import UserError
from stunet.paths import list_objects, user_path
from stunet.training.workdir.checkpoint_tensors import complete_steps, open_averages
from stunet.training.workdir.checkpoints import Checkpoints, DataState
from tests.training.test_checkpoints import assert_is, make_state, restore


@pytest.fixture
def workdir(bucket):
    """Checkpoints of steps 8, 12 and 16; that of step 4 was deleted."""
    workdir = user_path(bucket) / "run"
    save(workdir, 4, 8, 12, 16)
    return workdir


def save(workdir, *steps):
    checkpoints = Checkpoints(workdir, keep=3)
    for step in steps:
        checkpoints.save(make_state(step), DataState(step * 2, "dataset"))
    checkpoints.close()


def names(workdir):
    return sorted({name.split("/")[0] for name in list_objects(workdir / "checkpoints")})


def test_round_trip(workdir):
    assert names(workdir) == ["12", "16", "8"]
    restored, lines = restore(workdir)
    assert_is(restored, 16)
    assert lines == []
    assert complete_steps(workdir) == [8, 12, 16]
    averages = open_averages(workdir / "checkpoints" / "12")
    jax.tree.map(np.testing.assert_array_equal, averages, make_state(12).ema)
    assert restore(workdir.with_name("new")) == (None, [])


def test_a_damaged_checkpoint_is_set_aside(workdir):
    folder = workdir / "checkpoints" / "16"
    for name, size in list_objects(folder).items():
        if "/d/" in name:
            content = (folder / name).read_bytes()
            paths.write_bytes(folder / name, content[: size // 2])
    restored, lines = restore(workdir)
    assert_is(restored, 12)
    assert f"{folder}: unreadable" in lines[0] and "step 12" in lines[1] and len(lines) == 2
    assert names(workdir) == ["12", "16", "8", "damaged-16"]
    assert "commit_success.txt" not in list_objects(folder)
    assert_is(restore(workdir)[0], 12)
    save(workdir, 16)
    assert names(workdir) == ["12", "16", "8"]
    assert_is(restore(workdir)[0], 16)


def test_a_run_killed_while_saving(workdir):
    folder = workdir / "checkpoints"
    (folder / "16" / "commit_success.txt").unlink()
    paths.write_text(folder / "saving-16", "")
    restored, lines = restore(workdir)
    assert_is(restored, 12)
    assert f"{folder}/16: incomplete" in lines[0] and "step 12" in lines[1] and len(lines) == 2
    assert names(workdir) == ["12", "8"]


def test_a_checkpoint_copied_by_hand_is_reported_and_kept(workdir):
    folder = workdir / "checkpoints"
    copy = folder / "20"
    for name in list_objects(folder / "16"):
        if name != "commit_success.txt":
            paths.write_bytes(copy / name, (folder / "16" / name).read_bytes())
    before = list_objects(folder)
    with pytest.raises(UserError, match=f"^{copy}: .*commit_success.txt"):
        restore(workdir)
    assert list_objects(folder) == before
    paths.write_text(copy / "commit_success.txt", "")
    restored, lines = restore(workdir)
    assert_is(restored, 16)  # the copy's content
    assert lines == [] and names(workdir) == ["12", "16", "20", "8"]
