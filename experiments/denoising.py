"""Measures how well a model denoises clips, and how much their captions help.

    python -m experiments.denoising --model=runs/t2i --out=runs/t2i/denoising

Reports the mean squared error of the predicted clean clip (of images for a text-to-image model) by
noise level: with the clip's caption, with another, and with an empty caption. Models of equal
resolution and length get the same clips and noise. Writes OUT.json and OUT.png (error over noise
level).

A training workdir is measured on its dataset, every other model on moving shapes. Other captions
name another shape, colour or motion; those of other datasets belong to other clips.
"""

import dataclasses
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from tqdm import tqdm

import stunet
from data.data_config import DataConfig
from data.moving_shapes.render import NOMINAL_SECONDS, render_at
from data.moving_shapes.vocabulary import (
    COLOURS,
    MOTIONS,
    SHAPES,
    Attributes,
    caption,
    draw_attributes,
)
from data.pipeline import parse_config, prepare, whole_examples
from experiments.common.program_flags import define_num_clips, define_seed, read_flags
from stunet.compiling import prepare_compiler
from stunet.diffusion import add_noise, to_prediction
from stunet.engine.sampling import encode_text, network
from stunet.errors import UserError, run_command, writing
from stunet.paths import AnyPath, output_file, user_path, write_text
from stunet.training.workdir.run_record import read_record
from stunet.video_io import check_writable
from stunet.weights.hub import is_hub_id

CHOICES = {"shape": tuple(SHAPES), "colour": tuple(COLOURS), "motion": tuple(MOTIONS)}

FLAGS = flags.FlagValues()
_MODEL = flags.DEFINE_string("model", None, "model folder or training workdir", flag_values=FLAGS)
_OUT = flags.DEFINE_string("out", None, "write OUT.json and OUT.png", flag_values=FLAGS)
_CLIPS = define_num_clips(FLAGS, 384)
_LEVELS = flags.DEFINE_multi_integer(
    "log_snr", list(range(-4, 5)), "noise levels (log-SNR)", flag_values=FLAGS
)
_SPLIT = flags.DEFINE_enum(
    "split", "train", ["train", "heldout"], "split of the clips' attributes", flag_values=FLAGS
)
_BATCH = flags.DEFINE_integer("batch_size", 64, "clips per batch", lower_bound=1, flag_values=FLAGS)
_SEED = define_seed(FLAGS, "seed of clips and noise")


def main(argv: list[str]) -> None:
    """Parses the flags, measures the errors, and writes the report."""
    read_flags(FLAGS, argv, __doc__)
    if not _MODEL.value or not _OUT.value:
        raise UserError("--model, --out: missing, expected both")
    out = output_file(_OUT.value)
    report, picture = (Path(f"{out}.{ending}") for ending in ("json", "png"))
    check_writable(picture)
    prepare_compiler()
    model = stunet.load(_MODEL.value)
    if model.super_resolution or model.unet.cond_channels:
        raise UserError(f"{_MODEL.value}: needs pixels, expected a model that needs only a prompt")
    data = None if is_hub_id(_MODEL.value) else run_data(user_path(_MODEL.value))
    name = "moving_shapes" if data is None else data.name
    print(f"clips of {name}")
    if name == "moving_shapes":
        clips, captions = draw_captioned_clips(model, _CLIPS.value, _SPLIT.value, _SEED.value)
    else:
        data = dataclasses.replace(data, split=_SPLIT.value, seed=_SEED.value)
        clips, own = whole_examples(data, _CLIPS.value)
        captions = {"own": own, "another": [*own[1:], own[0]], "none": [""] * len(own)}
    errors = denoising_errors(model, clips, captions, _LEVELS.value, _BATCH.value, _SEED.value)
    print(f"{'log-SNR':10}" + "".join(f"{level:9}" for level in _LEVELS.value))
    for kind, values in errors.items():
        print(f"{kind:10}" + "".join(f"{value:9.4f}" for value in values))
    settings = {f.name: f.value for f in (_MODEL, _CLIPS, _LEVELS, _SPLIT, _SEED)}
    settings["data"] = name
    report.parent.mkdir(parents=True, exist_ok=True)
    write_text(report, json.dumps({"errors": errors, "settings": settings}, indent=2) + "\n")
    plot(_LEVELS.value, errors, picture)
    print(f"{report}\n{picture}")


