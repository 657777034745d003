"""Trains the models that the package ships, and writes them to `stunet/shipped`.

    python -m experiments.ship --workdir=runs/shapes
    python -m experiments.ship --workdir=runs/emoji --world=emoji --minutes=10

Trains the stages of `experiments/configs/WORLD.py` in WORKDIR/STAGE, each as soon as the stage that
it starts from is trained, up to two in parallel. Then writes the models: WORLD, WORLD-fill,
WORLD-ssr and WORLD-duotone, with kernels in bfloat16. A new name has to be added to
`stunet.weights.shipped.NAMES`.

The same command again resumes. `--minutes` stops it as Ctrl-C and SIGTERM do: after saving, with
exit code 75.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import jax
import ml_dtypes
import numpy as np
from absl import flags

from data.moving_shapes.duotone import NUM_IMAGES, draw_scenes, write_duotone_images
from data.pipeline import parse_config, prepare, whole_examples
from experiments.common.parallel_runs import run_in_parallel
from experiments.common.program_flags import read_flags
from experiments.configs import emoji, shapes
from stunet.compiling import shared_cache_environment
from stunet.errors import UserError, run_command
from stunet.training.workdir.run_record import stored_record
from stunet.weights import shipped
from stunet.weights.low_rank import add_adapters, nearest_adapters
from stunet.weights.model_folder import (
    ModelFolder,
    read_model_folder,
    without_base,
    write_model_folder,
)
from stunet.weights.trees import Tree, flatten, is_added, partition, unflatten


@dataclass(frozen=True)
class World:
    """Models that are trained on one dataset.

    Attributes:
      config: The config file with the stages.
      scenes: Draws the pictures `[N, H, W, 3]` and captions that become the style's; its argument
        is the workdir of stage "t2i".
    """

    config: ModuleType
    scenes: Callable[[Path], tuple[np.ndarray, list[str]]]


def _emoji_scenes(t2i: Path) -> tuple[np.ndarray, list[str]]:
    record, path = stored_record(t2i)
    config = prepare(parse_config(record.config["data"], f"{path}: data"))
    videos, captions = whole_examples(config, NUM_IMAGES)
    return videos[:, 0], captions


WORLDS = {
    "shapes": World(shapes, lambda t2i: draw_scenes(NUM_IMAGES)),
    "emoji": World(emoji, _emoji_scenes),
}
# What the model of each stage adds to the name of its world.
ENDINGS = {"t2v_16": "", "conditional": "-fill", "ssr": "-ssr", "style": "-duotone"}
# Stages of models that share the image model of the text-to-video model; a style stores adapters of
# `STYLE_RANK` on top.
BASED = ("conditional", "style")
STYLE_RANK = 3
PARALLEL_STAGES = 2  # a single one leaves a third of two CPUs idle
LEAVES = ("ssr", "style", "conditional")  # stages that no other stage starts from

FLAGS = flags.FlagValues()
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "keep the runs of the stages in this folder", flag_values=FLAGS
)
_WORLD = flags.DEFINE_enum(
    "world", "shapes", list(WORLDS), "train the models of this world", flag_values=FLAGS
)
_OUT = flags.DEFINE_string(
    "out", str(shipped.FOLDER), "write the finished models to this folder", flag_values=FLAGS
)
_MINUTES = flags.DEFINE_float(
    "minutes", None, "stop after about this many minutes", lower_bound=0.0, flag_values=FLAGS
)
_SET = flags.DEFINE_multi_string(
    "set", [], "pass this flag to every experiments.train, for a quick trial", flag_values=FLAGS
)


def main(argv: list[str]) -> int:
    """Trains the stages that are not finished, then writes the models."""
    read_flags(FLAGS, argv, __doc__)
    if not _WORKDIR.value:
        raise UserError("--workdir=DIR: missing")
    workdir, world = Path(_WORKDIR.value), WORLDS[_WORLD.value]
    end = None if _MINUTES.value is None else time.monotonic() + 60 * _MINUTES.value
    needs = {stage: world.config.INIT_FROM.get(stage) for stage in world.config.STAGES}
    code = run_in_parallel(needs, lambda stage: _start(stage, world, workdir), PARALLEL_STAGES, end)
    if code:
        return code
    out = Path(_OUT.value)
    for stage, ending in ENDINGS.items():
        folder, base, adapters = out / f"{_WORLD.value}{ending}", None, None
        model = read_model_folder(workdir / stage / "model")
        if stage == "style":
            model, adapters = to_adapters(model, read_model_folder(out / _WORLD.value))
        model = cast_kernels_to_bfloat16(model)
        if stage in BASED:
            base = out / _WORLD.value
            model = without_base(model, base, adapters)
        write_model_folder(folder, model, base=base, adapters=adapters)
        size = sum(path.stat().st_size for path in folder.iterdir())
        print(f"{folder}: {size / 1e6:.1f} MB")
    return 0


def _start(stage: str, world: World, workdir: Path) -> subprocess.Popen:
    """Starts or resumes the training of a stage."""
    flags = [f"--config={world.config.__file__}:{stage}", f"--workdir={workdir / stage}"]
    if stage in world.config.INIT_FROM:
        flags.append(f"--config.init_from={workdir / world.config.INIT_FROM[stage]}")
    if stage == "style":
        pictures = workdir / "duotone"
        if not (pictures / "captions.csv").exists():
            write_duotone_images(pictures, *world.scenes(workdir / "t2i"))
        flags.append(f"--config.data.source={pictures}")
    # Puts two progress bars on two lines.
    position = {"TQDM_POSITION": "1" if stage in LEAVES else "0"}
    command = [sys.executable, "-m", "experiments.train", *flags, *_SET.value]
    return subprocess.Popen(command, env=shared_cache_environment() | position)


def to_adapters(style: ModelFolder, base: ModelFolder) -> tuple[ModelFolder, Tree]:
    """Approximates a style by low-rank changes of its base.

    Args:
      style: The tuned image model.
      base: The model that it was tuned from.

    Returns:
      The style with the change of each larger kernel truncated to rank `STYLE_RANK`, and these
      changes as adapters.
    """
    images, tuned = partition(base.params["unet"], is_added)[1], style.params["unet"]
    adapters = jax.tree.map(
        lambda leaf: leaf.astype(ml_dtypes.bfloat16), nearest_adapters(images, tuned, STYLE_RANK)
    )
    adapted = {path.rpartition("/")[0] for path in flatten(adapters)}
    small = {path: leaf for path, leaf in flatten(tuned).items() if path not in adapted}
    unet = unflatten(flatten(add_adapters(images, adapters)) | small)
    return replace(style, params={**style.params, "unet": unet}), adapters


def cast_kernels_to_bfloat16(model: ModelFolder) -> ModelFolder:
    """Casts kernels to bfloat16, which halves the model. Norms and biases are few and stay."""

    def cast(leaf: np.ndarray) -> np.ndarray:
        return leaf.astype(ml_dtypes.bfloat16) if leaf.ndim > 1 else leaf

    return ModelFolder(model.config, jax.tree.map(cast, model.params), model.tokenizer)


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv), "experiments.ship"))
