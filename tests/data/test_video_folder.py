import re
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from data import pipeline
from data.preparation import cut
from stunet.errors import UserError
from stunet.video_io import to_float, write_video
from tests.data import tiny_clips
from tests.data.tiny_clips import tokenize

REAL = Path(__file__).parents[3] / "shared" / "videos"


def counting_clip(path, num_frames, fps=8, codec=None):
    """Frame i has the grey level i / 40, which identifies the frame."""
    levels = np.arange(num_frames) / 40
    video = np.broadcast_to(levels[:, None, None, None], (num_frames, 32, 48, 3))
    if codec is None:
        write_video(path, video, fps)
        return
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for frame in ((video + 1) * 127.5).round().astype(np.uint8):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def config_for(folder, data_dir, **changes):
    return tiny_clips.config_for(folder, data_dir, storage="raw", **changes)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with every kind of file, good and bad, and the output of the build."""
    folder = tmp_path_factory.mktemp("clips")
    counting_clip(folder / "one.mp4", 20)
    (folder / "sub").mkdir()
    counting_clip(folder / "sub" / "two.webm", 12, codec="libvpx")
    counting_clip(folder / "three.avi", 9, codec="mpeg4")
    counting_clip(folder / "four.MOV", 30, fps=24, codec="libx264")
    counting_clip(folder / "five.gif", 8)
    counting_clip(folder / "short.mp4", 5)
    counting_clip(folder / "silent.mp4", 20)
    (folder / "broken.mp4").write_bytes(b"not a video" * 40)
    (folder / "five.txt").write_text("five of\nthem\n")
    (folder / "captions.csv").write_text(
        "file,caption\n"
        'one.mp4,"one, with a comma"\n'
        "sub/two.webm,two\nthree.avi,three\nfour.MOV,four\n"
        "short.mp4,short\nbroken.mp4,broken\nabsent.mp4,absent\n"
    )
    return config_for(folder, tmp_path_factory.mktemp("datasets"))


def test_skipped_files_are_listed_with_their_reasons(built, capsys):
    pipeline.prepare(built)
    output = capsys.readouterr().err
    assert "skipped 4 of 9 videos:" in output
    for line in (
        r"  absent\.mp4: ",
        r"  broken\.mp4: .*Invalid data found",
        r"  short\.mp4: too short.* 5 frames at 8 fps.* 8$",
        r"  silent\.mp4: no caption$",
    ):
        assert re.search(f"^{line}", output, re.MULTILINE), line
    pipeline.prepare(built)
    assert capsys.readouterr().err == ""  # the records exist


def test_captions_and_frames(built):
    pipeline.prepare(built)
    records = pipeline.open_records(built)
    by_file = {records[i]["file"].decode(): records[i] for i in range(len(records))}
    captions = {name: record["caption"].decode() for name, record in by_file.items()}
    assert captions == {
        "one.mp4": "one, with a comma",
        "sub/two.webm": "two",
        "three.avi": "three",
        "four.MOV": "four",
        "five.gif": "five of them",
    }
    counts = {name: len(record["frames"]) for name, record in by_file.items()}
    assert counts == {
        "one.mp4": 20,
        "sub/two.webm": 12,
        "three.avi": 9,
        "four.MOV": 10,
        "five.gif": 8,
    }
    for name, record in by_file.items():
        frames = record["frames"]
        assert frames.shape[1:] == (16, 16, 3) and frames.dtype == np.uint8
        step = 3 if name == "four.MOV" else 1  # 24 fps seen at 8
        expected = (np.arange(len(frames)) * step / 40 + 1) * 127.5
        np.testing.assert_allclose(frames.mean((1, 2, 3)), expected, atol=4)


def test_batches_are_windows_of_the_clips(built):
    pipeline.prepare(built)
    starts = set()
    batches = pipeline.make_batches(built, tokenize, batch_size=5)
    for _ in range(8):
        batch = next(batches)
        assert batch["video"].shape == (5, 8, 16, 16, 3) and batch["video"].dtype == np.uint8
        (row,) = np.flatnonzero(batch["tokens"][:, 0] == len("one, with a comma"))
        numbers = to_float(batch["video"][row]).mean((1, 2, 3)) * 40
        np.testing.assert_allclose(np.diff(numbers), 1, atol=0.6)
        starts.add(round(float(numbers[0])))
    assert len(starts) > 3 and starts <= set(range(-1, 14))


def test_images_need_one_frame_only(built, capsys):
    images = replace(built, num_frames=1)
    pipeline.prepare(images)
    assert "short.mp4" not in capsys.readouterr().err
    batch = next(pipeline.make_batches(images, tokenize, batch_size=6))
    assert batch["video"].shape == (6, 1, 16, 16, 3)


def test_changed_folder_content_is_another_dataset(tmp_path):
    counting_clip(tmp_path / "a.gif", 8)
    (tmp_path / "a.txt").write_text("a")
    config = config_for(tmp_path, tmp_path / "datasets")
    pipeline.prepare(config)
    assert pipeline.captions(config) == ["a"]
    (tmp_path / "a.txt").write_text("another caption")
    with pytest.raises(UserError, match="datasets/video_folder"):
        pipeline.captions(config)
    pipeline.prepare(config)
    assert pipeline.captions(config) == ["another caption"]


def test_cut():
    frames = [np.full((1, 1, 3), i) for i in range(50)]
    for count, minimum, expected in ((7, 8, []), (8, 8, [8]), (31, 8, [31]), (50, 8, [16, 16, 18])):
        parts = list(cut(iter(frames[:count]), minimum, 16))
        assert [len(part) for part in parts] == expected
        if parts:
            np.testing.assert_array_equal(np.concatenate(parts)[:, 0, 0, 0], np.arange(count))


def test_fails_if_every_video_is_skipped(tmp_path):
    counting_clip(tmp_path / "short.mp4", 5)
    (tmp_path / "short.txt").write_text("short")
    config = config_for(tmp_path, tmp_path / "datasets")
    with pytest.raises(UserError, match=r"none of 1 .*short\.mp4: too short: 5 .* 8"):
        pipeline.prepare(config)
    with pytest.raises(UserError, match="datasets/video_folder"):  # no partial records
        pipeline.captions(config)


def test_invalid_folders(tmp_path):
    def prepare(folder):
        pipeline.prepare(config_for(folder, tmp_path / "datasets"))

    with pytest.raises(UserError, match=r"absent: .*folder"):
        prepare(tmp_path / "absent")
    folder = tmp_path / "clips"
    folder.mkdir()
    with pytest.raises(UserError, match=r"clips: .*\.mp4, "):
        prepare(folder)
    counting_clip(folder / "a.mp4", 8)
    with pytest.raises(UserError, match=r"clips: .*captions\.csv.*file,caption.*\.txt"):
        prepare(folder)
    (folder / "captions.csv").write_text("name;text\na.mp4;a\n")
    with pytest.raises(UserError, match=r"captions\.csv: .*name;text.*file,caption"):
        prepare(folder)
    (folder / "captions.csv").write_bytes(b"file,caption\na.mp4,\xff\xfe\n")
    with pytest.raises(UserError, match=r"captions\.csv: .*UTF-8"):
        prepare(folder)


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no real clips at {REAL}")
def test_real_clips(tmp_path, capsys):
    config = config_for(REAL, tmp_path, num_frames=10)
    pipeline.prepare(config)
    assert "skipped" not in capsys.readouterr().err
    records = pipeline.open_records(config)
    lengths = {}
    for record in (records[i] for i in range(len(records))):
        lengths.setdefault(record["file"].decode(), []).append(len(record["frames"]))
    # Seconds times 8, from the table of their README: 5.28, 10, 14 and 1.199.
    totals = {name: sum(parts) for name, parts in lengths.items()}
    assert totals == {
        "bigbuckbunny.mp4": 43,
        "bikes.mp4": 80,
        "cockatoo.mp4": 112,
        "realshort.mp4": 10,
    }
    assert all(10 <= part < 32 for parts in lengths.values() for part in parts)
    assert "a small potted tree on a desk by a sunny window" in pipeline.captions(config)
