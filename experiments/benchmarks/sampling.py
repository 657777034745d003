"""What sampling costs beyond its forward passes.

    python -m experiments.benchmarks.sampling --out=sampling.json

A whole run of `stunet.engine.generate` (text encoding, guidance, dynamic thresholding, every
sampler's own arithmetic, progress calls) against as many bare forward passes of the batch that
guidance makes, in turns, in one process. The network is `peers`'.
"""

import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from absl import flags
from tqdm import tqdm

from experiments.benchmarks import workloads
from experiments.benchmarks.timing import print_table, write_json
from experiments.common.program_flags import read_flags
from stunet.compiling import prepare_compiler
from stunet.engine import generate
from stunet.errors import run_command

FLAGS = flags.FlagValues()
_OUT = flags.DEFINE_string(
    "out", "benchmarks/sampling.json", "where the figures are written", flag_values=FLAGS
)
_STEPS = flags.DEFINE_integer("steps", 20, "sampler steps", lower_bound=1, flag_values=FLAGS)
_BATCH = flags.DEFINE_integer("batch", 2, "videos at a time", lower_bound=1, flag_values=FLAGS)
_REPEATS = flags.DEFINE_integer(
    "repeats", 3, "runs of each, after the first", lower_bound=1, flag_values=FLAGS
)


def main(argv: list[str]) -> None:
    """Times sampling and forward passes in turns."""
    read_flags(FLAGS, argv, __doc__)
    prepare_compiler()
    frames, size, steps = workloads.PEERS_FRAMES, workloads.PEERS_SIZE, _STEPS.value
    with tempfile.TemporaryDirectory() as folder:
        model = workloads.random_model(workloads.PEERS, size, frames, Path(folder))
    inputs = workloads.make_batch(workloads.PEERS, 2 * _BATCH.value, frames, size)
    forward = jax.jit(workloads.forward(workloads.PEERS))
    prompts = ["a red circle moves left"] * _BATCH.value
    works = {"forward": lambda: forward(model.params["unet"], inputs).block_until_ready()}
    for sampler in ("ancestral", "ddim", "dpm2m"):
        works[sampler] = lambda s=sampler: generate(model, prompts, sampler=s, steps=steps)
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for turn in tqdm(range(_REPEATS.value + 1), desc="turns"):
        for name, work in works.items():
            start = time.perf_counter()
            for _ in range(steps if name == "forward" else 1):
                work()
            if turn:  # the first compiles
                seconds[name].append(time.perf_counter() - start)
    best = {name: min(s) for name, s in seconds.items()}
    over = {name: best[name] / best["forward"] - 1 for name in works}
    print_table(
        ("what", "best s", "median s", "over the forward passes"),
        [(n, best[n], float(np.median(s)), f"{over[n]:+.1%}") for n, s in seconds.items()],
    )
    write_json(_OUT.value, {"benchmark": "sampling", "steps": steps, "seconds": seconds})


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv), "experiments.benchmarks.sampling"))
