"""The emoji dataset: names, captions, splits, composition and bad sources.

Uses synthetic packages: WebP files of a few emoji in plain colours, named as in the npm packages.
"""

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from data import pipeline
from data.emoji import packages
from data.emoji.composition import Layout, compose, draw_layout, plain_layout, shrink
from data.emoji.emoji_builder import EmojiConfig
from data.emoji.vocabulary import (
    BACKGROUNDS,
    MOVING,
    SKIN_TONES,
    all_captions,
    clear_concepts,
    draw_caption,
    motions,
    parse_emoji,
    plain_caption,
    select_concepts,
)
from experiments import fvd_bias, judge_emoji
from experiments.configs import emoji as emoji_config
from experiments.ship import WORLDS
from stunet.errors import UserError
from stunet.evaluation.features import Extractor, Resize
from stunet.evaluation.scores import frechet_distance
from stunet.training.workdir.run_record import RunRecord, write_record

TONES = ("1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF")


def entry(hexcode: str, label: str, group: int, tones: bool = False, **fields) -> dict:
    """Returns an entry of emojibase's data.json, with five skin tones if `tones`."""
    skins = [
        {
            "hexcode": f"{hexcode.split('-')[0]}-{code}" + hexcode[len(hexcode.split("-")[0]) :],
            "label": f"{label}: {tone} skin tone",
        }
        for code, tone in zip(TONES, SKIN_TONES, strict=True)
    ]
    return {
        "hexcode": hexcode,
        "label": label,
        "group": group,
        "tags": ["fast", label],
        **({"skins": skins} if tones else {}),
        **fields,
    }


ENTRIES = (
    entry("1F3C3", "person running", 1, tones=True),
    entry("1F3C3-200D-2642-FE0F", "man running", 1, tones=True),
    entry("1F3C3-200D-2640-FE0F", "woman running", 1, tones=True),
    entry("1F692", "fire engine", 5),
    entry("1F40E", "horse", 3),
    entry("1F448", "backhand index pointing left", 1, tones=True),
    entry("1F44F", "clapping hands", 1, tones=True),
    entry("1F51F", "keycap: 10", 8),
    entry("1F468-200D-1F692", "man firefighter", 1, tones=True),
    entry("1F9D1-200D-1F692", "firefighter", 1, tones=True),
)
NUM_EMOJI = sum(1 + len(e.get("skins", ())) for e in ENTRIES)


def animation(colours: list[tuple[int, int, int, int]]) -> bytes:
    """Returns an animation of 16x16 pixels with a frame per colour."""
    first, *others = (Image.new("RGBA", (16, 16), colour) for colour in colours)
    content = io.BytesIO()
    extra = {"save_all": True, "append_images": others, "loop": 0} if others else {}
    first.save(content, "WEBP", lossless=True, duration=42, **extra)
    return content.getvalue()


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """Returns a folder of synthetic packages as npm installs them."""
    folder = tmp_path_factory.mktemp("packages")
    codes = [c["hexcode"].lower() for e in ENTRIES for c in (e, *e.get("skins", ()))]
    frames = [(250, 0, 0, 254), (0, 250, 0, 254), (0, 0, 250, 254)]
    for name, version in packages.VERSIONS.items():
        path = folder / "node_modules" / name
        (path / "assets").mkdir(parents=True)
        (path / "package.json").write_text(json.dumps({"name": name, "version": version}))
        for number, code in enumerate(codes):
            file = path / "assets" / f"{code}.webp"
            if name == packages.STILLS:
                file.write_bytes(animation(frames[:1]))
            elif name == packages.ANIMATIONS[number % 4]:
                file.write_bytes(animation(frames if number % 2 else frames[:1]))
    (folder / "node_modules" / packages.NAMES / "en").mkdir()
    names = folder / "node_modules" / packages.NAMES / "en" / "data.json"
    names.write_text(json.dumps(ENTRIES))
    return folder


@pytest.fixture(autouse=True)
def few_pictures(monkeypatch):
    monkeypatch.setattr(packages, "NUM_PICTURES", NUM_EMOJI)


