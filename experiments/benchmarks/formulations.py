"""Times alternative implementations of a layer against the one that the network uses.

    python -m experiments.benchmarks.formulations --out=formulations.json

Runs on CPUs only. Times the forward pass, and the forward pass with the gradients of all arguments,
at the finest level of `peers` (16 frames of 32x32, 64 channels), on one CPU and on all. The
implementations of a layer take turns, and their outputs are compared.
"""

import math
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
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
from stunet.models.layers import NORM_EPSILON, UpsampledConv, gelu, group_norm, upsample_space

FRAMES, SIZE, WIDTH, GROUPS = 16, 32, 64, 32

FLAGS = flags.FlagValues()
_OUT = flags.DEFINE_string(
    "out", "benchmarks/formulations.json", "write the results to this JSON file", flag_values=FLAGS
)
_REPEATS = flags.DEFINE_integer(
    "repeats", 5, "time this many runs after a warm-up run", lower_bound=1, flag_values=FLAGS
)


def convolve(x: jax.Array, w: jax.Array) -> jax.Array:
    """Convolves `[N, H, W, C]` with a 3x3 kernel by XLA's convolution."""
    padding, dimensions = ((1, 1), (1, 1)), ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, w, (1, 1), padding, dimension_numbers=dimensions)


def convolve_by_matmul(x: jax.Array, w: jax.Array) -> jax.Array:
    """Convolves like `convolve`, by one matrix product of 3x3 neighbourhoods."""
    n, height, width, channels = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifted = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    y = jnp.concatenate(shifted, -1).reshape(-1, 9 * channels) @ w.reshape(9 * channels, -1)
    return y.reshape(n, height, width, -1)


def upsample_and_convolve(x: jax.Array, w: jax.Array) -> jax.Array:
    """Upsamples x2 (nearest neighbour), then convolves with a 3x3 kernel."""
    return convolve(upsample_space(x[None])[0], w)


def convolve_upsampled(x: jax.Array, w: jax.Array) -> jax.Array:
    """Computes `upsample_and_convolve` as the network does, by `UpsampledConv`."""
    params = {"kernel": w, "bias": jnp.zeros(w.shape[-1])}
    return UpsampledConv(w.shape[-1]).apply({"params": params}, x)


def plain_group_norm(x: jax.Array, scale: jax.Array, shift: jax.Array) -> jax.Array:
    """Computes group norm as it is usually written; its gradient is JAX's."""
    n, pixels, _ = x.shape
    grouped = x.reshape(n, pixels, GROUPS, -1)
    mean = grouped.mean((1, 3), keepdims=True)
    variance = jnp.square(grouped - mean).mean((1, 3), keepdims=True)
    normed = (grouped - mean) * jax.lax.rsqrt(variance + NORM_EPSILON)
    return normed.reshape(x.shape) * scale + shift


def layers() -> dict[str, tuple[dict[str, Callable], tuple]]:
    """Returns layer -> (implementations, the network's first; their arguments)."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape, np.float32))

    frames = normal(FRAMES, SIZE, SIZE, WIDTH)
    coarse = normal(FRAMES, SIZE // 2, SIZE // 2, WIDTH)
    kernel = normal(3, 3, WIDTH, WIDTH) / math.sqrt(9 * WIDTH)
    flat, per_channel = frames.reshape(FRAMES, -1, WIDTH), normal(FRAMES, 1, WIDTH)
    return {
        "spatial conv": (
            {"XLA's convolution": convolve, "one matrix product": convolve_by_matmul},
            (frames, kernel),
        ),
        "upsampling conv": (
            {"four 2x2": convolve_upsampled, "upsampled, then 3x3": upsample_and_convolve},
            (coarse, kernel),
        ),
        "group norm": (
            {
                "gradient written out": lambda *args: group_norm(*args, GROUPS),
                "differentiated by JAX": plain_group_norm,
            },
            (flat, per_channel, per_channel),
        ),
        "GELU": ({"erf": gelu, "jax.nn.gelu": lambda x: jax.nn.gelu(x, False)}, (frames,)),
    }


def with_gradient(function: Callable) -> Callable:
    """Returns a function that computes the output and the gradients of all arguments.

    The output itself serves as the output gradient.
    """

    def run(*args: jax.Array) -> tuple:
        y, backward = jax.vjp(function, *args)
        return y, backward(y)

    return run


def measure(repeats: int):
    """Times all implementations of all layers in this process; a set-up function of `Worker`."""
    prepare_compiler()
    seconds: dict[str, float] = {}
    for layer, (implementations, args) in layers().items():
        for work, wrap in (("forward", lambda f: f), ("with gradient", with_gradient)):
            compiled = {name: jax.jit(wrap(f)) for name, f in implementations.items()}
            outputs = [f(*args) for f in compiled.values()]
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-2), *outputs
            )
            best = _take_turns(compiled, args, repeats)
            seconds |= {f"{layer}|{work}|{name}": s for name, s in best.items()}
    return lambda: None, resident_bytes(), seconds


def _take_turns(compiled: dict[str, Callable], args: tuple, repeats: int) -> dict[str, float]:
    best = dict.fromkeys(compiled, math.inf)
    for _ in range(repeats):
        for name, f in compiled.items():
            seconds, _ = time_here(lambda f=f: jax.block_until_ready(f(*args)), 1)
            best[name] = min(best[name], seconds)
    return best


def main(argv: list[str]) -> None:
    """Times all layers and prints a table, the network's implementation of each layer first."""
    read_flags(FLAGS, argv, __doc__)
    rows, results = [], []
    for threads in thread_counts("cpu"):
        seconds = Worker(threads, measure, _REPEATS.value).finish().info
        ours: dict[tuple[str, str], float] = {}
        for key, value in seconds.items():
            layer, work, name = key.split("|")
            first = ours.setdefault((layer, work), value)
            rows.append((threads, layer, work, name, value, value / first))
        results.append({"threads": threads, "seconds": seconds})
    print_table(("CPUs", "layer", "work", "implementation", "best s", "times ours"), rows)
    write_json(_OUT.value, {"benchmark": "formulations", "runs": results})


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv), "experiments.benchmarks.formulations"))
