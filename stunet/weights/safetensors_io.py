"""Lazy access to safetensors files: reads and writes one tensor at a time."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
import safetensors

from stunet.errors import UserError
from stunet.files import check_not_lfs_pointer

_DTYPES = {
    "BOOL": np.bool_,
    "U8": np.uint8,
    "I8": np.int8,
    "I16": np.int16,
    "I32": np.int32,
    "I64": np.int64,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F32": np.float32,
    "F64": np.float64,
}
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True)
class LazyTensor:
    """A tensor in a file, which `np.asarray` reads.

    Attributes:
      file: Path of the safetensors file.
      name: Name of the tensor in the file.
      shape: Shape of the tensor.
      dtype: NumPy dtype; bfloat16 is that of `ml_dtypes`.
    """

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        # Open the file for each tensor: pages of an open memory map count as used memory.
        with safetensors.safe_open(self.file, framework="numpy") as file:
            array = file.get_tensor(self.name)
        return array if dtype is None else array.astype(dtype, copy=False)


@dataclass(frozen=True)
class TransformedTensor:
    """A function of another tensor, which `np.asarray` computes.

    Attributes:
      source: Array or lazy tensor: has `dtype` and `nbytes`, and `np.asarray` accepts it.
      shape: Shape of the result. It has as many elements as the source.
      transform: Computes the result from the source's array.
    """

    source: Any
    shape: tuple[int, ...]
    transform: Callable[[np.ndarray], np.ndarray]

    @property
    def dtype(self) -> np.dtype:
        """The source's dtype."""
        return self.source.dtype

    @property
    def nbytes(self) -> int:
        """The source's size in bytes."""
        return self.source.nbytes

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        array = self.transform(np.asarray(self.source))
        return array if dtype is None else array.astype(dtype, copy=False)


def open_safetensors(path: Path) -> dict[str, LazyTensor]:
    """Opens all tensors of a safetensors file, by name. Reads only its header.

    Raises:
      UserError: The file is missing, incomplete, a Git LFS pointer or not a safetensors file, or a
        tensor has an unsupported dtype.
    """
    check_not_lfs_pointer(path)
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            slices = [(name, file.get_slice(name)) for name in file.keys()]  # noqa: SIM118
            entries = [(name, s.get_shape(), s.get_dtype()) for name, s in slices]
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path}: not a complete safetensors file ({error})") from error
    for name, _, dtype in entries:
        if dtype not in _DTYPES:
            raise UserError(
                f"{path}: tensor {name} has dtype {dtype}, expected one of {', '.join(_DTYPES)}"
            )
    return {
        name: LazyTensor(path, name, tuple(shape), np.dtype(_DTYPES[dtype]))
        for name, shape, dtype in entries
    }


def split_into_shards(tensors: Mapping[str, Any], shard_bytes: int) -> list[dict[str, Any]]:
    """Groups consecutive tensors into shards of at most `shard_bytes` (or a single tensor)."""
    shards, size = [], shard_bytes + 1
    for name, tensor in tensors.items():
        if size + tensor.nbytes > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    return shards


def shard_file_names(stem: str, count: int) -> list[str]:
    """Returns the file names of weights in `count` shards."""
    if count == 1:
        return [f"{stem}.safetensors"]
    return [f"{stem}-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]


def write_safetensors(
    path: Path, tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a safetensors file.

    Args:
      path: Output file. Replaces an existing one.
      tensors: Arrays or lazy tensors by name (anything with `shape`, `dtype` and `nbytes` that
        `np.asarray` accepts). Holds one array at a time.
      metadata: Metadata of the file's header, for other libraries.
    """
    header = {} if metadata is None else {"__metadata__": dict(metadata)}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": _NAMES[np.dtype(tensor.dtype)],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    content = json.dumps(header, separators=(",", ":")).encode()
    content += b" " * (-len(content) % 8)  # the data starts at a multiple of 8
    with open(path, "wb") as file:
        file.write(len(content).to_bytes(8, "little") + content)
        for tensor in tensors.values():
            _write_array(file, np.asarray(tensor))


def _write_array(file: BinaryIO, array: np.ndarray) -> None:
    # The format is C order. View as bytes, because NumPy exports no buffer of bfloat16.
    file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
