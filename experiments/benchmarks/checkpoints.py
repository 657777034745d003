"""Measures how long checkpoints take: to save, to compare with their checksums, and to restore.

    python -m experiments.benchmarks.checkpoints --gigabytes=1 --repeats=3 --folder=/data/tmp

Writes random parameters with their averages and a momentum to a new folder in --folder, and deletes
it. "compare" is the part of "restore" in which the files are read for their checksums. Prints the
fastest of the repetitions.
"""

import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import flags
from tqdm import tqdm

from experiments.common.program_flags import read_flags
from stunet.checksums import check_files
from stunet.errors import run_command
from stunet.training.step import TrainState
from stunet.training.workdir.checkpoints import Checkpoints, DataState

FLAGS = flags.FlagValues()
_GIGABYTES = flags.DEFINE_float("gigabytes", 1.0, "size of the state", flag_values=FLAGS)
_REPEATS = flags.DEFINE_integer(
    "repeats", 3, "measure this many checkpoints", lower_bound=1, flag_values=FLAGS
)
_FOLDER = flags.DEFINE_string(
    "folder", None, "write there; default: the system's temporary folder", flag_values=FLAGS
)
_ARRAYS = 16


def main(argv: list[str]) -> None:
    """Measures and prints."""
    read_flags(FLAGS, argv, __doc__)
    state = random_state(int(_GIGABYTES.value * 1e9))
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
    seconds: dict[str, list[float]] = {"save": [], "compare": [], "restore": []}
    with tempfile.TemporaryDirectory(dir=_FOLDER.value) as folder:
        for step in tqdm(range(1, _REPEATS.value + 1), desc="checkpoints", leave=False):
            checkpoints = Checkpoints(Path(folder), keep=1)
            start = time.perf_counter()
            checkpoints.save(state._replace(step=jnp.int32(step)), DataState(step))
            checkpoints.wait()
            seconds["save"].append(time.perf_counter() - start)
            start = time.perf_counter()
            check_files(checkpoints.folder / str(step))
            seconds["compare"].append(time.perf_counter() - start)
            start = time.perf_counter()
            jax.block_until_ready(checkpoints.restore(abstract, print))
            seconds["restore"].append(time.perf_counter() - start)
            checkpoints.close()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    fastest = ", ".join(f"{name} {min(values):.2f} s" for name, values in seconds.items())
    print(f"{size / 1e9:.2f} GB: {fastest}")


def random_state(nbytes: int) -> TrainState:
    """Returns a state of about this size."""
    shape = (nbytes // (3 * _ARRAYS * 4 * 1024), 1024)
    trees = [
        {str(k): jax.random.normal(jax.random.key(_ARRAYS * n + k), shape) for k in range(_ARRAYS)}
        for n in range(3)
    ]
    return TrainState(step=jnp.int32(0), params=trees[0], ema=trees[1], opt_state=trees[2])


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv), "experiments.benchmarks.checkpoints"))
