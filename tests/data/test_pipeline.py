import subprocess
import sys

import numpy as np
import pytest

from data import pipeline
from data.moving_shapes.render import render
from data.moving_shapes.vocabulary import Attributes, caption, is_held_out, parse
from stunet.errors import UserError

CONFIG = {
    "name": "moving_shapes",
    "split": "train",
    "num_examples": 40,
    "num_frames": 4,
    "resolution": 8,
    "fps": 8.0,
    "seed": 5,
    "caption_dropout": 0.25,
}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    config = {**CONFIG, "data_dir": str(tmp_path_factory.mktemp("datasets"))}
    pipeline.prepare(config)
    return config


def tokenize(texts):
    tokens = np.array([[len(text), text.count(" ")] for text in texts], np.int32)
    return tokens, tokens > 0


def take(config, count, **arguments):
    batches = pipeline.make_batches(config, tokenize, **{"batch_size": 6, **arguments})
    return [next(batches) for _ in range(count)]


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for key in one:
        np.testing.assert_array_equal(one[key], other[key], err_msg=key)


def test_form(config):
    (batch,) = take(config, 1)
    forms = {key: (value.shape, value.dtype.name) for key, value in batch.items()}
    assert forms == {
        "video": ((6, 4, 8, 8, 3), "float32"),
        "tokens": ((6, 2), "int32"),
        "token_mask": ((6, 2), "bool"),
        "position": ((6,), "int64"),
    }


def test_restart_at_any_step_gives_the_same_batches(config):
    batches = take(config, 16)  # more than two epochs of 40
    for step in (0, 1, 6, 13):
        for one, other in zip(batches[step:], take(config, 2, start_step=step), strict=False):
            assert_equal(one, other)


def test_processes_share_one_global_batch(config):
    whole = take(config, 9)
    parts = [take(config, 9, process_index=i, process_count=2) for i in range(2)]
    for batch, first, second in zip(whole, *parts, strict=True):
        assert len(first["position"]) == 3
        assert_equal(batch, {key: np.concatenate([first[key], second[key]]) for key in batch})


def test_every_epoch_shows_every_record_in_another_order(config):
    batches = take({**config, "caption_dropout": 0.0}, 4, batch_size=20)
    clips = np.concatenate([batch["video"] for batch in batches]).reshape(80, -1)
    first, second = clips[:40], clips[40:]
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(np.unique(first, axis=0), np.unique(second, axis=0))
    positions = np.concatenate([batch["position"] for batch in batches])
    np.testing.assert_array_equal(positions, np.arange(80))
    other = take({**config, "seed": 6}, 1, batch_size=40)[0]["video"].reshape(40, -1)
    assert not np.array_equal(first, other)


def test_clips_are_those_of_the_captions(config):
    batch = take({**config, "caption_dropout": 0.0}, 1, batch_size=40)[0]
    records = pipeline.open_source(config).records
    for record in (records[i] for i in range(len(records))):
        words = {name: record[name].decode() for name in Attributes.__dataclass_fields__}
        video = render(Attributes(**words), record["seed"], 4, 8, 8.0)
        (row,) = np.flatnonzero((batch["video"] == video).all((1, 2, 3, 4)))
        assert batch["tokens"][row, 0] == len(record["caption"])


def test_only_clips_of_the_motions_that_are_asked_for(config):
    every = pipeline.captions(config)
    wanted = [text for text in every if parse(text)["motion"] in ("left", "spinning")]
    assert 0 < len(wanted) < len(every)
    assert pipeline.captions({**config, "motions": ("left", "spinning")}) == wanted
    twice = pipeline.captions({**config, "motions": ("left", "spinning", "left")})
    assert sorted(twice) == sorted(wanted + [t for t in wanted if parse(t)["motion"] == "left"])
    with pytest.raises(UserError, match="motions: no 'jumping'; choose of left, right"):
        pipeline.prepare({**config, "motions": ("left", "jumping")})


def test_caption_dropout_is_a_quarter(config):
    batches = take(config, 40)
    empty = np.concatenate([batch["tokens"][:, 0] == 0 for batch in batches])
    assert 0.15 < empty.mean() < 0.35
    assert not any(
        (batch["tokens"] == 0).any() for batch in take({**config, "caption_dropout": 0.0}, 5)
    )


def test_images_are_other_moments_in_each_epoch(config):
    images = {**config, "num_frames": 1}
    first, second = take(images, 2, batch_size=40)
    assert first["video"].shape == (40, 1, 8, 8, 3)
    assert not np.array_equal(
        np.unique(first["video"].reshape(40, -1), axis=0),
        np.unique(second["video"].reshape(40, -1), axis=0),
    )
    assert_equal(second, take(images, 1, batch_size=40, start_step=1)[0])


