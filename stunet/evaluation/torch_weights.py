"""Weights of PyTorch modules, from safetensors, for networks whose modules have the same names.

A parameter's name there is its path here: `layers_0/fc1/kernel` is `layers.0.fc1.weight`, its axes
in PyTorch's order.
"""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
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
from stunet.weights.trees import Tree, compare_shapes, flatten, unflatten

_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}


def read_file(path: Path) -> dict[str, Any]:
    """The tensors of one safetensors file, by name; they stay on disk.

    Raises:
      UserError: it is missing, no safetensors file, or a pickle (with what converts it).
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; docs/evaluation.md says how to make one")
    if path.suffix in PICKLE_SUFFIXES:
        raise pickle_error(path)
    return open_weight_files([path])


def renamed(shapes: Mapping[str, Any]) -> dict[str, HubParameter]:
    """Our path -> its place in PyTorch's state dict, by a tree of leaves with a `.shape`."""
    return {path: _renamed(path, leaf.shape) for path, leaf in flatten(shapes).items()}


def parameters(
    init: Callable[[], Any], tensors: Mapping[str, Any], where: Path, families: Mapping[str, str]
) -> Tree:
    """A network's parameters in float32, on the device.

    Args:
      init: makes parameters; only their shapes are asked for.
      tensors: a state dict.
      where: it is from, for errors.
      families: see `compare_shapes`.

    Raises:
      UserError: names or shapes differ; one line lists them.
    """
    table = renamed(jax.eval_shape(init))
    compare_shapes({place.name: place for place in table.values()}, tensors, str(where), families)
    arrays = (np.asarray(leaf, np.float32) for leaf in flatten(from_hub(table, tensors)).values())
    return unflatten(dict(zip(table, map(jax.device_put, arrays), strict=True)))


def leading(tensors: Mapping[str, Any], name: str, default: int) -> int:
    """The first axis of a tensor, such as a layer's width; `default` where there is none."""
    shape = getattr(tensors.get(name), "shape", ())
    return shape[0] if shape else default


def sha256(files: Sequence[Path]) -> str:
    """Of what the files hold, one after the other."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            while block := opened.read(2**20):
                digest.update(block)
    return digest.hexdigest()


def _renamed(path: str, shape: tuple[int, ...]) -> HubParameter:
    module, _, leaf = path.rpartition("/")
    name = re.sub(r"_(\d+)(?=/|$)", r".\1", module).replace("/", ".")
    name = f"{name}.{_LEAVES.get(leaf, leaf)}".lstrip(".")
    if leaf == "kernel":  # (window, in, out) here, (out, in, window) there
        window = len(shape) - 2
        theirs = (shape[-1], shape[-2], *shape[:-2])
        return HubParameter(name, theirs, (*range(2, 2 + window), 1, 0))
    return HubParameter(name, shape, tuple(range(len(shape))))