@pytest.fixture(scope="module")
def config(source, tmp_path_factory) -> EmojiConfig:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packages, "NUM_PICTURES", NUM_EMOJI)
        config = pipeline.parse_config(
            {
                "name": "emoji",
                "source": str(source),
                "data_dir": str(tmp_path_factory.mktemp("datasets")),
                "split": "train",
                "num_frames": 3,
                "resolution": 16,
                "fps": 8.0,
                "seed": 0,
                "caption_dropout": 0.0,
            }
        )
        return pipeline.prepare(config)


def by_name(name: str, tones: tuple[str, ...] = ()):
    found = parse_emoji(ENTRIES).values()
    return next(emoji for emoji in found if (emoji.name, emoji.tones) == (name, tones))


@pytest.mark.parametrize(
    ("name", "tones", "concept", "gender", "phrase"),
    [
        ("man running", ("dark",), "running", "man", "a man with dark skin running"),
        ("person running", (), "running", "person", "a person running"),
        ("horse", (), "horse", "", "a brown horse galloping"),
        ("clapping hands", ("medium",), "clapping hands", "", "clapping hands with medium skin"),
        ("man firefighter", (), "firefighter", "man", "a man as a firefighter"),
        ("firefighter", ("light",), "firefighter", "person",
         "a person with light skin as a firefighter"),
        ("fire engine", (), "fire engine", "", "a fire engine"),
    ],
)  # fmt: skip
def test_names_become_concepts_and_phrases(name, tones, concept, gender, phrase):
    emoji = by_name(name, tones)
    assert (emoji.concept, emoji.gender, emoji.phrases[0]) == (concept, gender, phrase)
    assert plain_caption(emoji, "orange") == f"{phrase} on an orange background"


def test_captions_contain_tags_but_no_repeated_names():
    assert by_name("fire engine").phrases == ("a fire engine", "a fire engine, fast")


def test_mirror_images_swap_left_and_right():
    emoji = by_name("backhand index pointing left")
    rng = np.random.default_rng(0)
    assert "left" in draw_caption(emoji.phrases, "white", False, rng)
    text = draw_caption(emoji.phrases, "white", True, rng)
    assert "right" in text
    assert "left" not in text
    captions = set(all_captions(emoji))
    drawn = {
        draw_caption(emoji.phrases, background, mirrored, rng)
        for background in BACKGROUNDS
        for mirrored in (False, True)
        for _ in range(50)
    }
    assert drawn <= captions
    assert len(drawn) > 0.9 * len(captions)


def test_written_emoji_are_not_mirrored():
    rng = np.random.default_rng(0)
    assert not by_name("keycap, 10").can_mirror
    assert not any(draw_layout(0.8, False, rng).mirrored for _ in range(20))
    assert {draw_layout(0.8, True, rng).mirrored for _ in range(20)} == {True, False}


def test_a_tenth_of_the_combinations_is_held_out():
    entries = [
        entry(f"1F{noun}{number:03X}", f"{word} activity{number}ing", 1, tones=True)
        for number in range(100)
        for noun, word in enumerate(("person", "man", "woman"))
    ]
    found = parse_emoji(entries).values()
    combinations = [emoji for emoji in found if emoji.tones and emoji.gender]
    assert len(combinations) == 1500
    share = np.mean([emoji.is_held_out for emoji in combinations])
    assert 0.07 < share < 0.13
    assert not any(emoji.is_held_out for emoji in found if not (emoji.tones and emoji.gender))
    # Every activity, gender and tone remains in training.
    seen = [emoji for emoji in combinations if not emoji.is_held_out]
    for field in ("concept", "gender", "tones"):
        assert {getattr(e, field) for e in seen} == {getattr(e, field) for e in combinations}


def test_table_of_motions():
    table = motions()
    assert len(table) >= 150
    assert all(phrase == phrase.strip() and phrase for row in table.values() for phrase in row)
    assert clear_concepts() < set(table) and len(clear_concepts()) >= 150


def test_unknown_concepts_suggest_the_nearest():
    known = ("running", "horse", "clapping hands", "fire engine")
    assert select_concepts((), known) == set(known)
    assert select_concepts(("horse",), known) == {"horse"}
    assert select_concepts((MOVING,), known) == {"running", "horse", "clapping hands"}
    assert select_concepts(("clear", "fire engine"), known) == set(known)
    with pytest.raises(UserError, match="'claping hand'.*'clapping hands'"):
        select_concepts(("claping hand",), known)


