"""Measures the overhead of sampling over its forward passes.

    python -m experiments.benchmarks.sampling --out=sampling.json

Times complete runs of `stunet.generate` (text encoding, guidance, dynamic thresholding, the
sampler's arithmetic, progress calls) in turns with as many bare forward passes of the guided batch,
in one process. The network is that of `peers`.
"""

import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from absl import flags
from tqdm import tqdm

import stunet
from experiments.benchmarks.harness import workloads
from experiments.common.networks import PEERS, PEERS_FRAMES, PEERS_SIZE
from experiments.common.program_flags import read_flags
from experiments.common.reports import print_table, write_json
from stunet.compiling import prepare_compiler
from stunet.errors import run_command

FLAGS = flags.FlagValues()
_OUT = flags.DEFINE_string(
    "out", "benchmarks/sampling.json", "write the results to this JSON file", flag_values=FLAGS
)
_STEPS = flags.DEFINE_integer(
    "steps", 20, "take this many sampling steps", lower_bound=1, flag_values=FLAGS
)
_BATCH = flags.DEFINE_integer(
    "batch", 2, "generate this many videos per batch", lower_bound=1, flag_values=FLAGS
)
_REPEATS = flags.DEFINE_integer(
    "repeats", 3, "time this many runs after a warm-up run", lower_bound=1, flag_values=FLAGS
)


def main(argv: list[str]) -> None:
    """Times sampling and forward passes in turns and prints a table."""
    read_flags(FLAGS, argv, __doc__)
    prepare_compiler()
    steps = _STEPS.value
    with tempfile.TemporaryDirectory() as folder:
        model = workloads.random_model(PEERS, PEERS_SIZE, PEERS_FRAMES, Path(folder))
    inputs = workloads.make_batch(PEERS, 2 * _BATCH.value, PEERS_FRAMES, PEERS_SIZE)
    forward = jax.jit(workloads.forward(PEERS))
    prompts = ["a red circle moves left"] * _BATCH.value
    runs = {"forward": lambda: forward(model.params["unet"], inputs).block_until_ready()}
    for sampler in ("ancestral", "ddim", "dpm2m"):
        sampling = stunet.Sampling(sampler=sampler, steps=steps)
        runs[sampler] = lambda s=sampling: stunet.generate(model, prompts, sampling=s)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in tqdm(range(_REPEATS.value + 1), desc="turns"):
        for name, run in runs.items():
            start = time.perf_counter()
            for _ in range(steps if name == "forward" else 1):
                run()
            if turn:  # the first turn compiles
                seconds[name].append(time.perf_counter() - start)
    best = {name: min(s) for name, s in seconds.items()}
    overhead = {name: best[name] / best["forward"] - 1 for name in runs}
    print_table(
        ("work", "best s", "median s", "overhead over forward passes"),
        [(n, best[n], float(np.median(s)), f"{overhead[n]:+.1%}") for n, s in seconds.items()],
    )
    write_json(_OUT.value, {"benchmark": "sampling", "steps": steps, "seconds": seconds})


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv), "experiments.benchmarks.sampling"))
