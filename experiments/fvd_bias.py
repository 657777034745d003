"""Measures how FVD and MMD depend on the number of clips: real clips against other real clips.

    python -m experiments.fvd_bias --i3d=i3d.safetensors --out=runs/fvd_bias

Draws two sets of clips of emoji (the `t2v_16` stage of `experiments/configs/emoji.py`) with two
seeds. Their distance would be 0 for infinitely many clips. Prints and writes FVD and MMD of the
first 64, 128, ... clips of both to OUT.json, and a plot to OUT.png.

Features are kept in a folder in OUT/ that is named after the network's weights and the data, so
that the same command continues after an interruption.
"""

import dataclasses
import json
import sys
from hashlib import blake2b

import numpy as np
from absl import flags
from tqdm import tqdm

from data.data_config import DataConfig
from data.pipeline import parse_config, prepare, whole_examples
from experiments.common.program_flags import define_num_clips, read_flags
from experiments.common.reports import print_table
from experiments.configs import emoji
from stunet.array_files import load_array, write_array
from stunet.compiling import prepare_compiler
from stunet.errors import UserError, run_command, writing
from stunet.evaluation.features import Extractor
from stunet.evaluation.i3d import load_i3d
from stunet.evaluation.scores import frechet_distance, polynomial_mmd
from stunet.paths import AnyPath, output_file, user_path, write_text
from stunet.video_io import check_writable

SMALLEST = 64
SEEDS = (0, 1)  # of the two sets
BATCH = 4

FLAGS = flags.FlagValues()
_I3D = flags.DEFINE_string("i3d", None, "weights by experiments.import_i3d", flag_values=FLAGS)
_OUT = flags.DEFINE_string("out", None, "write OUT.json, OUT.png and OUT/", flag_values=FLAGS)
_DATA_DIR = flags.DEFINE_string(
    "data_dir", "datasets", "folder of built datasets", flag_values=FLAGS
)
_CLIPS = define_num_clips(FLAGS, 2048, "largest number of clips in a set", SMALLEST)


def main(argv: list[str]) -> None:
    """Parses the flags, measures the clips, and writes the report."""
    read_flags(FLAGS, argv, __doc__)
    if not _OUT.value or not _I3D.value:
        raise UserError("--out, --i3d: missing, expected both")
    out = output_file(_OUT.value)
    report, picture = (user_path(f"{out}.{ending}") for ending in ("json", "png"))
    check_writable(picture)
    prepare_compiler()
    network = load_i3d(_I3D.value)
    values = emoji.get_config("t2v_16").data.to_dict()
    config = prepare(parse_config({**values, "data_dir": _DATA_DIR.value}))
    network.check_frames(config.num_frames)
    counts = [SMALLEST]
    while 2 * counts[-1] <= _CLIPS.value:
        counts.append(2 * counts[-1])
    if counts[-1] != _CLIPS.value:
        raise UserError(
            f"--num_clips: {_CLIPS.value}, expected {SMALLEST} times a power of two, such as "
            f"{counts[-1]}"
        )
    cache = user_path(out) / _digest(network, config)
    cache.mkdir(parents=True, exist_ok=True)
    with tqdm(total=len(SEEDS) * counts[-1], unit="clips") as bar:
        first, second = (features(config, network, seed, counts[-1], cache, bar) for seed in SEEDS)
    rows = [
        (n, frechet_distance(first[:n], second[:n]), polynomial_mmd(first[:n], second[:n]))
        for n in counts
    ]
    print_table(("clips", "FVD", "MMD"), rows)
    settings = {"seeds": SEEDS, "frames": config.num_frames, **network.describe()}
    table = [dict(zip(("clips", "fvd", "mmd"), row, strict=True)) for row in rows]
    write_text(report, json.dumps({"rows": table, **settings}, indent=2) + "\n")
    plot(counts, [fvd for _, fvd, _ in rows], picture)
    print(f"{report}\n{picture}")


def _digest(network: Extractor, config: DataConfig) -> str:
    """Returns a short name of what determines the features of a clip."""
    data = {**dataclasses.asdict(config), "source": "", "data_dir": ""}
    text = json.dumps([network.describe(), config.fingerprint(), data], sort_keys=True)
    return blake2b(text.encode(), digest_size=8).hexdigest()


def features(
    config: DataConfig, network: Extractor, seed: int, count: int, cache: AnyPath, bar: tqdm
) -> np.ndarray:
    """Returns the features `[count, D]` of a set's clips, `SMALLEST` at a time from the cache."""
    blocks = []
    for start in range(0, count, SMALLEST):
        path = cache / f"seed_{seed}_from_{start}.npy"
        if not path.exists():
            videos, _ = whole_examples(dataclasses.replace(config, seed=seed), SMALLEST, start)
            batches = (videos[n : n + BATCH] for n in range(0, SMALLEST, BATCH))
            found = np.concatenate([network(list(batch), BATCH) for batch in batches])
            write_array(path, found)
        blocks.append(load_array(path))
        bar.update(SMALLEST)
    return np.concatenate(blocks)


def plot(counts: list[int], values: list[float], path: AnyPath) -> None:
    """Plots FVD over the number of clips."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot(counts, values, marker="o")
    axes.set(xlabel="clips in each set", ylabel="FVD of real clips", xscale="log", yscale="log")
    with writing(path):
        figure.savefig(path, dpi=110)


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv), "experiments.fvd_bias"))
