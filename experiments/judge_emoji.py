"""Generates clips from emoji prompts, and measures whether they show what was requested.

    python -m experiments.judge_emoji --model=runs/emoji/t2v_16 --out=runs/emoji/judge \\
      --efficientnet=efficientnet.safetensors --i3d=i3d.safetensors

All clips have a white background. Prompts name the concepts that the `t2v_16` stage of
`experiments/configs/emoji.py` is trained on. A clip shows the concept, skin tone and gender of the
nearest of the 825 real clips of `motions.tsv`: in appearance by the mean of EfficientNet's features
over every fourth frame, in motion by the logits of I3D. Prints and writes these shares, the motion
energy relative to real clips, and FVD and MMD (I3D) against real clips, for

    generated         the model's clips
    real              real clips at another phase of their loop, the ceiling
    stills            the first frames of real clips, repeated: no motion
    shuffled          the model's clips, each compared with the prompt of another

to OUT.json, and the first clips, every second frame, to OUT.png. Without --model, measures real
clips and stills only. Without --i3d, measures appearance only. An image model is compared with
first frames.
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags
from tqdm import tqdm

import stunet
from data.data_config import Record
from data.emoji.composition import plain_layout
from data.emoji.emoji_builder import SPLITS, EmojiConfig, read_index
from data.emoji.recognition import agreement, recognise
from data.emoji.vocabulary import Emoji, motions, plain_caption, select_concepts
from data.pipeline import parse_config, prepare
from data.records import read
from experiments.common.program_flags import define_num_clips, define_seed, read_flags
from experiments.common.sampling_flags import define_sampling
from experiments.common.step_bar import step_bar
from experiments.configs import emoji as emoji_config
from stunet.compiling import prepare_compiler
from stunet.errors import UserError, run_command
from stunet.evaluation.efficientnet import load_efficientnet
from stunet.evaluation.features import Extractor
from stunet.evaluation.i3d import load_i3d
from stunet.evaluation.scores import frechet_distance, polynomial_mmd
from stunet.paths import output_file, user_path, write_text
from stunet.video_io import check_writable, contact_sheet, to_float, write_image

SHEET_ROWS, SHEET_PICTURES = 24, 48
BATCH = 4
_BACKGROUND = "white"
_FRAME_STEPS = {"appearance": 4, "motion": 1}

FLAGS = flags.FlagValues()
_MODEL = flags.DEFINE_string("model", None, "model folder or training workdir", flag_values=FLAGS)
_OUT = flags.DEFINE_string("out", None, "write OUT.json and OUT.png", flag_values=FLAGS)
_EFFICIENTNET = flags.DEFINE_string(
    "efficientnet", None, "weights by experiments.import_efficientnet", flag_values=FLAGS
)
_I3D = flags.DEFINE_string("i3d", None, "weights by experiments.import_i3d", flag_values=FLAGS)
_DATA_DIR = flags.DEFINE_string(
    "data_dir", "datasets", "folder of built datasets", flag_values=FLAGS
)
_CLIPS = define_num_clips(FLAGS, 512, minimum=2)
_SPLIT = flags.DEFINE_enum("split", "train", SPLITS, "split of the prompts", flag_values=FLAGS)
_SAMPLING = define_sampling(FLAGS)
_SEED = define_seed(FLAGS, "seed of prompts and noise")


def main(argv: list[str]) -> None:
    """Parses the flags, generates and measures the clips, and writes the report."""
    read_flags(FLAGS, argv, __doc__)
    if not _OUT.value or not _EFFICIENTNET.value:
        raise UserError("--out, --efficientnet: missing, expected both")
    out = output_file(_OUT.value)
    report, sheet = (user_path(f"{out}.{ending}") for ending in ("json", "png"))
    check_writable(sheet)
    prepare_compiler()
    networks = {"appearance": load_efficientnet(_EFFICIENTNET.value)}
    if _I3D.value:
        networks["motion"] = load_i3d(_I3D.value)
    model = stunet.load(_MODEL.value) if _MODEL.value else None
    config = data_config(model)
    for name, network in networks.items():
        network.check_frames(-(-config.num_frames // _FRAME_STEPS[name]))
    known = moving_records(config)
    selected = select_concepts(config.concepts, motions())
    candidates = [emoji for emoji, _ in known[_SPLIT.value] if emoji.concept in selected]
    requested = draw_emoji(candidates, _CLIPS.value, _SEED.value)

    everything = [pair for split in sorted(known) for pair in known[split]]
    records = {emoji.code: record for emoji, record in everything}
    references = measure([clip(config, r, phase=0.0) for _, r in everything], networks, "real")
    real = [clip(config, records[emoji.code], phase=0.5) for emoji in requested]
    rows, moves = {"real": real}, config.num_frames > 1
    if moves:
        rows["stills"] = [np.repeat(video[:1], len(video), axis=0) for video in real]
    settings: dict[str, Any] = {}
    if model is not None:
        videos, settings = generate(model, [plain_caption(e, _BACKGROUND) for e in requested])
        rows = {"generated": list(videos), **rows}
        first = videos[:SHEET_ROWS, ::2] if moves else videos[:SHEET_PICTURES]
        frames = first.reshape(-1, *first.shape[2:])
        report.parent.mkdir(parents=True, exist_ok=True)
        write_image(sheet, contact_sheet(frames, columns=first.shape[1] if moves else 8))
    features = {name: measure(clips, networks, name) for name, clips in rows.items()}

    known_emoji = [emoji for emoji, _ in everything]
    positions = [known_emoji.index(emoji) for emoji in requested]
    scores: dict[str, dict[str, Any]] = {}
    for name, found in features.items():
        scores[name] = compare(found, references, known_emoji, requested)
        if moves:
            scores[name]["motion_energy_ratio"] = motion_energy(rows[name]) / motion_energy(real)
        if "motion" in found:
            truth = references["motion"][positions]
            scores[name]["fvd"] = frechet_distance(found["motion"], truth)
            scores[name]["mmd"] = polynomial_mmd(found["motion"], truth)
    if model is not None:
        order = np.roll(np.arange(len(requested)), 1)
        others = [requested[index] for index in order]
        scores["shuffled"] = compare(features["generated"], references, known_emoji, others)
    result = {
        "scores": scores,
        "num_clips": len(requested),
        "num_references": len(known_emoji),
        **{flag.name: flag.value for flag in (_MODEL, _SPLIT, _SEED)},
        **{flag.name: settings.get(flag.name, flag.value) for flag in _SAMPLING},
        **{name: network.describe() for name, network in networks.items()},
    }
    for name, values in scores.items():
        print(f"{name}:")
        for key, value in values.items():
            print(f"  {key:26} {'-' if value is None else f'{value:.4g}'}")
    write_text(report, json.dumps(result, indent=2) + "\n")
    print(report)


def data_config(model: stunet.Model | None) -> EmojiConfig:
    """Returns the config of whole clips, of the model's size or of that of the stage `t2v_16`."""
    values = emoji_config.get_config("t2v_16").data.to_dict()
    config = parse_config({**values, "data_dir": _DATA_DIR.value})
    if model is not None:
        config = dataclasses.replace(
            config,
            num_frames=model.num_frames,
            resolution=model.resolution,
            fps=model.fps or config.fps,
        )
    return prepare(config)


