"""Building a dataset on a full disk, and damage to the files of a built one."""

import shutil

import pytest

from data import pipeline
from stunet.errors import UserError
from tests.experiments.runs import T2I, full_disk


def test_a_full_disk_leaves_no_dataset_and_the_next_start_builds_it(tmp_path):
    config = pipeline.parse_config(T2I["data"] | {"data_dir": str(tmp_path)})
    with full_disk(600), pytest.raises(UserError, match=rf"{tmp_path}/moving_shapes/.*too large"):
        pipeline.prepare(config)
    assert not list(tmp_path.rglob("*.array_record*")) and not list(tmp_path.rglob("*incomplete*"))
    pipeline.prepare(config)
    assert len(pipeline.captions(config)) == 40


def test_damage_to_any_file_of_a_dataset_is_refused(tmp_path):
    config = pipeline.parse_config(T2I["data"] | {"data_dir": str(tmp_path / "intact")})
    pipeline.prepare(config)
    intact = config.folder()
    names = [path.name for path in intact.iterdir() if ".array_record" not in path.name]
    assert {"dataset_info.json", "features.json", "checksums.json"} <= {*names}
    cases = [(name, place) for name in names for place in (0, 4, 0.3, 0.5, 0.8, -1, None)]
    for number, (name, place) in enumerate(cases):
        data_dir = tmp_path / str(number)
        folder = data_dir / intact.relative_to(tmp_path / "intact")
        shutil.copytree(intact, folder)
        content = bytearray((folder / name).read_bytes())
        if place is None:
            content = content[: len(content) // 2]
        else:
            place = int(place * len(content)) if isinstance(place, float) else place
            content[place] ^= 1 << 6
        (folder / name).write_bytes(content)
        damaged = pipeline.parse_config(T2I["data"] | {"data_dir": str(data_dir)})
        with pytest.raises(UserError) as caught:
            pipeline.open_records(pipeline.prepare(damaged))
        assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_a_damaged_description_without_checksums_is_refused(tmp_path):
    config = pipeline.parse_config(T2I["data"] | {"data_dir": str(tmp_path)})
    pipeline.prepare(config)
    folder = config.folder()
    (folder / "checksums.json").unlink()
    for content in (b"", b"{", b"\xff", b'{"fileFormat": "none"}'):
        (folder / "dataset_info.json").write_bytes(content)
        with pytest.raises(UserError, match=f"{folder}: damaged"):
            pipeline.open_records(config)
