import zipfile

import av
import numpy as np
import pytest

from data import pipeline
from data.ucf101.ucf101_builder import class_caption, find_class_videos, read_class_prompts
from stunet.errors import UserError

FIELDS = {
    "name": "ucf101",
    "split": "train",
    "resolution": 16,
    "fps": 8.0,
    "num_frames": 4,
    "seed": 0,
    "caption_dropout": 0.0,
    "storage": "raw",
}
CLASSES = ("ApplyEyeMakeup", "HandstandPushups", "YoYo")


def config_for(source, data_dir, **changes):
    fields = {**FIELDS, "source": str(source), "data_dir": str(data_dir), **changes}
    return pipeline.parse_config(fields)


def write_avi(path, level):
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 32, 24, "yuv420p"
        picture = np.full((24, 32, 3), level, np.uint8)
        for _ in range(25):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ucf") / "UCF-101"
    for index, label in enumerate(CLASSES):
        write_avi(folder / label / f"v_{label}_g01_c01.avi", 60 * (index + 1))
    (folder / "YoYo" / "v_YoYo_g01_c02.avi").write_bytes(b"broken")
    with zipfile.ZipFile(folder.parent / "UCF101.zip", "w") as file:
        for path in folder.rglob("*.avi"):
            file.write(path, path.relative_to(folder.parent))
    return folder


def contents(config):
    records = pipeline.open_records(config)
    return sorted(
        (
            record["caption"].decode(),
            len(record["frames"]),
            round(float(record["frames"].mean()), -1),
        )
        for record in (records[i] for i in range(len(records)))
    )


@pytest.mark.parametrize("source", ["folder", "zip"])
def test_folder_and_zip_yield_the_same_records(archive, tmp_path, capsys, source):
    path = archive if source == "folder" else archive.parent / "UCF101.zip"
    config = config_for(path, tmp_path)
    pipeline.prepare(config)
    assert contents(config) == [
        ("apply eye makeup", 8, 60.0),
        ("handstand pushups", 8, 120.0),
        ("yo yo", 8, 180.0),
    ]
    output = capsys.readouterr().err
    assert "skipped 1 of 4 videos:" in output
    assert "YoYo/v_YoYo_g01_c02.avi: " in output


def test_captions_from_a_table(archive, tmp_path, capsys):
    table = tmp_path / "prompts.tsv"
    table.write_text("ApplyEyeMakeup\tapplying eye makeup\nHandStandPushups\thandstand pushups\n")
    config = config_for(archive, tmp_path, prompts=str(table))
    pipeline.prepare(config)
    assert sorted(pipeline.captions(config)) == ["applying eye makeup", "handstand pushups"]
    assert "v_YoYo_g01_c01.avi: no caption" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("label", "caption"),
    [
        ("ApplyEyeMakeup", "apply eye makeup"),
        ("Archery", "archery"),
        ("TaiChi", "tai chi"),
        ("YoYo", "yo yo"),
    ],
)
def test_class_names_become_words(label, caption):
    assert class_caption(label) == caption


def test_invalid_archives(tmp_path):
    (tmp_path / "UCF101.rar").write_bytes(b"Rar!")
    (tmp_path / "UCF101.zip").write_bytes(b"PK")
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.tsv").write_text("Archery archery\n")
    for name, message in (
        ("UCF101.rar", r"UCF101\.rar: .*\.zip"),
        ("UCF101.zip", r"UCF101\.zip: "),
        ("absent", "absent: .*UCF-101"),
        ("empty", r"empty: .*CLASS/NAME\.avi"),
        ("bad.tsv", r"bad\.tsv: .*\.zip"),
    ):
        with pytest.raises(UserError, match=message):
            find_class_videos(tmp_path / name)
    with pytest.raises(UserError, match=r"bad\.tsv.*line 1.*a class, a tab and a caption"):
        read_class_prompts(tmp_path / "bad.tsv")
    config = config_for(tmp_path, tmp_path, prompts="absent.tsv")
    with pytest.raises(UserError, match=r"absent\.tsv"):
        pipeline.prepare(config)
