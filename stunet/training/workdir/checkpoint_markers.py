"""The state of checkpoints in a bucket, where nothing can be renamed, in marker objects.

    checkpoints/40/commit_success.txt   checkpoint 40 is complete; written last, by Orbax
    checkpoints/saving-40               a run has begun to save it
    checkpoints/deleting-40             a run has begun to delete it
    checkpoints/damaged-40              it is unreadable and was set aside; it has no commit marker

A checkpoint with neither a commit marker nor one of the others was copied by hand, or its commit
marker was deleted: it is reported and never deleted. Those of killed runs are deleted at the next
start. A damaged checkpoint is kept until the run saves the same step again.
"""

import re

from stunet.errors import UserError
from stunet.paths import AnyPath, list_objects, remove_folder, write_text

COMMIT_MARKER = "commit_success.txt"
_SAVING, _DELETING, _DAMAGED = "saving", "deleting", "damaged"


def recover(folder: AnyPath) -> list[int]:
    """Finishes the deletions of killed runs, and deletes what they saved incompletely.

    Args:
      folder: The folder of checkpoints in a bucket.

    Returns:
      The steps of incomplete checkpoints, which are deleted.

    Raises:
      UserError: a checkpoint without a commit marker was not written by a run in this folder.
        Nothing is deleted then.
    """
    names = list_objects(folder)
    steps = {int(name.split("/")[0]) for name in names if re.match(r"\d+/", name)}
    complete = {step for step in steps if f"{step}/{COMMIT_MARKER}" in names}
    marked = {
        kind: {int(name[len(kind) + 1 :]) for name in names if re.fullmatch(rf"{kind}-\d+", name)}
        for kind in (_SAVING, _DELETING, _DAMAGED)
    }
    if copied := steps - complete - set().union(*marked.values()):
        path = folder / str(max(copied))
        raise UserError(
            f"{path}: checkpoint without {COMMIT_MARKER} (copied by hand?), expected this object; "
            "create an empty one if the checkpoint is complete, otherwise remove the folder"
        )
    for step in marked[_DELETING]:
        _delete_contents(folder, step)
    for step in marked[_DAMAGED] & complete:
        _unlink(folder / str(step) / COMMIT_MARKER)
    incomplete = sorted(marked[_SAVING] & (steps - complete))
    for step in incomplete:
        remove_folder(folder / str(step))
    for step in marked[_SAVING]:
        end_save(folder, step)
    return incomplete


def begin_save(folder: AnyPath, step: int) -> None:
    """Marks a step as being saved. A damaged checkpoint of the step may be replaced from now on."""
    write_text(folder / f"{_SAVING}-{step}", "")
    _unlink(folder / f"{_DAMAGED}-{step}")


def end_save(folder: AnyPath, step: int) -> None:
    """Removes the mark of `begin_save` after the checkpoint is complete."""
    _unlink(folder / f"{_SAVING}-{step}")


def delete(folder: AnyPath, step: int) -> None:
    """Deletes a checkpoint."""
    write_text(folder / f"{_DELETING}-{step}", "")
    _delete_contents(folder, step)


def set_aside(folder: AnyPath, step: int) -> None:
    """Hides a damaged checkpoint from Orbax."""
    write_text(
        folder / f"{_DAMAGED}-{step}",
        f"Checkpoint {step} cannot be read. To use it once it is repaired, delete this object and "
        f"create {step}/{COMMIT_MARKER}.\n",
    )
    _unlink(folder / str(step) / COMMIT_MARKER)


def _delete_contents(folder: AnyPath, step: int) -> None:
    remove_folder(folder / str(step))
    _unlink(folder / f"{_DELETING}-{step}")


def _unlink(path: AnyPath) -> None:
    path.unlink(missing_ok=True)
