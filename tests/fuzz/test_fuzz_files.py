"""Random damage to the files of checkpoints, models, datasets and text states.

Each case either is refused, with a message that names a file or folder, or what is read is equal to
what was written.
"""

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import strategies as st

from data import pipeline, records
from stunet.errors import UserError
from stunet.model import load
from stunet.text_states import open_text_states, write_text_states
from stunet.training.workdir.checkpoints import Checkpoints, DataState
from tests.data.tiny_clips import config_for, read_all, write_clips
from tests.fuzz.fuzzing import check_cases
from tests.tiny import save_tiny_model
from tests.training.test_checkpoints import make_state, restore

DAMAGES = ["flip", "missing", "truncated", "longer", "exchanged", "zeros"]
CASES = st.tuples(
    st.sampled_from(DAMAGES),
    st.floats(0, 1, exclude_max=True),  # selects the file
    st.floats(0, 1, exclude_max=True),  # selects the byte
    st.integers(0, 7),
)


def damaged(content: bytes, damage: str, place: float, bit: int) -> bytes | None:
    """Returns the content of a damaged file; None for a missing one."""
    changed, index = bytearray(content), int(place * len(content))
    if damage == "missing":
        return None
    if damage == "longer" or not content:
        return content + bytes([bit])
    if damage == "truncated":
        return content[:index]
    if damage == "flip":
        changed[index] ^= 1 << bit
    elif damage == "exchanged":
        changed[index], changed[index - 1] = content[index - 1], content[index]
    else:
        changed[index : index + 16] = bytes(len(changed[index : index + 16]))
    return bytes(changed)


def read_checkpoint(workdir: Path) -> list[bytes]:
    """Returns the newest checkpoint."""
    copy = workdir.with_name("copy")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(workdir, copy)
    restored, lines = restore(copy)
    if lines:  # an earlier one was restored
        raise UserError(lines[0].replace(str(copy), str(workdir)))
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(restored[0])]


def read_model(folder: Path) -> list[bytes]:
    """Returns the parameters of a model."""
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(load(folder).params)]


def read_states(folder: Path) -> list[bytes]:
    """Returns text states of captions."""
    return [open_text_states(folder).lookup(["caption 3", "", "caption 9"]).tobytes()]


def read_dataset(folder: Path) -> list:
    """Returns records and captions of a dataset."""
    records._check_dataset.cache_clear()
    config = config_for("", folder.parents[1], dataset=folder.name)
    return [read_all(config), pipeline.captions(config)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of each kind and the function that reads it."""
    root = tmp_path_factory.mktemp("files")
    checkpoints = Checkpoints(root / "run", keep=2)
    for step in (4, 8):
        checkpoints.save(make_state(step), DataState(step * 2, "dataset"))
    checkpoints.close()
    captions = [f"caption {number}" for number in range(20)]
    rng = np.random.default_rng(0)
    write_text_states(
        root / "states",
        captions,
        lambda texts: rng.normal(size=(len(texts), 3, 4)).astype("f4"),
        "t5",
        captions_per_shard=6,
    )
    write_clips(root / "clips", 4)
    config = pipeline.prepare(config_for(root / "clips", root / "data", part_size=2))
    return {
        "checkpoint": (root / "run", root / "run/checkpoints/8", read_checkpoint),
        "model": (save_tiny_model(root / "model"),) * 2 + (read_model,),
        "text states": (root / "states",) * 2 + (read_states,),
        "dataset": (root / "data" / config.fingerprint(),) * 2 + (read_dataset,),
    }


@pytest.mark.parametrize("kind", ["checkpoint", "model", "text states", "dataset"])
def test_damaged_files_are_refused_or_have_no_effect(folders, kind):
    root, folder, read = folders[kind]
    expected = read(root)
    files = sorted(path for path in folder.rglob("*") if path.is_file())

    def run(case: tuple[str, float, float, int]) -> None:
        damage, file, place, bit = case
        path = files[int(file * len(files))]
        content = path.read_bytes()
        changed = damaged(content, damage, place, bit)
        path.unlink()
        if changed is not None:
            path.write_bytes(changed)
        try:
            assert read(root) == expected, f"{path.relative_to(root)}: read differently"
        except UserError as error:
            assert str(root) in str(error), f"names no file: {error}"
            raise
        finally:
            path.write_bytes(content)

    check_cases(CASES, run)
