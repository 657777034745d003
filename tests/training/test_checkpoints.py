import json
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.verify import verify
from stunet.checksums import CHECKSUMS, DamageError, read_checksums
from stunet.errors import UserError
from stunet.training.settings import OptimizerConfig
from stunet.training.step import init_state, make_optimizer
from stunet.training.workdir.checkpoint_tensors import open_averages
from stunet.training.workdir.checkpoints import Checkpoints, DataState


def make_state(step=0, width=4, **optimizer):
    params = {
        "unet": {"conv": {"kernel": jnp.full((3, width), step + 0.1), "bias": jnp.ones(width)}}
    }
    state = init_state(params, make_optimizer(OptimizerConfig(**optimizer), 10**6))
    return state._replace(step=jnp.int32(step))


def restore(workdir, like=None):
    """Returns what a new process restores, and the lines that it reports."""
    lines = []
    checkpoints = Checkpoints(workdir, keep=3)
    try:
        state = make_state() if like is None else like
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
        )
        return checkpoints.restore(abstract, lines.append), lines
    finally:
        checkpoints.close()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Checkpoints of steps 8, 12 and 16; that of step 4 was deleted."""
    workdir = tmp_path_factory.mktemp("saved")
    checkpoints = Checkpoints(workdir, keep=3)
    for step in (4, 8, 12, 16):
        checkpoints.save(make_state(step), DataState(step * 2, "dataset"))
    checkpoints.save(make_state(16), DataState(99))  # exists: has no effect
    checkpoints.close()
    return workdir


@pytest.fixture
def workdir(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "run")


def assert_is(restored, step):
    state, data = restored
    assert data == DataState(step * 2, "dataset")
    jax.tree.map(np.testing.assert_array_equal, state, make_state(step))
    assert type(state) is type(make_state())
    assert jax.tree.structure(state) == jax.tree.structure(make_state())


def names(workdir):
    return sorted(path.name for path in (workdir / "checkpoints").iterdir())


def test_round_trip(workdir):
    assert names(workdir) == ["12", "16", "8"]
    restored, lines = restore(workdir)
    assert_is(restored, 16)
    assert lines == []
    assert restore(workdir.with_name("new")) == (None, [])


def test_saving_copies_the_state_first(tmp_path):
    """The next update may reuse the state's memory while it is being written."""
    update = jax.jit(lambda state: jax.tree.map(lambda x: x * 2, state), donate_argnums=0)
    state = {"kernel": jnp.ones((1000, 500)), "step": jnp.int32(3)}
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(make_state(3)._replace(params=state), DataState(6))
    for _ in range(5):
        state = update(state)
    checkpoints.close()
    like = make_state(3)._replace(params={"kernel": jnp.ones((1000, 500)), "step": jnp.int32(3)})
    (restored, _), _ = restore(tmp_path, like)
    np.testing.assert_array_equal(restored.params["kernel"], 1)


def damage(folder, how):
    if how == "no manifest":
        for path in folder.rglob("manifest.ocdbt"):
            path.unlink()
    elif how == "truncated":
        for path in folder.rglob("d/*"):
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif how == "no state":
        shutil.rmtree(folder / "state")
    elif how == "no position":
        shutil.rmtree(folder / "data")
    else:
        shutil.rmtree(folder)
        folder.mkdir()


WAYS = ["no manifest", "truncated", "no state", "no position", "empty"]


@pytest.mark.parametrize("how", WAYS)
def test_a_damaged_checkpoint_falls_back_to_the_one_before(workdir, how):
    damage(workdir / "checkpoints" / "16", how)
    restored, lines = restore(workdir)
    assert_is(restored, 12)
    assert f"{workdir}/checkpoints/16: " in lines[0]
    assert len(lines) == 2 and "step 12" in lines[1]
    assert not any("\n" in line for line in lines)
    assert "damaged-16" in names(workdir)
    # The step can be saved again, and later starts report nothing.
    checkpoints = Checkpoints(workdir, keep=3)
    checkpoints.save(make_state(16), DataState(32, "dataset"))
    checkpoints.close()
    restored, lines = restore(workdir)
    assert_is(restored, 16)
    assert lines == []


@pytest.mark.parametrize("damaged", [False, True])
def test_unraisable_errors_are_hidden_only_if_restoring_failed(workdir, damaged, monkeypatch):
    class Fails:
        def __del__(self):
            raise ValueError("while being collected")

    monkeypatch.setattr(Checkpoints, "_check_fit", lambda *_: Fails() and None)
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: seen.append(unraisable.exc_value))
    seen = []
    if damaged:
        for step in ("8", "12", "16"):
            damage(workdir / "checkpoints" / step, "truncated")
            (workdir / "checkpoints" / step / CHECKSUMS).unlink()
        with pytest.raises(UserError):
            restore(workdir)
        assert seen == []
    else:
        assert_is(restore(workdir)[0], 16)
        assert [str(error) for error in seen] == ["while being collected"]