def test_windows_of_longer_clips(config):
    """An example's frames follow each other in the clip, from anywhere in it."""
    long = {**config, "num_frames": 12, "caption_dropout": 0.0}
    (whole,) = take(long, 1, batch_size=40)
    (parts,) = take({**long, "num_frames": 4, "clip_frames": 12}, 1, batch_size=40)
    starts = []
    for clip, part in zip(whole["video"], parts["video"], strict=True):
        distances = [np.abs(clip[first : first + 4] - part).max() for first in range(9)]
        assert min(distances) < 1e-6
        starts.append(int(np.argmin(distances)))
    assert {0, 8} < set(starts)


def test_crops(config):
    (whole,), (parts,) = (take({**config, **change}, 1) for change in ({}, {"crop": 5}))
    assert parts["video"].shape == (6, 4, 5, 5, 3)
    corners = set()
    for clip, part in zip(whole["video"], parts["video"], strict=True):
        places = [(top, left) for top in range(4) for left in range(4)]
        found = [(y, x) for y, x in places if np.array_equal(clip[:, y : y + 5, x : x + 5], part)]
        corners.update(found)
        assert found
    assert len(corners) > 3


def test_whole_examples_are_the_first_ones_uncropped(config):
    videos, captions = pipeline.whole_examples({**config, "crop": 5}, 3)
    (batch,) = take({**config, "caption_dropout": 0.0}, 1)
    np.testing.assert_array_equal(videos, batch["video"][:3])
    np.testing.assert_array_equal(tokenize(captions)[0], batch["tokens"][:3])


def test_heldout_combinations_are_disjoint(config):
    for split, count in (("train", 40), ("heldout", 4)):
        captions = pipeline.captions({**config, "split": split})
        assert len(captions) == count
        for text in captions:
            words = parse(text)
            labels = (words["shape"], words["colour"], words["motion"])
            assert is_held_out(*labels) == (split == "heldout")


def test_text_states_take_the_place_of_tokens(config):
    captions = pipeline.captions(config)
    states = np.array([[[len(text)] * 3] for text in [*captions, ""]], np.float16)
    np.save(pipeline.text_states_path(config), states)
    for plain, cached in zip(
        take(config, 5), take({**config, "text_states": True}, 5), strict=True
    ):
        assert cached["text_states"].shape == (6, 1, 3) and "tokens" not in cached
        np.testing.assert_array_equal(cached["text_states"][:, 0, 0], plain["tokens"][:, 0])
        np.testing.assert_array_equal(cached["video"], plain["video"])
    np.save(pipeline.text_states_path(config), states[:-1])
    with pytest.raises(UserError, match=r"expected \[41, L, D\] text states, got \(40, 1, 3\)"):
        take({**config, "text_states": True}, 1)


def test_half_written_build_is_not_taken_for_a_dataset(config, tmp_path, monkeypatch):
    fresh = {**config, "data_dir": str(tmp_path)}

    def stop(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("data.moving_shapes.moving_shapes_builder.caption", stop)
        with pytest.raises(KeyboardInterrupt):
            pipeline.prepare(fresh)
    with pytest.raises(UserError, match=r"no dataset at .*: prepare it first"):
        take(fresh, 1)
    pipeline.prepare(fresh)
    assert pipeline.captions(fresh) == pipeline.captions(config)


def test_a_dataset_that_another_process_was_sooner_to_build_is_taken(config, tmp_path, monkeypatch):
    fresh = {**config, "data_dir": str(tmp_path)}

    def overtaken(*arguments):
        monkeypatch.setattr("data.moving_shapes.moving_shapes_builder.caption", caption)
        pipeline.prepare(fresh)
        return caption(*arguments)

    monkeypatch.setattr("data.moving_shapes.moving_shapes_builder.caption", overtaken)
    pipeline.prepare(fresh)
    assert pipeline.captions(fresh) == pipeline.captions(config)
    assert not list(tmp_path.rglob("incomplete*"))


def test_mistakes(config):
    with pytest.raises(UserError, match="unknown dataset 'shapes'; known are moving_shapes,"):
        pipeline.prepare({**config, "name": "shapes"})
    with pytest.raises(UserError, match="has no split 'test'; it has heldout, train"):
        take({**config, "split": "test"}, 1)
    with pytest.raises(UserError, match="batch size 6 is not divisible by 4 processes"):
        take(config, 1, process_count=4)
    for change, message in (
        ({"crop": 9}, "crop is 9; frames are only 8 pixels wide"),
        (
            {"name": "ucf101", "source": ""},
            "'ucf101' needs its videos: config.data.source is empty",
        ),
        ({"clip_frames": 3}, "clip_frames is 3; num_frames 4 need as many"),
    ):
        with pytest.raises(UserError, match=message):
            pipeline.prepare({**config, **change})
    with pytest.raises(UserError, match=r"no cached text states at .*heldout"):
        take({**config, "split": "heldout", "text_states": True}, 1)


def test_tensorflow_is_never_imported(config):
    program = (
        "import sys; from data import pipeline; "
        f"pipeline.captions({config!r}); assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
