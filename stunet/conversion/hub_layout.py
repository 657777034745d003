"""Component folders in the layout of diffusers and transformers.

    config.json
    NAME[.VARIANT].safetensors                      one file, or
    NAME[.VARIANT]-00001-of-00002.safetensors ...   shards

Pickles are not read, because loading one executes code in it.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stunet.errors import UserError
from stunet.files import check_not_lfs_pointer
from stunet.paths import AnyPath
from stunet.weights.hub import HubId
from stunet.weights.safetensors_io import (
    LazyTensor,
    TransformedTensor,
    open_safetensors,
    shard_file_names,
    split_into_shards,
    write_safetensors,
)
from stunet.weights.trees import Tree, flatten, unflatten

_WEIGHTS = re.compile(
    r"(?P<name>[^.]+?)(\.(?P<variant>[^.]+?))?(-(?P<shard>\d{5})-of-(?P<shards>\d{5}))?"
    r"(\.(?P<older>[^.]+?))?\.safetensors"  # older diffusers put the variant after the shard
)
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclass(frozen=True)
class HubParameter:
    """A parameter in the state dict of a published checkpoint.

    Attributes:
      name: Name in the state dict.
      shape: Shape in the state dict.
      axes: Transposition that converts it to this package's layout. None converts the kernel of a
        1x1 convolution to that of a dense layer.
    """

    name: str
    shape: tuple[int, ...]
    axes: tuple[int, ...] | None

    def from_hub(self, array: np.ndarray) -> np.ndarray:
        """Converts an array of the state dict to this package's layout."""
        return array[:, :, 0, 0].T if self.axes is None else array.transpose(self.axes)

    @property
    def native_shape(self) -> tuple[int, ...]:
        """Shape in this package's layout."""
        if self.axes is None:
            return self.shape[1::-1]
        return tuple(self.shape[axis] for axis in self.axes)

    def to_hub(self, array: np.ndarray) -> np.ndarray:
        """Converts an array to the state dict's layout; the inverse of `from_hub`."""
        if self.axes is None:
            return array.T[:, :, None, None]
        return array.transpose(np.argsort(self.axes))


def from_hub(table: Mapping[str, HubParameter], state_dict: Mapping[str, Any]) -> Tree:
    """Returns the parameter tree of a state dict, as lazy tensors.

    Args:
      table: Path in the tree -> parameter in the state dict.
      state_dict: Arrays or lazy tensors by name.
    """
    return unflatten(
        {
            path: TransformedTensor(
                state_dict[parameter.name], parameter.native_shape, parameter.from_hub
            )
            for path, parameter in table.items()
        }
    )


def to_hub(
    table: Mapping[str, HubParameter], params: Mapping[str, Any]
) -> dict[str, TransformedTensor]:
    """Returns the state dict of a parameter tree, as lazy tensors; the inverse of `from_hub`."""
    flat = flatten(params)
    return {
        parameter.name: TransformedTensor(flat[path], parameter.shape, parameter.to_hub)
        for path, parameter in table.items()
    }


def find_weight_files(folder: AnyPath, variant: str | None) -> list[AnyPath]:
    """Returns the safetensors files of one variant of a component's weights.

    Args:
      folder: Folder of the component.
      variant: Variant to select, such as "fp16". None selects the weights without a variant, else
        the only ones in the folder.

    Raises:
      UserError: There are no such weights, several, or only pickles (the message contains a command
        to convert them), or a shard is missing.
    """
    names = select_weight_files([path.name for path in folder.iterdir()], variant, folder)
    return [folder / name for name in names]


def select_weight_files(
    names: Sequence[str], variant: str | None, folder: AnyPath | HubId
) -> list[str]:
    """Selects the safetensors files of one variant by their names; see `find_weight_files`.

    Args:
      names: Names of the files in the folder.
      variant: See `find_weight_files`.
      folder: The folder, for error messages.
    """
    copies: dict[tuple[str, str | None, str | None], list[re.Match]] = {}
    for match in filter(None, map(_WEIGHTS.fullmatch, sorted(names))):
        key = match["name"], match["variant"] or match["older"], match["shards"]
        copies.setdefault(key, []).append(match)
    if not copies:
        _check_no_pickles(folder, sorted(names))
        raise UserError(f"{folder}: contains no weights, expected a safetensors file")
    selected = [key for key in copies if key[1] == variant]
    if not selected and variant is None and len(copies) == 1:
        selected = list(copies)
    if len(selected) != 1:
        requested = "without a variant" if variant is None else f"of variant '{variant}'"
        found = ", ".join(
            ".".join(filter(None, (name, kind))) + (f" in {int(shards)} files" if shards else "")
            for name, kind, shards in copies
        )
        raise UserError(
            f"{folder}: contains {len(selected)} weights {requested}, expected 1 of {found}; "
            "select one with --variant, or remove the others"
        )
    files = copies[selected[0]]
    count = int(selected[0][2] or 1)
    present = {int(match["shard"] or 1) for match in files}
    if missing := sorted(set(range(1, count + 1)) - present):
        absent = files[0].string.replace(f"-{files[0]['shard']}-of", f"-{missing[0]:05d}-of")
        raise UserError(f"{folder}/{absent}: no such file, expected {count} shards")
    return [match.string for match in files]


def open_weight_files(files: list[AnyPath]) -> dict[str, LazyTensor]:
    """Opens all tensors of these files, by name, as lazy tensors."""
    return {name: tensor for file in files for name, tensor in open_safetensors(file).items()}


def write_component(
    folder: Path, stem: str, tensors: Mapping[str, Any], config: Mapping[str, Any], shard_bytes: int
) -> None:
    """Writes a component's folder, with an index if its weights need several shards.

    Args:
      folder: Folder to create.
      stem: Name of the weight files without suffix.
      tensors: State dict of arrays or lazy tensors.
      config: Contents of `config.json`.
      shard_bytes: Maximum size of a weight file.
    """
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    shards = split_into_shards(tensors, shard_bytes)
    names = shard_file_names(stem, len(shards))
    for name, shard in zip(names, shards, strict=True):
        write_safetensors(folder / name, shard, metadata={"format": "pt"})
    if len(names) > 1:
        index = {
            "metadata": {"total_size": sum(tensor.nbytes for tensor in tensors.values())},
            "weight_map": {
                t: name for name, shard in zip(names, shards, strict=True) for t in shard
            },
        }
        path = folder / f"{stem}.safetensors.index.json"
        path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def pickle_error(path: AnyPath) -> UserError:
    """Returns the error for a pickle, with a command that converts such files to safetensors."""
    command = (
        "import glob, os, torch, safetensors.torch as s; "
        "[s.save_file({k: v.clone().contiguous() for k, v in torch.load(f, 'cpu', "
        "weights_only=True).items()}, os.path.splitext(f)[0] + '.safetensors') "
        f"for f in glob.glob('{path.parent}/*{path.suffix}')]"
    )
    return UserError(
        f"{path}: is a pickle (loading it can execute code), expected safetensors; to convert it "
        f'where torch is installed: python -c "{command}"'
    )


def _check_no_pickles(folder: AnyPath | HubId, names: Sequence[str]) -> None:
    for name in names:
        if not name.endswith(PICKLE_SUFFIXES):
            continue
        if isinstance(folder, HubId):
            raise UserError(
                f"{folder}/{name}: is a pickle (loading it can execute code), expected safetensors"
            )
        check_not_lfs_pointer(folder / name)
        raise pickle_error(folder / name)
