import csv

import numpy as np
import pytest

from data import pipeline
from stunet.errors import UserError
from stunet.text_states import write_text_states
from stunet.video_io import write_video
from tests.data.tiny_clips import config_for, read_caption_table


def write_clip(path, num_frames=8, fps=8):
    path.parent.mkdir(parents=True, exist_ok=True)
    levels = (np.arange(num_frames) / 40)[:, None, None, None]
    write_video(path, np.broadcast_to(levels, (num_frames, 16, 16, 3)), fps)


def captions_by_file(config):
    pipeline.prepare(config)
    records = pipeline.open_records(config)
    pairs = (records[i] for i in range(len(records)))
    return {record["file"].decode(): record["caption"].decode() for record in pairs}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("file,caption\na.mp4,a dog, running on grass\n", "a dog, running on grass"),
        ('file,caption\na.mp4,"a dog, running"\n', "a dog, running"),
        ("file,caption\na.mp4, a dog\n", "a dog"),
        ("file,caption\na.mp4,a 5 inch (5') dog\n", "a 5 inch (5') dog"),
        ("caption,file\na dog,a.mp4\n", "a dog"),
        ("file,score,caption\na.mp4,3,a dog, running\n", "a dog, running"),
        ("file;caption\na.mp4;a dog, running\n", "a dog, running"),
        ("file\tcaption\na.mp4\ta dog, running\n", "a dog, running"),
        ("File, Caption\na.mp4,a dog\n", "a dog"),
        ("\ufefffile,caption\r\na.mp4,a dog\r\n", "a dog"),
        ("file,caption\ra.mp4,a dog\r", "a dog"),
        ("file,caption,,\na.mp4,a dog,,\n\n", "a dog"),
        ('file,caption\na.mp4,"a dog\nruns"\n', "a dog runs"),
        ("file,caption\na.mp4,a dog\u2028runs\x0bfast\x85\n", "a dog runs fast"),
    ],
)
def test_tables_that_are_read(tmp_path, content, expected):
    path = tmp_path / "captions.csv"
    path.write_bytes(content.encode())
    assert read_caption_table(path) == {"a.mp4": (expected,)}
    path.write_bytes(content.removeprefix("\ufeff").encode("utf-16"))
    assert read_caption_table(path) == {"a.mp4": (expected,)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('file,caption\nb.mp4,b\na.mp4,"a dog\nc.mp4,c\n', r"line 3: .*quote"),
        ('file,caption\na.mp4,"a dog\nb.mp4,a cat"\n', r"line 2: .*line 3 .*b\.mp4"),
        ('file,caption\na.mp4,"a dog" runs\n', r"line 2: .*quote"),
        ("caption,file\na dog, running,a.mp4\n", r"line 2 has 3 cells, expected 2"),
        ('file,caption\na.mp4,a "dog", running\n', r"line 2 has 3 cells, expected 2"),
        ("file,caption\na.mp4\n", r"line 2 has 1 cells, expected 2"),
        ("file,caption\n,a dog\n", r"line 2: no file"),
        ("file,caption,caption\na.mp4,a,b\n", r"'caption' .*twice"),
        ("file,caption\na.mp4,a\0dog\n", r"line 2 .*NUL"),
        ("a.mp4,a dog\n", r"a\.mp4,a dog .*file,caption"),
        ("", r"captions\.csv: empty.*file,caption"),
    ],
)
def test_tables_that_are_refused(tmp_path, content, message):
    path = tmp_path / "captions.csv"
    path.write_text(content)
    with pytest.raises(UserError, match=rf"captions\.csv: .*{message}|{message}"):
        read_caption_table(path)


def test_surrogates(tmp_path):
    path = tmp_path / "captions.csv"
    table = "file,caption\na.mp4,a dog \ud83d\n"
    for encoding in ("utf-8", "utf-16"):
        path.write_bytes(table.encode(encoding, "surrogatepass"))
        with pytest.raises(UserError, match=r"captions\.csv: invalid text .*UTF-8"):
            read_caption_table(path)
    folder = tmp_path / "clips"
    for name in ("a.mp4", "b.mp4"):
        write_clip(folder / name)
    (folder / "a.txt").write_bytes("a dog \ud83d".encode("utf-8", "surrogatepass"))
    (folder / "b.json").write_text(r'{"caption": "a cat \ud83d"}')
    found = captions_by_file(config_for(folder, tmp_path / "datasets", layout="webdataset"))
    assert found == {"a.mp4": "a dog \ufffd\ufffd\ufffd", "b.mp4": "a cat \ufffd"}


def test_a_first_line_that_is_too_long(tmp_path):
    path = tmp_path / "captions.csv"
    path.write_text("file,caption" + "x" * 2**20)
    limit = csv.field_size_limit()
    try:
        for characters in (2**17, 2**26):
            csv.field_size_limit(characters)
            with pytest.raises(UserError, match=r"captions\.csv: .*file,caption") as error:
                read_caption_table(path)
            assert len(str(error.value)) < 1000
    finally:
        csv.field_size_limit(limit)


