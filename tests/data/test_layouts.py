"""Collections of captioned videos in the layouts of `data.layouts.LAYOUTS`."""

import csv
import io
import json
import shutil
import tarfile
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from data import pipeline
from data.layouts import LAYOUTS, parse_seconds, read_collection, video_id
from data.sources import MediaFile
from data.video_folder import video_folder_builder
from stunet.errors import UserError
from stunet.video_io import write_video

# Source videos by their YouTube ids, and captions of two clips of each.
IDS = ("-aB_4567890", "Zyx-4567890")
SPANS = ((0.5, 1.5), (2.0, 3.25))
CAPTIONS = {
    "-aB_4567890": ("a ball, red and round", 'the "cube" turns'),
    "Zyx-4567890": ("ein Hündchen läuft", "it's a cat\u2028asleep"),
}
URLS = {
    "-aB_4567890": "https://www.youtube.com/watch?v=-aB_4567890&t=1s",
    "Zyx-4567890": "https://youtu.be/Zyx-4567890",
}
SCORES = {"-aB_4567890": 4.5, "Zyx-4567890": 6.25}
OPENVID = ("video", "caption", "aesthetic score", "motion score", "camera motion", "fps")
PANDA = ("url", "timestamp", "caption", "matching_score", "desirable_filtering")


