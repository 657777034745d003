"""safetensors files, a tensor at a time: neither reading nor writing one holds it whole."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
import safetensors

from stunet.errors import UserError

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
    """A tensor that stays in its file until `np.asarray` asks for it.

    Attributes:
      file: where.
      name: in the file.
      shape: as it is in the file.
      dtype: numpy's, bfloat16 by `ml_dtypes`.
    """

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """Its size, without reading it."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        # Opened anew for each tensor: pages of a map that stays open count as memory in use.
        with safetensors.safe_open(self.file, framework="numpy") as file:
            array = file.get_tensor(self.name)
        return array if dtype is None else array.astype(dtype, copy=False)


@dataclass(frozen=True)
class TransformedTensor:
    """A tensor that is made from another when `np.asarray` asks for it.

    Attributes:
      source: anything with `dtype` and `nbytes` that `np.asarray` reads.
      shape: of the result, which has as many elements as the source.
      change: source array -> result.
    """

    source: Any
    shape: tuple[int, ...]
    change: Callable[[np.ndarray], np.ndarray]

    @property
    def dtype(self) -> np.dtype:
        """The source's."""
        return self.source.dtype

    @property
    def nbytes(self) -> int:
        """The source's."""
        return self.source.nbytes

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        array = self.change(np.asarray(self.source))
        return array if dtype is None else array.astype(dtype, copy=False)


def open_safetensors(path: Path) -> dict[str, LazyTensor]:
    """What a safetensors file holds, by name; only its header is read.

    Raises:
      UserError: it is missing, incomplete, no safetensors file, or has a tensor of a type that
        no model's parameters have.
    """
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            described = [(name, file.get_slice(name)) for name in file.keys()]  # noqa: SIM118
            described = [(name, s.get_shape(), s.get_dtype()) for name, s in described]
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path}: incomplete or no safetensors file: {error}") from error
    for name, _, dtype in described:
        if dtype not in _DTYPES:
            raise UserError(f"{path}: tensor {name} is {dtype}; known are {', '.join(_DTYPES)}")
    return {
        name: LazyTensor(path, name, tuple(shape), np.dtype(_DTYPES[dtype]))
        for name, shape, dtype in described
    }


def split_into_shards(tensors: Mapping[str, Any], shard_bytes: int) -> list[dict[str, Any]]:
    """Consecutive groups of tensors, each of at most `shard_bytes` (or a single tensor)."""
    shards, size = [], shard_bytes + 1
    for name, tensor in tensors.items():
        if size + tensor.nbytes > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    return shards


def shard_file_names(stem: str, count: int) -> list[str]:
    """File names of a component's weights in `count` files."""
    if count == 1:
        return [f"{stem}.safetensors"]
    return [f"{stem}-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]


def write_safetensors(
    path: Path, tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a safetensors file.

    Args:
      path: where; an older file is replaced.
      tensors: by name: anything with `shape`, `dtype` and `nbytes` that `np.asarray` reads. One
        is read at a time, and let go of once it is written.
      metadata: of the file, which other libraries may look at.
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
    content += b" " * (-len(content) % 8)  # the data is to start at a multiple of 8
    with open(path, "wb") as file:
        file.write(len(content).to_bytes(8, "little") + content)
        for tensor in tensors.values():
            _write_array(file, np.asarray(tensor))


def _write_array(file: BinaryIO, array: np.ndarray) -> None:
    # Raw memory from the start: anything but C order would be garbled. As bytes, because
    # numpy hands no buffer of bfloat16 out.
    file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
