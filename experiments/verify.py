"""Compares all files of a folder with their checksums.

    python -m experiments.verify FOLDER

FOLDER, on disk or in a bucket (gs://), is a model folder, the workdir of a run, a checkpoint, a
prepared dataset or cached text states, or contains such folders. Bases of model folders elsewhere
are not compared. Prints a line for each folder. Exits with code 2 if a file is missing or damaged.
Files without a checksum, such as logs and files of older versions, are counted only.
"""

import os
import posixpath
import re
import sys
from collections.abc import Callable, Collection, Iterator

from absl import flags
from tqdm import tqdm

from experiments.common.program_flags import read_flags
from stunet.checksums import CHECKSUMS, check_files, read_checksums
from stunet.errors import BucketError, UserError, run_command
from stunet.paths import AnyPath, is_remote, list_objects, user_path
from stunet.text_states import DESCRIPTION, open_text_states
from stunet.training.workdir.checkpoint_tensors import check_checkpoint

FLAGS = flags.FlagValues()

Check = Callable[[AnyPath, Callable[[int], object]], Collection[str]]  # returns compared files


def main(argv: list[str]) -> int:
    """Parses the command line, compares the files and returns the exit code."""
    arguments: list[str] = []
    read_flags(FLAGS, argv, __doc__, unknown=arguments)
    if len(arguments) != 1 or arguments[0].startswith("-"):
        raise UserError(f"{' '.join(arguments) or 'FOLDER'}: expected one folder")
    return verify(user_path(arguments[0]))


def verify(root: AnyPath) -> int:
    """Compares all files below a folder with their checksums, and prints the results.

    Returns:
      0, or 2 if a file is missing or damaged.

    Raises:
      UserError: the folder does not exist, or no file in it has a checksum.
    """
    sizes = _list_files(root)
    if not sizes:
        raise UserError(f"{root}: no files, expected a folder of models, runs or data")
    covered: set[str] = set()
    damaged = 0
    with tqdm(total=sum(sizes.values()), unit="B", unit_scale=True, leave=False) as bar:
        for folder, check in _folders(sizes):
            path = root / folder
            try:
                names = check(path, bar.update)
            except BucketError:
                raise
            except UserError as error:
                damaged += 1
                bar.write(f"damaged: {error}", file=sys.stderr)
                continue
            if not names:
                continue
            found = {posixpath.join(folder, name) for name in names}
            covered |= found
            size = sum(sizes[name] for name in found)
            bar.write(f"{path}: {len(found)} files, {size / 1e9:.3f} GB", file=sys.stdout)
    if not covered and not damaged:
        raise UserError(f"{root}: no checksums in {len(sizes)} files, expected {CHECKSUMS}")
    rest = sorted(name for name in sizes.keys() - covered if posixpath.basename(name) != CHECKSUMS)
    if rest and not damaged:
        print(f"without checksums: {len(rest)} files, the first one is {root / rest[0]}")
    return 2 if damaged else 0


def _folders(names: Collection[str]) -> Iterator[tuple[str, Check]]:
    """Yields the folders that have checksums, or should have, and how to compare their files."""
    for name in sorted(names):
        folder, file = posixpath.split(name)
        if file == CHECKSUMS:
            yield folder, _check_files
        elif file == DESCRIPTION:
            yield folder, _check_text_states
        elif (step := re.fullmatch(r"((?:.*/)?\d+)/data/metadata", name)) and (
            f"{step[1]}/{CHECKSUMS}" not in names
        ):
            yield step[1], _check_lost_checksums


def _check_files(folder: AnyPath, progress: Callable[[int], object]) -> Collection[str]:
    check_files(folder, progress=progress)
    return read_checksums(folder).keys()


def _check_text_states(folder: AnyPath, progress: Callable[[int], object]) -> Collection[str]:
    states = open_text_states(folder)
    return states.check() if states.has_checksums else ()


def _check_lost_checksums(
    checkpoint: AnyPath, progress: Callable[[int], object]
) -> Collection[str]:
    check_checkpoint(checkpoint)
    return ()


def _list_files(root: AnyPath) -> dict[str, int]:
    """Returns the sizes of all files below a folder, by relative path."""
    if is_remote(root):
        return list_objects(root)
    sizes, visited = {}, set()
    for folder, subfolders, names in os.walk(root, followlinks=True):
        if (real := os.path.realpath(folder)) in visited:  # links in a circle
            subfolders.clear()
            continue
        visited.add(real)
        for path in (os.path.join(folder, name) for name in names):
            if os.path.isfile(path):
                sizes[os.path.relpath(path, root)] = os.path.getsize(path)
    return sizes


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv), "experiments.verify"))