def caption(key):
    return CAPTIONS[key][0]


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Two videos of 4 s at 8 frames per second; the grey level of a frame identifies it."""
    folder = tmp_path_factory.mktemp("videos")
    for first, key in enumerate(IDS):
        levels = (first + 2 * np.arange(32)) / 64 * 1.5 - 0.75
        frames = np.broadcast_to(levels[:, None, None, None], (32, 16, 16, 3))
        write_video(folder / f"{key}.mp4", frames, 8)
    return {key: folder / f"{key}.mp4" for key in IDS}


def store(videos, folder, name="{}.mp4"):
    for key, path in videos.items():
        target = folder / name.format(key)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)


def write_csv(path, columns, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([columns, *rows])


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_parquet(path, rows):
    pyarrow.parquet.write_table(pa.Table.from_pylist(list(rows)), path)


def write_tar(path, members, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))


def samples(videos, numbers=False):
    """Members of a WebDataset, named by the ids or numbered."""
    members = {}
    for index, (key, path) in enumerate(videos.items()):
        name = f"{index:08d}" if numbers else key
        values = {"key": name, "caption": caption(key), "aesthetic": SCORES[key]}
        members[f"{name}.mp4"] = path.read_bytes()
        members[f"{name}.json"] = json.dumps(values).encode()
    return members


def captions_csv(folder, videos):
    store(videos, folder)
    write_csv(folder / "captions.csv", ("file", "caption"), ((f"{k}.mp4", caption(k)) for k in IDS))


def text_files(folder, videos):
    store(videos, folder, "sub/{}.mp4")
    for key in videos:
        (folder / "sub" / f"{key}.txt").write_text(caption(key) + "\n", encoding="utf-8")


def metadata_csv(folder, videos):
    store(videos, folder, "train/{}.mp4")
    rows = ((f"{key}.mp4", "x", caption(key)) for key in IDS)
    write_csv(folder / "train" / "metadata.csv", ("file_name", "label", "text"), rows)


def metadata_jsonl(folder, videos):
    store(videos, folder, "videos/{}.mp4")
    rows = ({"file_name": f"videos/{key}.mp4", "prompt": caption(key)} for key in IDS)
    write_jsonl(folder / "metadata.jsonl", rows)


def metadata_json(folder, videos):
    store(videos, folder)
    rows = [{"file_name": f"{key}.mp4", "caption": [caption(key)]} for key in IDS]
    (folder / "metadata.json").write_text(json.dumps(rows))


def metadata_parquet(folder, videos):
    store(videos, folder)
    content = {"bytes": b"large", "path": None}
    rows = ({"file_name": f"{k}.mp4", "video": content, "caption": caption(k)} for k in IDS)
    write_parquet(folder / "metadata.parquet", rows)


def musubi(folder, videos):
    store(videos, folder)
    rows = [{"video_path": str(folder / f"{key}.mp4"), "caption": caption(key)} for key in IDS]
    write_jsonl(folder / "musubi.jsonl", rows)


def openvid(folder, videos):
    store(videos, folder, "video/{}.mp4")
    rows = [(f"{k}.mp4", caption(k), SCORES[k], 2, "static", 24) for k in IDS]
    write_csv(folder / "data" / "OpenVid-1M-part1.csv", OPENVID, rows[:1])
    write_csv(folder / "data" / "OpenVid-1M-part2.csv", OPENVID, rows[1:])


def openvid_tars(folder, videos):
    for part, key in enumerate(IDS):
        write_tar(folder / f"OpenVid_part{part}.tar", samples({key: videos[key]}))


def openvid_tars_and_table(folder, videos):
    members = {f"./{key}.mp4": path.read_bytes() for key, path in videos.items()}
    write_tar(folder / "part0.tar", members)
    rows = [(f"{k}.mp4", caption(k), SCORES[k], 2, "static", 24) for k in IDS]
    write_csv(folder / "OpenVid-1M.csv", OPENVID, rows)


def webvid(folder, videos):
    store(videos, folder, "videos/014001_014050/{}.mp4")
    columns = ("videoid", "name", "page_idx", "page_dir", "duration", "contentUrl")
    rows = ((k, caption(k), 1, "014001_014050", "PT00H00M04S", f"https://x/{k}.mp4") for k in IDS)
    write_csv(folder / "results_2M_train.csv", columns, rows)


def open_sora_csv(folder, videos):
    store(videos, folder, "clips/{}.mp4")
    columns = ("path", "text", "num_frames", "height", "width", "aes")
    rows = ((folder / f"clips/{k}.mp4", caption(k), 32, 16, 16, SCORES[k]) for k in IDS)
    write_csv(folder / "meta" / "meta.csv", columns, rows)


def open_sora_parquet(folder, videos):
    store(videos, folder, "clips/{}.mp4")
    rows = [{"path": f"clips/{k}.mp4", "text": caption(k), "aes": SCORES[k]} for k in IDS]
    write_parquet(folder / "meta.parquet", rows)


def webdataset_tars(folder, videos):
    for shard, key in enumerate(IDS):
        members = samples({key: videos[key]}, numbers=True)  # equal keys in both archives
        members = {name.replace(".json", ".txt"): data for name, data in members.items()}
        members["00000000.txt"] = caption(key).encode()
        write_tar(folder / f"{shard:05d}.tar", members)


def webdataset_folders(folder, videos):
    rows = []
    for index, key in enumerate(IDS):
        store({key: videos[key]}, folder / "00000", f"{index:08d}.mp4")
        (folder / "00000" / f"{index:08d}.txt").write_text(caption(key), encoding="utf-8")
        rows.append({"key": f"{index:08d}", "url": URLS[key], "status": "success", "fps": 8.0})
    write_parquet(folder / "00000.parquet", rows)


def video_list(folder, videos):
    store(videos, folder, "videos/{}.mp4")
    (folder / "videos.txt").write_text("".join(f"videos/{key}.mp4\n" for key in IDS))
    (folder / "prompts.txt").write_text("\n".join(map(caption, IDS)), encoding="utf-8")


def panda(folder, videos):
    store(videos, folder, "videos/{}.mp4")
    spans = [["0:00:00.500", "0:00:01.500"], ["0:00:02.000", "0:00:03.250"]]
    for number, key in enumerate(IDS):
        scores = [SCORES[key] / 10, 0.5]
        row = (URLS[key], spans, list(CAPTIONS[key]), scores, ["desirable", "still"])
        write_csv(folder / f"panda70m_training_{number}.csv", PANDA, [row])


def koala(folder, videos):
    store(videos, folder)
    columns = ("videoID", "url", "timestamp", "caption", "clarity_score", "aesthetic_score")
    rows = [
        (
            f"{key}_{index}",
            URLS[key],
            [f"0:00:{span[0]:06.3f}", f"0:00:{span[1]:06.3f}"],
            text,
            1,
            2,
        )
        for key in IDS
        for index, (span, text) in enumerate(zip(SPANS, CAPTIONS[key], strict=True))
    ]
    write_csv(folder / "Koala_36M.csv", columns, rows)


def hd_vila(folder, videos):
    store(videos, folder, "download/{}.mp4")
    rows = []
    for key in IDS:
        clips = []
        for index, (span, text) in enumerate(zip(SPANS, CAPTIONS[key], strict=True)):
            (folder / f"{key}.{index}.txt").write_text(text, encoding="utf-8")
            times = [f"00:00:{seconds:06.3f}" for seconds in span]
            clips.append({"clip_id": f"{key}.{index}.mp4", "span": times})
        rows.append({"video_id": key, "url": URLS[key], "clip": clips})
    write_jsonl(folder / "hdvila_part0.jsonl", rows)


# Writer, key of the layout, beginning of the summary.
WHOLE = {
    captions_csv: ("captions", "captions.csv: 2 captions, 2 files"),
    text_files: ("text_files", "text files: 2 captions, 2 files"),
    metadata_csv: ("video_folder", "VideoFolder: 2 rows, 2 files"),
    metadata_jsonl: ("video_folder", "VideoFolder: 2 rows, 2 files"),
    metadata_json: ("video_folder", "VideoFolder: 2 rows, 2 files"),
    metadata_parquet: ("video_folder", "VideoFolder: 2 rows, 2 files"),
    musubi: ("video_folder", "VideoFolder: 2 rows, 2 files"),
    openvid: ("openvid", "OpenVid-1M: 2 rows, 2 files"),
    openvid_tars: ("webdataset", "WebDataset: 2 rows, 2 files"),
    openvid_tars_and_table: ("openvid", "OpenVid-1M: 2 rows, 2 files"),
    webvid: ("webvid", "WebVid: 2 rows, 2 files"),
    open_sora_csv: ("open_sora", "Open-Sora: 2 rows, 2 files"),
    open_sora_parquet: ("open_sora", "Open-Sora: 2 rows, 2 files"),
    webdataset_tars: ("webdataset", "WebDataset: 2 rows, 2 files"),
    webdataset_folders: ("webdataset", "WebDataset: 2 rows, 2 files"),
    video_list: ("video_list", "videos.txt: 2 captions, 2 files"),
}
CUT = {
    panda: ("panda_70m", "Panda-70M: 2 rows, 2 files, 4 clips"),
    koala: ("koala_36m", "Koala-36M: 4 rows, 2 files, 4 clips"),
    hd_vila: ("hd_vila", "HD-VILA: 2 rows, 2 files, 4 clips"),
}
WRITERS = [pytest.param(writer, id=writer.__name__) for writer in (*WHOLE, *CUT)]


def one_line(text):
    return " ".join(text.split())


def expected(writer, videos):
    """Content, captions and span of each clip."""
    whole = writer in WHOLE
    return sorted(
        (MediaFile(videos[key]).digest(), (one_line(text),), () if whole else span)
        for key in IDS
        for span, text in list(zip(SPANS, CAPTIONS[key], strict=True))[: 1 if whole else 2]
    )


def content(source):
    return sorted((clip.file.digest(), clip.captions, clip.span or ()) for clip in source.clips)


@pytest.mark.parametrize("writer", WRITERS)
def test_layouts_describe_the_same_clips(writer, videos, tmp_path):
    writer(tmp_path, videos)
    key, summary = {**WHOLE, **CUT}[writer]
    source = read_collection(tmp_path, 8)
    assert content(source) == expected(writer, videos)
    assert (source.summary, source.skipped) == (summary, ())
    assert source.clips == sorted(source.clips, key=lambda clip: (clip.name, clip.span or ()))
    assert len({(clip.name, clip.span) for clip in source.clips}) == len(source.clips)
    assert not any(clip.problem for clip in source.clips)
    assert read_collection(tmp_path, 8, key) == source


def test_every_layout_is_tested():
    assert {key for key, _ in [*WHOLE.values(), *CUT.values()]} == {*LAYOUTS}


@pytest.mark.parametrize("writer", WRITERS)
def test_rows_without_files_and_files_without_rows_are_counted(writer, videos, tmp_path):
    writer(tmp_path, videos)
    extra = tmp_path / "extra" / "unlisted.mp4"
    extra.parent.mkdir()
    shutil.copy(videos[IDS[0]], extra)
    source = read_collection(tmp_path, 8)
    assert source.summary.count(", 1 without a ") == 1
    lines = [*source.skipped, *(f"{c.name}: no caption" for c in source.clips if not c.captions)]
    what = "caption" if writer in (captions_csv, text_files) else "row"
    assert lines == [f"extra/unlisted.mp4: no {what}"]
    extra.unlink()
    first = next(clip for clip in source.clips if IDS[0] in clip.name or "0000" in clip.name)
    if first.file.member or writer is text_files:
        return
    first.file.path.unlink()
    source = read_collection(tmp_path, 8)
    missing = len(SPANS) if writer is koala else 1
    assert f", {missing} missing" in source.summary
    listed = writer is captions_csv
    assert len([line for line in source.skipped if ": no file " in line]) == (
        0 if listed else missing
    )
    assert [clip.problem for clip in source.clips if clip.problem] == ["no such file"] * listed


def test_remarks_name_the_first_few(videos, tmp_path):
    openvid(tmp_path, videos)
    rows = [(f"gone{i}.mp4", "gone", 1, 2, "static", 24) for i in range(120)]
    write_csv(tmp_path / "OpenVid-1M.csv", OPENVID, rows)
    source = read_collection(tmp_path, 8)
    assert source.summary == "OpenVid-1M: 122 rows, 2 files, 120 missing"
    assert source.skipped[0] == "OpenVid-1M.csv: line 2: no file video/gone0.mp4"
    assert len(source.skipped) == 6 and source.skipped[-1] == "... and 115 others"


def test_several_rows_of_a_clip_are_several_captions(videos, tmp_path):
    store(videos, tmp_path)
    rows = [(f"{IDS[0]}.mp4", text) for text in ("one", "two", "one", "three")]
    write_csv(tmp_path / "metadata.csv", ("file_name", "text"), [*rows, (f"{IDS[1]}.mp4", "")])
    clips = read_collection(tmp_path, 8).clips
    assert [clip.captions for clip in clips] == [("one", "two", "three"), ()]
    rows = [
        (URLS[IDS[0]], [[1, 2.5], [1, 2.5]], ["a", "b"], [1, 1], []),
        (URLS[IDS[0]], [[1, 2.5]], ["c"], [1], []),
    ]
    (tmp_path / "metadata.csv").unlink()
    write_csv(tmp_path / "panda.csv", PANDA, rows)
    (clip,) = read_collection(tmp_path, 8).clips
    assert clip.captions == ("a", "b", "c") and clip.span == (1.0, 2.5)


def test_hd_vila_falls_back_to_the_captions_of_the_video(videos, tmp_path):
    hd_vila(tmp_path, videos)
    (tmp_path / f"{IDS[0]}.1.txt").unlink()
    (tmp_path / f"{IDS[0]}.txt").write_text("of the whole video")
    captions = [
        clip.captions
        for clip in read_collection(tmp_path, 8).clips
        if clip.name.startswith("download/-")
    ]
    assert captions == [(CAPTIONS[IDS[0]][0],), ("of the whole video",)]


@pytest.mark.parametrize(
    ("writer", "text", "kept", "total"),
    [
        (openvid, "aesthetic score>5", [IDS[1]], 2),
        (openvid, "Aesthetic Score >= 4.5, fps==24", [*IDS], 2),
        (openvid, "aesthetic score!=4.5,motion score<2", [], 2),
        (open_sora_csv, "aes<=4.5", [IDS[0]], 2),
        (open_sora_parquet, "aes<5", [IDS[0]], 2),
        (openvid_tars, "aesthetic>5", [IDS[1]], 2),
        (webdataset_folders, "fps>5", ["00000000", "00000001"], 2),
        (panda, "matching_score>=0.5", [IDS[0], IDS[1], IDS[1]], 4),
        (koala, "clarity_score>0", [IDS[0], IDS[0], IDS[1], IDS[1]], 4),
    ],
)
def test_filters(writer, text, kept, total, videos, tmp_path):
    writer(tmp_path, videos)
    if not kept:
        with pytest.raises(
            UserError, match=r"data\.filter: .*0 of 2 after aesthetic score!=4\.5,motion score<2"
        ):
            read_collection(tmp_path, 8, filters=text)
        return
    source = read_collection(tmp_path, 8, filters=text)
    assert [clip.file.member[:-4] or clip.file.path.stem for clip in source.clips] == kept
    assert f", {len(kept)} of {total} after " in source.summary


def test_filter_of_captions_csv(videos, tmp_path):
    store(videos, tmp_path)
    rows = ((f"{k}.mp4", SCORES[k], caption(k)) for k in IDS)
    write_csv(tmp_path / "captions.csv", ("file", "Score", "caption"), rows)
    source = read_collection(tmp_path, 8, filters="score>5")
    assert [clip.name for clip in source.clips if clip.captions] == [f"{IDS[1]}.mp4"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "aesthetic>5",
            r"\.filter: .*'aesthetic' .*1\.csv: line 2.*aesthetic score, motion score, fps\)",
        ),
        ("camera motion>5", r"'camera motion' is 'static' in .*line 2.*aesthetic score, motion"),
        ("aesthetic score", r"config\.data\.filter: 'aesthetic score'.*>= .*aesthetic score>5"),
        ("aesthetic score>high", r"config\.data\.filter: 'aesthetic score>high'"),
        ("fps>5,", r"config\.data\.filter: ''"),
    ],
)
def test_filters_that_are_refused(text, message, videos, tmp_path):
    openvid(tmp_path, videos)
    with pytest.raises(UserError, match=message):
        read_collection(tmp_path, 8, filters=text)


def test_a_table_without_a_layout(videos, tmp_path):
    store(videos, tmp_path)
    (tmp_path / "README.txt").write_text("a collection")
    write_csv(tmp_path / "data.csv", ("video", "Title", "score"), [("a", "b", 1)])
    with pytest.raises(
        UserError, match=r"data\.csv: columns video, title, score.*openvid.*caption"
    ):
        read_collection(tmp_path, 8)
    with pytest.raises(
        UserError, match=r"data\.csv: columns .*panda_70m.*url, timestamp, caption, matching_score"
    ):
        read_collection(tmp_path, 8, "panda_70m")
    with pytest.raises(UserError, match=r"config\.data\.layout: 'panda', expected captions or "):
        read_collection(tmp_path, 8, "panda")
    for key in IDS:
        (tmp_path / f"{key}.txt").write_text(caption(key))
    source = read_collection(tmp_path, 8)
    assert source.summary == "text files: 2 captions, 2 files"
    assert source.skipped == ("data.csv: not read (columns video, title, score)",)


def test_tables_of_different_layouts(videos, tmp_path):
    openvid(tmp_path, videos)
    write_csv(tmp_path / "metadata.csv", ("file_name", "text"), [(f"video/{IDS[0]}.mp4", "other")])
    with pytest.raises(
        UserError,
        match=r"part1\.csv \(openvid\) and metadata\.csv \(video_folder\).*config\.data\.layout=",
    ):
        read_collection(tmp_path, 8)
    (clip,) = read_collection(tmp_path, 8, "video_folder").clips
    assert clip.captions == ("other",)
    assert len(read_collection(tmp_path, 8, "openvid").clips) == 2


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", 'video,caption\na.mp4,"one\n', r"a\.csv: line 2: .*quotes"),
        ("a.csv", "video,caption\na.mp4,one,two\n", r"a\.csv: line 2 has 3 cells, expected 2"),
        ("a.csv", "video,caption,video\n", r"a\.csv: column 'video' occurs twice"),
        ("a.csv", "\n\n", r"a\.csv: no rows"),
        ("a.csv", "version https://git-lfs.github.com/spec/v1\n", r"a\.csv: .*git lfs pull"),
        ("a.csv", b"video,caption\na.mp4,\xff\n", r"a\.csv: .*UTF-8"),
        ("a.jsonl", '{"video": "a.mp4", "caption": "a"}\n{"vi\n', r"a\.jsonl: line 2: .*JSON"),
        ("a.jsonl", '{"video": "a.mp4", "caption": "a"}\n[1]\n', r"a\.jsonl: line 2 is \[1\]"),
        ("metadata.json", "1", r"metadata\.json: .*int.*list"),
        ("a.parquet", "not parquet", r"a\.parquet: cannot be read .*Parquet"),
        ("a.tar", "not a tar" * 100, r"a\.tar: damaged.*uncompressed"),
        ("videos.txt", "a.mp4\nb.mp4\n", r"videos\.txt: 2 and prompts\.txt: 1"),
    ],
)
def test_damaged_tables(name, text, message, videos, tmp_path):
    store(videos, tmp_path)
    (tmp_path / "prompts.txt").write_text("one\n")
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message) as error:
        read_collection(tmp_path, 8)
    assert "\n" not in str(error.value)


def test_damaged_archives(videos, tmp_path):
    write_tar(tmp_path / "a.tar", samples(videos))
    content = (tmp_path / "a.tar").read_bytes()
    # Within a video, within a header, and at the end of a member, without the final zeros.
    sizes = [len(data) for data in samples(videos).values()]
    for length in (3000, 512 + -(-sizes[0] // 512) * 512 + 100, 512 + -(-sizes[0] // 512) * 512):
        (tmp_path / "a.tar").write_bytes(content[:length])
        with pytest.raises(UserError, match=r"a\.tar: damaged, truncated"):
            read_collection(tmp_path, 8)
    write_tar(tmp_path / "a.tar", samples(videos), "w:gz")
    with pytest.raises(UserError, match=r"a\.tar: .*compressed.*uncompressed"):
        read_collection(tmp_path, 8)
    (tmp_path / "a.tar").rename(tmp_path / "a.tar.gz")
    with pytest.raises(UserError, match=r"a\.tar\.gz: compressed"):
        read_collection(tmp_path, 8)


def test_invalid_rows_are_listed(videos, tmp_path):
    panda(tmp_path, videos)
    url = URLS[IDS[0]]
    rows = [
        (url, "[['0:01', '0:00']]", ["a"], [1], []),
        (url, "[['x', '0:01']]", ["a"], [1], []),
        (url, "[[0, 1]]", ["a", "b"], [1], []),
        (url, "[[0, 1", ["a"], [1], []),
        ("", "[[0, 1]]", ["a"], [1], []),
    ]
    write_csv(tmp_path / "more.csv", PANDA, rows)
    source = read_collection(tmp_path, 8)
    assert len(source.clips) == 4
    assert source.summary == "Panda-70M: 7 rows, 2 files, 4 clips, 5 invalid"
    assert [line.split(": ")[1] for line in source.skipped] == [f"line {n}" for n in range(2, 7)]
    shutil.move(tmp_path / "more.csv", tmp_path / "panda70m_training_0.csv")
    (tmp_path / "panda70m_training_1.csv").unlink()
    with pytest.raises(UserError, match=r"Panda-70M: 5 rows, .*line 2: time span"):
        read_collection(tmp_path, 8)


def test_members_of_archives_are_opened_by_their_position(videos, tmp_path):
    webdataset_tars(tmp_path, videos)
    clips = read_collection(tmp_path, 8).clips
    assert [clip.name for clip in clips] == ["00000.tar/00000000.mp4", "00001.tar/00000000.mp4"]
    for clip, path in zip(clips, videos.values(), strict=True):
        with clip.file.open() as content:
            assert content.read() == path.read_bytes()


def test_cells_with_several_lines_and_long_lists(videos, tmp_path):
    store(videos, tmp_path)
    text = 'a dog\nruns, "fast"\n\nand far ' + "away " * 50_000
    write_csv(tmp_path / "x.csv", OPENVID, [(f"{k}.mp4", text, 1, 2, "x", 24) for k in IDS])
    clips = read_collection(tmp_path, 8).clips
    assert [clip.captions for clip in clips] == [(one_line(text),)] * 2


def test_tables_of_spreadsheets_and_pandas(videos, tmp_path):
    store(videos, tmp_path)
    rows = "".join(f"{index};{key}.mp4;a;b;;\r" for index, key in enumerate(IDS))
    (tmp_path / "x.csv").write_bytes(f";Video;Caption;;;\r{rows}".encode("utf-16"))
    with pytest.raises(UserError, match=r"x\.csv: line 2 has 4 cells, expected 3"):
        read_collection(tmp_path, 8)
    text = f";Video;;Caption;\r{rows}".replace(";a;b;;", ";;a, b;")
    (tmp_path / "x.csv").write_bytes(text.encode("utf-16"))
    clips = read_collection(tmp_path, 8).clips
    assert [clip.captions for clip in clips] == [("a, b",)] * 2


def test_parquet_with_embedded_videos_is_refused(videos, tmp_path):
    store(videos, tmp_path)
    write_parquet(tmp_path / "a.parquet", [{"video": {"bytes": b"x"}, "caption": "a"}])
    with pytest.raises(UserError, match=r"a\.parquet: columns caption, .*also has "):
        read_collection(tmp_path, 8)


def test_archives_with_long_names_and_other_members(videos, tmp_path):
    name = "./folder/" + "k" * 150
    members = {f"{name}.mp4": videos[IDS[0]].read_bytes(), f"{name}.txt": "ein Hündchen".encode()}
    write_tar(tmp_path / "a.tar", {"README.md": b"x", "__MACOSX/._a.mp4": b"x", **members})
    source = read_collection(tmp_path, 8)
    assert [(clip.name, clip.captions) for clip in source.clips] == [
        ("a.tar/folder/" + "k" * 150 + ".mp4", ("ein Hündchen",))
    ]
    assert source.clips[0].file.digest() == MediaFile(videos[IDS[0]]).digest()
    assert source.skipped == ()


def test_a_table_without_its_videos(videos, tmp_path):
    openvid(tmp_path, videos)
    shutil.move(tmp_path / "video", tmp_path / "other")
    assert len(read_collection(tmp_path, 8).clips) == 2  # in any sub-folder
    for key in IDS:
        (tmp_path / f"other/{key}.mp4").rename(tmp_path / f"other/x{key}.mp4")
    with pytest.raises(UserError, match=r"2 rows, 0 files, 2 missing.*no file video/-aB_456789"):
        read_collection(tmp_path, 8)


def test_text_files_precede_descriptions(videos, tmp_path):
    store(videos, tmp_path)
    for key in IDS:
        description = {"text": "described", "aesthetic": 5, "file": "other.mp4"}
        (tmp_path / f"{key}.json").write_text(json.dumps(description))
    (tmp_path / f"{IDS[0]}.txt").write_text("text")
    expected = [("text",), ("described",)]
    for filters in (None, "aesthetic>4"):
        clips = read_collection(tmp_path, 8, filters=filters).clips
        assert [clip.captions for clip in clips] == expected
    (tmp_path / f"{IDS[1]}.json").write_text("{")
    clips = read_collection(tmp_path, 8).clips
    assert [bool(clip.problem) for clip in clips] == [False, True]
    assert f"{IDS[1]}.json: invalid JSON" in clips[1].problem


def test_images_are_clips_of_one_frame(videos, tmp_path):
    metadata_jsonl(tmp_path, videos)
    (tmp_path / "a.png").write_bytes(b"x")
    (line,) = read_collection(tmp_path, 8).skipped
    assert "1 .png" in line and "num_frames=1" in line
    with (tmp_path / "metadata.jsonl").open("a") as file:
        file.write('{"file_name": "a.png", "prompt": "a picture"}\n')
    assert next(clip.name for clip in read_collection(tmp_path, 1).clips) == "a.png"


def test_ids_and_times():
    assert [video_id(url) for url in URLS.values()] == [*IDS]
    assert video_id("https://www.youtube.com/shorts/abc?x=1") == "abc"
    assert video_id("https://example.org/videos/12.mp4") == "12"
    times = ("1:02:03.5", "02:03", "7.25", 8)
    assert [parse_seconds(time) for time in times] == [3723.5, 123.0, 7.25, 8.0]


def test_a_large_table_is_read_in_linear_time(videos, tmp_path):
    store(videos, tmp_path, "video/{}.mp4")
    rows = [(f"gone{i}.mp4", f"caption {i}", 1, 2, "x", 24) for i in range(30_000)]
    rows += [(f"{k}.mp4", caption(k), 1, 2, "x", 24) for k in IDS]
    write_csv(tmp_path / "OpenVid-1M.csv", OPENVID, rows)
    start = time.monotonic()
    source = read_collection(tmp_path, 8, filters="aesthetic score==1")
    assert (
        source.summary
        == "OpenVid-1M: 30002 rows, 2 files, 30000 missing, 2 of 2 after aesthetic score==1"
    )
    assert time.monotonic() - start < 20  # 1 s


def tokenize(texts):
    tokens = np.array([[len(text)] for text in texts], np.int32)
    return tokens, tokens > 0


def batches_of(writer, videos, folder):
    """Returns batches of a collection. Names determine the order of records: they are replaced."""
    numbers = {MediaFile(path).digest(): number for number, path in enumerate(videos.values())}

    def read(*args):
        source = read_collection(*args)
        clips = [clip._replace(name=f"{numbers[clip.file.digest()]}.mp4") for clip in source.clips]
        return source._replace(clips=sorted(clips, key=lambda clip: (clip.name, clip.span or ())))

    (folder / "source").mkdir()
    writer(folder / "source", videos)
    fields = {
        **{"name": "video_folder", "split": "train", "resolution": 16, "fps": 8.0, "seed": 0},
        **{"num_frames": 4, "caption_dropout": 0.0, "storage": "raw", "workers": 0},
        **{"source": str(folder / "source"), "data_dir": str(folder / "datasets")},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(video_folder_builder, "read_collection", read)
        config = pipeline.prepare(pipeline.parse_config(fields))
    batches = pipeline.make_batches(config, tokenize, batch_size=2)
    return [next(batches) for _ in range(4)]


@pytest.fixture(scope="module")
def first_batches(videos, tmp_path_factory):
    """Batches of the first layouts of `WHOLE` and `CUT`."""
    return {
        writer: batches_of(writer, videos, tmp_path_factory.mktemp(writer.__name__))
        for writer in (captions_csv, panda)
    }


@pytest.mark.parametrize("writer", WRITERS)
def test_layouts_are_read_to_identical_batches(writer, videos, first_batches, tmp_path):
    first = first_batches[captions_csv if writer in WHOLE else panda]
    for batch, other in zip(batches_of(writer, videos, tmp_path), first, strict=True):
        assert batch.keys() == other.keys()
        for name, value in batch.items():
            np.testing.assert_array_equal(value, other[name], err_msg=name)


def test_clips_of_timestamps_have_the_frames_of_their_spans(videos, tmp_path):
    spans = {
        len(one_line(text)): (number, span)
        for number, key in enumerate(IDS)
        for span, text in zip(SPANS, CAPTIONS[key], strict=True)
    }
    seen = set()
    for batch in batches_of(panda, videos, tmp_path):
        for video, (length,) in zip(batch["video"], batch["tokens"], strict=True):
            number, (start, end) = spans[length]
            levels = video.mean((1, 2, 3)) / 127.5 - 1
            indices = ((levels + 0.75) / 1.5 * 64 - number) / 2
            np.testing.assert_allclose(indices, indices.round(), atol=0.3)
            np.testing.assert_array_equal(np.diff(indices.round()), 1)
            assert 8 * start <= indices[0].round() <= indices[-1].round() < 8 * end
            seen.add(length)
    assert seen == spans.keys()


# "\ud83d" is one half of an emoji's surrogate pair, as in a JSON string that was cut.
@pytest.mark.parametrize(
    ("escaped", "text"),
    [
        (r"a \ud83d", "a \ufffd"),
        (r"\uDe00 b", "\ufffd b"),
        (r"\ud83d\ude00", "\U0001f600"),
        (r"\ud83d\ud83d\ude00 \u00fc", "\ufffd\U0001f600 ü"),
    ],
)
def test_lone_surrogates_are_replaced(escaped, text, videos, tmp_path):
    name = f"{IDS[0]}.mp4"
    store(videos, tmp_path / "rows")
    rows = f'{{"file_name": "{name}", "text": "{escaped}"}}\n{{"file_name": "{escaped}"}}\n'
    (tmp_path / "rows" / "metadata.jsonl").write_text(rows)
    store(videos, tmp_path / "list")
    rows = [{"file_name": name, "text": "PLACEHOLDER", "PLACEHOLDER": 1}]
    (tmp_path / "list" / "metadata.json").write_text(
        json.dumps(rows).replace("PLACEHOLDER", escaped)
    )
    store(videos, tmp_path / "samples")
    (tmp_path / "samples" / f"{IDS[0]}.json").write_text(f'{{"caption": "{escaped}"}}')
    for source in (read_collection(tmp_path / name, 8) for name in ("rows", "list", "samples")):
        (clip,) = source.clips
        assert clip.captions == (text,)
        assert any(IDS[0] in line for line in source.skipped) == ("\ufffd" in text)
        "".join(source.skipped).encode()
    # Names that are not files: paths, and ids of videos.
    for columns in (("path", "text"), ("videoid", "page_dir", "name")):
        write_jsonl(tmp_path / "rows" / "metadata.jsonl", [dict.fromkeys(columns, "PLACEHOLDER")])
        table = tmp_path / "rows" / "metadata.jsonl"
        table.write_text(table.read_text().replace("PLACEHOLDER", escaped))
        with pytest.raises(UserError, match=r"1 rows, 0 files, 1 missing") as error:
            read_collection(tmp_path / "rows", 8)
        str(error.value).encode()


@pytest.mark.parametrize("literal", [json.dumps, repr])
@pytest.mark.parametrize("text", ["\U0001f600", 'it\'s "ü"', "a\\b", "\ud83d a"])
def test_lists_are_json_or_python_literals(literal, text, videos, tmp_path):
    store(videos, tmp_path)
    row = (URLS[IDS[0]], "[[0, 1], [1, 2]]", literal([text, None]), "[0.5, 0.25]", "[]")
    write_csv(tmp_path / "panda.csv", PANDA, [row])
    first, second = read_collection(tmp_path, 8).clips
    assert first.captions == (text.replace("\ud83d", "\ufffd"),)
    assert (first.span, second.span, second.captions) == ((0, 1), (1, 2), ())
    (clip,) = read_collection(tmp_path, 8, filters="matching_score>0.3").clips
    assert clip == first


def test_members_with_names_that_are_not_utf_8_are_skipped(videos, tmp_path):
    members = samples(videos)
    with tarfile.open(
        tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT, encoding="latin-1"
    ) as archive:
        for name, data in {**members, "é.mp4": b"x", "é.json": b"x", "é.bin": b"x"}.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))
    source = read_collection(tmp_path, 8)
    assert content(source) == expected(openvid_tars, videos)
    assert source.skipped == (r"a.tar/\xe9.mp4: name is not UTF-8",)


DAMAGED = {
    "other.csv": "\n",
    "other.parquet": "not parquet",
    "sub/other.jsonl": "{",
    "other.tsv": "version https://git-lfs.github.com/spec/v1\n",
    "metadata.json": "[",
}


@pytest.mark.parametrize("override", [False, True])
@pytest.mark.parametrize("writer", [captions_csv, text_files, openvid, panda])
@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_tables_beside_a_layout(name, writer, override, videos, tmp_path):
    writer(tmp_path, videos)
    (tmp_path / "sub").mkdir(exist_ok=True)
    (tmp_path / name).write_text(DAMAGED[name])
    key, summary = {**WHOLE, **CUT}[writer]
    if not override and writer in (openvid, panda):  # may be a part of the collection
        with pytest.raises(UserError, match=rf"{tmp_path}/{name}: "):
            read_collection(tmp_path, 8)
        return
    source = read_collection(tmp_path, 8, key if override else None)
    assert content(source) == expected(writer, videos)
    assert source.summary == summary
    (line,) = source.skipped
    assert line.startswith(f"{name}: not read (") and str(tmp_path) not in line


@pytest.mark.parametrize("writer", WRITERS)
def test_metadata_json_with_an_object_is_no_table(writer, videos, tmp_path):
    writer(tmp_path, videos)
    if writer is not metadata_json:
        (tmp_path / "metadata.json").write_text('{"license": "x", "caption": "y"}')
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "metadata.json").write_text("{}")
    source = read_collection(tmp_path, 8)
    assert content(source) == expected(writer, videos)
    assert source.skipped == ()


def test_metadata_json_describes_a_video_of_this_name(videos, tmp_path):
    store({"metadata": videos[IDS[0]]}, tmp_path)
    (tmp_path / "metadata.json").write_text('{"caption": "a dog"}')
    source = read_collection(tmp_path, 8)
    assert [(clip.name, clip.captions) for clip in source.clips] == [("metadata.mp4", ("a dog",))]
    assert source.summary == "WebDataset: 1 rows, 1 files"


def test_damaged_captions_csv_is_named(videos, tmp_path):
    captions_csv(tmp_path, videos)
    (tmp_path / "other.csv").write_text("\n")
    (tmp_path / "captions.csv").write_text("name,caption\n")
    for layout in (None, "captions"):
        with pytest.raises(UserError, match=r"captions\.csv: columns name,caption"):
            read_collection(tmp_path, 8, layout)
    with pytest.raises(UserError, match=r"other\.csv: no rows"):
        read_collection(tmp_path, 8, "openvid")


def test_samples_without_a_key_are_invalid_rows(videos, tmp_path):
    webdataset_folders(tmp_path, videos)
    (tmp_path / "00000.parquet").unlink()
    rows = [{"key": "00000000", "status": "success"}, {"status": "x"}, {"key": None, "status": "y"}]
    write_jsonl(tmp_path / "00000.jsonl", rows)
    source = read_collection(tmp_path, 8)
    assert len(source.clips) == 2
    assert source.summary == "WebDataset: 4 rows, 2 files, 2 invalid"
    assert [line.split(": no ")[0] for line in source.skipped] == [
        "00000.jsonl: line 2",
        "00000.jsonl: line 3",
    ]


@pytest.mark.parametrize("value", ["9" * 400, "1e999", "-" + "9" * 400])
def test_filters_of_numbers_that_are_too_large(value, videos, tmp_path):
    store(videos, tmp_path)
    row = f'{{"file_name": "{IDS[0]}.mp4", "text": "a", "score": {value}}}\n'
    (tmp_path / "metadata.jsonl").write_text(row)
    with pytest.raises(UserError, match=r"data\.filter: column 'score' .*line 1"):
        read_collection(tmp_path, 8, filters="score>0")
    with pytest.raises(UserError, match=rf"data\.filter: 'score>{value[:200]}"):
        read_collection(tmp_path, 8, filters=f"score>{value}")


@pytest.mark.parametrize("nested", ["[" * 100_000, "[" * 100_000 + "]" * 100_000])
def test_deeply_nested_json(nested, videos, tmp_path):
    store(videos, tmp_path)
    (tmp_path / "metadata.json").write_text(nested)
    with pytest.raises(UserError, match=r"metadata\.json: invalid JSON"):
        read_collection(tmp_path, 8)
    (tmp_path / "metadata.json").unlink()
    rows = f'{{"file_name": "{IDS[0]}.mp4", "text": "a"}}\n{nested}\n'
    (tmp_path / "metadata.jsonl").write_text(rows)
    with pytest.raises(UserError, match=r"metadata\.jsonl: line 2: invalid JSON"):
        read_collection(tmp_path, 8)
    (tmp_path / "metadata.jsonl").unlink()
    (tmp_path / f"{IDS[0]}.json").write_text(nested)
    (tmp_path / f"{IDS[1]}.txt").write_text("a")
    clips = read_collection(tmp_path, 8).clips
    assert f"{IDS[0]}.json: invalid JSON" in clips[0].problem and clips[1].problem is None
    for path in (tmp_path / f"{IDS[0]}.json", tmp_path / f"{IDS[1]}.txt"):
        path.unlink()
    rows = [(URLS[IDS[0]], nested, "a", 1, ""), (URLS[IDS[0]], "[0, 1]", "a", 1, "")]
    write_csv(tmp_path / "panda.csv", PANDA, rows)
    assert (
        read_collection(tmp_path, 8).summary
        == "Panda-70M: 2 rows, 1 files, 1 clips, 1 without a row, 1 invalid"
    )


def test_invalid_text_in_parquet(videos, tmp_path):
    store(videos, tmp_path)
    names = pa.array([f"{key}.mp4" for key in IDS])
    texts = pa.array([b"a", b"\xff"]).view(pa.string())
    table = pa.table({"file_name": names, "text": texts})
    pyarrow.parquet.write_table(table, tmp_path / "metadata.parquet")
    with pytest.raises(UserError, match=r"metadata\.parquet: cannot be read .*utf-8"):
        read_collection(tmp_path, 8)


def test_a_first_line_that_is_too_long(videos, tmp_path):
    store(videos, tmp_path)
    (tmp_path / "a.csv").write_text("file_name,text" + "x" * 2**20)
    limit = csv.field_size_limit(2**17)
    try:
        with pytest.raises(UserError, match=r"a\.csv: line 1: .*columns"):
            read_collection(tmp_path, 8)
    finally:
        csv.field_size_limit(limit)
