import subprocess
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest
from ml_collections import ConfigDict

from data import pipeline
from data.moving_shapes.render import render
from data.moving_shapes.vocabulary import Attributes, caption, is_held_out, parse_caption
from stunet.errors import UserError
from stunet.text_states import write_text_states

FIELDS = {
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
    data_dir = str(tmp_path_factory.mktemp("datasets"))
    config = pipeline.parse_config({**FIELDS, "data_dir": data_dir})
    pipeline.prepare(config)
    return config


def tokenize(texts):
    tokens = np.array([[len(text), text.count(" ")] for text in texts], np.int32)
    return tokens, tokens > 0


def take(config, count, **arguments):
    batches = pipeline.make_batches(config, tokenize, **{"batch_size": 6, **arguments})
    return [next(batches) for _ in range(count)]


def assert_equal(batch, other):
    assert batch.keys() == other.keys()
    for key in batch:
        np.testing.assert_array_equal(batch[key], other[key], err_msg=key)


def test_shapes_and_dtypes(config):
    (batch,) = take(config, 1)
    found = {key: (value.shape, value.dtype.name) for key, value in batch.items()}
    assert found == {
        "video": ((6, 4, 8, 8, 3), "float32"),
        "tokens": ((6, 2), "int32"),
        "token_mask": ((6, 2), "bool"),
        "position": ((6,), "int64"),
    }


def test_restart_at_any_step_yields_the_same_batches(config):
    batches = take(config, 16)  # more than two epochs of 40
    for step in (0, 1, 6, 13):
        for batch, other in zip(batches[step:], take(config, 2, start_step=step), strict=False):
            assert_equal(batch, other)


def test_processes_share_one_global_batch(config):
    whole = take(config, 9)
    parts = [take(config, 9, process_index=i, process_count=2) for i in range(2)]
    for batch, first, second in zip(whole, *parts, strict=True):
        assert len(first["position"]) == 3
        assert_equal(batch, {key: np.concatenate([first[key], second[key]]) for key in batch})


def test_batches_of_one(config):
    (batch,) = take(config, 1, batch_size=2)
    first, second = take(config, 2, batch_size=1)
    assert_equal(batch, {key: np.concatenate([first[key], second[key]]) for key in batch})


def test_every_epoch_shows_every_record_in_another_order(config):
    batches = take(replace(config, caption_dropout=0.0), 4, batch_size=20)
    clips = np.concatenate([batch["video"] for batch in batches]).reshape(80, -1)
    first, second = clips[:40], clips[40:]
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(np.unique(first, axis=0), np.unique(second, axis=0))
    positions = np.concatenate([batch["position"] for batch in batches])
    np.testing.assert_array_equal(positions, np.arange(80))
    other = take(replace(config, seed=6), 1, batch_size=40)[0]["video"].reshape(40, -1)
    assert not np.array_equal(first, other)


def test_clips_are_those_of_the_captions(config):
    batch = take(replace(config, caption_dropout=0.0), 1, batch_size=40)[0]
    records = pipeline.open_records(config)
    for record in (records[i] for i in range(len(records))):
        words = {name: record[name].decode() for name in Attributes.__dataclass_fields__}
        video = render(Attributes(**words), record["seed"], 4, 8, 8.0)
        (row,) = np.flatnonzero((batch["video"] == video).all((1, 2, 3, 4)))
        assert batch["tokens"][row, 0] == len(record["caption"])


def test_motions_select_and_weight_records(config):
    every = pipeline.captions(config)
    wanted = [text for text in every if parse_caption(text)["motion"] in ("left", "spinning")]
    assert 0 < len(wanted) < len(every)
    assert pipeline.captions(replace(config, motions=("left", "spinning"))) == wanted
    twice = pipeline.captions(replace(config, motions=("left", "spinning", "left")))
    assert sorted(twice) == sorted(
        wanted + [t for t in wanted if parse_caption(t)["motion"] == "left"]
    )


def test_caption_dropout_is_a_quarter(config):
    batches = take(config, 40)
    empty = np.concatenate([batch["tokens"][:, 0] == 0 for batch in batches])
    assert 0.15 < empty.mean() < 0.35
    assert not any(
        (batch["tokens"] == 0).any() for batch in take(replace(config, caption_dropout=0.0), 5)
    )


def test_images_are_different_frames_in_each_epoch(config):
    images = replace(config, num_frames=1)
    first, second = take(images, 2, batch_size=40)
    assert first["video"].shape == (40, 1, 8, 8, 3)
    assert not np.array_equal(
        np.unique(first["video"].reshape(40, -1), axis=0),
        np.unique(second["video"].reshape(40, -1), axis=0),
    )
    assert_equal(second, take(images, 1, batch_size=40, start_step=1)[0])


def test_windows_of_longer_clips(config):
    """The frames of an example are consecutive, with a random start."""
    long = replace(config, num_frames=12, caption_dropout=0.0)
    (whole,) = take(long, 1, batch_size=40)
    (parts,) = take(replace(long, num_frames=4, clip_frames=12), 1, batch_size=40)
    starts = []
    for clip, part in zip(whole["video"], parts["video"], strict=True):
        distances = [np.abs(clip[first : first + 4] - part).max() for first in range(9)]
        assert min(distances) < 1e-6
        starts.append(int(np.argmin(distances)))
    assert {0, 8} < set(starts)


def test_crops(config):
    (whole,), (parts,) = (take(replace(config, **change), 1) for change in ({}, {"crop": 5}))
    assert parts["video"].shape == (6, 4, 5, 5, 3)
    corners = set()
    for clip, part in zip(whole["video"], parts["video"], strict=True):
        places = [(top, left) for top in range(4) for left in range(4)]
        found = [(y, x) for y, x in places if np.array_equal(clip[:, y : y + 5, x : x + 5], part)]
        corners.update(found)
        assert found
    assert len(corners) > 3


def test_whole_examples_are_the_first_ones_uncropped(config):
    videos, captions = pipeline.whole_examples(replace(config, crop=5), 3)
    (batch,) = take(replace(config, caption_dropout=0.0), 1)
    np.testing.assert_array_equal(videos, batch["video"][:3])
    np.testing.assert_array_equal(tokenize(captions)[0], batch["tokens"][:3])


def test_heldout_combinations_are_disjoint(config):
    for split, count in (("train", 40), ("heldout", 4)):
        captions = pipeline.captions(replace(config, split=split))
        assert len(captions) == count
        for text in captions:
            words = parse_caption(text)
            labels = (words["shape"], words["colour"], words["motion"])
            assert is_held_out(*labels) == (split == "heldout")


def test_text_states_replace_tokens(config):
    def encode(texts):
        return np.array([[[len(text)] * 3] for text in texts], np.float16)

    captions, folder = pipeline.captions(config), pipeline.text_states_path(config)
    write_text_states(folder, captions, encode, "encoder")
    for plain, cached in zip(
        take(config, 5), take(replace(config, text_states=True), 5), strict=True
    ):
        assert cached["text_states"].shape == (6, 1, 3) and "tokens" not in cached
        np.testing.assert_array_equal(cached["text_states"][:, 0, 0], plain["tokens"][:, 0])
        np.testing.assert_array_equal(cached["video"], plain["video"])
    write_text_states(folder, captions[:1], encode, "another")
    with pytest.raises(UserError, match=r"text_states_train.*'a .*experiments\.cache_text"):
        take(replace(config, text_states=True), 1)


def test_interrupted_build_is_no_dataset(config, tmp_path, monkeypatch):
    fresh = replace(config, data_dir=str(tmp_path))

    def stop(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("data.moving_shapes.moving_shapes_builder.caption", stop)
        with pytest.raises(KeyboardInterrupt):
            pipeline.prepare(fresh)
    with pytest.raises(UserError, match="moving_shapes/n40"):
        take(fresh, 1)
    pipeline.prepare(fresh)
    assert pipeline.captions(fresh) == pipeline.captions(config)


def test_dataset_built_by_a_concurrent_process_is_used(config, tmp_path, monkeypatch):
    fresh = replace(config, data_dir=str(tmp_path))

    def build_concurrently(*arguments):
        monkeypatch.setattr("data.moving_shapes.moving_shapes_builder.caption", caption)
        pipeline.prepare(fresh)
        return caption(*arguments)

    monkeypatch.setattr("data.moving_shapes.moving_shapes_builder.caption", build_concurrently)
    pipeline.prepare(fresh)
    assert pipeline.captions(fresh) == pipeline.captions(config)
    assert not list(tmp_path.rglob("incomplete*"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "shapes"}, "'shapes'.* moving_shapes, video_folder, ucf101"),
        ({"name": "tests.data.stripes:Strips"}, "'tests.data.stripes:Strips'.*Strips"),
        ({"name": "tests.data.stripes:LEVELS"}, "'tests.data.stripes:LEVELS'.*DataConfig"),
        ({"name": None}, "config.data.*name.*None.* moving_shapes, "),
        ({"num_examples": None}, "config.data.*num_examples.*int"),
        ({"resolutoin": 8}, "config.data.*resolutoin.*resolution"),
        ({"num_frames": 0}, "config.data: num_frames: 0"),
        ({"crop": 9}, "config.data: crop: 9.* 8"),
        ({"clip_frames": 3}, "config.data: clip_frames: 3.* 4"),
        ({"motions": ("left", "jumping")}, "config.data: motions.*'jumping'.*left, right"),
        ({"seed": -1}, "config.data: seed: -1.* 0"),
        ({"caption_dropout": 1.5}, "config.data: caption_dropout: 1.5.* 0 .* 1"),
        ({"source": "clips"}, "source.*'clips'.*'moving_shapes'.*video_folder, ucf101"),
        ({"prompts": "a.tsv"}, "prompts.*'a.tsv'.*'moving_shapes'.*ucf101"),
        ({"name": "ucf101", "source": "x"}, "num_examples.*40.*'ucf101'.*moving_shapes"),
        (
            {"name": "video_folder", "source": "x", "num_examples": None, "texture": 0.1},
            "texture.*0.1.*'video_folder'.*moving_shapes",
        ),
    ],
)
def test_invalid_configs(changes, message):
    with pytest.raises(UserError, match=message) as error:
        pipeline.parse_config({**FIELDS, "data_dir": "datasets", **changes})
    assert "\n" not in str(error.value)