def test_concepts_are_checked_before_the_dataset_is_built(config, tmp_path, monkeypatch):
    monkeypatch.setattr(packages, "NUM_PICTURES", NUM_EMOJI)
    changed = dataclasses.replace(config, concepts=("hors",), data_dir=str(tmp_path / "new"))
    with pytest.raises(UserError, match="'hors'.*'horse'"):
        pipeline.prepare(changed)
    assert not (tmp_path / "new").exists()


def test_splits(config):
    train, held_out = config.emoji(), dataclasses.replace(config, split="heldout").emoji()
    assert len(train) + len(held_out) == NUM_EMOJI
    assert all(emoji.is_held_out for emoji in held_out)
    assert not any(emoji.is_held_out for emoji in train)
    records = pipeline.open_records(dataclasses.replace(config, split="heldout"))
    assert {r["code"].decode() for r in (records[i] for i in range(len(records)))} == {
        emoji.code for emoji in held_out
    }


def test_pictures_of_the_style_are_those_of_the_image_model(config, tmp_path):
    images = dataclasses.asdict(dataclasses.replace(config, num_frames=1))
    write_record(RunRecord(config={"data": images}, stage="t2i"), tmp_path)
    frames, captions = WORLDS["emoji"].scenes(tmp_path)
    assert frames.shape == (len(captions), 16, 16, 3)
    assert np.abs(frames).max() <= 1 and len(set(captions)) > 10


def test_rare_concepts_are_repeated(config):
    horses = pipeline.open_records(dataclasses.replace(config, concepts=("horse",)))
    assert [record["name"] for record in (horses[i] for i in range(len(horses)))] == [b"horse"] * 6
    runners = dataclasses.replace(config, concepts=("running",))
    expected = [emoji for emoji in config.emoji() if emoji.concept == "running"]
    assert len(pipeline.open_records(runners)) == len(expected) >= 12


def test_concepts_and_splits_that_a_dataset_lacks(config):
    for changes, message in (
        ({"concepts": ("hors",)}, "'hors'.*'horse'"),
        ({"concepts": ("horse",), "split": "heldout"}, "horse not in split 'heldout'"),
        ({"split": "test"}, "no split 'test'"),
        ({"frame_size": 20}, "20px.*no such dataset"),
    ):
        changed = dataclasses.replace(config, **changes)
        for read in (pipeline.open_records, pipeline.captions):
            with pytest.raises(UserError, match=message):
                read(changed)


def test_examples_show_what_their_captions_name(config):
    small = dataclasses.replace(config, min_size=0.1)
    videos, captions = pipeline.whole_examples(small, 40)
    assert videos.shape == (40, 3, 16, 16, 3)
    assert set(captions) <= set(config.captions())
    # An emoji covers at most one corner, unless it is as large as the frame.
    corners = np.median(videos[:, 0][:, [0, 0, -1, -1], [0, -1, 0, -1]], axis=1)
    named = [text.split(" background")[0].split()[-1] for text in captions]
    expected = np.array([BACKGROUNDS[name] for name in named]) * 2 - 1
    assert np.mean(np.abs(corners - expected).max(-1) < 0.2) > 0.9
    assert len(set(named)) > 5


def test_batches_repeat_after_a_restart(config):
    def tokenize(texts):
        return np.zeros((len(texts), 1), np.int32), np.ones((len(texts), 1), bool)

    first = pipeline.make_batches(config, tokenize, batch_size=2)
    batches = [next(first) for _ in range(3)]
    again = next(pipeline.make_batches(config, tokenize, batch_size=2, start_step=2))
    np.testing.assert_array_equal(batches[2]["video"], again["video"])
    assert batches[2]["video"].dtype == np.uint8


