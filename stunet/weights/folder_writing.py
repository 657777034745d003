"""Complete replacement of a folder of weights, on disk and in a bucket."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from stunet.errors import UserError
from stunet.paths import AnyPath, check_bucket_writable, is_remote, upload_folder
from stunet.weights.folder_config import is_model_file
from stunet.weights.hub import hub_id_of


@contextlib.contextmanager
def new_folder(folder: AnyPath) -> Iterator[Path]:
    """Yields an empty local folder, which replaces `folder` if the block succeeds."""
    if is_remote(folder):
        check_bucket_writable(folder / "config.json")
        with tempfile.TemporaryDirectory(prefix="stunet-") as new:
            yield Path(new)
            upload_folder(Path(new), folder)
        return
    new, old = (folder.with_name(f".{folder.name}.{kind}") for kind in ("new", "old"))
    try:
        shutil.rmtree(new, ignore_errors=True)  # from a killed process
        new.mkdir(parents=True)
        yield new
        _replace(folder, new, old)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _replace(folder: Path, new: Path, old: Path) -> None:
    """Renames `new` to `folder`; `old` holds the existing folder until that succeeds."""
    shutil.rmtree(old, ignore_errors=True)
    if not folder.exists():
        os.rename(new, folder)
        return
    os.rename(folder, old)
    try:
        os.rename(new, folder)
    except OSError:
        os.rename(old, folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def check_replaceable(folder: AnyPath) -> None:
    """Checks that replacing a folder deletes nothing but a model, in case of a mistyped path."""
    if (hub_id := hub_id_of(folder)) is not None:
        raise UserError(
            f"{folder}: is a cached download of {hub_id}, expected a folder outside of the cache; "
            f"`hf download {hub_id.repository} --local-dir DIR` writes one"
        )
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file, expected a model folder or a new path")
    names = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    for name in names:
        if not is_model_file(name):
            raise UserError(
                f"{folder}: contains '{name}', which is not part of a model and would be deleted, "
                "expected a model folder or a new path"
            )
