"""Loads safetensors of PyTorch modules into Flax modules whose submodules have the same names.

The parameter `layers_0/fc1/kernel` is called `layers.0.fc1.weight` in PyTorch, with axes in
PyTorch's order.
"""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from stunet.conversion.hub_layout import (
    PICKLE_SUFFIXES,
    HubParameter,
    from_hub,
    open_weight_files,
    pickle_error,
)
from stunet.errors import UserError
from stunet.files import check_not_lfs_pointer
from stunet.paths import AnyPath
from stunet.weights.trees import Tree, compare_shapes, flatten, unflatten

_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}


def open_torch_weights(path: AnyPath) -> dict[str, Any]:
    """Opens a safetensors file without reading its tensors; returns them by name.

    Raises:
      UserError: the file is missing, not safetensors, or a pickle (with a command to convert it).
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file, expected safetensors (see docs/evaluation.md)")
    check_not_lfs_pointer(path)
    if path.suffix in PICKLE_SUFFIXES:
        raise pickle_error(path)
    return open_weight_files([path])


def torch_parameters(shapes: Mapping[str, Any]) -> dict[str, HubParameter]:
    """Returns the name, shape and axes in PyTorch of each parameter, by path.

    Args:
      shapes: Tree of leaves with a `shape`.
    """
    return {path: _torch_parameter(path, leaf.shape) for path, leaf in flatten(shapes).items()}


def load_parameters(
    init: Callable[[], Any],
    tensors: Mapping[str, Any],
    where: AnyPath,
    origin_hints: Mapping[str, str],
) -> Tree:
    """Returns a network's parameters in float32, on the device.

    Args:
      init: Returns initial parameters; only their shapes are used.
      tensors: PyTorch state dict.
      where: Path of the state dict, for errors.
      origin_hints: See `compare_shapes`.

    Raises:
      UserError: names or shapes differ; one line lists them.
    """
    table = torch_parameters(jax.eval_shape(init))
    compare_shapes(
        {entry.name: entry for entry in table.values()}, tensors, str(where), origin_hints
    )
    arrays = (np.asarray(leaf, np.float32) for leaf in flatten(from_hub(table, tensors)).values())
    return unflatten(dict(zip(table, map(jax.device_put, arrays), strict=True)))


def leading_size(tensors: Mapping[str, Any], name: str, default: int) -> int:
    """Returns the size of a tensor's first axis, or `default` if there is no such tensor."""
    shape = getattr(tensors.get(name), "shape", ())
    return shape[0] if shape else default


def sha256(files: Sequence[AnyPath]) -> str:
    """Returns the SHA-256 of the concatenated content of files."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            while block := opened.read(2**20):
                digest.update(block)
    return digest.hexdigest()


def _torch_parameter(path: str, shape: tuple[int, ...]) -> HubParameter:
    module, _, leaf = path.rpartition("/")
    name = re.sub(r"_(\d+)(?=/|$)", r".\1", module).replace("/", ".")
    name = f"{name}.{_LEAVES.get(leaf, leaf)}".lstrip(".")
    if leaf == "kernel":  # (window, in, out) in Flax, (out, in, window) in PyTorch
        window = len(shape) - 2
        theirs = (shape[-1], shape[-2], *shape[:-2])
        return HubParameter(name, theirs, (*range(2, 2 + window), 1, 0))
    return HubParameter(name, shape, tuple(range(len(shape))))