def test_compose_places_the_emoji_and_loops():
    red, blue = (255, 0, 0, 255), (0, 0, 255, 255)
    layout = Layout(0.0, 0.5, 1.0, 0.0, False, "white", (1.0, 1.0, 1.0))
    fps = 1000 / 42  # one frame of the animation per frame of the clip
    video = compose(animation([red, blue]), layout, 4, 16, fps)
    assert video.shape == (4, 16, 16, 3)
    np.testing.assert_array_equal(video[:, :8, 8:], [[[c[:3]] * 8] * 8 for c in (red, blue) * 2])
    assert (video[:, 8:] == 255).all()
    assert (video[:, :, :8] == 255).all()
    later = compose(animation([red, blue]), layout._replace(phase=0.5), 4, 16, fps)
    np.testing.assert_array_equal(later, np.roll(video, 1, axis=0))
    slower = compose(animation([red, blue]), layout, 4, 16, fps / 2)
    np.testing.assert_array_equal(slower, video[[0, 0, 0, 0]])


def test_compose_blends_alpha_and_mirrors():
    half = compose(animation([(255, 0, 0, 128)]), plain_layout("black", 0.0), 1, 16, 8.0)
    black = np.array(BACKGROUNDS["black"]) * 255
    expected = black + 128 / 255 * (np.array([255, 0, 0]) - black)
    np.testing.assert_allclose(half[0], np.broadcast_to(expected, (16, 16, 3)), atol=0.51)

    picture = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    picture.paste((0, 255, 0, 255), (0, 0, 8, 16))
    content = io.BytesIO()
    picture.save(content, "WEBP", lossless=True)
    layout = plain_layout("white", 0.0)
    video = compose(content.getvalue(), layout, 1, 16, 8.0)
    mirrored = compose(content.getvalue(), layout._replace(mirrored=True), 1, 16, 8.0)
    assert not np.array_equal(video, mirrored)
    np.testing.assert_array_equal(mirrored, video[:, :, ::-1])


def test_stills_are_drawn_with_pictures_only(config):
    pictures = dataclasses.replace(config, num_frames=1, concepts=("running",), min_size=1.0)
    # Every second animation changes its colour; stills are red.
    colours = {tuple(np.rint(v[0, 8, 8])) for v in pipeline.whole_examples(pictures, 60)[0]}
    assert len(colours) == 3


def test_bad_sources(source, tmp_path, monkeypatch):
    def refused(folder, *words):
        with pytest.raises(UserError) as caught:
            packages.find_emoji(folder)
        message = str(caught.value)
        assert "\n" not in message
        for word in (*words, "npm install"):
            assert word in message

    refused(tmp_path / "nothing", "nothing")
    refused(tmp_path, "lacks", packages.NAMES, packages.STILLS)
    monkeypatch.setattr(packages, "NUM_PICTURES", NUM_EMOJI + 1)
    refused(source, str(NUM_EMOJI), str(NUM_EMOJI + 1))
    manifest = source / "node_modules" / packages.STILLS / "package.json"
    content = manifest.read_text()
    manifest.write_text(content.replace("1.1.0", "1.0.9"))
    try:
        refused(source, "1.0.9", "1.1.0")
    finally:
        manifest.write_text(content)
    names = source / "node_modules" / packages.NAMES / "en" / "data.json"
    content = names.read_text()
    names.write_text('[{"label": "horse"}]')
    try:
        refused(source, "data.json", "hexcode")
    finally:
        names.write_text(content)


def test_a_source_is_needed_until_the_dataset_is_built(config, tmp_path):
    assert pipeline.prepare(dataclasses.replace(config, source="")) is not None
    with pytest.raises(UserError, match="source"):
        pipeline.prepare(dataclasses.replace(config, source="", data_dir=str(tmp_path)))


def test_pictures_without_alpha_are_refused(tmp_path):
    file = tmp_path / "1f40e.webp"
    Image.new("RGB", (16, 16)).save(file, "WEBP")
    with pytest.raises(UserError, match="1f40e.webp.*alpha"):
        shrink(file, 8)