def test_all_damaged(workdir):
    for step in ("8", "12", "16"):
        damage(workdir / "checkpoints" / step, "truncated")
    for _ in range(2):  # the second start must not train from scratch either
        with pytest.raises(UserError) as error:
            restore(workdir)
        assert f"{workdir}/checkpoints: " in str(error.value)
        assert "8, 12, 16" in str(error.value)
    assert names(workdir) == ["12", "16", "8"]


def test_a_run_killed_while_saving(workdir):
    folder = workdir / "checkpoints"
    (folder / "16").rename(folder / "16.orbax-checkpoint-tmp")
    restored, lines = restore(workdir)
    assert_is(restored, 12)
    assert len(lines) == 2 and f"{folder / '16'}: " in lines[0] and "step 12" in lines[1]
    checkpoints = Checkpoints(workdir, keep=3)
    checkpoints.save(make_state(16), DataState(32, "dataset"))
    checkpoints.close()
    assert_is(restore(workdir)[0], 16)


def test_a_run_killed_in_its_first_save(workdir):
    folder = workdir / "checkpoints"
    for step in ("8", "12"):
        shutil.rmtree(folder / step)
    (folder / "16").rename(folder / "16.orbax-checkpoint-tmp")
    restored, lines = restore(workdir)
    assert restored is None
    assert len(lines) == 2 and f"{folder / '16'}: " in lines[0]


def test_parameters_of_another_shape(workdir):
    with pytest.raises(UserError) as error:
        restore(workdir, make_state(width=6))
    assert "checkpoints/16: " in str(error.value)
    assert "unet/conv/kernel (expected (3, 6), got (3, 4))" in str(error.value)
    assert names(workdir) == ["12", "16", "8"]


def test_another_optimizer(workdir):
    with pytest.raises(UserError, match=r"checkpoints/16: .*optimizer.name"):
        restore(workdir, make_state(name="adafactor"))
    assert names(workdir) == ["12", "16", "8"]
    assert_is(restore(workdir, make_state(learning_rate=3.0, clip_norm=2.0))[0], 16)


def positions(size):
    """Returns positions in a file of which bytes are damaged."""
    return sorted({0, size // 3, size - 1}) if size else []


def test_no_byte_of_a_checkpoint_can_change_unnoticed(workdir):
    folder = workdir / "checkpoints" / "16"
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    covered = [folder / name for name in read_checksums(folder)]
    rest = {folder / name for name in ("_CHECKPOINT_METADATA", "commit_success.txt", CHECKSUMS)}
    assert len(covered) > 10 and set(files) - rest == set(covered)
    kept = Checkpoints(workdir, keep=3)
    try:
        for path in covered:
            content = path.read_bytes()
            damaged = [content + b"\0", content[:-1]] if content else [b"\0"]
            for place in positions(len(content)):
                flipped = bytearray(content)
                flipped[place] ^= 1
                damaged.append(bytes(flipped))
            for changed in damaged:
                path.write_bytes(changed)
                assert f"{path}: " in kept._find_damage(16)
            path.unlink()
            assert f"{path}: " in kept._find_damage(16)
            path.write_bytes(content)
        assert kept._find_damage(16) is None
    finally:
        kept.close()


def flip(path, place=0):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_a_flipped_byte_falls_back_and_names_the_file(workdir):
    largest = max(
        (workdir / "checkpoints" / "16").rglob("d/*"), key=lambda path: path.stat().st_size
    )
    flip(largest)
    restored, lines = restore(workdir)
    assert_is(restored, 12)
    assert f"{largest}: " in lines[0] and len(lines) == 2


@pytest.mark.parametrize("place", [0, 100, -1])
def test_the_metadata_without_a_checksum_do_not_affect_what_is_restored(workdir, place):
    flip(workdir / "checkpoints" / "16" / "_CHECKPOINT_METADATA", place)
    assert_is(restore(workdir)[0], 16)


@pytest.mark.parametrize("missing", [False, True])
def test_damaged_checksums_fall_back(workdir, missing):
    path = workdir / "checkpoints" / "16" / CHECKSUMS
    path.unlink() if missing else flip(path, 30)
    assert verify(workdir) == 2
    with pytest.raises(DamageError, match=CHECKSUMS):
        open_averages(path.parent)
    restored, lines = restore(workdir)
    assert_is(restored, 12)
    assert CHECKSUMS in lines[0] and len(lines) == 2


@pytest.mark.parametrize("damaged", [False, True])
def test_checkpoints_of_older_versions_have_no_checksums(workdir, damaged):
    folder = workdir / "checkpoints" / "16"
    (folder / CHECKSUMS).unlink()
    data = folder / "data" / "metadata"
    data.write_text(json.dumps({"position": 32, "fingerprint": "dataset"}))
    if damaged:
        damage(folder, "truncated")
    else:
        open_averages(folder)
    restored, lines = restore(workdir)
    assert_is(restored, 12 if damaged else 16)
    assert f"{folder}: " in lines[0]
    word, count = ("unreadable", 2) if damaged else ("checksums", 1)
    assert word in lines[0] and len(lines) == count
