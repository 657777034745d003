"""Measures how long checkpoints take: to save, and to restore with and without checksums.

    python -m experiments.benchmarks.checkpoints --gigabytes=1 --repeats=5 --folder=/data/tmp

Writes random parameters with their averages and a momentum to a new folder in --folder, and deletes
it. Checkpoints are restored twice in turn; the second one of each pair has no checksums, like those
of older versions. --cold drops the page cache before each restore (Linux, as root). Prints the
fastest and the median of the repetitions.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import flags
from tqdm import tqdm

from experiments.common.program_flags import read_flags
from stunet.checksums import CHECKSUMS
from stunet.errors import UserError, run_command
from stunet.training.step import TrainState
from stunet.training.workdir.checkpoint_tensors import HAS_CHECKSUMS
from stunet.training.workdir.checkpoints import Checkpoints, DataState

FLAGS = flags.FlagValues()
_GIGABYTES = flags.DEFINE_float("gigabytes", 1.0, "size of the state", flag_values=FLAGS)
_REPEATS = flags.DEFINE_integer(
    "repeats", 3, "measure this many checkpoints", lower_bound=1, flag_values=FLAGS
)
_FOLDER = flags.DEFINE_string(
    "folder", None, "write there; default: the system's temporary folder", flag_values=FLAGS
)
_COLD = flags.DEFINE_bool(
    "cold", False, "read from the disk instead of the page cache", flag_values=FLAGS
)
_ARRAYS = 16


def main(argv: list[str]) -> None:
    """Measures and prints."""
    read_flags(FLAGS, argv, __doc__)
    state = random_state(int(_GIGABYTES.value * 1e9))
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
    names = ("save", "restore", "restore without checksums")
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory(dir=_FOLDER.value) as folder:
        for step in tqdm(range(1, _REPEATS.value + 1), desc="checkpoints", leave=False):
            checkpoints = Checkpoints(Path(folder), keep=1)
            start = time.perf_counter()
            checkpoints.save(state._replace(step=jnp.int32(step)), DataState(step))
            checkpoints.wait()
            seconds["save"].append(time.perf_counter() - start)
            for name in names[1:]:
                if _COLD.value:
                    drop_page_cache()
                start = time.perf_counter()
                jax.block_until_ready(checkpoints.restore(abstract, lambda line: None))
                seconds[name].append(time.perf_counter() - start)
                remove_checksums(checkpoints.folder / str(step))
            checkpoints.close()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    print(f"{size / 1e9:.2f} GB:")
    for name, values in seconds.items():
        print(f"  {name:26} {min(values):.2f} s, median {statistics.median(values):.2f} s")


def remove_checksums(checkpoint: Path) -> None:
    """Makes a checkpoint one of an older version."""
    (checkpoint / CHECKSUMS).unlink(missing_ok=True)
    path = checkpoint / "data" / "metadata"
    data = json.loads(path.read_text())
    data.pop(HAS_CHECKSUMS, None)
    path.write_text(json.dumps(data))


def drop_page_cache() -> None:
    """Drops the system's page cache.

    Raises:
      UserError: the system is not Linux, or the user is not root.
    """
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError as error:
        raise UserError(f"--cold: the page cache cannot be dropped ({error.strerror})") from error


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
