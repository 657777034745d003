"""The storage of text states: distinct captions, shards, restarts, several processes."""

import hashlib
import itertools
import json
import pickle
import re
import threading

import numpy as np
import pytest

from stunet.errors import UserError
from stunet.text_states import open_text_states, write_text_states
from tests.experiments.runs import full_disk

LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
L, D = 3, 4
CAPTIONS = [f"caption {number}" for number in range(22)]  # with the empty one, 4 shards of 6


class Encoder:
    """States that depend on the text only; counts calls and fails at one of them."""

    def __init__(self, fails_at=None, error=KeyboardInterrupt, scale=1.0):
        self.calls, self.fails_at, self.error, self.scale = [], fails_at, error, scale

    def __call__(self, texts):
        if len(self.calls) == self.fails_at:
            raise self.error
        self.calls.append(list(texts))
        return self.scale * states_of(texts)


def states_of(texts):
    seeds = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") for text in texts]
    return np.stack([np.random.default_rng(s).normal(size=(L, D)) for s in seeds]).astype("f4")


def write(folder, captions=CAPTIONS, encode=None, encoder="t5", **options):
    write_text_states(
        folder, captions, encode or Encoder(), encoder, captions_per_shard=6, **options
    )


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "text_states_train")
    return tmp_path / "text_states_train"


def test_lookup_returns_the_encoding_of_each_caption(folder):
    states = open_text_states(folder)
    assert states.shape == (23, L, D) and states.encoder == "t5"
    texts = [*CAPTIONS[::-3], "", CAPTIONS[7], CAPTIONS[7], ""]
    found = pickle.loads(pickle.dumps(states)).lookup(texts)
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, states_of(texts).astype(np.float16))
    assert states.lookup([]).shape == (0, L, D)
    # The documented format.
    digests = sorted(
        int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
        for text in ["", *CAPTIONS]
    )
    assert np.load(folder / "index.npy").tolist() == digests
    shards = [np.load(folder / f"states_{k:05d}.npy") for k in range(4)]
    assert [shard.shape for shard in shards] == [(6, L, D)] * 3 + [(5, L, D)]
    assert sorted(contents(folder)) == [
        *(f"crc32c_{k:05d}.npy" for k in range(4)),
        "index.npy",
        *(f"states_{k:05d}.npy" for k in range(4)),
        "text_states.json",
    ]


def test_distinct_captions_in_any_order_give_the_same_files(folder, tmp_path):
    encode = Encoder()
    write(tmp_path / "other", [*CAPTIONS[::-1], "", *CAPTIONS[:9]], encode)
    assert contents(tmp_path / "other") == contents(folder)
    assert [len(call) for call in encode.calls] == [6] * 4  # the last one padded
    texts = list(itertools.chain(*encode.calls))
    assert sorted(texts) == sorted(["", *CAPTIONS, ""])


@pytest.mark.parametrize("captions", [[], [""], ["é\u2028漢字 🎬", "\ud800"]])
def test_unusual_captions(tmp_path, captions):
    encode = lambda texts: np.full((len(texts), L, D), [[[len(text)]] for text in texts])  # noqa: E731
    write(tmp_path / "s", captions, encode)
    found = open_text_states(tmp_path / "s").lookup([*captions, ""])
    assert found[:, 0, 0].tolist() == [*map(len, captions), 0]


def test_an_interrupted_run_keeps_finished_shards(folder, tmp_path):
    other = tmp_path / "other"
    with pytest.raises(KeyboardInterrupt):
        write(other, encode=Encoder(fails_at=2))
    with pytest.raises(UserError, match=f"^{other}: unfinished.*text_states.json.*cache_text"):
        open_text_states(other)
    (other / ".states_00002.npy.new").write_bytes(b"half")  # as `kill -9` leaves it
    (other / "states_00001.npy").write_bytes((other / "states_00001.npy").read_bytes()[:-1])
    resumed = Encoder()
    write(other, CAPTIONS[::-1], resumed)
    assert len(resumed.calls) == 3
    assert contents(other) == contents(folder)
    again = Encoder()
    write(other, encode=again)
    assert not again.calls and contents(other) == contents(folder)


@pytest.mark.parametrize(
    "changes", [{"captions": [*CAPTIONS, "new"]}, {"encoder": "another"}], ids=str
)
@pytest.mark.parametrize("finished", [True, False])
def test_shards_of_other_captions_or_encoders_are_not_kept(tmp_path, changes, finished):
    if finished:
        write(tmp_path / "s")
    else:
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / "s", encode=Encoder(fails_at=3))
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "s", encode=Encoder(fails_at=0), **changes)
    with pytest.raises(UserError, match="unfinished"):
        open_text_states(tmp_path / "s")
    encode = Encoder(scale=2)
    write(tmp_path / "s", encode=encode, **changes)
    assert len(encode.calls) == 4
    expected = (2 * states_of(CAPTIONS)).astype(np.float16)
    np.testing.assert_array_equal(open_text_states(tmp_path / "s").lookup(CAPTIONS), expected)


def test_a_full_disk_keeps_finished_shards(folder, tmp_path):
    other = tmp_path / "other"
    with full_disk(300), pytest.raises(UserError, match=f"^{other}: .*too large"):
        write(other, [*CAPTIONS, *map(str, range(40))])  # an index of 632 bytes
    with pytest.raises(KeyboardInterrupt):
        write(other, encode=Encoder(fails_at=3))
    (other / "states_00000.npy").unlink()
    with full_disk(250), pytest.raises(UserError, match=f"^{other}: .*too large"):
        write(other, encode=Encoder())
    assert not list(other.glob(".*.new")) and len(list(other.glob("states_*.npy"))) == 2
    encode = Encoder()
    write(other, encode=encode)
    assert len(encode.calls) == 2 and contents(other) == contents(folder)


