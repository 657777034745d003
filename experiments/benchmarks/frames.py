"""What a clip costs by its number of frames: memory and time of one guided sampling step.

    python -m experiments.benchmarks.frames --out=frames.json
    python -m experiments.benchmarks.frames --config=experiments/configs/base_128.py:v5e \\
        --backbone=if_i_m --topology=v5p:2x2x1 --frames=16 --frames=80 --out=frames_tpu.json

Three ways to make it: the Space-Time U-Net of the config; the same network at the full frame rate
at every level; and a cascade of such networks, one for every fourth frame and one that fills in
between, window by window (the paper's section 3.1 argues against these two). A cascade's memory is
that of its larger program, its time that of all its calls.

Without --topology the program runs here: seconds are measured, the best of --repeats, in turns.
With one the TPU compiler is asked, and seconds are its estimate, of a step that the chips share.
Memory is the compiler's account of temporaries either way, on one device.
"""

import dataclasses
import functools
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import config_flags
from tqdm import tqdm

from experiments.benchmarks.timing import print_table, write_json
from experiments.benchmarks.workloads import WAYS, WINDOW, calls
from experiments.common.program_flags import read_flags
from experiments.configs import tiny_t2i, tiny_t2v
from experiments.tpu.programs import ARCHITECTURES, compile_for, laid_out, sample_program
from stunet.compiling import prepare_compiler
from stunet.errors import UserError, run_command
from stunet.models.unet import UNetConfig
from stunet.schema import from_dict
from stunet.training.config import TrainConfig

FLAGS = flags.FlagValues()
_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "of stage t2v; default: tiny_t2v.py", flag_values=FLAGS
)
_BACKBONE = flags.DEFINE_enum(
    "backbone", None, tuple(ARCHITECTURES), "the image model inside", flag_values=FLAGS
)
_TOPOLOGY = flags.DEFINE_string(
    "topology", None, "of an absent TPU, CHIP:AxB or CHIP:AxBxC", flag_values=FLAGS
)
_FRAMES = flags.DEFINE_multi_integer(
    "frames", [16, 32, 64], "of the clip", lower_bound=WINDOW, flag_values=FLAGS
)
_REPEATS = flags.DEFINE_integer(
    "repeats", 3, "runs of each, after the first", lower_bound=1, flag_values=FLAGS
)
_OUT = flags.DEFINE_string("out", None, "a JSON file for the figures", flag_values=FLAGS)


def main(argv: list[str]) -> None:
    """Compiles, and runs, a step of each way at each length."""
    values = read_flags(FLAGS, argv, __doc__, _CONFIG) or tiny_t2v.get_config().to_dict()
    config = from_dict(TrainConfig, {**values, "batch_size": 1}, "config")
    if config.temporal is None or config.stage != "t2v":
        raise UserError("--config names no stage t2v")
    if not _OUT.value:
        raise UserError("--out=FILE is needed")
    if _TOPOLOGY.value is None:
        prepare_compiler()
    unet = _unet(config)
    work = {(way, n): calls(way, unet, n) for n in _FRAMES.value for way in WAYS}
    programs = list(dict.fromkeys((c.unet, c.frames) for cs in work.values() for c in cs))
    cost = measured(config, programs) if _TOPOLOGY.value is None else estimated(config, programs)
    rows = []
    for (way, frames), parts in work.items():
        costs = [cost[part.unet, part.frames] for part in parts]
        row = {
            "way": way,
            "frames": frames,
            "temporary_bytes": max(one["temporary_bytes"] for one in costs),
            "seconds": sum(p.count * one["seconds"] for p, one in zip(parts, costs, strict=True)),
            "calls": sum(part.count for part in parts),
        }
        rows.append(row)
    print_table(
        ("frames", "way", "calls", "temporaries MiB", "s a step"),
        [
            (r["frames"], r["way"], r["calls"], r["temporary_bytes"] / 2**20, r["seconds"])
            for r in rows
        ],
    )
    settings = {"topology": _TOPOLOGY.value, "backbone": _BACKBONE.value, "config": values}
    write_json(_OUT.value, {"benchmark": "frames", **settings, "runs": rows})


def measured(config: TrainConfig, programs: list) -> dict[Any, dict[str, float]]:
    """Bytes and best seconds of each program on this machine, all of them in turns."""
    runs, found = {}, {}
    for unet, frames in tqdm(programs, desc="compiling"):
        _, function, structs, _ = sample_program(
            _with_frames(config, frames), jax.local_devices()[:1], unet, None, _tokens()
        )
        compiled = function.lower(*structs).compile()
        bytes_ = compiled.memory_analysis().temp_size_in_bytes
        found[unet, frames] = {"temporary_bytes": bytes_, "seconds": np.inf}
        runs[unet, frames] = functools.partial(compiled, *jax.tree.map(_random, structs))
    for turn in tqdm(range(_REPEATS.value + 1), desc="running"):
        for program, run in runs.items():
            seconds = _seconds(run)
            if turn:  # the first warms up
                found[program]["seconds"] = min(found[program]["seconds"], seconds)
    return found


def estimated(config: TrainConfig, programs: list) -> dict[Any, dict[str, float]]:
    """Bytes and seconds of each program by the compiler of an absent TPU."""
    found = {}
    for unet, frames in tqdm(programs, desc="compiling"):
        at = _with_frames(config, frames)
        report = compile_for(_TOPOLOGY.value, "sample", at, unet, None, _tokens())
        found[unet, frames] = {
            "temporary_bytes": report["temporary_bytes"],
            "seconds": report["estimated_s"],
        }
    return found


def _unet(config: TrainConfig) -> UNetConfig:
    """The network of the config, on the backbone that is named or the tiny one."""
    if _BACKBONE.value is not None:
        unet = laid_out(ARCHITECTURES[_BACKBONE.value], config.data["resolution"])
    else:
        unet = from_dict(UNetConfig, tiny_t2i.get_config().unet.to_dict(), "unet")
    return dataclasses.replace(unet, temporal=config.temporal, dtype=config.dtype or unet.dtype)


def _tokens() -> int:
    return 77 if _BACKBONE.value is not None else tiny_t2i.get_config().text_encoder.max_tokens


def _with_frames(config: TrainConfig, frames: int) -> TrainConfig:
    return dataclasses.replace(config, data={**config.data, "num_frames": frames})


def _random(struct: jax.ShapeDtypeStruct) -> jax.Array:
    """Values that no program is quicker for."""
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
