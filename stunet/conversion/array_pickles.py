"""Reads arrays from pickles of NumPy and of PyTorch's first file format, without running code.

The interpreter knows the few globals of such files, and stands for them with classes of its own.
Any other global is refused instead of imported.
"""

import collections
import io
import math
import pickle
import textwrap
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np

from stunet.errors import UserError

_MAGIC = 0x1950A86A20F9469CFC6C  # of PyTorch's first format
_TORCH_TYPES = {"FloatStorage": "<f4", "HalfStorage": "<f2", "LongStorage": "<i8"}


def read_numpy_pickle(content: bytes, where: str) -> dict[str, np.ndarray]:
    """Reads a pickle of nested dicts of float32 arrays.

    Args:
      content: The pickle.
      where: Its path, for errors.

    Returns:
      Arrays by path, such as "params/Conv3d_1a_7x7/Conv_0/kernel".

    Raises:
      UserError: It is no pickle, or contains anything else.
    """

    def read() -> dict[str, np.ndarray]:
        leaves = _flatten(_NumpyReader(io.BytesIO(content)).load())
        return {path: _to_array(leaf) for path, leaf in leaves.items()}

    return _reporting(read, where)


def read_torch_pickle(content: bytes, where: str) -> dict[str, np.ndarray]:
    """Reads a state dict in PyTorch's first file format (before version 1.6).

    Args:
      content: The file.
      where: Its path, for errors.

    Returns:
      Arrays by name.

    Raises:
      UserError: It has another format, or contains anything but tensors.
    """

    def read() -> dict[str, np.ndarray]:
        file = io.BytesIO(content)
        if _NumpyReader(file).load() != _MAGIC:
            raise ValueError("not in PyTorch's first file format")
        for _ in ("protocol version", "sizes of types"):
            _NumpyReader(file).load()
        tensors = dict(_TorchReader(file).load())
        types = {tensor.storage.key: tensor.storage.dtype for tensor in tensors.values()}
        storages = {}
        for key in _NumpyReader(file).load():
            count = int.from_bytes(file.read(8), "little")
            dtype = np.dtype(types[key])
            storages[key] = np.frombuffer(file.read(count * dtype.itemsize), dtype)
        return {name: _to_tensor(tensor, storages) for name, tensor in tensors.items()}

    return _reporting(read, where)


def _reporting(read: Callable[[], dict[str, np.ndarray]], where: str) -> dict[str, np.ndarray]:
    try:
        return read()
    except Exception as error:  # of many types
        reason = textwrap.shorten(str(error) or repr(error), 120, placeholder=" ...")
        raise UserError(f"{where}: {reason}; expected a pickle of arrays only") from error


class _Array:
    """Stands for `numpy.ndarray` in a pickle; keeps what describes the array."""

    def __setstate__(self, state: tuple) -> None:
        _, self.shape, self.dtype, self.is_fortran, self.content = state


class _Dtype:
    """Stands for `numpy.dtype` in a pickle."""

    def __init__(self, code: str, *_):
        self.code = code

    def __setstate__(self, state: tuple) -> None:
        self.order = state[1]


class _Storage(NamedTuple):
    """Key and type of a block of memory that tensors share."""

    key: str
    dtype: str


class _Tensor(NamedTuple):
    """Arguments of `torch._utils._rebuild_tensor_v2`; strides are in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Reader(pickle.Unpickler):
    """Reads a pickle in which only the globals of `STANDINS` occur."""

    STANDINS: ClassVar[Mapping[str, Any]] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Returns the stand-in of a global."""
        if (found := self.STANDINS.get(f"{module} {name}")) is not None:
            return found
        raise ValueError(f"names {module}.{name}")


class _NumpyReader(_Reader):
    STANDINS = {  # noqa: RUF012
        "numpy ndarray": _Array,
        "numpy dtype": _Dtype,
        "numpy.core.multiarray _reconstruct": lambda *_: _Array(),  # NumPy 1
        "numpy._core.multiarray _reconstruct": lambda *_: _Array(),  # NumPy 2
    }


class _TorchReader(_Reader):
    STANDINS = {  # noqa: RUF012
        "collections OrderedDict": collections.OrderedDict,  # with attributes, unlike a dict
        "torch._utils _rebuild_tensor_v2": lambda *arguments: _Tensor(*arguments[:4]),
        **{f"torch {name}": dtype for name, dtype in _TORCH_TYPES.items()},
    }

    def persistent_load(self, pid: Any) -> _Storage:
        """Returns the storage with an id."""
        kind, dtype, key, *_ = pid
        if kind != "storage" or dtype not in _TORCH_TYPES.values():
            raise ValueError(f"names a {kind} of {dtype}")
        return _Storage(key, dtype)


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns leaves by path. Names of modules can contain slashes themselves."""
    flat = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        flat.update(_flatten(value, f"{path}/") if isinstance(value, dict) else {path: value})
    return flat


def _to_array(value: Any) -> np.ndarray:
    if not isinstance(value, _Array) or (value.dtype.code, value.dtype.order) != ("f4", "<"):
        raise ValueError(f"contains a {type(value).__name__} that is no array of float32")
    array = np.frombuffer(value.content, "<f4")
    return array.reshape(value.shape, order="F" if value.is_fortran else "C")


def _to_tensor(tensor: _Tensor, storages: Mapping[str, np.ndarray]) -> np.ndarray:
    values = storages[tensor.storage.key]
    if math.prod(tensor.shape) > len(values):
        raise ValueError("a tensor is larger than its storage")
    # Indices instead of `as_strided`, which would read beyond the storage.
    index = np.asarray(tensor.offset)
    for size, stride in zip(tensor.shape, tensor.strides, strict=True):
        index = index[..., None] + np.arange(size) * stride
    if (index < 0).any():
        raise ValueError("a tensor begins before its storage")
    return values[index]
