"""How much of the machine's matrix-product rate the network gets, and where its time goes.

    python -m experiments.benchmarks.roofline --out=roofline.json

Forward pass, train step of the temporal parameters and one sampler step (batched guidance), as
model FLOPs over time, beside the rate of a large matrix product measured in turns with them; then
the time of each kind of layer from a profile of the compiled program. `--network` names one of
`NETWORKS`.
"""

import re
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
from absl import flags

from experiments.benchmarks import workloads
from experiments.benchmarks.flops import model_flops
from experiments.benchmarks.op_profile import module_paths, op_seconds
from experiments.benchmarks.timing import (
    Worker,
    print_table,
    resident_bytes,
    take_turns,
    thread_counts,
    write_json,
)
from experiments.common.program_flags import read_flags
from stunet.compiling import prepare_compiler
from stunet.errors import run_command
from stunet.models.unet import REMAT_POLICIES, UNetConfig

# name -> (network, batch, frames, height and width, size of the matrix product)
NETWORKS = {
    "peers": (workloads.PEERS, 1, workloads.PEERS_FRAMES, workloads.PEERS_SIZE, 1536),
    "if_m": (workloads.IF_M, 1, 80, 64, 8192),
}

FLAGS = flags.FlagValues()
_OUT = flags.DEFINE_string(
    "out", "benchmarks/roofline.json", "where the figures are written", flag_values=FLAGS
)
_NETWORK = flags.DEFINE_enum(
    "network", "peers", list(NETWORKS), "what is measured", flag_values=FLAGS
)
_DEVICE = flags.DEFINE_enum("device", "cpu", ["cpu", "gpu"], "where to compute", flag_values=FLAGS)
_DTYPE = flags.DEFINE_enum(
    "dtype", "float32", ["float32", "bfloat16"], "compute type", flag_values=FLAGS
)
_REMAT = flags.DEFINE_enum(
    "remat", "none", list(REMAT_POLICIES), "what is recomputed", flag_values=FLAGS
)
_REPEATS = flags.DEFINE_integer(
    "repeats", 5, "runs of each, after the first", lower_bound=1, flag_values=FLAGS
)

KINDS = (  # the first that a path matches
    ("optimiser and loss", r"^(?!.*UNet).+"),
    ("temporal resampling", r"temporal_\w+_resample/"),
    ("norms and element-wise", r"/norm\w*/|/(erf|mul|add|sub|div|add_any|concatenate|split)$"),
    ("temporal attention", r"temporal_\w+/attn_"),
    ("temporal conv", r"temporal_\w+/(conv_time|conv|proj)/"),
    ("spatial conv", r"/conv_\w+/|/skip/"),
    ("spatial attention", r"_attn_\d/"),
    ("spatial resampling", r"_resample/"),
)


def kind_of(path: str) -> str:
    """The kind of layer that a module's path belongs to."""
    return next((kind for kind, pattern in KINDS if re.search(pattern, path)), "other")


def work(what: str, name: str, dtype: str, remat: str, profile: bool):
    """One piece of work, built in its own process."""
    prepare_compiler()
    idle = resident_bytes()
    config, batch, frames, size, matmul_size = NETWORKS[name]
    if what == "matmul":
        run, flops = workloads.matmul(matmul_size, dtype)
        return run, idle, {"flops": flops}
    config = replace(config, dtype=dtype)
    function, plain, args = _function(what, config, batch, frames, size, remat)
    start = jax.jit(function).lower(*args)
    compiled = start.compile()
    flops = model_flops(plain, *args)
    info: dict[str, Any] = {"flops": sum(flops.values())}

    def run() -> None:
        jax.block_until_ready(compiled(*args))

    if profile:
        info["kinds"] = _by_kind(flops, compiled, run)
    return run, idle, info


def _function(
    what: str, config: UNetConfig, batch: int, frames: int, size: int, remat: str
) -> tuple[Callable, Callable, tuple]:
    """(what is compiled, the same without recomputation, arguments)."""
    params = workloads.random_like(workloads.parameter_structs(config))
    inputs = workloads.make_batch(config, batch, frames, size)
    if what == "forward":
        function = workloads.forward(config)
        return function, function, (params, inputs)
    if what == "sampler step":
        function, carry = workloads.sampler_step(config, inputs)
        return function, function, (params, carry, inputs)
    step, init = workloads.train_step(config, remat)
    plain, _ = workloads.train_step(config)
    return step, plain, (*init(params), inputs)


def _by_kind(flops: dict[str, float], compiled: jax.stages.Compiled, run: Callable) -> dict:
    kinds: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for path, count in flops.items():
        kinds[kind_of(path + "/")][1] += count
    paths = module_paths(compiled.as_text())
    for op, seconds in op_seconds(run, 2).items():
        kinds[kind_of(paths.get(op, ""))][0] += seconds
    return dict(kinds)


def main(argv: list[str]) -> None:
    """Measures and prints both tables."""
    read_flags(FLAGS, argv, __doc__)
    given = (_NETWORK.value, _DTYPE.value, _REMAT.value)
    rows, results, kinds = [], [], {}
    whats = ("matmul", "forward", "train step", "sampler step")
    counts = thread_counts(_DEVICE.value)
    for threads in counts:
        profiled = threads == 1 or len(counts) == 1
        workers = [Worker(threads, work, what, *given, profiled) for what in whats]
        timings = take_turns(workers, _REPEATS.value)
        rates = [t.info["flops"] / t.best for t in timings]
        for what, timing, rate in zip(whats, timings, rates, strict=True):
            peak = timing.peak_bytes // 2**20
            row = (timing.info["flops"] / 1e9, timing.best, timing.median, rate / 1e9)
            rows.append(
                (threads, what, *row, rate / rates[0], timing.cpus, peak, timing.first_seconds)
            )
            results.append({"threads": threads, "what": what, **timing.as_json()})
            if what == "train step" and profiled:
                kinds = timing.info["kinds"]
    columns = ("CPUs", "what", "GFLOP", "best s", "median s", "GFLOP/s", "share of matmul")
    print_table((*columns, "CPUs used", "peak MiB", "first s"), rows)
    total = sum(seconds for seconds, _ in kinds.values())
    print("\nTrain step, by kind of layer (one thread on a CPU):")
    print_table(
        ("kind", "s", "share of time", "GFLOP", "GFLOP/s"),
        [
            (kind, seconds, seconds / total, count / 1e9, count / 1e9 / seconds)
            for kind, (seconds, count) in sorted(kinds.items(), key=lambda k: -k[1][0])
            if seconds
        ],
    )
    write_json(_OUT.value, {"benchmark": "roofline", "given": given, "runs": results})


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv), "experiments.benchmarks.roofline"))
