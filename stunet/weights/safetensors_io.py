"""Lazy access to safetensors files: reads and writes one tensor at a time."""

import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from stunet.errors import UserError
from stunet.files import check_not_lfs_pointer
from stunet.paths import AnyPath, is_remote
from stunet.weights.bucket_tensors import ObjectRange, read_entries, row_range

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
      range: Bytes of the tensor if the file is in a bucket, else None.
    """

    file: AnyPath
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    range: ObjectRange | None = None

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        if self.range is not None:
            array = _as_array(self.range.read(), self.dtype, self.shape)
        else:
            # Open the file for each tensor: pages of an open memory map count as used memory.
            with safetensors.safe_open(self.file, framework="numpy") as file:
                array = file.get_tensor(self.name)
        return array if dtype is None else array.astype(dtype, copy=False)

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        """Reads one slice, of step 1, of each axis.

        From a bucket, rows of the first axis are read alone. For slices of other axes the whole
        tensor is read, and cached until another tensor is read.
        """
        full = [s.indices(n) == (0, n, 1) for s, n in zip(index, self.shape, strict=True)]
        if all(full):
            return np.asarray(self)
        if self.range is not None and not all(full[1:]):
            return _read_whole(self)[index]
        if self.range is not None:
            rows = row_range(self.shape, self.dtype.itemsize, index[0])
            return _as_array(self.range.read(*rows), self.dtype, (-1, *self.shape[1:]))
        with safetensors.safe_open(self.file, framework="numpy") as file:
            return file.get_slice(self.name)[index]

    def astype(self, dtype: Any) -> "LazyTensor | CastTensor":
        """Returns the tensor in another type, to which it is converted when it is read."""
        return self if np.dtype(dtype) == self.dtype else CastTensor(self, np.dtype(dtype))


@dataclass(frozen=True)
class CastTensor:
    """A tensor in a file that is converted to another type when it is read.

    Attributes:
      source: The tensor, which may have been converted before.
      dtype: NumPy dtype of the result.
    """

    source: "LazyTensor | CastTensor"
    dtype: np.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor."""
        return self.source.shape

    @property
    def nbytes(self) -> int:
        """Size of the result in bytes."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        array = np.asarray(self.source).astype(self.dtype, copy=False)
        return array if dtype is None else array.astype(dtype, copy=False)

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        """Reads one slice of each axis."""
        return self.source[index].astype(self.dtype, copy=False)

    def astype(self, dtype: Any) -> "CastTensor":
        """Returns the tensor in another type, to which the result is converted."""
        return self if np.dtype(dtype) == self.dtype else CastTensor(self, np.dtype(dtype))


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


def _as_array(content: bytearray, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    return np.frombuffer(content, dtype).reshape(shape)


@functools.lru_cache(maxsize=1)
def _read_whole(tensor: LazyTensor) -> np.ndarray:
    return np.asarray(tensor)


def open_safetensors(path: AnyPath) -> dict[str, LazyTensor]:
    """Opens all tensors of a safetensors file, by name. Reads only its header.

    Raises:
      UserError: The file is missing, incomplete, a Git LFS pointer or not a safetensors file, or a
        tensor has an unsupported dtype.
    """
    if is_remote(path):
        return _open_object(path)
    check_not_lfs_pointer(path)
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            slices = [(name, file.get_slice(name)) for name in file.keys()]  # noqa: SIM118
            entries = [(name, s.get_shape(), s.get_dtype()) for name, s in slices]
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path}: not a complete safetensors file ({error})") from error
    return {
        name: LazyTensor(path, name, tuple(shape), _parse_dtype(path, name, dtype))
        for name, shape, dtype in entries
    }


def _open_object(path: AnyPath) -> dict[str, LazyTensor]:
    try:
        entries = read_entries(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a complete safetensors file ({error})") from error
    return {
        name: LazyTensor(
            path, name, entry.shape, _parse_dtype(path, name, entry.dtype), entry.range
        )
        for name, entry in entries.items()
    }


def _parse_dtype(path: AnyPath, name: str, dtype: str) -> np.dtype:
    if dtype not in _DTYPES:
        raise UserError(
            f"{path}: tensor {name} has dtype {dtype}, expected one of {', '.join(_DTYPES)}"
        )
    return np.dtype(_DTYPES[dtype])


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
) -> str:
    """Writes a safetensors file.

    Args:
      path: Output file. Replaces an existing one.
      tensors: Arrays or lazy tensors by name (anything with `shape`, `dtype` and `nbytes` that
        `np.asarray` accepts). Holds one array at a time.
      metadata: Metadata of the file's header, for other libraries.

    Returns:
      SHA-256 of the file, 64 hexadecimal digits.
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
    header_bytes = len(content).to_bytes(8, "little") + content
    digest = hashlib.sha256(header_bytes)
    with open(path, "wb") as file:
        file.write(header_bytes)
        for tensor in tensors.values():
            data = _array_bytes(np.asarray(tensor))
            digest.update(data)
            file.write(data)
    return digest.hexdigest()


def _array_bytes(array: np.ndarray) -> memoryview:
    # The format is C order. View as bytes, because NumPy exports no buffer of bfloat16.
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