def test_unset_fields_of_other_datasets_are_ignored():
    unset = {"source": "", "prompts": None}
    plain = pipeline.parse_config({**FIELDS, "data_dir": "datasets"})
    assert pipeline.parse_config({**FIELDS, "data_dir": "datasets", **unset}) == plain
    unset = {"num_examples": None, "clip_frames": None, "texture": 0.0, "motions": ()}
    fields = {**FIELDS, "name": "ucf101", "data_dir": "datasets", "source": "", **unset}
    assert pipeline.parse_config(ConfigDict(fields)).prompts is None


def test_missing_source():
    config = pipeline.parse_config(
        {**FIELDS, "name": "ucf101", "num_examples": None, "data_dir": "x", "source": ""}
    )
    with pytest.raises(UserError, match=r"config\.data\.source.*'ucf101'"):
        pipeline.prepare(config)


def test_invalid_batches(config):
    with pytest.raises(UserError, match=r"'test'.*heldout or train"):
        take(replace(config, split="test"), 1)
    with pytest.raises(UserError, match=r"batch_size: 6.* 4"):
        take(config, 1, process_count=4)
    with pytest.raises(UserError, match=r"text_states_heldout"):
        take(replace(config, split="heldout", text_states=True), 1)


def test_dataset_from_outside_the_package(tmp_path):
    """`tests.data.stripes` defines a dataset that `data.datasets` does not contain."""
    fields = {**FIELDS, "name": "tests.data.stripes:StripesConfig", "data_dir": str(tmp_path)}
    del fields["num_examples"]
    config = pipeline.parse_config({**fields, "period": 4, "caption_dropout": 0.0})
    pipeline.prepare(config)
    assert pipeline.captions(config) == ["stripes 0", "stripes 1", "stripes 2"]
    (batch,) = take(config, 1, batch_size=3)
    assert batch["video"].shape == (3, 4, 8, 8, 3)
    assert sorted(batch["video"][:, 0, 0, 0, 0]) == [-1, -0.5, 0]
    with pytest.raises(UserError, match=r"num_examples.*40.*moving_shapes"):
        pipeline.parse_config({**fields, "period": 4, "num_examples": 40})
    with pytest.raises(UserError, match="period"):
        pipeline.parse_config(fields)


def test_tensorflow_is_never_imported(config):
    program = (
        "import sys; from data import pipeline; "
        f"config = pipeline.parse_config({asdict(config)!r}); "
        "pipeline.captions(config); assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
