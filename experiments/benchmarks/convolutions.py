"""Times the network's convolutions with and without the YNN library.

    python -m experiments.benchmarks.convolutions --out=convolutions.json

XLA's CPU backend can hand convolutions to YNN. The results are the reason why
`stunet.compiling.prepare_compiler` prevents that. Runs on CPUs only. Times the forward pass and the
gradient of the kernel at the shapes of `peers` (batch 4) and of the tiny configuration (batch 8),
on one CPU and on all.
"""

import os
import sys
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags

from experiments.benchmarks.harness.timing import (
    Worker,
    resident_bytes,
    thread_counts,
    time_here,
)
from experiments.common.program_flags import read_flags
from experiments.common.reports import print_table, write_json
from stunet.compiling import prepare_compiler
from stunet.errors import run_command

# name -> (input [N, H, W, C], kernel height and width). Temporal inputs are [B, T, H*W, C].
SHAPES = {
    "temporal, 16 wide": ((8, 16, 1024, 16), (3, 1)),
    "temporal, 32 wide": ((8, 16, 1024, 32), (3, 1)),
    "temporal, 64 wide": ((4, 16, 1024, 64), (3, 1)),
    "temporal, 128 wide": ((4, 8, 256, 128), (3, 1)),
    "spatial, 16 wide": ((128, 32, 32, 16), (3, 3)),
    "spatial, 64 wide": ((64, 32, 32, 64), (3, 3)),
    "spatial, 128 wide": ((32, 16, 16, 128), (3, 3)),
    "spatial, 256 wide": ((16, 8, 8, 256), (3, 3)),
}
ALL_IN_YNN = "--xla_cpu_experimental_ynn_fusion_type=" + ",".join(
    f"LIBRARY_FUSION_TYPE_{kind}" for kind in ("DOT", "REDUCE", "INDIVIDUAL_CONVOLUTION")
)

FLAGS = flags.FlagValues()
_OUT = flags.DEFINE_string(
    "out", "benchmarks/convolutions.json", "write the results to this JSON file", flag_values=FLAGS
)
_REPEATS = flags.DEFINE_integer(
    "repeats", 5, "time this many runs after a warm-up run", lower_bound=1, flag_values=FLAGS
)


def measure(use_ynn: bool, repeats: int):
    """Times all convolutions in this process; a set-up function of `Worker`."""
    if use_ynn:
        os.environ["XLA_FLAGS"] = ALL_IN_YNN
    prepare_compiler()
    seconds: dict[str, Any] = {}
    for name, (shape, kernel) in SHAPES.items():
        width = shape[-1]
        padding = tuple((size // 2, size // 2) for size in kernel)

        def convolve(x: jax.Array, w: jax.Array, padding: Any = padding) -> jax.Array:
            dimensions = ("NHWC", "HWIO", "NHWC")
            return jax.lax.conv_general_dilated(x, w, (1, 1), padding, dimension_numbers=dimensions)

        def kernel_gradient(x: jax.Array, w: jax.Array, f: Any = convolve) -> jax.Array:
            return jax.vjp(lambda w: f(x, w), w)[1](x)[0]

        x, w = jnp.ones(shape), jnp.ones((*kernel, width, width))
        for direction, function in (("forward", convolve), ("kernel gradient", kernel_gradient)):
            compiled = jax.jit(function)
            run = lambda f=compiled, x=x, w=w: f(x, w).block_until_ready()  # noqa: E731
            seconds[f"{name}: {direction}"] = time_here(run, repeats)[0]
    return lambda: None, resident_bytes(), seconds


def main(argv: list[str]) -> None:
    """Times all convolutions with and without YNN and prints a table."""
    read_flags(FLAGS, argv, __doc__)
    rows, results = [], []
    for threads in thread_counts("cpu"):
        without, with_ynn = (
            Worker(threads, measure, use_ynn, _REPEATS.value).finish().info
            for use_ynn in (False, True)
        )
        for name in without:
            slowdown = with_ynn[name] / without[name]
            rows.append((threads, name, without[name], with_ynn[name], slowdown))
        results.append({"threads": threads, "without_ynn_s": without, "in_ynn_s": with_ynn})
    print_table(("CPUs", "convolution", "s", "s in YNN", "times slower in YNN"), rows)
    write_json(_OUT.value, {"benchmark": "convolutions", "runs": results})


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv), "experiments.benchmarks.convolutions"))
