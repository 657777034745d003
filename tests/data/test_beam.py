"""Preparation by Apache Beam, which is an optional package."""

import json
import sys

import pytest

from data import pipeline
from experiments import prepare
from stunet.errors import UserError
from tests.data.tiny_clips import config_for, read_all, write_clips


def test_without_beam_the_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(UserError, match=r"--runner=DirectRunner: .*\[train,beam\]"):
        prepare.build_by_beam("DirectRunner", 1, [])


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source") / "clips"
    write_clips(folder, 7)
    (folder / "3.mp4").write_bytes(b"not a video")
    return folder


def test_an_error_of_a_worker_is_one_line(source, tmp_path, capsys):
    pytest.importorskip("apache_beam")
    config = config_for(source, tmp_path, part_size=4)
    folder = tmp_path / config.fingerprint()
    folder.mkdir(parents=True)
    (folder / "part-00001").symlink_to("nowhere")  # the part cannot be renamed to this name
    with pytest.raises(UserError, match=r"--runner=DirectRunner: .*part-00001") as error:
        pipeline.prepare(config, prepare.build_by_beam("DirectRunner", 1, []))
    assert "\n" not in str(error.value)
    assert (folder / "part-00000").is_dir() and not (folder / "manifest.json").exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_records_are_those_without_beam(source, tmp_path, capsys, workers):
    pytest.importorskip("apache_beam")
    changes = {"part_size": 2, "storage": "raw" if workers == 1 else "encoded"}
    alone = pipeline.prepare(config_for(source, tmp_path / "alone", **changes))
    report = capsys.readouterr().err.splitlines()
    build = prepare.build_by_beam("DirectRunner", workers, [])
    beam = pipeline.prepare(config_for(source, tmp_path / "beam", **changes), build)
    assert beam.dataset == alone.dataset
    assert read_all(beam) == read_all(alone)
    assert "  3.mp4: " in "\n".join(report)
    assert "skipped 1 of 7 videos:" in capsys.readouterr().err
    manifests = [
        json.loads((config.folder() / "manifest.json").read_text()) for config in (alone, beam)
    ]
    assert manifests[0] == manifests[1]
