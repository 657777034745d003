"""Changes random bytes of files that a run depends on, resumes it, and compares the result.

    python -m tests.experiments.flip_runs --flips=100

Trains text-to-video from a text-to-image model on disk and stops. Each case then changes one byte
in the newest checkpoint, in the folders of the initial and of the text-to-image model, or in the
dataset, resumes a copy of the run and compares `metrics.csv` and the files in `model/` with those
of a run without damage. Prints the number of cases by their ends:

    fell back    the checkpoint before was restored, and the result is equal
    refused      exit code 2
    equal        no message, and the result is equal: the byte is not used
    wrong        the result differs
    failed       another exit code
"""

import argparse
import collections
import random
import shutil
import sys
import tempfile
from pathlib import Path

from tqdm import tqdm

from tests.experiments.kill_runs import Starter, image_config, results, video_config
from tests.experiments.runs import changed, write_config

_STOP = 20  # steps before the damage, with checkpoints at 16 and 20


def main(argv: list[str]) -> int:
    """Runs the cases and returns 1 if one of them is wrong or failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--flips", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args(argv)
    rng, ends = random.Random(flags.seed), collections.Counter()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        starter = Starter(root / "cache")
        image, video = image_config(root), video_config(root, root / "t2i")
        paths = {
            "t2i": write_config(root / "t2i.py", image),
            "start": write_config(root / "start.py", changed(video, total_steps=_STOP)),
            "t2v": write_config(root / "t2v.py", video),
        }
        log = root / "log"
        starter.train(paths["t2i"], root / "t2i", log)
        starter.train(paths["start"], root / "stopped", log)
        resumed = shutil.copytree(root / "stopped", root / "t2v")
        starter.train(paths["t2v"], resumed, log)
        expected = results(resumed)
        for _ in tqdm(range(flags.flips), desc="flips"):
            shutil.rmtree(resumed)
            shutil.copytree(root / "stopped", resumed)
            folders = [
                resumed / "checkpoints" / str(_STOP),
                resumed / "initial",
                root / "t2i" / "model",
                root / "datasets",
            ]
            file = rng.choice(_files(rng.choices(folders, (6, 1, 2, 1))[0]))
            content = file.read_bytes()
            _flip(file, rng)
            process = starter.start(paths["t2v"], resumed, log)
            process.join(900)
            end = _end(process.exitcode, resumed, log.read_text(errors="replace"), expected)
            ends[end] += 1
            if end in ("wrong", "failed"):
                tqdm.write(f"{file.relative_to(root)}: {end}")
            if root / "t2v" not in file.parents:
                file.write_bytes(content)
    print(", ".join(f"{ends[end]} {end}" for end in sorted(ends)))
    return int(ends["wrong"] + ends["failed"] > 0)


def _files(folder: Path) -> list[Path]:
    """Returns all files with content."""
    found = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    return [path for path in found if "downloads" not in path.parts]


def _flip(file: Path, rng: random.Random) -> None:
    """Changes one random bit of a file."""
    content = bytearray(file.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)


def _end(exit_code: int, workdir: Path, log: str, expected: tuple[str, dict[str, bytes]]) -> str:
    if exit_code == 2:
        return "refused"
    if exit_code != 0:
        return "failed"
    found = results(workdir)
    if found != expected:
        return "wrong"
    return "fell back" if "falling back" in log else "equal"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
