"""Memory and time against frames and resolution, with and without temporal resampling.

    python -m experiments.benchmarks.scaling --out=scaling.json

The train step of the temporal parameters, batch 1. Memory is the compiler's own account of the
program, so nothing of that size has to be run: parameters and optimiser state (its arguments)
apart from activations (its temporaries). Time is measured for clips of up to `--max_pixels`
(frames times height times width). Multiples are of a network's first row: the shortest clip without
temporal resampling, as a model of key frames would see it. `--networks` names some of `NETWORKS`;
several `--remat` show what recomputation saves and costs.
"""

import sys
from dataclasses import replace
from typing import Any

import jax
from absl import flags
from tqdm import tqdm

from experiments.benchmarks import workloads
from experiments.benchmarks.timing import print_table, time_here, write_json
from experiments.common.program_flags import read_flags
from stunet.compiling import prepare_compiler
from stunet.errors import run_command
from stunet.models.unet import REMAT_POLICIES, UNetConfig

# name -> (network, heights and widths)
NETWORKS = {
    "peers": (workloads.PEERS, (32, 64)),
    "if_m": (workloads.IF_M, (64,)),
    "if_xl": (workloads.IF_XL, (64,)),
    "late": (workloads.LATE, (64,)),
}

FLAGS = flags.FlagValues()
_OUT = flags.DEFINE_string(
    "out", "benchmarks/scaling.json", "where the figures are written", flag_values=FLAGS
)
_NETWORKS = flags.DEFINE_multi_enum(
    "networks", ["peers"], list(NETWORKS), "what is measured", flag_values=FLAGS
)
_FRAMES = flags.DEFINE_multi_integer(
    "frames", [16, 32, 64, 80, 160], "lengths of the clips", flag_values=FLAGS
)
_DTYPE = flags.DEFINE_enum(
    "dtype", "float32", ["float32", "bfloat16"], "compute type", flag_values=FLAGS
)
_REMAT = flags.DEFINE_multi_enum(
    "remat", ["none"], list(REMAT_POLICIES), "what is recomputed", flag_values=FLAGS
)
_MAX_PIXELS = flags.DEFINE_integer(
    "max_pixels", 80 * 32 * 32, "larger clips are not run", flag_values=FLAGS
)


def resampling_off(config: UNetConfig) -> UNetConfig:
    """The same network at a fixed frame rate."""
    off = (False,) * len(config.temporal.resample)
    return replace(config, temporal=replace(config.temporal, resample=off))


def measure(config: UNetConfig, frames: int, size: int, remat: str, timed: bool) -> dict:
    """Bytes and seconds of one train step."""
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
    """Measures every case and prints the table."""
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
        config = config if resampled else resampling_off(config)
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
        "x activations",
        "x both",
        "s",
        "x s",
    )
    print_table(columns, rows)
    write_json(_OUT.value, {"benchmark": "scaling", "dtype": _DTYPE.value, "runs": results})


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv), "experiments.benchmarks.scaling"))