def test_report_of_the_judge(config, tmp_path, monkeypatch):
    """Networks that return mean colours, and a model that draws nothing but black."""

    def network(path):
        assert path == "weights.safetensors"
        return Extractor(
            name="colours",
            features=lambda videos: videos.mean((2, 3)),
            resize=Resize(16, "bilinear"),
            min_frames=1,
            max_frames=None,
            weights_sha256="",
        )

    def generate(model, prompts):
        assert len(prompts) == 4 and all(text.endswith("a white background") for text in prompts)
        frames = 1 if model == "images" else 3
        return np.full((4, frames, 16, 16, 3), -1.0), {"steps": 5}

    pictures = dataclasses.replace(config, num_frames=1)
    longer = dataclasses.replace(config, num_frames=3, fps=1000 / 42)
    for name, value in (
        ("load_efficientnet", network),
        ("load_i3d", network),
        ("data_config", lambda model: pictures if model == "images" else longer),
        ("generate", generate),
    ):
        monkeypatch.setattr(judge_emoji, name, value)
    monkeypatch.setattr(judge_emoji.stunet, "load", lambda path: None)
    flags = ["--efficientnet=weights.safetensors", "--i3d=weights.safetensors", "--num_clips=4"]
    judge_emoji.main(["judge_emoji", *flags, f"--out={tmp_path}/real"])
    scores = json.loads((tmp_path / "real.json").read_text())["scores"]
    assert scores.keys() == {"real", "stills"}
    assert scores["real"]["motion_energy_ratio"] == 1
    assert scores["stills"]["motion_energy_ratio"] == 0
    assert scores["stills"]["fvd"] >= 0

    monkeypatch.setattr(judge_emoji.stunet, "load", lambda path: "model")
    judge_emoji.main(["judge_emoji", *flags, "--model=m", f"--out={tmp_path}/black"])
    report = json.loads((tmp_path / "black.json").read_text())
    assert report["scores"].keys() == {"generated", "real", "stills", "shuffled"}
    assert report["scores"]["generated"]["motion_energy_ratio"] == 0
    assert report["steps"] == 5 and (tmp_path / "black.png").exists()
    assert report["scores"]["generated"]["fvd"] > report["scores"]["real"]["fvd"]

    monkeypatch.setattr(judge_emoji.stunet, "load", lambda path: "images")
    judge_emoji.main(["judge_emoji", *flags, "--i3d=", "--model=m", f"--out={tmp_path}/images"])
    scores = json.loads((tmp_path / "images.json").read_text())["scores"]
    assert scores.keys() == {"generated", "real", "shuffled"}
    assert "motion_energy_ratio" not in scores["generated"] and "fvd" not in scores["generated"]


def test_bias_of_fvd(config, tmp_path, monkeypatch):
    calls = []

    def brightness(clips):
        calls.append(len(clips))
        return clips.mean((1, 2))[:, 0]

    network = Extractor(
        name="brightness",
        features=brightness,
        resize=Resize(16, "bilinear"),
        min_frames=3,
        max_frames=None,
        weights_sha256="",
    )
    values = {"data_dir": config.data_dir, "num_frames": 3, "resolution": 16, "concepts": ()}
    data = emoji_config.get_config("t2v_16").data.to_dict() | values | {"frame_size": 16}
    stage = ConfigDict({"data": data})
    monkeypatch.setattr(fvd_bias.emoji, "get_config", lambda stage_name: stage)
    monkeypatch.setattr(fvd_bias, "load_i3d", lambda path: network)
    flags = ["", "--i3d=x", f"--data_dir={config.data_dir}", f"--out={tmp_path / 'bias'}"]
    with pytest.raises(UserError, match="--num_clips: 130, .* 128"):
        fvd_bias.main([*flags, "--num_clips=130"])
    fvd_bias.main([*flags, "--num_clips=128"])
    assert sum(calls) == 2 * 128
    rows = json.loads((tmp_path / "bias.json").read_text())["rows"]
    assert [row["clips"] for row in rows] == [64, 128]
    sets = [np.load(next((tmp_path / "bias").glob(f"*/seed_{seed}_from_0.npy"))) for seed in (0, 1)]
    assert rows[0]["fvd"] == pytest.approx(frechet_distance(*sets)) and rows[0]["fvd"] > 0
    fvd_bias.main([*flags, "--num_clips=64"])
    assert sum(calls) == 2 * 128  # from the cache
    stage.data.min_size = 0.5
    fvd_bias.main([*flags, "--num_clips=64"])
    assert sum(calls) == 2 * 128 + 2 * 64  # other clips
