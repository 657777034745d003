"""How well a model restores noised clips of moving shapes, and what their words are worth.

    python -m experiments.denoising --model=runs/t2i --out=runs/t2i/denoising

The mean squared error of the restored clip (of pictures, for a text-to-image model) at some noise
levels: with its own caption, with another shape, colour or motion named in it, and with none.
Models of one size are given the same clips and noise. Writes OUT.json and OUT.png (the errors over
the noise level).
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

from data.moving_shapes.render import NOMINAL_SECONDS, render_at
from data.moving_shapes.vocabulary import (
    COLOURS,
    MOTIONS,
    SHAPES,
    Attributes,
    caption,
    draw_attributes,
)
from experiments.common.program_flags import read_flags
from stunet.compiling import prepare_compiler
from stunet.diffusion import add_noise, to_prediction
from stunet.engine import Model, load
from stunet.engine.sampling import encode_text, network
from stunet.errors import UserError, run_command
from stunet.video_io import check_writable

CHOICES = {"shape": tuple(SHAPES), "colour": tuple(COLOURS), "motion": tuple(MOTIONS)}

FLAGS = flags.FlagValues()
_MODEL = flags.DEFINE_string(
    "model", None, "a model folder, or a training workdir", flag_values=FLAGS
)
_OUT = flags.DEFINE_string("out", None, "where OUT.json and OUT.png are written", flag_values=FLAGS)
_CLIPS = flags.DEFINE_integer(
    "num_clips", 384, "how many clips are restored", lower_bound=1, flag_values=FLAGS
)
_LEVELS = flags.DEFINE_multi_integer(
    "log_snr", list(range(-4, 5)), "noise levels", flag_values=FLAGS
)
_SPLIT = flags.DEFINE_enum(
    "split", "train", ["train", "heldout"], "combinations of attributes", flag_values=FLAGS
)
_BATCH = flags.DEFINE_integer("batch_size", 64, "clips at a time", lower_bound=1, flag_values=FLAGS)
_SEED = flags.DEFINE_integer("seed", 0, "of clips and noise", flag_values=FLAGS)


def main(argv: list[str]) -> None:
    """Draws, noises, restores, prints and writes."""
    read_flags(FLAGS, argv, __doc__)
    if not _MODEL.value or not _OUT.value:
        raise UserError("both --model=DIR and --out=NAME are needed")
    report, picture = (Path(f"{_OUT.value}.{ending}") for ending in ("json", "png"))
    check_writable(picture)
    prepare_compiler()
    model = load(_MODEL.value)
    if model.super_resolution or model.unet.cond_channels:
        raise UserError(f"{_MODEL.value}: works from pixels; name a text-to-image or -video model")
    clips, captions = draw_clips(model, _CLIPS.value, _SPLIT.value, _SEED.value)
    errors = restore(model, clips, captions, _LEVELS.value, _BATCH.value, _SEED.value)
    print(f"{'log-SNR':10}" + "".join(f"{level:9}" for level in _LEVELS.value))
    for words, values in errors.items():
        print(f"{words:10}" + "".join(f"{value:9.4f}" for value in values))
    settings = {f.name: f.value for f in (_MODEL, _CLIPS, _LEVELS, _SPLIT, _SEED)}
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_text(json.dumps({"errors": errors, "settings": settings}, indent=2) + "\n")
    plot(_LEVELS.value, errors, picture)
    print(f"{report}\n{picture}")


def draw_clips(
    model: Model, count: int, split: str, seed: int
) -> tuple[np.ndarray, dict[str, list[str]]]:
    """Clips `[N, T, H, W, 3]` of the model's size, and captions: their "own", by the attribute
    that is another in it, and "none". A clip of one frame shows any moment of its motion.
    """
    rng, clips = np.random.default_rng(seed), []
    varied = [name for name in CHOICES if name != "motion" or model.num_frames > 1]
    captions: dict[str, list[str]] = {name: [] for name in ("own", *varied, "none")}
    seconds = NOMINAL_SECONDS if model.num_frames == 1 else model.num_frames / model.fps
    for _ in range(count):
        attributes, clip_seed = draw_attributes(split, rng), int(rng.integers(2**31))
        moments = np.arange(model.num_frames) / model.num_frames
        if model.num_frames == 1:
            moments = rng.random(1)
        clips.append(render_at(attributes, clip_seed, moments, seconds, model.resolution))
        captions["own"].append(caption(attributes, clip_seed))
        captions["none"].append("")
        for name in varied:
            captions[name].append(caption(other(attributes, name, rng), clip_seed))
    return np.stack(clips), captions


def other(attributes: Attributes, name: str, rng: np.random.Generator) -> Attributes:
    """The same but for one attribute, which is another."""
    left = [choice for choice in CHOICES[name] if choice != getattr(attributes, name)]
    return dataclasses.replace(attributes, **{name: left[rng.integers(len(left))]})


def restore(
    model: Model,
    clips: np.ndarray,
    captions: dict[str, list[str]],
    levels: list[int],
    batch_size: int,
    seed: int,
) -> dict[str, list[float]]:
    """Mean squared error of the restored clips, by captions, at each log-SNR of `levels`."""
    texts = {words: encode_text(model, lines) for words, lines in captions.items()}
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

    errors: dict[str, list[float]] = {words: [] for words in captions}
    for level, (words, text) in tqdm([(n, pair) for n in levels for pair in texts.items()]):
        total = 0.0
        for i in range(0, len(clips), batch_size):
            x0, eps, states = (a[i : i + batch_size] for a in (clips, noise, text))
            total += float(squares(x0, eps, jnp.full(len(x0), float(level)), states))
        errors[words].append(total / clips.size)
    return errors


def plot(levels: list[int], errors: dict[str, list[float]], path: Path) -> None:
    """The errors over the noise level, a line for each kind of caption."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for words, values in errors.items():
        kind = {"own": "its own caption", "none": "no caption"}.get(words, f"another {words}")
        axes.plot(levels, values, marker="o", markersize=3, label=kind)
    axes.set(xlabel="log-SNR", ylabel="mean squared error of the restored clip", yscale="log")
    axes.legend()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv), "experiments.denoising"))
