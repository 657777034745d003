"""Averaged parameters in a checkpoint, read without the rest of the training state."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np
import orbax.checkpoint as ocp

from stunet.checksums import CHECKSUMS, DamageError, check_files, report_unchecked
from stunet.errors import UserError
from stunet.files import read_json
from stunet.paths import AnyPath, absolute
from stunet.weights.safetensors_io import split_into_shards
from stunet.weights.trees import Tree, flatten, is_added, unflatten

# Parameters are read in groups of this size, because Orbax parses the metadata of all parameters
# whenever it reads some.
GROUP_BYTES = 10**9
HAS_CHECKSUMS = "has_checksums"  # in the data of a checkpoint; older versions wrote none


@dataclass(frozen=True, eq=False)
class CheckpointTensor:
    """An averaged parameter in a checkpoint, which `np.asarray` reads together with its group.

    Attributes:
      reader: Reads groups and keeps the latest one.
      group: Paths of the group's parameters.
      path: Path of the parameter.
      shape: Its shape.
      dtype: Its NumPy dtype.
    """

    reader: "_GroupReader"
    group: Sequence[str]
    path: str
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        array = self.reader.read(self.group)[self.path]
        return array if dtype is None else array.astype(dtype, copy=False)


class _GroupReader:
    """Reads groups of averaged parameters from the folder `state` of a checkpoint."""

    def __init__(self, folder: AnyPath):
        self.folder = folder
        self._handler = ocp.PyTreeCheckpointHandler()
        self._latest: tuple[Sequence[str], dict[str, np.ndarray]] = ((), {})

    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns shapes and dtypes of all averaged parameters by path."""
        try:
            leaves = flatten(self._handler.metadata(self.folder).tree["ema"])
        except Exception as error:  # storage layers raise errors of many types
            raise self._unreadable(error) from error
        return {path: jax.ShapeDtypeStruct(x.shape, x.dtype) for path, x in leaves.items()}

    def read(self, group: Sequence[str]) -> dict[str, np.ndarray]:
        """Returns the arrays of a group by path."""
        if self._latest[0] is not group:
            self._latest = (), {}  # frees the memory of the group before
            item = {"ema": unflatten(dict.fromkeys(group, 0))}
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
            args = ocp.args.PyTreeRestore(item=item, restore_args=as_numpy, partial_restore=True)
            try:
                self._latest = group, flatten(self._handler.restore(self.folder, args=args)["ema"])
            except Exception as error:
                raise self._unreadable(error) from error
        return self._latest[1]

    def _unreadable(self, error: Exception) -> UserError:
        reason = (str(error) or repr(error)).splitlines()[0]
        return UserError(f"{self.folder}: unreadable checkpoint ({reason[:120]})")


def complete_steps(workdir: AnyPath) -> list[int]:
    """Returns the steps of a run's complete checkpoints, in increasing order. Changes nothing."""
    folder = absolute(workdir) / "checkpoints"
    if not folder.is_dir():
        return []
    names = (path.name for path in ocp.utils.checkpoint_steps_paths(folder))
    return sorted(int(name) for name in names if name.isdecimal())


def check_checkpoint(checkpoint: AnyPath, share: slice = slice(None)) -> bool:
    """Compares the files of a checkpoint with their checksums.

    Args:
      checkpoint: Folder of a complete checkpoint, `WORKDIR/checkpoints/STEP`.
      share: Selects files; see `check_files`.

    Returns:
      Whether it has checksums. Those of older versions have none.

    Raises:
      DamageError: A file is missing or damaged, maybe the checksums themselves.
      UserError: A file or the bucket cannot be read now.
    """
    if check_files(checkpoint, share=share):
        return True
    try:
        data = read_json(checkpoint / "data" / "metadata")
    except UserError:  # whoever reads the checkpoint reports it
        return False
    if data.get(HAS_CHECKSUMS):
        raise DamageError(
            f"{checkpoint / CHECKSUMS}: missing, but the checkpoint was written with checksums"
        )
    return False


def open_averages(checkpoint: AnyPath) -> Tree:
    """Opens the averaged parameters of a checkpoint, of which one group is in memory at a time.

    Args:
      checkpoint: Folder of a complete checkpoint, `WORKDIR/checkpoints/STEP`.

    Raises:
      UserError: The checkpoint is damaged; also raised when a tensor is read.
    """
    checkpoint = absolute(checkpoint)
    if not check_checkpoint(checkpoint):
        report_unchecked(checkpoint)
    reader = _GroupReader(checkpoint / "state")
    shapes = reader.shapes()
    tensors = {
        path: CheckpointTensor(reader, (), path, tuple(leaf.shape), np.dtype(leaf.dtype))
        for path, leaf in shapes.items()
    }
    # Text-to-image parameters first: the order in which a model folder is written.
    ordered = dict(sorted(tensors.items(), key=lambda item: is_added(item[0])))
    for shard in split_into_shards(ordered, GROUP_BYTES):
        group = tuple(shard)
        for path, leaf in shard.items():
            tensors[path] = CheckpointTensor(reader, group, path, leaf.shape, leaf.dtype)
    return unflatten(tensors)
