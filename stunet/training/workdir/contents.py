"""Checks that the files and folders in a workdir are those of a run, before anything is written."""

import re

from stunet.errors import UserError
from stunet.files import read_bytes
from stunet.paths import AnyPath, is_remote

_FILES = ("run.json", "DONE", "metrics.csv", "telemetry.jsonl", "loss.png")
_FOLDERS = (
    "initial",
    "checkpoints",
    "model",
    "tensorboard",
    "samples",
    "compiled",
    "profile",
)
_MARKER = re.compile(rb"(\d{1,15}) steps of stage [^\n]+\n?")


def check_contents(workdir: AnyPath) -> None:
    """Checks that no name of a run is taken by something else that training would replace.

    Raises:
      UserError: A file is a folder or the other way round, or a link leads nowhere.
    """
    for name in _FILES:
        path = workdir / name
        if _exists(path) and not path.is_file():
            raise UserError(_unexpected(path, "not a file", "the file of a run"))
    checkpoints = workdir / "checkpoints"
    listed = checkpoints.iterdir() if checkpoints.is_dir() else ()
    steps = [path for path in listed if path.name.isdecimal()]
    for path in (*(workdir / name for name in _FOLDERS), *steps):
        if _exists(path) and not path.is_dir():
            raise UserError(_unexpected(path, "not a folder", "the folder of a run"))


def finished_steps(workdir: AnyPath) -> int | None:
    """Returns the number of steps of a finished run, otherwise None.

    Raises:
      UserError: `DONE` has another content than the end of training writes.
    """
    marker = workdir / "DONE"
    if not marker.exists():
        return None
    content = read_bytes(marker)
    found = _MARKER.fullmatch(content)
    if found is None:
        shown = repr(content[:30].decode(errors="replace"))
        raise UserError(_unexpected(marker, shown, "'N steps of stage NAME'"))
    return int(found[1])


def _exists(path: AnyPath) -> bool:
    return path.exists() or (not is_remote(path) and path.is_symlink())


def _unexpected(path: AnyPath, problem: str, expected: str) -> str:
    return f"{path}: {problem}, expected {expected}; move it away, or choose another workdir"