def run_data(path: AnyPath) -> DataConfig | None:
    """Returns the built dataset of a training workdir, or of that around `model/`; None for others.

    Raises:
      UserError: the workdir's `run.json` is damaged, or its dataset cannot be built.
    """
    record = read_record(path) or read_record(path.parent)
    if record is None:
        return None
    return prepare(parse_config(record.config["data"], f"{path}: data"))


def draw_captioned_clips(
    model: stunet.Model, count: int, split: str, seed: int
) -> tuple[np.ndarray, dict[str, list[str]]]:
    """Draws clips of the model's resolution and length, with captions of several kinds.

    A clip of one frame is drawn at a random time of its motion.

    Returns:
      Clips `[N, T, H, W, 3]` in [-1, 1], and for each kind of caption one caption per clip. Kinds
      are "own"; the name of an attribute ("shape", "colour", and "motion" for videos), which has
      another value; and "none", which is empty.
    """
    rng, clips = np.random.default_rng(seed), []
    changeable = [name for name in CHOICES if name != "motion" or model.num_frames > 1]
    captions: dict[str, list[str]] = {name: [] for name in ("own", *changeable, "none")}
    seconds = NOMINAL_SECONDS if model.num_frames == 1 else model.num_frames / model.fps
    for _ in range(count):
        attributes, clip_seed = draw_attributes(split, rng), int(rng.integers(2**31))
        fractions = np.arange(model.num_frames) / model.num_frames
        if model.num_frames == 1:
            fractions = rng.random(1)
        clips.append(render_at(attributes, clip_seed, fractions, seconds, model.resolution))
        captions["own"].append(caption(attributes, clip_seed))
        captions["none"].append("")
        for name in changeable:
            captions[name].append(caption(change_attribute(attributes, name, rng), clip_seed))
    return np.stack(clips), captions


def change_attribute(attributes: Attributes, name: str, rng: np.random.Generator) -> Attributes:
    """Replaces one attribute by another value."""
    choices = [choice for choice in CHOICES[name] if choice != getattr(attributes, name)]
    return dataclasses.replace(attributes, **{name: choices[rng.integers(len(choices))]})


def denoising_errors(
    model: stunet.Model,
    clips: np.ndarray,
    captions: dict[str, list[str]],
    levels: list[int],
    batch_size: int,
    seed: int,
) -> dict[str, list[float]]:
    """Returns the mean squared error of the predicted clean clips.

    Args:
      model: Text-to-image or text-to-video model.
      clips: `[N, T, H, W, 3]` in [-1, 1].
      captions: For each kind, one caption per clip.
      levels: Noise levels (log-SNR).
      batch_size: Clips per batch.
      seed: Seed of the noise.

    Returns:
      For each kind of caption, the error at each noise level.
    """
    texts = {kind: encode_text(model, lines) for kind, lines in captions.items()}
    noise = np.random.default_rng((seed, 1)).normal(size=clips.shape).astype(np.float32)
    apply = network(model.unet, model.params["unet"])
    learned = model.variance == "learned_range"

    @jax.jit
    def squares(x0, eps, log_snr, text):
        x_t = add_noise(x0, eps, log_snr)
        t = model.schedule.timestep(log_snr)
        output = apply(x_t, t, {"text": text})
        prediction = to_prediction(model.prediction, output, x_t, log_snr, learned)
        return jnp.square(prediction.x0 - x0).sum()

    errors: dict[str, list[float]] = {kind: [] for kind in captions}
    for level, (kind, text) in tqdm([(n, pair) for n in levels for pair in texts.items()]):
        total = 0.0
        for i in range(0, len(clips), batch_size):
            x0, eps, states = (a[i : i + batch_size] for a in (clips, noise, text))
            total += float(squares(x0, eps, jnp.full(len(x0), float(level)), states))
        errors[kind].append(total / clips.size)
    return errors


def plot(levels: list[int], errors: dict[str, list[float]], path: Path) -> None:
    """Plots the errors over the noise level, one line per kind of caption."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    labels = {"own": "own caption", "none": "no caption"}
    for kind, values in errors.items():
        label = labels.get(kind, f"another {kind}")
        axes.plot(levels, values, marker="o", markersize=3, label=label)
    axes.set(xlabel="log-SNR", ylabel="mean squared error of the clean clip", yscale="log")
    axes.legend()
    with writing(path):
        figure.savefig(path, dpi=110)


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv), "experiments.denoising"))