def cluster(folder, encoders):
    """Writes states with one thread per process; returns the error of each."""
    errors, votes = [None] * len(encoders), []
    barrier, lock = threading.Barrier(len(encoders)), threading.Lock()

    def all_agree(ok):
        with lock:
            votes.append(ok)
        barrier.wait(timeout=30)
        result = all(votes)
        if barrier.wait(timeout=30) == 0:
            votes.clear()
        barrier.wait(timeout=30)
        return result

    def run(index):
        try:
            write(
                folder,
                encode=encoders[index],
                process_index=index,
                process_count=len(encoders),
                all_agree=all_agree,
            )
        except UserError as error:
            errors[index] = str(error)

    threads = [threading.Thread(target=run, args=[index]) for index in range(len(encoders))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def test_processes_share_the_shards(folder, tmp_path):
    other = tmp_path / "other"
    failing = Encoder(fails_at=0, error=UserError("device: lost"))
    errors = cluster(other, [Encoder(), failing, Encoder()])
    assert errors[1] == "device: lost" and all("another process" in errors[i] for i in (0, 2))
    assert not (other / "text_states.json").exists()
    encoders = [Encoder(), Encoder(), Encoder()]
    assert cluster(other, encoders) == [None] * 3
    assert [len(encode.calls) for encode in encoders] == [0, 1, 0]
    assert contents(other) == contents(folder)

    two = tmp_path / "two"
    encoders = [Encoder(), Encoder()]
    assert cluster(two, encoders) == [None, None]
    assert [len(encode.calls) for encode in encoders] == [2, 2]
    assert contents(two) == contents(folder)


def test_a_missing_caption_is_named(folder):
    with pytest.raises(UserError, match=f"^{folder}: .*'caption 99'.*experiments.cache_text"):
        open_text_states(folder).lookup(["caption 1", "caption 99", "caption 100"])


def test_captions_of_equal_digests_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("stunet.text_states._digest", len)
    with pytest.raises(ValueError, match="'(aa|bb)' and '(aa|bb)'"):
        write(tmp_path / "s", ["aa", "bb", "c"])


def test_states_that_float16_cannot_hold_are_refused(tmp_path):
    with pytest.raises(UserError, match="caption.*not finite.*65504"):
        write(tmp_path / "s", encode=Encoder(scale=1e6))


@pytest.mark.parametrize("name", ["text_states.json", "index.npy", "states_00000.npy"])
def test_damaged_files_are_named(folder, name):
    path, content = folder / name, (folder / name).read_bytes()
    for damage, expected in (
        (LFS_POINTER, "git lfs pull"),
        (content[:-9], "JSON|cannot be read"),
        (b"", "JSON|cannot be read"),
    ):
        path.write_bytes(damage)
        with pytest.raises(UserError, match=f"^{re.escape(str(path))}: .*({expected})"):
            open_text_states(folder)
    path.unlink()
    with pytest.raises(UserError, match=f"{name}.*cache_text"):
        open_text_states(folder)


def test_shards_are_checked_when_they_are_read(folder):
    states, path = open_text_states(folder), folder / "states_00003.npy"
    np.save(path, np.zeros((5, L, D + 1), np.float16))
    with pytest.raises(UserError, match=rf"^{path}: .*\[5, 3, 5\].*\[5, 3, 4\]"):
        states.lookup(["", *CAPTIONS])
    path.unlink()
    with pytest.raises(UserError, match=f"^{path}: missing"):
        open_text_states(folder)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"format_version": 2}, "format_version is 2, expected 1"),
        ({"shape": [0, 3, 4]}, r"shape\[0\].* 0, .*1"),
        ({"encoder": 3}, "encoder is 3"),
    ],
)
def test_invalid_descriptions(folder, change, expected):
    path = folder / "text_states.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=f"^{path}: {expected}"):
        open_text_states(folder)


def test_missing_states_and_those_of_the_older_format(tmp_path):
    folder = tmp_path / "text_states_train"
    with pytest.raises(UserError, match=f"^{folder}: no such.*experiments.cache_text"):
        open_text_states(folder)
    old = tmp_path / "text_states_train.npy"
    np.save(old, np.zeros((3, L, D), np.float16))
    with pytest.raises(UserError, match=f"^{old}: .*older format.*experiments.cache_text"):
        open_text_states(folder)


def test_no_byte_can_change_unnoticed(folder):
    texts = [*CAPTIONS, ""]
    expected = open_text_states(folder).lookup(texts)
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        for place in {0, 60, len(content) // 2, len(content) - 1}:
            changed = bytearray(content)
            changed[place] ^= 1
            path.write_bytes(changed)
            try:
                found = open_text_states(folder).lookup(texts)
            except UserError as error:
                assert path.name in str(error) or path.name.replace("crc32c", "states") in str(
                    error
                )
            else:  # a byte of padding in a header, or white space
                np.testing.assert_array_equal(found, expected)
        path.unlink()
        with pytest.raises(UserError):
            open_text_states(folder).lookup(texts)
        path.write_bytes(content)
    names = open_text_states(folder).check()
    assert sorted(names) == sorted(contents(folder))


def test_states_of_older_versions_have_no_checksums(folder, caplog):
    expected = open_text_states(folder).lookup(CAPTIONS)
    fields = json.loads((folder / "text_states.json").read_text())
    fields.pop("has_checksums")
    (folder / "text_states.json").write_text(json.dumps(fields))
    for path in folder.glob("crc32c_*.npy"):
        path.unlink()
    np.testing.assert_array_equal(open_text_states(folder).lookup(CAPTIONS), expected)
    assert str(folder) in caplog.text
