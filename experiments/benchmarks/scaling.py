"""Measures memory and time against frames and resolution, with and without temporal resampling.

    python -m experiments.benchmarks.scaling --out=scaling.json

Compiles the train step of the temporal parameters for one video. Memory is the compiler's figure,
so a program that does not fit this machine can be measured, too: parameters and optimiser state are
the program's arguments, activations its temporaries. Clips of at most --max_pixels (frames times
height times width) are also run and timed. Ratios (x) are relative to the first row of a network
and size: the shortest clip without temporal resampling, as a model of key frames would process it.
Several --remat compare the memory and time of rematerialisation policies.
"""

import sys
from dataclasses import replace
from typing import Any

import jax
from absl import flags
from tqdm import tqdm

from experiments.benchmarks.harness import workloads
from experiments.benchmarks.harness.timing import time_here
from experiments.benchmarks.harness.workloads import at_full_rate
from experiments.common.networks import IF_M, IF_XL, LATE, PEERS
from experiments.common.program_flags import read_flags
from experiments.common.reports import print_table, write_json
from stunet.compiling import prepare_compiler
from stunet.errors import run_command
from stunet.models.remat import REMAT_POLICIES
from stunet.models.unet_config import UNetConfig

# name -> (network, heights and widths)
NETWORKS = {
    "peers": (PEERS, (32, 64)),
    "if_m": (IF_M, (64,)),
    "if_xl": (IF_XL, (64,)),
    "late": (LATE, (64,)),
}

FLAGS = flags.FlagValues()
_OUT = flags.DEFINE_string(
    "out", "benchmarks/scaling.json", "write the results to this JSON file", flag_values=FLAGS
)
_NETWORKS = flags.DEFINE_multi_enum(
    "networks",
    ["peers"],
    list(NETWORKS),
    "measure this network",
    flag_values=FLAGS,
)
_FRAMES = flags.DEFINE_multi_integer(
    "frames",
    [16, 32, 64, 80, 160],
    "measure clips of this many frames",
    flag_values=FLAGS,
)
_DTYPE = flags.DEFINE_enum(
    "dtype", "float32", ["float32", "bfloat16"], "compute in this type", flag_values=FLAGS
)
_REMAT = flags.DEFINE_multi_enum(
    "remat",
    ["none"],
    list(REMAT_POLICIES),
    "recompute these activations in the train step",
    flag_values=FLAGS,
)
_MAX_PIXELS = flags.DEFINE_integer(
    "max_pixels",
    80 * 32 * 32,
    "run clips of at most this many pixels, frames included",
    flag_values=FLAGS,
)


def measure(config: UNetConfig, frames: int, size: int, remat: str, timed: bool) -> dict:
    """Returns the bytes and seconds of one train step.

    Args:
      config: The network.
      frames: Frames of the clip.
      size: Height and width of the clip.
      remat: Rematerialisation policy.
      timed: Whether to run the step; "seconds" is None otherwise.
    """
    batch = workloads.make_batch(config, 1, frames, size)
    step, init = workloads.train_step(config, remat)
    state, frozen = jax.eval_shape(init, workloads.parameter_structs(config))
    compiled = jax.jit(step, donate_argnums=0).lower(state, frozen, batch).compile()
    result = {
        "frozen_bytes": _bytes(frozen),
        "state_bytes": _bytes(state),
        "activation_bytes": compiled.memory_analysis().temp_size_in_bytes,
        "seconds": None,
    }
    if timed:
        state, frozen = init(workloads.random_like(workloads.parameter_structs(config)))

        def run() -> None:
            nonlocal state
            state, metrics = compiled(state, frozen, batch)
            metrics["loss"].block_until_ready()

        result["seconds"], _ = time_here(run, 3)
    return result


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def main(argv: list[str]) -> None:
    """Measures all cases and prints a table."""
    read_flags(FLAGS, argv, __doc__)
    prepare_compiler()
    cases = [
        (name, resampled, size, remat, frames)
        for name in _NETWORKS.value
        for size in NETWORKS[name][1]
        for resampled in (False, True)
        for remat in _REMAT.value
        for frames in _FRAMES.value
    ]
    rows, results, base = [], [], {}
    for name, resampled, size, remat, frames in tqdm(cases, desc="programs"):
        config = replace(NETWORKS[name][0], dtype=_DTYPE.value)
        config = config if resampled else at_full_rate(config)
        timed = frames * size * size <= _MAX_PIXELS.value
        result = measure(config, frames, size, remat, timed)
        fixed = result["frozen_bytes"] + result["state_bytes"]
        total = fixed + result["activation_bytes"]
        first = base.setdefault((name, size), (result, total))
        rows.append(
            (
                name,
                "on" if resampled else "off",
                size,
                remat,
                frames,
                fixed // 2**20,
                result["activation_bytes"] // 2**20,
                result["activation_bytes"] / first[0]["activation_bytes"],
                total / first[1],
                result["seconds"] if timed else "",
                result["seconds"] / first[0]["seconds"] if timed else "",
            )
        )
        case = {"network": name, "resampled": resampled, "size": size, "remat": remat}
        results.append({**case, "frames": frames, **result})
    columns = ("network", "temporal resampling", "size", "remat", "frames")
    columns += (
        "parameters and optimiser MiB",
        "activations MiB",
        "activations, x",
        "total, x",
        "s",
        "s, x",
    )
    print_table(columns, rows)
    write_json(_OUT.value, {"benchmark": "scaling", "dtype": _DTYPE.value, "runs": results})


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv), "experiments.benchmarks.scaling"))