def moving_records(config: EmojiConfig) -> dict[str, list[tuple[Emoji, Record]]]:
    """Returns the emoji of `motions.tsv` with their records, by split."""
    found, builder = {}, config.make_builder()
    for split in SPLITS:
        records = read(builder, split)
        found[split] = [
            (emoji, records[position])
            for position, emoji in enumerate(read_index(builder, split))
            if emoji.concept in motions()
        ]
    return found


def draw_emoji(emoji: Sequence[Emoji], count: int, seed: int) -> list[Emoji]:
    """Draws emoji in a random order, whose concepts repeat only after all have been drawn."""
    rng = np.random.default_rng(seed)
    of_concept: dict[str, list[Emoji]] = {}
    for index in rng.permutation(len(emoji)):
        of_concept.setdefault(emoji[index].concept, []).append(emoji[index])
    groups, result, turn = list(of_concept.values()), [], 0
    while len(result) < count:
        result += [group[turn % len(group)] for group in groups]
        turn += 1
    return result[:count]


def clip(config: EmojiConfig, record: Record, phase: float) -> np.ndarray:
    """Returns a real clip, `[T, H, W, 3]` float32 in [-1, 1], from a phase of its loop on."""
    return to_float(config.compose(record, plain_layout(_BACKGROUND, phase)))


def generate(model: stunet.Model, prompts: list[str]) -> tuple[np.ndarray, dict[str, Any]]:
    """Returns a clip per prompt, and the settings."""
    sampling = _SAMPLING.read(_SEED.value)
    with step_bar("sampling") as progress:
        found = stunet.generate(model, prompts, sampling=sampling, progress=progress)
    return found.videos, found.settings


def measure(
    clips: Sequence[np.ndarray], networks: dict[str, Extractor], label: str
) -> dict[str, np.ndarray]:
    """Returns features `[N, D]` of clips by the name of the network."""
    found = {}
    for name, network in networks.items():
        starts = tqdm(range(0, len(clips), BATCH), desc=f"{label}: {name}", leave=False)
        step = _FRAME_STEPS[name]
        batches = [
            network([video[::step] for video in clips[start : start + BATCH]], BATCH)
            for start in starts
        ]
        features = np.concatenate(batches)
        found[name] = features.mean(1) if features.ndim == 3 else features
    return found


def compare(
    features: dict[str, np.ndarray],
    references: dict[str, np.ndarray],
    known: Sequence[Emoji],
    requested: Sequence[Emoji],
) -> dict[str, float | None]:
    """Returns the shares of clips that show what was requested, by "NETWORK_SHARE"."""
    found: dict[str, float | None] = {}
    for name, values in features.items():
        shares = agreement(recognise(values, references[name], known), requested)
        found |= {f"{name}_{key}": value for key, value in shares.items()}
    return found


def motion_energy(clips: Sequence[np.ndarray]) -> float:
    """Returns the mean absolute difference of consecutive frames, for values in [-1, 1]."""
    return float(np.mean([np.abs(np.diff(video, axis=0)).mean() for video in clips]))


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv), "experiments.judge_emoji"))
