"""Measures memory and time of windowed super-resolution.

    python -m experiments.benchmarks.cascade --out=cascade.json
    python -m experiments.benchmarks.cascade --config=experiments/configs/ssr_1024.py --frames=80 \\
        --noseconds

Compiles one guided ancestral step of a whole clip that processes one window at a time, two windows,
or all windows in parallel. Memory is the compiler's figure for the program's temporaries, so a
program that does not fit this machine can be measured, too. With --seconds, runs the step as well
and reports its time per frame on this machine.
"""

import sys
import time
from typing import Any

import jax
import numpy as np
from absl import flags
from ml_collections import config_flags
from tqdm import tqdm

from data.pipeline import parse_config
from experiments.benchmarks.harness.workloads import random_like
from experiments.common.program_flags import read_flags
from experiments.common.reports import print_table, write_json
from stunet.compiling import prepare_compiler
from stunet.diffusion import Windows
from stunet.diffusion.samplers import resolve_sampler
from stunet.engine.sampling import ChunkSettings, run_chunk, zero_inputs
from stunet.errors import UserError, run_command
from stunet.models.unet import init_unet
from stunet.training.config import TrainConfig, parse_train_config
from stunet.training.initial_model import with_dtype
from stunet.training.stages import SpatialSuperResolution

STEPS = 100

FLAGS = flags.FlagValues()
_CONFIG = config_flags.DEFINE_config_file(
    "config",
    "experiments/configs/tiny_ssr.py",
    "measure the network of this config (stage ssr)",
    flag_values=FLAGS,
)
_OUT = flags.DEFINE_string(
    "out", "benchmarks/cascade.json", "write the results to this JSON file", flag_values=FLAGS
)
_FRAMES = flags.DEFINE_integer(
    "frames", 32, "set the number of frames of the clip", lower_bound=2, flag_values=FLAGS
)
_SECONDS = flags.DEFINE_boolean(
    "seconds", True, "run the step and measure its time", flag_values=FLAGS
)
_REPEATS = flags.DEFINE_integer(
    "repeats", 3, "time this many runs after a warm-up run", lower_bound=1, flag_values=FLAGS
)


def main(argv: list[str]) -> None:
    """Measures the step for each number of parallel windows and prints a table."""
    values = read_flags(FLAGS, argv, __doc__, _CONFIG)
    config = parse_train_config(values, parse_config)
    stage = config.stage
    if not isinstance(stage, SpatialSuperResolution) or stage.unet is None:
        raise UserError(f"--config: stage is {stage.name!r}, expected 'ssr' with field 'unet' set")
    prepare_compiler()
    length, size = config.data.num_frames, config.data.resolution
    windows = Windows.over(_FRAMES.value, length, stride=stage.temporal.stride)
    rows = []
    counts = sorted({1, 2, len(windows.starts)})
    for parallel_windows in tqdm(counts, desc="compiling"):
        rows.append(measure(config, windows, size, parallel_windows))
    columns = ("parallel windows", "temporaries MiB", "compile s", "s per frame and step")
    print(
        f"{_FRAMES.value} frames of {size}x{size} in {len(windows.starts)} windows of {length}, "
        f"{rows[0]['parameters']:,} parameters; the clip takes "
        f"{4 * 3 * _FRAMES.value * size**2 / 2**20:.0f} MiB in float32"
    )
    print_table(
        columns,
        [
            (r["at_once"], r["temporary_bytes"] / 2**20, r["compile_s"], r["seconds_per_frame"])
            for r in rows
        ],
    )
    write_json(_OUT.value, {"benchmark": "cascade", "config": values, "runs": rows})


def measure(
    config: TrainConfig, windows: Windows, size: int, parallel_windows: int
) -> dict[str, Any]:
    """Returns memory and time of one guided ancestral step of the whole clip.

    Args:
      config: A config of stage ssr.
      windows: Windows that cover the clip.
      size: Height and width of the upscaled frames.
      parallel_windows: Number of windows that the program processes in parallel.
    """
    unet = with_dtype(config.stage.architecture(None), config)
    shape = (windows.num_frames, size, size, 3)
    settings = ChunkSettings(
        unet=unet,
        schedule=config.diffusion.schedule,
        prediction=config.diffusion.prediction,
        sampler=resolve_sampler("ancestral"),
        steps=STEPS,
        super_resolution=config.stage.super_resolution,
        shape=shape,
        windows=windows,
        windows_at_once=parallel_windows,
    )
    structs = jax.eval_shape(lambda: init_unet(unet, jax.random.key(0)))

    def inputs(params):
        return params, *zero_inputs(settings, 1, config.stage.text_encoder.max_tokens)

    start = time.perf_counter()
    compiled = run_chunk.lower(settings, *jax.eval_shape(inputs, structs)).compile()
    result = {
        "at_once": parallel_windows,
        "parameters": sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(structs)),
        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
        "compile_s": time.perf_counter() - start,
        "seconds_per_frame": None,
    }
    if _SECONDS.value:
        arguments, seconds = inputs(random_like(structs)), []
        for _ in range(_REPEATS.value + 1):
            start = time.perf_counter()
            jax.block_until_ready(compiled(*arguments))
            seconds.append(time.perf_counter() - start)
        result["seconds_per_frame"] = min(seconds[1:]) / windows.num_frames
    return result


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv), "experiments.benchmarks.cascade"))
