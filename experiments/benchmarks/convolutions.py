"""The network's convolutions one by one, with and without XLA's hand-over to the YNN library.

    python -m experiments.benchmarks.convolutions --out=convolutions.json

On a CPU only. Forward pass and gradient of the kernel, at the shapes of `peers` with a batch of 4
and of the tiny configuration with a batch of 8, on one CPU and on all; why
`stunet.compiling.prepare_compiler` keeps convolutions from YNN.
"""

import os
import sys
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags

from experiments.benchmarks.timing import (
    Worker,
    print_table,
    resident_bytes,
    thread_counts,
    time_here,
    write_json,
)
from experiments.common.program_flags import read_flags
from stunet.compiling import prepare_compiler
from stunet.errors import run_command

# name -> (input [N, H, W, C], kernel height and width); a temporal one sees [B, T, H*W, C].
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
EVERYTHING_IN_YNN = "--xla_cpu_experimental_ynn_fusion_type=" + ",".join(
    f"LIBRARY_FUSION_TYPE_{kind}" for kind in ("DOT", "REDUCE", "INDIVIDUAL_CONVOLUTION")
)

FLAGS = flags.FlagValues()
_OUT = flags.DEFINE_string(
    "out", "benchmarks/convolutions.json", "where the figures are written", flag_values=FLAGS
)
_REPEATS = flags.DEFINE_integer(
    "repeats", 5, "runs of each, after the first", lower_bound=1, flag_values=FLAGS
)


def measure(in_ynn: bool, repeats: int):
    """Times every convolution in this process."""
    if in_ynn:
        os.environ["XLA_FLAGS"] = EVERYTHING_IN_YNN
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
        for what, function in (("forward", convolve), ("kernel gradient", kernel_gradient)):
            compiled = jax.jit(function)
            run = lambda f=compiled, x=x, w=w: f(x, w).block_until_ready()  # noqa: E731
            seconds[f"{name}: {what}"] = time_here(run, repeats)[0]
    return lambda: None, resident_bytes(), seconds


def main(argv: list[str]) -> None:
    """Measures both ways and prints them side by side."""
    read_flags(FLAGS, argv, __doc__)
    rows, results = [], []
    for threads in thread_counts("cpu"):
        out, inside = (
            Worker(threads, measure, in_ynn, _REPEATS.value).finish().info
            for in_ynn in (False, True)
        )
        for name in out:
            rows.append((threads, name, out[name], inside[name], inside[name] / out[name]))
        results.append({"threads": threads, "without_ynn_s": out, "in_ynn_s": inside})
    print_table(("CPUs", "convolution", "s", "s in YNN", "times slower in YNN"), rows)
    write_json(_OUT.value, {"benchmark": "convolutions", "runs": results})


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv), "experiments.benchmarks.convolutions"))
