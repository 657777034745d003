"""Trains the models that come with the package and puts them there.

    python -m experiments.ship --workdir=runs/shapes
    python -m experiments.ship --workdir=runs/shapes --minutes=10

Trains the stages of `experiments/configs/shapes.py`, each in WORKDIR/STAGE as soon as the one that
it starts from is trained, two side by side where it can; then writes what `stunet.weights.shipped`
names, kernels in bfloat16. The same command again goes on where it stopped; with `--minutes` it
stops by itself, as at SIGTERM: saved, and with the exit code 75.
"""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
from absl import flags

from data.moving_shapes.duotone import NUM_IMAGES, write_duotone_images
from experiments.common.exit_codes import PREEMPTED
from experiments.common.parallel_runs import run_side_by_side
from experiments.common.program_flags import read_flags
from experiments.configs import shapes
from stunet.errors import UserError, run_command
from stunet.weights import shipped
from stunet.weights.low_rank import add_adapters, nearest_adapters
from stunet.weights.model_folder import ModelFolder, read_model_folder, write_model_folder
from stunet.weights.trees import Tree, flatten, is_added, partition, unflatten

FROM_STAGE = {
    shipped.VIDEO_MODEL: "t2v_16",
    shipped.CONDITIONAL_MODEL: "conditional",
    shipped.UPSCALER: "ssr",
    shipped.STYLE_MODEL: "style",
}
# With which they share the image model, or all of it but what adapters of a rank change.
BASE = {shipped.CONDITIONAL_MODEL: shipped.VIDEO_MODEL, shipped.STYLE_MODEL: shipped.VIDEO_MODEL}
STYLE_RANK = 3
AT_ONCE = 2  # stages: one alone leaves a third of two CPUs idle
BESIDE = ("ssr", "style", "conditional")  # which nothing waits for

FLAGS = flags.FlagValues()
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "where the stages' training is kept", flag_values=FLAGS
)
_OUT = flags.DEFINE_string(
    "out", str(shipped.FOLDER), "the folder for the finished models", flag_values=FLAGS
)
_MINUTES = flags.DEFINE_float(
    "minutes", None, "stop after about so many", lower_bound=0.0, flag_values=FLAGS
)
_SET = flags.DEFINE_multi_string(
    "set", [], "a flag of experiments.train, to try all this out", flag_values=FLAGS
)


def main(argv: list[str]) -> int:
    """Trains what is not trained yet; writes the models once all are."""
    read_flags(FLAGS, argv, __doc__)
    if not _WORKDIR.value:
        raise UserError("--workdir=DIR is needed")
    workdir = Path(_WORKDIR.value)
    # As when its time is over: the stages are told, and save.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(PREEMPTED))
    end = None if _MINUTES.value is None else time.monotonic() + 60 * _MINUTES.value
    needs = {stage: shapes.INIT_FROM.get(stage) for stage in shapes.STAGES}
    code = run_side_by_side(needs, lambda stage: _start(stage, workdir), AT_ONCE, end)
    if code:
        return code
    out = Path(_OUT.value)
    for name, stage in FROM_STAGE.items():
        folder, adapters = out / name, None
        model = read_model_folder(workdir / stage / "model")
        if name == shipped.STYLE_MODEL:
            model, adapters = as_adapters(model, read_model_folder(out / BASE[name]))
        model = with_kernels_in_bfloat16(model)
        write_model_folder(folder, model, base=BASE.get(name), adapters=adapters)
        size = sum(path.stat().st_size for path in folder.iterdir())
        print(f"{folder}: {size / 1e6:.1f} MB")
    return 0


def _start(stage: str, workdir: Path) -> subprocess.Popen:
    """Starts, or goes on with, the training of a stage."""
    flags = [f"--config={shapes.__file__}:{stage}", f"--workdir={workdir / stage}"]
    if stage in shapes.INIT_FROM:
        flags.append(f"--config.init_from={workdir / shapes.INIT_FROM[stage]}")
    if stage == "style":
        pictures = workdir / "duotone"
        if not (pictures / "captions.csv").exists():
            write_duotone_images(pictures, NUM_IMAGES)
        flags.append(f"--config.data.source={pictures}")
    # Two progress bars, each on a line of its own.
    environment = {**os.environ, "TQDM_POSITION": "1" if stage in BESIDE else "0"}
    command = [sys.executable, "-m", "experiments.train", *flags, *_SET.value]
    return subprocess.Popen(command, env=environment)


def as_adapters(style: ModelFolder, base: ModelFolder) -> tuple[ModelFolder, Tree]:
    """The style with its larger kernels' changes cut down to `STYLE_RANK`, and their adapters."""
    images, tuned = partition(base.params["unet"], is_added)[1], style.params["unet"]
    adapters = jax.tree.map(
        lambda leaf: leaf.astype(ml_dtypes.bfloat16), nearest_adapters(images, tuned, STYLE_RANK)
    )
    adapted = {path.rpartition("/")[0] for path in flatten(adapters)}
    small = {path: leaf for path, leaf in flatten(tuned).items() if path not in adapted}
    unet = unflatten(flatten(add_adapters(images, adapters)) | small)
    return replace(style, params={**style.params, "unet": unet}), adapters


def with_kernels_in_bfloat16(model: ModelFolder) -> ModelFolder:
    """The model at half its size. Vectors, norms' and biases, are few and stay as they are."""

    def cast(leaf: np.ndarray) -> np.ndarray:
        return leaf.astype(ml_dtypes.bfloat16) if leaf.ndim > 1 else leaf

    return ModelFolder(model.config, jax.tree.map(cast, model.params), model.tokenizer)


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv), "experiments.ship"))
