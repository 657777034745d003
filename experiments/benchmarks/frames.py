"""Measures memory and time of one guided sampling step against the number of frames.

    python -m experiments.benchmarks.frames --out=frames.json
    python -m experiments.benchmarks.frames --config=experiments/configs/base_128.py:v5e \\
        --backbone=if_i_m --topology=v5p:2x2x1 --frames=16 --frames=80 --out=frames_tpu.json

Compares three methods: the Space-Time U-Net of the config; the same network without temporal
resampling; and a cascade of two such networks, one for every fourth frame and one that fills in the
frames between, window by window (section 1 of the paper argues against the latter two). The
memory of a cascade is that of its larger program, its time that of all its calls.

Without --topology, the programs run on this machine in turns, and the best time of --repeats runs
is reported. With --topology, the TPU compiler estimates the time of a step that is sharded over the
chips. Memory is always the compiler's figure for temporaries on one device.
"""

import dataclasses
import functools
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import config_flags
from tqdm import tqdm

from data.pipeline import parse_config
from experiments.benchmarks.harness.workloads import METHODS, WINDOW, program_calls
from experiments.common.program_flags import read_flags
from experiments.common.reports import print_table, write_json
from experiments.configs import tiny_t2i, tiny_t2v
from experiments.tpu.programs import ARCHITECTURES, compile_for, sample_program
from stunet.compiling import prepare_compiler
from stunet.errors import UserError, run_command
from stunet.models.unet_config import UNetConfig
from stunet.schema import from_dict
from stunet.training.config import TrainConfig, parse_train_config
from stunet.training.initial_model import with_dtype
from stunet.training.stages import TextToVideo

FLAGS = flags.FlagValues()
_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "measure the network of this config (stage t2v); default: tiny_t2v.py",
    flag_values=FLAGS,
)
_BACKBONE = flags.DEFINE_enum(
    "backbone",
    None,
    tuple(ARCHITECTURES),
    "use this text-to-image network; default: that of tiny_t2i.py",
    flag_values=FLAGS,
)
_TOPOLOGY = flags.DEFINE_string(
    "topology",
    None,
    "compile for this TPU topology, CHIP:AxB or CHIP:AxBxC; default: run on this machine",
    flag_values=FLAGS,
)
_FRAMES = flags.DEFINE_multi_integer(
    "frames",
    [16, 32, 64],
    "measure clips of this many frames",
    lower_bound=WINDOW,
    flag_values=FLAGS,
)
_REPEATS = flags.DEFINE_integer(
    "repeats", 3, "time this many runs after a warm-up run", lower_bound=1, flag_values=FLAGS
)
_OUT = flags.DEFINE_string(
    "out", None, "write the results to this JSON file; required", flag_values=FLAGS
)


def main(argv: list[str]) -> None:
    """Measures a step of each method at each length and prints a table."""
    values = read_flags(FLAGS, argv, __doc__, _CONFIG) or tiny_t2v.get_config().to_dict()
    config = parse_train_config({**values, "batch_size": 1}, parse_config)
    if not isinstance(config.stage, TextToVideo):
        raise UserError(f"--config: stage is {config.stage.name!r}, expected 't2v'")
    if not _OUT.value:
        raise UserError("--out: not set, expected a JSON file to write")
    if _TOPOLOGY.value is None:
        prepare_compiler()
    unet = _unet(config)
    cases = {
        (method, frames): program_calls(method, unet, frames)
        for frames in _FRAMES.value
        for method in METHODS
    }
    programs = list(dict.fromkeys((c.unet, c.frames) for calls in cases.values() for c in calls))
    costs = measure(config, programs) if _TOPOLOGY.value is None else estimate(config, programs)
    rows = []
    for (method, frames), calls in cases.items():
        parts = [costs[call.unet, call.frames] for call in calls]
        row = {
            "way": method,
            "frames": frames,
            "temporary_bytes": max(part["temporary_bytes"] for part in parts),
            "seconds": sum(c.count * part["seconds"] for c, part in zip(calls, parts, strict=True)),
            "calls": sum(call.count for call in calls),
        }
        rows.append(row)
    print_table(
        ("frames", "method", "calls", "temporaries MiB", "s per step"),
        [
            (r["frames"], r["way"], r["calls"], r["temporary_bytes"] / 2**20, r["seconds"])
            for r in rows
        ],
    )
    settings = {"topology": _TOPOLOGY.value, "backbone": _BACKBONE.value, "config": values}
    write_json(_OUT.value, {"benchmark": "frames", **settings, "runs": rows})


Program = tuple[UNetConfig, int]  # network, frames


def measure(config: TrainConfig, programs: Sequence[Program]) -> dict[Program, dict[str, float]]:
    """Returns "temporary_bytes" and best "seconds" of each program, run here in turns."""
    runs, costs = {}, {}
    for unet, frames in tqdm(programs, desc="compiling"):
        _, function, structs, _ = sample_program(
            _with_frames(config, frames), jax.local_devices()[:1], unet, None, _tokens()
        )
        compiled = function.lower(*structs).compile()
        temporary_bytes = compiled.memory_analysis().temp_size_in_bytes
        costs[unet, frames] = {"temporary_bytes": temporary_bytes, "seconds": np.inf}
        runs[unet, frames] = functools.partial(compiled, *jax.tree.map(_random, structs))
    for turn in tqdm(range(_REPEATS.value + 1), desc="running"):
        for program, run in runs.items():
            seconds = _seconds(run)
            if turn:  # the first turn warms up
                costs[program]["seconds"] = min(costs[program]["seconds"], seconds)
    return costs


def estimate(config: TrainConfig, programs: Sequence[Program]) -> dict[Program, dict[str, float]]:
    """Returns "temporary_bytes" and "seconds" of each program by the TPU compiler's estimate."""
    costs = {}
    for unet, frames in tqdm(programs, desc="compiling"):
        at_frames = _with_frames(config, frames)
        report = compile_for(_TOPOLOGY.value, "sample", at_frames, unet, None, _tokens())
        costs[unet, frames] = {
            "temporary_bytes": report["temporary_bytes"],
            "seconds": report["estimated_s"],
        }
    return costs


def _unet(config: TrainConfig) -> UNetConfig:
    """Returns the config's network around --backbone, or around that of tiny_t2i.py."""
    if _BACKBONE.value is not None:
        unet = ARCHITECTURES[_BACKBONE.value]
    else:
        unet = from_dict(UNetConfig, tiny_t2i.get_config().unet.to_dict(), "unet")
    return with_dtype(config.stage.architecture(unet), config)


def _tokens() -> int:
    return 77 if _BACKBONE.value is not None else tiny_t2i.get_config().text_encoder.max_tokens


def _with_frames(config: TrainConfig, frames: int) -> TrainConfig:
    return dataclasses.replace(config, data=dataclasses.replace(config.data, num_frames=frames))


def _random(struct: jax.ShapeDtypeStruct) -> jax.Array:
    """Returns small random values, since zeros may compute faster."""
    if jnp.issubdtype(struct.dtype, jax.dtypes.prng_key):
        return jax.random.key(0)
    if not jnp.issubdtype(struct.dtype, jnp.floating):
        return jnp.zeros(struct.shape, struct.dtype)
    values = np.random.default_rng(0).standard_normal(struct.shape, np.float32)
    return jnp.asarray(0.02 * values, struct.dtype)


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv), "experiments.benchmarks.frames"))
