import re
import sys

import pytest

from data import pipeline
from experiments import prepare
from experiments.configs import clips_t2v
from stunet.errors import UserError
from tests.data.tiny_clips import read_all, write_clips
from tests.experiments.runs import write_config

pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source") / "clips"
    write_clips(folder, 3, num_frames=12)
    return folder


@pytest.fixture
def run(source, tmp_path, monkeypatch):
    """Runs the program on the clips, with other flags."""

    def run(*flags, **changes):
        config = clips_t2v.get_config().to_dict()
        small = {"num_frames": 8, "fps": 8.0, "resolution": 16}
        config["data"] |= {"source": str(source), "data_dir": str(tmp_path / "data")} | small
        path = write_config(tmp_path / "config.py", config | {"data": config["data"] | changes})
        argv = ["prepare", f"--config={path}", "--workers=1", *flags]
        monkeypatch.setattr(sys, "argv", argv)  # config_flags reads overrides from there
        prepare.FLAGS.unparse_flags()
        prepare.main(argv)

    return run


def test_the_printed_name_is_that_of_a_dataset_with_all_clips(run, tmp_path, capsys):
    run(part_size=2)
    output = capsys.readouterr()
    name = re.search(r"--config\.data\.dataset=(\S+)$", output.out, re.MULTILINE)[1]
    assert (tmp_path / "data" / "video_folder" / name / "manifest.json").exists()
    assert "captions.csv: 3 captions, 3 files" in output.err
    fields = {"name": "video_folder", "dataset": name, "data_dir": str(tmp_path / "data")}
    common = {"num_frames": 8, "fps": 8.0, "resolution": 16, "seed": 0, "caption_dropout": 0.0}
    config = pipeline.parse_config({**fields, **common, "split": "train"})
    assert sorted(record["file"] for record in read_all(config)) == [b"0.mp4", b"1.mp4", b"2.mp4"]
    run(part_size=2)
    assert "building" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "changes", "message"),
    [
        (["--region=x"], {}, "--region=x: .*--runner"),
        ([], {"layout": "openvid3"}, "config.data.layout: 'openvid3'.*openvid"),
        ([], {"filter": "score>1"}, "config.data.filter: .*'score'.*captions.csv"),
        ([], {"dataset": "absent"}, "config.data.dataset: 'absent'"),
        ([], {"storage": "mpeg"}, "config.data.*storage.*'mpeg'.*'encoded'"),
    ],
)
def test_invalid_flags(run, tmp_path, flags, changes, message):
    with pytest.raises(UserError, match=message) as error:
        run(*flags, **changes)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "data").exists()


def test_scene_cuts_need_a_package(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "scenedetect", None)
    monkeypatch.setitem(sys.modules, "scenedetect.detectors", None)
    with pytest.raises(UserError, match=r"scenedetect.*\[scenes\]"):
        run(scene_cuts=True)
