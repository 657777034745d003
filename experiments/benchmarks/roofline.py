"""Measures the network's share of the machine's matrix-product rate, and its time by layer.

    python -m experiments.benchmarks.roofline --out=roofline.json

Times the forward pass, the train step of the temporal parameters and one sampler step (batched
guidance) in turns with a large matrix product, and compares their model FLOPs per second. Then
prints the time of each kind of layer, from a profile of the compiled train step.
"""

import re
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
from absl import flags

from experiments.benchmarks.harness import workloads
from experiments.benchmarks.harness.timing import (
    Worker,
    resident_bytes,
    take_turns,
    thread_counts,
)
from experiments.common.flops import model_flops
from experiments.common.networks import IF_M, PEERS, PEERS_FRAMES, PEERS_SIZE
from experiments.common.op_profile import module_paths, op_seconds
from experiments.common.program_flags import read_flags
from experiments.common.reports import print_table, write_json
from stunet.compiling import prepare_compiler
from stunet.errors import run_command
from stunet.models.remat import REMAT_POLICIES
from stunet.models.unet_config import UNetConfig

# name -> (network, batch, frames, height and width, size of the matrix product)
NETWORKS = {
    "peers": (PEERS, 1, PEERS_FRAMES, PEERS_SIZE, 1536),
    "if_m": (IF_M, 1, 80, 64, 8192),
}

WORK = ("matmul", "forward", "train step", "sampler step")

FLAGS = flags.FlagValues()
_OUT = flags.DEFINE_string(
    "out", "benchmarks/roofline.json", "write the results to this JSON file", flag_values=FLAGS
)
_NETWORK = flags.DEFINE_enum(
    "network", "peers", list(NETWORKS), "measure this network", flag_values=FLAGS
)
_DEVICE = flags.DEFINE_enum(
    "device", "cpu", ["cpu", "gpu"], "compute on this kind of device", flag_values=FLAGS
)
_DTYPE = flags.DEFINE_enum(
    "dtype", "float32", ["float32", "bfloat16"], "compute in this type", flag_values=FLAGS
)
_REMAT = flags.DEFINE_enum(
    "remat",
    "none",
    list(REMAT_POLICIES),
    "recompute these activations in the train step",
    flag_values=FLAGS,
)
_REPEATS = flags.DEFINE_integer(
    "repeats", 5, "time this many runs after a warm-up run", lower_bound=1, flag_values=FLAGS
)

KINDS = (  # (kind, pattern of module paths); the first match counts
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
    """Returns the kind of layer of a module path, or "other"."""
    return next((kind for kind, pattern in KINDS if re.search(pattern, path)), "other")


def build(work: str, name: str, dtype: str, remat: str, profile: bool):
    """Builds one of `WORK`; a set-up function of `Worker`.

    Args:
      work: One of `WORK`.
      name: One of `NETWORKS`.
      dtype: Compute type.
      remat: Rematerialisation policy of the train step.
      profile: Whether to report the seconds and FLOPs of each kind of layer.
    """
    prepare_compiler()
    idle = resident_bytes()
    config, batch, frames, size, matmul_size = NETWORKS[name]
    if work == "matmul":
        run, flops = workloads.matmul(matmul_size, dtype)
        return run, idle, {"flops": flops}
    config = replace(config, dtype=dtype)
    function, plain, args = _function(work, config, batch, frames, size, remat)
    compiled = jax.jit(function).lower(*args).compile()
    flops = model_flops(plain, *args)
    info: dict[str, Any] = {"flops": sum(flops.values())}

    def run() -> None:
        jax.block_until_ready(compiled(*args))

    if profile:
        info["kinds"] = _by_kind(flops, compiled, run)
    return run, idle, info


def _function(
    work: str, config: UNetConfig, batch: int, frames: int, size: int, remat: str
) -> tuple[Callable, Callable, tuple]:
    """Returns (function, the function without rematerialisation, arguments)."""
    params = workloads.random_like(workloads.parameter_structs(config))
    inputs = workloads.make_batch(config, batch, frames, size)
    if work == "forward":
        function = workloads.forward(config)
        return function, function, (params, inputs)
    if work == "sampler step":
        function, carry = workloads.sampler_step(config, inputs)
        return function, function, (params, carry, inputs)
    step, init = workloads.train_step(config, remat)
    plain, _ = workloads.train_step(config)
    return step, plain, (*init(params), inputs)


def _by_kind(
    flops: dict[str, float], compiled: jax.stages.Compiled, run: Callable
) -> dict[str, list[float]]:
    """Returns kind of layer -> [seconds, FLOPs]."""
    kinds: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for path, count in flops.items():
        kinds[kind_of(path + "/")][1] += count
    paths = module_paths(compiled.as_text())
    for op, seconds in op_seconds(run, 2).items():
        kinds[kind_of(paths.get(op, ""))][0] += seconds
    return dict(kinds)


def main(argv: list[str]) -> None:
    """Measures all work and prints both tables."""
    read_flags(FLAGS, argv, __doc__)
    settings = (_NETWORK.value, _DTYPE.value, _REMAT.value)
    rows, results, kinds = [], [], {}
    counts = thread_counts(_DEVICE.value)
    for threads in counts:
        profiled = threads == 1 or len(counts) == 1
        workers = [Worker(threads, build, work, *settings, profiled) for work in WORK]
        timings = take_turns(workers, _REPEATS.value)
        rates = [t.info["flops"] / t.best for t in timings]
        for work, timing, rate in zip(WORK, timings, rates, strict=True):
            peak = timing.peak_bytes // 2**20
            row = (timing.info["flops"] / 1e9, timing.best, timing.median, rate / 1e9)
            rows.append(
                (threads, work, *row, rate / rates[0], timing.cpus, peak, timing.first_seconds)
            )
            results.append({"threads": threads, "what": work, **timing.as_json()})
            if work == "train step" and profiled:
                kinds = timing.info["kinds"]
    columns = ("CPUs", "work", "GFLOP", "best s", "median s", "GFLOP/s", "share of matmul")
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
    names = ("network", "dtype", "remat")
    report = {"benchmark": "roofline", **dict(zip(names, settings, strict=True)), "runs": results}
    write_json(_OUT.value, report)


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv), "experiments.benchmarks.roofline"))