def test_names_are_found_as_tables_give_them(tmp_path):
    folder = tmp_path / "clips"
    for name in ("sub/a.mp4", "\u00fc.mp4", "o\u0308.mp4", "B.MP4", "c.mp4"):
        write_clip(folder / name)
    (folder / "CAPTIONS.CSV").write_text(
        "file,caption\nsub\\a.mp4,sub\nu\u0308.mp4,decomposed\n\u00f6.mp4,composed\n"
        "b.mp4,case\n./c.mp4,dot\n"
    )
    assert captions_by_file(config_for(folder, tmp_path / "datasets")) == {
        "sub/a.mp4": "sub",
        "\u00fc.mp4": "decomposed",
        "o\u0308.mp4": "composed",
        "B.MP4": "case",
        "c.mp4": "dot",
    }


def test_text_files_beside_videos(tmp_path):
    folder = tmp_path / "clips"
    for name in ("a.mp4", "u\u0308.Mp4", "lfs.mp4"):
        write_clip(folder / name)
    (folder / "a.TXT").write_text("a dog\u2028runs\n")
    (folder / "\u00fc.txt").write_bytes("umlaut \udcff".encode("utf-8", "surrogateescape"))
    (folder / "lfs.txt").write_text("version https://git-lfs.github.com/spec/v1\n")
    found = captions_by_file(config_for(folder, tmp_path / "datasets"))
    assert found == {"a.mp4": "a dog runs", "u\u0308.Mp4": "umlaut \ufffd"}


def test_every_caption_of_a_video_is_drawn(tmp_path):
    folder = tmp_path / "clips"
    for name in ("a.mp4", "b.mp4"):
        write_clip(folder / name)
    (folder / "captions.csv").write_text(
        "file,caption\na.mp4,one\nb.mp4,other\n./a.mp4,two\na.mp4,one\n"
    )
    config = config_for(folder, tmp_path / "datasets")
    pipeline.prepare(config)
    captions = pipeline.captions(config)
    assert sorted(captions) == ["one", "other", "two"]

    def encode(texts):
        return np.array([[[sum(text.encode())]] for text in texts], np.float16)

    def tokenize(texts):
        return encode(texts)[..., 0].astype(np.int32), np.ones((len(texts), 1), bool)

    batches = pipeline.make_batches(config, tokenize, batch_size=2)
    rows = [next(batches) for _ in range(12)]
    drawn = {int(token) for batch in rows for token in batch["tokens"].ravel()}
    assert drawn == {sum(text.encode()) for text in captions}
    # The cached states of each example are those of the caption that it draws.
    write_text_states(pipeline.text_states_path(config), captions, encode, "encoder")
    cached = pipeline.make_batches(
        config_for(folder, tmp_path / "datasets", text_states=True), None, batch_size=2
    )
    for batch in rows:
        other = next(cached)
        np.testing.assert_array_equal(other["position"], batch["position"])
        np.testing.assert_array_equal(other["text_states"][..., 0], batch["tokens"])


def test_slow_videos_are_reported(tmp_path, capsys):
    folder = tmp_path / "clips"
    for name, fps in (("a.mp4", 8), ("b.mp4", 4), ("c.mp4", 2)):
        write_clip(folder / name, fps=fps)
        (folder / name).with_suffix(".txt").write_text(name)
    pipeline.prepare(config_for(folder, tmp_path / "datasets"))
    (line,) = (x for x in capsys.readouterr().err.splitlines() if "config.data.fps" in x)
    assert all(text in line for text in ("8", "2 of 3", "2: c.mp4"))


def test_a_dataset_is_named_after_its_content(tmp_path):
    folder, data_dir = tmp_path / "clips", tmp_path / "datasets"
    write_clip(folder / "a.mp4")
    (folder / "a.txt").write_text("a dog")

    def fingerprint(where=folder):
        return pipeline.fingerprint(config_for(where, data_dir))

    first = fingerprint()
    (folder / "a.mp4").touch()
    copy = folder.rename(tmp_path / "moved")
    assert fingerprint(copy) == first
    (copy / "a.txt").write_text("a cat")
    changed = fingerprint(copy)
    content = bytearray((copy / "a.mp4").read_bytes())
    content[-1] ^= 1
    (copy / "a.mp4").write_bytes(content)
    assert len({first, changed, fingerprint(copy)}) == 3


def test_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_clip(tmp_path / "clips" / "a.mp4")
    (tmp_path / "clips" / "a.txt").write_text("a dog")
    assert captions_by_file(config_for("~/clips", "~/datasets")) == {"a.mp4": "a dog"}
    assert (tmp_path / "datasets" / "video_folder").is_dir()


def test_captions_that_the_tokenizer_truncates_are_counted(tmp_path):
    class Tokenizer:
        def warnings(self, texts, what):
            return [f"{what}: {sorted(texts)}"]

    write_clip(tmp_path / "a.mp4")
    (tmp_path / "a.txt").write_text("a dog")
    config = config_for(tmp_path, tmp_path / "datasets")
    pipeline.prepare(config)
    (warning,) = pipeline.caption_warnings(config, Tokenizer())
    assert warning.startswith("config.data: captions") and warning.endswith("['a dog']")
